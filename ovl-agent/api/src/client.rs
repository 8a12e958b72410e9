//! A small blocking client of the agent's API over its Unix socket.

use crate::wire::Problem;
use std::path::{Path, PathBuf};

/// The client. Every call is a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error("no overlay agent answers at {socket} ({why}); start it with `ovl-agent run`")]
    NoAgent {
        /// The socket.
        socket: PathBuf,
        /// The system's error.
        why: String,
    },
    /// The agent answered with an error.
    #[error("{0}")]
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

impl Client {
    /// A client for the agent at this socket ([`crate::names::socket`]).
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into() }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}
