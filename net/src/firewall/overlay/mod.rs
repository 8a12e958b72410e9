//! What may pass between overlay networks and hosts: the table `inet weft-overlay`, declared whole by the overlay agent.
//!
//! VXLAN packets of Weft's networks are taken from known hosts only, and none is forwarded to a host: masqueraded, a
//! container's would seem to be its host's; with a forged source it would seem to be another's. So the table is there on
//! every node that knows of others, also where no network has a part. Other packets are forwarded within a network; into a network from elsewhere only
//! as answers or to published ports; out of a network unless it is internal, and those have no way in either. Links belong
//! to networks by their device groups. A container sends from its own addresses alone: a packet whose source is not routed back
//! by the link that it came by is dropped, and nobody else on the host sends from a network's subnet. So a network's own
//! packets from other hosts may also come without encapsulation, by the underlay's link and from the network's subnet.
//! No container of the host, of whichever network, connects to the cluster's store.
//!
//! The frame ([`frame`]) is replaced as a whole when it differs from the wanted one; what is in its sets is compared and
//! changed by element. Each change is one transaction, so no packet ever meets half a table.

mod frame;

use super::nft::base::Services;
use super::nft::element::{Key, Map, key_element, subnet};
use super::nft::plan::{push_deletions, push_lists};
use super::nft::socket::{Socket, refused};
use super::nft::table::Table;
use super::nft::wire::{Batch, flag, msg};
use crate::{Error, Refusal, Result};
use frame::Frame;
use ipnetwork::IpNetwork;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The table's name, and its family (NFPROTO_INET).
pub const NAME: &str = "weft-overlay";
/// See [`NAME`].
pub const FAMILY: u8 = 1;

/// So many elements that were not seen are asked for one by one.
const UNSEEN: usize = 1024;

/// What the table is to let pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// The UDP port at which this host takes VXLAN packets.
    pub port: u16,
    /// VNIs (1 to 16777215) whose packets are looked at; others' pass.
    pub vnis: BTreeSet<u32>,
    /// Underlay addresses of hosts whose packets with those VNIs are taken.
    pub vteps: BTreeSet<IpAddr>,
    /// Underlay addresses of all other nodes. Nothing that came by another link than the underlay's is forwarded to them as
    /// VXLAN, or from their addresses, on a node without a part in any network too.
    pub nodes: BTreeSet<IpAddr>,
    /// The UDP ports at which nodes take VXLAN packets.
    pub ports: BTreeSet<u16>,
    /// This node's underlay address: VXLAN packets to another address of it are not taken. None: those to any are.
    pub vtep: Option<IpAddr>,
    /// Device groups of the networks.
    pub groups: BTreeSet<u32>,
    /// Those of networks without a way in and out.
    pub internal: BTreeSet<u32>,
    /// Those of networks into which everything gets that comes by the underlay's link.
    pub routed: BTreeSet<u32>,
    /// Subnets of the networks.
    pub nets: BTreeSet<IpNetwork>,
    /// Those whose packets come and go by the underlay's link as they are, and the groups of their networks. Subnets of one
    /// group do not overlap.
    pub direct: BTreeSet<(IpNetwork, u32)>,
    /// The interface index of the underlay's link; 0 when there is none, then nothing is direct.
    pub underlay: u32,
    /// Addresses and TCP ports of the cluster's store, which are closed to what comes by a link of
    /// [`crate::names::CONTAINERS_GROUP`].
    pub stores: BTreeSet<(IpAddr, u16)>,
    /// TCP ports at which this very node has the store: at every address of it they are closed to the same.
    pub stores_here: BTreeSet<u16>,
}

impl Rules {
    /// Whether the table has something to do.
    pub fn is_needed(&self) -> bool {
        !(self.vnis.is_empty() && self.nodes.is_empty()) || self.closes_store()
    }

    /// Whether there is a store to be closed to containers.
    fn closes_store(&self) -> bool {
        !(self.stores.is_empty() && self.stores_here.is_empty())
    }

    /// What the frame depends on.
    fn frame(&self) -> (u16, u32, Option<IpAddr>, bool) {
        (self.port, self.underlay, self.vtep, self.closes_store())
    }
}

/// The table, of the network namespace in which it was opened.
pub struct OverlayTable {
    socket: Socket,
    /// How the table knows the host's services of Weft.
    services: Services,
    /// What the table has, as far as it was changed from here.
    written: Option<Rules>,
}

/// What has to be done.
enum Plan {
    /// The frame is missing, or is another one: everything anew. Is there a table to be deleted first?
    Replace(bool),
    /// Elements that are too many and that are missing.
    Change(Vec<Key>, Vec<Key>),
}

