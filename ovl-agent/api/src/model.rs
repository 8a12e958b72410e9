//! The overlay as the agents know it: networks, hosts, who owns which block of addresses, and the containers of this host.

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// How packets of a network travel between hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encap {
    /// In VXLAN (RFC 7348).
    #[default]
    Vxlan,
    /// As they are between hosts on one L2 segment, in VXLAN between others.
    Direct,
}

/// A subnet of a network; a network has one of each family at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subnet {
    /// The subnet, without host bits.
    pub subnet: IpNetwork,
    /// The containers' gateway: the same address on every host. It is never given to a container.
    pub gateway: IpAddr,
    /// The prefix length of the blocks that hosts claim, longer than the subnet's: 26 in a /16.
    pub block: u8,
}

/// An overlay network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// 12 lower-case hexadecimal digits, random, never used again.
    pub id: String,
    /// Its name.
    pub name: String,
    /// VXLAN network identifier, 1 to 16777215.
    pub vni: u32,
    /// Its subnets, IPv4 first.
    pub subnets: Vec<Subnet>,
    /// The containers' MTU in bytes; None: each host's underlay's, less what VXLAN takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// How packets travel.
    #[serde(default)]
    pub encap: Encap,
    /// There is no way out of it.
    #[serde(default)]
    pub internal: bool,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The options it was created with, as they were given.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// When it was created (RFC 3339, UTC).
    pub created: String,
    /// It is being removed: nothing is attached to it any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removing: bool,
}

/// A host with an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    /// Its name, unique in the cluster.
    pub name: String,
    /// 32 lower-case hexadecimal digits: the installation. Another one under the same name is another host.
    pub id: String,
    /// Counts how often the host was declared gone. What it claimed under an earlier epoch is not its own any more.
    pub epoch: u64,
    /// The underlay address at which it takes VXLAN packets (its VTEP).
    pub vtep: IpAddr,
    /// The store's revision since which that is its VTEP: of two nodes with the same one it is the first one's. 0: an earlier
    /// release wrote the record.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub vtep_since: i64,
    /// The L2 segment of that address: hosts with the same one route directly. None where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<IpNetwork>,
    /// The UDP port of VXLAN.
    pub port: u16,
    /// Being removed: a fence between its claims and whoever gets them next.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// A container's interface on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The network's ID.
    pub network: String,
    /// The container's ID.
    pub container: String,
    /// The interface's name in the container.
    pub ifname: String,
    /// The name of the host's end.
    pub veth: String,
    /// The container's hardware address, `02:…`.
    pub mac: String,
    /// Its addresses, one of each of the network's families.
    pub addresses: Vec<IpAddr>,
}

/// All that an agent knows and that its kernel is to show. Keys: hosts by name, networks by ID, owners by (network ID,
/// block); a single address is a block of length 32 or 128. Endpoints are those of this host whose addresses are its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// This host's name.
    pub me: String,
    /// All hosts, this one included.
    pub hosts: BTreeMap<String, Host>,
    /// All networks.
    pub networks: BTreeMap<String, Network>,
    /// Which host owns a block.
    pub owners: BTreeMap<(String, IpNetwork), String>,
    /// This host's containers, by the name of the host's end of their link.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// The host's ends of the links of all containers that the agent attached, also of those that are not in `endpoints`,
    /// as their addresses are another host's now.
    pub links: BTreeSet<String>,
}

/// Whether two networks share addresses.
pub fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a.contains(b.network()) || b.contains(a.network()))
}

/// The most exceptions from masquerading that a network has.
const MAX_EXCEPTIONS: usize = 64;

/// What an exception from masquerading cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value}: expected {expected}")]
pub struct BadException {
    /// What was given.
    pub value: String,
    /// What is expected.
    pub expected: String,
}

