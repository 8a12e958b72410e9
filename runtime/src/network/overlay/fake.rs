//! An overlay agent for tests: a thread that answers on a Unix socket from a list of networks.

use crate::paths::Paths;
use ovl_api::model::{Host, Network, Subnet};
use ovl_api::names;
use ovl_api::wire::{
    Away, BlockDetail, EndpointDetail, NetworkCreate, NetworkDetail, Node, Problem, ProblemKind, Status,
};
use serde::Serialize;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// What the agent knows.
#[derive(Default)]
pub struct State {
    pub networks: Vec<Network>,
    pub endpoints: Vec<EndpointDetail>,
    /// The store is away, and this host is host1.
    pub away: Option<Away>,
    /// `METHOD PATH` of all requests.
    pub calls: Vec<String>,
    /// The subnet that is chosen when none is asked for.
    pub chosen: Option<Subnet>,
    ended: bool,
}

/// The agent; it ends, and its socket goes, when it is dropped.
pub struct Fake {
    state: Arc<Mutex<State>>,
    socket: PathBuf,
    thread: Option<JoinHandle<()>>,
}

/// Directories of a host of its own.
pub fn paths(dir: &Path) -> Paths {
    Paths { root: dir.join("root"), run: dir.join("run"), config_dir: dir.join("net.d"), cni_bin: Vec::new() }
}

/// A network as the agent has it.
pub fn network(id: &str, name: &str, subnet: &str) -> Network {
    let subnet: ipnetwork::IpNetwork = subnet.parse().unwrap();
    let gateway = crate::network::pools::first_host(subnet);
    Network {
        id: id.into(),
        name: name.into(),
        vni: 4097,
        subnets: vec![Subnet { subnet, gateway, block: 26 }],
        mtu: None,
        encap: Default::default(),
        internal: false,
        labels: [("tier".into(), "web".into())].into(),
        options: [].into(),
        created: "2026-01-02T03:04:05Z".into(),
        removing: false,
    }
}

impl Fake {
    pub fn start(paths: &Paths, networks: Vec<Network>) -> Fake {
        std::fs::create_dir_all(&paths.run).unwrap();
        let socket = names::socket(&paths.run);
        let listener = UnixListener::bind(&socket).unwrap();
        let state = Arc::new(Mutex::new(State { networks, ..State::default() }));
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut state = shared.lock().unwrap();
                if state.ended {
                    return;
                }
                serve(stream.unwrap(), &mut state);
            }
        });
        Fake { state, socket, thread: Some(thread) }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The requests since the last time, but for those that only read.
    pub fn changes(&self) -> Vec<String> {
        let calls = std::mem::take(&mut self.state().calls);
        calls.into_iter().filter(|call| !call.starts_with("GET")).collect()
    }

    /// Ends as an agent that is killed: its socket stays, and nobody answers there.
    pub fn kill(mut self) {
        self.end();
        std::mem::forget(self);
    }

    fn end(&mut self) {
        self.state.lock().unwrap().ended = true;
        drop(UnixStream::connect(&self.socket));
        self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.end();
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn serve(mut stream: UnixStream, state: &mut State) {
    let mut text = String::new();
    let mut chunk = [0; 4096];
    let (head, body) = loop {
        let count = stream.read(&mut chunk).unwrap();
        if count == 0 {
            return;
        }
        text.push_str(std::str::from_utf8(&chunk[..count]).unwrap());
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
            if body.len() >= length.parse().unwrap() {
                break (head.to_owned(), body.to_owned());
            }
        }
    };
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    state.calls.push(format!("{method} {path}"));
    let (status, body) = match state.answer(method, path, &body) {
        Ok(answer) => (200, answer),
        Err(problem) => (problem.kind.status(), serde_json::to_vec(&problem).unwrap()),
    };
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(&[head.as_bytes(), &body].concat());
    let _ = stream.shutdown(Shutdown::Both);
}

fn json(value: impl Serialize) -> Result<Vec<u8>, Problem> {
    Ok(serde_json::to_vec(&value).unwrap())
}

impl State {
    fn answer(&mut self, method: &str, path: &str, body: &str) -> Result<Vec<u8>, Problem> {
        let named = path.strip_prefix("/v1/networks/");
        match (method, path, named) {
            ("GET", "/v1/networks", _) => json(&self.networks),
            ("POST", "/v1/networks", _) => self.create(&serde_json::from_str(body).unwrap()),
            ("GET", "/v1/status", _) => json(status()),
            ("GET", "/v1/nodes", _) => json([node("host1", true), node("host2", false)]),
            ("GET", _, Some(name)) => {
                let network = self.named(name)?;
                let block = BlockDetail { block: "10.42.1.0/26".parse().unwrap(), host: "host2".into() };
                let (endpoints, away) = (self.endpoints.clone(), self.away.clone());
                json(NetworkDetail { network, blocks: vec![block], endpoints, away })
            }
            ("DELETE", _, Some(name)) => {
                let id = self.named(name)?.id;
                if let Some(endpoint) = self.endpoints.first() {
                    let message = format!("network {name} has containers on {}", endpoint.host);
                    return Err(Problem::new(ProblemKind::InUse, message));
                }
                self.networks.retain(|network| network.id != id);
                Ok(Vec::new())
            }
            _ => Err(Problem::new(ProblemKind::NotFound, format!("no {method} {path}"))),
        }
    }

    fn named(&self, name: &str) -> Result<Network, Problem> {
        let found = self.networks.iter().find(|network| network.name == name).cloned();
        found.ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("there is no network {name}")))
    }

    fn create(&mut self, ask: &NetworkCreate) -> Result<Vec<u8>, Problem> {
        if ask.vni == Some(666) {
            return Err(Problem::invalid("--opt vni", "--opt vni=666: it is network evil's"));
        }
        let asked = ask.subnets.first().map(ToString::to_string);
        let mut made = network("0123456789ab", &ask.name, &asked.unwrap_or_else(|| "10.0.0.0/16".into()));
        if let (true, Some(chosen)) = (ask.subnets.is_empty(), self.chosen) {
            made.subnets = vec![chosen];
        }
        (made.vni, made.encap) = (ask.vni.unwrap_or(4097), ask.encap);
        (made.internal, made.mtu) = (ask.internal, ask.mtu);
        (made.labels, made.options) = (ask.labels.clone(), ask.options.clone());
        self.networks.push(made.clone());
        json(made)
    }
}

fn node(name: &str, alive: bool) -> Node {
    let host = Host {
        name: name.into(),
        id: "f".repeat(32),
        epoch: 1,
        vtep: "192.0.2.7".parse().unwrap(),
        vtep_since: 1,
        segment: None,
        port: 4789,
        removed: false,
    };
    Node { host, alive, blocks: 1 }
}

fn status() -> Status {
    Status {
        host: "host1".into(),
        version: String::new(),
        vtep: None,
        store: "etcd at http://192.0.2.9:2379".into(),
        connected: false,
        store_error: Some("no answer in time".into()),
        ready: true,
        revision: 7,
        held_back: None,
        held_records: Vec::new(),
        notice: None,
        problems: Vec::new(),
        repairs: ovl_api::wire::Repairs::default(),
    }
}
