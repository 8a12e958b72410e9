//! Taking from the table, checking it, and removing it when it is of no use any more.

use super::base;
use super::element::{Element, Key, Map, Scope, head, is_hosts};
use super::plan::{TRIES, push_deletions};
use super::socket::{QUESTIONS, Question, generation_of, refused};
use super::table::Table;
use super::wire::{self, attribute, comment_of, msg, text};
use super::{Nftables, Published, Wanted};
use crate::firewall::{What, localnet};
use crate::names::Owner;
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// How often tidying is tried while others change things: whoever removes something tidies afterwards.
const PATIENCE: usize = 5;
/// A chain of the reference portmap, which stays when its last port goes.
const REFERENCE: &str = "CNI-HOSTPORT-DNAT";
/// With more keys than this, going through the whole maps is cheaper than asking for each.
const KEYS: usize = 64;

impl Nftables {
    /// Removes those elements of published ports or of masquerading whose tag is `whose`: under the keys, or without any,
    /// wherever they are. Keys under which nothing was are of an earlier attachment, as a caller with an outdated result
    /// has them: then too everything is looked through. Returns how many.
    pub(super) fn take(&mut self, what: What, keys: Vec<Key>, whose: &dyn Fn(&str) -> bool) -> Result<usize> {
        if !keys.is_empty() && keys.len() <= KEYS {
            // Restored between two looks, a port is found without what belongs to it.
            let (keys, seen) = self.with_companions(keys)?;
            let was_there = seen.is_none_or(|seen| seen.iter().any(|e| whose(&e.tag)));
            let removed = self.delete(keys, whose)?;
            if removed > 0 && was_there {
                return Ok(removed);
            }
        }
        let concerned = |map: Map| match what {
            What::Ports => map.is_of_ports(),
            What::Masquerade => matches!(map, Map::Masq(_) | Map::MasqExcept(_) | Map::Except(_)),
        };
        let keys = self.search(Table::Inet, &concerned, whose)?;
        self.delete(keys, whose)
    }

    /// Removes an owner's elements of published ports, by what is `known` to be in the table: one look-up for each. Everything is
    /// looked through where that is not known, or is wrong: one of these elements is not the owner's (any more), or one is that
    /// has a `configured` key and is not known of.
    pub(super) fn take_known(
        &mut self,
        owner: &Owner,
        configured: Vec<Key>,
        known: Option<&Published>,
    ) -> Result<()> {
        let whose = |tag: &str| owner.same(tag);
        let known = match known {
            Some(Published::Nothing) => Some(Vec::new()),
            Some(Published::As(record)) => record.wanted().map(|wanted| {
                let own = wanted.elements.into_iter().filter(|element| whose(&element.tag));
                // Sorted already.
                own.map(|element| element.key).collect()
            }),
            None => None,
        };
        if let Some(known) = known {
            let is_known = |key: &Key| known.binary_search(key).is_ok();
            let others: Vec<Key> = configured.into_iter().filter(|key| !is_known(key)).collect();
            let count = known.len();
            let is_all = self.delete(known, &whose)? == count;
            if is_all && self.delete(others, &whose)? == 0 {
                return Ok(());
            }
        }
        self.take(What::Ports, Vec::new(), &whose).map(drop)
    }

