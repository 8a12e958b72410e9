//! What all parts of the node share: the state behind one lock, the store, the files, and who wakes whom.

use crate::files::{Files, Identity, OwnFile};
use crate::random;
use crate::settle::Settling;
use crate::state::{Me, State};
use crate::token::Place;
use crate::{NodeConf, keys};
use ipnetwork::IpNetwork;
use ovl_api::model::View;
use ovl_api::wire::{Problem, ProblemKind};
use ovl_store::{Compare, Done, KeyValue, LeaseId, Op, Revision, Txn};
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// Most steps, or conditions, of a transaction, with some room for the fence.
pub(crate) const BATCH: usize = 90;

/// The node's inside.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) conf: NodeConf,
    pub(crate) files: Files,
    pub(crate) leases: ipam::Store,
    pub(crate) identity: Mutex<Identity>,
    /// Where this agent runs.
    pub(crate) place: Place,
    /// Random, of this process.
    pub(crate) session: String,
    /// The VTEP's address and segment, which may change.
    pub(crate) underlay: Mutex<(IpAddr, Option<IpNetwork>)>,
    state: Mutex<State>,
    /// What the kernel's side was shown last.
    pub(crate) shown: Mutex<Option<View>>,
    pub(crate) generation: watch::Sender<u64>,
    pub(crate) revision: watch::Sender<Revision>,
    /// What the kernel shows, and the networks of which it does not.
    pub(crate) applied: watch::Sender<(Revision, BTreeSet<String>)>,
    pub(crate) wake: Wake,
    pub(crate) claiming: Mutex<HashMap<(String, bool), Queue>>,
    pub(crate) settling: Settling,
    /// Held by who reads the release notes.
    pub(crate) noting: Mutex<()>,
    /// This host's record was written since the start.
    pub(crate) renewed: AtomicBool,
    pub(crate) lease: tokio::sync::Mutex<Option<LeaseId>>,
    pub(crate) accepted: AtomicBool,
}

/// Those who wait for a claim on a block of one network and family; inside, how the last one failed.
pub(crate) type Queue = Arc<tokio::sync::Mutex<Option<(Instant, Problem)>>>;

/// Wakes the loops of [`crate::Node::run`].
#[derive(Debug, Default)]
pub(crate) struct Wake {
    pub(crate) session: Notify,
    pub(crate) keeper: Notify,
    pub(crate) publisher: Notify,
    pub(crate) consent: Notify,
    pub(crate) saver: Notify,
    pub(crate) live: Notify,
    pub(crate) settler: Notify,
}

/// What became of a transaction that only this host, unfenced, may do.
pub(crate) enum Fenced {
    /// It was done.
    Held(Done),
    /// Another condition did not hold.
    Not(Done),
}

/// Locks; what a panicking thread left is as good as any: every change is made whole under the lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The store's error as a problem.
pub(crate) fn store_problem(error: &ovl_store::Error) -> Problem {
    Problem::new(ProblemKind::Store, error.to_string())
}

/// The lease store's error as a problem.
pub(crate) fn lease_problem(error: &ipam::Error) -> Problem {
    Problem::new(ProblemKind::Internal, error.to_string())
}

impl Inner {
    pub(crate) fn new(
        conf: NodeConf,
        files: Files,
        place: Place,
        leases: ipam::Store,
        identity: Identity,
        state: State,
    ) -> Result<Inner, Problem> {
        let session = random::id(8)
            .map_err(|e| crate::files::trouble("read", std::path::Path::new("/dev/urandom"), &e))?;
        Ok(Inner {
            place,
            session,
            files,
            leases,
            identity: Mutex::new(identity),
            underlay: Mutex::new((conf.vtep, conf.segment)),
            generation: watch::Sender::new(1),
            revision: watch::Sender::new(state.revision),
            applied: watch::Sender::default(),
            state: Mutex::new(state),
            shown: Mutex::default(),
            wake: Wake::default(),
            claiming: Mutex::default(),
            settling: Settling::default(),
            noting: Mutex::default(),
            renewed: AtomicBool::new(false),
            lease: tokio::sync::Mutex::default(),
            accepted: AtomicBool::new(false),
            conf,
        })
    }

