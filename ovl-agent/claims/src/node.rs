//! The node: what the agent calls.

use crate::NodeConf;
use ipnetwork::IpNetwork;
use ovl_api::model::{Delta, Network, View};
use ovl_api::wire::{
    Attach, Detach, Gc, NetworkCreate, NetworkDetail, Node as Peer, Problem, ProblemKind, Removed,
};
use ovl_store::Revision;
use std::sync::Arc;
use tokio::sync::watch;

/// This host's part in the cluster. Clones are the same node.
#[derive(Debug, Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    conf: NodeConf,
    generation: watch::Sender<u64>,
}

/// What an attachment got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The network.
    pub network: Network,
    /// Its addresses, each with its subnet's length, IPv4 first.
    pub addresses: Vec<IpNetwork>,
    /// The container's hardware address, `02:…` unless it was asked for.
    pub mac: String,
    /// The revision at which an address's block was claimed, when the other hosts may not know of it yet: then
    /// [`Node::settle`] waits for them.
    pub claimed: Option<Revision>,
}

/// How the node is with the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// The store answers, and this host is registered in it.
    pub connected: bool,
    /// Why not: the store's error, another host of this name, a host declared gone.
    pub error: Option<String>,
    /// Why changes are held back: too many hosts vanished at once.
    pub held_back: Option<String>,
}

fn no<T>() -> Result<T, Problem> {
    Err(Problem::new(ProblemKind::NotReady, "the agent is not ready"))
}

impl Node {
    /// Opens the node's files; the store is not asked.
    ///
    /// # Errors
    /// A name that cannot be a host's ([`ProblemKind::Invalid`]); files that cannot be read or written.
    pub fn open(conf: NodeConf) -> Result<Node, Problem> {
        Ok(Node { inner: Arc::new(Inner { conf, generation: watch::Sender::new(0) }) })
    }

    /// Runs for ever: registers this host, follows the store, keeps what it claimed in order. Dropped, it stops at once and
    /// leaves everything as it is; nothing needs it to end well.
    pub async fn run(self) {
        std::future::pending::<()>().await;
    }

    /// The view's generation: it grows with every change of the view.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.generation.subscribe()
    }

    /// Shows the view, with what changed in it since the last call (everything, at the first). For one caller: the kernel's.
    /// The view is a copy of its own that is brought up to date first, so `f` may take its time and stops nothing else.
    pub fn with_view<T>(&self, f: impl FnOnce(&View, Delta) -> T) -> T {
        f(
            &View { me: self.inner.conf.name.clone(), ..View::default() },
            Delta { all: true, ..Delta::default() },
        )
    }

    /// The store's revision that the view is at; read it before [`Node::with_view`], which then shows that or a later one.
    pub fn revision(&self) -> Revision {
        0
    }

    /// The store has been read since the start. Before that the view is the one last seen before the agent ended: good to
    /// mend the kernel by, but nothing may be deleted by it.
    pub fn synced(&self) -> bool {
        false
    }

    /// The kernel shows everything up to this revision: acknowledgements go out.
    pub fn applied(&self, _revision: Revision) {}

    /// Gives a container's interface its addresses. From then on it is among the view's endpoints.
    ///
    /// # Errors
    /// [`ProblemKind::Invalid`] with the field, `NotFound` for the network, `Duplicate`, `Taken` for a requested address,
    /// `Full`, `Store` when a claim is needed and the store does not answer, `NotReady`. Nothing is given then.
    pub async fn attach(&self, _ask: &Attach) -> Result<Grant, Problem> {
        no()
    }

    /// Waits after a new claim until the other hosts of the network show it, one second at most; else returns at once.
    pub async fn settle(&self, _grant: &Grant) {}

    /// Ends an attachment; none is no error. Needs no store.
    ///
    /// # Errors
    /// Only what befalls this host's files.
    pub async fn detach(&self, _ask: &Detach) -> Result<(), Problem> {
        no()
    }

    /// Ends the attachments of a network that are not valid. Needs no store.
    ///
    /// # Errors
    /// Only what befalls this host's files.
    pub async fn gc(&self, _ask: &Gc) -> Result<Removed, Problem> {
        no()
    }

    /// Creates a network. `created` is the time (RFC 3339); `taken` are networks that this host has routes to, with words
    /// for people: subnets must not overlap them.
    ///
    /// # Errors
    /// [`ProblemKind::Invalid`] and `Taken` with the field as the user writes it (`--subnet`, `--gateway`, `--opt vni`, …);
    /// `Store` within 3 s when the store does not answer; `NotReady` before this host is registered.
    pub async fn create_network(
        &self,
        _ask: &NetworkCreate,
        _created: String,
        _taken: &[(IpNetwork, String)],
    ) -> Result<Network, Problem> {
        no()
    }

    /// Removes a network that has no container on any host.
    ///
    /// # Errors
    /// `NotFound`; `InUse`, naming the hosts that have containers in it or do not answer; `Store`.
    pub async fn remove_network(&self, _name: &str) -> Result<(), Problem> {
        no()
    }

    /// All networks, by name: as the store has them now, or as last seen when it does not answer.
    ///
    /// # Errors
    /// `NotReady` when the store does not answer and nothing was ever seen.
    pub async fn networks(&self) -> Result<Vec<Network>, Problem> {
        no()
    }

    /// A network with its blocks and containers: as the store has them now, or, when it does not answer, as last seen,
    /// with this host's containers only.
    ///
    /// # Errors
    /// `NotFound`, `NotReady`.
    pub async fn detail(&self, _name: &str) -> Result<NetworkDetail, Problem> {
        no()
    }

    /// All hosts, by name, as last seen.
    ///
    /// # Errors
    /// `NotReady` when the store was never reached.
    pub async fn nodes(&self) -> Result<Vec<Peer>, Problem> {
        no()
    }

    /// Declares a host gone and frees what it claimed. A removal that was broken off is taken up again.
    ///
    /// # Errors
    /// `NotFound`; `InUse` when it is alive and `force` is false; `Store`.
    pub async fn remove_node(&self, _name: &str, _force: bool) -> Result<(), Problem> {
        no()
    }

    /// Waits until the view holds all that the store held when this was called, and returns the revision.
    ///
    /// # Errors
    /// `Store`, `NotReady`.
    pub async fn sync(&self) -> Result<Revision, Problem> {
        no()
    }

    /// The underlay's address and segment are these now: when they are others than before, this host's record is written anew
    /// (at once, or when the store is back), as if the agent had been started with them. Cheap when they are the same.
    pub fn set_vtep(&self, _vtep: std::net::IpAddr, _segment: Option<IpNetwork>) {}

    /// How the node is with the store.
    pub fn status(&self) -> NodeStatus {
        NodeStatus::default()
    }

    /// Applies what is held back after all.
    pub fn accept(&self) {}

    /// Whether an attachment to the network could get an address now.
    ///
    /// # Errors
    /// As [`Node::attach`].
    pub async fn available(&self, _network: &str) -> Result<(), Problem> {
        no()
    }

    /// Tells the others that this agent goes down on purpose: it is not alive any more, and keeps all it claimed.
    pub async fn stop(&self) {}
}