    /// Deletes the elements of these keys, all of one table, which, at that moment, have such a tag. Returns how many.
    pub(super) fn delete(&mut self, mut keys: Vec<Key>, whose: &dyn Fn(&str) -> bool) -> Result<usize> {
        keys.sort();
        keys.dedup();
        let Some(table) = keys.first().map(|key| key.map.table()) else { return Ok(0) };
        let (mut removed, mut tries) = (0, 0);
        // All at once; when others' changes come between, in smaller parts, between which less can come.
        let mut at_once = keys.len();
        while !keys.is_empty() {
            let part = keys.split_off(keys.len().saturating_sub(at_once));
            // What is seen after the generation was read is what will be deleted, or the kernel refuses (ERESTART).
            let (mut generation, mut theirs) = (0, Vec::new());
            let mut questions = vec![Question::Generation];
            questions.extend(part.iter().map(Question::Element));
            self.socket.ask(&questions, |index, answer| match (index, answer) {
                (0, answer) => generation = generation_of(answer),
                (_, Ok(m)) => {
                    let found = Element::parse_all(part[index - 1].map, m.attrs()).pop();
                    theirs.extend(found.filter(|e| whose(&e.tag)).map(|e| e.key));
                }
                _ => {}
            })?;
            let mut batch = self.socket.batch(table, Some(generation));
            push_deletions(&mut batch, &theirs);
            let Err(errors) = self.socket.commit(batch)? else {
                removed += theirs.len();
                tries = 0;
                continue;
            };
            let transient = |errno| matches!(errno, libc::ENOENT | libc::ERESTART);
            if let Some((errno, what)) = errors.iter().find(|(errno, _)| !transient(*errno)) {
                return Err(refused(what, *errno));
            }
            tries += 1;
            if tries == TRIES {
                let what = format!("delete from {table}, which others change all the time");
                return Err(refused(&what, libc::EBUSY));
            }
            keys.extend(theirs);
            at_once = (at_once / 2).max(QUESTIONS);
        }
        Ok(removed)
    }

    /// Adds the keys of what the values of these keys' elements lead to; with the elements, where some can lead to others.
    pub(super) fn with_companions(&mut self, mut keys: Vec<Key>) -> Result<(Vec<Key>, Option<Vec<Element>>)> {
        let leads_on = |map: Map| map.is_ports() || map.is_of_sources() || matches!(map, Map::MasqExcept(_));
        if !keys.iter().any(|key| leads_on(key.map)) {
            return Ok((keys, None));
        }
        let found: Vec<_> = self.find(&keys.iter().collect::<Vec<_>>())?.into_iter().flatten().collect();
        keys.extend(self.companions(&found)?);
        Ok((keys, Some(found)))
    }

    /// Where the hairpins may be of the containers that ports lead to, what ports of bridges may send from, and the exceptions
    /// of masqueraded addresses.
    pub(super) fn companions(&mut self, found: &[Element]) -> Result<Vec<Key>> {
        let mut all: Vec<_> = found.iter().flat_map(Element::sources).collect();
        let ports: Vec<_> = found.iter().filter(|element| element.key.map.is_ports()).collect();
        all.extend(self.hairpins_of(&ports)?);
        for masqueraded in found {
            if let Map::MasqExcept(subnet) = masqueraded.key.map {
                let is_of = |other: &Element| other.tag == masqueraded.tag;
                self.socket.elements(Map::Except(subnet), |e| all.extend(is_of(&e).then_some(e.key)))?;
            }
        }
        Ok(all)
    }

    fn hairpins_of(&mut self, ports: &[&Element]) -> Result<Vec<Key>> {
        let mut addrs: Vec<_> = ports.iter().filter_map(|e| e.value.address()).collect();
        addrs.sort();
        addrs.dedup();
        let maps = if addrs.is_empty() { Vec::new() } else { self.socket.maps(Table::Inet)? };
        let may_have = |map: &Map, addr: IpAddr| match map {
            Map::HairpinAll4 => addr.is_ipv4(),
            Map::HairpinAll6 => addr.is_ipv6(),
            Map::HairpinSelf4 => addr.is_ipv4(),
            Map::HairpinSelf6 => addr.is_ipv6(),
            Map::Hairpin(net) if is_hosts(*net) => net.is_ipv6() == addr.is_ipv6(),
            Map::Hairpin(net) => net.contains(addr),
            _ => false,
        };
        let keys = addrs.iter().flat_map(|addr| {
            let maps = maps.iter().filter(|map| may_have(map, *addr));
            maps.map(|map| Key::address(*map, *addr)).collect::<Vec<_>>()
        });
        Ok(keys.collect())
    }

