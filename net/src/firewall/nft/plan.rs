//! Adding to the table: blindly first, and when that is refused, after a look at what stands in the way.

use super::base::{self, TABLE, Target};
use super::element::{Element, Key, Map, head, key_element, list_of_key};
use super::socket::{Question, generation_of, refused};
use super::wire::{Batch, Writer, flag, msg};
use super::{Nftables, Wanted};
use crate::firewall::{is_alive, taken};
use crate::{Error, Result};

/// How often a change that others' changes got in the way of is tried. Each try takes 0.1 ms, and of those that
/// compete, one succeeds each time.
pub const TRIES: usize = 200;
/// How often in a row something may be missing although it was seen, or is made in the same batch.
const VAIN: usize = 20;
const BROKEN: &str = "table inet weft is there, but is not as Weft makes it: remove it (`nft delete table inet weft`) \
                      and attach again";
/// Bytes of elements in one message: an attribute's length has 16 bits.
const LIST: usize = 60_000;
/// Questions in one sendmsg; the receive buffer (net.core.rmem_default, 208 KiB) holds the answers of so many for certain.
pub const QUESTIONS: usize = 16;

/// What has to be done so that the elements can be added.
#[derive(Default)]
struct Plan {
    /// The table is missing.
    table: bool,
    /// These chains are missing.
    chains: Vec<Target>,
    /// Elements of the dead, in the place of wanted ones.
    dead: Vec<Key>,
    /// Wanted elements that are there already, by index.
    done: Vec<usize>,
    /// The generation that this was seen in, when something will be deleted because of what was seen.
    generation: Option<u32>,
}

/// Adds messages about elements to a batch: as many of one map in a message as fit. They come sorted by map.
fn push_lists<T>(
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
    let what = ("delete elements of table inet weft", msg::DELSETELEM, 0);
    push_lists(batch, what, keys, |k| k, key_element);
}

impl Nftables {
    /// Adds what is wanted. Nothing is changed when that fails.
    pub(super) fn put(&mut self, wanted: Wanted) -> Result<()> {
        if wanted.elements.is_empty() {
            return Ok(());
        }
        let mut plan = Plan::default();
        let mut in_vain = 0;
        for _ in 0..TRIES {
            let batch = self.compose(&wanted, &plan);
            let Err(errors) = self.socket.commit(batch)? else { return Ok(()) };
            let transient =
                |errno| matches!(errno, libc::ENOENT | libc::EEXIST | libc::ERESTART | libc::EBUSY);
            if let Some((errno, what)) = errors.iter().find(|(errno, _)| !transient(*errno)) {
                return Err(refused(what, *errno));
            }
            // With table and chains there, or made in the same batch, only a map can be missing; or others undid them.
            let only_missing = errors.iter().all(|(errno, _)| *errno == libc::ENOENT);
            in_vain = if only_missing { in_vain + 1 } else { 0 };
            if in_vain > VAIN {
                return Err(Error::Mismatch(BROKEN.into()));
            }
            plan = self.inspect(&wanted)?;
            if plan.done.len() == wanted.elements.len() {
                return Ok(());
            }
        }
        Err(refused("add to table inet weft, which others change all the time", libc::EBUSY))
    }

    fn compose(&mut self, wanted: &Wanted, plan: &Plan) -> Batch {
        let mut batch = self.socket.batch(plan.generation);
        if plan.table {
            base::push(&mut batch);
        }
        plan.chains.iter().for_each(|target| target.push(&mut batch));
        push_deletions(&mut batch, &plan.dead);
        let missing: Vec<&Element> = wanted
            .elements
            .iter()
            .enumerate()
            .filter(|(i, _)| !plan.done.contains(i))
            .map(|(_, e)| e)
            .collect();
        let what = ("add elements to table inet weft", msg::NEWSETELEM, flag::CREATE | flag::EXCL);
        push_lists(&mut batch, what, &missing, |e| &e.key, |e, w| e.write(w));
        batch
    }

