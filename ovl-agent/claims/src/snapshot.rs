//! Whole snapshots of the store, and the guard against many hosts vanishing at once.

use crate::keys::{self, Key};
use crate::record::{self, Read};
use crate::state::State;
use ipnetwork::IpNetwork;
use ovl_api::model::{Host, is_single};
use ovl_store::{Change, KeyValue, Revision, Snapshot};
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

/// More than this part of the hosts, in per cent, vanish from one look at the store to the next: that is taken for a fault
/// of the store.
const VANISHED_PER_CENT: usize = 30;

impl State {
    /// Whether a snapshot is of another cluster than the view, or of one whose data was lost or set back. A cluster that was
    /// made anew can have the same number, and soon a higher revision; but nothing ever makes `c/subnets` older.
    pub(crate) fn is_other(&self, snapshot: &Snapshot) -> bool {
        let subnets = snapshot.entries.iter().find(|entry| entry.key == keys::SUBNETS);
        self.cluster.is_some_and(|cluster| cluster != snapshot.cluster)
            || snapshot.revision < self.revision
            || subnets.map_or(0, |subnets| subnets.changed) < self.subnets_changed
    }

    /// Why a snapshot must not be applied unasked.
    pub(crate) fn guard(&self, snapshot: &Snapshot) -> Option<String> {
        let left: HashSet<&str> = snapshot
            .entries
            .iter()
            .filter_map(|entry| match Key::parse(&entry.key) {
                Key::Host(name) => Some(name),
                _ => None,
            })
            .collect();
        let missing: Vec<&str> =
            self.standing().map(|host| host.name.as_str()).filter(|name| !left.contains(name)).collect();
        self.too_many(missing.len())?;
        // A host whose blocks are still there stays in force: its record alone was lost.
        let claims: HashSet<String> = snapshot
            .entries
            .iter()
            .filter_map(|entry| match Read::of(&entry.key, Some(&entry.value)) {
                Read::Block(.., Some(claim)) => Some(claim.host),
                _ => None,
            })
            .collect();
        self.too_many(missing.iter().filter(|name| !claims.contains(**name)).count())
    }

    /// The same for changes that the watch reported at once. Those of nodes that were removed are among them, each with the
    /// record that says so before.
    pub(crate) fn guard_changes(&self, changes: &[Change]) -> Option<String> {
        let mut last: BTreeMap<&str, bool> = BTreeMap::new();
        let mut removed: HashSet<&str> = HashSet::new();
        for change in changes {
            if let Key::Host(name) = Key::parse(&change.key) {
                last.insert(name, change.value.is_some());
                let host = change.value.as_ref().and_then(|value| record::read::<Host>(value).ok());
                if host.is_some_and(|host| host.removed) {
                    removed.insert(name);
                }
            }
        }
        if last.values().all(|there| *there) {
            return None;
        }
        let owns = |name: &str| self.parts.values().any(|parts| parts.contains_key(name));
        let gone = |host: &&Host| {
            let name = host.name.as_str();
            last.get(name) == Some(&false) && !owns(name) && !removed.contains(name)
        };
        self.too_many(self.standing().filter(gone).count())
    }

    /// The hosts that nobody declared gone.
    fn standing(&self) -> impl Iterator<Item = &Host> {
        self.view.hosts.values().filter(|host| !host.removed)
    }

    fn too_many(&self, vanished: usize) -> Option<String> {
        let all = self.standing().count();
        (vanished >= 2 && vanished * 100 > all * VANISHED_PER_CENT).then(|| {
            format!(
                "{vanished} of {all} hosts vanished from the store at once, more than {VANISHED_PER_CENT} %: nothing is \
                 changed until they are back or the change is accepted"
            )
        })
    }

    /// Makes the view what the snapshot says.
    pub(crate) fn replace(&mut self, whole: Whole<'_>) {
        let Whole { snapshot, entries, seen } = whole;
        if self.is_other(snapshot) {
            // Revisions of before mean nothing here.
            self.touched.clear();
            self.vteps.clear();
        } else {
            self.touched.retain(|_, touched| *touched > snapshot.revision);
        }
        self.replacing = true;
        for (entry, read) in entries {
            if !self.touched.contains_key(&entry.key) {
                self.apply_read(read, entry.changed);
            }
        }
        self.remove_unseen(&seen, snapshot.revision);
        self.cluster = Some(snapshot.cluster);
        let subnets = snapshot.entries.iter().find(|entry| entry.key == keys::SUBNETS);
        self.subnets_changed = subnets.map_or(0, |subnets| subnets.changed);
        self.synced = true;
        self.held_back = None;
        self.own_changed |= self.suspended.take().is_some();
        (self.replacing, self.record_lost) = (false, false);
        self.reached(snapshot.revision);
    }

