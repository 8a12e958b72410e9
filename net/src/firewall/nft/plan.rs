//! Adding to the table, after a look at what is missing and what stands in the way.

use super::base::{self, Services};
use super::element::{Element, Key, Map, Scope, head, key_element};
use super::rebuild::Rebuild;
use super::record::Kind;
use super::socket::{QUESTIONS, Question, generation_of, refused};
use super::table::Table;
use super::wire::{Batch, Writer, flag, msg};
use super::{Nftables, Wanted};
use crate::firewall::{is_alive, taken};
use crate::names::Owner;
use crate::{Error, Result};

/// How often a change that others' changes got in the way of is tried; of those that compete, one succeeds each time.
pub const TRIES: usize = 200;
/// How often in a row something may be missing although it was seen, or is made in the same batch.
const VAIN: usize = 20;
/// How often in a row a scope's sets may be there, and not its chain, as when another process makes it just now.
const DOUBLED: usize = 3;
/// Bytes of elements in one message: an attribute's length has 16 bits.
const LIST: usize = 60_000;

/// How closely is looked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// With one system call.
    Cheap,
    /// At everything.
    Thorough,
}

/// What has to be done so that the elements can be added.
#[derive(Default)]
struct Plan {
    /// The table is missing.
    table: bool,
    /// These scopes' sets and chains are missing.
    scopes: Vec<Scope>,
    /// Elements of the dead, in the place of wanted ones.
    dead: Vec<Key>,
    /// Wanted elements that are there already, by index.
    done: Vec<usize>,
    /// Tables of which something is missing that no other table's absence explains.
    lost: Vec<Table>,
    /// The generation that this was seen in, when something will be deleted because of what was seen.
    generation: Option<u32>,
}