impl OverlayTable {
    /// Opens a netlink socket in the thread's network namespace. Nothing is asked of the kernel yet. Keep it open: closing it
    /// soon after a deletion waits for the kernel (some 20 ms).
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] when the kernel has no nftables.
    pub fn open() -> Result<Self> {
        Ok(OverlayTable { socket: Socket::open()?, services: Services::default(), written: None })
    }

    /// Makes the table let pass just this; true when something had to be changed. The first time, and after
    /// [`OverlayTable::forget`], what the kernel has is read and mended; later only the differences to the last time are
    /// sent, unless the kernel refuses them because somebody changed the table.
    ///
    /// # Errors
    /// The kernel's refusal. Nothing was changed then, and the next call reads what is there.
    pub fn apply(&mut self, rules: &Rules) -> Result<bool> {
        let known = self.written.take();
        let changed = match &known {
            Some(written) if written == rules => false,
            Some(written) => {
                let plan = from_memory(written, rules);
                // Refused, it was changed by somebody else.
                self.commit(rules, plan).or_else(|_| self.mend(rules, false))?
            }
            None => self.mend(rules, false).or_else(|_| self.mend(rules, false))?,
        };
        self.written = Some(rules.clone());
        Ok(changed)
    }

    /// Makes the table let pass this too, and takes nothing away: for rules that may be out of date. Only a frame that is
    /// another is replaced, with all that is in it. True when something had to be changed.
    ///
    /// # Errors
    /// As [`OverlayTable::apply`].
    pub fn add(&mut self, rules: &Rules) -> Result<bool> {
        self.written = None;
        self.mend(rules, true)
    }

    /// Has the next [`OverlayTable::apply`] read what the kernel has.
    pub fn forget(&mut self) {
        self.written = None;
    }

    /// Removes the table, if it is there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove(&mut self) -> Result<()> {
        self.written = None;
        if !frame::exists(&mut self.socket)? {
            return Ok(());
        }
        let mut batch = self.socket.batch(Table::Overlay, None);
        push_removal(&mut batch);
        match self.socket.commit(batch)? {
            Err(errors) => errors.into_iter().find(|(errno, _)| *errno != libc::ENOENT).map_or(Ok(()), fail),
            Ok(()) => Ok(()),
        }
    }

    /// Whether VXLAN packets with a VNI from an underlay address are taken; None when there is no table, which takes all.
    /// Changes nothing.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn takes(&mut self, vni: u32, vtep: IpAddr) -> Result<Option<bool>> {
        if !frame::exists(&mut self.socket)? {
            return Ok(None);
        }
        let found = self.socket.find(&[&Key::vni(vni), &Key::vtep(vtep)])?;
        let has = |at: usize| found.get(at).is_some_and(Option::is_some);
        Ok(Some(!has(0) || has(1)))
    }

    /// The port by which notifications of changes that were made here name their maker.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// What was sent so far.
    pub fn sent(&self) -> super::nft::Sent {
        self.socket.sent
    }

    /// Compares with what the kernel has, and changes that; with `keep` no element is deleted.
    fn mend(&mut self, rules: &Rules, keep: bool) -> Result<bool> {
        let wanted = Frame::of(rules, self.services);
        let plan = match frame::read(&mut self.socket)? {
            Some(found) if found == wanted.shape() => {
                let mut has = BTreeSet::new();
                for map in Map::OVERLAY_FRAME {
                    self.socket.elements(map, |element| {
                        has.insert(element.key);
                    })?;
                }
                let wants: BTreeSet<Key> = keys(rules).collect();
                let only_in = |one: &BTreeSet<Key>, other: &BTreeSet<Key>| {
                    one.difference(other).cloned().collect::<Vec<_>>()
                };
                let unwanted = if keep { Vec::new() } else { only_in(&has, &wants) };
                Plan::Change(unwanted, self.really_missing(only_in(&wants, &has))?)
            }
            found => Plan::Replace(found.is_some()),
        };
        let replaces = matches!(plan, Plan::Replace(_));
        match self.commit(rules, plan) {
            // The batch makes all that it names: an expression is missing.
            Err(Error::Kernel { refusal: Refusal { errno: libc::ENOENT, .. }, .. })
                if replaces && self.services == Services::Marked =>
            {
                self.services = Services::All;
                self.mend(rules, keep)
            }
            committed => committed,
        }
    }

    /// Those of the elements that were not seen which are not there: not all need have been shown. Of many, all are taken for
    /// missing, which is no harm.
    fn really_missing(&mut self, mut keys: Vec<Key>) -> Result<Vec<Key>> {
        if keys.len() <= UNSEEN {
            let mut found = self.socket.find(&keys.iter().collect::<Vec<_>>())?.into_iter();
            // A range may be answered with another one that has the same first key.
            keys.retain(|key| found.next().flatten().is_none_or(|element| element.key != *key));
        }
        Ok(keys)
    }

    /// Does what a plan says in one transaction; false when it is nothing.
    fn commit(&mut self, rules: &Rules, plan: Plan) -> Result<bool> {
        let mut batch = self.socket.batch(Table::Overlay, None);
        let (old, mut new) = match plan {
            Plan::Change(old, new) => (old, new),
            Plan::Replace(there) => {
                if there {
                    push_removal(&mut batch);
                }
                Frame::of(rules, self.services).push(&mut batch);
                (Vec::new(), keys(rules).collect())
            }
        };
        push_deletions(&mut batch, &old);
        new.sort();
        push_additions(&mut batch, &new);
        if batch.len() == 0 {
            return Ok(false);
        }
        match self.socket.commit(batch)? {
            Ok(()) => Ok(true),
            Err(errors) => errors.into_iter().next().map_or(Ok(true), fail),
        }
    }
}

