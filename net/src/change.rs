//! Changes to links: veth pairs, bridges, settings of links and of bridge ports, deletion.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};

use crate::batch::Batch;
use crate::error::Result;
use crate::link::Link;
use crate::netlink::Netlink;
use crate::ns::Netns;
use crate::socket::emit;
use crate::vlan;
use crate::wire;

/// Which link a change is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On<'a> {
    /// The link with this index.
    Index(u32),
    /// The link of this name.
    Name(&'a str),
}

impl From<u32> for On<'_> {
    fn from(index: u32) -> Self {
        On::Index(index)
    }
}

impl<'a> From<&'a str> for On<'a> {
    fn from(name: &'a str) -> Self {
        On::Name(name)
    }
}

/// A veth pair: one end here, the other in a container's namespace.
#[derive(Debug, Clone)]
pub struct Veth<'a> {
    /// The near end's name.
    pub name: &'a str,
    /// The far end's name.
    pub peer: &'a str,
    /// The far end's namespace.
    pub peer_ns: &'a Netns,
    /// The near end's hardware address; None: the kernel takes a random one.
    pub mac: Option<[u8; 6]>,
    /// The far end's hardware address.
    pub peer_mac: Option<[u8; 6]>,
    /// The MTU of both ends, in bytes; None: 1500.
    pub mtu: Option<u32>,
    /// The bridge whose port the near end becomes.
    pub master: Option<u32>,
    /// The near end's device group.
    pub group: Option<u32>,
    /// The near end's alias.
    pub alias: Option<&'a str>,
    /// The near end's flags as a bridge port.
    pub port: PortSet,
    /// The near end is brought up. The far end cannot be by the same message: that is for a message in its namespace.
    pub up: bool,
}

impl<'a> Veth<'a> {
    /// A pair with nothing special, its near end up.
    pub fn new(name: &'a str, peer: &'a str, peer_ns: &'a Netns) -> Veth<'a> {
        let port = PortSet::default();
        let (mac, peer_mac, mtu, master, group, alias) = (None, None, None, None, None, None);
        Veth { name, peer, peer_ns, mac, peer_mac, mtu, master, group, alias, port, up: true }
    }
}

/// A bridge to be made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bridge<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its hardware address. With None it follows its ports' addresses, and changes with them.
    pub mac: Option<[u8; 6]>,
    /// Its MTU, in bytes.
    pub mtu: Option<u32>,
    /// VLAN filtering on.
    pub vlan_filtering: bool,
    /// The VLAN of untagged packets on a new port (0: none); None: the kernel's 1.
    pub default_pvid: Option<u16>,
    /// Its alias.
    pub alias: Option<&'a str>,
    /// Its device group.
    pub group: Option<u32>,
    /// It is brought up.
    pub up: bool,
}

/// New settings of a link; what is None stays as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkSet<'a> {
    /// The new name; the link must be told by index. Linux before 6.4 wants it down for that.
    pub name: Option<&'a str>,
    /// Up or down.
    pub up: Option<bool>,
    /// The bridge whose port it becomes; 0: it leaves its bridge.
    pub master: Option<u32>,
    /// MTU, in bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<[u8; 6]>,
    /// Alias; "" removes it.
    pub alias: Option<&'a str>,
    /// Device group.
    pub group: Option<u32>,
    /// Take all packets.
    pub promisc: Option<bool>,
    /// Take all multicast packets.
    pub allmulti: Option<bool>,
    /// Length of the transmit queue, in packets.
    pub txqlen: Option<u32>,
    /// Tell the neighbours when the link comes up or its hardware address changes (net.ipv4.conf.IF.arp_notify).
    pub arp_notify: Option<bool>,
    /// Route packets from and to 127.0.0.0/8 (net.ipv4.conf.IF.route_localnet).
    pub route_localnet: Option<bool>,
    /// Get no IPv6 link-local address from the kernel (net.ipv6.conf.IF.addr_gen_mode 1), or (false) one that is made from the
    /// hardware address. It matters when the link comes up; the kernel sets it after that, so bring it up by another message.
    /// Refused with EAFNOSUPPORT on a host without IPv6.
    pub no_link_local: Option<bool>,
}

