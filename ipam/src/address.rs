//! Addresses as numbers: IPv4 and IPv6 alike in a `u128`, with the family kept beside it.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address family, as the first byte of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The byte that stands for the family in keys and records.
    pub(crate) fn tag(self) -> u8 {
        match self {
            Family::V4 => 4,
            Family::V6 => 6,
        }
    }

    pub(crate) fn from_tag(tag: u8) -> Option<Family> {
        match tag {
            4 => Some(Family::V4),
            6 => Some(Family::V6),
            _ => None,
        }
    }

    /// Bytes of an address.
    pub(crate) fn len(self) -> usize {
        match self {
            Family::V4 => 4,
            Family::V6 => 16,
        }
    }
}

/// The address as a number, in which order is the order of addresses.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

/// The address of a number. Bits above an IPv4 address' 32 are dropped: callers stay within a range of the family.
pub(crate) fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(number as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

/// Appends the address in network byte order, without its family.
pub(crate) fn push(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(a) => bytes.extend_from_slice(&a.octets()),
        IpAddr::V6(a) => bytes.extend_from_slice(&a.octets()),
    }
}

/// Reads what [`push`] wrote; `bytes` must be exactly as long as an address of the family.
pub(crate) fn read(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        Family::V4 => <[u8; 4]>::try_from(bytes).ok().map(|b| IpAddr::V4(b.into())),
        Family::V6 => <[u8; 16]>::try_from(bytes).ok().map(|b| IpAddr::V6(b.into())),
    }
}
