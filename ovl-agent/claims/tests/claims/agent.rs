//! Agents for the tests: each a node with its own directory, on a shared store.

use ipnetwork::IpNetwork;
use ovl_api::model::{Network, View};
use ovl_api::wire::{Attach, Detach, NetworkCreate, Problem};
use ovl_claims::{Grant, Node, NodeConf, Timing};
use ovl_store::{Kv, Target};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// Things happen within this time, or never: a loaded machine is slow.
pub const EVENTUALLY: Duration = Duration::from_secs(30);

/// A directory that goes at the end of the test, also while the last tasks of the agents in it still write.
pub struct Dir(Option<TempDir>);

impl Dir {
    pub fn path(&self) -> &Path {
        self.0.as_ref().unwrap().path()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let path = self.0.take().unwrap().keep();
        let since = Instant::now();
        while std::fs::remove_dir_all(&path).is_err() && path.exists() && since.elapsed() < EVENTUALLY {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A directory in memory where there is one: the embedded store syncs every transaction.
pub fn dir() -> Dir {
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    Dir(Some(dir.unwrap()))
}

/// An embedded store for several nodes of this process.
pub async fn local_store(dir: &Dir) -> Kv {
    Kv::open(&Target::Local(dir.path().join("store"))).await.unwrap()
}

/// Short times.
pub fn quick() -> Timing {
    Timing {
        idle: Duration::from_millis(200),
        consent: Duration::from_millis(2500),
        settle: Duration::from_millis(500),
        removal: Duration::from_millis(2000),
        check: Duration::from_secs(300),
        lag: Duration::from_secs(30),
        relist: Duration::from_secs(300),
        spread: Duration::from_millis(20),
        held: Duration::from_millis(50),
        backoff: (Duration::from_millis(10), Duration::from_millis(200)),
        notes: Duration::from_millis(50),
        missing: Duration::from_secs(300),
        keep: Duration::from_millis(20),
        save: Duration::from_millis(10),
        publish: Duration::from_millis(1),
    }
}

/// A node that runs.
pub struct Agent {
    pub node: Node,
    task: Option<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The configuration of a node, the number of which is in its VTEP.
pub fn conf(root: &Path, name: &str, kv: &Kv, timing: Timing) -> NodeConf {
    let number = name.bytes().fold(0u8, u8::wrapping_add);
    NodeConf {
        root: root.join(name),
        name: name.to_owned(),
        boot_id: "boot-1".to_owned(),
        machine: None,
        take_over: ovl_claims::TakeOver::Identity,
        links: None,
        vtep: IpAddr::from([192, 0, 2, number]),
        segment: None,
        port: 4789,
        kv: kv.clone(),
        liveness: NodeConf::LIVENESS,
        timing,
    }
}

impl Agent {
    pub fn start(conf: NodeConf) -> Agent {
        let node = Node::open(conf).unwrap();
        let task = tokio::spawn(node.clone().run());
        Agent { node, task: Some(task) }
    }

    /// A node that has read the store, and is seen as alive.
    pub async fn ready(conf: NodeConf) -> Agent {
        let agent = Agent::start(conf);
        agent.wait_ready().await;
        agent
    }

    pub async fn wait_ready(&self) {
        eventually("the node is ready", || self.node.synced() && self.node.status().connected).await;
        retry(|| self.node.sync()).await;
    }

    /// Ends it as a kill does: in the midst of whatever it does, with nothing cleaned up.
    pub async fn kill(mut self) {
        let Some(task) = self.task.take() else { return };
        task.abort();
        let _ = task.await;
    }

    pub fn view<T>(&self, f: impl FnOnce(&View) -> T) -> T {
        self.node.with_view(|view, _| f(view))
    }

    /// The addresses of the endpoints in the view.
    pub fn shown(&self) -> Vec<IpAddr> {
        self.view(|view| view.endpoints.values().flat_map(|endpoint| endpoint.addresses.clone()).collect())
    }

    pub async fn create(&self, name: &str, subnets: &[&str]) -> Network {
        retry(|| self.try_create(name, subnets)).await
    }

    pub async fn try_create(&self, name: &str, subnets: &[&str]) -> Result<Network, Problem> {
        let subnets = subnets.iter().map(|text| text.parse().unwrap()).collect();
        let ask = NetworkCreate { name: name.to_owned(), subnets, ..NetworkCreate::default() };
        self.node.create_network(&ask, "2026-01-01T00:00:00Z".to_owned(), &[]).await
    }

    pub async fn attach(&self, network: &str, container: &str) -> Result<Grant, Problem> {
        self.node.attach(&attach(network, container)).await
    }

    pub async fn attach_at(&self, network: &str, container: &str, ip: &str) -> Result<Grant, Problem> {
        let ips = vec![ip.parse().unwrap()];
        self.node.attach(&Attach { ips, ..attach(network, container) }).await
    }

    pub async fn detach(&self, network: &str, container: &str) {
        self.node.detach(&detach(network, container)).await.unwrap();
    }
}

pub fn attach(network: &str, container: &str) -> Attach {
    Attach {
        network: network.to_owned(),
        container: container.to_owned(),
        ifname: "eth0".to_owned(),
        veth: format!("v{container}"),
        ..Attach::default()
    }
}

pub fn detach(network: &str, container: &str) -> Detach {
    Detach { network: network.to_owned(), container: container.to_owned(), ifname: "eth0".to_owned() }
}

pub fn text(addresses: &[IpNetwork]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < EVENTUALLY, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Tries until it succeeds.
pub async fn retry<T, F: Future<Output = Result<T, Problem>>>(mut f: impl FnMut() -> F) -> T {
    let since = Instant::now();
    loop {
        match f().await {
            Ok(done) => return done,
            Err(problem) => assert!(since.elapsed() < EVENTUALLY, "in vain: {problem}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
