//! What the API asks for: the node's part (who owns what) and the kernel's, one after the other.
//!
//! An attachment is answered when the kernel of this host shows it and, if a block had to be claimed for it, the other
//! hosts do. One thread alone changes the kernel ([`worker`]); attachments that come together share its passes.

mod containers;
mod drift;
mod foreign;
mod link;
mod repairs;
mod shown;
mod start;
mod stores;
mod successor;
mod worker;

pub use start::{Settings, start};

use crate::caller::Caller;
use crate::metrics::Metrics;
use ovl_api::model::Network;
use ovl_api::wire::{
    Attach, Attached, Detach, Gc, NetworkCreate, NetworkDetail, Node as Peer, Problem, ProblemKind, Removed,
    Repairs, Status,
};
use ovl_claims::{Grant, Node};
use shown::Shown;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Notify, watch};

/// How long an attachment waits for this host's kernel and for the others, before it is given up. The client waits 10 s
/// for all of it, of which the claims may take 4 s.
const FINISH: Duration = Duration::from_secs(5);
/// How long a synchronisation waits for the kernel, after the store has answered.
const SYNC: Duration = Duration::from_secs(7);

/// The agent behind its API.
#[derive(Debug)]
pub struct Engine {
    host: String,
    agent_root: PathBuf,
    store: String,
    started: OnceLock<Started>,
    /// What it waits for before it can start.
    waiting: Mutex<Option<String>>,
    pub(crate) metrics: Arc<Metrics>,
}

/// What there is when the underlay has been found.
#[derive(Debug)]
struct Started {
    node: Node,
    shown: watch::Receiver<Shown>,
    /// Asks the worker for a full pass.
    poke: Arc<Notify>,
}

impl Engine {
    /// One that has not started: it answers, and refuses what needs more. `store` describes the store.
    pub fn new(host: String, agent_root: PathBuf, store: String) -> Engine {
        Engine {
            host,
            agent_root,
            store,
            started: OnceLock::new(),
            waiting: Mutex::default(),
            metrics: Arc::new(Metrics::new()),
        }
    }

    fn started(&self) -> Result<&Started, Problem> {
        let why = || self.waiting().unwrap_or_else(|| "it has just been started".to_owned());
        self.started.get().ok_or_else(|| not_ready(format!("the overlay agent is not ready: {}", why())))
    }

