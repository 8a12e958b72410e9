//! The node's files, all below the agent's root: who this installation is (`identity.json`), what it owns (`own.json`),
//! the view last seen (`view.json`), and an endpoint each (`endpoints/VETH.json`).
//!
//! All are replaced whole. Only the identity is synced to the disk: a reboot voids leases, so what the others say is only
//! believed to give addresses by when it was written during this boot.

use crate::random;
use crate::token::Place;
use ipnetwork::IpNetwork;
use ovl_api::model::{Endpoint, Host, Network};
use ovl_api::wire::{Problem, ProblemKind};
use rustix::fs::{AtFlags, StatxFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{BufWriter, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Who this installation is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// 32 hexadecimal digits.
    pub(crate) id: String,
    /// The epoch it last registered with, or was about to.
    pub(crate) epoch: u64,
    /// The name it last registered with; older releases did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Where it was when it last registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) place: Option<Place>,
    /// The machine it last registered on ([`crate::NodeConf::machine`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) machine: Option<String>,
}

/// What this host owned last, and what it lent. Written before a block is used, before one is given back, and before an
/// address in one is lent, so that it never names more than this host may give.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OwnFile {
    pub(crate) boot: String,
    /// Where it was written ([`Place::root`]); older releases did not say.
    #[serde(default)]
    pub(crate) root: Option<String>,
    /// That of the file it was written to ([`stamp`]): a copy has another one.
    #[serde(default)]
    pub(crate) stamp: Option<String>,
    pub(crate) host: Host,
    pub(crate) changed: i64,
    pub(crate) blocks: Vec<(String, IpNetwork, i64)>,
    pub(crate) singles: Vec<(String, IpAddr, i64)>,
    pub(crate) lent: Vec<(String, IpAddr, String)>,
    pub(crate) networks: Vec<(Network, i64)>,
}

/// The view last seen, for the kernel's sake: this host's own part is in [`OwnFile`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ViewFile {
    pub(crate) cluster: Option<u64>,
    pub(crate) revision: i64,
    #[serde(default)]
    pub(crate) subnets: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) history: Option<crate::restored::History>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) networks: Vec<(Network, i64)>,
    pub(crate) owners: Vec<(String, IpNetwork, String)>,
}

/// An endpoint of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Local {
    #[serde(flatten)]
    pub(crate) endpoint: Endpoint,
    /// The network's name, to be found by when the store's network is gone.
    pub(crate) name: String,
    pub(crate) boot: String,
    #[serde(default)]
    pub(crate) netns: Option<String>,
    /// Which attachment of this node's life it is; 0: of an earlier one.
    #[serde(skip)]
    pub(crate) ticket: u64,
}

/// Where the files are.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    root: PathBuf,
}

/// A problem with a file, for people.
pub(crate) fn trouble(what: &str, path: &Path, why: &dyn std::fmt::Display) -> Problem {
    Problem::new(ProblemKind::Internal, format!("cannot {what} {}: {why}", path.display()))
}

impl Files {
    /// Makes the directories.
    pub(crate) fn open(root: &Path) -> Result<Files, Problem> {
        let files = Files { root: root.to_owned() };
        let endpoints = files.endpoints();
        fs::create_dir_all(&endpoints).map_err(|e| trouble("make", &endpoints, &e))?;
        Ok(files)
    }

    /// Where these files are.
    pub(crate) fn place(&self, boot: &str) -> Result<Place, Problem> {
        Place::of(boot, &self.root).map_err(|e| trouble("read", &self.root, &e))
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }

    pub(crate) fn notes(&self) -> PathBuf {
        ovl_api::names::release_notes(&self.root)
    }

    fn endpoints(&self) -> PathBuf {
        self.root.join("endpoints")
    }

    fn endpoint(&self, veth: &str) -> PathBuf {
        self.endpoints().join(format!("{veth}.json"))
    }

