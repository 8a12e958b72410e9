//! Which address comes next: those never used in ascending order, then the one released longest ago.
//!
//! Each range has a cursor over the addresses it has not looked at yet, and a list of released ones by age. Both
//! belong to the range's bounds: a range whose bounds were edited starts over, and its cursor, on its way, adopts what
//! lists of other bounds hold, so that no address is lost and each is passed once. Only when a range has nothing left
//! are addresses looked for that were released to another range's list meanwhile.
use std::collections::HashSet;
use std::net::IpAddr;

use crate::address::{address, number};
use crate::error::{Error, Result};
use crate::keys::{self, Net, RangeId};
use crate::lmdb::{Tx, View};
use crate::range::{Range, RangeSet};
use crate::record::{self, Released};

/// Where a range's never used addresses begin, and how many are left; after the range's end come those at its start,
/// since host-local's ranges are taken over in the middle of their round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    next: u128,
    left: u128,
}

impl Cursor {
    fn new(range: &Range, after: Option<IpAddr>) -> Cursor {
        let (start, end) = (number(range.start), number(range.end));
        let next = match after.map(number) {
            Some(last) if last < end => last + 1,
            _ => start,
        };
        // A range of all 2^128 addresses would be counted as one too few: saturated, it lasts long enough.
        Cursor { next, left: (end - start).saturating_add(1) }
    }

    fn step(&mut self, range: &Range) -> Option<IpAddr> {
        self.left = self.left.checked_sub(1)?;
        let current = address(range.family(), self.next);
        self.next = if current >= range.end { number(range.start) } else { self.next + 1 };
        Some(current)
    }

    fn encode(self) -> Vec<u8> {
        [self.next.to_be_bytes(), self.left.to_be_bytes()].concat()
    }

    /// Reads a cursor, which must be within its range: it says what is given out.
    pub(crate) fn decode(range: RangeId, bytes: &[u8]) -> Result<Cursor> {
        let (start, end) = (number(range.start), number(range.end));
        let fields = || {
            let (next, rest) = bytes.split_first_chunk::<16>()?;
            let left = <[u8; 16]>::try_from(rest).ok()?;
            let cursor = Cursor { next: u128::from_be_bytes(*next), left: u128::from_be_bytes(left) };
            let within =
                (start..=end).contains(&cursor.next) && cursor.left <= (end - start).saturating_add(1);
            within.then_some(cursor)
        };
        fields().ok_or_else(|| Error::damaged("the cursor of a range cannot be read"))
    }
}

/// What the cursor meets at an address.
enum Met {
    /// Never used: it can be given.
    New,
    /// Leased, or in the range's own list.
    Known,
    /// Reserved or a gateway: kept in the list for when it no longer is.
    Kept,
    /// In the list of other bounds.
    Elsewhere(Released),
}

fn meet(view: View<'_>, net: Net, range: &Range, reserved: &HashSet<IpAddr>, at: IpAddr) -> Result<Met> {
    if view.get(&keys::at(keys::LEASE, net, at))?.is_some() {
        return Ok(Met::Known);
    }
    match view.released(net, at)? {
        Some(r) if r.range == Some(RangeId::of(range)) => Ok(Met::Known),
        Some(r) => Ok(Met::Elsewhere(r)),
        None if at == range.gateway || reserved.contains(&at) => Ok(Met::Kept),
        None => Ok(Met::New),
    }
}

