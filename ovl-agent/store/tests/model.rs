//! The embedded store against a model: maps in memory that are easy to see right.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap here is the failure report")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::{compare, key, op};
use ovl_store::local::{Local, Watch};
use ovl_store::{Change, Compare, Done, Event, KeyValue, LeaseId, Op, Txn};
use proptest::prelude::*;

/// What a test does with the store.
#[derive(Debug, Clone)]
enum Step {
    Commit(Txn),
    Grant,
    /// Of the lease with this place among those granted.
    Revoke(usize),
    /// Puts a key with a lease.
    Lease(String, usize),
    /// Closes the store and opens it again.
    Reopen,
}

/// When a key was made, and when it was changed last.
type Revisions = (i64, i64);

/// What the store should be.
#[derive(Default)]
struct Model {
    keys: BTreeMap<String, (Vec<u8>, Revisions, LeaseId)>,
    revision: i64,
    leases: BTreeSet<LeaseId>,
    changes: Vec<Change>,
}

impl Model {
    fn range(&self, from: &str, to: &str) -> Vec<KeyValue> {
        let all = self.keys.iter().filter(|(key, _)| from <= key.as_str() && key.as_str() < to);
        all.map(|(key, (value, (created, changed), _))| KeyValue {
            key: key.clone(),
            value: value.clone(),
            created: *created,
            changed: *changed,
        })
        .collect()
    }

    fn holds(&self, compare: &Compare) -> bool {
        let changed = |key: &str| self.keys.get(key).map(|(_, (_, changed), _)| *changed);
        match compare {
            Compare::Absent(key) => changed(key).is_none(),
            Compare::Present(key) => changed(key).is_some(),
            Compare::Unchanged(key, revision) => changed(key).unwrap_or(0) == *revision,
            Compare::Empty(from, to) => self.range(from, to).is_empty(),
        }
    }

    fn change(&mut self, revision: i64, key: &str, put: Option<(&[u8], LeaseId)>) {
        let mut created = 0;
        let value = put.map(|(value, _)| value.to_vec());
        match put {
            Some((value, lease)) => {
                created = self.keys.get(key).map_or(revision, |(_, (created, _), _)| *created);
                self.keys.insert(key.to_owned(), (value.to_vec(), (created, revision), lease));
            }
            None if self.keys.remove(key).is_none() => return,
            None => {}
        }
        self.revision = revision;
        self.changes.push(Change { key: key.to_owned(), value, created, revision });
    }

    /// None: it is refused.
    fn commit(&mut self, txn: &Txn) -> Option<Done> {
        let upside_down = |op: &Op| matches!(op, Op::Get(from, to) | Op::DeleteRange(from, to) if from >= to);
        let empty = |compare: &Compare| matches!(compare, Compare::Empty(from, to) if from >= to);
        if txn.then.iter().chain(&txn.otherwise).any(upside_down) || txn.when.iter().any(empty) {
            return None;
        }
        for branch in [&txn.then, &txn.otherwise] {
            let touches = |op: &Op, key: &str| match op {
                Op::Put(other, ..) | Op::Delete(other) => other == key,
                Op::DeleteRange(from, to) => from.as_str() <= key && key < to.as_str(),
                Op::Get(..) => false,
            };
            for op in branch {
                let Op::Put(key, ..) = op else { continue };
                if branch.iter().filter(|op| touches(op, key)).count() > 1 {
                    return None;
                }
            }
        }
        let held = txn.when.iter().all(|compare| self.holds(compare));
        let steps = if held { &txn.then } else { &txn.otherwise };
        if steps.iter().any(|op| matches!(op, Op::Put(_, _, Some(lease)) if !self.leases.contains(lease))) {
            return None;
        }
        let next = self.revision + 1;
        let mut got = Vec::new();
        for op in steps {
            match op {
                Op::Put(key, value, lease) => self.change(next, key, Some((value, lease.unwrap_or(0)))),
                Op::Delete(key) => self.change(next, key, None),
                Op::DeleteRange(from, to) => {
                    for found in self.range(from, to) {
                        self.change(next, &found.key, None);
                    }
                }
                Op::Get(from, to) => got.push(self.range(from, to)),
            }
        }
        Some(Done { held, revision: self.revision, got })
    }

