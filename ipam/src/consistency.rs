//! Whether the records of a store agree with each other: every lease with its holder's entry, every released address
//! with its place in a list. Reads all of it: once a boot, and in tests.
use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::free::Cursor;
use crate::keys::{self, Net, RangeId};
use crate::lmdb::View;
use crate::record::{Released, decode_address};
use crate::store::Store;

impl Store {
    /// Reads the whole store and checks that its records agree.
    ///
    /// # Errors
    /// [`Error::Damaged`] with the first thing that does not fit.
    pub fn check(&self) -> Result<()> {
        self.read(check)
    }
}

fn ensure(fits: bool, what: impl FnOnce() -> String) -> Result<()> {
    if fits { Ok(()) } else { Err(Error::damaged(what())) }
}

pub(crate) fn check(view: View<'_>) -> Result<()> {
    let meta = view.meta()?;
    let nets = view.nets(None)?;
    let mut known = u64::from(view.get(keys::META)?.is_some());
    for (net, network) in &nets {
        ensure(view.net(network)? == Some(*net), || format!("network {network} has lost its number"))?;
        ensure(*net < meta.next_net, || format!("network {network} has a number of the future"))?;
        known += 2 + leases(view, *net, network)? + lists(view, *net, network, meta.next_seq)?;
        for record in view.scan(&keys::prefix(keys::CURSOR, *net))? {
            let (key, value) = record?;
            match key.get(5..).and_then(RangeId::split) {
                Some((range, [])) => Cursor::decode(range, value)?,
                _ => return Err(Error::damaged(format!("a range of {network} cannot be read"))),
            };
            known += 1;
        }
        for record in view.scan(&keys::prefix(keys::HINT, *net))? {
            decode_address(record?.1)?;
            known += 1;
        }
    }
    ensure(view.len()? == known, || "there are records that belong to nothing".to_owned())
}

/// Leases and holders' entries, one to one; returns how many records they are.
fn leases(view: View<'_>, net: Net, network: &str) -> Result<u64> {
    let held = view.all_held(net, network)?;
    for h in &held {
        let mut key = keys::attachment(net, &h.lease.attachment);
        keys::push_address(&mut key, h.lease.address);
        let address = h.lease.address;
        ensure(view.get(&key)?.is_some(), || format!("{address} of {network} is missing at its holder"))?;
        let listed = view.released(net, address)?.is_some();
        ensure(!listed, || format!("{address} of {network} is both leased and released"))?;
    }
    let entries = view.scan(&keys::prefix(keys::ATTACHMENT, net))?.count();
    ensure(entries == held.len(), || format!("network {network} has holders without a lease"))?;
    Ok(2 * held.len() as u64)
}

/// Released addresses and their places, one to one; returns how many records they are.
fn lists(view: View<'_>, net: Net, network: &str, next_seq: u64) -> Result<u64> {
    let (mut count, mut places) = (0, HashSet::new());
    for record in view.scan(&keys::prefix(keys::RELEASED_AT, net))? {
        let (key, value) = record?;
        let address = keys::split_at(key).map(|(_, address)| address);
        let released = Released::decode(value)?;
        ensure(address.is_some() && released.seq < next_seq, || format!("a released address of {network}"))?;
        count += 1;
        if let Some(range) = released.range {
            let place =
                view.get(&keys::released_seq(net, range, released.seq))?.map(decode_address).transpose()?;
            ensure(place.is_some() && place == address, || {
                format!("{address:?} of {network} is not where it should be in the list of released ones")
            })?;
            places.insert(released.seq);
            count += 1;
        }
    }
    let listed = view.scan(&keys::prefix(keys::RELEASED, net))?.count();
    ensure(listed == places.len(), || format!("network {network} lists addresses that were not released"))?;
    Ok(count)
}
