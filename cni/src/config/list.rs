//! Network configuration lists, and the directory that a runtime reads them from (specification 1.1.0, section 1).

use super::object::{self, text};
use super::{decode_object, present, read_document};
use crate::error::{Error, code};
use crate::validate;
use crate::version::Version;
use serde_json::{Map, Value};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A network: a name and the plugins that make it up.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfList {
    /// The whole document, as it was read.
    pub raw: Map<String, Value>,
    /// The newest version of those that the list names and this library knows.
    pub version: Version,
    /// Every version that the list names (`cniVersion` and `cniVersions`) and this library knows, the oldest first.
    pub versions: Vec<Version>,
    /// The network's name.
    pub name: String,
    /// A runtime must not call CHECK.
    pub disable_check: bool,
    /// A runtime must not call GC.
    pub disable_gc: bool,
    /// Plugins come from this document only, not from the directory of the network's name beside it.
    pub load_only_inlined_plugins: bool,
    /// The plugins' configurations, in the order of ADD.
    pub plugins: Vec<Map<String, Value>>,
}

fn bad(why: impl Into<String>) -> Error {
    Error::new(code::INVALID_CONFIG, why)
}

/// A flag; the specification's examples have it as a string too.
fn flag(raw: &Map<String, Value>, key: &str) -> Result<bool, Error> {
    match present(raw, key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(Error::config(key, other, "true or false")),
    }
}

/// The versions that the list names and this library knows. Those that it does not know are passed over, so that a list
/// may be ahead of the runtime, as long as one is left.
fn versions(raw: &Map<String, Value>) -> Result<Vec<Version>, Error> {
    let own = text(raw, "cniVersion")?;
    let listed: Vec<String> = object::get(raw, "cniVersions")?.unwrap_or_default();
    let named: Vec<&str> = match &own {
        Some(own) => listed.iter().chain([own]).map(String::as_str).collect(),
        None if listed.is_empty() => vec![Version::DEFAULT.as_str()],
        None => listed.iter().map(String::as_str).collect(),
    };
    let mut known: Vec<Version> = named.iter().filter_map(|version| version.parse().ok()).collect();
    known.sort_unstable();
    known.dedup();
    if known.is_empty() { Err(Error::version(&named.join(", "), Version::ALL)) } else { Ok(known) }
}

/// One plugin of a list: an object with a `type`.
fn plugin(value: &Value, index: usize) -> Result<Map<String, Value>, Error> {
    let Value::Object(plugin) = value else {
        return Err(bad(format!("plugins[{index}] is {}, not an object", object::describe(value))));
    };
    let kind = text(plugin, "type")?.unwrap_or_default();
    validate::kind(&kind)
        .map_err(|error| Error { msg: format!("plugins[{index}]: {}", error.msg), ..error })?;
    Ok(plugin.clone())
}

impl ConfList {
    /// Decodes a list.
    ///
    /// # Errors
    /// Code 6 for what is not a JSON object, code 1 when no version that it names is known, code 7 for a bad name, no
    /// plugins, and plugins without a type.
    pub fn from_slice(document: &[u8]) -> Result<ConfList, Error> {
        let list = ConfList::read(decode_object(document, "the network configuration list")?)?;
        list.not_empty()
    }

    /// Reads the configuration of a single plugin as a list of that one (the format before 0.3.0).
    ///
    /// # Errors
    /// As [`ConfList::from_slice`].
    pub fn from_single(document: &[u8]) -> Result<ConfList, Error> {
        ConfList::wrap(decode_object(document, "the network configuration")?)
    }

    fn wrap(single: Map<String, Value>) -> Result<ConfList, Error> {
        let mut raw = Map::new();
        for key in ["cniVersion", "name"] {
            raw.extend(single.get(key).map(|value| (key.to_owned(), value.clone())));
        }
        raw.insert("plugins".into(), Value::Array(vec![Value::Object(single)]));
        ConfList::read(raw)
    }

