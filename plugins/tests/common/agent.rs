//! An overlay agent of the tests: it answers on a Unix socket from a script, and keeps what it was asked.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// VNI 42.
pub const GROUP: u32 = 0x5700_002a;

#[derive(Default)]
struct State {
    /// Answers that are not the usual ones, by path.
    canned: Vec<(String, u16, Value)>,
    /// The same for one answer each.
    once: Vec<(String, u16, Value)>,
    /// Keys of the network that are not the usual ones.
    network: Value,
    asked: Vec<(String, Value)>,
}

/// The agent. Dropped, nobody answers at its socket any more.
pub struct Agent {
    dir: TempDir,
    state: Arc<Mutex<State>>,
    ended: Arc<Mutex<bool>>,
}

impl Agent {
    /// One that grants container `cN` the addresses 10.42.0.N and fd00:42::N in the network that is asked for.
    pub fn new() -> Agent {
        let agent = Agent::absent();
        agent.start();
        agent
    }

    /// A socket at which nobody answers yet.
    pub fn absent() -> Agent {
        Agent { dir: tempfile::tempdir().unwrap(), state: Arc::default(), ended: Arc::new(Mutex::new(true)) }
    }

    /// Begins to answer.
    pub fn start(&self) {
        let _ = std::fs::remove_file(self.socket());
        let listener = UnixListener::bind(self.socket()).unwrap();
        *self.ended.lock().unwrap() = false;
        let (state, ended) = (self.state.clone(), self.ended.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if *ended.lock().unwrap() {
                    return;
                }
                serve(&state, stream.unwrap());
            }
        });
    }

    /// Goes away; the socket stays, as one of a killed process does.
    pub fn stop(&self) {
        *self.ended.lock().unwrap() = true;
        let _ = UnixStream::connect(self.socket());
        let gone = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(2));
            UnixStream::connect(self.socket()).is_err()
        });
        assert!(gone);
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// Has a path answered with a status and a document, until [`Agent::usual`].
    pub fn answer(&self, path: &str, status: u16, document: Value) {
        self.state.lock().unwrap().canned.insert(0, (path.to_owned(), status, document));
    }

    /// Has the next question of a path answered with a problem.
    pub fn refuse_once(&self, path: &str, status: u16, kind: &str) {
        self.state.lock().unwrap().once.push((path.to_owned(), status, problem(kind)));
    }

    /// Has a path answered with a problem.
    pub fn refuse(&self, path: &str, status: u16, kind: &str) {
        self.answer(path, status, problem(kind));
    }

    /// Answers as ever again.
    pub fn usual(&self) {
        self.state.lock().unwrap().canned.clear();
    }

    /// Grants networks with these keys set.
    pub fn network(&self, keys: Value) {
        self.state.lock().unwrap().network = keys;
    }

    /// What was asked since the last call: path and document.
    pub fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    /// The configuration of a network that this agent has.
    pub fn conf(&self, name: &str) -> Value {
        json!({"cniVersion": "1.1.0", "name": name, "type": "overlay", "socket": self.socket().to_str().unwrap()})
    }
}

fn problem(kind: &str) -> Value {
    json!({"kind": kind, "message": format!("made to be {kind}")})
}

impl Drop for Agent {
    fn drop(&mut self) {
        if !*self.ended.lock().unwrap() {
            self.stop();
        }
    }
}

fn serve(state: &Mutex<State>, stream: UnixStream) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut field = String::new();
        if reader.read_line(&mut field).unwrap_or(0) == 0 || field == "\r\n" {
            break;
        }
        if let Some(value) = field.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    // The other side may have been killed.
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let asked: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let mut state = state.lock().unwrap();
    let once = state.once.iter().position(|(each, ..)| *each == path).map(|at| state.once.remove(at));
    let canned = once.or_else(|| state.canned.iter().find(|(each, ..)| *each == path).cloned());
    let (status, document) = match canned {
        Some((_, status, document)) => (status, document),
        None => usual(&path, &asked, &state.network),
    };
    state.asked.push((path, asked));
    drop(state);
    let text = if document.is_null() { String::new() } else { document.to_string() };
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
    let _ = reader.get_mut().write_all((head + &text).as_bytes());
    let _ = reader.get_mut().shutdown(Shutdown::Both);
}

fn usual(path: &str, asked: &Value, keys: &Value) -> (u16, Value) {
    match path.split('?').next().unwrap() {
        "/v1/attach" => (200, grant(asked, keys)),
        "/v1/gc" => (200, json!({"removed": 0})),
        "/v1/detach" => (204, Value::Null),
        "/v1/status" => {
            let status = json!({"host": "h", "version": "0", "vtep": null, "store": "local", "connected": true,
                "ready": true, "revision": 1});
            (200, status)
        }
        _ => (404, json!({"kind": "not-found", "message": format!("no {path}")})),
    }
}

fn grant(asked: &Value, keys: &Value) -> Value {
    let mut network = json!({
        "id": "0123456789ab", "name": asked["network"], "vni": 42, "created": "2026-01-01T00:00:00Z",
        "subnets": [
            {"subnet": "10.42.0.0/16", "gateway": "10.42.0.1", "block": 26},
            {"subnet": "fd00:42::/64", "gateway": "fd00:42::1", "block": 80},
        ],
    });
    for (key, value) in keys.as_object().into_iter().flatten() {
        network[key] = value.clone();
    }
    let number = asked["container"].as_str().unwrap().trim_start_matches('c');
    let families = network["subnets"].as_array().unwrap().len();
    let addresses = [format!("10.42.0.{number}/16"), format!("fd00:42::{number}/64")];
    let mac = asked["mac"].as_str().map_or(format!("02:00:00:00:00:{number:0>2}"), str::to_owned);
    json!({"network": network, "addresses": addresses[..families], "mac": mac, "mtu": 1450, "group": GROUP})
}
