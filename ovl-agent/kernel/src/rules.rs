//! The packet filter, behind a trait so that the rest is tested without it.

pub use net::firewall::overlay::{FAMILY, NAME, Rules};

use net::Result;
use net::firewall::overlay::OverlayTable;

/// Whatever lets pass what [`Rules`] say.
pub trait Table {
    /// Makes it let pass just this; true when something had to be changed.
    ///
    /// # Errors
    /// The kernel's refusal; then nothing was changed.
    fn apply(&mut self, rules: &Rules) -> Result<bool>;

    /// Makes it let pass this too, and takes nothing away.
    ///
    /// # Errors
    /// As [`Table::apply`].
    fn add(&mut self, rules: &Rules) -> Result<bool>;

    /// Has the next [`Table::apply`] read what the kernel has.
    fn forget(&mut self);

    /// The port by which notifications of changes that were made here name their maker.
    fn port(&self) -> u32 {
        0
    }

    /// Removes it whole.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn remove(&mut self) -> Result<()>;
}

impl Table for OverlayTable {
    fn apply(&mut self, rules: &Rules) -> Result<bool> {
        OverlayTable::apply(self, rules)
    }

    fn add(&mut self, rules: &Rules) -> Result<bool> {
        OverlayTable::add(self, rules)
    }

    fn forget(&mut self) {
        OverlayTable::forget(self);
    }

    fn port(&self) -> u32 {
        OverlayTable::port(self)
    }

    fn remove(&mut self) -> Result<()> {
        OverlayTable::remove(self)
    }
}
