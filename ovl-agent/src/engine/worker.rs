//! The one thread that changes the kernel: it waits for the view to change, for a request, for word that somebody took
//! something away, or for the time of a full pass, and brings the kernel to what the view wants.
//!
//! Until the store has been read, the view is the one last seen: the kernel is mended by it, and nothing is deleted.

mod underlay;

use super::drift::What;
use super::link::Watcher;
use super::repairs::Log;
use super::shown::Shown;
use super::start::Settings;
use super::successor::Successor;
use crate::metrics::{Metrics, Pass};
use crate::notify;
use ovl_api::model::{Delta, View};
use ovl_claims::Node;
use ovl_kernel::drift::Piece;
use ovl_kernel::{Changes, Reconciler, Restored};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

/// From the end of one full pass to the next: what somebody changes without being noticed is mended within a minute.
const FULL_EVERY: Duration = Duration::from_secs(50);
/// By how much that varies, so that hosts that start together do not work together.
const JITTER: Duration = Duration::from_secs(6);
/// The first and the longest pause after a pass that did not do all.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often the store's first answer is looked for, should the view not change by it.
const UNSYNCED: Duration = Duration::from_millis(200);

/// What the thread works with.
pub struct Parts {
    pub settings: Settings,
    pub node: Node,
    pub changed: watch::Receiver<u64>,
    /// Addresses and ports of the store that are closed to containers.
    pub stores: watch::Receiver<BTreeSet<(IpAddr, u16)>>,
    pub poke: Arc<Notify>,
    pub stop: watch::Receiver<bool>,
    pub shown: watch::Sender<Shown>,
    pub metrics: Arc<Metrics>,
}

/// The thread's state.
pub struct Worker {
    parts: Parts,
    reconciler: Reconciler,
    watcher: Watcher,
    times: Times,
    log: Log,
}

/// When what is due, and what was told.
#[derive(Default)]
struct Times {
    /// A full pass; None: now.
    full: Option<Instant>,
    /// How often in a row a pass did not do all.
    failures: u32,
    /// A full pass has been done since the store was read.
    synced: bool,
    /// A pass has been done at all.
    begun: bool,
    /// Failures that were logged, by network ID.
    told: BTreeMap<String, String>,
    /// What is wrong with the underlay, as it was logged.
    underlay: Option<String>,
    /// Its interface is down.
    underlay_down: bool,
    /// Since when it, or its carrier, has been away.
    away: Option<Instant>,
    /// When it is looked at again, because something is amiss.
    look: Option<Instant>,
    /// The address that may take the place of one that is gone.
    successor: Successor,
}

enum Wake {
    Work,
    Full,
    /// Something that was told of is due, now or later.
    Told,
    Stop,
}

impl Worker {
    /// To be made and run by one thread.
    pub fn new(parts: Parts, reconciler: Reconciler) -> Worker {
        let log = Log::new(Instant::now());
        Worker { parts, reconciler, watcher: Watcher::new(), times: Times::default(), log }
    }

    /// Works until it is told to stop. Leaves the kernel as it is.
    pub fn run(mut self, handle: &Handle) {
        loop {
            self.turn();
            loop {
                self.restore();
                notify::alive();
                match handle.block_on(self.wait()) {
                    Wake::Work => break,
                    Wake::Full => {
                        self.times.full = None;
                        break;
                    }
                    Wake::Told if self.is_full_due() => break,
                    Wake::Told => {}
                    Wake::Stop => return,
                }
            }
        }
    }

    async fn wait(&mut self) -> Wake {
        let now = Instant::now();
        let full = self.times.full.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let unsynced = if self.times.synced { Duration::MAX } else { UNSYNCED };
        let alive = notify::alive_every().unwrap_or(Duration::MAX);
        let look = self.times.look.map_or(Duration::MAX, |at| at.saturating_duration_since(now));
        let pause = full.min(unsynced).min(alive).min(look);
        let told = self.watcher.drift(|drift| drift.next());
        let told = told.map_or(Duration::MAX, |at| at.saturating_duration_since(now));
        let (link, gone) = (self.reconciler.underlay().link, self.times.look.is_some());
        tokio::select! {
            biased;
            // The sender is gone only when the agent ends.
            _ = self.parts.stop.wait_for(|stop| *stop) => Wake::Stop,
            () = self.parts.poke.notified() => Wake::Full,
            underlay = self.watcher.changed(link, gone) => if underlay { Wake::Full } else { Wake::Told },
            Ok(()) = self.parts.stores.changed() => Wake::Full,
            changed = self.parts.changed.changed() => if changed.is_ok() { Wake::Work } else { Wake::Stop },
            () = tokio::time::sleep(told) => Wake::Told,
            () = tokio::time::sleep(pause) => Wake::Work,
        }
    }

