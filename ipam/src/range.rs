//! Ranges of addresses, with the defaults and limits of the reference host-local plugin.
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::address::{Family, address, number};
use crate::error::{Error, Result};

/// The addresses from `start` to `end`, both included, of a subnet; its gateway is never given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The subnet, whose length the addresses are given out with.
    pub subnet: IpNetwork,
    /// First address.
    pub start: IpAddr,
    /// Last address.
    pub end: IpAddr,
    /// The subnet's gateway; it need not be within the range, nor in the subnet, nor of its family (RFC 5549).
    pub gateway: IpAddr,
}

impl Range {
    /// Fills in what is left out: the start is the first host, the end the last one (before the broadcast address in
    /// IPv4, the very last address in IPv6), the gateway the first host.
    ///
    /// # Errors
    /// The subnet has host bits or fewer than two host bits' worth of addresses; `start` or `end` lie outside of it,
    /// in the wrong order, or are of the other family.
    pub fn new(
        subnet: IpNetwork,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Range> {
        let family = Family::of(subnet.ip());
        let bits = (family.len() * 8) as u8;
        if subnet.prefix() > bits - 2 {
            return Err(Error::TooSmall { subnet, largest_prefix: bits - 2 });
        }
        if subnet.ip() != subnet.network() {
            // The prefix is valid for the family: it came from a valid network.
            let network = IpNetwork::new(subnet.network(), subnet.prefix()).unwrap_or(subnet);
            return Err(Error::HostBits { subnet, network });
        }
        let inside = |what, given: IpAddr| {
            let given = canonical(family, given);
            if subnet.contains(given) {
                Ok(given)
            } else {
                Err(Error::Outside { what, address: given, subnet })
            }
        };
        let first = address(family, number(subnet.network()) + 1);
        let start = start.map_or(Ok(first), |a| inside("rangeStart", a))?;
        let end = end.map_or_else(|| Ok(last_host(family, &subnet)), |a| inside("rangeEnd", a))?;
        if end < start {
            return Err(Error::Reversed { subnet, start, end });
        }
        let gateway = canonical(family, gateway.unwrap_or(first));
        Ok(Range { subnet, start, end, gateway })
    }

    /// True for the addresses the range can give: from start to end, but not the gateway.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.spans(address) && address != self.gateway
    }

    /// True from start to end, the gateway included.
    pub(crate) fn spans(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.start.is_ipv4() && self.start <= address && address <= self.end
    }

    pub(crate) fn family(&self) -> Family {
        Family::of(self.start)
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.start.is_ipv4() == other.start.is_ipv4() && self.start <= other.end && other.start <= self.end
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// An IPv4 address written as IPv6 (`::ffff:a.b.c.d`) is taken for what it is where IPv4 is wanted.
fn canonical(family: Family, address: IpAddr) -> IpAddr {
    if family == Family::V4 { address.to_canonical() } else { address }
}

fn last_host(family: Family, subnet: &IpNetwork) -> IpAddr {
    let last = number(subnet.broadcast());
    match family {
        Family::V4 => address(family, last - 1), // the last one is the broadcast address
        Family::V6 => address(family, last),
    }
}

/// The ranges that give one address of an attachment; they are of one family and share no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    /// # Errors
    /// No range at all, ranges of both families, or ranges that overlap.
    pub fn new(ranges: Vec<Range>) -> Result<RangeSet> {
        let first = ranges.first().ok_or(Error::EmptySet)?;
        if let Some(other) = ranges.iter().find(|r| r.family() != first.family()) {
            return Err(Error::MixedFamilies(first.to_string(), other.to_string()));
        }
        for (i, a) in ranges.iter().enumerate() {
            if let Some(b) = ranges[i + 1..].iter().find(|b| a.overlaps(b)) {
                return Err(Error::Overlap(a.to_string(), b.to_string()));
            }
        }
        Ok(RangeSet(ranges))
    }

    /// The ranges, in the order they were configured and are used.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// True when one of the ranges can give the address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|r| r.contains(address))
    }

