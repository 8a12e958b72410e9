//! Restoring what another program removed (`nft flush ruleset`, as Debian's nftables.service does when it is restarted), from
//! the records of attachments ([`super::records`]).

use super::base::{self, Services};
use super::element::{Element, Key, Map, Scope, Value};
use super::plan::{TRIES, push_lists};
use super::rebuild::derived;
use super::record::{Content, Record};
use super::records::{Loaded, Records};
use super::socket::{Question, refused};
use super::table::Table;
use super::wire::{attribute, comment_of, flag, msg};
use super::{Nftables, Wanted};
use crate::conntrack::{self, UdpFlow};
use crate::firewall::forward::{self, Traffic, Undeclared};
use crate::firewall::{Firewall, Protocol};
use crate::{Error, Result, sysctl};
use nix::net::if_::if_nametoindex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What was restored.
#[derive(Debug, Default)]
pub struct Restored {
    /// How many elements of sets and maps.
    pub elements: usize,
    /// Tables that were made (anew).
    pub tables: usize,
    /// Rules in other programs' forward chains.
    pub rules: usize,
    /// Files that are no records, and why.
    pub refused: Vec<String>,
    forward: Forwarded,
}

/// The bridges whose traffic other programs' forward chains accept, with the records that say so.
type Forwarded = BTreeMap<String, Vec<PathBuf>>;

impl Restored {
    /// Whether something was missing.
    pub fn is_any(&self) -> bool {
        self.elements + self.tables + self.rules > 0
    }
}

/// What a table is to have by its records.
struct Goal {
    elements: BTreeMap<Key, Element>,
    scopes: BTreeSet<Scope>,
    udp: Vec<UdpFlow>,
    forward: Forwarded,
    records: Vec<(PathBuf, Record)>,
}

/// What a table has.
#[derive(Default)]
struct Found {
    generation: u32,
    is_there: bool,
    /// Weft made it.
    is_ours: bool,
    /// No chain misses a rule, and no set is missing.
    is_whole: bool,
    elements: BTreeMap<Key, Element>,
    scopes: BTreeSet<Scope>,
}

impl Goal {
    /// An element that two records name is the older one's.
    fn of(table: Table, records: Vec<(PathBuf, Record)>, localnet: &[String]) -> Goal {
        let (mut elements, mut scopes) = (BTreeMap::new(), BTreeSet::new());
        let (mut udp, mut forward) = (Vec::new(), Forwarded::new());
        for (path, record) in &records {
            let Some(wanted) = record.wanted() else { continue };
            for element in wanted.elements {
                elements.entry(element.key.clone()).or_insert(element);
            }
            scopes.extend(wanted.scopes);
            match &record.content {
                Content::Ports { ports, .. } => {
                    let of_udp = ports.iter().filter(|port| port.protocol == Protocol::Udp);
                    udp.extend(of_udp.map(|port| UdpFlow::ToPort {
                        ip: port.host_ip.filter(|ip| !ip.is_unspecified()),
                        port: port.host_port,
                    }));
                }
                Content::Link { bridge: Some(bridge), forward: true, .. } => {
                    forward.entry(bridge.link.clone()).or_default().push(path.clone());
                }
                _ => {}
            }
        }
        let is_set = |link: &&String| {
            let setting = sysctl::conf(crate::Family::V4, link, "route_localnet");
            sysctl::get(&setting).is_ok_and(|value| value != "0")
        };
        if table == Table::Inet && !records.is_empty() {
            for link in localnet.iter().filter(is_set) {
                let key = Key::link(Map::Localnet, link);
                elements.insert(key.clone(), Element { key, value: Value::None, tag: String::new() });
            }
        }
        Goal { elements, scopes, udp, forward, records }
    }
}

impl Record {
    /// What is in its table; `None` when that is impossible here.
    pub(super) fn wanted(&self) -> Option<Wanted> {
        match &self.content {
            Content::Link { masqueraded, except, bridge, .. } => {
                let mut rules = bridge.clone().unwrap_or_default();
                rules.index = if_nametoindex(rules.link.as_str()).unwrap_or(0);
                if rules.index == 0 {
                    rules = super::BridgeRules::default();
                }
                rules.except.clone_from(except);
                Some(rules.wanted(&self.owner, masqueraded))
            }
            Content::Ports { addresses, ports, .. } => {
                let mut wanted = Wanted::default();
                wanted.publish(&self.owner, addresses, ports, &self.content.options()).ok()?;
                Some(wanted.sorted())
            }
            Content::Watch { mac, bound: None } => Some(super::spoof::watched(&self.owner, *mac)),
            Content::Watch { mac, bound: Some(bound) } => {
                let sources = super::Sources { mac: *mac, addresses: &bound.addresses, ipv6: bound.ipv6 };
                Some(super::spoof::bound(&self.owner, &sources))
            }
        }
    }
}

