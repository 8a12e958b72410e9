//! Taking from the table, checking it, and removing it when it is of no use any more.

use super::base::{self, TABLE, Target};
use super::element::{Element, Key, Map, head};
use super::plan::{QUESTIONS, TRIES, push_deletions};
use super::socket::refused;
use super::wire::{attribute, msg, number, text};
use super::{Nftables, Wanted};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// With more keys than this, going through the whole maps is cheaper than asking for each.
const KEYS: usize = 64;

impl Nftables {
    /// Removes those elements whose tag is `whose`: under the keys, or without any, wherever they are in the maps.
    /// Returns how many. Only what still has such a tag at that moment is removed.
    pub(super) fn take(
        &mut self,
        maps: &[Map],
        keys: Vec<Key>,
        whose: &dyn Fn(&str) -> bool,
    ) -> Result<usize> {
        let mut keys = if (keys.is_empty() || keys.len() > KEYS) && !maps.is_empty() {
            self.search(maps, whose)?
        } else {
            self.with_hairpins(keys)?
        };
        keys.sort();
        keys.dedup();
        let (mut removed, mut tries) = (0, 0);
        // All at once; when others' changes come between, in smaller parts, between which less can come.
        let mut at_once = keys.len();
        while !keys.is_empty() {
            let part = keys.split_off(keys.len().saturating_sub(at_once));
            // What is seen after the generation was read is what will be deleted, or the kernel refuses (ERESTART).
            let generation = self.socket.generation()?;
            let found = self.find(&part.iter().collect::<Vec<_>>())?;
            let theirs: Vec<Key> =
                found.into_iter().flatten().filter(|e| whose(&e.tag)).map(|e| e.key).collect();
            let mut batch = self.socket.batch(Some(generation));
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
                return Err(refused(
                    "delete from table inet weft, which others change all the time",
                    libc::EBUSY,
                ));
            }
            keys.extend(theirs);
            at_once = (at_once / 2).max(QUESTIONS);
        }
        Ok(removed)
    }

    /// To the keys of ports adds those of the hairpins of the containers that they lead to.
    fn with_hairpins(&mut self, mut keys: Vec<Key>) -> Result<Vec<Key>> {
        if keys.iter().any(|key| key.map.is_ports()) {
            let found = self.find(&keys.iter().collect::<Vec<_>>())?;
            let addrs = found.into_iter().flatten().filter_map(|e| e.value.address());
            keys.extend(addrs.map(|addr| Key::address(Map::Hairpin4, Map::Hairpin6, addr)));
        }
        Ok(keys)
    }

    /// Goes through maps for elements of certain tags.
    fn search(&mut self, maps: &[Map], whose: &dyn Fn(&str) -> bool) -> Result<Vec<Key>> {
        let mut keys = Vec::new();
        for &map in maps {
            self.socket.dump(
                msg::GETSETELEM,
                |w| head(w, map),
                |m| {
                    let elements = Element::parse_all(map, m.attrs());
                    keys.extend(elements.into_iter().filter(|e| whose(&e.tag)).map(|e| e.key));
                    true
                },
            )?;
        }
        Ok(keys)
    }

    /// Fails when one of the wanted elements, their chains or the frame is not there as wanted.
    pub(super) fn check(&mut self, wanted: &Wanted) -> Result<()> {
        if wanted.elements.is_empty() {
            return Ok(());
        }
        let mut rules: BTreeMap<String, usize> = BTreeMap::new();
        self.socket.dump(
            msg::GETRULE,
            |w| w.str(1, TABLE),
            |m| {
                // Kernels before 4.16 do not look at the table here and dump those of all.
                if attribute(m.attrs(), 1).map(text).as_deref() == Some(TABLE) {
                    *rules.entry(attribute(m.attrs(), 2).map(text).unwrap_or_default()).or_default() += 1;
                }
                true
            },
        )?;
        let chains = wanted
            .chains
            .iter()
            .map(|target| target.name())
            .filter_map(|name| Target::rules_of(&name).map(|count| (name, count as usize)));
        for (chain, count) in base::census().into_iter().chain(chains) {
            let has = rules.get(&chain).copied().unwrap_or(0);
            if has < count {
                return Err(Error::Mismatch(format!(
                    "nftables chain {chain} in table inet weft has {has} of its {count} rules"
                )));
            }
        }
        let keys: Vec<&Key> = wanted.elements.iter().map(|e| &e.key).collect();
        for (found, want) in self.find(&keys)?.iter().zip(&wanted.elements) {
            match found {
                Some(found) if found == want => {}
                Some(found) => {
                    return Err(Error::Mismatch(format!(
                        "an element of nftables map {} in table inet weft belongs to {} and leads elsewhere than that of {}",
                        want.key.map.name(),
                        found.tag,
                        want.tag
                    )));
                }
                None => {
                    return Err(Error::Mismatch(format!(
                        "nftables map {} in table inet weft has no element of {}",
                        want.key.map.name(),
                        want.tag
                    )));
                }
            }
        }
        Ok(())
    }

    /// Removes guards of bridges that are gone, then the table when it has no element, else its unused chains.
    pub(super) fn remove_unused(&mut self) -> Result<()> {
        let mut swept = false;
        for _ in 0..TRIES {
            let generation = self.socket.generation()?;
            if !self.has_table()? {
                return Ok(());
            }
            if !swept {
                swept = true;
                self.remove_guards_of_gone_bridges()?;
                continue;
            }
            if !self.is_empty()? {
                return self.remove_unused_chains();
            }
            let mut batch = self.socket.batch(Some(generation));
            batch.push("delete table inet weft", msg::DELTABLE, 0, |w| w.str(1, TABLE));
            match self.socket.commit(batch)? {
                Ok(()) => return Ok(()),
                Err(errors) => {
                    let transient = |errno| matches!(errno, libc::ENOENT | libc::ERESTART);
                    if let Some((errno, what)) = errors.iter().find(|(errno, _)| !transient(*errno)) {
                        return Err(refused(what, *errno));
                    }
                }
            }
        }
        // Somebody is at work here all the time, and will tidy in the end.
        Ok(())
    }

    fn has_table(&mut self) -> Result<bool> {
        let mut there = false;
        self.socket.ask(&[(msg::GETTABLE, &|w| w.str(1, TABLE))], |_, answer| there = answer.is_ok())?;
        Ok(there)
    }

    /// Has none of the maps an element? Of one that has, only the first datagram is read.
    fn is_empty(&mut self) -> Result<bool> {
        for map in Map::ALL {
            let mut empty = true;
            self.socket.dump(
                msg::GETSETELEM,
                |w| head(w, map),
                |m| {
                    empty &= Element::parse_all(map, m.attrs()).is_empty();
                    empty
                },
            )?;
            if !empty {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn remove_guards_of_gone_bridges(&mut self) -> Result<()> {
        let mut bridges = Vec::new();
        self.socket.dump(
            msg::GETSETELEM,
            |w| head(w, Map::Guarded),
            |m| {
                let elements = Element::parse_all(Map::Guarded, m.attrs());
                bridges.extend(elements.into_iter().map(|e| text(&e.key.bytes)));
                true
            },
        )?;
        for bridge in bridges {
            if nix::net::if_::if_nametoindex(bridge.as_str()).is_err() {
                crate::firewall::Firewall::unguard(self, &bridge)?;
            }
        }
        Ok(())
    }

    /// Removes the subnets' chains that no element leads to. One that gets an element meanwhile is in use (EBUSY).
    fn remove_unused_chains(&mut self) -> Result<()> {
        let mut unused = Vec::new();
        self.socket.dump(
            msg::GETCHAIN,
            |w| w.str(1, TABLE),
            |m| {
                let attrs = m.attrs();
                let name = attribute(attrs, 3).map(text).unwrap_or_default();
                let uses = attribute(attrs, 6).and_then(number).unwrap_or(u32::MAX);
                // Its own rules count as uses.
                if attribute(attrs, 1).map(text).as_deref() == Some(TABLE)
                    && Target::rules_of(&name).is_some_and(|rules| uses <= rules)
                {
                    unused.push(name);
                }
                true
            },
        )?;
        for name in unused {
            let mut batch = self.socket.batch(None);
            batch.push("delete a chain of table inet weft", msg::DELCHAIN, 0, |w| base::chain_key(w, &name));
            let _in_use_or_gone = self.socket.commit(batch)?;
        }
        Ok(())
    }
}