    /// Looks at what the wanted elements need and meet.
    fn inspect(&mut self, wanted: &Wanted) -> Result<Plan> {
        let mut plan = Plan::default();
        let (mut generation, mut table) = (0, false);
        let questions: [Question<'_>; 2] = [(msg::GETGEN, &|_| {}), (msg::GETTABLE, &|w| w.str(1, TABLE))];
        self.socket.ask(&questions, |index, answer| match index {
            0 => generation = generation_of(answer),
            _ => table = answer.is_ok(),
        })?;
        if !table {
            plan.table = true;
            plan.chains = wanted.chains.clone();
            return Ok(plan);
        }
        plan.chains = self.missing_chains(&wanted.chains)?;
        let keys: Vec<&Key> = wanted.elements.iter().map(|e| &e.key).collect();
        let mut hairpins: Vec<(Key, String)> = Vec::new();
        for (index, found) in self.find(&keys)?.into_iter().enumerate() {
            let (Some(found), want) = (found, &wanted.elements[index]) else { continue };
            if found == *want {
                plan.done.push(index);
                continue;
            }
            // The same owner's is brought up to date; an address has the owner whom the address store gave it to.
            if found.tag != want.tag
                && let Some((protocol, port)) = found.key.parts().filter(|_| found.key.map.is_ports())
                && is_alive(&found.tag)
            {
                return Err(taken(protocol, port, &found.tag));
            }
            if let Some(addr) = found.value.address().filter(|_| found.tag != want.tag) {
                hairpins.push((Key::address(Map::Hairpin4, Map::Hairpin6, addr), found.tag));
            }
            plan.dead.push(found.key);
        }
        // With its port goes the hairpin of the dead, which nothing would lead to any more; but not under a wanted key.
        hairpins.retain(|(key, _)| !keys.contains(&key));
        let found = self.find(&hairpins.iter().map(|(key, _)| key).collect::<Vec<_>>())?;
        let of_dead =
            found.into_iter().zip(&hairpins).filter_map(|(e, (_, tag))| e.filter(|e| e.tag == *tag));
        plan.dead.extend(of_dead.map(|e| e.key));
        plan.dead.sort();
        plan.dead.dedup();
        if !plan.dead.is_empty() {
            plan.generation = Some(generation);
        }
        Ok(plan)
    }

    /// Those of the chains that are not there.
    pub(super) fn missing_chains(&mut self, chains: &[Target]) -> Result<Vec<Target>> {
        let mut missing = Vec::new();
        for some in chains.chunks(QUESTIONS) {
            let fills: Vec<_> =
                some.iter().map(|target| move |w: &mut Writer| base::chain_key(w, &target.name())).collect();
            let questions: Vec<Question<'_>> =
                fills.iter().map(|fill| (msg::GETCHAIN, fill as &dyn Fn(&mut Writer))).collect();
            self.socket.ask(&questions, |index, answer| {
                if answer.is_err() {
                    missing.push(some[index]);
                }
            })?;
        }
        Ok(missing)
    }

    /// The elements of these keys, where they exist, in the keys' order.
    pub(super) fn find(&mut self, keys: &[&Key]) -> Result<Vec<Option<Element>>> {
        let mut found = vec![None; keys.len()];
        for (start, some) in keys.chunks(QUESTIONS).enumerate() {
            let fills: Vec<_> = some.iter().map(|key| move |w: &mut Writer| list_of_key(w, key)).collect();
            let questions: Vec<Question<'_>> =
                fills.iter().map(|fill| (msg::GETSETELEM, fill as &dyn Fn(&mut Writer))).collect();
            self.socket.ask(&questions, |index, answer| {
                if let Ok(m) = answer {
                    let elements = Element::parse_all(some[index].map, m.attrs());
                    found[start * QUESTIONS + index] = elements.into_iter().next();
                }
            })?;
        }
        Ok(found)
    }
}