impl Nftables {
    /// Has each addition to the tables restore first what another program removed of them, from these records.
    #[must_use]
    pub fn with_records(mut self, records: Records) -> Nftables {
        self.records = Some(records);
        self
    }

    /// Restores what the records name if a table, or the rules of a chain, are missing: one question when they are not. Single
    /// elements that are missing are left to [`Nftables::restore`].
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn restore_if_lost(&mut self, records: &Records) -> Result<Restored> {
        let mut lost = Vec::new();
        for table in Table::OF_ATTACHMENTS.into_iter().filter(|table| records.has_any(*table, None)) {
            lost.extend((!self.has_chains(table)?).then_some(table));
        }
        self.restore_tables(&lost, records)
    }

    /// Whether the table has the chains of its frame with all their rules, and all of [`Scope::Tracked`] or none: one question.
    fn has_chains(&mut self, table: Table) -> Result<bool> {
        let of_frame = base::census(table, &[]);
        let frame = of_frame.len();
        let tracked = if table == Table::Inet { base::census_of(Scope::Tracked) } else { Vec::new() };
        let chains: Vec<_> = of_frame.into_iter().chain(tracked).collect();
        let question = |chain| Question::Foreign { family: table.family(), table: table.name(), chain };
        let questions: Vec<_> = chains.iter().map(|(name, _)| question(name.as_str())).collect();
        let (mut has_frame, mut has_tracked, mut lacks_tracked) = (true, false, false);
        self.socket.ask(&questions, |index, answer| {
            let is_there = answer.is_ok();
            let is_whole = is_there && base::rules_of(answer) >= chains[index].1;
            if index < frame {
                has_frame &= is_whole;
            } else {
                has_tracked |= is_there;
                lacks_tracked |= !is_whole;
            }
        })?;
        Ok(has_frame && !(has_tracked && lacks_tracked))
    }