    fn end(&mut self, ended: impl Fn(LeaseId) -> bool) {
        let next = self.revision + 1;
        let keys = self.keys.iter().filter(|(_, (_, _, lease))| *lease != 0 && ended(*lease));
        for key in keys.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.change(next, &key, None);
        }
        self.leases.retain(|lease| !ended(*lease));
    }
}

/// The store, the model, and what a watch has told.
struct Pair {
    store: Option<Local>,
    watch: Option<Watch>,
    told: Vec<Change>,
    model: Model,
    granted: Vec<LeaseId>,
}

impl Pair {
    fn open(&mut self, dir: &Path) {
        let store = Local::open(dir).unwrap();
        assert!(store.notes().is_empty(), "{:?}", store.notes());
        self.watch = Some(store.watch("", 0).unwrap());
        self.store = Some(store);
    }

    /// Takes what the watch has to tell now.
    fn listen(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            loop {
                tokio::select! {
                    biased;
                    event = watch.next() => match event.unwrap() {
                        Event::Changes(changes) => self.told.extend(changes),
                        Event::Progress(_) => {}
                    },
                    () = std::future::ready(()) => break,
                }
            }
        });
    }

    fn step(&mut self, step: &Step, dir: &Path) {
        let store = self.store.clone().unwrap();
        let lease = |at: &usize| self.granted.get(*at % self.granted.len().max(1)).copied().unwrap_or(7);
        match step {
            Step::Commit(txn) => assert_eq!(store.commit(txn).ok(), self.model.commit(txn), "{txn:?}"),
            Step::Grant => {
                let lease = store.grant().unwrap();
                assert!(self.model.leases.insert(lease));
                self.granted.push(lease);
            }
            Step::Revoke(at) => {
                let lease = lease(at);
                store.revoke(lease).unwrap();
                self.model.end(|l| l == lease);
            }
            Step::Lease(key, at) => {
                let then = vec![Op::Put(key.clone(), b"leased".to_vec(), Some(lease(at)))];
                let txn = Txn { then, ..Txn::default() };
                assert_eq!(store.commit(&txn).ok(), self.model.commit(&txn));
            }
            Step::Reopen => {
                self.listen();
                drop(store);
                (self.store, self.watch) = (None, None);
                self.open(dir);
                let before = self.model.changes.len();
                // No watch can tell that.
                self.model.end(|_| true);
                self.model.changes.truncate(before);
            }
        }
        let snapshot = self.store.as_ref().unwrap().snapshot("").unwrap();
        assert_eq!(snapshot.entries, self.model.range("", "\u{7f}"));
        assert_eq!(snapshot.revision, self.model.revision);
        for lease in &self.granted {
            assert_eq!(self.store.as_ref().unwrap().holds(*lease), self.model.leases.contains(lease));
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let ops = || prop::collection::vec(op(), 0..4);
    let txn = (prop::collection::vec(compare(), 0..2), ops(), ops());
    prop_oneof![
        12 => txn.prop_map(|(when, then, otherwise)| Step::Commit(Txn { when, then, otherwise })),
        2 => Just(Step::Grant),
        1 => (0..8_usize).prop_map(Step::Revoke),
        4 => (key(), 0..8_usize).prop_map(|(key, at)| Step::Lease(key, at)),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_local_store_is_what_the_model_is(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let model = Model { revision: 1, ..Model::default() };
        let mut pair = Pair { store: None, watch: None, told: vec![], model, granted: vec![] };
        pair.open(dir.path());
        for step in &steps {
            pair.step(step, dir.path());
        }
        pair.listen();
        prop_assert_eq!(&pair.told, &pair.model.changes);
    }
}
