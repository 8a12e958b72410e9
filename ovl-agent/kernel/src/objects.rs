//! What the overlay consists of in a kernel. Every object has a key, by which the kernel replaces it, and a value; devices are
//! told by name, so that a device that was made anew is the same.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

/// A device's name.
pub type Dev = Arc<str>;
/// A hardware address.
pub type Mac = [u8; 6];

/// Metric of the routes to blocks and single addresses of other hosts. One of our own: in IPv4 an administrator's route to the
/// same destination (metric 0) is not replaced by ours.
pub const BLOCK_METRIC: u32 = 87;
/// Metric of the `unreachable` routes: above everything that could be meant for the same destination.
pub const UNREACHABLE_METRIC: u32 = 87_000_000;

/// The least MTU that IPv6 works with (RFC 8200, section 5), in bytes. Below it the kernel drops all IPv6 of a device.
pub const MIN_MTU_V6: u32 = 1280;

/// The metric of a container's route: what the kernel takes when none is given, as the plugin makes it.
pub fn container_metric(ip: IpAddr) -> u32 {
    // IP6_RT_PRIO_USER of net/ipv6.h.
    if ip.is_ipv4() { 0 } else { 1024 }
}

/// A VXLAN device. Learning is off, and it is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// VXLAN network identifier.
    pub vni: u32,
    /// The source address of its packets: this host's VTEP.
    pub local: IpAddr,
    /// UDP port.
    pub port: u16,
    /// Device group.
    pub group: u32,
    /// Hardware address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Alias.
    pub alias: String,
    /// It is to carry IPv6.
    pub ipv6: bool,
}

/// What tells routes of the main table apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// The destination.
    pub dst: IpNetwork,
    /// The metric.
    pub metric: u32,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Nowhere, and the sender is told.
    Unreachable,
    /// To a device.
    Dev {
        /// The device.
        dev: Dev,
        /// The next hop; None: on the link itself.
        gw: Option<IpAddr>,
        /// The source address of this host's own packets.
        src: Option<IpAddr>,
        /// The next hop is on the link though no address says so.
        onlink: bool,
    },
    /// Something that is never wanted (a blackhole, several next hops of a route that somebody made with our protocol).
    Other(u8),
}

/// Where a hardware address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// The remote host's VTEP; always there when wanted.
    pub ip: Option<IpAddr>,
    /// Its UDP port where it is not the device's.
    pub port: Option<u16>,
    /// Entered for good, not learned.
    pub permanent: bool,
    /// Packets go by another VNI or link than the device's; never when desired.
    pub is_diverted: bool,
}

/// What an address of this host is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddrRole {
    /// This host's own: the source of its packets, also of those that it masquerades.
    Own,
    /// Every host has it, so answers to it would stay on the host that receives them: never a source.
    Shared,
    /// Never desired: it is there, and its route in table local is gone, without which the kernel takes no packets for it; or its
    /// lifetime ends.
    Cut,
}

/// Objects as they are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    /// VXLAN devices.
    pub devices: BTreeMap<Dev, Device>,
    /// Hosts' ends of containers' links, which others make, and their device group. What is wanted on one that does not exist,
    /// or is on its way in or out, is not wanted.
    pub links: BTreeMap<Dev, u32>,
    /// Addresses; all get no prefix route and no duplicate address detection, link-local ones get their prefix route.
    pub addrs: BTreeMap<(Dev, IpNetwork), AddrRole>,
    /// Permanent neighbours.
    pub neighs: BTreeMap<(Dev, IpAddr), Mac>,
    /// Forwarding entries of the VXLAN devices.
    pub forwards: BTreeMap<(Dev, Mac), Forward>,
    /// Routes of the main table.
    pub routes: BTreeMap<RouteKey, Target>,
}

impl Target {
    /// The device by which it leaves.
    pub fn dev(&self) -> Option<&Dev> {
        match self {
            Target::Dev { dev, .. } => Some(dev),
            _ => None,
        }
    }
}
