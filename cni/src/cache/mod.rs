//! The results of ADDs, kept until DEL in files as libcni has them: other runtimes' entries can be read, and they ours.

mod base64;

use crate::config::read_document;
use crate::error::Error;
use crate::invoke::Attachment;
use crate::types::AddResult;
use crate::version::Version;
use serde_json::{Map, Value};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What the files say they are.
const KIND: &str = "cniCacheV1";

/// A directory with a file per attachment, `<network>-<containerID>-<ifname>`. libcni's is /var/lib/cni/results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// The directory; it is made when the first entry is.
    pub dir: PathBuf,
}

/// What is kept of an attachment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CacheEntry {
    /// The network's name.
    pub network: String,
    /// The container's ID.
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
    /// The path of the container's network namespace.
    pub netns: Option<PathBuf>,
    /// What ADD got as `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// The values that ADD got for capabilities.
    pub capability_args: Map<String, Value>,
    /// The network configuration list that ADD used, as JSON.
    pub config: Vec<u8>,
    /// The result of the whole chain, as it was printed.
    pub result: Option<Value>,
}

impl CacheEntry {
    /// The result; `None` when the entry has none.
    ///
    /// # Errors
    /// Code 6 for what is not a result, code 1 for one of an unknown version.
    pub fn result(&self) -> Result<Option<AddResult>, Error> {
        self.result.as_ref().map(AddResult::from_json).transpose()
    }

    /// The result as a document of this version.
    ///
    /// # Errors
    /// As [`CacheEntry::result`] and [`AddResult::to_json`].
    pub fn result_as(&self, version: Version) -> Result<Option<Value>, Error> {
        let said = self.result.as_ref().and_then(|result| result.get("cniVersion")?.as_str());
        if said == Some(version.as_str()) {
            return Ok(self.result.clone());
        }
        self.result()?.map(|result| result.to_json(version)).transpose()
    }

    /// The attachment as it was asked for.
    pub fn attachment(&self) -> Attachment {
        Attachment {
            container_id: self.container_id.clone(),
            netns: self.netns.clone(),
            ifname: self.ifname.clone(),
            args: self.args.clone(),
            capability_args: self.capability_args.clone(),
        }
    }

    fn to_json(&self) -> Value {
        let mut to = Map::new();
        to.insert("kind".into(), KIND.into());
        to.insert("containerId".into(), self.container_id.as_str().into());
        to.insert("config".into(), base64::encode(&self.config).into());
        to.insert("ifName".into(), self.ifname.as_str().into());
        to.insert("networkName".into(), self.network.as_str().into());
        if let Some(netns) = &self.netns {
            to.insert("netns".into(), netns.to_string_lossy().into());
        }
        if !self.args.is_empty() {
            let pair = |(key, value): &(String, String)| Value::from(vec![key.as_str(), value.as_str()]);
            to.insert("cniArgs".into(), self.args.iter().map(pair).collect());
        }
        if !self.capability_args.is_empty() {
            to.insert("capabilityArgs".into(), self.capability_args.clone().into());
        }
        if let Some(result) = &self.result {
            to.insert("result".into(), result.clone());
        }
        to.into()
    }

    /// `None` for a document of another kind.
    fn from_json(from: &Value) -> Option<CacheEntry> {
        let text = |key: &str| from.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("kind") != KIND {
            return None;
        }
        let pair =
            |pair: &Value| Some((pair.get(0)?.as_str()?.to_owned(), pair.get(1)?.as_str()?.to_owned()));
        let args = from.get("cniArgs").and_then(Value::as_array);
        Some(CacheEntry {
            network: text("networkName").into(),
            container_id: text("containerId").into(),
            ifname: text("ifName").into(),
            netns: Some(text("netns")).filter(|netns| !netns.is_empty()).map(PathBuf::from),
            args: args.map(|args| args.iter().filter_map(pair).collect()).unwrap_or_default(),
            capability_args: from
                .get("capabilityArgs")
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default(),
            config: base64::decode(text("config")).unwrap_or_default(),
            result: from.get("result").filter(|result| !result.is_null()).cloned(),
        })
    }
}