impl View<'_> {
    pub(crate) fn released(&self, net: Net, address: IpAddr) -> Result<Option<Released>> {
        self.get(&keys::at(keys::RELEASED_AT, net, address))?.map(Released::decode).transpose()
    }

    fn cursor(&self, net: Net, range: &Range) -> Result<Cursor> {
        let id = RangeId::of(range);
        match self.get(&keys::cursor(net, id))? {
            Some(bytes) => Cursor::decode(id, bytes),
            None => Ok(Cursor::new(range, self.hint(net, range)?.map(|(_, last)| last))),
        }
    }

    /// Host-local's last address that lies in the range, and its key.
    fn hint(&self, net: Net, range: &Range) -> Result<Option<(Vec<u8>, IpAddr)>> {
        for entry in self.scan(&keys::prefix(keys::HINT, net))? {
            let (key, value) = entry?;
            let last = record::decode_address(value)?;
            if range.spans(last) {
                return Ok(Some((key.to_vec(), last)));
            }
        }
        Ok(None)
    }

    /// The oldest released address of a range that may be given, with its release number.
    fn oldest(&self, net: Net, range: &Range, reserved: &HashSet<IpAddr>) -> Result<Option<(u64, IpAddr)>> {
        let prefix = keys::released(net, RangeId::of(range));
        for entry in self.scan(&prefix)? {
            let (key, value) = entry?;
            let address = record::decode_address(value)?;
            if address != range.gateway && !reserved.contains(&address) {
                let seq = <[u8; 8]>::try_from(&key[prefix.len()..]);
                let seq =
                    seq.map_err(|_| Error::damaged("the place of a released address cannot be read"))?;
                return Ok(Some((u64::from_be_bytes(seq), address)));
            }
        }
        Ok(None)
    }

    /// A released address within the range that is in the list of other bounds, or of none.
    fn stray(&self, net: Net, range: &Range, reserved: &HashSet<IpAddr>) -> Result<Option<IpAddr>> {
        let at = |address| keys::at(keys::RELEASED_AT, net, address);
        for entry in self.between(&at(range.start), &at(range.end))? {
            let (key, value) = entry?;
            let (_, address) =
                keys::split_at(key).ok_or_else(|| Error::damaged("a released address cannot be read"))?;
            let elsewhere = Released::decode(value)?.range != Some(RangeId::of(range));
            if elsewhere && address != range.gateway && !reserved.contains(&address) {
                return Ok(Some(address));
            }
        }
        Ok(None)
    }

    /// True when the set has an address to give, without giving it.
    pub(crate) fn has_free(&self, net: Net, set: &RangeSet) -> Result<bool> {
        let reserved = HashSet::new();
        for range in set.ranges() {
            if self.oldest(net, range, &reserved)?.is_some() || self.stray(net, range, &reserved)?.is_some() {
                return Ok(true);
            }
            let mut cursor = self.cursor(net, range)?;
            while let Some(at) = cursor.step(range) {
                if let Met::New = meet(*self, net, range, &reserved, at)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

impl Tx<'_, '_> {
    /// Picks the next address of the set, and says whether it was never given before. It is not yet leased: the caller does
    /// that, in this transaction.
    pub(crate) fn next_free<'s>(
        &mut self,
        net: Net,
        set: &'s RangeSet,
        reserved: &HashSet<IpAddr>,
    ) -> Result<Option<(&'s Range, IpAddr, bool)>> {
        for range in set.ranges() {
            if let Some(address) = self.never_used(net, range, reserved)? {
                return Ok(Some((range, address, true)));
            }
        }
        let mut oldest: Option<(u64, IpAddr, &Range)> = None;
        for range in set.ranges() {
            if let Some((seq, address)) = self.view().oldest(net, range, reserved)?
                && oldest.is_none_or(|(least, ..)| seq < least)
            {
                oldest = Some((seq, address, range));
            }
        }
        if let Some((_, address, range)) = oldest {
            return Ok(Some((range, address, false)));
        }
        for range in set.ranges() {
            if let Some(address) = self.view().stray(net, range, reserved)? {
                return Ok(Some((range, address, false)));
            }
        }
        Ok(None)
    }

    /// Moves the cursor to the next address that was never used.
    fn never_used(&mut self, net: Net, range: &Range, reserved: &HashSet<IpAddr>) -> Result<Option<IpAddr>> {
        let id = RangeId::of(range);
        let key = keys::cursor(net, id);
        let mut cursor = self.view().cursor(net, range)?;
        if cursor.left == 0 {
            return Ok(None);
        }
        if self.view().get(&key)?.is_none()
            && let Some((hint, _)) = self.view().hint(net, range)?
        {
            self.delete(&hint)?;
        }
        let mut found = None;
        while let Some(at) = cursor.step(range) {
            match meet(self.view(), net, range, reserved, at)? {
                Met::New => {
                    found = Some(at);
                    break;
                }
                Met::Known => {}
                Met::Kept => self.list(net, Some(id), at)?,
                Met::Elsewhere(released) => {
                    self.unlist(net, at)?;
                    self.enlist(net, at, Released { range: Some(id), seq: released.seq })?;
                }
            }
        }
        self.put(&key, &cursor.encode())?;
        Ok(found)
    }

    /// Puts an address behind all others that were released.
    pub(crate) fn list(&mut self, net: Net, range: Option<RangeId>, address: IpAddr) -> Result<()> {
        let mut meta = self.view().meta()?;
        let seq = meta.next_seq;
        meta.next_seq += 1; // 2^64 releases do not happen
        self.put(keys::META, &meta.encode())?;
        self.enlist(net, address, Released { range, seq })
    }

    fn enlist(&mut self, net: Net, address: IpAddr, released: Released) -> Result<()> {
        self.put(&keys::at(keys::RELEASED_AT, net, address), &released.encode())?;
        match released.range {
            Some(id) => {
                self.put(&keys::released_seq(net, id, released.seq), &record::encode_address(address))
            }
            None => Ok(()),
        }
    }

    /// Takes an address out of whichever list it is in.
    pub(crate) fn unlist(&mut self, net: Net, address: IpAddr) -> Result<()> {
        let Some(released) = self.view().released(net, address)? else { return Ok(()) };
        self.delete(&keys::at(keys::RELEASED_AT, net, address))?;
        if let Some(id) = released.range {
            self.delete(&keys::released_seq(net, id, released.seq))?;
        }
        Ok(())
    }
}