    /// Goes through sets and maps of a table for elements of certain tags.
    pub(super) fn search(
        &mut self,
        table: Table,
        concerned: &dyn Fn(Map) -> bool,
        whose: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<Key>> {
        let mut keys = Vec::new();
        for map in self.socket.maps(table)? {
            if concerned(map) {
                self.socket.elements(map, |e| keys.extend(whose(&e.tag).then_some(e.key)))?;
            }
        }
        Ok(keys)
    }

    /// Fails when one of the wanted elements, their subnets' chains or the frame is not there as wanted.
    pub(super) fn check(&mut self, wanted: &Wanted) -> Result<()> {
        if wanted.elements.is_empty() {
            return Ok(());
        }
        let table = wanted.table();
        let rules = self.socket.rule_counts(table)?;
        let is_bound = wanted.elements.iter().any(|element| element.key.map == Map::Bound);
        for (chain, count) in base::census(table, &wanted.scopes) {
            // A table of an earlier version lacks it until a container needs it.
            if chain == base::ADDRESSES && !is_bound {
                continue;
            }
            let has = rules.get(&chain).copied().unwrap_or(0);
            if has < count {
                return Err(Error::Mismatch(format!(
                    "nftables chain {chain} in {table} has {has} of its {count} rules"
                )));
            }
        }
        let keys: Vec<&Key> = wanted.elements.iter().map(|e| &e.key).collect();
        for (found, want) in self.find(&keys)?.into_iter().zip(&wanted.elements) {
            let name = want.key.map.name();
            let what = match found {
                Some(found) if found == *want => continue,
                Some(found) if found.tag == want.tag => {
                    format!("leads elsewhere than for {} wanted", want.tag)
                }
                Some(found) => format!("belongs to {} instead of {}", found.tag, want.tag),
                None => format!("is missing, that of {}", want.tag),
            };
            return Err(Error::Mismatch(format!("an element of {name} in nftables {table} {what}")));
        }
        Ok(())
    }

    /// Removes the rules of bridges that are gone, then each table when it has no element, else what subnets without one have.
    pub(super) fn remove_unused(&mut self) -> Result<()> {
        self.remove_rules_of_gone_bridges()?;
        Table::OF_ATTACHMENTS.into_iter().try_for_each(|table| self.remove_unused_of(table))
    }

    fn remove_unused_of(&mut self, table: Table) -> Result<()> {
        for _ in 0..PATIENCE {
            // Whatever is added after this makes the kernel refuse the deletion (ERESTART).
            let Some(generation) = self.generation_with(table)? else { return Ok(()) };
            let maps = self.socket.maps(table)?;
            let mut unused: BTreeMap<Scope, bool> = BTreeMap::new();
            for map in &maps {
                if let Some(scope) = map.scope().filter(|scope| *scope != Scope::Tracked) {
                    let still_unused = unused.get(&scope) != Some(&false) && self.is_empty(*map)?;
                    unused.insert(scope, still_unused);
                }
            }
            // What goes with the table: its frame, and the tracked scope.
            let goes = |map: &Map| map.scope().is_none_or(|scope| scope == Scope::Tracked);
            let frame: BTreeSet<Map> = maps.into_iter().filter(goes).collect();
            let mut batch = self.socket.batch(table, Some(generation));
            let (mut closed, mut recorded) = (Vec::new(), Vec::new());
            if frame.contains(&Map::Localnet) {
                self.socket.elements(Map::Localnet, |e| recorded.push(e.key))?;
            }
            if !recorded.is_empty() && self.has_any_port()? {
                recorded.clear();
            } else {
                closed = localnet::close(&recorded.iter().map(|key| text(&key.bytes)).collect::<Vec<_>>())?;
            }
            let used = frame.iter().copied().filter(|map| *map != Map::Localnet);
            let mut removable = unused.values().all(|unused| *unused) && self.are_empty(used)?;
            if removable && table == Table::Inet {
                // The table holds the rule that keeps the host's loopback services closed.
                if !self.has_iptables_chain(false, "nat", "WEFT-DNAT")? {
                    closed.extend(localnet::close_own()?);
                }
                // The reference portmap never clears it: what is open where that has been at work is not Weft's to guard.
                removable = !localnet::is_open() || self.has_iptables_chain(false, "nat", REFERENCE)?;
            }
            if removable {
                batch.push("delete", msg::DELTABLE, 0, |_| {});
            } else {
                push_deletions(&mut batch, &recorded);
                let unused: Vec<_> = unused.into_iter().filter(|(_, unused)| *unused).collect();
                let rules = if unused.is_empty() { Vec::new() } else { self.untranslated_rules()? };
                unused.iter().for_each(|(scope, _)| base::push_scope_deletion(&mut batch, *scope, &rules));
            }
            let Err(errors) = self.socket.commit(batch)? else { return Ok(()) };
            // An attachment that came in between may publish on the host's loopback.
            localnet::set(&closed, true)?;
            let transient = |errno| matches!(errno, libc::ENOENT | libc::ERESTART | libc::EBUSY);
            if let Some((errno, what)) = errors.iter().find(|(errno, _)| !transient(*errno)) {
                return Err(refused(what, *errno));
            }
        }
        // Somebody is at work here all the time, and will tidy in the end.
        Ok(())
    }

    /// The generation of the namespace's rules, when it has this table.
    fn generation_with(&mut self, table: Table) -> Result<Option<u32>> {
        let (mut generation, mut there) = (0, false);
        self.socket.ask(&[Question::Generation, Question::Table(table)], |index, answer| match index {
            0 => generation = generation_of(answer),
            _ => there = answer.is_ok(),
        })?;
        Ok(there.then_some(generation))
    }

    /// Whether a table of iptables (of ip6tables when `v6`), as its nftables variant makes them, has this chain.
    fn has_iptables_chain(&mut self, v6: bool, table: &str, chain: &str) -> Result<bool> {
        let family = if v6 { wire::IPV6 } else { wire::IPV4 };
        let mut found = false;
        self.socket.ask(&[Question::Foreign { family, table, chain }], |_, answer| found = answer.is_ok())?;
        Ok(found)
    }

    /// The subnets' rules that drop what is not translated: comment and handle.
    fn untranslated_rules(&mut self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut rules = Vec::new();
        self.socket.dump(
            Table::Inet,
            msg::GETRULE,
            |w| w.str(2, base::UNTRANSLATED),
            |m| {
                let is = |kind, name: &str| attribute(m.attrs(), kind).map(text).as_deref() == Some(name);
                if is(1, Table::Inet.name()) && is(2, base::UNTRANSLATED) {
                    let comment = attribute(m.attrs(), 7).and_then(|user| comment_of(0, user));
                    rules.extend(comment.zip(attribute(m.attrs(), 3).map(<[u8]>::to_vec)));
                }
                true
            },
        )?;
        Ok(rules)
    }

    /// Whether a port is published in the table.
    pub(super) fn has_ports(&mut self) -> Result<bool> {
        Ok(!self.are_empty([Map::Ports4, Map::Ports4At])?)
    }

    /// Whether a port of IPv4 is published, in the table or by iptables in its nftables variant.
    fn has_any_port(&mut self) -> Result<bool> {
        Ok(self.has_ports()? || self.has_iptables_chain(false, "nat", "WEFT-DNAT")?)
    }

    fn are_empty(&mut self, maps: impl IntoIterator<Item = Map>) -> Result<bool> {
        for map in maps {
            if !self.is_empty(map)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Has it no element? Of one that has many, only the first are read.
    fn is_empty(&mut self, map: Map) -> Result<bool> {
        let mut empty = true;
        self.socket.dump(
            map.table(),
            msg::GETSETELEM,
            |w| head(w, map),
            |m| {
                empty &= Element::parse_all(map, m.attrs()).is_empty();
                empty
            },
        )?;
        Ok(empty)
    }
}
