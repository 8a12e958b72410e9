//! How the engine comes up: the underlay, the node, the thread that works on the kernel.

use super::containers;
use super::shown::Shown;
use super::stores;
use super::worker::{Parts, Worker};
use super::{Engine, Started, internal};
use anyhow::{Context, Result, anyhow};
use ovl_api::wire::{Detach, Problem};
use ovl_claims::{Node, NodeConf, TakeOver, Timing};
use ovl_kernel::{Found, Reconciler, Underlay, find_underlay};
use ovl_store::Kv;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

/// How often the underlay is looked for while it is not there.
const LOOK: Duration = Duration::from_millis(500);

/// How the underlay is found, and what other hosts are told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its interface, when it is not to be found.
    pub interface: Option<String>,
    /// The VTEP address, when it is not to be found.
    pub advertise: Option<IpAddr>,
    /// UDP port of VXLAN.
    pub port: u16,
    /// The name and the identity of a dead node are taken over.
    pub take_over: bool,
    /// Other programs' forward chains whose policy is drop get rules that accept the overlay's packets.
    pub forward_accept: bool,
    /// The store's endpoints, names or addresses and TCP ports, when they are to be closed to containers.
    pub closed: Vec<(String, u16)>,
}

impl Settings {
    /// A reconciler for the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel has no netlink.
    pub fn reconciler(&self, underlay: Underlay) -> ovl_kernel::Result<Reconciler> {
        let mut reconciler = Reconciler::new(underlay)?;
        if !self.forward_accept {
            reconciler.leave_forward_chains();
        }
        Ok(reconciler)
    }
}

/// Starts the engine: waits for the underlay, opens the node, and lets it and the worker run until `stop`. The worker's thread
/// is given back.
///
/// # Errors
/// The agent's files cannot be used, or the kernel has no netlink.
pub async fn start(
    engine: Arc<Engine>,
    settings: Settings,
    kv: Kv,
    mut stop: watch::Receiver<bool>,
) -> Result<Option<JoinHandle<()>>> {
    let (underlay, address, segment) = tokio::select! {
        _ = stop.wait_for(|stop| *stop) => return Ok(None),
        found = underlay(&engine, &settings) => found,
    };
    let follow = stores::follow(kv.clone(), settings.closed.clone(), stop.clone());
    let stores = tokio::select! {
        _ = stop.wait_for(|stop| *stop) => return Ok(None),
        stores = follow => stores,
    };
    tracing::info!("the underlay is interface {}, address {address}, MTU {}", underlay.name, underlay.mtu);
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot's ID")?;
    let links = containers::links();
    if let Err(error) = &links {
        tracing::warn!("the containers' links cannot be read: {error}");
    }
    let links = links.ok();
    let take_over = match (settings.take_over, &links) {
        (true, _) => TakeOver::Always,
        (false, Some(links)) if links.is_empty() => TakeOver::SameAddress,
        (false, _) => TakeOver::Identity,
    };
    let node = Node::open(NodeConf {
        root: engine.agent_root.clone(),
        name: engine.host.clone(),
        boot_id: boot_id.trim().to_owned(),
        machine: machine_id(),
        take_over,
        links,
        vtep: address,
        segment,
        port: settings.port,
        kv,
        liveness: NodeConf::LIVENESS,
        timing: Timing::default(),
    })?;
    let shown = watch::Sender::new(Shown::new(underlay.clone(), address));
    let poke = Arc::new(Notify::new());
    let parts = Parts {
        settings: settings.clone(),
        changed: node.changed(),
        stores,
        node: node.clone(),
        poke: poke.clone(),
        stop: stop.clone(),
        metrics: engine.metrics.clone(),
        shown: shown.clone(),
    };
    let started = Started { node: node.clone(), shown: shown.subscribe(), poke };
    engine.started.set(started).map_err(|_| anyhow!("the engine is started twice"))?;
    let handle = Handle::current();
    let (opened, is_open) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("kernel".to_owned());
    // The reconciler is made by the thread that uses it.
    let work = move || match settings.reconciler(underlay) {
        Ok(reconciler) => {
            let _ = opened.send(Ok(()));
            Worker::new(parts, reconciler).run(&handle);
        }
        Err(error) => drop(opened.send(Err(error))),
    };
    let thread = thread.spawn(work).context("start a thread")?;
    is_open.await.context("the kernel's thread")?.context("the kernel")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = node.run() => {}
        }
    });
    Ok(Some(thread))
}

/// The ID of this machine. None where there is none, or none yet (systemd writes `uninitialized`).
fn machine_id() -> Option<String> {
    let text = std::fs::read_to_string("/etc/machine-id").ok()?;
    let id = text.trim();
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// The underlay, as soon as it is there.
async fn underlay(engine: &Engine, settings: &Settings) -> Found {
    let mut told = String::new();
    loop {
        let why = match find_underlay(settings.interface.as_deref(), settings.advertise) {
            Ok(found) => return found,
            Err(error) => error.to_string(),
        };
        if why != told {
            tracing::warn!("waiting for the underlay: {why}");
            engine.set_waiting(&format!("waiting for the underlay: {why}"));
            told = why;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Leaves a note that an attachment has ended, which the node reads when it comes up.
///
/// # Errors
/// It cannot be written.
pub fn leave_note(agent_root: &Path, detach: &Detach) -> Result<(), Problem> {
    // By the attachment, so that none takes another's place; and not by the name of the plugin's notes, for the plugin takes
    // its own away when the agent was told.
    let Detach { network, container, ifname } = detach;
    let name = format!("agent-{}.json", net::Owner::new(&**network, &**container, &**ifname).host_veth());
    ovl_api::notes::leave(agent_root, &name, detach)
        .map_err(|error| internal(format!("a release note in {}: {error}", agent_root.display())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn notes_have_names_of_their_own_each_attachment_another_and_none_the_plugins() {
        let root = tempfile::tempdir().unwrap();
        let note = |container: &str| {
            let (network, ifname) = ("ov".to_owned(), "eth0".to_owned());
            leave_note(root.path(), &Detach { network, container: container.to_owned(), ifname }).unwrap();
        };
        ["one", "two", "one"].into_iter().for_each(note);
        let entries = std::fs::read_dir(ovl_api::names::release_notes(root.path())).unwrap();
        let names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let veth = |container| net::Owner::new("ov", container, "eth0").host_veth();
        assert!(names.iter().all(|name| !name.starts_with(&veth("one")) && !name.starts_with(&veth("two"))));
    }
}
