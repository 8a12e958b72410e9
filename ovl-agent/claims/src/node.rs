//! The node: what the agent calls.

use crate::NodeConf;
use crate::inner::{Inner, lock};
use crate::state::Dirty;
use ipnetwork::IpNetwork;
use ovl_api::model::{Delta, Network, View};
use ovl_api::wire::{
    Attach, Detach, Gc, HeldRecord, NetworkCreate, NetworkDetail, Node as Peer, Problem, Removed,
};
use ovl_store::Revision;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// This host's part in the cluster. Clones are the same node.
#[derive(Debug, Clone)]
pub struct Node {
    inner: Arc<Inner>,
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
    /// Which attachment of this node's life it is, for [`Node::undo`].
    pub(crate) ticket: u64,
}

/// How the node is with the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// The name that this node has.
    pub name: String,
    /// The store answers, and this host is registered in it.
    pub connected: bool,
    /// Why not: the store's error, another host of this name, a host declared gone.
    pub error: Option<String>,
    /// Why changes are held back: too many hosts vanished at once.
    pub held_back: Option<String>,
    /// Records of the store that are not in force.
    pub held_records: Vec<HeldRecord>,
    /// Why the node has another name than the one it was started with, and what helps.
    pub notice: Option<String>,
}

impl Node {
    /// Opens the node's files; the store is not asked.
    ///
    /// # Errors
    /// A name that cannot be a host's ([`ProblemKind::Invalid`]); files that cannot be read or written.
    pub fn open(conf: NodeConf) -> Result<Node, Problem> {
        Ok(Node { inner: Arc::new(crate::open::open(conf)?) })
    }

    /// Runs for ever: registers this host, follows the store, keeps what it claimed in order. Dropped, it stops at once and
    /// leaves everything as it is; nothing needs it to end well.
    pub async fn run(self) {
        self.inner.run().await;
    }

