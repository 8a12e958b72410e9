//! Following the store: register, read everything, watch from there; and again, whenever that breaks off.

use crate::inner::{Inner, store_problem};
use crate::join::Trouble;
use crate::keys;
use crate::random;
use ovl_api::wire::{Problem, ProblemKind};
use ovl_store::{Error, Event, LeaseId, Op, Snapshot, Txn};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Why a session ended.
enum End {
    /// It is time to read everything again.
    Relist,
    /// This host's record is not as it was.
    Fenced,
    /// Too many hosts vanished.
    Held,
}

impl Inner {
    /// Everything that goes on in the background; never ends.
    pub(crate) async fn run(&self) {
        tokio::join!(
            self.sessions(),
            self.live(),
            self.keep(),
            self.publish(),
            self.consent(),
            self.acknowledge(),
            self.settle_ahead(),
            self.save(),
            self.notes(),
        );
    }

    async fn sessions(&self) {
        let mut failures = 0;
        let mut told = None;
        loop {
            let started = Instant::now();
            match self.session().await {
                Ok(End::Relist | End::Fenced) => (failures, told) = (0, None),
                Ok(End::Held) => self.pause(self.conf.timing.held).await,
                Err(trouble) => {
                    self.update(|state| {
                        (state.following, state.error) = (false, Some(trouble.message.clone()));
                    });
                    // A session that held for a while failed for another reason than the one before it.
                    let held = started.elapsed() > self.conf.timing.backoff.1;
                    failures = if held { 0 } else { failures + 1 };
                    // A line an outage: the words of one change from try to try.
                    if held || told != Some(trouble.kind) {
                        tracing::warn!("{}", trouble.message);
                        told = Some(trouble.kind);
                    }
                    self.pause(self.backoff(failures)).await;
                }
            }
        }
    }