    fn turn(&mut self) {
        let generation = *self.parts.changed.borrow_and_update();
        // In this order: the view is at this revision at least, and synced when this says so.
        let synced = self.parts.node.synced();
        let revision = self.parts.node.revision();
        let due = self.times.full.is_none_or(|at| at <= Instant::now());
        let full = due || !self.times.begun || (synced && !self.times.synced);
        let (told, whole) = self.watcher.drift(|drift| drift.take_all(Instant::now(), full));
        let mut full = full || told;
        if full || self.times.look.is_some_and(|at| at <= Instant::now()) {
            full |= self.look_at_underlay();
        }
        // A pass of any kind has them closed at once: that of the reconciler that was made anew too.
        full |= self.reconciler.close_stores(self.parts.stores.borrow_and_update().clone());
        let mut shown = self.parts.shown.borrow().clone();
        let family = shown.family;
        let (passes, counts) = self.parts.node.clone().with_view(|view, delta| {
            let counts = shown.look(view);
            (self.pass(view, &delta, full, synced), counts)
        });
        if full && let Some(Ok(changes)) = &passes {
            self.note_repair(&mut shown, changes);
        }
        if shown.family != family {
            // The address may be of a family that the others do not use.
            self.times.look = Some(Instant::now());
        }
        self.settle(&mut shown, passes, full, synced);
        self.watch();
        shown.generation = generation;
        if shown.complete() {
            shown.revision = shown.revision.max(revision);
        }
        self.parts.metrics.counted(counts, shown.failed.len());
        // A network that this host cannot make holds up who claims in that one alone.
        let applied =
            (shown.synced && shown.shows_all_but_networks()).then(|| shown.failed.keys().cloned().collect());
        self.parts.shown.send_replace(shown);
        if whole {
            self.done([What::All]);
        }
        if let Some(failed) = applied {
            self.parts.node.applied(revision, failed);
        }
    }

    /// Brings the kernel to the view; None when there is nothing to do. A full pass takes the delta in: what differs beyond it
    /// is drift.
    fn pass(
        &mut self,
        view: &View,
        delta: &Delta,
        full: bool,
        synced: bool,
    ) -> Option<Result<Changes, String>> {
        if !full && delta.is_empty() {
            return None;
        }
        let begun = Instant::now();
        let (kind, result) = match (full || delta.all, synced) {
            (true, true) => (Pass::Full, self.reconciler.full(view)),
            (true, false) => (Pass::Full, self.reconciler.mend(view)),
            (false, _) => (Pass::Delta, self.reconciler.delta(view, delta)),
        };
        let seconds = begun.elapsed().as_secs_f64();
        let (changed, mended) = result.as_ref().map_or((0, 0), |changes| (changes.changed, changes.mended));
        let complete = result.as_ref().is_ok_and(Changes::is_complete);
        self.parts.metrics.passed(kind, seconds, changed, mended, complete);
        if let Ok(changes) = &result {
            self.log_lines(changes);
            changes.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        }
        Some(result.map_err(|error| error.to_string()))
    }

    /// A full pass is due because of what was told.
    fn is_full_due(&self) -> bool {
        self.watcher.drift(|drift| drift.is_full_due(Instant::now()))
    }

    /// Puts back what was told to be gone, piece by piece, as far as it is due.
    fn restore(&mut self) {
        let begun = Instant::now();
        let pieces = self.watcher.drift(|drift| drift.take(begun));
        if pieces.is_empty() {
            return;
        }
        match self.reconciler.restore(&pieces) {
            Ok(restored) => {
                let Restored { changes, pieces, look, causes, new } = restored;
                if changes.changed > 0 {
                    let seconds = begun.elapsed().as_secs_f64();
                    self.parts.metrics.passed(Pass::Told, seconds, changes.changed, changes.mended, !look);
                }
                self.log_lines(&changes);
                if !look {
                    let mut shown = self.parts.shown.borrow().clone();
                    self.note_repair(&mut shown, &changes);
                    self.parts.shown.send_replace(shown);
                }
                self.done(pieces.into_iter().chain(causes).map(What::Piece));
                self.watch();
                self.watcher.drift(|drift| {
                    let new = new.iter().filter_map(Piece::device);
                    new.for_each(|link| drift.later(link, true, Instant::now()));
                    if look {
                        drift.look(Instant::now());
                    }
                });
            }
            Err(error) => {
                tracing::warn!("what was taken away is not put back at once: {error}");
                self.watcher.drift(|drift| drift.all(Instant::now()));
            }
        }
    }