    /// This installation, made up at the first start.
    pub(crate) fn identity(&self) -> Result<Identity, Problem> {
        let path = self.root.join("identity.json");
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| trouble("understand", &path, &e)),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let id = random::id(16).map_err(|e| trouble("read", Path::new("/dev/urandom"), &e))?;
                let identity = Identity { id, epoch: 0, name: None, place: None, machine: None };
                self.save_identity(&identity)?;
                Ok(identity)
            }
            Err(e) => Err(trouble("read", &path, &e)),
        }
    }

    pub(crate) fn save_identity(&self, identity: &Identity) -> Result<(), Problem> {
        let path = self.root.join("identity.json");
        replace(&path, true, |file| Ok(serde_json::to_writer(file, identity)?))
    }

    /// What was owned last; None when that is not known, from another boot, or the file is a copy, as of a backup.
    pub(crate) fn own(&self, place: &Place) -> Option<OwnFile> {
        let path = self.root.join("own.json");
        let own: OwnFile = read(&path)?;
        let is_here = own.root.as_ref().is_none_or(|root| *root == place.root);
        // Older releases wrote no stamp.
        let is_original = own.stamp.is_none() || own.stamp == stamp(&fs::File::open(&path).ok()?);
        (own.boot == place.boot && is_here && is_original).then_some(own)
    }

    /// Writes what is owned; None: nothing is known to be.
    pub(crate) fn save_own(&self, own: Option<OwnFile>) -> Result<(), Problem> {
        let path = self.root.join("own.json");
        match own {
            Some(mut own) => replace(&path, false, |file| {
                own.stamp = stamp(file.get_ref());
                Ok(serde_json::to_writer(file, &own)?)
            }),
            None => remove(&path),
        }
    }

    pub(crate) fn view(&self) -> Option<ViewFile> {
        read(&self.root.join("view.json"))
    }

    pub(crate) fn save_view(&self, view: &ViewFile) -> Result<(), Problem> {
        replace(&self.root.join("view.json"), false, |file| Ok(serde_json::to_writer(file, view)?))
    }

    pub(crate) fn save_endpoint(&self, local: &Local) -> Result<(), Problem> {
        replace(&self.endpoint(&local.endpoint.veth), false, |file| Ok(serde_json::to_writer(file, local)?))
    }

    pub(crate) fn remove_endpoint(&self, veth: &str) -> Result<(), Problem> {
        remove(&self.endpoint(veth))
    }

    /// All endpoints that can be read; what cannot is set aside, and logged.
    pub(crate) fn locals(&self) -> Result<Vec<Local>, Problem> {
        let dir = self.endpoints();
        let mut locals = Vec::new();
        for entry in fs::read_dir(&dir).map_err(|e| trouble("read", &dir, &e))? {
            let path = entry.map_err(|e| trouble("read", &dir, &e))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read::<Local>(&path) {
                Some(local) if path == self.endpoint(&local.endpoint.veth) => locals.push(local),
                _ => {
                    tracing::warn!("{} is no endpoint's file; it is set aside", path.display());
                    let aside = path.with_extension("damaged");
                    fs::rename(&path, &aside).map_err(|e| trouble("set aside", &path, &e))?;
                }
            }
        }
        Ok(locals)
    }
}

/// Reads a file that may be missing or damaged: it is as good as missing then, which is logged.
fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return None,
        Err(e) => {
            tracing::warn!("cannot read {}: {e}", path.display());
            return None;
        }
    };
    let parsed = serde_json::from_slice(&text);
    parsed.map_err(|e| tracing::warn!("cannot understand {}: {e}", path.display())).ok()
}

/// What tells a file from a copy of it, also from one that was written over it: its inode and the time at which that was made,
/// which nothing can set. None where the file system does not keep that.
fn stamp(file: &fs::File) -> Option<String> {
    // std has no birth time with musl.
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let about = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted).ok()?;
    let made = StatxFlags::from_bits_retain(about.stx_mask).contains(wanted).then_some(about.stx_btime)?;
    Some(format!("{:x}:{:x}.{:x}", about.stx_ino, made.tv_sec, made.tv_nsec))
}

fn replace(
    path: &Path,
    sync: bool,
    write: impl FnOnce(&mut BufWriter<fs::File>) -> std::io::Result<()>,
) -> Result<(), Problem> {
    let new = path.with_extension("new");
    let written = (|| {
        let mut file = BufWriter::new(fs::File::create(&new)?);
        write(&mut file)?;
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        if sync {
            file.sync_all()?;
        }
        fs::rename(&new, path)
    })();
    written.map_err(|e| trouble("write", path, &e))
}

/// Removes a file; one that is not there is no error.
pub(crate) fn remove(path: &Path) -> Result<(), Problem> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(trouble("remove", path, &e)),
        _ => Ok(()),
    }
}
