//! When what the kernel told of is looked at. What is taken away is put back at once; what is taken away again and again, by
//! somebody who wants it gone, after pauses that grow until the regular pass is as soon. The same holds for whole passes.

use net::Told;
use ovl_kernel::drift::{Piece, Seen, Watched};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// So long after the first word a piece is looked at: deletions come in swarms.
const SWARM: Duration = Duration::from_millis(10);
/// The same for a container's: when it is detached, its link goes first, and the agent is told then.
const DETACHING: Duration = Duration::from_millis(200);
/// A container's link that is new is looked at after so long: by then the plugin has made all of it.
const MADE: Duration = Duration::from_secs(1);
/// The pause before what was put back is put back again, the first times.
const SHORT: Duration = Duration::from_millis(300);
/// From the so-manieth time on it is a fight, and the pauses grow from the first to the last of these.
const FIGHT: u32 = 6;
const PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(50));
/// So long after a pause has ended there is peace, and the next is the first again. With each second in which nothing happens
/// after a repair, it is one time less.
const PEACE: Duration = Duration::from_secs(60);
/// A fight counts as over when so long after a pause nothing was restored again.
const CEASED: Duration = Duration::from_secs(5);
/// More pieces than that are a case for a full pass.
const MANY: usize = 100_000;

/// What is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Everything: by a full pass.
    All,
    /// A piece.
    Piece(Piece),
}

impl What {
    fn piece(&self) -> Option<Piece> {
        match self {
            What::All => None,
            What::Piece(piece) => Some(*piece),
        }
    }
}

/// What was told, and when it is due.
#[derive(Debug, Default)]
pub struct Drift {
    watched: Watched,
    pending: BTreeMap<What, Pending>,
    /// What was put back of late.
    past: BTreeMap<What, Past>,
    /// When a fight was told of that has not ended.
    fight: Option<Instant>,
    /// When the first of what was taken, and is not restored yet, was reported.
    since: Option<Instant>,
    /// A full pass is due for more than what single pieces brought about.
    whole: bool,
}

/// What is to be looked at, and when.
#[derive(Debug)]
struct Pending {
    due: Instant,
    seen: Seen,
    /// When it was reported first.
    reported: Instant,
}

/// That something was put back.
#[derive(Debug)]
struct Past {
    /// How often in a row.
    times: u32,
    /// When it was the last time.
    last: Instant,
}

impl Past {
    /// Before that it is not put back again.
    fn again(&self) -> Instant {
        let growing = |times| PAUSE.0.saturating_mul(1 << u32::min(times, 16)).min(PAUSE.1);
        self.last + self.times.checked_sub(FIGHT).map_or(SHORT, growing)
    }
}

impl Drift {
    /// From now on what is told is about this.
    pub fn watch(&mut self, watched: Watched) {
        self.watched = watched;
    }

    /// What was told is to be looked at if it concerns anything; true when something is due then that was not.
    pub fn hear(&mut self, told: Told, now: Instant) -> bool {
        // A route where there was none is news only of one that was gone.
        let new = matches!(told, Told::Route { replaced: false, .. });
        let Some((piece, seen)) = self.watched.piece(told) else { return false };
        if let Some(Pending { seen: known, .. }) = self.pending.get_mut(&What::Piece(piece)) {
            // What a link was first seen with counts, and that it was down.
            if !matches!(known, Seen::New { .. } | Seen::Down) {
                *known = seen;
            }
            return false;
        }
        if new {
            return false;
        }
        if self.pending.len() >= MANY {
            self.pending.clear();
            return self.all(now);
        }
        let of_container = self.watched.of_container(&piece) && !matches!(seen, Seen::New { .. });
        let pause = if of_container { DETACHING } else { SWARM };
        self.plan(What::Piece(piece), seen, now, pause);
        true
    }

    /// A link is to be looked at a moment later: one that is new, or one that may be on its way in or out.
    pub fn later(&mut self, link: u32, is_new: bool, now: Instant) {
        let what = What::Piece(Piece::Device(link));
        if !self.pending.contains_key(&what) {
            self.plan(what, Seen::Gone, now, if is_new { MADE } else { DETACHING });
        }
    }

    /// A full pass is due because of pieces, which were noted as put back.
    pub fn look(&mut self, now: Instant) {
        let reported = self.since.unwrap_or(now);
        self.pending.entry(What::All).or_insert(Pending { due: now, seen: Seen::Gone, reported }).due = now;
    }

    /// Everything is to be looked at; true when that is news.
    pub fn all(&mut self, now: Instant) -> bool {
        self.whole = true;
        let new = !self.pending.contains_key(&What::All);
        if new {
            self.plan(What::All, Seen::Gone, now, Duration::ZERO);
        }
        new
    }

    fn plan(&mut self, what: What, seen: Seen, now: Instant, pause: Duration) {
        let again = self.past.get_mut(&what).map(|past| {
            let calm = now.saturating_duration_since(past.last).as_secs();
            past.times = past.times.saturating_sub(calm.try_into().unwrap_or(u32::MAX));
            past.again()
        });
        let due = again.unwrap_or(now).max(now + pause);
        self.pending.insert(what, Pending { due, seen, reported: now });
    }