/// New flags of a bridge port; what is None stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortSet {
    /// Packets may leave by the port that they came from.
    pub hairpin: Option<bool>,
    /// No packets between isolated ports.
    pub isolated: Option<bool>,
    /// Learn addresses.
    pub learning: Option<bool>,
    /// Get packets for unknown addresses.
    pub flood: Option<bool>,
}

impl PortSet {
    fn info(&self) -> Option<LinkAttribute> {
        let flags: Vec<InfoBridgePort> = [
            self.hairpin.map(InfoBridgePort::HairpinMode),
            self.isolated.map(InfoBridgePort::Isolated),
            self.learning.map(InfoBridgePort::Learning),
            self.flood.map(InfoBridgePort::UnicastFlood),
        ]
        .into_iter()
        .flatten()
        .collect();
        let data = LinkInfo::PortData(InfoPortData::BridgePort(flags));
        (*self != PortSet::default())
            .then(|| LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(InfoPortKind::Bridge), data]))
    }
}

/// A veth uses one queue in each direction. Not told so, the kernel makes one for each CPU and takes all but one out of use
/// again, for which it waits, the lock on all of the networking in hand, until no CPU uses them (veth_init_queues of
/// drivers/net/veth.c): twice for a pair.
const ONE_QUEUE: [LinkAttribute; 2] = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];