    /// Waits, but not when somebody has a reason to look at the store now.
    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.wake.session.notified() => {}
        }
    }

    async fn session(&self) -> Result<End, Problem> {
        match self.join().await {
            Ok(()) => {}
            Err(Trouble::Store(error)) => return Err(store_problem(&error)),
            Err(Trouble::Other(problem)) => return Err(problem),
        }
        let mut snapshot = self.snapshot().await?;
        let accepted = self.accepted.swap(false, Ordering::Relaxed);
        let guard = self.look(|state| state.guard(&snapshot)).filter(|_| !accepted);
        // What the others lost may be back already, when they were quicker, and this host's part is not.
        let lost = self.look(|state| state.held_back.is_some() || state.is_other(&snapshot)) && !accepted;
        if let Some(why) = &guard {
            self.hold(why);
        }
        if guard.is_some() || lost {
            self.put_back(&snapshot).await?;
        }
        if guard.is_some() {
            return Ok(End::Held);
        }
        if lost {
            snapshot = self.snapshot().await?;
        }
        self.update(|state| {
            let first = !state.synced;
            if state.held_back.is_some() {
                tracing::info!("changes that were held back are applied");
            }
            state.replace(&snapshot);
            (state.following, state.error) = (true, None);
            if first {
                let (hosts, networks) = (state.view.hosts.len(), state.view.networks.len());
                tracing::info!(
                    "the store was read: {hosts} hosts, {networks} networks, {} blocks",
                    state.view.owners.len()
                );
            }
        });
        drop(snapshot.entries);
        self.wake.keeper.notify_one();
        self.wake.live.notify_one();
        self.wake.consent.notify_one();
        if !self.look(|state| state.me.is_some()) {
            return Ok(End::Fenced);
        }
        self.mend_published().await?;
        self.follow(snapshot.revision + 1).await
    }

    async fn snapshot(&self) -> Result<Snapshot, Problem> {
        self.conf.kv.snapshot(keys::FOLLOWED).await.map_err(|error| store_problem(&error))
    }

    async fn follow(&self, from: i64) -> Result<End, Problem> {
        let watch = self.conf.kv.watch(keys::FOLLOWED, from).await;
        let mut watch = watch.map_err(|error| store_problem(&error))?;
        let relist = tokio::time::sleep(random::jitter(self.conf.timing.relist));
        tokio::pin!(relist);
        loop {
            let event = tokio::select! {
                event = watch.next() => event,
                () = &mut relist => return Ok(End::Relist),
                () = self.wake.session.notified() => return Ok(End::Relist),
            };
            match event {
                Ok(Event::Progress(revision)) => self.update(|state| {
                    if revision > state.revision {
                        state.reached(revision);
                    }
                }),
                Ok(Event::Changes(changes)) => {
                    if let Some(why) = self.look(|state| state.guard_changes(&changes)) {
                        self.hold(&why);
                        return Ok(End::Held);
                    }
                    let fenced = self.update(|state| {
                        changes.iter().for_each(|change| state.follow(change));
                        if let Some(last) = changes.last() {
                            state.reached(last.revision);
                        }
                        state.me.is_none()
                    });
                    if fenced {
                        return Ok(End::Fenced);
                    }
                }
                // What was missed is in the next snapshot.
                Err(Error::Compacted(_)) => return Ok(End::Relist),
                Err(error) => return Err(store_problem(&error)),
            }
        }
    }

    fn hold(&self, why: &str) {
        self.update(|state| {
            if state.held_back.is_none() {
                tracing::error!("{why}");
            }
            state.held_back = Some(why.to_owned());
            (state.following, state.error) = (false, None);
        });
    }

    /// Keeps the liveness key alive, and makes it again when its lease ended.
    async fn live(&self) {
        let mut failures = 0;
        loop {
            if !self.look(|state| state.following && state.me.is_some()) {
                self.wake.live.notified().await;
                continue;
            }
            let wait = match self.keep_alive().await {
                Ok(_) => {
                    failures = 0;
                    random::jitter(self.conf.liveness / 3)
                }
                Err(problem) => {
                    tracing::debug!("liveness: {problem}");
                    failures += 1;
                    self.backoff(failures).min(self.conf.liveness / 3)
                }
            };
            // Also woken when the store was read anew: the key may have gone with a removal of this host.
            let _ = tokio::time::timeout(wait, self.wake.live.notified()).await;
        }
    }

    /// Makes sure of the liveness key, and returns its lease.
    pub(crate) async fn keep_alive(&self) -> Result<LeaseId, Problem> {
        let mut lease = self.lease.lock().await;
        if let Some(id) = *lease {
            let alive = self.conf.kv.keep_alive(id).await;
            let seen = self.look(|state| state.live.contains(&state.view.me));
            if alive.map_err(|error| store_problem(&error))? && seen {
                return Ok(id);
            }
        }
        let me = self.me()?;
        let id = match *lease {
            Some(id) if self.conf.kv.keep_alive(id).await.unwrap_or(false) => id,
            _ => self.conf.kv.grant(self.conf.liveness).await.map_err(|error| store_problem(&error))?,
        };
        *lease = Some(id);
        let key = keys::live(&me.host.name);
        let txn = Txn { then: vec![Op::Put(key.clone(), Vec::new(), Some(id))], ..Txn::default() };
        if let crate::inner::Fenced::Held(done) = self.commit_fenced(&me, txn).await? {
            self.learn(&key, Some(&[]), done.revision);
        }
        Ok(id)
    }

    /// [`crate::Node::stop`].
    pub(crate) async fn stop(&self) {
        let lease = self.lease.lock().await.take();
        if let Some(lease) = lease
            && let Err(error) = self.conf.kv.revoke(lease).await
        {
            tracing::debug!("liveness: {error}");
        }
    }

    /// [`crate::Node::sync`]. The view follows only what is below `c/`, so its revision lags behind the store's when other
    /// keys change. This host's own liveness key is written once more: once that has come, everything before it has.
    pub(crate) async fn sync(&self) -> Result<i64, Problem> {
        let lease = self.keep_alive().await?;
        let me = self.me()?;
        let txn =
            Txn { then: vec![Op::Put(keys::live(&me.host.name), Vec::new(), Some(lease))], ..Txn::default() };
        let done = self.commit(txn).await.map_err(|error| store_problem(&error))?;
        let patience = ovl_store::PATIENCE * 5;
        let seen = |state: &crate::state::State| (state.revision >= done.revision).then_some(state.revision);
        self.until(Instant::now() + patience, seen).await.ok_or_else(|| {
            let message = self.look(|state| state.held_back.clone());
            let message = message.unwrap_or_else(|| "the store's watch does not keep up".to_owned());
            Problem::new(ProblemKind::NotReady, message)
        })
    }

    /// Answers those who ask for single addresses, again and again.
    async fn consent(&self) {
        loop {
            self.wake.consent.notified().await;
            loop {
                let next =
                    self.update(|state| if state.can_answer() { state.asked.pop_first() } else { None });
                let Some((id, address)) = next else { break };
                if let Err(problem) = self.answer(&id, address).await {
                    // The asker gives up by itself, and asks again.
                    tracing::debug!("{address} of network {id} was asked for: {problem}");
                }
            }
        }
    }
}
