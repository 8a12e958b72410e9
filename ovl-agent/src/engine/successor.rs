//! The address that takes the place of the VTEP when that is gone, or is of a family that the other nodes do not use.

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// An address that comes and goes within this time takes nothing's place: a DHCP client takes an address away and gives it
/// back.
pub const SETTLES: Duration = Duration::from_secs(1);
/// One of IPv6 takes the place of one of IPv4 that is there, where as many nodes use IPv4, after so long: a node that has just
/// started may have IPv6 before it has IPv4, and then goes to IPv4.
pub const TIED: Duration = Duration::from_secs(30);

/// An address that may become the VTEP, and since when it has been there.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Successor(Option<(IpAddr, Instant)>);

impl Successor {
    /// Notes that the address is there. True once it has been for so long.
    pub fn settles(&mut self, address: IpAddr, now: Instant, after: Duration) -> bool {
        match self.0 {
            Some((known, since)) if known == address => now.duration_since(since) >= after,
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
        assert!(!successor.waits() && !successor.settles(one, start, SETTLES));
        assert!(!successor.settles(one, start + SETTLES / 2, SETTLES) && successor.waits());
        assert!(!successor.settles(two, start + SETTLES, SETTLES));
        assert!(!successor.settles(two, start + SETTLES + SETTLES / 2, SETTLES));
        assert!(successor.settles(two, start + SETTLES * 2, SETTLES));
    }
}
