//! Network configurations: what a plugin reads from its stdin ([`NetConf`]) and what a runtime reads from its
//! configuration directory ([`ConfList`]). A wrong value is reported with its key, the value, and what is allowed.

mod fold;
mod list;
mod object;

pub use fold::present;
pub use list::ConfList;
pub use object::{get, parse_object};

use crate::error::{Error, code};
use crate::types::{AddResult, Dns};
use crate::version::Version;
use crate::{MAX_DOCUMENT, validate};
use object::{map, text};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::io::Read;

/// An attachment that GC must keep (specification 1.1.0, section 2, "GC").
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ValidAttachment {
    /// The container's ID.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
}

/// The key under which a runtime names the attachments that GC keeps.
pub const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";
/// The same key as the first drafts of 1.1.0 called it; libcni still sends both.
pub const VALID_ATTACHMENTS_OLD: &str = "cni.dev/attachments";

/// The configuration of one plugin, as it comes on stdin.
#[derive(Debug, Clone, Default)]
pub struct NetConf {
    /// The whole document.
    pub raw: Map<String, Value>,
    /// `cniVersion`.
    pub version: Version,
    /// `name`, the network's name; it has been validated.
    pub name: String,
    /// `type`, the plugin's name; empty when it is not there.
    pub kind: String,
    /// `ipam`, when it is there.
    pub ipam: Option<Map<String, Value>>,
    /// `dns`.
    pub dns: Dns,
    /// `prevResult`: read in the version that it names, or else in the configuration's.
    pub prev_result: Option<AddResult>,
    /// `runtimeConfig`: what the runtime passes for the capabilities that the plugin declares.
    pub runtime_config: Map<String, Value>,
    /// `args.cni`: what a user passes to every plugin of the chain.
    pub args_cni: Map<String, Value>,
    /// The attachments that GC keeps; `None` when the runtime did not say, which is not the same as none.
    pub valid_attachments: Option<Vec<ValidAttachment>>,
}

/// Reads a whole document, but no more than [`MAX_DOCUMENT`] bytes of it.
pub(crate) fn read_document(from: impl Read, what: &str) -> Result<Vec<u8>, Error> {
    let mut document = Vec::new();
    let limit = MAX_DOCUMENT as u64 + 1;
    from.take(limit)
        .read_to_end(&mut document)
        .map_err(|error| Error::io(format!("cannot read {what}"), error))?;
    if document.len() > MAX_DOCUMENT {
        return Err(Error::decode(what, "it is longer than 8 MiB"));
    }
    Ok(document)
}

/// Decodes a document that must be an object.
pub(crate) fn decode_object(document: &[u8], what: &str) -> Result<Map<String, Value>, Error> {
    if document.len() > MAX_DOCUMENT {
        return Err(Error::decode(what, "it is longer than 8 MiB"));
    }
    match serde_json::from_slice(document).map_err(|error| Error::decode(what, error))? {
        Value::Object(object) => Ok(object),
        other => Err(Error::decode(what, format!("it is {}, not an object", object::describe(&other)))),
    }
}

/// Reads `cniVersion`; absent, `null` or empty it is 0.1.0.
pub(crate) fn version_of(raw: &Map<String, Value>) -> Result<Version, Error> {
    text(raw, "cniVersion")?.unwrap_or_default().parse()
}

impl NetConf {
    /// Decodes a configuration.
    ///
    /// # Errors
    /// Code 6 for what is not a JSON object, and as [`NetConf::from_value`].
    pub fn from_slice(document: &[u8]) -> Result<NetConf, Error> {
        NetConf::from_object(decode_object(document, "the network configuration")?)
    }

    /// Reads a configuration from a decoded document.
    ///
    /// # Errors
    /// Code 6 when it is not an object or `prevResult` is no result, code 1 for an unknown version, code 7 for a
    /// well-known key of a wrong type and for a bad or missing network name.
    pub fn from_value(value: Value) -> Result<NetConf, Error> {
        match value {
            Value::Object(raw) => NetConf::from_object(raw),
            other => {
                let why = format!("it is {}, not an object", object::describe(&other));
                Err(Error::decode("the network configuration", why))
            }
        }
    }