    /// Has what is told from now on be about what the last pass left.
    fn watch(&mut self) {
        let (watched, passing) = (self.reconciler.watched(), self.reconciler.passing());
        self.watcher.drift(|drift| {
            drift.watch(watched);
            passing.into_iter().for_each(|link| drift.later(link, false, Instant::now()));
        });
    }

    fn log_lines(&mut self, changes: &Changes) {
        let lines = self.log.limit(&changes.lines, Instant::now());
        lines.iter().for_each(|line| tracing::info!("{line}"));
    }

    /// Notes what was restored of what other programs changed, and how long that took.
    fn note_repair(&self, shown: &mut Shown, changes: &Changes) {
        let now = Instant::now();
        let since = self.watcher.drift(|drift| drift.restored());
        if changes.mended == 0 {
            return;
        }
        let took = now.saturating_duration_since(since.unwrap_or(now));
        shown.repairs.note(&changes.lines, changes.mended, took);
        // What only the regular pass found has no time.
        if since.is_some() {
            self.parts.metrics.repaired(took.as_secs_f64());
        }
    }

    /// Notes what was put back, or looked at, because of what was told.
    fn done(&self, what: impl IntoIterator<Item = What>) {
        let (is_new, fights) = self.watcher.drift(|drift| {
            let is_new = drift.done(what, Instant::now());
            (is_new, drift.fights().collect::<Vec<_>>())
        });
        let describe = |what: What| match what {
            What::All => "the overlay's objects".to_owned(),
            What::Piece(piece) => self.reconciler.describe(&piece),
        };
        let fights: Vec<_> = fights.into_iter().map(|(what, until)| (describe(what), until)).collect();
        if is_new {
            let names: Vec<&str> = fights.iter().map(|(what, _)| what.as_str()).collect();
            tracing::warn!(
                "another program changes {} again and again in this host's kernel; it is restored after pauses that grow to 50 s",
                names.join(", ")
            );
        }
        self.parts.shown.send_if_modified(|shown| {
            shown.repairs.set_fights(fights);
            false
        });
    }

    /// Notes what the passes could not do, logs what is new of it, and says when the next full pass is due.
    fn settle(
        &mut self,
        shown: &mut Shown,
        passes: Option<Result<Changes, String>>,
        full: bool,
        synced: bool,
    ) {
        let Some(result) = passes else { return };
        match &result {
            Ok(changes) => shown.set_failures(changes),
            Err(error) => shown.error = Some(error.clone()),
        }
        self.tell(shown);
        if full && shown.error.is_none() {
            let reconciler = &self.reconciler;
            if let Err(problem) = self.parts.node.missing(|veth| reconciler.has_link(veth)) {
                tracing::warn!("{problem}");
            }
        }
        if full {
            self.times.begun = true;
            shown.full_passes += 1;
            let first = synced && !self.times.synced && shown.error.is_none();
            self.times.synced |= first;
            shown.synced |= first;
        }
        if shown.complete() {
            self.times.failures = 0;
            if full {
                self.times.full = Some(Instant::now() + jitter(FULL_EVERY, JITTER));
            }
            return;
        }
        let pause = RETRY.0.saturating_mul(1 << self.times.failures.min(16)).min(RETRY.1);
        let retry = Instant::now() + pause;
        if full {
            self.times.failures += 1;
            self.times.full = Some(retry);
        } else {
            // What came between, however often, does not put off the next look.
            self.times.full = self.times.full.map(|at| at.min(retry));
        }
    }

    /// A line for each failure that is new, and for each that is over.
    fn tell(&mut self, shown: &Shown) {
        let mut now: BTreeMap<String, String> = BTreeMap::new();
        for (network, why) in &shown.failed {
            let known = shown.networks.iter().find(|(_, known)| known.id == *network);
            let name = known.map_or(network, |(name, _)| name);
            now.insert(format!("network {name}"), why.clone());
        }
        if !shown.failed_elsewhere.is_empty() {
            now.insert("this host".to_owned(), shown.failed_elsewhere.join("; "));
        }
        if let Some(why) = &shown.error {
            now.insert("the kernel".to_owned(), why.clone());
        }
        for (what, why) in &now {
            if self.times.told.get(what) != Some(why) {
                tracing::error!("{what}: {why}");
            }
        }
        for what in self.times.told.keys().filter(|what| !now.contains_key(*what)) {
            tracing::info!("{what}: all is as it should be again");
        }
        self.times.told = now;
    }
}

/// A time around `middle`.
fn jitter(middle: Duration, by: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    // Random by construction: every RandomState has keys of its own.
    let random = RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64;
    middle.saturating_sub(by) + by.mul_f64(2.0 * random)
}
