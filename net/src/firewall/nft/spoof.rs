//! Frames with a false source address: a container that is watched can only send from the hardware address that it was
//! given (the reference bridge plugin's `macspoofchk`).
//!
//! A container is an element in each of two sets that the table's rule asks, and in a map by which both are found again.
//! They go by the name of the host's end of its veth, so they may come before it does, and nothing passes unwatched.

use super::element::{Key, Map, Value};
use super::table::Table;
use super::{Nftables, Wanted};
use crate::firewall::is_stale;
use crate::{Result, names, names::Owner};

/// What stands in the table for a container.
pub(super) fn wanted(owner: &Owner, mac: [u8; 6]) -> Wanted {
    let (port, tag) = (owner.host_veth(), owner.tag());
    let mut wanted = Wanted::default();
    wanted.element(Key::link(Map::Watched, &port), Value::None, &tag);
    wanted.element(Key::source(&port, mac), Value::None, &tag);
    wanted.element(Key::link(Map::SourceOf, &port), Value::mac(mac), &tag);
    wanted.sorted()
}

impl Nftables {
    /// Drops the frames that come out of the owner's container from another hardware address than `mac`, before its bridge
    /// sees them. Its veth need not exist yet. Told again with another address, that one counts.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] when the kernel has no nftables for bridges.
    pub fn watch(&mut self, owner: &Owner, mac: [u8; 6]) -> Result<()> {
        self.put(wanted(owner, mac)).map(drop)
    }

    /// Takes that back. It need not be told the address, and looks up what is the owner's alone, however many there are.
    pub fn unwatch(&mut self, owner: &Owner) -> Result<()> {
        let port = owner.host_veth();
        let known = [Map::Watched, Map::SourceOf].map(|map| Key::link(map, &port));
        let (keys, seen) = self.with_companions(known.into())?;
        let removed = self.delete(keys, &|tag| owner.same(tag))?;
        if removed > 0 && seen.is_some_and(|seen| seen.is_empty()) {
            // Restored between the two looks: the pair is there as well.
            let keys = self.search(Table::Bridge, &|_| true, &|tag| owner.same(tag))?;
            self.delete(keys, &|tag| owner.same(tag))?;
        }
        Ok(())
    }

    /// Fails, saying what, when something of [`Nftables::watch`] is missing or differs.
    pub fn check_watched(&mut self, owner: &Owner, mac: [u8; 6]) -> Result<()> {
        self.check(&wanted(owner, mac))
    }

    /// Removes what attachments of the network left that are not valid any more, and returns how many elements that were;
    /// `valid` as in [`crate::firewall::Firewall::gc`].
    pub fn gc_watched(&mut self, network: &str, valid: &dyn Fn(&str, &str) -> bool) -> Result<usize> {
        let network = names::clip_network(network);
        let stale = |tag: &str| is_stale(tag, &network, valid);
        let keys = self.search(Table::Bridge, &|_| true, &stale)?;
        self.delete(keys, &stale)
    }
}