    /// The range from whose start to whose end the address lies, even when it is that range's gateway.
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|r| r.spans(address))
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Checks that no two sets of a network share an address.
///
/// # Errors
/// [`Error::Overlap`], naming the first two ranges that do.
pub fn check_disjoint(sets: &[RangeSet]) -> Result<()> {
    for (i, set) in sets.iter().enumerate() {
        for a in set.ranges() {
            for b in sets[i + 1..].iter().flat_map(RangeSet::ranges) {
                if a.overlaps(b) {
                    return Err(Error::Overlap(a.to_string(), b.to_string()));
                }
            }
        }
    }
    Ok(())
}

/// The ranges of all sets, for error messages.
pub(crate) fn list(sets: &[RangeSet]) -> String {
    sets.iter().map(RangeSet::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str, start: &str, end: &str, gateway: &str) -> Result<Range> {
        let address = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        Range::new(subnet.parse().unwrap(), address(start), address(end), address(gateway))
    }

    fn error(subnet: &str, start: &str, end: &str, gateway: &str) -> String {
        range(subnet, start, end, gateway).unwrap_err().to_string()
    }

    #[test]
    fn what_is_left_out_is_filled_in_as_host_local_does() {
        let v4 = range("10.1.2.0/24", "", "", "").unwrap();
        assert_eq!(
            (v4.to_string().as_str(), v4.gateway.to_string().as_str()),
            ("10.1.2.1-10.1.2.254", "10.1.2.1")
        );
        let v6 = range("fd00::/126", "", "", "").unwrap();
        assert_eq!(
            (v6.to_string().as_str(), v6.gateway.to_string().as_str()),
            ("fd00::1-fd00::3", "fd00::1")
        );
        let all = range("10.1.2.0/24", "10.1.2.9", "10.1.2.9", "192.0.2.1").unwrap();
        assert!(all.contains("10.1.2.9".parse().unwrap()));
        assert!(!all.contains("10.1.2.10".parse().unwrap()));
        assert_eq!(range("10.1.2.0/24", "::ffff:10.1.2.3", "", "").unwrap().start.to_string(), "10.1.2.3");
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let small = "is too small to give addresses from: the smallest is";
        assert_eq!(error("10.1.2.0/31", "", "", ""), format!("subnet 10.1.2.0/31 {small} /30"));
        assert_eq!(error("fd00::/127", "", "", ""), format!("subnet fd00::/127 {small} /126"));
        assert_eq!(
            error("10.1.2.3/24", "", "", ""),
            "subnet 10.1.2.3/24 has host bits set: the network address is 10.1.2.0/24"
        );
        assert_eq!(
            error("10.1.2.0/24", "10.1.3.1", "", ""),
            "rangeStart 10.1.3.1 is not in subnet 10.1.2.0/24"
        );
        assert_eq!(error("10.1.2.0/24", "", "fd00::1", ""), "rangeEnd fd00::1 is not in subnet 10.1.2.0/24");
        assert_eq!(
            error("10.1.2.0/24", "10.1.2.9", "10.1.2.8", ""),
            "range of 10.1.2.0/24 ends at 10.1.2.8, before its start 10.1.2.9"
        );
    }

    #[test]
    fn gateway_of_the_other_family_is_accepted() {
        let other = range("10.1.2.0/24", "", "", "fd00::1").unwrap();
        assert_eq!(other.gateway.to_string(), "fd00::1");
        assert!(other.contains("10.1.2.1".parse().unwrap()));
    }

    #[test]
    fn sets_are_of_one_family_and_share_no_address() {
        let a = range("10.1.2.0/24", "10.1.2.1", "10.1.2.20", "").unwrap();
        let b = range("10.1.2.0/24", "10.1.2.20", "10.1.2.30", "").unwrap();
        let six = range("fd00::/64", "", "", "").unwrap();
        let message = |r: Vec<Range>| RangeSet::new(r).unwrap_err().to_string();
        let overlap = "ranges 10.1.2.1-10.1.2.20 and 10.1.2.20-10.1.2.30 overlap";
        assert_eq!(message(vec![a.clone(), b.clone()]), overlap);
        assert!(message(vec![a.clone(), six.clone()]).ends_with("of one set are of different families"));
        assert_eq!(message(Vec::new()), "a range set needs at least one range");
        let set = |r: &Range| RangeSet::new(vec![r.clone()]).unwrap();
        check_disjoint(&[set(&a), set(&six)]).unwrap();
        assert_eq!(check_disjoint(&[set(&a), set(&six), set(&b)]).unwrap_err().to_string(), overlap);
    }
}
