//! Networks: each is a conflist in the configuration directory. Weft's own have metadata under the key `weft`; any other
//! conflist there can be used too, with whatever plugins it names. Those of overlay networks are copies of what the overlay
//! agent knows, which is asked when a network is looked for that is not here, or is an overlay.

mod attach;
mod conflist;
mod create;
mod error;
mod file;
mod host;
mod inspect;
mod lock;
pub mod meta;
pub mod options;
pub mod overlay;
mod plan;
pub mod pools;
mod remove;
pub mod rules;
mod usage;

pub use attach::{attach, detach, unpublish};
pub use create::{Request, create, ensure_default};
pub use file::sweep;
pub use inspect::{Endpoint, inspect};
pub use remove::{prune, remove};

use crate::paths::Paths;
use crate::spec::NetAttach;
use anyhow::{Context, Result, anyhow, bail};
use cni::config::ConfList;
use ipnetwork::IpNetwork;
use meta::{KEY, Meta};
use options::Options;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// The network of containers that name none.
pub const DEFAULT: &str = ovl_api::names::DEFAULT_NETWORK;

/// A network.
#[derive(Debug, Clone)]
pub struct Network {
    /// Its file.
    pub path: PathBuf,
    /// The conflist.
    pub list: ConfList,
    /// What Weft keeps about it; nothing when somebody else wrote the file.
    pub meta: Option<Meta>,
    id: String,
}

impl Network {
    fn new(path: PathBuf, list: ConfList) -> Result<Network> {
        let meta = match list.raw.get(KEY) {
            Some(value) => match serde_json::from_value::<Meta>(value.clone()) {
                Ok(meta) => Some(meta),
                Err(error) => bail!("{}: key {KEY:?}: {error}", path.display()),
            },
            None => None,
        };
        let id = match &meta {
            Some(meta) => meta.id.clone(),
            // A foreign network has no ID: its name stands for it.
            None => Sha256::digest(list.name.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        Ok(Network { path, list, meta, id })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.list.name
    }

    /// Hexadecimal digits: 64, or the 12 of an overlay network.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `bridge` or `overlay`, or the first plugin's type of a foreign network.
    pub fn driver(&self) -> &str {
        match &self.meta {
            Some(meta) => &meta.driver,
            None => {
                self.list.plugins.first().and_then(|plugin| plugin.get("type")?.as_str()).unwrap_or("cni")
            }
        }
    }

    /// The options it was created with. A foreign network has none.
    pub fn options(&self) -> Options {
        let Some(meta) = &self.meta else { return Options::default() };
        if self.is_overlay() {
            return Options { prefix: overlay::interface_prefix(&meta.options), ..Options::default() };
        }
        Options::parse(&meta.options).unwrap_or_default()
    }

    /// Whether it spans hosts: an overlay network that this program wrote the file of.
    pub fn is_overlay(&self) -> bool {
        self.meta.as_ref().is_some_and(|meta| meta.driver == overlay::DRIVER)
    }

    /// Where it is the same network: `local` on this host, `global` on all hosts.
    pub fn scope(&self) -> &'static str {
        if self.is_overlay() { "global" } else { "local" }
    }

    /// Whether it has no way out.
    pub fn internal(&self) -> bool {
        self.meta.as_ref().is_some_and(|meta| meta.internal)
    }

    /// Whether a plugin of it takes this capability.
    pub fn takes(&self, capability: &str) -> bool {
        let declared = |plugin: &serde_json::Map<String, serde_json::Value>| {
            plugin.get("capabilities").and_then(|all| all.get(capability)?.as_bool()) == Some(true)
        };
        self.list.plugins.iter().any(declared)
    }

    /// The subnets its containers get addresses from, as far as its file says.
    pub fn subnets(&self) -> Vec<IpNetwork> {
        match &self.meta {
            Some(meta) => meta.subnets.iter().map(|subnet| subnet.subnet).collect(),
            None => {
                self.list.plugins.iter().filter_map(|plugin| plugin.get("ipam")).flat_map(foreign).collect()
            }
        }
    }

    /// The bridge's name, when it has one.
    pub fn bridge(&self) -> Option<&str> {
        self.list.plugins.iter().find_map(|plugin| plugin.get("bridge")?.as_str())
    }
}

/// Subnets named by an `ipam` of host-local's form.
fn foreign(ipam: &serde_json::Value) -> Vec<IpNetwork> {
    let sets = ipam.get("ranges").and_then(|ranges| ranges.as_array()).into_iter().flatten();
    let ranges = sets.filter_map(|set| set.as_array()).flatten().filter_map(|range| range.get("subnet"));
    let texts = ipam.get("subnet").into_iter().chain(ranges).filter_map(|subnet| subnet.as_str());
    texts.filter_map(|text| text.parse().ok()).map(pools::network_of).collect()
}

/// All networks, by name. Files that are no conflist are told about on stderr and passed over.
pub fn all(paths: &Paths) -> Vec<Network> {
    let mut all: Vec<Network> = Vec::new();
    for (path, list) in ConfList::load_dir(&paths.config_dir) {
        let network = list.map_err(anyhow::Error::from).and_then(|list| Network::new(path, list));
        match network {
            Ok(network) => match all.iter().find(|other| other.name() == network.name()) {
                Some(other) => warn(format!(
                    "{} is passed over: network {} is in {} already",
                    network.path.display(),
                    network.name(),
                    other.path.display()
                )),
                None => all.push(network),
            },
            Err(error) => warn(format!("{error:#}")),
        }
    }
    all.sort_by(|a, b| a.name().cmp(b.name()));
    all
}

/// Warns on stderr, once however often a command reads the networks.
fn warn(text: String) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if !told.contains(&text) {
        eprintln!("runtime: warning: {text}");
        told.insert(text);
    }
}