    /// When something is due.
    pub fn next(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.due).min()
    }

    /// Takes what a full pass sees to, which is all that was told, if there is to be one anyway or one is due. Returns whether
    /// one is due, and whether that is for more than the pieces that brought it about.
    pub fn take_all(&mut self, now: Instant, anyway: bool) -> (bool, bool) {
        let (due, whole) = (self.is_full_due(now), self.whole);
        if due || anyway {
            self.since = self.pending.values().map(|pending| pending.reported).chain(self.since).min();
            self.pending.clear();
            self.whole = false;
        }
        (due, due && whole)
    }

    /// True when a full pass is due.
    pub fn is_full_due(&self, now: Instant) -> bool {
        self.pending.get(&What::All).is_some_and(|pending| pending.due <= now)
    }

    /// Takes the pieces that are due.
    pub fn take(&mut self, now: Instant) -> BTreeMap<Piece, Seen> {
        let due = self.pending.iter().filter(|(_, pending)| pending.due <= now);
        let due: Vec<Piece> = due.filter_map(|(what, _)| what.piece()).collect();
        let taken = due.into_iter().filter_map(|piece| {
            let Pending { seen, reported, .. } = self.pending.remove(&What::Piece(piece))?;
            self.since = Some(self.since.map_or(reported, |since| since.min(reported)));
            Some((piece, seen))
        });
        taken.collect()
    }

    /// When the first of what was taken was reported, which is restored now.
    pub fn restored(&mut self) -> Option<Instant> {
        self.since.take()
    }

    /// What is changed again and again, and until when it counts as that unless it is changed once more.
    pub fn fights(&self) -> impl Iterator<Item = (What, Instant)> {
        let fights = self.past.iter().filter(|(_, past)| past.times >= FIGHT);
        fights.map(|(what, past)| (*what, past.again() + CEASED))
    }

    /// These have been put back, or looked at. True when that was often, and has to be told.
    pub fn done(&mut self, what: impl IntoIterator<Item = What>, now: Instant) -> bool {
        self.past.retain(|_, past| now < past.again() + PEACE);
        self.fight = self.fight.filter(|at| now < *at + PAUSE.1 + PEACE);
        let mut fight = false;
        for what in what {
            let past = self.past.entry(what).or_insert(Past { times: 0, last: now });
            past.times += 1;
            past.last = now;
            fight |= past.times >= FIGHT;
        }
        if fight {
            let told = self.fight.replace(now).is_some();
            return !told;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use net::{FilterTable, Neigh, Route};

    fn route(dst: &str) -> Box<Route> {
        Box::new(Route { priority: Some(87), protocol: 87, ..Route::to(dst.parse().unwrap()) })
    }

    fn gone(dst: &str) -> Told {
        Told::RouteGone(route(dst))
    }

    fn drift() -> Drift {
        let mut drift = Drift::default();
        let watched = Watched {
            devices: [7].into(),
            links: std::sync::Arc::new([9].into()),
            groups: [0x5700_0001].into(),
            subnets: vec!["10.42.0.0/16".parse().unwrap()],
            filter: true,
            forward_chains: true,
            port: 4711,
        };
        drift.watch(watched);
        drift
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn table(name: &str, port: u32) -> FilterTable {
        FilterTable { family: 1, name: name.to_owned(), port }
    }

    fn link(index: u32, up: bool, group: u32) -> Told {
        Told::Link { index, up, running: up, turned: true, group, mac: None, mtu: 1450 }
    }

    #[test]
    fn what_concerns_nothing_is_not_due() {
        let (mut drift, now) = (drift(), Instant::now());
        let ip = "192.0.2.9".parse().unwrap();
        for told in [
            gone("10.43.0.0/26"),
            Told::Route { route: route("10.43.0.0/26"), replaced: true },
            Told::Route { route: route("10.42.0.0/26"), replaced: false },
            Told::NeighGone { index: 3, ip },
            Told::Neigh(Neigh { index: 3, ip, mac: None, permanent: true }),
            Told::NeighGone { index: 7, ip: "ff02::1".parse().unwrap() },
            Told::LinkGone { index: 8 },
            Told::TableGone(table("weft", 1)),
            Told::TableChanged(table("weft", 1)),
            // The agent's own.
            Told::TableChanged(table("weft-overlay", 4711)),
            Told::ForwardingOff { index: Some(8) },
            Told::LocalGone { index: 8 },
            link(8, true, 0),
        ] {
            assert!(!drift.hear(told.clone(), now), "{told:?}");
        }
        assert_eq!(drift.next(), None);
        for told in [
            gone("10.42.0.0/26"),
            Told::NeighGone { index: 7, ip },
            Told::NeighGone { index: 3, ip: "10.42.0.5".parse().unwrap() },
            Told::LinkGone { index: 7 },
            Told::TableChanged(table("weft-overlay", 1)),
            Told::ForwardingOff { index: None },
            Told::ForwardChain,
            link(9, true, 0),
            link(10, true, 0x5700_0001),
        ] {
            assert!(drift.hear(told.clone(), now), "{told:?}");
        }
        assert_eq!(drift.take(now + SECOND).len(), 9);
    }

    #[test]
    fn link_that_went_down_or_is_new_stays_that() {
        let (mut drift, now) = (drift(), Instant::now());
        assert!(drift.hear(link(7, false, 0), now) && !drift.hear(link(7, true, 0), now));
        assert!(
            drift.hear(link(10, true, 0x5700_0001), now) && !drift.hear(Told::LinkGone { index: 10 }, now)
        );
        let seen: Vec<Seen> = drift.take(now + SECOND).into_values().collect();
        assert_eq!(seen, [Seen::Down, Seen::New { mac: None, mtu: 1450 }]);
    }

    #[test]
    fn what_was_told_last_counts_and_a_container_has_time_to_go() {
        let (mut drift, now) = (drift(), Instant::now());
        assert!(drift.hear(gone("10.42.0.0/26"), now) && !drift.hear(gone("10.42.0.0/26"), now));
        let back = Told::Route { route: route("10.42.0.0/26"), replaced: false };
        assert!(!drift.hear(back, now));
        let container = Route { protocol: 87, ..Route::to("10.42.0.5/32".parse().unwrap()) };
        assert!(drift.hear(Told::RouteGone(Box::new(container)), now));
        assert_eq!(drift.next(), Some(now + SWARM));
        let due = drift.take(now + SWARM);
        assert_eq!(due.into_values().collect::<Vec<_>>(), [Seen::Route(route("10.42.0.0/26"))]);
        assert_eq!(drift.next(), Some(now + DETACHING));
        assert_eq!(drift.take(now + DETACHING).len(), 1);
    }

    #[test]
    fn a_full_pass_takes_all_with_it() {
        let (mut drift, now) = (drift(), Instant::now());
        assert!(drift.hear(gone("10.42.0.0/26"), now));
        assert!(!drift.take_all(now, false).0 && drift.next().is_some());
        assert!(!drift.take_all(now, true).0);
        assert_eq!(drift.next(), None);
        assert!(drift.hear(gone("10.42.0.0/26"), now) && drift.all(now) && !drift.all(now));
        assert_eq!(drift.take_all(now, false), (true, true));
        assert_eq!(drift.next(), None);
        drift.look(now);
        assert_eq!(drift.take_all(now, false), (true, false));
    }

    /// Somebody deletes each time anew, as soon as it is back.
    #[test]
    fn a_fight_is_fought_more_and_more_seldom_and_told_once() {
        for what in [gone("10.42.0.0/26"), Told::Missed] {
            let (mut drift, begun) = (drift(), Instant::now());
            let (mut now, mut times, mut told) = (begun, 0, 0);
            while now < begun + 600 * SECOND {
                match what {
                    Told::Missed => assert!(drift.all(now)),
                    _ => assert!(drift.hear(what.clone(), now)),
                }
                now = drift.next().unwrap();
                let all = drift.take_all(now, false).1.then_some(What::All);
                let pieces = drift.take(now).into_keys().map(What::Piece);
                told += usize::from(drift.done(pieces.chain(all), now));
                times += 1;
            }
            assert!((15..30).contains(&times), "{times}");
            assert_eq!(told, 1);
            // Another piece is not held up by it.
            assert!(drift.hear(gone("10.42.0.64/26"), now));
            assert_eq!(drift.take(now + SWARM).len(), 1);
            // After a time of peace it is put back at once.
            let later = now + 200 * SECOND;
            drift.take_all(later, true);
            assert!(!drift.done([], later));
            assert!(drift.hear(gone("10.42.0.0/26"), later));
            assert_eq!(drift.next(), Some(later + SWARM));
        }
    }

    /// One change after the other, as an administrator makes them, is no fight.
    #[test]
    fn changes_with_a_second_between_are_repaired_at_once() {
        let (mut drift, mut now) = (drift(), Instant::now());
        for _ in 0..50 {
            assert!(drift.hear(gone("10.42.0.0/26"), now));
            assert_eq!(drift.next(), Some(now + SWARM));
            now += SWARM;
            let taken = drift.take(now).into_keys().map(What::Piece);
            assert!(!drift.done(taken, now));
            now += SECOND;
        }
    }

    #[test]
    fn too_many_pieces_are_a_case_for_a_full_pass() {
        let (mut drift, now) = (drift(), Instant::now());
        for number in 0..=MANY as u32 {
            let ip = std::net::Ipv4Addr::from(0x0a2a_0000 + number).into();
            drift.hear(Told::NeighGone { index: 7, ip }, now);
        }
        assert!(drift.take_all(now, false).0 && drift.take(now).is_empty());
    }
}