    fn remove_unseen(&mut self, seen: &Seen<'_>, revision: Revision) {
        let mut gone = Vec::new();
        let owners = self
            .view
            .owners
            .keys()
            .filter(|(of, block)| !is_single(*block) && !seen.blocks.contains(&(of, *block)));
        gone.extend(owners.map(|(of, block)| keys::block(of, *block)));
        let singles =
            self.singles.iter().flat_map(|(of, all)| all.keys().map(move |address| (of.as_str(), *address)));
        gone.extend(
            singles.filter(|single| !seen.singles.contains(single)).map(|(of, at)| keys::single(of, at)),
        );
        let lone = self.view.owners.keys().filter(|(of, block)| {
            // Singles of the file that the last run left: they are known by their owner only.
            is_single(*block)
                && !seen.singles.contains(&(of, block.ip()))
                && self.single(of, block.ip()).is_none()
        });
        gone.extend(lone.map(|(of, block)| keys::single(of, block.ip())));
        gone.extend(
            self.live.iter().filter(|name| !seen.live.contains(name.as_str())).map(|name| keys::live(name)),
        );
        gone.extend(
            self.view
                .hosts
                .keys()
                .filter(|name| !seen.hosts.contains(name.as_str()))
                .map(|name| keys::host(name)),
        );
        gone.extend(
            self.ids
                .keys()
                .filter(|name| !seen.networks.contains(name.as_str()))
                .map(|name| keys::network(name)),
        );
        gone.extend(self.held.keys().filter(|key| !seen.has(Key::parse(key))).cloned());
        for key in gone {
            if !self.touched.contains_key(&key) {
                self.apply(&key, None, revision);
            }
        }
    }
}

/// A snapshot that was read to be applied. That takes most of the time, and does not need the state.
pub(crate) struct Whole<'a> {
    snapshot: &'a Snapshot,
    entries: Vec<(&'a KeyValue, Read<'a>)>,
    seen: Seen<'a>,
}

impl<'a> Whole<'a> {
    pub(crate) fn of(snapshot: &'a Snapshot) -> Whole<'a> {
        let mut seen = Seen::default();
        // Who this host is and which networks there are is needed to understand the rest.
        let (mut entries, mut rest) = (Vec::with_capacity(snapshot.entries.len()), Vec::new());
        for entry in &snapshot.entries {
            let read = Read::of(&entry.key, Some(&entry.value)).made_at(entry.created);
            seen.add(&read);
            let first = matches!(read, Read::Network(..) | Read::Host(..) | Read::Back(..));
            if first { &mut entries } else { &mut rest }.push((entry, read));
        }
        entries.append(&mut rest);
        Whole { snapshot, entries, seen }
    }
}

/// The keys of a snapshot.
#[derive(Default)]
struct Seen<'a> {
    hosts: HashSet<&'a str>,
    networks: HashSet<&'a str>,
    live: HashSet<&'a str>,
    blocks: HashSet<(&'a str, IpNetwork)>,
    singles: HashSet<(&'a str, IpAddr)>,
}

impl<'a> Seen<'a> {
    fn add(&mut self, read: &Read<'a>) {
        match read {
            Read::Network(name, _) => self.networks.insert(name),
            Read::Host(name, _) => self.hosts.insert(name),
            Read::Live(name, _) => self.live.insert(name),
            Read::Block(network, block, _) => self.blocks.insert((network, *block)),
            Read::Single(network, address, _) => self.singles.insert((network, *address)),
            Read::Invalid(key, _) => match *key {
                Key::Network(name) => self.networks.insert(name),
                Key::Host(name) => self.hosts.insert(name),
                Key::Block(network, block) => self.blocks.insert((network, block)),
                Key::Single(network, address) => self.singles.insert((network, address)),
                Key::Live(_) | Key::Back(_) | Key::Other => false,
            },
            Read::Subnets | Read::History(_) | Read::Back(..) | Read::Other => false,
        };
    }

    fn has(&self, key: Key<'_>) -> bool {
        match key {
            Key::Network(name) => self.networks.contains(name),
            Key::Host(name) => self.hosts.contains(name),
            Key::Live(name) => self.live.contains(name),
            Key::Block(network, block) => self.blocks.contains(&(network, block)),
            Key::Single(network, address) => self.singles.contains(&(network, address)),
            Key::Back(_) | Key::Other => true,
        }
    }
}
