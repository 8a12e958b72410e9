//! What other programs changed in the kernel and was restored: for the log, the metrics and `status`.

use ovl_api::wire::{Repair, Repairs};
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// So many lines are logged at once, beside the first of each repair; then one a second.
const LINES: f64 = 100.0;

/// What was restored since the start.
#[derive(Debug, Clone, Default)]
pub struct Restorations {
    count: u64,
    last: Option<Repair>,
    /// What another program changes again and again, and until when that counts as going on.
    fights: Vec<(String, Instant)>,
}

impl Restorations {
    /// Notes a repair: its lines for the log, how many objects it restored, and how long after the change.
    pub fn note(&mut self, lines: &[String], objects: usize, took: Duration) {
        self.count = self.count.saturating_add(objects as u64);
        let at = OffsetDateTime::now_utc().replace_nanosecond(0).ok();
        self.last = Some(Repair {
            at: at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default(),
            what: lines
                .first()
                .cloned()
                .unwrap_or_else(|| "the overlay's objects were changed: restored".to_owned()),
            objects,
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        });
    }

    /// Takes what another program changes again and again.
    pub fn set_fights(&mut self, fights: Vec<(String, Instant)>) {
        self.fights = fights;
    }

    /// For `status`.
    pub fn report(&self, now: Instant) -> Repairs {
        let fights = self.fights.iter().filter(|(_, until)| now < *until);
        let fights = fights.map(|(what, _)| what.clone()).collect();
        Repairs { count: self.count, last: self.last.clone(), fights }
    }
}

/// Limits how many lines are logged.
#[derive(Debug)]
pub struct Log {
    left: f64,
    at: Instant,
    kept_back: usize,
}

impl Log {
    pub fn new(now: Instant) -> Log {
        Log { left: LINES, at: now, kept_back: 0 }
    }

    /// The lines to be logged: the first in any case.
    pub fn limit(&mut self, lines: &[String], now: Instant) -> Vec<String> {
        self.left = (self.left + now.saturating_duration_since(self.at).as_secs_f64()).min(LINES);
        self.at = now;
        let mut logged = Vec::new();
        for line in lines {
            if logged.is_empty() || self.left >= 1.0 {
                self.left = (self.left - 1.0).max(0.0);
                logged.push(line.clone());
            } else {
                self.kept_back += 1;
            }
        }
        if self.kept_back > 0 && self.left >= 1.0 {
            logged.push(format!("{} more lines on changes in the kernel were not logged", self.kept_back));
            self.kept_back = 0;
        }
        logged
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn log_of_many_repairs_is_limited_and_counts_the_rest() {
        let start = Instant::now();
        let mut log = Log::new(start);
        let lines: Vec<String> = (0..30).map(|number| format!("route {number}")).collect();
        let counts: Vec<usize> = (0..5).map(|_| log.limit(&lines, start).len()).collect();
        assert_eq!(counts, [30, 30, 30, 10, 1]);
        let later = log.limit(&lines[..1], start + Duration::from_secs(10));
        assert_eq!(later, ["route 0", "49 more lines on changes in the kernel were not logged"]);
        assert_eq!(log.limit(&[], start), Vec::<String>::new());
    }

    #[test]
    fn fight_is_reported_until_it_is_over() {
        let (now, mut restored) = (Instant::now(), Restorations::default());
        assert_eq!(restored.report(now), Repairs::default());
        restored.note(&["route was missing: restored".to_owned()], 3, Duration::from_millis(12));
        restored.set_fights(vec![("route".to_owned(), now + Duration::from_secs(5))]);
        let report = restored.report(now);
        let last = report.last.unwrap();
        assert_eq!((report.count, last.objects, last.took_ms), (3, 3, 12));
        assert_eq!(report.fights, ["route"]);
        assert!(restored.report(now + Duration::from_secs(6)).fights.is_empty());
    }
}
