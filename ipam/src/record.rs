//! The values of the store as bytes. Each carries enough to tell that it was not written by this crate.
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::keys::{self, RangeId};
use crate::lease::{Attachment, Lease};

/// The format this build reads and writes.
pub(crate) const VERSION: u8 = 1;

/// The record `M`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// The number the next new network gets.
    pub(crate) next_net: u32,
    /// The number the next released address gets.
    pub(crate) next_seq: u64,
}

impl Meta {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.next_net.to_be_bytes());
        bytes.extend_from_slice(&self.next_seq.to_be_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Meta> {
        let fields = || {
            let (&version, rest) = bytes.split_first()?;
            let (net, rest) = rest.split_first_chunk::<4>()?;
            let seq = <[u8; 8]>::try_from(rest).ok()?;
            let meta = Meta { next_net: u32::from_be_bytes(*net), next_seq: u64::from_be_bytes(seq) };
            (version == VERSION).then_some(meta)
        };
        fields().ok_or_else(|| Error::damaged("the head record is of an unknown format"))
    }
}

/// A lease with the range it was given from, whose list its address joins when it is released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) lease: Lease,
    pub(crate) range: Option<RangeId>,
}

impl Held {
    /// The value for `key`. A checksum over both ends it, so that a value that a crash put behind another key, or left
    /// half old, is seen.
    pub(crate) fn encode(&self, key: &[u8]) -> Vec<u8> {
        let lease = &self.lease;
        let mut bytes = Vec::with_capacity(192);
        bytes.push(VERSION);
        let since = lease.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Nanoseconds fit until the year 2554.
        bytes.extend_from_slice(&u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).to_be_bytes());
        match self.range {
            Some(range) => range.push(&mut bytes),
            None => bytes.push(0),
        }
        push_text(&mut bytes, &lease.boot);
        push_text(&mut bytes, &lease.attachment.container);
        push_text(&mut bytes, &lease.attachment.ifname);
        match &lease.netns {
            Some(netns) => {
                bytes.push(1);
                push_text(&mut bytes, netns);
            }
            None => bytes.push(0),
        }
        let sum = keys::fnv(&[key, &bytes]);
        bytes.extend_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Reads the value of `key`, which names the address; `network` is the name behind the key's number.
    pub(crate) fn decode(network: &str, key: &[u8], value: &[u8]) -> Result<Held> {
        let held = || {
            let (_, address) = keys::split_at(key)?;
            let (bytes, sum) = value.split_last_chunk::<8>()?;
            if keys::fnv(&[key, bytes]) != u64::from_be_bytes(*sum) {
                return None;
            }
            let (&version, bytes) = bytes.split_first()?;
            let (nanos, bytes) = bytes.split_first_chunk::<8>()?;
            let (range, bytes) = match bytes.split_first()? {
                (0, rest) => (None, rest),
                _ => RangeId::split(bytes).map(|(range, rest)| (Some(range), rest))?,
            };
            let (boot, bytes) = split_text(bytes)?;
            let (container, bytes) = split_text(bytes)?;
            let (ifname, bytes) = split_text(bytes)?;
            let (netns, bytes) = match bytes.split_first()? {
                (0, rest) => (None, rest),
                (_, rest) => split_text(rest).map(|(netns, rest)| (Some(netns), rest))?,
            };
            let lease = Lease {
                network: network.to_owned(),
                address,
                attachment: Attachment { container, ifname },
                boot,
                time: SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::from_be_bytes(*nanos)),
                netns,
            };
            (version == VERSION && bytes.is_empty()).then_some(Held { lease, range })
        };
        held().ok_or_else(|| Error::damaged(format!("a lease of network {network} cannot be read")))
    }
}

/// Where a released address is in the list of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Released {
    /// The range whose list it is in; none when it was not given from a known range.
    pub(crate) range: Option<RangeId>,
    /// Its place in the order of release.
    pub(crate) seq: u64,
}

impl Released {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(48);
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        if let Some(range) = self.range {
            range.push(&mut bytes);
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Released> {
        let fields = || {
            let (seq, rest) = bytes.split_first_chunk::<8>()?;
            let seq = u64::from_be_bytes(*seq);
            match rest {
                [] => Some(Released { range: None, seq }),
                rest => match RangeId::split(rest)? {
                    (range, []) => Some(Released { range: Some(range), seq }),
                    _ => None,
                },
            }
        };
        fields().ok_or_else(|| Error::damaged("a released address cannot be read"))
    }
}

/// An address with its family, as a value.
pub(crate) fn encode_address(address: IpAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(17);
    keys::push_address(&mut bytes, address);
    bytes
}

pub(crate) fn decode_address(bytes: &[u8]) -> Result<IpAddr> {
    match keys::split_address(bytes) {
        Some((address, [])) => Ok(address),
        _ => Err(Error::damaged("an address cannot be read")),
    }
}

/// Texts are cut at 64 KiB; names are checked to be far shorter, and no path is longer than 4 KiB.
fn push_text(bytes: &mut Vec<u8>, text: &str) {
    let len = u16::try_from(text.len()).unwrap_or(0);
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(&text.as_bytes()[..usize::from(len)]);
}

fn split_text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
    Some((String::from_utf8(text.to_vec()).ok()?, rest))
}
