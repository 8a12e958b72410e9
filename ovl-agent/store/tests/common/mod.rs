//! A real etcd for tests: on loopback ports that were free, with its data in a temporary directory, ended by its id.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::future::Future;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ovl_store::target::{EtcdConf, Target};
use ovl_store::{Compare, Done, Event, Kv, Op, Result, Txn, Watch};
use proptest::prelude::*;

/// Bound of everything that happens eventually.
pub const SOON: Duration = Duration::from_secs(20);

/// False, and said so, when there is no etcd here.
pub fn installed() -> bool {
    let found = Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("skipped: etcd is not installed");
    }
    found
}

/// TLS files of a server.
#[derive(Clone)]
pub struct ServerTls {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Clients have to show a certificate of this authority.
    pub client_ca: Option<PathBuf>,
}

/// A running etcd, a cluster of one.
pub struct Server {
    child: Option<Child>,
    dir: tempfile::TempDir,
    port: u16,
    peer: u16,
    tls: Option<ServerTls>,
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    pub fn start() -> Server {
        Server::start_with(None)
    }

    pub fn start_with(tls: Option<ServerTls>) -> Server {
        for _ in 0..5 {
            let (port, peer) = (free_port(), free_port());
            let dir = tempfile::tempdir().unwrap();
            let mut server = Server { child: None, dir, port, peer, tls: tls.clone() };
            // Another test may have taken a port meanwhile.
            if server.run() {
                return server;
            }
        }
        panic!("etcd does not start");
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts it; true when it serves.
    fn run(&mut self) -> bool {
        self.kill();
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer));
        let mut command = Command::new("etcd");
        command
            .args(["--name", "t", "--logger", "zap", "--log-outputs", "stderr", "--data-dir"])
            .arg(self.data());
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("t={peer}")]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "300"]);
        if let Some(tls) = &self.tls {
            command.arg("--cert-file").arg(&tls.cert).arg("--key-file").arg(&tls.key);
            if let Some(ca) = &tls.client_ca {
                command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            }
        }
        let log = self.dir.path().join("log");
        let log_from = std::fs::metadata(&log).map_or(0, |m| m.len() as usize);
        let to = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(to).spawn().unwrap();
        self.child = Some(child);
        let since = Instant::now();
        while since.elapsed() < SOON {
            let text = std::fs::read(&log).unwrap();
            if String::from_utf8_lossy(&text[log_from..]).contains("serving client traffic")
                && std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
            {
                return true;
            }
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill();
        false
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Goes on with the same data on the same port.
    pub fn restart(&mut self) {
        // Its port may be taken for a moment by a connection that someone makes.
        let again = (0..20).any(|_| {
            self.run() || {
                std::thread::sleep(Duration::from_millis(250));
                false
            }
        });
        assert!(again, "etcd does not start again");
    }

    pub fn wipe(&self) {
        std::fs::remove_dir_all(self.data()).unwrap();
    }

    pub fn conf(&self) -> EtcdConf {
        EtcdConf::new(&self.url()).unwrap()
    }

    pub async fn open(&self) -> Kv {
        open(self.conf()).await
    }

    /// The library's own client, for what the store does not do.
    pub async fn raw(&self) -> etcd_client::Client {
        etcd_client::Client::connect([self.url()], None).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub async fn open(conf: EtcdConf) -> Kv {
    Kv::open(&Target::Etcd(conf)).await.unwrap()
}

pub async fn open_local(dir: &Path) -> Kv {
    Kv::open(&Target::Local(dir.to_owned())).await.unwrap()
}

pub fn put(key: &str, value: &str) -> Op {
    Op::Put(key.into(), value.into(), None)
}

pub fn get(from: &str, to: &str) -> Op {
    Op::Get(from.into(), to.into())
}

pub fn del(key: &str) -> Op {
    Op::Delete(key.into())
}

pub fn then(then: impl Into<Vec<Op>>) -> Txn {
    Txn { then: then.into(), ..Txn::default() }
}

pub fn when(when: impl Into<Vec<Compare>>, then: impl Into<Vec<Op>>, otherwise: impl Into<Vec<Op>>) -> Txn {
    Txn { when: when.into(), then: then.into(), otherwise: otherwise.into() }
}

/// Sets one key.
pub async fn set(kv: &Kv, key: &str, value: &str) -> Done {
    kv.commit(then([put(key, value)])).await.unwrap()
}

/// Bounded in time, so that a test fails rather than hangs.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("not in time")
}

/// The next changes of a watch as (key, value, revision), without notices of progress.
pub async fn changes(watch: &mut Watch) -> Vec<(String, Option<String>, i64)> {
    loop {
        match soon(watch.next()).await.unwrap() {
            Event::Progress(_) => {}
            Event::Changes(changes) => {
                let text = |value: Vec<u8>| String::from_utf8(value).unwrap();
                return changes.into_iter().map(|c| (c.key, c.value.map(text), c.revision)).collect();
            }
        }
    }
}

/// Tries until it succeeds.
pub async fn eventually<T, F: Future<Output = Result<T>>>(f: impl Fn() -> F) -> T {
    let since = Instant::now();
    loop {
        match soon(f()).await {
            Ok(done) => return done,
            Err(e) => assert!(since.elapsed() < SOON, "{e}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Few keys, some of them prefixes of others.
pub fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "c", "c/", "c/a", "c/ab", "c/b", "c/~", "d/x"]).prop_map(String::from)
}

/// Any condition.
pub fn compare() -> impl Strategy<Value = Compare> {
    prop_oneof![
        key().prop_map(Compare::Absent),
        key().prop_map(Compare::Present),
        (key(), 0..40_i64).prop_map(|(key, revision)| Compare::Unchanged(key, revision)),
        (key(), key()).prop_map(|(from, to)| Compare::Empty(from, to)),
    ]
}

/// Any step.
pub fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (key(), "[0-9]{0,3}").prop_map(|(key, value)| Op::Put(key, value.into(), None)),
        2 => key().prop_map(Op::Delete),
        1 => (key(), key()).prop_map(|(from, to)| Op::DeleteRange(from, to)),
        3 => (key(), key()).prop_map(|(from, to)| Op::Get(from, to)),
    ]
}
