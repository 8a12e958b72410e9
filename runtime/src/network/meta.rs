//! What Weft keeps about a network under the key `weft` of its conflist; plugins do not look at it.

use ipnetwork::IpNetwork;
use ovl_api::model::Encap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The key in the conflist.
pub const KEY: &str = "weft";

/// A network that Weft created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// Lower-case hexadecimal digits: 64, or the 12 of an overlay network.
    pub id: String,
    /// When it was created (RFC 3339, UTC).
    pub created: String,
    /// `bridge` or `overlay`.
    pub driver: String,
    /// Whether there is no way out of it.
    #[serde(default)]
    pub internal: bool,
    /// Whether `--ipv6` was given.
    #[serde(default)]
    pub ipv6: bool,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The options of `--opt`, as they were given.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Its subnets.
    #[serde(default)]
    pub subnets: Vec<Subnet>,
    /// What overlay networks alone have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,
}

/// What an overlay network has beyond what every network has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overlay {
    /// VXLAN network identifier.
    pub vni: u32,
    /// The containers' MTU in bytes, when the network names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// How packets travel.
    #[serde(default)]
    pub encap: Encap,
}

/// A subnet of a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subnet {
    /// The subnet, without host bits.
    pub subnet: IpNetwork,
    /// The bridge's address in it; in an overlay network that of every host.
    pub gateway: IpAddr,
    /// Where dynamic addresses come from, when that is not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_range: Option<IpNetwork>,
    /// Addresses that are never given out by themselves, with the names of who has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aux_addresses: BTreeMap<String, IpAddr>,
    /// The prefix length of an overlay network's blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<u8>,
}