    fn from_object(raw: Map<String, Value>) -> Result<NetConf, Error> {
        let version = version_of(&raw)?;
        let name = text(&raw, "name")?.unwrap_or_default();
        if name.is_empty() {
            return Err(Error::new(code::INVALID_CONFIG, "missing \"name\" in the network configuration"));
        }
        validate::network_name(&name)?;
        let dns = present(&raw, "dns").map_or(Ok(Dns::default()), |dns| {
            Dns::read(dns, "dns")
                .map_err(|error| Error::new(code::INVALID_CONFIG, "invalid \"dns\"").details(error.details))
        })?;
        let prev_result = present(&raw, "prevResult").map(|value| AddResult::from_json_or(value, version));
        let prev_result = prev_result
            .transpose()
            .map_err(|error| Error { msg: format!("prevResult: {}", error.msg), ..error })?;
        Ok(NetConf {
            version,
            name,
            kind: text(&raw, "type")?.unwrap_or_default(),
            ipam: map(&raw, "ipam")?.cloned(),
            dns,
            prev_result,
            runtime_config: map(&raw, "runtimeConfig")?.cloned().unwrap_or_default(),
            args_cni: args_cni(&raw)?,
            valid_attachments: valid_attachments(&raw)?,
            raw,
        })
    }

    /// The type of the `ipam` plugin; `None` without one, which may be by an empty `ipam`.
    pub fn ipam_kind(&self) -> Option<&str> {
        present(self.ipam.as_ref()?, "type")?.as_str().filter(|kind| !kind.is_empty())
    }

    /// One of the plugin's own keys; absent and `null` are `None`.
    ///
    /// # Errors
    /// Code 7 for a value that does not fit, naming the key, the value and what is expected.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        get(&self.raw, key)
    }

    /// One of the values that the runtime passes for a capability; absent and `null` are `None`.
    ///
    /// # Errors
    /// As [`NetConf::get`].
    pub fn capability<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        get(&self.runtime_config, key)
            .map_err(|error| Error { msg: format!("runtimeConfig: {}", error.msg), ..error })
    }

    /// The plugin's own keys as a structure; keys that it does not have are passed over, `null` is as absent.
    ///
    /// # Errors
    /// As [`NetConf::get`].
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        parse_object(&self.raw, "")
    }

    /// The previous result, where there must be one: in a chained plugin and in CHECK.
    ///
    /// # Errors
    /// Code 7 when it is not there.
    pub fn require_prev_result(&self) -> Result<&AddResult, Error> {
        let missing =
            || Error::new(code::INVALID_CONFIG, "missing \"prevResult\" in the network configuration");
        self.prev_result.as_ref().ok_or_else(missing)
    }
}

fn args_cni(raw: &Map<String, Value>) -> Result<Map<String, Value>, Error> {
    let Some(args) = map(raw, "args")? else { return Ok(Map::new()) };
    Ok(map(args, "cni")?.cloned().unwrap_or_default())
}

fn valid_attachments(raw: &Map<String, Value>) -> Result<Option<Vec<ValidAttachment>>, Error> {
    let key =
        if present(raw, VALID_ATTACHMENTS).is_some() { VALID_ATTACHMENTS } else { VALID_ATTACHMENTS_OLD };
    let listed = get(raw, key)?;
    // Go prints an empty list that was never made as null (libcni's GC with no attachments); only an absent key is none.
    let is_null = || {
        [VALID_ATTACHMENTS, VALID_ATTACHMENTS_OLD].iter().any(|key| raw.get(*key).is_some_and(Value::is_null))
    };
    Ok(listed.or_else(|| is_null().then(Vec::new)))
}