impl Batch {
    /// Creates a veth pair, and in a second message what the kernel does not take at creation: alias and port flags.
    pub fn veth(&mut self, veth: &Veth<'_>) -> &mut Batch {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(veth.peer.to_owned()));
        peer.attributes.push(LinkAttribute::NetNsFd(veth.peer_ns.as_fd().as_raw_fd()));
        peer.attributes.extend(ONE_QUEUE);
        peer.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
        peer.attributes.extend(veth.peer_mac.map(|mac| LinkAttribute::Address(mac.to_vec())));

        let mut message = start(On::Name(veth.name));
        message.attributes.extend(ONE_QUEUE);
        message.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(veth.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        message.attributes.extend(veth.master.map(LinkAttribute::Controller));
        message.attributes.extend(veth.group.map(LinkAttribute::Group));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        if veth.up {
            flag(&mut message, LinkFlags::Up, true);
        }
        let what = match veth.master {
            Some(master) => {
                let bridge = self.name_of(master);
                format!("create veth {} as a port of {bridge}, with {}", veth.name, veth.peer)
            }
            None => format!("create veth {} with {}", veth.name, veth.peer),
        };
        self.create(what, "veth", &message);

        let settings = LinkSet { alias: veth.alias, ..LinkSet::default() };
        if settings.alias.is_some() || veth.port != PortSet::default() {
            self.set_with_port(veth.name, &settings, &veth.port);
        }
        self
    }

    /// Creates a bridge, and sets its alias in a second message.
    pub fn bridge(&mut self, bridge: &Bridge<'_>) -> &mut Batch {
        let mut data = Vec::new();
        if bridge.vlan_filtering {
            data.push(InfoBridge::VlanFiltering(true));
        }
        data.extend(bridge.default_pvid.map(InfoBridge::VlanDefaultPvid));
        let mut message = start(On::Name(bridge.name));
        message.attributes.extend(bridge.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(bridge.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        message.attributes.extend(bridge.group.map(LinkAttribute::Group));
        let mut info = vec![LinkInfo::Kind(InfoKind::Bridge)];
        if !data.is_empty() {
            info.push(LinkInfo::Data(InfoData::Bridge(data)));
        }
        message.attributes.push(LinkAttribute::LinkInfo(info));
        if bridge.up {
            flag(&mut message, LinkFlags::Up, true);
        }
        self.create(format!("create bridge {}", bridge.name), "bridge", &message);
        if bridge.vlan_filtering || bridge.default_pvid.is_some() {
            self.needing(vlan::FEATURE);
        }
        if bridge.alias.is_some() {
            self.set(bridge.name, &LinkSet { alias: bridge.alias, ..LinkSet::default() });
        }
        self
    }

    /// Switches VLAN filtering of a bridge.
    pub fn bridge_vlan_filtering<'a>(&mut self, on: impl Into<On<'a>>, filtering: bool) -> &mut Batch {
        let on = on.into();
        let mut message = start(on);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(filtering)])),
        ]));
        self.push(
            format!("switch VLAN filtering of bridge {}", self.told(on)),
            libc::RTM_NEWLINK,
            0,
            |bytes| emit(bytes, &message),
        )
    }

    /// Creates a link of a kind that needs no further settings ("dummy", "ifb").
    pub fn simple(&mut self, name: &str, kind: &str) -> &mut Batch {
        let mut message = start(On::Name(name));
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Other(kind.to_owned()))]));
        self.create(format!("create {kind} {name}"), kind, &message)
    }

    fn create(&mut self, what: String, kind: &str, message: &LinkMessage) -> &mut Batch {
        self.push(what, libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, |bytes| emit(bytes, message))
            .of_kind(kind)
    }

    /// What errors call a link.
    pub(crate) fn told(&self, on: On<'_>) -> String {
        match on {
            On::Index(index) => self.name_of(index),
            On::Name(name) => name.to_owned(),
        }
    }

    /// Changes settings of a link.
    pub fn set<'a>(&mut self, on: impl Into<On<'a>>, set: &LinkSet<'_>) -> &mut Batch {
        let on = on.into();
        let message = settings(on, set);
        // SETLINK, not NEWLINK: for a name that does not exist, some kernels take NEWLINK's group for a filter.
        self.push(format!("change {}", self.told(on)), libc::RTM_SETLINK, 0, |bytes| emit(bytes, &message))
    }

    /// Changes flags of a bridge port.
    pub fn bridge_port<'a>(&mut self, on: impl Into<On<'a>>, port: &PortSet) -> &mut Batch {
        self.set_with_port(on, &LinkSet::default(), port)
    }

    fn set_with_port<'a>(&mut self, on: impl Into<On<'a>>, set: &LinkSet<'_>, port: &PortSet) -> &mut Batch {
        let Some(info) = port.info() else { return self.set(on, set) };
        let on = on.into();
        let mut message = settings(on, set);
        message.attributes.push(info);
        self.push(format!("change bridge port {}", self.told(on)), libc::RTM_NEWLINK, 0, |bytes| {
            emit(bytes, &message)
        })
    }

    /// Deletes a link; of a veth both ends go. The kernel waits some 20 ms for that, see [`crate::dead`].
    pub fn link_del<'a>(&mut self, on: impl Into<On<'a>>) -> &mut Batch {
        let on = on.into();
        let message = start(on);
        self.push(format!("delete {}", self.told(on)), libc::RTM_DELLINK, 0, |bytes| emit(bytes, &message))
    }

    /// Deletes all links of a device group.
    pub fn link_del_group(&mut self, group: u32) -> &mut Batch {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        let what = format!("delete the interfaces of group {group:#x}");
        self.push(what, libc::RTM_DELLINK, 0, |bytes| emit(bytes, &message))
    }

    /// Has the links of a group take an MTU that none can have: refused (EINVAL) when there is one, and nothing is changed.
    pub(crate) fn link_group_probe(&mut self, group: u32) -> &mut Batch {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        message.attributes.push(LinkAttribute::Mtu(u32::MAX));
        let what = format!("look for interfaces of group {group:#x}");
        self.push(what, libc::RTM_NEWLINK, 0, |bytes| emit(bytes, &message))
    }
}

/// A message about one link.
pub(crate) fn start(on: On<'_>) -> LinkMessage {
    let mut message = LinkMessage::default();
    match on {
        On::Index(index) => message.header.index = index,
        On::Name(name) => message.attributes.push(LinkAttribute::IfName(name.to_owned())),
    }
    message
}

fn flag(message: &mut LinkMessage, flag: LinkFlags, on: bool) {
    message.header.change_mask |= flag;
    if on {
        message.header.flags |= flag;
    }
}

