//! What a node is told when it starts.

use crate::FoundLink;
use ipnetwork::IpNetwork;
use ovl_store::Kv;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A host's agent, as its configuration and its kernel have it.
#[derive(Debug, Clone)]
pub struct NodeConf {
    /// The agent's directory ([`ovl_api::names::agent_root`]); made when it is missing.
    pub root: PathBuf,
    /// This host's name, unique in the cluster.
    pub name: String,
    /// This boot of the host (`/proc/sys/kernel/random/boot_id`): a reboot voids every lease.
    pub boot_id: String,
    /// The machine's ID (`/etc/machine-id`), when it has one: the identity is bound to it.
    pub machine: Option<String>,
    /// What this node may take over from a dead session.
    pub take_over: TakeOver,
    /// The links of containers on this host; None: they could not be read.
    pub links: Option<Vec<FoundLink>>,
    /// The underlay address at which this host takes VXLAN packets.
    pub vtep: IpAddr,
    /// The L2 segment of that address, when hosts on it can route directly.
    pub segment: Option<IpNetwork>,
    /// The UDP port of VXLAN.
    pub port: u16,
    /// The store.
    pub kv: Kv,
    /// How long after the last sign of life a host is suspected to be down. [`NodeConf::LIVENESS`] unless a test says so.
    pub liveness: Duration,
    /// How long things take; tests make them short.
    pub timing: Timing,
}

/// What a node may take over from a session that has ended: a name that is another installation's, or the identity of a state
/// directory that was another machine's. A living session keeps both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeOver {
    /// An identity at the address of its last session.
    Identity,
    /// Also the name of a node that had this node's address: no container of that can be alive.
    SameAddress,
    /// Both, whatever the address was.
    Always,
}

impl NodeConf {
    /// The usual term of liveness.
    pub const LIVENESS: Duration = Duration::from_secs(30);
}

/// How long things take. The default is what hosts use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// A block without a lease is given back after this long.
    pub idle: Duration,
    /// How long the owner of a block has to answer for a single address in it.
    pub consent: Duration,
    /// How long [`crate::Node::settle`] waits for the other hosts.
    pub settle: Duration,
    /// How long the removal of a network waits for the other hosts.
    pub removal: Duration,
    /// The store is asked this often (± 10 %) whether the watch missed something.
    pub check: Duration,
    /// How far the watch may lag behind the store before what it has not told counts as missed.
    pub lag: Duration,
    /// The store is read anew this often (± 10 %), whatever the watch told.
    pub relist: Duration,
    /// When something was missed, as may have been by all hosts at once, each waits before it reads everything anew: for as
    /// many of these as there are hosts, at most.
    pub spread: Duration,
    /// A held back snapshot is looked at again this often.
    pub held: Duration,
    /// The first and the longest pause after the store failed; each is shortened by up to a half, at random.
    pub backoff: (Duration, Duration),
    /// How often release notes are looked for.
    pub notes: Duration,
    /// An attachment whose link has been missing for this long is ended.
    pub missing: Duration,
    /// How often blocks are looked over: given back, claimed ahead, claimed again.
    pub keep: Duration,
    /// How long after a change the view is written to its file.
    pub save: Duration,
    /// How long an endpoint waits for others, to be published with them.
    pub publish: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            idle: Duration::from_secs(600),
            consent: Duration::from_millis(2500),
            settle: Duration::from_secs(1),
            removal: Duration::from_secs(5),
            check: Duration::from_secs(300),
            lag: Duration::from_secs(30),
            relist: Duration::from_secs(6 * 3600),
            spread: Duration::from_millis(20),
            held: Duration::from_secs(5),
            backoff: (Duration::from_millis(200), Duration::from_secs(5)),
            notes: Duration::from_secs(60),
            missing: Duration::from_secs(300),
            keep: Duration::from_secs(5),
            save: Duration::from_secs(3),
            publish: Duration::from_millis(20),
        }
    }
}
