//! Requests and answers of the agent's API: HTTP/1.1 with JSON on a Unix socket.
//!
//! | method and path | request | answer |
//! |---|---|---|
//! | GET /healthz | | 200 when ready to attach, 503 with [`Problem`] |
//! | GET /metrics | | Prometheus' text format |
//! | GET /v1/status[?network=N] | | [`Status`]; 503 with [`Problem`] when an attachment to N could not get an address |
//! | GET /v1/networks | | \[[`crate::model::Network`]\] |
//! | POST /v1/networks | [`NetworkCreate`] | [`crate::model::Network`] |
//! | GET /v1/networks/NAME | | [`NetworkDetail`] |
//! | DELETE /v1/networks/NAME | | 204 |
//! | GET /v1/nodes | | \[[`Node`]\] |
//! | DELETE /v1/nodes/NAME[?force=true] | | 204 |
//! | POST /v1/attach | [`Attach`] | [`Attached`] |
//! | POST /v1/detach | [`Detach`] | 204, also when there was nothing |
//! | POST /v1/gc | [`Gc`] | [`Removed`] |
//! | POST /v1/sync | | [`Status`], after the kernel shows all that the store held when it was asked |
//! | POST /v1/accept | | 204: a held back snapshot is applied after all |
//!
//! Who waits for an answer until some time says so in the field [`DEADLINE`]: what comes to be done later is not done. Nor is
//! what somebody asked for who has closed the connection, but for a detachment; and an attachment that was made for somebody
//! who has left meanwhile is taken back. So a request that waited in the socket of an agent that hung is not carried out
//! after whoever sent it has cleared up.
//!
//! Every error is a [`Problem`] with a status of 400 (a field is wrong), 404, 409 (conflict), 503 (store, not ready) or 500.

use crate::model::{Encap, Host, Network};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// The field of a request's head that says until when its sender waits for the answer: the milliseconds of CLOCK_MONOTONIC,
/// which is the same for all processes of a host.
pub const DEADLINE: &str = "weft-deadline";

/// What CLOCK_MONOTONIC shows; zero where there is no such clock.
pub fn monotonic() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(Duration::ZERO, Duration::from)
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// For programs.
    pub kind: ProblemKind,
    /// The field of the request that is wrong, as the user writes it (`--subnet`), when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// For people: what, the value, what is allowed.
    pub message: String,
}

/// The kinds of [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// A field's value is not allowed (400).
    Invalid,
    /// There is no such network, host or path (404).
    NotFound,
    /// The name, VNI, subnet or address is somebody's (409).
    Taken,
    /// The network has containers, the host is alive (409).
    InUse,
    /// No address is left (409).
    Full,
    /// The attachment holds an address of the network already (409).
    Duplicate,
    /// The store cannot be reached, or is too slow (503).
    Store,
    /// The agent is not ready: it has not read the store yet, is fenced, or the kernel refuses (503).
    NotReady,
    /// Something that should not happen (500).
    Internal,
}

impl ProblemKind {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            ProblemKind::Invalid => 400,
            ProblemKind::NotFound => 404,
            ProblemKind::Taken | ProblemKind::InUse | ProblemKind::Full | ProblemKind::Duplicate => 409,
            ProblemKind::Store | ProblemKind::NotReady => 503,
            ProblemKind::Internal => 500,
        }
    }
}

impl Problem {
    /// A problem that is no field's.
    pub fn new(kind: ProblemKind, message: impl Into<String>) -> Problem {
        Problem { kind, field: None, message: message.into() }
    }

    /// A field's value is not allowed.
    pub fn invalid(field: &str, message: impl Into<String>) -> Problem {
        Problem { kind: ProblemKind::Invalid, field: Some(field.to_owned()), message: message.into() }
    }
}

/// A network to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkCreate {
    /// Its name.
    pub name: String,
    /// Its subnets, one of a family at most; none: the agent chooses an IPv4 one. A subnet written with host bits names its
    /// gateway.
    #[serde(default)]
    pub subnets: Vec<IpNetwork>,
    /// Gateways, when they are not the subnets' first addresses.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// An IPv6 subnet is chosen when none is given.
    #[serde(default)]
    pub ipv6: bool,
    /// No way out.
    #[serde(default)]
    pub internal: bool,
    /// VNI; None: the agent chooses.
    #[serde(default)]
    pub vni: Option<u32>,
    /// MTU of the containers, in bytes.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Prefix length of the IPv4 blocks (20 to 30); None: such that at least 32 hosts fit.
    #[serde(default)]
    pub block_size: Option<u8>,
    /// How packets travel.
    #[serde(default)]
    pub encap: Encap,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The options as the user wrote them, to be shown again.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// A network with all that is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkDetail {
    /// The network.
    pub network: Network,
    /// Who owns which block (single addresses among them).
    pub blocks: Vec<BlockDetail>,
    /// Containers on all hosts, as far as their agents have told the store; with the store away, those of this host alone.
    pub endpoints: Vec<EndpointDetail>,
    /// The store did not answer: the network and its blocks are as last seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away: Option<Away>,
}

