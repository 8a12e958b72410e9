//! Restoring at once what another program removes, by the kernel's notifications: for programs that live on.

use super::Nftables;
use super::records::Records;
use super::restore::Restored;
use super::table::Table;
use crate::firewall::Firewall;
use crate::{FilterTable, Monitor, Result, Told};
use nix::fcntl::{Flock, FlockArg};
use std::time::{Duration, Instant};

/// Removals come in swarms: so long after the first word they are looked at.
const SWARM: Duration = Duration::from_millis(5);
/// The shortest pause between two looks at everything, each of which reads all records and elements.
const PAUSE: Duration = Duration::from_secs(2);
/// The share of the time that such looks may take: one hundredth.
const SHARE: u32 = 100;

/// Decides how closely to look, and when.
#[derive(Debug, Default)]
struct Keeper {
    /// When everything may be looked at again.
    next: Option<Instant>,
    /// Something changed since everything was looked at.
    is_due: bool,
    /// Other programs' forward chains did.
    is_forward_due: bool,
}

/// Whether this is news of a table of attachments, or of other programs' forward chains.
fn concerns(told: &Told) -> bool {
    let is_ours = |found: &FilterTable| {
        let tables = Table::OF_ATTACHMENTS;
        tables.iter().any(|table| (table.family(), table.name()) == (found.family, found.name.as_str()))
    };
    match told {
        Told::TableGone(table) | Told::TableChanged(table) => is_ours(table),
        Told::Missed | Told::ForwardChain => true,
        _ => false,
    }
}

/// Whether this is news of other programs' forward chains.
fn concerns_forward(news: &Told) -> bool {
    matches!(news, Told::Missed | Told::ForwardChain)
}

impl Keeper {
    /// Restores what is missing. After news a missing table or rule is restored at once, and a missing element as soon as another
    /// look at everything is due.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn look(&mut self, records: &Records, news: bool) -> Result<Restored> {
        let now = Instant::now();
        self.is_due |= news;
        if !self.is_due || !records.are_there() {
            self.is_due = false;
            return Ok(Restored::default());
        }
        let mut nft = Nftables::open()?;
        let restored = if self.next.is_none_or(|next| now >= next) {
            let restored = nft.restore(records, self.is_forward_due);
            if restored.is_ok() {
                (self.is_due, self.is_forward_due) = (false, false);
            }
            self.next = Some(now + PAUSE.max(now.elapsed() * SHARE));
            restored
        } else {
            nft.restore_if_lost(records)
        };
        crate::dead::close_by_reaper(&nft.handle().into_iter().collect::<Vec<_>>());
        restored
    }

    /// How long to wait at most for news.
    fn wait(&self) -> Option<Duration> {
        let next = self.next.filter(|_| self.is_due)?;
        Some(next.saturating_duration_since(Instant::now()))
    }
}

/// Restores at once what another program removes, for as long as there are records; `report` gets what was restored, and errors. Of
/// several callers one works, and the next when that ends.
///
/// # Errors
/// The kernel's notifications cannot be received.
pub fn keep(records: &Records, report: &dyn Fn(Result<Restored>)) -> Result<()> {
    let Some(dir) = records.open() else { return Ok(()) };
    // Without the lock two work, which does no harm.
    let _lock = Flock::lock(dir, FlockArg::LockExclusive);
    watch(records, report, &|| records.open().is_some())
}

/// As [`keep`], for ever, and whether or not there are records yet.
///
/// # Errors
/// As [`keep`].
pub fn keep_forever(records: &Records, report: &dyn Fn(Result<Restored>)) -> Result<()> {
    watch(records, report, &|| true)
}

fn watch(records: &Records, report: &dyn Fn(Result<Restored>), goes_on: &dyn Fn() -> bool) -> Result<()> {
    let mut monitor = Monitor::tables()?;
    let mut keeper = Keeper { is_forward_due: true, ..Keeper::default() };
    let mut news = true;
    while goes_on() {
        match keeper.look(records, news) {
            Ok(restored) if !restored.is_any() => {}
            looked => report(looked),
        }
        let received = monitor.wait_for(keeper.wait())?;
        keeper.is_forward_due |= received.iter().any(concerns_forward);
        news = received.iter().any(concerns);
        if news {
            std::thread::sleep(SWARM);
            keeper.is_forward_due |= monitor.read()?.iter().any(concerns_forward);
        }
    }
    Ok(())
}