    /// Reads a file: a `.conflist`, or a `.conf` or `.json` with a single plugin. For a list that allows it, the plugins
    /// in the directory of the network's name beside the file are added, in the order of their file names.
    ///
    /// # Errors
    /// Code 5 when a file cannot be read, else as [`ConfList::from_slice`]; the message names the file.
    pub fn from_file(path: &Path) -> Result<ConfList, Error> {
        let named = |error: Error| Error { msg: format!("{}: {}", path.display(), error.msg), ..error };
        let raw = read_file(path).and_then(|bytes| decode_object(&bytes, "it")).map_err(named)?;
        if !raw.contains_key("plugins") && path.extension().is_none_or(|extension| extension != "conflist") {
            return ConfList::wrap(raw).map_err(named);
        }
        let mut list = ConfList::read(raw).map_err(named)?;
        if !list.load_only_inlined_plugins {
            list.add_plugins_from(&path.with_file_name(&list.name))?;
        }
        list.not_empty().map_err(named)
    }

    /// Reads every `.conflist`, `.conf` and `.json` in a directory, in the order of their names. Where a directory does
    /// not exist there are none.
    pub fn load_dir(dir: &Path) -> Vec<(PathBuf, Result<ConfList, Error>)> {
        match files(dir, &["conflist", "conf", "json"]) {
            Ok(paths) => paths.into_iter().map(|path| (path.clone(), ConfList::from_file(&path))).collect(),
            Err(error) => vec![(dir.to_owned(), Err(error))],
        }
    }

    /// The list as a document: what was read, with the plugins that were found beside it.
    pub fn to_value(&self) -> Value {
        let mut raw = self.raw.clone();
        raw.insert("plugins".into(), self.plugins.iter().cloned().map(Value::Object).collect());
        raw.into()
    }

    fn read(raw: Map<String, Value>) -> Result<ConfList, Error> {
        let versions = versions(&raw)?;
        let name = text(&raw, "name")?.unwrap_or_default();
        validate::network_name(&name)?;
        let plugins = match present(&raw, "plugins") {
            None => Vec::new(),
            Some(Value::Array(items)) if items.is_empty() => return Err(bad("\"plugins\" is empty")),
            Some(Value::Array(items)) => {
                let numbered = items.iter().enumerate();
                numbered.map(|(index, item)| plugin(item, index)).collect::<Result<_, _>>()?
            }
            Some(other) => {
                return Err(Error::config("plugins", object::describe(other), "a list of objects"));
            }
        };
        Ok(ConfList {
            version: versions.last().copied().unwrap_or_default(),
            versions,
            name,
            disable_check: flag(&raw, "disableCheck")?,
            disable_gc: flag(&raw, "disableGC")?,
            load_only_inlined_plugins: flag(&raw, "loadOnlyInlinedPlugins")?,
            plugins,
            raw,
        })
    }

    fn add_plugins_from(&mut self, dir: &Path) -> Result<(), Error> {
        for path in files(dir, &["conf"])? {
            let named = |error: Error| Error { msg: format!("{}: {}", path.display(), error.msg), ..error };
            let object = read_file(&path).and_then(|bytes| decode_object(&bytes, "it")).map_err(named)?;
            self.plugins.push(plugin(&object.into(), self.plugins.len()).map_err(named)?);
        }
        Ok(())
    }

    fn not_empty(self) -> Result<ConfList, Error> {
        if self.plugins.is_empty() { Err(bad("the network has no plugins")) } else { Ok(self) }
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    read_document(base::file::open_regular(path).map_err(|error| Error::io("cannot open it", error))?, "it")
}

/// The files of a directory that have one of these extensions, by name; none where there is no such directory.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let failed = |error: io::Error| Error::io(format!("cannot read the directory {}", dir.display()), error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let wanted = path.extension().and_then(|extension| extension.to_str());
        if wanted.is_some_and(|extension| extensions.contains(&extension)) && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}
