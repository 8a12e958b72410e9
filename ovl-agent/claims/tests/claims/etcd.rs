//! A real etcd, with a connection to it that can be cut or made deaf.

use ovl_store::etcd::Tuning;
use ovl_store::target::EtcdConf;
use ovl_store::{Kv, Target};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// One member, on free loopback ports, which is killed when this is dropped.
pub struct Etcd {
    child: Child,
    dir: super::agent::Dir,
    client: u16,
    peer: u16,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    /// None, with a word on it, where etcd is not installed.
    pub async fn start() -> Option<Etcd> {
        if !Path::new("/usr/bin/etcd").exists() {
            eprintln!("skipped: etcd is not installed");
            return None;
        }
        let dir = super::agent::dir();
        let (client, peer) = (free_port(), free_port());
        let child = spawn(dir.path(), client, peer);
        let etcd = Etcd { child, dir, client, peer };
        etcd.up().await;
        Some(etcd)
    }

    async fn up(&self) {
        let since = Instant::now();
        while TcpStream::connect(self.address()).await.is_err() {
            assert!(since.elapsed() < Duration::from_secs(30), "etcd does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub async fn restart(&mut self) {
        self.child = spawn(self.dir.path(), self.client, self.peer);
        self.up().await;
    }

    /// Begins anew with nothing, as after the loss of its data.
    pub async fn restart_empty(&mut self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
        self.restart().await;
    }

    /// Keeps its data aside, or takes up what was kept; not while it runs.
    pub fn keep(&self) {
        copy(&self.dir.path().join("data"), &self.dir.path().join("kept"));
    }

    pub fn set_back(&self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
        copy(&self.dir.path().join("kept"), &self.dir.path().join("data"));
    }

    /// Takes a snapshot, as for a backup.
    pub fn save(&self) {
        let file = self.dir.path().join("snapshot");
        let endpoint = format!("--endpoints=http://{}", self.address());
        etcdctl(&[endpoint.as_ref(), "snapshot".as_ref(), "save".as_ref(), file.as_os_str()]);
    }

    /// Restores the snapshot, as the manual says, and starts again.
    pub async fn restore(&mut self) {
        self.kill();
        let (file, data) = (self.dir.path().join("snapshot"), self.dir.path().join("data"));
        std::fs::remove_dir_all(&data).unwrap();
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let (cluster, peers) =
            (format!("--initial-cluster=one={peer}"), format!("--initial-advertise-peer-urls={peer}"));
        let mut dir = std::ffi::OsString::from("--data-dir=");
        dir.push(&data);
        let words = ["snapshot", "restore", "--name=one", &cluster, &peers].map(std::ffi::OsStr::new);
        etcdctl(&[&words[..], &[dir.as_os_str(), file.as_os_str()]].concat());
        self.restart().await;
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.client))
    }

    pub async fn kv(&self) -> Kv {
        kv(self.address()).await
    }

    /// Asks the JSON gateway.
    pub async fn post(&self, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn etcdctl(words: &[&std::ffi::OsStr]) {
    let done = Command::new("/usr/bin/etcdctl").env("ETCDCTL_API", "3").args(words).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

fn spawn(dir: &Path, client: u16, peer: u16) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    Command::new("/usr/bin/etcd")
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args(["--name", "one", "--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}"), "--unsafe-no-fsync"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The store at an address.
pub async fn kv(address: SocketAddr) -> Kv {
    Kv::open(&Target::Etcd(conf(address))).await.unwrap()
}

/// The same; the watches lose changes of some keys, and it can be asked what was read.
pub fn lossy(address: SocketAddr, lose: fn(&[u8]) -> bool) -> ovl_store::etcd::Etcd {
    let tuning = Tuning { lose, ..Tuning::default() };
    ovl_store::etcd::Etcd::tuned(&conf(address), tuning).unwrap()
}

fn conf(address: SocketAddr) -> EtcdConf {
    EtcdConf {
        endpoints: vec![format!("http://{address}")],
        prefix: "/weft/".to_owned(),
        ca: None,
        cert: None,
        key: None,
        server_name: None,
        user: None,
    }
}

/// Stands between a node and etcd.
pub struct Proxy {
    pub address: SocketAddr,
    /// What etcd answers is thrown away; what it is told gets through.
    deaf: Arc<AtomicBool>,
    /// Changed to end all connections; while true, new ones end at once.
    cut: watch::Sender<bool>,
}

impl Proxy {
    pub async fn start(to: SocketAddr) -> Proxy {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (deaf, cut) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(false));
        let (is_deaf, is_cut) = (Arc::clone(&deaf), cut.subscribe());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, to, Arc::clone(&is_deaf), is_cut.clone()));
            }
        });
        Proxy { address, deaf, cut }
    }

    pub fn deafen(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }

    /// Ends all connections, and those to come until it is healed.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Ends all connections; new ones work.
    pub fn heal(&self) {
        self.cut.send_replace(true);
        self.deaf.store(false, Ordering::SeqCst);
        self.cut.send_replace(false);
    }
}

async fn pass(client: TcpStream, to: SocketAddr, deaf: Arc<AtomicBool>, mut cut: watch::Receiver<bool>) {
    if *cut.borrow_and_update() {
        return;
    }
    let Ok(server) = TcpStream::connect(to).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    let down = async {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count) = from_server.read(&mut buffer).await {
            if count == 0 {
                return;
            }
            if !deaf.load(Ordering::SeqCst) && to_client.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = up => {}
        () = down => {}
        _ = cut.changed() => {}
    }
}