/// All networks, with those overlay networks that were made on other hosts. With the agent down a warning says so.
pub fn current(paths: &Paths) -> Vec<Network> {
    if let Err(error) = overlay::refresh(paths) {
        warn(format!("overlay networks are shown as they were last known: {error:#}"));
    }
    all(paths)
}

/// The network with this name, this ID, or the only one whose ID begins so; nothing when there is none. The agent is asked
/// for what is not here, and for whether an overlay network is still what it was.
///
/// # Errors
/// Several IDs begin so; there is none here, and the agent, which might have it, does not answer.
pub fn lookup(paths: &Paths, what: &str) -> Result<Option<Network>> {
    let found = local(paths, what)?;
    if what == DEFAULT || found.as_ref().is_some_and(|found| !found.is_overlay()) {
        return Ok(found);
    }
    if found.is_some() {
        // What this host knows of an overlay network will do when the agent cannot tell.
        let _ = overlay::confirm(paths);
        return local(paths, what);
    }
    overlay::refresh(paths)
        .with_context(|| format!("{}; overlay networks are not known", missing(paths, what)))?;
    local(paths, what)
}

fn missing(paths: &Paths, what: &str) -> String {
    format!("network {what} not found in {}", paths.config_dir.display())
}

/// As [`lookup`], of the files alone.
fn local(paths: &Paths, what: &str) -> Result<Option<Network>> {
    let mut all = all(paths);
    if let Some(at) = all.iter().position(|network| network.name() == what || network.id() == what) {
        return Ok(Some(all.swap_remove(at)));
    }
    let mut found: Vec<Network> =
        all.into_iter().filter(|network| !what.is_empty() && network.id().starts_with(what)).collect();
    if found.len() > 1 {
        bail!("{what:?} is the beginning of {} networks' IDs: write more of it", found.len());
    }
    Ok(found.pop())
}

/// As [`lookup`].
///
/// # Errors
/// There is none: names the directory that was looked in.
pub fn find(paths: &Paths, what: &str) -> Result<Network> {
    lookup(paths, what)?.ok_or_else(|| anyhow!("{}", missing(paths, what)))
}

/// Checks what attachments ask of their networks: that addresses lie in a subnet, and that a plugin takes what is asked.
///
/// # Errors
/// Names the flag and the network.
pub fn check(networks: &[Network], attaches: &[NetAttach]) -> Result<()> {
    let wanted: Vec<(Network, NetAttach)> = networks.iter().cloned().zip(attaches.iter().cloned()).collect();
    plan::plan(&wanted, &[]).map(|_| ())
}
