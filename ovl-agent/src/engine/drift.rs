//! When what the kernel told of is looked at. What is taken away is put back at once; what is taken away again and again, by
//! somebody who wants it gone, after pauses that grow until the regular pass is as soon. The same holds for whole passes.

use net::Told;
use ovl_kernel::drift::{Piece, Seen, Watched, piece};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// So long after the first word a piece is looked at: deletions come in swarms.
const SWARM: Duration = Duration::from_millis(10);
/// The same for a container's: when it is detached, its link goes first, and the agent is told then.
const DETACHING: Duration = Duration::from_millis(200);
/// The first and the longest pause before what was put back is put back again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(50));
/// So long after a pause has ended there is peace, and the next is the first again.
const PEACE: Duration = Duration::from_secs(60);
/// From the so-manieth time on it is a fight.
const FIGHT: u32 = 3;
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
    pending: BTreeMap<What, (Instant, Seen)>,
    /// What was put back of late.
    past: BTreeMap<What, Past>,
    /// When a fight was told of that has not ended.
    fight: Option<Instant>,
}

/// That something was put back.
#[derive(Debug)]
struct Past {
    /// How often in a row.
    times: u32,
    /// Before that it is not put back again.
    again: Instant,
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
        let Some((piece, seen)) = piece(told).filter(|(piece, _)| self.watched.concerns(piece)) else {
            return false;
        };
        if let Some((_, known)) = self.pending.get_mut(&What::Piece(piece)) {
            *known = seen;
            return false;
        }
        if new {
            return false;
        }
        if self.pending.len() >= MANY {
            self.pending.clear();
            return self.all(now);
        }
        let pause = if self.watched.of_container(&piece) { DETACHING } else { SWARM };
        self.plan(What::Piece(piece), seen, now, pause);
        true
    }

    /// Everything is to be looked at; true when that is news.
    pub fn all(&mut self, now: Instant) -> bool {
        let new = !self.pending.contains_key(&What::All);
        if new {
            self.plan(What::All, Seen::Gone, now, Duration::ZERO);
        }
        new
    }

    fn plan(&mut self, what: What, seen: Seen, now: Instant, pause: Duration) {
        let again = self.past.get(&what).map(|past| past.again);
        let due = again.unwrap_or(now).max(now + pause);
        self.pending.insert(what, (due, seen));
    }

    /// True when it is of a device: what befalls that is told as a change of a link.
    pub fn is_device(&self, index: u32) -> bool {
        self.watched.devices.contains(&index)
    }

    /// When something is due.
    pub fn next(&self) -> Option<Instant> {
        self.pending.values().map(|(due, _)| *due).min()
    }

    /// Takes what a full pass sees to, which is all that was told, if there is to be one anyway or one is due; true when one is
    /// due.
    pub fn take_all(&mut self, now: Instant, anyway: bool) -> bool {
        let due = self.is_full_due(now);
        if due || anyway {
            self.pending.clear();
        }
        due
    }

    /// True when a full pass is due.
    pub fn is_full_due(&self, now: Instant) -> bool {
        self.pending.get(&What::All).is_some_and(|(due, _)| *due <= now)
    }

    /// Takes the pieces that are due.
    pub fn take(&mut self, now: Instant) -> BTreeMap<Piece, Seen> {
        let due = self.pending.iter().filter(|(_, (due, _))| *due <= now);
        let due: Vec<Piece> = due.filter_map(|(what, _)| what.piece()).collect();
        let taken = due.into_iter().filter_map(|piece| {
            let (_, seen) = self.pending.remove(&What::Piece(piece))?;
            Some((piece, seen))
        });
        taken.collect()
    }

    /// These have been put back, or looked at. True when that was not the first time, nor the second, and has to be told.
    pub fn done(&mut self, what: impl IntoIterator<Item = What>, now: Instant) -> bool {
        self.past.retain(|_, past| now < past.again + PEACE);
        self.fight = self.fight.filter(|at| now < *at + PAUSE.1 + PEACE);
        let mut fight = false;
        for what in what {
            let past = self.past.entry(what).or_insert(Past { times: 0, again: now });
            let pause = PAUSE.0.saturating_mul(1 << past.times.min(16)).min(PAUSE.1);
            past.times += 1;
            past.again = now + pause;
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
    use net::{Neigh, Route};

    fn route(dst: &str) -> Box<Route> {
        Box::new(Route { priority: Some(87), protocol: 87, ..Route::to(dst.parse().unwrap()) })
    }

    fn gone(dst: &str) -> Told {
        Told::RouteGone(route(dst))
    }

    fn drift() -> Drift {
        let mut drift = Drift::default();
        drift.watch(Watched { devices: [7].into(), subnets: vec!["10.42.0.0/16".parse().unwrap()] });
        drift
    }

    const SECOND: Duration = Duration::from_secs(1);

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
            Told::TableGone { family: 1, name: "weft".to_owned() },
        ] {
            assert!(!drift.hear(told.clone(), now), "{told:?}");
        }
        assert_eq!(drift.next(), None);
        for told in [
            gone("10.42.0.0/26"),
            Told::NeighGone { index: 7, ip },
            Told::NeighGone { index: 3, ip: "10.42.0.5".parse().unwrap() },
            Told::LinkGone { index: 7 },
            Told::TableGone { family: 1, name: "weft-overlay".to_owned() },
        ] {
            assert!(drift.hear(told.clone(), now), "{told:?}");
        }
        assert_eq!(drift.take(now + SECOND).len(), 5);
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
        assert!(!drift.take_all(now, false) && drift.next().is_some());
        assert!(!drift.take_all(now, true));
        assert_eq!(drift.next(), None);
        assert!(drift.hear(gone("10.42.0.0/26"), now) && drift.all(now) && !drift.all(now));
        assert!(drift.take_all(now, false));
        assert_eq!(drift.next(), None);
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
                let all = drift.take_all(now, false).then_some(What::All);
                let pieces = drift.take(now).into_keys().map(What::Piece);
                told += usize::from(drift.done(pieces.chain(all), now));
                times += 1;
            }
            assert!((10..20).contains(&times), "{times}");
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

    #[test]
    fn too_many_pieces_are_a_case_for_a_full_pass() {
        let (mut drift, now) = (drift(), Instant::now());
        for number in 0..=MANY as u32 {
            let ip = std::net::Ipv4Addr::from(0x0a2a_0000 + number).into();
            drift.hear(Told::NeighGone { index: 7, ip }, now);
        }
        assert!(drift.take_all(now, false) && drift.take(now).is_empty());
    }
}
