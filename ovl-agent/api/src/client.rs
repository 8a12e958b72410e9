//! A small blocking client of the agent's API over its Unix socket, one method a row of [`crate::wire`]'s table.
//!
//! Every call is a connection of its own with a deadline for all of it, so that neither an agent that hangs nor one that
//! is gone holds up whoever asks.

mod http;
#[cfg(test)]
mod tests;

use crate::model::Network;
use crate::wire::{
    Attach, Attached, Detach, Gc, NetworkCreate, NetworkDetail, Node, Problem, Removed, Status,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an attachment, a removal or a synchronisation may take: the agent may have to claim a block, wait for the other
/// hosts to give theirs back, or for the owner of an address.
const LONG: Duration = Duration::from_secs(10);
/// How long any other call may take.
const SHORT: Duration = Duration::from_secs(5);

/// The client. Every call is a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    long: Duration,
    short: Duration,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket: there is none, nobody listens there any more, or the agent went away before it
    /// answered (whether it did what it was asked to is not known then).
    #[error("no overlay agent answers at {socket} ({why}); start it with `ovl-agent run`")]
    NoAgent {
        /// The socket.
        socket: PathBuf,
        /// The system's error.
        why: String,
    },
    /// The agent did not answer in time. Whether it did what it was asked to is not known; what it had not begun by then, it
    /// will not do ([`crate::wire::DEADLINE`]).
    #[error("the overlay agent at {socket} did not answer {request} within {after:?}")]
    TimedOut {
        /// The socket.
        socket: PathBuf,
        /// Method and path.
        request: String,
        /// The time it had.
        after: Duration,
    },
    /// The socket is not this user's to talk to.
    #[error("the overlay agent at {socket} may not be asked by this user ({why}); it answers root alone")]
    Denied {
        /// The socket.
        socket: PathBuf,
        /// The system's error.
        why: String,
    },
    /// The agent answered with an error.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// The answer is not one.
    #[error("the overlay agent at {socket} answered with something unexpected: {why}")]
    Garbled {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// The result of the client's calls.
pub type Result<T> = std::result::Result<T, ClientError>;

impl ClientError {
    /// No agent did it, as far as one can tell: a DEL leaves a release note then.
    pub fn is_absent(&self) -> bool {
        matches!(self, ClientError::NoAgent { .. } | ClientError::TimedOut { .. })
    }

    /// What the agent said, when it said something.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            ClientError::Problem(problem) => Some(problem),
            _ => None,
        }
    }
}

impl Client {
    /// A client for the agent at this socket ([`crate::names::socket`]). Attachments and synchronisations may take 10 s,
    /// everything else 5 s.
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into(), long: LONG, short: SHORT }
    }

    /// The same with another deadline, for all calls. Zero is taken for a millisecond.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Client {
        let timeout = timeout.max(Duration::from_millis(1));
        (self.long, self.short) = (timeout, timeout);
        self
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether the agent is ready for attachments.
    ///
    /// # Errors
    /// [`ClientError::Problem`] when it is not.
    pub fn healthz(&self) -> Result<()> {
        self.ask("GET", "/healthz", self.short).map(drop)
    }

    /// How the agent is; with a network also whether an attachment to it would get an address.
    ///
    /// # Errors
    /// [`ClientError::Problem`] when it would not.
    pub fn status(&self, network: Option<&str>) -> Result<Status> {
        let query = network.map(|name| format!("?network={}", http::escape(name))).unwrap_or_default();
        self.get(&format!("/v1/status{query}"))
    }

    /// All networks.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn networks(&self) -> Result<Vec<Network>> {
        self.get("/v1/networks")
    }

    /// Makes a network.
    ///
    /// # Errors
    /// [`ClientError::Problem`] names the field that is wrong; nothing is changed then.
    pub fn create_network(&self, create: &NetworkCreate) -> Result<Network> {
        self.post("/v1/networks", create, self.short)
    }

    /// A network with its blocks and endpoints.
    ///
    /// # Errors
    /// [`ClientError::Problem`] when there is no such network.
    pub fn network_detail(&self, name: &str) -> Result<NetworkDetail> {
        self.get(&format!("/v1/networks/{}", http::escape(name)))
    }

    /// Removes a network.
    ///
    /// # Errors
    /// [`ClientError::Problem`] when there is no such network, or it has containers.
    pub fn remove_network(&self, name: &str) -> Result<()> {
        self.ask("DELETE", &format!("/v1/networks/{}", http::escape(name)), self.long).map(drop)
    }

    /// The hosts of the cluster.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn nodes(&self) -> Result<Vec<Node>> {
        self.get("/v1/nodes")
    }

    /// Declares a host gone: its blocks become free. By force also when it is alive.
    ///
    /// # Errors
    /// [`ClientError::Problem`] when there is no such host, or it is alive.
    pub fn remove_node(&self, name: &str, force: bool) -> Result<()> {
        let force = if force { "?force=true" } else { "" };
        self.ask("DELETE", &format!("/v1/nodes/{}{force}", http::escape(name)), self.long).map(drop)
    }

    /// Gets addresses for a container's interface.
    ///
    /// # Errors
    /// [`ClientError::Problem`] when there is none to be had. After [`ClientError::TimedOut`] the agent may have granted
    /// them: detach.
    pub fn attach(&self, attach: &Attach) -> Result<Attached> {
        self.post("/v1/attach", attach, self.long)
    }

    /// Gives an attachment's addresses back; also when it has none.
    ///
    /// # Errors
    /// See [`ClientError`]. After [`ClientError::TimedOut`] a release note ([`crate::notes`]) is the way: this is not done
    /// any more.
    pub fn detach(&self, detach: &Detach) -> Result<()> {
        self.send("POST", "/v1/detach", &to_json(detach), self.short).map(drop)
    }

    /// Ends all attachments of a network on this host but these.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn gc(&self, gc: &Gc) -> Result<Removed> {
        self.post("/v1/gc", gc, self.short)
    }

    /// Waits until the kernel shows all that the store holds now.
    ///
    /// # Errors
    /// [`ClientError::Problem`] when the store or the kernel refuses.
    pub fn sync(&self) -> Result<Status> {
        self.parse(&self.send("POST", "/v1/sync", b"", self.long)?)
    }

    /// Lets a snapshot that is held back, because too many hosts vanished at once, be applied.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn accept(&self) -> Result<()> {
        self.send("POST", "/v1/accept", b"", self.short).map(drop)
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.parse(&self.ask("GET", path, self.short)?)
    }

    fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize, time: Duration) -> Result<T> {
        self.parse(&self.send("POST", path, &to_json(body), time)?)
    }

    fn ask(&self, method: &str, path: &str, time: Duration) -> Result<Vec<u8>> {
        self.send(method, path, b"", time)
    }

    /// The body of a good answer; an error of the agent as [`ClientError::Problem`].
    fn send(&self, method: &str, path: &str, body: &[u8], time: Duration) -> Result<Vec<u8>> {
        let answer = http::exchange(&self.socket, method, path, body, time)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        match serde_json::from_slice::<Problem>(&answer.body) {
            Ok(problem) => Err(ClientError::Problem(problem)),
            Err(_) => {
                Err(http::garbled(&self.socket, format!("status {} to {method} {path}", answer.status)))
            }
        }
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T> {
        serde_json::from_slice(body).map_err(|error| http::garbled(&self.socket, error.to_string()))
    }
}

/// The wire types are structs of plain fields with text keys: serde_json has no reason to refuse them.
fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