fn settings(on: On<'_>, set: &LinkSet<'_>) -> LinkMessage {
    let mut message = start(on);
    for (wanted, bit) in
        [(set.up, LinkFlags::Up), (set.promisc, LinkFlags::Promisc), (set.allmulti, LinkFlags::Allmulti)]
    {
        if let Some(wanted) = wanted {
            flag(&mut message, bit, wanted);
        }
    }
    let attributes = &mut message.attributes;
    attributes.extend(set.name.map(|name| LinkAttribute::IfName(name.to_owned())));
    attributes.extend(set.master.map(LinkAttribute::Controller));
    attributes.extend(set.mtu.map(LinkAttribute::Mtu));
    attributes.extend(set.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    attributes.extend(set.group.map(LinkAttribute::Group));
    attributes.extend(set.txqlen.map(LinkAttribute::TxQueueLen));
    attributes.extend(set.alias.map(|alias| {
        // Without a NUL: the kernel takes a length of zero for "no alias".
        LinkAttribute::Other(DefaultNla::new(libc::IFLA_IFALIAS, alias.as_bytes().to_vec()))
    }));
    let conf = [(devconf::ARP_NOTIFY, set.arp_notify), (devconf::ROUTE_LOCALNET, set.route_localnet)];
    let mut spec = Vec::new();
    if conf.iter().any(|(_, value)| value.is_some()) {
        wire::nest(&mut spec, libc::AF_INET as u16, |spec| {
            wire::nest(spec, devconf::IFLA_INET_CONF, |spec| {
                for (key, value) in conf {
                    if let Some(value) = value {
                        wire::put_u32(spec, key, value.into());
                    }
                }
            });
        });
    }
    if let Some(none) = set.no_link_local {
        wire::nest(&mut spec, libc::AF_INET6 as u16, |spec| {
            wire::put(spec, devconf::IFLA_INET6_ADDR_GEN_MODE, &[none.into()]);
        });
    }
    if !spec.is_empty() {
        attributes.push(LinkAttribute::Other(DefaultNla::new(libc::IFLA_AF_SPEC, spec)));
    }
    message
}

/// IPV4_DEVCONF_* of linux/ip.h, which are attribute types in a request, and IFLA_INET*_* of linux/if_link.h.
mod devconf {
    pub const IFLA_INET_CONF: u16 = 1;
    pub const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    pub const ARP_NOTIFY: u16 = 22;
    pub const ROUTE_LOCALNET: u16 = 26;
}

impl Netlink {
    /// Creates a veth pair and returns its near end, whose `peer_index` is the far end's index: one exchange.
    pub fn create_veth(&mut self, veth: &Veth<'_>) -> Result<Link> {
        let mut batch = Batch::new();
        batch.veth(veth);
        self.create_and_look(batch, veth.name)
    }

    /// Creates a veth pair and returns its *far* end as its own namespace sees it, whose `peer_index` is the near end's
    /// index. `far` is a socket in that namespace.
    ///
    /// The far end is the one to ask for, where either would do: the near end is up already and has no carrier yet, and
    /// asked for such a link, the kernel first takes its queues out of service and waits for RCU (since Linux 6.11:
    /// linkwatch_sync_dev in net/core/link_watch.c), 0.2 ms.
    pub fn create_veth_towards(&mut self, veth: &Veth<'_>, far: &mut Netlink) -> Result<Link> {
        let mut batch = Batch::new();
        batch.veth(veth);
        self.run(batch)?;
        far.need_link(veth.peer)
    }

    /// Creates a bridge and returns it: one exchange.
    pub fn create_bridge(&mut self, bridge: &Bridge<'_>) -> Result<Link> {
        let mut batch = Batch::new();
        batch.bridge(bridge);
        self.create_and_look(batch, bridge.name)
    }

    pub(crate) fn create_and_look(&mut self, mut batch: Batch, name: &str) -> Result<Link> {
        let ticket = batch.lookup(name);
        self.run(batch)?.link(ticket).ok_or_else(|| crate::Error::NoLink(name.to_owned()))
    }

    /// Changes settings of a link.
    pub fn set<'a>(&mut self, on: impl Into<On<'a>>, set: &LinkSet<'_>) -> Result<()> {
        let mut batch = Batch::new();
        batch.set(on, set);
        self.run(batch).map(|_| ())
    }

    /// Deletes a link, if it exists, and waits for it.
    pub fn delete<'a>(&mut self, on: impl Into<On<'a>>) -> Result<()> {
        let mut batch = Batch::new();
        batch.link_del(on).or_missing();
        self.run(batch).map(|_| ())
    }
}