    /// The view's generation: it grows with every change of the view.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.generation.subscribe()
    }

    /// Shows the view, with what changed in it since the last call (everything, at the first). For one caller: the kernel's.
    /// The view is a copy of its own that is brought up to date first, so `f` may take its time and stops nothing else.
    pub fn with_view<T>(&self, f: impl FnOnce(&View, Delta) -> T) -> T {
        let mut shown = lock(&self.inner.shown);
        let delta = self.inner.update(|state| {
            let dirty = std::mem::take(&mut state.dirty);
            match &mut *shown {
                None => {
                    *shown = Some(state.view.clone());
                    Delta { all: true, ..Delta::default() }
                }
                Some(shown) => {
                    bring_up(shown, &state.view, &dirty);
                    dirty.delta
                }
            }
        });
        // It was set just now.
        f(shown.get_or_insert_default(), delta)
    }

    /// The store's revision that the view is at; read it before [`Node::with_view`], which then shows that or a later one.
    pub fn revision(&self) -> Revision {
        self.inner.look(|state| state.revision)
    }

    /// The store has been read since the start. Before that the view is the one last seen before the agent ended: good to
    /// mend the kernel by, but nothing may be deleted by it.
    pub fn synced(&self) -> bool {
        self.inner.look(|state| state.synced)
    }

    /// The kernel shows everything up to this revision, but for networks (by ID) that it does not wholly show:
    /// acknowledgements go out for all the others.
    pub fn applied(&self, revision: Revision, failed: BTreeSet<String>) {
        self.inner.applied.send_replace((revision, failed));
    }

    /// Gives a container's interface its addresses. From then on it is among the view's endpoints.
    ///
    /// # Errors
    /// [`ProblemKind::Invalid`] with the field, `NotFound` for the network, `Duplicate`, `Taken` for a requested address,
    /// `Full`, `Store` when a claim is needed and the store does not answer, `NotReady`. Nothing is given then.
    pub async fn attach(&self, ask: &Attach) -> Result<Grant, Problem> {
        self.inner.attach(ask).await
    }

    /// Waits after a new claim until the other hosts of the network show it, one second at most; else returns at once.
    pub async fn settle(&self, grant: &Grant) {
        self.inner.settle(grant).await;
    }

    /// Ends an attachment, also one that is only being made; none is no error. Needs no store.
    ///
    /// # Errors
    /// Only what befalls this host's files.
    pub async fn detach(&self, ask: &Detach) -> Result<(), Problem> {
        self.inner.detach(ask).map(drop)
    }

    /// Ends the attachment that got this, when it is still there: not one of the same name that came after it.
    ///
    /// # Errors
    /// Only what befalls this host's files.
    pub async fn undo(&self, grant: &Grant) -> Result<(), Problem> {
        self.inner.undo(grant)
    }

    /// Ends the attachments of a network that are not valid. Needs no store.
    ///
    /// # Errors
    /// Only what befalls this host's files.
    pub async fn gc(&self, ask: &Gc) -> Result<Removed, Problem> {
        self.inner.gc(ask).map(|removed| Removed { removed })
    }

    /// Ends the attachments whose link on this host has been missing at every call for [`crate::Timing::missing`]: nobody
    /// has said so, and nobody can be using them. To be called again and again, about once a minute, with whether there is a
    /// link of this name.
    ///
    /// # Errors
    /// Only what befalls this host's files.
    pub fn missing(&self, has_link: impl Fn(&str) -> bool) -> Result<(), Problem> {
        self.inner.missing(&has_link)
    }

    /// Creates a network. `created` is the time (RFC 3339); `taken` are networks that this host has routes to, with words
    /// for people: subnets must not overlap them.
    ///
    /// # Errors
    /// [`ProblemKind::Invalid`] and `Taken` with the field as the user writes it (`--subnet`, `--gateway`, `--opt vni`, …);
    /// `Store` within 3 s when the store does not answer; `NotReady` before this host is registered.
    pub async fn create_network(
        &self,
        ask: &NetworkCreate,
        created: String,
        taken: &[(IpNetwork, String)],
    ) -> Result<Network, Problem> {
        self.inner.create(ask, created, taken).await
    }

    /// Removes a network that has no container on any host.
    ///
    /// # Errors
    /// `NotFound`; `InUse`, naming the hosts that have containers in it or do not answer; `Store`.
    pub async fn remove_network(&self, name: &str) -> Result<(), Problem> {
        self.inner.remove_network(name).await
    }

    /// All networks, by name: as the store has them now, or as last seen when it does not answer.
    ///
    /// # Errors
    /// `NotReady` when the store does not answer and nothing was ever seen.
    pub async fn networks(&self) -> Result<Vec<Network>, Problem> {
        self.inner.networks().await
    }

    /// A network with its blocks and containers: as the store has them now, or, when it does not answer, as last seen,
    /// with this host's containers only.
    ///
    /// # Errors
    /// `NotFound`, `NotReady`.
    pub async fn detail(&self, name: &str) -> Result<NetworkDetail, Problem> {
        self.inner.detail(name).await
    }

    /// All hosts, by name, as last seen.
    ///
    /// # Errors
    /// `NotReady` when the store was never reached.
    pub async fn nodes(&self) -> Result<Vec<Peer>, Problem> {
        self.inner.nodes()
    }

    /// Declares a host gone and frees what it claimed. A removal that was broken off is taken up again.
    ///
    /// # Errors
    /// `NotFound`; `InUse` when it is alive and `force` is false; `Store`.
    pub async fn remove_node(&self, name: &str, force: bool) -> Result<(), Problem> {
        self.inner.remove_node(name, force).await
    }

    /// Waits until the view holds all that the store held when this was called, and returns the revision.
    ///
    /// # Errors
    /// `Store`, `NotReady`.
    pub async fn sync(&self) -> Result<Revision, Problem> {
        self.inner.sync().await
    }

    /// The underlay's address and segment are these now: when they are others than before, this host's record is written anew
    /// (at once, or when the store is back), as if the agent had been started with them. Cheap when they are the same.
    pub fn set_vtep(&self, vtep: IpAddr, segment: Option<IpNetwork>) {
        let mut underlay = lock(&self.inner.underlay);
        if *underlay != (vtep, segment) {
            if underlay.0 != vtep {
                self.inner.conf.kv.renew();
            }
            *underlay = (vtep, segment);
            // The next session begins with this host's record.
            self.inner.wake.session.notify_one();
        }
    }

    /// Connects to the store anew, without waiting for the end of a pause: its address, or the link that it is on, was away.
    pub fn reconnect(&self) {
        self.inner.conf.kv.renew();
        self.inner.wake.session.notify_one();
    }

    /// The addresses of this host are these now: no other node can have one as its VTEP.
    pub fn set_addresses(&self, addresses: BTreeSet<IpAddr>) {
        if self.inner.look(|state| state.addresses != addresses) {
            self.inner.update(|state| state.set_addresses(addresses));
        }
    }

    /// How the node is with the store.
    pub fn status(&self) -> NodeStatus {
        self.inner.look(|state| NodeStatus {
            name: state.view.me.clone(),
            connected: state.following && state.error.is_none(),
            error: state.error.clone(),
            held_back: state.held_back.clone(),
            held_records: state.held_records(),
            notice: state.rename_notice(&self.inner.conf.name),
        })
    }

    /// Applies what is held back after all.
    pub fn accept(&self) {
        if self.inner.look(|state| state.held_back.is_some() || state.past.restored.is_some()) {
            self.inner.accepted.store(true, std::sync::atomic::Ordering::Relaxed);
            self.inner.wake.session.notify_one();
        }
    }

    /// Whether an attachment to the network could get an address now.
    ///
    /// # Errors
    /// As [`Node::attach`].
    pub async fn available(&self, network: &str) -> Result<(), Problem> {
        self.inner.available(network).await
    }

    /// Tells the others that this agent goes down on purpose: it is not alive any more, and keeps all it claimed.
    pub async fn stop(&self) {
        self.inner.stop().await;
    }
}

/// Makes a copy of the view the same as the view again, where it changed.
fn bring_up(shown: &mut View, view: &View, dirty: &Dirty) {
    fn copy<K: Ord + Clone, V: Clone>(to: &mut BTreeMap<K, V>, from: &BTreeMap<K, V>, key: &K) {
        match from.get(key) {
            Some(value) => to.insert(key.clone(), value.clone()),
            None => to.remove(key),
        };
    }
    shown.me.clone_from(&view.me);
    dirty.delta.hosts.iter().for_each(|name| copy(&mut shown.hosts, &view.hosts, name));
    dirty.delta.networks.iter().for_each(|id| copy(&mut shown.networks, &view.networks, id));
    dirty.delta.blocks.iter().for_each(|block| copy(&mut shown.owners, &view.owners, block));
    for veth in &dirty.veths {
        copy(&mut shown.endpoints, &view.endpoints, veth);
        match view.links.contains(veth) {
            true => shown.links.insert(veth.clone()),
            false => shown.links.remove(veth),
        };
    }
}