/// A store that does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Away {
    /// For how long that has been known, in seconds.
    pub seconds: u64,
    /// Why.
    pub why: String,
}

/// A block and its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockDetail {
    /// The block.
    pub block: IpNetwork,
    /// The owner's name.
    pub host: String,
}

/// A container in a network, on some host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointDetail {
    /// The host's name.
    pub host: String,
    /// The container's ID.
    pub container: String,
    /// Its interface.
    pub ifname: String,
    /// Its hardware address.
    pub mac: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its addresses belong to another host now: it is cut off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fenced: bool,
}

/// A host of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// The host.
    pub host: Host,
    /// Its agent renews its liveness lease. A host that does not is suspected to be down; nothing is done about it.
    pub alive: bool,
    /// How many blocks it owns, single addresses included.
    pub blocks: usize,
}

/// How the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// This host's name.
    pub host: String,
    /// The agent's version.
    pub version: String,
    /// The VTEP address; None before the first registration.
    pub vtep: Option<IpAddr>,
    /// The store: `local`, or `etcd at URL, URL`, without passwords.
    pub store: String,
    /// The store answers.
    pub connected: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_error: Option<String>,
    /// The first full synchronisation has been done.
    pub ready: bool,
    /// The store's revision that the kernel shows.
    pub revision: i64,
    /// Why changes are held back: too many hosts vanished at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_back: Option<String>,
    /// Records of the store that are not in force: the last valid value of each is, if there was one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_records: Vec<HeldRecord>,
    /// That the node was renamed and goes on under its old name, and what helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// What is wrong in this host's kernel now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// What other programs changed in this host's kernel, and the agent restored.
    #[serde(default)]
    pub repairs: Repairs,
}

/// What other programs changed in a host's kernel, and the agent restored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Repairs {
    /// How many objects, since the agent started.
    pub count: u64,
    /// The last repair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Repair>,
    /// What another program changes again and again: it is restored after growing pauses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fights: Vec<String>,
}

/// One repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Repair {
    /// When it was done (RFC 3339).
    pub at: String,
    /// What was changed, the first of several.
    pub what: String,
    /// How many objects were restored.
    pub objects: usize,
    /// From the kernel's notification of the change to its repair, in milliseconds.
    pub took_ms: u64,
}

/// A record of the store that is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldRecord {
    /// Its key, without the store's prefix.
    pub key: String,
    /// The field, its value and what is expected.
    pub why: String,
}

/// A container's interface that wants addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attach {
    /// The network's name.
    pub network: String,
    /// The container's ID.
    pub container: String,
    /// The interface's name in the container.
    pub ifname: String,
    /// The name that the host's end will have (15 bytes at most).
    pub veth: String,
    /// Requested addresses, one of a family at most.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Requested hardware address.
    #[serde(default)]
    pub mac: Option<String>,
    /// The container's network namespace, to be kept with the lease.
    #[serde(default)]
    pub netns: Option<String>,
}

/// What an attachment got. When this is answered, every other host of the network can reach these addresses' owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    /// The network.
    pub network: Network,
    /// Its addresses, each with its subnet's length, IPv4 first.
    pub addresses: Vec<IpNetwork>,
    /// The container's hardware address.
    pub mac: String,
    /// The MTU in bytes.
    pub mtu: u32,
    /// The device group of the host's end.
    pub group: u32,
}

/// An attachment that ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Detach {
    /// The network's name.
    pub network: String,
    /// The container's ID.
    pub container: String,
    /// The interface's name in the container.
    pub ifname: String,
}

/// The attachments of a network that are valid on this host; all others of this host end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gc {
    /// The network's name.
    pub network: String,
    /// (container ID, interface).
    pub valid: Vec<(String, String)>,
}

/// What a GC ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    /// How many attachments.
    pub removed: usize,
}
