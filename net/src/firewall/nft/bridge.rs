//! Bridges with attachments: where packets that come in by one may have their source, and what may be forwarded.
//!
//! A bridge is an element in some of the sets that the table's rules ask, from its first attachment until it has none (a
//! guarded one until it is deleted). An attachment itself is nothing here, so one more of a known bridge is a question.

use super::element::{Key, Map, Value};
use super::wire::text;
use super::{Nftables, Wanted};
use crate::firewall::forward;
use crate::names::{BRIDGE_ALIAS, Owner};
use crate::{Link, Netlink, Result};
use ipnetwork::IpNetwork;
use nix::net::if_::{if_indextoname, if_nametoindex};
use std::collections::BTreeSet;

/// What the packet filter does about a bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BridgeRules {
    /// The link that has the gateway's addresses: the bridge, or its leg in a VLAN.
    pub link: String,
    /// Its index.
    pub index: u32,
    /// Packets that come in by another link have no source that is routed to this one.
    pub protected: bool,
    /// Packets that come in by this link have a source that is routed back by it.
    pub strict: bool,
    /// Only answers, published ports and traffic of the bridge itself are forwarded into it.
    pub guarded: bool,
    /// Nothing is forwarded into it or out of it, and nothing that came in by it reaches a service of Weft on the host.
    pub closed: bool,
    /// Nothing that came in by it is forwarded back to it, but what comes through published ports.
    pub isolated: bool,
    /// What came in by it for a published port goes to the port's proxy on the host, where it has one ([`SERVICE_MARK`]).
    /// br_netfilter bridges what it translated to the same bridge, and the kernel lets no frame pass between isolated ports.
    ///
    /// [`SERVICE_MARK`]: crate::firewall::SERVICE_MARK
    pub proxied: bool,
    /// Destinations to which nothing is masqueraded.
    pub except: Vec<IpNetwork>,
}

impl BridgeRules {
    /// The elements of the bridge.
    fn keys(&self) -> impl Iterator<Item = Key> {
        let maps = [
            (self.protected, Map::Bridges),
            (self.strict, Map::Strict),
            (self.guarded, Map::Guarded),
            (self.closed, Map::Closed),
            (self.closed, Map::Sealed),
            (self.isolated, Map::Isolated),
            (self.proxied, Map::Proxied),
            (self.guarded || self.closed || self.isolated, Map::BridgePairs),
        ];
        maps.into_iter().filter(|(is_in, _)| *is_in).map(|(_, map)| key(map, &self.link, self.index))
    }

    /// Whether there is any rule.
    pub fn has_any(&self) -> bool {
        self.keys().next().is_some()
    }

    pub(super) fn wanted(&self, owner: &Owner, masqueraded: &[IpNetwork]) -> Wanted {
        let mut wanted = Wanted::default();
        wanted.masquerade(owner, masqueraded, &self.except);
        self.keys().for_each(|key| wanted.element(key, Value::None, ""));
        wanted.sorted()
    }
}

fn key(map: Map, link: &str, index: u32) -> Key {
    if map == Map::Bridges { Key::index(map, index) } else { Key::bridge(map, link) }
}

/// Returns the elements that a bridge of this name may have.
pub(super) fn keys_of(link: &str) -> Vec<Key> {
    let index = if_nametoindex(link).unwrap_or_default();
    Map::OF_BRIDGES.into_iter().map(|map| key(map, link, index)).collect()
}

/// The link that an element names; `None` when it is gone.
fn link_of(key: &Key) -> Option<String> {
    match key.map {
        Map::Bridges => {
            let index = u32::from_ne_bytes(*key.bytes.first_chunk::<4>()?);
            // nix 0.31 returns an empty name for a link that does not exist.
            if_indextoname(index).ok()?.into_string().ok().filter(|name| !name.is_empty())
        }
        _ => Some(text(&key.bytes)).filter(|name| if_nametoindex(name.as_str()).is_ok()),
    }
}