/// Reads destinations to which nothing is masqueraded.
///
/// # Errors
/// One is no CIDR, or there are too many.
pub fn parse_exceptions<'a>(
    cidrs: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<IpNetwork>, BadException> {
    let mut all = Vec::new();
    for text in cidrs {
        // An address alone would be read as a network of one.
        let is_cidr = |net: &IpNetwork| text.contains('/') && net.ip() == net.network();
        let bad = || BadException {
            value: format!("{text:?}"),
            expected: "a CIDR without host bits, as 10.0.0.0/8 or fd00::/8".to_owned(),
        };
        all.push(text.parse().ok().filter(is_cidr).ok_or_else(bad)?);
    }
    if all.len() > MAX_EXCEPTIONS {
        let expected = format!("{MAX_EXCEPTIONS} at most");
        return Err(BadException { value: format!("{} CIDRs", all.len()), expected });
    }
    Ok(all)
}

/// Whether a block is a single address.
pub fn is_single(block: IpNetwork) -> bool {
    block.prefix() == if block.is_ipv4() { 32 } else { 128 }
}

impl Network {
    /// The option that says what gets into the network from outside: one of [`Network::INGRESS`].
    pub const INGRESS_OPTION: &str = "ingress";
    /// Published ports alone, which is the default, or everything that is routed to a node.
    pub const INGRESS: [&str; 2] = ["published", "routed"];

    /// The option with the destinations to which nothing is masqueraded, CIDRs parted by commas.
    pub const EXCEPTIONS_OPTION: &str = "non-masquerade-cidrs";

    /// The destinations to which nothing is masqueraded.
    ///
    /// # Errors
    /// The option has another value.
    pub fn exceptions(&self) -> Result<Vec<IpNetwork>, BadException> {
        let value = self.options.get(Self::EXCEPTIONS_OPTION);
        value.map_or(Ok(Vec::new()), |value| parse_exceptions(value.split(',')))
    }

    /// What is routed to a node from outside gets to the network's containers.
    pub fn is_routed_to(&self) -> bool {
        !self.internal
            && self.options.get(Self::INGRESS_OPTION).is_some_and(|value| value == Self::INGRESS[1])
    }

    /// Its subnet of that family, if it has one.
    pub fn subnet(&self, v6: bool) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.subnet.is_ipv6() == v6)
    }
}

impl View {
    /// This host, once it is registered.
    pub fn my_host(&self) -> Option<&Host> {
        self.hosts.get(&self.me)
    }

    /// The blocks of one network and their owners, in the order of addresses.
    pub fn blocks<'a>(&'a self, network: &'a str) -> impl Iterator<Item = (&'a IpNetwork, &'a str)> {
        let from = (
            network.to_owned(),
            IpNetwork::V4(ipnetwork::Ipv4Network::from(std::net::Ipv4Addr::UNSPECIFIED)),
        );
        // Blocks sort by address first: 0.0.0.0/32 does not come before 0.0.0.0/8, but no block begins there.
        let all = self.owners.range(from..).take_while(move |((of, _), _)| of == network);
        all.map(|((_, block), owner)| (block, owner.as_str()))
    }

    /// Whether this host has a part in the network: an own block with it, or a container.
    pub fn takes_part(&self, network: &str) -> bool {
        self.endpoints.values().any(|endpoint| endpoint.network == network)
    }
}

/// What changed in a [`View`] since somebody looked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Anything may have: compare everything.
    pub all: bool,
    /// IDs of networks that were added, changed or removed, or whose set of endpoints changed.
    pub networks: std::collections::BTreeSet<String>,
    /// Names of hosts that were added, changed or removed.
    pub hosts: std::collections::BTreeSet<String>,
    /// Blocks that got or lost an owner.
    pub blocks: std::collections::BTreeSet<(String, IpNetwork)>,
}

impl Delta {
    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Delta::default()
    }

    /// Adds another's changes.
    pub fn merge(&mut self, other: Delta) {
        self.all |= other.all;
        self.networks.extend(other.networks);
        self.hosts.extend(other.hosts);
        self.blocks.extend(other.blocks);
    }
}