    /// Restores whatever the records name and the tables miss, and with `forward` also what other programs' forward chains do.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn restore(&mut self, records: &Records, forward: bool) -> Result<Restored> {
        let mut restored = self.restore_tables(&Table::OF_ATTACHMENTS, records)?;
        if forward {
            restored.rules += self.accept(&restored.forward)?;
        }
        Ok(restored)
    }

    pub(super) fn restore_tables(&mut self, tables: &[Table], records: &Records) -> Result<Restored> {
        let mut restored = Restored::default();
        for table in tables {
            self.restore_table(*table, records, &mut restored)?;
        }
        Ok(restored)
    }

    fn restore_table(&mut self, table: Table, records: &Records, restored: &mut Restored) -> Result<()> {
        for _ in 0..TRIES {
            let generation = self.socket.generation()?;
            let Loaded { records: loaded, refused: no_records } = records.load(table)?;
            let goal = Goal::of(table, loaded, &records.localnet());
            let others = restored.refused.len();
            restored.refused.extend(no_records);
            restored.forward.extend(goal.forward.clone());
            if goal.elements.is_empty() {
                return Ok(());
            }
            let found = Found { generation, ..self.found(table)? };
            if found.is_there && !found.is_ours {
                return Ok(());
            }
            let lacks_tracked =
                goal.scopes.contains(&Scope::Tracked) && !found.scopes.contains(&Scope::Tracked);
            let (batch, count) = self.restoring(table, &goal, found);
            if batch.len() == 0 {
                return Ok(());
            }
            let Err(errors) = self.socket.commit(batch)? else {
                restored.elements += count.elements;
                restored.tables += count.tables;
                self.after(&goal)?;
                restored.rules += self.accept(&goal.forward)?;
                return Ok(());
            };
            if (count.tables > 0 || lacks_tracked) && errors.iter().all(|(errno, _)| *errno == libc::ENOENT) {
                // A kernel that cannot ask for a socket's mark says this of the rule.
                self.services = Services::All;
            }
            let transient =
                |errno| matches!(errno, libc::ENOENT | libc::EEXIST | libc::ERESTART | libc::EBUSY);
            if let Some((errno, what)) = errors.iter().find(|(errno, _)| !transient(*errno)) {
                return Err(refused(what, *errno));
            }
            restored.refused.truncate(others);
        }
        Err(refused(&format!("restore {table}, which others change all the time"), libc::EBUSY))
    }

    /// The transaction after which the table has all of the goal.
    fn restoring(&mut self, table: Table, goal: &Goal, found: Found) -> (super::wire::Batch, Restored) {
        let mut count = Restored::default();
        let mut batch = self.socket.batch(table, Some(found.generation));
        let is_missing = |element: &&Element| !found.elements.contains_key(&element.key);
        let missing: Vec<&Element> = goal.elements.values().filter(is_missing).collect();
        count.elements = missing.len();
        let add = ("add elements to", msg::NEWSETELEM, flag::CREATE);
        if found.is_whole {
            let scopes = goal.scopes.difference(&found.scopes);
            scopes.for_each(|scope| base::push_scope(&mut batch, *scope, self.services));
            push_lists(&mut batch, add, &missing, |e| &e.key, |e, w| e.write(w));
            return (batch, count);
        }
        count.tables = 1;
        if found.is_there {
            batch.push("delete", msg::DELTABLE, 0, |_| {});
        }
        base::push(&mut batch);
        let mut scopes = &found.scopes | &goal.scopes;
        if !scopes.is_empty() {
            scopes.insert(Scope::Tracked);
        }
        scopes.iter().for_each(|scope| base::push_scope(&mut batch, *scope, self.services));
        let derived: Vec<_> = found.elements.values().filter_map(derived).collect();
        let mut all = found.elements;
        for element in derived {
            all.entry(element.key.clone()).or_insert(element);
        }
        goal.elements.iter().for_each(|(key, element)| {
            all.entry(key.clone()).or_insert_with(|| element.clone());
        });
        let all: Vec<Element> = all.into_values().collect();
        push_lists(&mut batch, add, &all, |e| &e.key, |e, w| e.write(w));
        (batch, count)
    }

    /// What comes with the elements that were restored.
    fn after(&mut self, goal: &Goal) -> Result<()> {
        // A DEL that was under way has removed its record before it looked at the tables. It may have found nothing there.
        let gone = goal.records.iter().filter(|(path, _)| !path.exists());
        for (_, record) in gone {
            let keys = record.wanted().map(|wanted| wanted.elements).unwrap_or_default();
            let keys = keys.into_iter().filter(|e| !e.tag.is_empty()).map(|e| e.key).collect();
            self.delete(keys, &|tag| record.owner.same(tag))?;
        }
        if !goal.udp.is_empty() {
            // Meanwhile the kernel took their packets for the host's own.
            match conntrack::flush_udp(&goal.udp) {
                Err(Error::Unsupported(_)) => {}
                flushed => drop(flushed?),
            }
        }
        Ok(())
    }

    /// Has other programs' forward chains accept the traffic of these bridges. Returns how many rules were added.
    fn accept(&mut self, bridges: &Forwarded) -> Result<usize> {
        if bridges.is_empty() {
            return Ok(0);
        }
        let traffic = bridges.keys().map(|link| (link.clone(), vec![Traffic::Link(link.clone())]));
        let count = forward::declare("", &traffic.collect::<Vec<_>>(), Undeclared::Stay)?;
        // The bridge's last DEL may have been under way: it removes its record before it looks at the chains. Where the bridge
        // still has its rules, the chains' go with these.
        for (link, _) in bridges.iter().filter(|(_, records)| records.iter().all(|path| !path.exists())) {
            let keys = super::bridge::keys_of(link);
            let questions: Vec<_> = keys.iter().map(Question::Element).collect();
            let mut has_rules = false;
            self.socket.ask(&questions, |_, answer| has_rules |= answer.is_ok())?;
            if !has_rules {
                forward::withdraw(link)?;
            }
        }
        Ok(count)
    }

    /// Looks at the whole of a table.
    fn found(&mut self, table: Table) -> Result<Found> {
        let mut found = Found::default();
        self.socket.ask(&[Question::Table(table)], |_, answer| {
            let user = answer.ok().and_then(|m| attribute(m.attrs(), 6));
            found.is_there = answer.is_ok();
            found.is_ours = user.and_then(|user| comment_of(0, user)).as_deref() == Some(base::COMMENT);
        })?;
        if !found.is_ours {
            return Ok(found);
        }
        let maps = self.socket.maps(table)?;
        let is_complete = table.is_complete(&maps);
        for map in maps {
            found.scopes.extend(map.scope());
            self.socket.elements(map, |e| drop(found.elements.insert(e.key.clone(), e)))?;
        }
        let rules = self.socket.rule_counts(table)?;
        let scopes: Vec<_> = found.scopes.iter().copied().collect();
        let census = base::census(table, &scopes);
        found.is_whole = is_complete
            && census.iter().all(|(chain, count)| rules.get(chain).copied().unwrap_or(0) >= *count);
        Ok(found)
    }
}

/// Restores what is missing, when there are records, and leaves the closing of the socket to who has the time
/// ([`crate::dead::close_by_reaper`]). A kernel without nftables has nothing to restore.
///
/// # Errors
/// The kernel's refusal.
pub fn restore_if_lost(records: &Records) -> Result<Restored> {
    if !records.are_there() {
        return Ok(Restored::default());
    }
    let restored = Nftables::open().and_then(|mut nft| {
        let restored = nft.restore_if_lost(records);
        crate::dead::close_by_reaper(&nft.handle().into_iter().collect::<Vec<_>>());
        restored
    });
    match restored {
        Err(Error::Unsupported(_)) => Ok(Restored::default()),
        restored => restored,
    }
}
