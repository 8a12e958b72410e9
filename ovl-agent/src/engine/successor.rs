//! The address that takes the place of the VTEP when that is gone, or is of a family that the other nodes do not use.

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// An address that comes and goes within this time takes nothing's place: a DHCP client takes an address away and gives it
/// back.
const SETTLES: Duration = Duration::from_secs(1);

/// An address that may become the VTEP, and since when it has been there.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Successor(Option<(IpAddr, Instant)>);

impl Successor {
    /// Notes that the address is there. True once it has been for long enough.
    pub fn settles(&mut self, address: IpAddr, now: Instant) -> bool {
        match self.0 {
            Some((known, since)) if known == address => now.duration_since(since) >= SETTLES,
            _ => {
                self.0 = Some((address, now));
                false
            }
        }
    }

    /// There is one.
    pub fn waits(&self) -> bool {
        self.0.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_that_stays_settles_and_one_that_changes_does_not() {
        let (one, two) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let start = Instant::now();
        let mut successor = Successor::default();
        assert!(!successor.waits() && !successor.settles(one, start));
        assert!(!successor.settles(one, start + SETTLES / 2) && successor.waits());
        assert!(!successor.settles(two, start + SETTLES));
        assert!(!successor.settles(two, start + SETTLES + SETTLES / 2));
        assert!(successor.settles(two, start + SETTLES * 2));
    }
}
