//! Frames with a false source: a container that is watched can only send from the hardware address that it was given (the
//! reference bridge plugin's `macspoofchk`), one that is bound from its IP addresses alone.
//!
//! A container is an element in sets that the tables' rules ask, and in maps by which these are found again without
//! being told its addresses, which a DEL may not know. They go by the name of the host's end of its veth, so they may come
//! before it does, and nothing passes unwatched.

use super::element::{Element, Key, Map, Value};
use super::socket::Question;
use super::table::Table;
use super::{Nftables, Wanted};
use crate::firewall::is_stale;
use crate::{Result, names, names::Owner};
use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv6Addr};

/// So many addresses of a port are asked for together.
const STEP: u32 = 8;

/// What a bound container may send from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its addresses. The link-local one that is made from the hardware address is another.
    pub addresses: &'a [IpNetwork],
    /// Whether IPv6 packets are looked at too; else they may have any source.
    pub ipv6: bool,
}

/// The link-local address that the kernel makes from a hardware address (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let word = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}

/// What stands in the table for a watched container.
pub(super) fn watched(owner: &Owner, mac: [u8; 6]) -> Wanted {
    let (port, tag) = (owner.host_veth(), owner.tag());
    let mut wanted = Wanted::default();
    wanted.element(Key::link(Map::Watched, &port), Value::None, &tag);
    wanted.element(Key::source(&port, mac), Value::None, &tag);
    wanted.element(Key::link(Map::SourceOf, &port), Value::mac(mac), &tag);
    wanted.sorted()
}

/// What stands in the table for a bound container, which is watched too.
pub(super) fn bound(owner: &Owner, sources: &Sources<'_>) -> Wanted {
    let (port, tag) = (owner.host_veth(), owner.tag());
    let mut wanted = watched(owner, sources.mac);
    let mut addresses: Vec<IpAddr> = sources.addresses.iter().map(IpNetwork::ip).collect();
    wanted.element(Key::link(Map::Bound, &port), Value::None, &tag);
    if sources.ipv6 {
        wanted.element(Key::link(Map::Bound6, &port), Value::None, &tag);
        addresses.push(link_local(sources.mac).into());
    }
    addresses.sort();
    addresses.dedup();
    for (number, addr) in (0..).zip(addresses) {
        wanted.element(Key::address_of(&port, number), Value::mapped(addr), &tag);
        let maps: &[Map] =
            if addr.is_ipv4() { &[Map::Addresses4] } else { &[Map::Addresses6, Map::Targets6] };
        for map in maps {
            wanted.element(Key::port_address(*map, &port, addr), Value::None, &tag);
        }
    }
    wanted.sorted()
}

impl Nftables {
    /// Drops the frames that come out of the owner's container from another hardware address than `mac`, before its bridge
    /// sees them. Its veth need not exist yet. Told again with another address, that one counts.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] when the kernel has no nftables for bridges.
    pub fn watch(&mut self, owner: &Owner, mac: [u8; 6]) -> Result<()> {
        self.put(watched(owner, mac)).map(drop)
    }

    /// As [`Nftables::watch`], and drops what has another source than these addresses: packets of IP, ARP's sender, and the
    /// target of a neighbour advertisement. Only the unspecified address passes too. Frames of other kinds are dropped.
    ///
    /// # Errors
    /// As [`Nftables::watch`].
    pub fn bind(&mut self, owner: &Owner, sources: &Sources<'_>) -> Result<()> {
        let wanted = bound(owner, sources);
        // What an earlier attachment left would be allowed as well.
        let found = self.of_port(owner)?.1;
        let is_old = |e: &&Element| owner.same(&e.tag) && !wanted.elements.contains(e);
        let old: Vec<Element> = found.iter().filter(is_old).cloned().collect();
        if !old.is_empty() {
            let mut keys = self.companions(&old)?;
            keys.extend(old.into_iter().map(|element| element.key));
            self.delete(keys, &|tag| owner.same(tag))?;
        }
        self.put(wanted).map(drop)
    }

    /// Takes that back. It need not be told the addresses, and looks up what is the owner's alone, however many there are.
    pub fn unwatch(&mut self, owner: &Owner) -> Result<()> {
        // Most hosts watch no container.
        let mut is_there = true;
        self.socket.ask(&[Question::Table(Table::Bridge)], |_, answer| {
            is_there = !matches!(answer, Err(libc::ENOENT));
        })?;
        if !is_there {
            return Ok(());
        }
        let (mut keys, found) = self.of_port(owner)?;
        keys.extend(self.companions(&found)?);
        let removed = self.delete(keys, &|tag| owner.same(tag))?;
        if removed > 0 && found.is_empty() {
            // Restored between the two looks: the others are there as well.
            let keys = self.search(Table::Bridge, &|_| true, &|tag| owner.same(tag))?;
            self.delete(keys, &|tag| owner.same(tag))?;
        }
        Ok(())
    }

    /// The keys under which the owner's port may be found by its name alone, and what is there.
    fn of_port(&mut self, owner: &Owner) -> Result<(Vec<Key>, Vec<Element>)> {
        let port = owner.host_veth();
        let maps = [Map::Watched, Map::SourceOf, Map::Bound, Map::Bound6];
        let mut keys: Vec<Key> = maps.map(|map| Key::link(map, &port)).into();
        let (mut all, mut found, mut first) = (Vec::new(), Vec::new(), 0);
        loop {
            keys.extend((first..first + STEP).map(|number| Key::address_of(&port, number)));
            let mut answers = self.find(&keys.iter().collect::<Vec<_>>())?;
            let has_more = answers.last().is_some_and(Option::is_some);
            found.extend(answers.drain(..).flatten());
            all.append(&mut keys);
            if !has_more {
                return Ok((all, found));
            }
            first += STEP;
        }
    }

    /// Fails, saying what, when something of [`Nftables::watch`] is missing or differs.
    pub fn check_watched(&mut self, owner: &Owner, mac: [u8; 6]) -> Result<()> {
        self.check(&watched(owner, mac))
    }

    /// Fails, saying what, when something of [`Nftables::bind`] is missing or differs.
    pub fn check_bound(&mut self, owner: &Owner, sources: &Sources<'_>) -> Result<()> {
        self.check(&bound(owner, sources))
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