    /// Looks at the state.
    pub(crate) fn look<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&lock(&self.state))
    }

    /// Changes the state; what follows from that is done before the lock is given back: the file of what is owned is
    /// written, then those are woken whom it concerns.
    pub(crate) fn update<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let before = state.revision;
        let result = f(&mut state);
        if std::mem::take(&mut state.own_changed) {
            self.save_own(&state);
            self.wake.keeper.notify_one();
        }
        if std::mem::take(&mut state.marked) {
            self.wake.keeper.notify_one();
        }
        if !state.following {
            // All that the store holds is compared when it is followed again: until then this would only grow.
            state.publish.clear();
        }
        if !state.publish.is_empty() {
            self.wake.publisher.notify_one();
        }
        if !state.asked.is_empty() && state.can_answer() {
            self.wake.consent.notify_one();
        }
        if state.view_changed {
            self.wake.saver.notify_one();
        }
        if state.revision != before {
            self.revision.send_replace(state.revision);
        }
        // Also when the kernel has nothing to do: that it shows this revision is to be acknowledged.
        let due = state.revision != before && !state.acks.is_empty();
        if due || !state.dirty.delta.is_empty() || !state.dirty.veths.is_empty() {
            self.generation.send_modify(|generation| *generation += 1);
        }
        result
    }

    /// Writes what this host owns, less what it is giving back, and what it lent.
    fn save_own(&self, state: &State) {
        let saved = self.files.save_own(self.own_file(state));
        // Blocks that a restart does not know of are read from the store; but what the file still says is not so any more.
        if let Err(problem) = saved.or_else(|problem| self.files.save_own(None).and(Err(problem))) {
            tracing::warn!("{problem}");
        }
    }

    fn own_file(&self, state: &State) -> Option<OwnFile> {
        // Under a new epoch nothing of before is own, until the store says so.
        let me = state.me.clone().filter(|_| state.suspended.is_none())?;
        let kept = |of: &str, block| {
            let entry = (of.to_owned(), block);
            !state.returning.contains(&entry) && !state.lost.contains(&entry)
        };
        let mut own = OwnFile {
            boot: self.conf.boot_id.clone(),
            root: Some(self.place.root.clone()),
            stamp: None,
            host: me.host,
            changed: me.changed,
            blocks: Vec::new(),
            singles: Vec::new(),
            lent: Vec::new(),
            networks: Vec::new(),
        };
        for (of, blocks) in &state.own {
            let blocks = blocks.iter().filter(|(block, _)| kept(of, **block));
            own.blocks.extend(blocks.map(|(block, is)| (of.clone(), *block, is.changed)));
        }
        for of in state.own.keys().chain(state.singles.keys().filter(|of| !state.own.contains_key(*of))) {
            let mut part = state.own.get(of).is_some_and(|blocks| !blocks.is_empty());
            for (address, single) in state.singles.get(of).into_iter().flatten() {
                if state.is_mine(&single.claim) {
                    if single.granted && kept(of, crate::pool::alone(*address)) {
                        own.singles.push((of.clone(), *address, single.changed));
                        part = true;
                    }
                } else if state.in_own_block(of, *address) {
                    own.lent.push((of.clone(), *address, single.claim.host.clone()));
                }
            }
            if let Some(network) = state.view.networks.get(of).filter(|_| part) {
                own.networks.push((network.clone(), state.network_changed.get(of).copied().unwrap_or(0)));
            }
        }
        Some(own)
    }

    /// Does a transaction and notes whether the store answers.
    pub(crate) async fn commit(&self, txn: Txn) -> Result<Done, ovl_store::Error> {
        let done = self.conf.kv.commit(txn).await;
        self.note(done.as_ref().err());
        done
    }

    /// Notes whether the store answers.
    pub(crate) fn note(&self, error: Option<&ovl_store::Error>) {
        let mut state = lock(&self.state);
        state.unanswered = error.map(|_| Instant::now());
        match error {
            Some(error) => state.set_error(Some(error.to_string())),
            None if state.following && state.error.is_some() => state.set_error(None),
            None => {}
        }
    }

    /// This host's record, for the fence.
    ///
    /// # Errors
    /// It is not registered, or fenced.
    pub(crate) fn me(&self) -> Result<Me, Problem> {
        self.look(|state| state.me.clone().ok_or_else(|| not_registered(state)))
    }

    /// Does a transaction on the condition that this host's record is as it was: nobody declared it gone meanwhile.
    ///
    /// # Errors
    /// The store's; [`ProblemKind::NotReady`] when the record changed.
    pub(crate) async fn commit_fenced(&self, me: &Me, mut txn: Txn) -> Result<Fenced, Problem> {
        let mine = keys::host(&me.host.name);
        txn.when.push(Compare::Unchanged(mine.clone(), me.changed));
        let (from, to) = keys::alone(&mine);
        txn.otherwise.push(Op::Get(from, to));
        let mut done = self.commit(txn).await.map_err(|error| store_problem(&error))?;
        if done.held {
            return Ok(Fenced::Held(done));
        }
        let record = done.got.pop().unwrap_or_default();
        if record.first().is_some_and(|record| record.changed == me.changed) {
            return Ok(Fenced::Not(done));
        }
        // The watch will tell the same; should it be slow, the next claim fails as this one did.
        self.wake.session.notify_one();
        let message = "this host's registration in the store changed just now; try again";
        Err(Problem::new(ProblemKind::NotReady, message))
    }

    /// Takes what an own transaction put or removed.
    pub(crate) fn learn(&self, key: &str, value: Option<&[u8]>, at: Revision) {
        self.update(|state| state.learn(key, value, at, at));
    }

    /// Takes what an own transaction read of one key.
    pub(crate) fn learn_read(&self, key: &str, read: Option<&KeyValue>, at: Revision) {
        self.update(|state| match read {
            Some(read) => state.learn(key, Some(&read.value), at, read.changed),
            None => state.learn(key, None, at, at),
        });
    }

    /// Waits until the state is such that `f` finds something, or the time is over.
    pub(crate) async fn until<T>(
        &self,
        deadline: Instant,
        mut f: impl FnMut(&State) -> Option<T>,
    ) -> Option<T> {
        let (mut changed, mut revision) = (self.generation.subscribe(), self.revision.subscribe());
        loop {
            changed.mark_unchanged();
            revision.mark_unchanged();
            if let Some(found) = self.look(&mut f) {
                return Some(found);
            }
            tokio::select! {
                // Both senders live as long as this.
                _ = changed.changed() => {}
                _ = revision.changed() => {}
                () = tokio::time::sleep_until(deadline.into()) => return self.look(&mut f),
            }
        }
    }

    /// A pause after the store failed so many times in a row. All hosts may have lost the store at the same moment: they
    /// shall not all come back at one.
    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        let (first, most) = self.conf.timing.backoff;
        random::shorten(first.saturating_mul(1 << failures.min(16)).min(most), 0.5)
    }
}

/// Why nothing can be claimed or given.
pub(crate) fn not_registered(state: &State) -> Problem {
    let message = match (state.refused.as_ref().or(state.error.as_ref()), state.synced) {
        (Some(error), _) => error.clone(),
        (None, true) => "this host was declared gone and is registering anew; try again".to_owned(),
        (None, false) => "the agent has not read the store yet".to_owned(),
    };
    Problem::new(ProblemKind::NotReady, message)
}