impl Cache {
    /// A cache in this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Cache {
        Cache { dir: dir.into() }
    }

    /// The file of an attachment.
    pub fn path(&self, network: &str, container_id: &str, ifname: &str) -> PathBuf {
        self.dir.join(format!("{network}-{container_id}-{ifname}"))
    }

    /// Keeps an entry. A reader finds the old one or the new one, never half of one.
    ///
    /// # Errors
    /// Code 5 when it cannot be written.
    pub fn put(&self, entry: &CacheEntry) -> Result<(), Error> {
        let path = self.path(&entry.network, &entry.container_id, &entry.ifname);
        // A leading dot cannot collide with an entry: networks' names start with a letter or digit.
        let part = self.dir.join(format!(
            ".{}-{}-{}.{}",
            entry.network,
            entry.container_id,
            entry.ifname,
            std::process::id()
        ));
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
            file.write_all(entry.to_json().to_string().as_bytes())?;
            fs::rename(&part, &path)
        };
        // Another process may remove the directory, or one above it, while it is empty.
        const TRIES: usize = 1000;
        let mut written = write();
        for _ in 0..TRIES {
            match &written {
                Err(error) if error.kind() == io::ErrorKind::NotFound => written = write(),
                _ => break,
            }
        }
        written.map_err(|error| {
            // Whether or not it was made.
            let _ = fs::remove_file(&part);
            Error::io(format!("cannot keep the result in {}", path.display()), error)
        })
    }

    /// The entry of an attachment; `None` when there is none. Files from before libcni 0.8 hold the result alone.
    ///
    /// # Errors
    /// Code 5 when it cannot be read, code 6 when it is damaged.
    pub fn get(&self, network: &str, container_id: &str, ifname: &str) -> Result<Option<CacheEntry>, Error> {
        let Some(document) = load(&self.path(network, container_id, ifname))? else { return Ok(None) };
        let bare = |result: Value| CacheEntry {
            network: network.into(),
            container_id: container_id.into(),
            ifname: ifname.into(),
            result: Some(result),
            ..CacheEntry::default()
        };
        Ok(Some(CacheEntry::from_json(&document).unwrap_or_else(|| bare(document))))
    }

    /// Forgets an attachment; it is no error when there is nothing to forget.
    ///
    /// # Errors
    /// Code 5 when the file cannot be removed.
    pub fn remove(&self, network: &str, container_id: &str, ifname: &str) -> Result<(), Error> {
        let path = self.path(network, container_id, ifname);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("cannot remove {}", path.display()), error))
            }
            _ => Ok(()),
        }
    }

    /// Removes what writers of a container's entries left that were killed before the entry was whole. None of them may be
    /// at work.
    pub fn remove_parts(&self, container_id: &str) {
        let part = format!("-{container_id}-");
        for file in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = file.file_name();
            if name.to_str().is_some_and(|name| name.starts_with('.') && name.contains(&part)) {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    /// Every entry, by file name. Files that are damaged, or that are no entries, are passed over.
    ///
    /// # Errors
    /// Code 5 when the directory cannot be read.
    pub fn entries(&self) -> Result<Vec<CacheEntry>, Error> {
        let failed =
            |error: io::Error| Error::io(format!("cannot read the directory {}", self.dir.display()), error);
        let listing = match fs::read_dir(&self.dir) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut names = Vec::new();
        for file in listing {
            match file {
                Ok(file) => names.push(file.file_name()),
                // The directory was removed meanwhile, so it was empty.
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(failed(error)),
            }
        }
        names.sort_unstable();
        names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
        let read = |name| CacheEntry::from_json(&load(&self.dir.join(name)).ok()??);
        let complete = |entry: &CacheEntry| !entry.network.is_empty() && !entry.ifname.is_empty();
        Ok(names.into_iter().filter_map(read).filter(complete).collect())
    }

    /// The entries of a container.
    ///
    /// # Errors
    /// As [`Cache::entries`].
    pub fn find_container(&self, container_id: &str) -> Result<Vec<CacheEntry>, Error> {
        let mut entries = self.entries()?;
        entries.retain(|entry| entry.container_id == container_id);
        Ok(entries)
    }
}

/// Reads a file's JSON; `None` when there is no such file.
fn load(path: &Path) -> Result<Option<Value>, Error> {
    let what = path.display().to_string();
    let file = match base::file::open_regular(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("cannot open {what}"), error)),
    };
    let document = read_document(file, &what)?;
    serde_json::from_slice(&document).map(Some).map_err(|error| Error::decode(&what, error))
}
