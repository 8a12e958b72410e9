//! The keys of the store: one LMDB tree, where the first byte says what a record is.
//!
//! | key | value |
//! |---|---|
//! | `M` | the format's version, the next network number, the next release number |
//! | `N` name | number of the network |
//! | `n` network | its name |
//! | `L` network, address | the lease |
//! | `A` network, container, NUL, interface, NUL, address | nothing: the leases of an attachment |
//! | `R` network, range, release number | the address: what was released, oldest first |
//! | `r` network, address | range and release number, to find the record above |
//! | `C` network, range | how far never used addresses have been given out |
//! | `H` network, index | the address host-local gave out last, until a range takes its cursor from it |
//!
//! One tree and not one for each kind: a transaction in a small store then writes one page instead of five. Numbers
//! and addresses are big-endian, so that the tree's order is theirs; networks go by number as names are up to 255
//! bytes and LMDB's keys up to 511.
use std::net::IpAddr;

use crate::address::{self, Family};
use crate::lease::Attachment;
use crate::range::Range;

pub(crate) const META: &[u8] = b"M";
pub(crate) const NAME: u8 = b'N';
pub(crate) const NETWORK: u8 = b'n';
pub(crate) const LEASE: u8 = b'L';
pub(crate) const ATTACHMENT: u8 = b'A';
pub(crate) const RELEASED: u8 = b'R';
pub(crate) const RELEASED_AT: u8 = b'r';
pub(crate) const CURSOR: u8 = b'C';
pub(crate) const HINT: u8 = b'H';

/// The kinds of records that belong to one network and begin with its number.
pub(crate) const OF_NETWORK: [u8; 7] = [NETWORK, LEASE, ATTACHMENT, RELEASED, RELEASED_AT, CURSOR, HINT];

/// A network's number in the store.
pub(crate) type Net = u32;

/// Holders longer than this are cut and hashed: LMDB's keys are at most 511 bytes.
const HOLDER_MAX: usize = 400;

/// The identity of a range: with other bounds it is another range, with a cursor and a list of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RangeId {
    pub(crate) start: IpAddr,
    pub(crate) end: IpAddr,
}

impl RangeId {
    pub(crate) fn of(range: &Range) -> RangeId {
        RangeId { start: range.start, end: range.end }
    }

    /// Family, start, end: 9 or 33 bytes.
    pub(crate) fn push(self, bytes: &mut Vec<u8>) {
        bytes.push(Family::of(self.start).tag());
        address::push(bytes, self.start);
        address::push(bytes, self.end);
    }

    /// The identity at the head of `bytes`, and what follows it.
    pub(crate) fn split(bytes: &[u8]) -> Option<(RangeId, &[u8])> {
        let (start, rest) = split_address(bytes)?;
        let family = Family::of(start);
        let (end, rest) = rest.split_at_checked(family.len())?;
        Some((RangeId { start, end: address::read(family, end)? }, rest))
    }
}

/// The family and address at the head of `bytes`, and what follows.
pub(crate) fn split_address(bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let family = Family::from_tag(tag)?;
    let (address, rest) = rest.split_at_checked(family.len())?;
    Some((address::read(family, address)?, rest))
}

/// `kind` and the network's number: the head of all keys of that kind.
pub(crate) fn prefix(kind: u8, net: Net) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    key.push(kind);
    key.extend_from_slice(&net.to_be_bytes());
    key
}

pub(crate) fn name(network: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + network.len());
    key.push(NAME);
    key.extend_from_slice(network.as_bytes());
    key
}

/// The key of an address in the trees of leases (`L`) and of released addresses (`r`).
pub(crate) fn at(kind: u8, net: Net, address: IpAddr) -> Vec<u8> {
    let mut key = prefix(kind, net);
    push_address(&mut key, address);
    key
}

pub(crate) fn push_address(key: &mut Vec<u8>, address: IpAddr) {
    key.push(Family::of(address).tag());
    address::push(key, address);
}

/// The network and address of a key made by [`at`].
pub(crate) fn split_at(key: &[u8]) -> Option<(Net, IpAddr)> {
    let (net, rest) = split_net(key)?;
    match split_address(rest)? {
        (address, []) => Some((net, address)),
        _ => None,
    }
}

/// The network's number behind the first byte, and the rest of the key.
pub(crate) fn split_net(key: &[u8]) -> Option<(Net, &[u8])> {
    let (net, rest) = key.get(1..)?.split_first_chunk::<4>()?;
    Some((Net::from_be_bytes(*net), rest))
}

/// The head of an attachment's keys; an address follows. Two very long names may share one: the lease decides.
pub(crate) fn attachment(net: Net, attachment: &Attachment) -> Vec<u8> {
    let mut key = prefix(ATTACHMENT, net);
    let head = key.len();
    key.extend_from_slice(attachment.container.as_bytes());
    key.push(0);
    key.extend_from_slice(attachment.ifname.as_bytes());
    if key.len() - head > HOLDER_MAX {
        let hash = fnv(&[&key[head..]]);
        key.truncate(head + HOLDER_MAX - 9);
        key.push(1); // in no name, so a cut key is never a whole one
        key.extend_from_slice(&hash.to_be_bytes());
    }
    key.push(0);
    key
}

pub(crate) fn released(net: Net, range: RangeId) -> Vec<u8> {
    let mut key = prefix(RELEASED, net);
    range.push(&mut key);
    key
}

pub(crate) fn released_seq(net: Net, range: RangeId, seq: u64) -> Vec<u8> {
    let mut key = released(net, range);
    key.extend_from_slice(&seq.to_be_bytes());
    key
}

pub(crate) fn cursor(net: Net, range: RangeId) -> Vec<u8> {
    let mut key = prefix(CURSOR, net);
    range.push(&mut key);
    key
}

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>): guards against accidents, not against people.
pub(crate) fn fnv(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|p| p.iter());
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}
