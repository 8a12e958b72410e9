//! Which running agent has a node's identity: the value of the node's liveness key.
//!
//! The node's record says which installation has a name. A copy of an installation's directory (a cloned machine, a backup that
//! is restored elsewhere) has the same record and the same claims, and both would give the same addresses. The liveness key
//! lives as long as an agent runs, so it says where that agent runs.

use ovl_store::KeyValue;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Where an agent's directory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The boot of the machine: two machines that run have different ones.
    pub(crate) boot: String,
    /// Device and inode of the agent's directory: a copy on the same machine has others. A lock lets one agent use it.
    pub(crate) root: String,
}

impl Place {
    /// The place of a directory that exists.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn of(boot: &str, root: &Path) -> std::io::Result<Place> {
        let about = std::fs::metadata(root)?;
        Ok(Place { boot: boot.to_owned(), root: format!("{:x}:{}", about.dev(), about.ino()) })
    }
}

/// The value of a liveness key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    #[serde(flatten)]
    pub(crate) place: Place,
    /// Random, of one process.
    pub(crate) session: String,
    /// The VTEP of that agent, for messages.
    pub(crate) vtep: IpAddr,
}

impl Token {
    /// The token of an agent that runs at another place. None for a key without a token, as an older release writes it.
    pub(crate) fn of_other(live: Option<&KeyValue>, place: &Place) -> Option<Token> {
        let token: Token = serde_json::from_slice(&live?.value).ok()?;
        (token.place != *place).then_some(token)
    }
}