    fn waiting(&self) -> Option<String> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_waiting(&self, why: &str) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
    }

    /// Whether the first full synchronisation has been done.
    ///
    /// # Errors
    /// It has not, and why.
    pub fn ready(&self) -> Result<(), Problem> {
        let started = self.started()?;
        if started.shown.borrow().synced {
            return Ok(());
        }
        let why = started.node.status().error;
        let why = why.unwrap_or_else(|| "the first synchronisation is under way".to_owned());
        Err(not_ready(format!("the overlay agent is not ready: {why}")))
    }

    /// How the agent is. Asks nobody.
    pub fn status(&self) -> Status {
        let mut status = Status {
            host: self.host.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            vtep: None,
            store: self.store.clone(),
            connected: false,
            store_error: None,
            ready: false,
            revision: 0,
            held_back: None,
            held_records: Vec::new(),
            notice: None,
            problems: Vec::new(),
            repairs: Repairs::default(),
        };
        match self.started.get() {
            Some(started) => {
                let node = started.node.status();
                (status.connected, status.store_error) = (node.connected, node.error);
                (status.held_back, status.held_records) = (node.held_back, node.held_records);
                (status.host, status.notice) = (node.name, node.notice);
                let shown = started.shown.borrow();
                (status.vtep, status.ready, status.revision) = (shown.vtep, shown.synced, shown.revision);
                (status.problems, status.repairs) = (shown.problems(), shown.repairs.report(Instant::now()));
            }
            None => status.store_error = self.waiting(),
        }
        status
    }

    /// What /metrics answers.
    pub fn metrics_text(&self) -> String {
        self.metrics.text(&self.status())
    }

    /// Whether an attachment to the network would get an address.
    ///
    /// # Errors
    /// It would not.
    pub async fn available(&self, network: &str) -> Result<(), Problem> {
        self.started()?.node.available(network).await
    }

    /// All networks.
    ///
    /// # Errors
    /// They are not known.
    pub async fn networks(&self) -> Result<Vec<Network>, Problem> {
        self.started()?.node.networks().await
    }

    /// Makes a network whose subnets overlap nothing on this host.
    ///
    /// # Errors
    /// A field is wrong, or the store refuses.
    pub async fn create_network(&self, create: &NetworkCreate) -> Result<Network, Problem> {
        let node = &self.started()?.node;
        let created = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let created = created.format(&Rfc3339).map_err(internal)?;
        node.create_network(create, created, &foreign::all().await?).await
    }

    /// A network with its blocks and endpoints.
    ///
    /// # Errors
    /// There is none, or it is not known.
    pub async fn network_detail(&self, name: &str) -> Result<NetworkDetail, Problem> {
        self.started()?.node.detail(name).await
    }

    /// Removes a network.
    ///
    /// # Errors
    /// It has containers, or the store refuses.
    pub async fn remove_network(&self, name: &str) -> Result<(), Problem> {
        self.started()?.node.remove_network(name).await
    }

    /// All hosts.
    ///
    /// # Errors
    /// They are not known.
    pub async fn nodes(&self) -> Result<Vec<Peer>, Problem> {
        self.started()?.node.nodes().await
    }

    /// Declares a host gone.
    ///
    /// # Errors
    /// It is alive, or the store refuses.
    pub async fn remove_node(&self, name: &str, force: bool) -> Result<(), Problem> {
        self.started()?.node.remove_node(name, force).await
    }

    /// Gets addresses for a container's interface.
    ///
    /// # Errors
    /// There is none, the kernel or the store refuses, or the caller does not wait for the answer any more. Nothing is given
    /// then.
    pub async fn attach(&self, ask: &Attach, caller: &Caller) -> Result<Attached, Problem> {
        let begun = Instant::now();
        let result = self.attach_inner(ask, caller).await;
        self.metrics.attached(result.is_ok(), begun.elapsed().as_secs_f64());
        let Attach { network, container, ifname, .. } = ask;
        match &result {
            Ok(attached) => {
                let addresses: Vec<_> = attached.addresses.iter().map(ToString::to_string).collect();
                tracing::info!("network {network}: {container} {ifname} attached, {}", addresses.join(" "));
            }
            Err(problem) => tracing::warn!("network {network}: {container} {ifname} not attached: {problem}"),
        }
        result
    }

    async fn attach_inner(&self, ask: &Attach, caller: &Caller) -> Result<Attached, Problem> {
        caller.waits()?;
        let started = self.started()?;
        // An overlap is best found before anything is claimed, which takes that the network is known here.
        let known = started.shown.borrow().networks.get(&ask.network).cloned();
        if let Some(known) = &known
            && !known.has_part
        {
            foreign::refuse(&ask.network, &known.subnets).await?;
        }
        let grant = started.node.attach(ask).await?;
        let finish = async {
            if known.is_none() {
                let subnets: Vec<_> = grant.network.subnets.iter().map(|subnet| subnet.subnet).collect();
                foreign::refuse(&ask.network, &subnets).await?;
            }
            started.finish(&grant).await
        };
        let late =
            || not_ready(format!("network {}: this host's kernel did not take it in time", ask.network));
        let finished = tokio::time::timeout(FINISH, finish).await.unwrap_or_else(|_| Err(late()));
        // Who has left may have ended this attachment before it was begun here. Who leaves from now on ends one that is known.
        let finished = finished.and_then(|attached| caller.waits().map(|()| attached));
        if finished.is_err()
            && let Err(problem) = started.node.undo(&grant).await
        {
            tracing::error!("an attachment that failed is not undone: {problem}");
        }
        finished
    }

    /// Ends an attachment. Before the agent has started this is left as a note for then. Also for a caller that has hung up:
    /// somebody killed it, and the attachment ends all the same.
    ///
    /// # Errors
    /// What befalls this host's files. The caller's time is over: it has left a note, and there may be a new attachment of
    /// this name since.
    pub async fn detach(&self, ask: &Detach, caller: &Caller) -> Result<(), Problem> {
        let begun = Instant::now();
        let result = match (caller.in_time(), self.started.get()) {
            (Err(problem), _) => Err(problem),
            (Ok(()), Some(started)) => started.node.detach(ask).await,
            (Ok(()), None) => self.detach_by_note(ask).await,
        };
        self.metrics.detached(result.is_ok(), begun.elapsed().as_secs_f64());
        let Detach { network, container, ifname } = ask;
        match &result {
            Ok(()) => tracing::debug!("network {network}: {container} {ifname} detached"),
            Err(problem) if problem.kind == ProblemKind::NotReady => {
                tracing::warn!("network {network}: {container} {ifname} not detached: {problem}")
            }
            Err(problem) => {
                tracing::error!("network {network}: {container} {ifname} not detached: {problem}")
            }
        }
        result
    }

    /// Leaves a note for the node, which is not open yet. One that was opened meanwhile may have read the notes before.
    async fn detach_by_note(&self, ask: &Detach) -> Result<(), Problem> {
        start::leave_note(&self.agent_root, ask)?;
        match self.started.get() {
            Some(started) => started.node.detach(ask).await,
            None => Ok(()),
        }
    }

    /// Ends the attachments that are not valid.
    ///
    /// # Errors
    /// What befalls this host's files.
    pub async fn gc(&self, ask: &Gc) -> Result<Removed, Problem> {
        let removed = self.started()?.node.gc(ask).await?;
        if removed.removed > 0 {
            tracing::info!(
                "network {}: {} attachments that are none any more ended",
                ask.network,
                removed.removed
            );
        }
        Ok(removed)
    }

    /// Waits until the kernel shows all that the store holds now.
    ///
    /// # Errors
    /// The store or the kernel refuses.
    pub async fn sync(&self) -> Result<Status, Problem> {
        let started = self.started()?;
        let revision = started.node.sync().await?;
        let pass = started.shown.borrow().full_passes;
        started.poke.notify_one();
        let mut shown = started.shown.clone();
        // Two passes: one may have begun before the store answered.
        let done =
            |shown: &Shown| shown.full_passes > pass && (shown.revision >= revision || !shown.complete());
        let waited = tokio::time::timeout(SYNC, shown.wait_for(done)).await;
        let late = || not_ready(format!("the kernel does not show revision {revision} yet"));
        let state = waited.map_err(|_| late())?.map_err(|_| ending())?;
        if state.revision < revision {
            return Err(state.problem().unwrap_or_else(late));
        }
        drop(state);
        Ok(self.status())
    }

    /// Applies what is held back.
    ///
    /// # Errors
    /// The agent has not started.
    pub fn accept(&self) -> Result<(), Problem> {
        self.started()?.node.accept();
        tracing::info!("what was held back is accepted");
        Ok(())
    }

    /// Says good-bye to the other hosts.
    pub async fn stop(&self) {
        if let Some(started) = self.started.get() {
            started.node.stop().await;
        }
    }
}

impl Started {
    /// Waits until this host's kernel shows the attachment, and then until the others do.
    async fn finish(&self, grant: &Grant) -> Result<Attached, Problem> {
        let generation = *self.node.changed().borrow();
        let mut shown = self.shown.clone();
        let (mtu, problem) = {
            let state = shown.wait_for(|shown| shown.generation >= generation).await.map_err(|_| ending())?;
            (state.mtu(&grant.network), state.problem_of(&grant.network))
        };
        if let Some(problem) = problem {
            return Err(problem);
        }
        self.node.settle(grant).await;
        Ok(Attached {
            group: ovl_api::names::group(grant.network.vni),
            network: grant.network.clone(),
            addresses: grant.addresses.clone(),
            mac: grant.mac.clone(),
            mtu,
        })
    }
}

fn not_ready(message: String) -> Problem {
    Problem::new(ProblemKind::NotReady, message)
}

fn ending() -> Problem {
    not_ready("the overlay agent ends".to_owned())
}

fn internal(error: impl std::fmt::Display) -> Problem {
    Problem::new(ProblemKind::Internal, error.to_string())
}