/// Whether a link of Weft's attachments is a port of this bridge, or of the bridge whose VLAN leg this is.
fn has_attachments(netlink: &mut Netlink, link: &str) -> Result<bool> {
    let Some(link) = netlink.link(link)? else { return Ok(false) };
    let bridge = match (&link.bridge, link.peer_index) {
        (None, Some(peer)) => netlink.links()?.into_iter().find(|l| l.index == peer).and_then(|l| l.master),
        _ => Some(link.index),
    };
    let Some(bridge) = bridge else { return Ok(false) };
    let is_attachment = |link: &Link| {
        link.alias.as_deref().is_some_and(|alias| alias.starts_with("weft:") && alias != BRIDGE_ALIAS)
    };
    Netlink::open()?.any_link_of_master(bridge, is_attachment)
}

impl Nftables {
    /// Puts an attachment's bridge under these rules, and masquerades what leaves these of the attachment's addresses, in
    /// one transaction; in none when there is nothing to add. Returns whether the bridge was not under all of these rules
    /// before.
    ///
    /// The caller sees to it that no [`Nftables::forget_unused_bridges`] runs from when the attachment's link is a port of
    /// the bridge until this returns.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] when the kernel has no nftables; the kernel's refusal.
    pub fn attach_bridge(&mut self, owner: &Owner, masq: &[IpNetwork], rules: &BridgeRules) -> Result<bool> {
        let wanted = rules.wanted(owner, masq);
        self.forget_others(masq, &wanted)?;
        self.put(wanted)
    }

    /// Fails, saying what, when something of [`Nftables::attach_bridge`] is missing or differs.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`]; the kernel's refusal.
    pub fn check_bridge(&mut self, owner: &Owner, masq: &[IpNetwork], rules: &BridgeRules) -> Result<()> {
        self.check(&rules.wanted(owner, masq))
    }

    /// Returns the bridges under rules that have no attachment any more; guarded ones stay under theirs.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn unused_bridges(&mut self) -> Result<Vec<String>> {
        let (mut links, mut guarded) = (BTreeSet::new(), BTreeSet::new());
        for map in [Map::Bridges, Map::Strict, Map::Closed, Map::Isolated] {
            self.socket.elements(map, |e| links.extend(link_of(&e.key)))?;
        }
        self.socket.elements(Map::Guarded, |e| guarded.extend(link_of(&e.key)))?;
        let candidates: Vec<_> = links.difference(&guarded).cloned().collect();
        let mut unused = Vec::new();
        if !candidates.is_empty() {
            let mut netlink = Netlink::open()?;
            for link in candidates {
                if !has_attachments(&mut netlink, &link)? {
                    unused.push(link);
                }
            }
        }
        Ok(unused)
    }

    /// Removes the rules of [`Nftables::unused_bridges`]. See [`Nftables::attach_bridge`].
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn forget_unused_bridges(&mut self) -> Result<()> {
        let unused = self.unused_bridges()?;
        let keys = unused.iter().flat_map(|link| keys_of(link)).collect();
        self.delete(keys, &|_| true)?;
        forward::withdraw_where(&|name| unused.iter().any(|link| link == name)).map(drop)
    }

    /// Removes the rules of bridges that are gone.
    pub(super) fn remove_rules_of_gone_bridges(&mut self) -> Result<()> {
        let mut gone = Vec::new();
        for map in Map::OF_BRIDGES {
            self.socket.elements(map, |e| gone.extend(link_of(&e.key).is_none().then_some(e.key)))?;
        }
        if gone.is_empty() {
            return Ok(());
        }
        self.delete(gone, &|_| true)?;
        // Names of the overlay agent's rules have a slash, which no link's has.
        forward::withdraw_where(&|name| !name.contains('/') && if_nametoindex(name).is_err()).map(drop)
    }
}