/// Adds messages about elements to a batch: as many of one map in a message as fit. They come sorted by map.
pub fn push_lists<T>(
    batch: &mut Batch,
    (what, kind, flags): (&'static str, u16, u16),
    items: &[T],
    key: impl Fn(&T) -> &Key,
    write: impl Fn(&T, &mut Writer),
) {
    for of_map in items.chunk_by(|a, b| key(a).map == key(b).map) {
        let mut rest = of_map.iter().peekable();
        while let Some(first) = rest.peek() {
            let map = key(first).map;
            batch.push(what, kind, flags, |w| {
                head(w, map);
                w.nest(3, |w| {
                    let start = w.buf.len();
                    while let Some(item) = rest.next_if(|_| w.buf.len() - start < LIST) {
                        write(item, w);
                    }
                });
            });
        }
    }
}

/// Adds the deletion of elements to a batch.
pub fn push_deletions(batch: &mut Batch, keys: &[Key]) {
    let what = ("delete elements of", msg::DELSETELEM, 0);
    push_lists(batch, what, keys, |k| k, key_element);
}

/// What the kernel says to a kind of chain or expression that it does not have, in a table that the same batch makes.
fn is_unknown(errno: i32) -> bool {
    matches!(errno, libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)
}

fn broken(table: Table) -> Error {
    Error::Mismatch(format!(
        "{table} is there, but is not as Weft makes it: remove it (`nft delete {table}`) and attach again"
    ))
}

impl Nftables {
    /// Adds what is wanted, all of it in one table. Nothing is changed when that fails. Returns whether something was
    /// added that belongs to no single attachment, which is what has no tag.
    pub(super) fn put(&mut self, wanted: Wanted) -> Result<bool> {
        if wanted.elements.is_empty() {
            return Ok(false);
        }
        let table = wanted.table();
        let (mut look, mut in_vain, mut doubled) = (Look::Cheap, 0, 0);
        for _ in 0..TRIES {
            let plan = self.inspect(&wanted, look)?;
            if self.restored(&wanted, &plan)? {
                continue;
            }
            if plan.done.len() == wanted.elements.len() && plan.scopes.is_empty() {
                return Ok(false);
            }
            if self.lacks_frame(table, &plan)? {
                in_vain += 1;
                if in_vain == 1 {
                    self.rebuild(table, Rebuild::Always)?;
                } else if in_vain > VAIN {
                    return Err(broken(table));
                }
                look = Look::Thorough;
                continue;
            }
            let batch = self.compose(&wanted, &plan);
            let is_shared = |(index, element): (usize, &Element)| {
                element.tag.is_empty() && plan.done.binary_search(&index).is_err()
            };
            let shared = wanted.elements.iter().enumerate().any(is_shared);
            let Err(errors) = self.socket.commit(batch)? else { return Ok(shared) };
            if plan.table && table == Table::Bridge && errors.iter().any(|(errno, _)| is_unknown(*errno)) {
                return Err(Error::Unsupported("nftables for bridges (CONFIG_NF_TABLES_BRIDGE)".into()));
            }
            let transient =
                |errno| matches!(errno, libc::ENOENT | libc::EEXIST | libc::ERESTART | libc::EBUSY);
            if let Some((errno, what)) = errors.iter().find(|(errno, _)| !transient(*errno)) {
                return Err(refused(what, *errno));
            }
            // With table and chains there, or made in the same batch, only a map can be missing; or others undid them.
            let only_missing = errors.iter().all(|(errno, _)| *errno == libc::ENOENT);
            if plan.scopes.contains(&Scope::Tracked) && only_missing && self.services == Services::Marked {
                // The batch makes all that it names: an expression is missing.
                self.services = Services::All;
                continue;
            }
            in_vain = if only_missing { in_vain + 1 } else { 0 };
            // A scope whose chain is missing and whose sets are there: another program deleted the chain.
            let is_doubled =
                !plan.scopes.is_empty() && errors.iter().any(|(errno, _)| *errno == libc::EEXIST);
            doubled = if is_doubled { doubled + 1 } else { 0 };
            if doubled > DOUBLED && !self.rebuild(table, Rebuild::Always)? {
                return Err(broken(table));
            }
            if in_vain == 1 && !plan.table && self.rebuild(table, Rebuild::IfIncomplete)? {
                in_vain = 0;
            }
            if in_vain > VAIN {
                return Err(broken(table));
            }
            look = Look::Thorough;
        }
        Err(refused(&format!("add to {table}, which others change all the time"), libc::EBUSY))
    }

    /// Tells whether the table, to which the plan adds [`Scope::Tracked`], lacks the frame's sets, as another program's table
    /// does, or has another scope already, which an earlier version made without it.
    fn lacks_frame(&mut self, table: Table, plan: &Plan) -> Result<bool> {
        if plan.table || !plan.scopes.contains(&Scope::Tracked) {
            return Ok(false);
        }
        let maps = self.socket.maps(table)?;
        let is_other = |map: &Map| map.scope().is_some_and(|scope| scope != Scope::Tracked);
        // Without any, it is gone by now or another program's: the transaction fails then.
        let has_frame = table.frame().iter().all(|map| maps.contains(map));
        Ok(!has_frame || maps.iter().any(is_other))
    }

    /// Restores from the records what another program removed, so that no table is made with this attachment alone. Returns
    /// whether something was restored.
    fn restored(&mut self, wanted: &Wanted, plan: &Plan) -> Result<bool> {
        let Some(records) = self.records.clone().filter(|_| !plan.lost.is_empty()) else { return Ok(false) };
        let tag = wanted.elements.iter().map(|element| element.tag.as_str()).find(|tag| !tag.is_empty());
        let owner = tag.and_then(Owner::parse_tag);
        // What is about to be added is no reason.
        let kind = match wanted.table() {
            Table::Bridge => Kind::Watch,
            _ if wanted.elements.iter().any(|element| element.key.map.is_ports()) => Kind::Ports,
            _ => Kind::Link,
        };
        let own = owner.as_ref().map(|owner| (owner, kind));
        let lost: Vec<_> = plan.lost.iter().copied().filter(|table| records.has_any(*table, own)).collect();
        Ok(self.restore_tables(&lost, &records)?.is_any())
    }

    fn compose(&mut self, wanted: &Wanted, plan: &Plan) -> Batch {
        let mut batch = self.socket.batch(wanted.table(), plan.generation);
        if plan.table {
            base::push(&mut batch);
        }
        plan.scopes.iter().for_each(|scope| base::push_scope(&mut batch, *scope, self.services));
        push_deletions(&mut batch, &plan.dead);
        // They are in the elements' order.
        let mut done = plan.done.iter().peekable();
        let is_missing = |(index, _): &(usize, &Element)| done.next_if(|done| **done == *index).is_none();
        let missing: Vec<&Element> =
            wanted.elements.iter().enumerate().filter(is_missing).map(|(_, e)| e).collect();
        let what = ("add elements to", msg::NEWSETELEM, flag::CREATE | flag::EXCL);
        push_lists(&mut batch, what, &missing, |e| &e.key, |e, w| e.write(w));
        batch
    }

    /// Looks at what the wanted elements need and meet.
    fn inspect(&mut self, wanted: &Wanted, look: Look) -> Result<Plan> {
        let mut questions = vec![Question::Generation, Question::Table(wanted.table())];
        questions.extend(wanted.scopes.iter().map(|scope| Question::Scope(*scope)));
        let guards = questions.len();
        if self.records.is_some() {
            questions.extend(base::GUARDS.map(|(table, chain, _)| Question::Foreign {
                family: table.family(),
                table: table.name(),
                chain,
            }));
        }
        let first = questions.len();
        // The elements are asked for too when that takes no further system call; of many, the transaction's failing tells.
        if look == Look::Thorough || first + wanted.elements.len() <= QUESTIONS {
            questions.extend(wanted.elements.iter().map(|e| Question::Element(&e.key)));
        }
        let (mut generation, mut plan, mut met) = (0, Plan::default(), Vec::new());
        self.socket.ask(&questions, |index, answer| match questions[index] {
            Question::Generation => generation = generation_of(answer),
            Question::Table(_) => plan.table = answer.is_err(),
            Question::Scope(scope) if answer.is_err() => plan.scopes.push(scope),
            Question::Scope(_) => {}
            Question::Foreign { .. } => {
                let (table, _, count) = base::GUARDS[index - guards];
                if base::rules_of(answer) < count {
                    plan.lost.push(table);
                }
            }
            Question::Element(key) => {
                let found = answer.ok().and_then(|m| Element::parse_all(key.map, m.attrs()).pop());
                met.extend(found.map(|found| (index - first, found)));
            }
        })?;
        let mut replaced: Vec<Element> = Vec::new();
        for (index, found) in met {
            let want = &wanted.elements[index];
            if found == *want {
                plan.done.push(index);
                continue;
            }
            // The same owner's is brought up to date; an address has the owner whom the address store gave it to.
            if found.key.map.is_ports() && found.tag != want.tag {
                if let Some((protocol, port)) = found.key.parts().filter(|_| is_alive(&found.tag)) {
                    return Err(taken(protocol, port, &found.tag));
                }
                replaced.push(found.clone());
            }
            if found.key.map.is_of_sources() {
                replaced.push(found.clone());
            }
            plan.dead.push(found.key);
        }
        // What is replaced takes with it what nothing would lead to any more; but not under a wanted key.
        if !replaced.is_empty() {
            let keys = self.companions(&replaced)?;
            let found = self.find(&keys.iter().collect::<Vec<_>>())?.into_iter().flatten();
            let of_dead = found.filter(|e| replaced.iter().any(|dead| dead.tag == e.tag));
            plan.dead.extend(of_dead.map(|e| e.key));
        }
        plan.dead.sort();
        plan.dead.dedup();
        // A transaction that makes the tracked scope and fails with ENOENT, while no other process changed the tables, names an
        // expression that the kernel lacks.
        let tells_by_failing = !plan.table && plan.scopes.contains(&Scope::Tracked);
        plan.generation = (tells_by_failing || !plan.dead.is_empty()).then_some(generation);
        Ok(plan)
    }

    /// The elements of these keys, where they exist, in the keys' order.
    pub(super) fn find(&mut self, keys: &[&Key]) -> Result<Vec<Option<Element>>> {
        self.socket.find(keys)
    }
}
