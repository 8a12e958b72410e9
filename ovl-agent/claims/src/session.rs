//! Following the store: register, read everything, watch from there; and again, whenever that breaks off.

use crate::inner::{Fenced, Inner, lock, store_problem};
use crate::join::Trouble;
use crate::random;
use crate::snapshot::Whole;
use crate::token::Token;
use crate::told::{Check, Told};
use crate::{Timing, keys};
use ovl_api::wire::{Problem, ProblemKind};
use ovl_store::{Error, LeaseId, Op, Snapshot, Txn, Watch};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The store has forgotten what was to be told next.
fn compacted() -> End {
    End::Missed("the store does not know any more what changed meanwhile".to_owned())
}

/// Why a session ended.
enum End {
    /// Somebody has a reason for another one.
    Again,
    /// It is time to read everything again.
    Relist,
    /// Something was missed: everything has to be read again.
    Missed(String),
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
        let (mut failures, mut words) = (0, None);
        // What was told, while it is known to be whole. With it, a watch that broke off goes on where it was.
        let mut told = None;
        loop {
            let started = Instant::now();
            let end = self.session(&mut told).await;
            if !matches!(end, Ok(End::Again) | Err(_)) {
                told = None;
            }
            if end.is_ok() {
                (failures, words) = (0, None);
            }
            match end {
                Ok(End::Again | End::Relist | End::Fenced) => {}
                Ok(End::Missed(why)) => self.spread(why).await,
                Ok(End::Held) => self.pause(self.conf.timing.held).await,
                Err(trouble) => {
                    self.update(|state| {
                        state.following = false;
                        state.set_error(Some(trouble.message.clone()));
                    });
                    // A session that held for a while failed for another reason than the one before it.
                    let held = started.elapsed() > self.conf.timing.backoff.1;
                    failures = if held { 0 } else { failures + 1 };
                    // A line an outage: the words of one change from try to try.
                    if held || words != Some(trouble.kind) {
                        tracing::warn!("{}", trouble.message);
                        words = Some(trouble.kind);
                    }
                    self.pause(self.backoff(failures)).await;
                }
            }
        }
    }

    /// Says that something was missed, and waits a while.
    async fn spread(&self, why: String) {
        tracing::warn!("{why}: everything is read again");
        self.update(|state| {
            state.following = false;
            state.set_error(Some(why));
        });
        self.pause(self.apart()).await;
    }

    /// A time to wait before everything is read again: all hosts may have missed something at the same moment.
    fn apart(&self) -> Duration {
        let hosts = self.look(|state| u32::try_from(state.view.hosts.len()).unwrap_or(u32::MAX));
        random::shorten(self.conf.timing.spread.saturating_mul(hosts), 0.0)
    }

    /// Waits, but not when somebody has a reason to look at the store now.
    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.wake.session.notified() => {}
        }
    }

    async fn session(&self, told: &mut Option<Told>) -> Result<End, Problem> {
        self.rename().await?;
        let epoch = || self.look(|state| state.me.as_ref().map(|me| me.host.epoch));
        let before = epoch();
        let joined = async {
            let restored = self.check_history().await?;
            self.join().await.map(|()| restored)
        };
        let restored = match joined.await {
            Ok(restored) => restored,
            Err(Trouble::Store(error)) => return Err(store_problem(&error)),
            Err(Trouble::Other(problem)) => {
                // Containers keep their network, and no address is given, also not of what is known to be own.
                self.update(|state| state.refused = Some(problem.message.clone()));
                return Err(problem);
            }
        };
        if self.update(|state| state.refused.take()).is_some() {
            // Another may have claimed and returned blocks in this node's name.
            *told = None;
        }
        // What a host owns under a new epoch, only everything tells.
        if before.is_none() || epoch() != before || restored || self.accepted.load(Ordering::Relaxed) {
            *told = None;
        }
        let ended = if told.is_some() { self.resume(told).await } else { self.begin(told).await };
        ended.map_err(|trouble| match trouble {
            Trouble::Store(error) => {
                if matches!(error, Error::OtherCluster { .. }) {
                    *told = None;
                }
                store_problem(&error)
            }
            Trouble::Other(problem) => problem,
        })
    }

    /// Reads everything, and follows the store from there.
    async fn begin(&self, known: &mut Option<Told>) -> Result<End, Trouble> {
        let mut snapshot = self.snapshot().await?;
        let accepted = self.accepted.swap(false, Ordering::Relaxed);
        let set_back = self.update(|state| {
            if accepted {
                state.accept_restored();
                return false;
            }
            state.past.suspect = state.past.restored.is_none() && state.is_other(&snapshot);
            state.past.suspect
        });
        if set_back {
            return Ok(End::Relist);
        }
        let guard = self.look(|state| state.guard(&snapshot)).filter(|_| !accepted);
        // What the others lost may be back already, when they were quicker, and this host's part is not.
        let lost = self.look(|state| state.held_back.is_some() || state.past.restored.is_some()) && !accepted;
        if let Some(why) = &guard {
            self.hold(why);
        }
        if guard.is_some() || lost {
            self.put_back(&snapshot).await?;
        }
        let renewed = self.renew_claims(&snapshot).await?;
        self.report_back(&snapshot).await?;
        if guard.is_some() {
            return Ok(End::Held);
        }
        if lost || renewed {
            snapshot = self.snapshot().await?;
        }
        // Outside of the lock: no attachment waits for that.
        let whole = Whole::of(&snapshot);
        self.update(|state| {
            let first = !state.synced;
            if state.held_back.is_some() {
                tracing::info!("changes that were held back are applied");
            }
            state.replace(whole);
            state.renaming = false;
            self.take_over_links(state);
            state.following = !state.past.changed;
            state.set_error(None);
            if first {
                let (hosts, networks) = (state.view.hosts.len(), state.view.networks.len());
                tracing::info!(
                    "the store was read: {hosts} hosts, {networks} networks, {} blocks",
                    state.view.owners.len()
                );
            }
        });
        let told = known.insert(Told::of(&snapshot, random::jitter(self.conf.timing.relist)));
        drop(snapshot);
        if !self.look(|state| state.me.is_some()) {
            return Ok(End::Fenced);
        }
        if self.look(|state| state.past.changed) {
            return Ok(End::Relist);
        }
        let watch = self.conf.kv.watch(keys::FOLLOWED, told.revision + 1).await?;
        self.follow(told, watch).await
    }

    /// Goes on where the watch broke off, once that is seen to lead to what the store has.
    ///
    /// What was told meanwhile is applied at once and as a whole, as a snapshot would be: it is one look at the store, of
    /// which the guard judges.
    async fn resume(&self, known: &mut Option<Told>) -> Result<End, Trouble> {
        let Some(told) = known.as_mut() else { return Ok(End::Relist) };
        let mut watch = match self.conf.kv.watch(keys::FOLLOWED, told.revision + 1).await {
            Err(Error::Compacted(_)) => return Ok(compacted()),
            watch => watch?,
        };
        let check = told.ask(&self.conf.kv, self.conf.timing.lag, true).await?;
        let mut verdict = told.verdict(&check);
        while verdict.is_none() {
            verdict = match tokio::time::timeout_at(check.until, watch.next()).await {
                Ok(Err(Error::Compacted(_))) => return Ok(compacted()),
                Ok(event) => told.hear(event?, Some(&check)),
                Err(_) => Some(false),
            };
        }
        if verdict == Some(false) {
            return Ok(End::Missed(told.difference(&check)));
        }
        if let Some(end) = self.show(told) {
            return Ok(end);
        }
        self.update(|state| {
            state.following = true;
            state.set_error(None);
        });
        self.follow(told, watch).await
    }

    async fn snapshot(&self) -> Result<Snapshot, Problem> {
        self.conf.kv.snapshot(keys::FOLLOWED).await.map_err(|error| store_problem(&error))
    }

    /// Applies what was told, unless that is to be held back.
    fn show(&self, told: &mut Told) -> Option<End> {
        let changes = std::mem::take(&mut told.waiting);
        if let Some(why) = self.look(|state| state.guard_changes(&changes)) {
            self.hold(&why);
            return Some(End::Held);
        }
        let fenced = self.update(|state| {
            changes.iter().for_each(|change| state.follow(change));
            if told.revision > state.revision {
                state.reached(told.revision);
            }
            (state.me.is_none(), std::mem::take(&mut state.rejoin), state.past.changed)
        });
        match fenced {
            (true, ..) => Some(End::Fenced),
            (false, _, true) => Some(End::Relist),
            (false, rejoin, false) => rejoin.then_some(End::Again),
        }
    }

    async fn follow(&self, told: &mut Told, mut watch: Watch) -> Result<End, Trouble> {
        let Timing { check: often, lag, .. } = self.conf.timing;
        self.wake.keeper.notify_one();
        self.wake.live.notify_one();
        self.wake.consent.notify_one();
        self.mend_published().await?;
        let relist = tokio::time::sleep_until(told.due);
        tokio::pin!(relist);
        let mut next = tokio::time::Instant::now() + random::jitter(often);
        let mut check: Option<Check> = None;
        loop {
            let due = check.as_ref().map_or(next, |check| check.until);
            let verdict = tokio::select! {
                event = watch.next() => {
                    let event = match event {
                        Err(Error::Compacted(_)) => return Ok(compacted()),
                        event => event?,
                    };
                    let verdict = told.hear(event, check.as_ref());
                    if let Some(end) = self.show(told) {
                        return Ok(end);
                    }
                    verdict
                }
                () = tokio::time::sleep_until(due) => match &check {
                    Some(_) => Some(false),
                    None => {
                        next = tokio::time::Instant::now() + random::jitter(often);
                        match told.ask(&self.conf.kv, lag, false).await {
                            Ok(asked) => told.verdict(check.insert(asked)),
                            Err(error @ Error::OtherCluster { .. }) => return Err(error.into()),
                            // Should the store be away, the watch will say so.
                            Err(error) => {
                                tracing::debug!("the store was not checked: {error}");
                                None
                            }
                        }
                    }
                },
                () = &mut relist => return Ok(End::Relist),
                () = self.wake.session.notified() => return Ok(End::Again),
            };
            if verdict.is_some()
                && let Some(check) = check.take()
                && verdict == Some(false)
            {
                tracing::warn!("{}: everything is read again", told.difference(&check));
                // Until then what the watch does tell is better than nothing.
                told.due = tokio::time::Instant::now() + self.apart();
                relist.as_mut().reset(told.due);
                next = told.due + often;
            }
        }
    }

    fn hold(&self, why: &str) {
        self.update(|state| {
            if state.held_back.is_none() {
                tracing::error!("{why}");
            }
            state.held_back = Some(why.to_owned());
            state.following = false;
            state.set_error(None);
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
        let id = self.renew_lease(&mut lease).await.map_err(|error| store_problem(&error))?;
        let (key, value) = (keys::live(&me.host.name), self.token());
        let txn = Txn { then: vec![Op::Put(key.clone(), value.clone(), Some(id))], ..Txn::default() };
        if let Fenced::Held(done) = self.commit_fenced(&me, txn).await? {
            self.learn(&key, Some(&value), done.revision);
        }
        Ok(id)
    }

    /// The lease of the liveness key, a new one when it has ended.
    async fn renew_lease(&self, lease: &mut Option<LeaseId>) -> Result<LeaseId, Error> {
        if let Some(id) = *lease
            && self.conf.kv.keep_alive(id).await.unwrap_or(false)
        {
            return Ok(id);
        }
        let id = self.conf.kv.grant(self.conf.liveness).await?;
        *lease = Some(id);
        Ok(id)
    }

    /// The operation that says that this agent has the node's identity, for the transaction that writes the record.
    pub(crate) async fn put_token(&self) -> Result<Op, Error> {
        let id = self.renew_lease(&mut *self.lease.lock().await).await?;
        Ok(Op::Put(keys::live(&self.name()), self.token(), Some(id)))
    }

    /// The value of the liveness key.
    fn token(&self) -> Vec<u8> {
        let (vtep, _) = *lock(&self.underlay);
        keys::json(&Token { place: self.place.clone(), session: self.session.clone(), vtep })
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
        let put = Op::Put(keys::live(&me.host.name), self.token(), Some(lease));
        let (Fenced::Held(done) | Fenced::Not(done)) =
            self.commit_fenced(&me, Txn { then: vec![put], ..Txn::default() }).await?;
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