fn fail<T>((errno, what): (i32, String)) -> Result<T> {
    Err(refused(&what, errno))
}

fn push_removal(batch: &mut Batch) {
    batch.push("delete", msg::DELTABLE, 0, |_| {});
}

fn push_additions(batch: &mut Batch, keys: &[Key]) {
    let what = ("add elements to", msg::NEWSETELEM, flag::CREATE);
    push_lists(batch, what, keys, |key| key, key_element);
}

/// What leads from one state of the table to another.
fn from_memory(written: &Rules, rules: &Rules) -> Plan {
    if written.frame() != rules.frame() {
        return Plan::Replace(true);
    }
    let (mut old, mut new) = (Vec::new(), Vec::new());
    differences(&written.vnis, &rules.vnis, &mut old, &mut new, |vni| vec![Key::vni(*vni)]);
    differences(&written.vteps, &rules.vteps, &mut old, &mut new, |vtep| vec![Key::vtep(*vtep)]);
    differences(&written.nodes, &rules.nodes, &mut old, &mut new, |node| {
        vec![Key::node(*node), Key::path(*node)]
    });
    differences(&written.ports, &rules.ports, &mut old, &mut new, |port| vec![Key::vxlan_port(*port)]);
    differences(&written.groups, &rules.groups, &mut old, &mut new, |group| of_group(*group).into());
    differences(&written.internal, &rules.internal, &mut old, &mut new, |group| vec![internal(*group)]);
    differences(&written.routed, &rules.routed, &mut old, &mut new, |group| {
        vec![Key::group(Map::Routed, *group)]
    });
    differences(&written.direct, &rules.direct, &mut old, &mut new, |(net, group)| {
        vec![Key::direct(*net, *group)]
    });
    differences(&written.stores, &rules.stores, &mut old, &mut new, |(ip, port)| {
        vec![Key::store(*ip, *port)]
    });
    differences(&written.stores_here, &rules.stores_here, &mut old, &mut new, |port| {
        vec![Key::store_here(*port)]
    });
    differences(&outermost(written), &outermost(rules), &mut old, &mut new, |net| vec![Key::net(*net)]);
    old.sort();
    Plan::Change(old, new)
}

fn differences<T: Ord>(
    old: &BTreeSet<T>,
    new: &BTreeSet<T>,
    gone: &mut Vec<Key>,
    come: &mut Vec<Key>,
    keys: impl Fn(&T) -> Vec<Key>,
) {
    gone.extend(old.difference(new).flat_map(&keys));
    come.extend(new.difference(old).flat_map(&keys));
}

fn of_group(group: u32) -> [Key; 2] {
    [Map::Groups, Map::GroupPairs].map(|map| Key::group(map, group))
}

fn internal(group: u32) -> Key {
    Key::group(Map::Internal, group)
}

/// The subnets that lie in no other: the kernel refuses ranges that overlap. In order, one comes behind what it lies in.
fn outermost(rules: &Rules) -> BTreeSet<IpNetwork> {
    let nets: BTreeSet<IpNetwork> = rules.nets.iter().map(|net| subnet(*net)).collect();
    let mut last: Option<IpNetwork> = None;
    let outside = |net: &IpNetwork| {
        let outside = last.is_none_or(|outer| !outer.contains(net.network()));
        if outside {
            last = Some(*net);
        }
        outside
    };
    nets.into_iter().filter(outside).collect()
}

/// All that is in the sets.
fn keys(rules: &Rules) -> impl Iterator<Item = Key> {
    let vnis = rules.vnis.iter().map(|vni| Key::vni(*vni));
    let vteps = rules.vteps.iter().map(|vtep| Key::vtep(*vtep));
    let nodes = rules.nodes.iter().flat_map(|node| [Key::node(*node), Key::path(*node)]);
    let own = rules.vtep.filter(|vtep| !rules.nodes.contains(vtep)).map(Key::path);
    let ports = rules.ports.iter().map(|port| Key::vxlan_port(*port));
    let groups = rules.groups.iter().flat_map(|group| of_group(*group));
    let internal = rules.internal.iter().map(|group| internal(*group));
    let routed = rules.routed.iter().map(|group| Key::group(Map::Routed, *group));
    let direct = rules.direct.iter().map(|(net, group)| Key::direct(*net, *group));
    let nets = outermost(rules).into_iter().map(Key::net);
    let stores = rules.stores.iter().map(|(ip, port)| Key::store(*ip, *port));
    let stores = stores.chain(rules.stores_here.iter().map(|port| Key::store_here(*port)));
    let vxlan = vnis.chain(vteps).chain(nodes).chain(own).chain(ports);
    vxlan.chain(groups).chain(internal).chain(routed).chain(direct).chain(nets).chain(stores)
}
