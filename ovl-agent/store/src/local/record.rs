//! How the store's records are written: the head under `m`, each key under `k` and its name.

use crate::{LeaseId, Revision};

/// The key of the head.
pub(super) const HEAD: &[u8] = b"m";
/// What stands before each key.
pub(super) const KEY: u8 = b'k';
/// The form that this version writes. Version 1 did not note when a key was made.
const VERSION: u8 = 2;
/// Marks a record of version 2 in its first number, which is above 0 in one of version 1.
const MARK: Revision = Revision::MIN;

/// What is known of the whole store: version, revision and cluster, 17 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) revision: Revision,
    pub(super) cluster: u64,
}

/// Why a head cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHead {
    /// It was written by a newer version; the data is sound.
    Newer,
    Damaged,
}

impl Head {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(self.revision.to_be_bytes());
        bytes.extend(self.cluster.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Head, BadHead> {
        let (&version, rest) = bytes.split_first().ok_or(BadHead::Damaged)?;
        if version > VERSION {
            return Err(BadHead::Newer);
        }
        let (revision, cluster) = rest.split_first_chunk().ok_or(BadHead::Damaged)?;
        let head = Head {
            revision: Revision::from_be_bytes(*revision),
            cluster: u64::from_be_bytes(cluster.try_into().map_err(|_| BadHead::Damaged)?),
        };
        if (1..=VERSION).contains(&version) && head.revision > 0 { Ok(head) } else { Err(BadHead::Damaged) }
    }
}

/// The record of one key: when it was made and changed, its lease (0: none), its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    /// Of a record of version 1: when it was changed last.
    pub(super) created: Revision,
    pub(super) changed: Revision,
    pub(super) lease: LeaseId,
    pub(super) value: &'a [u8],
}

impl<'a> Record<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24 + self.value.len());
        bytes.extend((self.created | MARK).to_be_bytes());
        bytes.extend(self.changed.to_be_bytes());
        bytes.extend(self.lease.to_be_bytes());
        bytes.extend(self.value);
        bytes
    }

    /// None: it is damaged.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Record<'a>> {
        let (first, mut rest) = bytes.split_first_chunk()?;
        let first = Revision::from_be_bytes(*first);
        let (created, mut changed) = (first & !MARK, first);
        if first < 0 {
            let (second, after) = rest.split_first_chunk()?;
            (changed, rest) = (Revision::from_be_bytes(*second), after);
        }
        let (lease, value) = rest.split_first_chunk()?;
        Some(Record { created, changed, lease: LeaseId::from_be_bytes(*lease), value })
    }
}

/// The key of the record of `key`.
pub(super) fn named(key: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + key.len());
    bytes.push(KEY);
    bytes.extend(key.as_bytes());
    bytes
}
