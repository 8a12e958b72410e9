//! Names and numbers that follow from the model, so that agents need not tell each other: device names, device groups,
//! hardware addresses, the hosts' own addresses; and where an agent is found.

use crate::model::{Host, Network};
use ipnetwork::IpNetwork;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// UDP port of VXLAN (IANA, RFC 7348 section 5).
pub const VXLAN_PORT: u16 = 4789;
/// The largest VNI.
pub const MAX_VNI: u32 = 0xff_ffff;
/// The protocol number of the agent's routes (RTA_PROTOCOL), by which it knows them: 'W'. Others' are never touched.
pub const ROUTE_PROTOCOL: u8 = 87;
/// Device groups of overlay networks are this plus the VNI.
const GROUP_BASE: u32 = 0x5700_0000;
/// What VXLAN devices of Weft have as alias, before the network's name.
pub const DEVICE_ALIAS: &str = "weft:overlay:";

/// The longest name of a network in bytes: the names of cached results hold it beside a container's ID and an interface.
pub const LONGEST_NETWORK: usize = 128;
/// The runtime's network of containers that name none, which is a bridge on each host.
pub const DEFAULT_NETWORK: &str = "bridge";
/// Names that mean something else where a network is named.
pub const RESERVED_NETWORKS: [&str; 5] = ["none", "host", "container", "default", "loopback"];
/// The option of the start of the interfaces' names in containers.
pub const PREFIX_OPTION: &str = "com.docker.network.container_iface_prefix";

/// Whether interfaces in containers can be called this and a number of two digits, in the kernel's 15 bytes.
pub fn is_interface_prefix(text: &str) -> bool {
    (1..=13).contains(&text.len())
        && ![".", "..", "lo"].contains(&text)
        && !text.contains(['/', ':', '\0'])
        && !text.contains(char::is_whitespace)
}

/// The VXLAN device of a network.
pub fn device(network_id: &str) -> String {
    format!("vx-{network_id}")
}

/// The device group of a network: of its VXLAN device, and of its containers' links on the host.
pub fn group(vni: u32) -> u32 {
    GROUP_BASE + vni
}

/// The VNI of a device group, when it is that of an overlay network.
pub fn vni_of_group(group: u32) -> Option<u32> {
    group.checked_sub(GROUP_BASE).filter(|vni| (1..=MAX_VNI).contains(vni))
}

/// The hardware address of a host's VXLAN device in a network: locally administered, the same whenever it is made.
pub fn vtep_mac(network: &Network, host: &Host) -> [u8; 6] {
    mac_of(&["vtep", &network.id, &host.id])
}

/// The hardware address of a container that did not ask for one: from its address, so that it comes back with it.
pub fn container_mac(network_id: &str, address: IpAddr) -> [u8; 6] {
    mac_of(&["container", network_id, &address.to_string()])
}

fn mac_of(parts: &[&str]) -> [u8; 6] {
    let digest = Sha256::digest(parts.join("\0"));
    [(digest[0] & 0xfc) | 0x02, digest[1], digest[2], digest[3], digest[4], digest[5]]
}

/// The IPv6 link-local address that belongs to a hardware address (RFC 4291, appendix A): the next hop towards a host.
pub fn link_local(mac: [u8; 6]) -> std::net::Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
}

/// The address that a host has for itself in a block that it owns: the first one that is not the subnet's own nor the
/// gateway. Never given to a container. None for single addresses.
pub fn host_address(subnet: IpNetwork, gateway: IpAddr, block: IpNetwork) -> Option<IpAddr> {
    let full = if block.is_ipv4() { 32 } else { 128 };
    if block.prefix() == full {
        return None;
    }
    let mut candidates = block.iter();
    candidates.find(|ip| *ip != subnet.network() && *ip != gateway)
}

/// The agent's socket under a run directory (`/run/weft`).
pub fn socket(run: &Path) -> PathBuf {
    run.join("ovl-agent.sock")
}

/// The agent's directory under a root directory (`/var/lib/weft`).
pub fn agent_root(root: &Path) -> PathBuf {
    root.join("ovl-agent")
}

/// Where release notes are, under a run directory, which the agent's directory could not take: a full disk, a read-only file
/// system. The agent moves them there.
pub fn unsaved_notes(run: &Path) -> PathBuf {
    run.join("released")
}

/// Where DELs that found no agent leave a release note, one file each: a [`crate::wire::Detach`] as JSON.
pub fn release_notes(agent_root: &Path) -> PathBuf {
    agent_root.join("released")
}
