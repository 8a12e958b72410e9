//! A runtime's side: executing the chain of plugins of a network (specification 1.1.0, section 3).

pub(crate) mod call;
mod error;
mod version;

pub use error::InvokeError;

use crate::cache::{Cache, CacheEntry};
use crate::config::{ConfList, VALID_ATTACHMENTS, VALID_ATTACHMENTS_OLD, ValidAttachment};
use crate::error::{Error, code};
use crate::request::Command;
use crate::types::AddResult;
use crate::validate;
use crate::version::Version;
use call::Call;
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Executes plugins.
#[derive(Debug, Clone, Default)]
pub struct Invoker {
    /// The directories that are searched for plugins; plugins get them as `CNI_PATH`.
    pub path: Vec<PathBuf>,
    /// Where results are kept from ADD to DEL. Without it DEL gets no `prevResult`, and CHECK is not possible.
    pub cache: Option<Cache>,
    /// Variables for the plugins beside this process's own; of those, `CNI_…` are not passed on.
    pub env: Vec<(String, String)>,
    /// How long a plugin may take; it is killed then. Unset, it may take for ever.
    pub limit: Option<Duration>,
    /// Whether what plugins write to stderr goes to this process's stderr too. Errors quote its end in any case.
    pub relay_stderr: bool,
}

/// A container's attachment to a network.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attachment {
    /// The container's ID.
    pub container_id: String,
    /// The path of its network namespace; `None` in a DEL when it is gone.
    pub netns: Option<PathBuf>,
    /// The interface's name in the container.
    pub ifname: String,
    /// What goes into `CNI_ARGS`. In DEL and CHECK, when empty: what ADD was given.
    pub args: Vec<(String, String)>,
    /// Values for capabilities; each plugin gets those that it declares, as `runtimeConfig`. In DEL and CHECK, when
    /// empty: what ADD was given.
    pub capability_args: Map<String, Value>,
}

/// The variables of the protocol.
pub(crate) fn environment(
    verb: Command,
    container_id: &str,
    netns: Option<&Path>,
    ifname: &str,
    args: &str,
    path: &[PathBuf],
) -> Vec<(&'static str, OsString)> {
    let mut joined = OsString::new();
    for (index, dir) in path.iter().enumerate() {
        joined.push(if index > 0 { ":" } else { "" });
        joined.push(dir);
    }
    vec![
        ("CNI_COMMAND", verb.as_str().into()),
        ("CNI_CONTAINERID", container_id.into()),
        ("CNI_NETNS", netns.map(Into::into).unwrap_or_default()),
        ("CNI_IFNAME", ifname.into()),
        ("CNI_ARGS", args.into()),
        ("CNI_PATH", joined),
    ]
}

impl Attachment {
    fn validate(&self) -> Result<(), Error> {
        validate::container_id(&self.container_id)?;
        validate::ifname(&self.ifname)
    }

    /// The value of `CNI_ARGS`.
    fn args(&self) -> String {
        self.args.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(";")
    }

    /// With what ADD was given, where nothing is given now.
    fn or_as_added(&self, added: Option<&CacheEntry>) -> Attachment {
        let mut attachment = self.clone();
        if let Some(added) = added {
            if attachment.args.is_empty() {
                attachment.args.clone_from(&added.args);
            }
            if attachment.capability_args.is_empty() {
                attachment.capability_args.clone_from(&added.capability_args);
            }
        }
        attachment
    }
}

/// The configuration that a plugin of the list gets (specification 1.1.0, section 3, "Deriving request configuration from
/// plugin configuration").
fn derive(
    list: &ConfList,
    plugin: &Map<String, Value>,
    version: Version,
    capability_args: &Map<String, Value>,
    previous: Option<&Value>,
) -> Value {
    let mut conf = plugin.clone();
    conf.insert("cniVersion".into(), version.as_str().into());
    conf.insert("name".into(), list.name.as_str().into());
    let declared = plugin.get("capabilities").and_then(Value::as_object);
    let declared =
        |key: &String| declared.and_then(|all| all.get(key)).and_then(Value::as_bool) == Some(true);
    let wanted: Map<String, Value> = capability_args
        .iter()
        .filter(|(key, _)| declared(key))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    if !wanted.is_empty() {
        conf.insert("runtimeConfig".into(), wanted.into());
    }
    if let Some(previous) = previous {
        conf.insert("prevResult".into(), previous.clone());
    }
    conf.into()
}

fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// One outcome of many: the errors, if there are any.
fn all_of(mut errors: Vec<InvokeError>) -> Result<(), InvokeError> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(InvokeError::Several(errors)),
    }
}

impl Invoker {
    fn call(
        &self,
        verb: Command,
        kind: &str,
        attachment: &Attachment,
        stdin: &Value,
    ) -> Result<Option<Value>, InvokeError> {
        let Attachment { container_id, netns, ifname, .. } = attachment;
        let env = environment(verb, container_id, netns.as_deref(), ifname, &attachment.args(), &self.path);
        let call = Call {
            kind,
            verb,
            path: &self.path,
            env,
            more_env: &self.env,
            stdin,
            limit: self.limit,
            relay_stderr: self.relay_stderr,
        };
        call.run()
    }

    /// Attaches a container: executes the plugins' ADDs, passes each one's result to the next, and keeps the last one.
    ///
    /// When one fails, the DELs of the whole chain are executed in reverse before the error is returned.
    ///
    /// # Errors
    /// The failing plugin's, or [`InvokeError::Undo`] when a DEL failed too.
    pub fn add(&self, list: &ConfList, attachment: &Attachment) -> Result<AddResult, InvokeError> {
        attachment.validate()?;
        if attachment.netns.is_none() {
            return Err(Error::environment(&["CNI_NETNS"], "required for ADD, but not set").into());
        }
        let version = self.negotiate(list)?;
        let mut last = None;
        let added = self.add_all(list, attachment, version, &mut last);
        added.map_err(|error| {
            let previous = last.filter(|_| version >= Version::V0_4_0);
            match self.undo(list, attachment, version, previous.as_ref()) {
                Ok(()) => error,
                Err(undo) => InvokeError::Undo { error: Box::new(error), undo: Box::new(undo) },
            }
        })
    }

    /// Leaves the result of the last plugin that succeeded in `last`.
    fn add_all(
        &self,
        list: &ConfList,
        attachment: &Attachment,
        version: Version,
        last: &mut Option<Value>,
    ) -> Result<AddResult, InvokeError> {
        let mut result = AddResult::default();
        for plugin in &list.plugins {
            let conf = derive(list, plugin, version, &attachment.capability_args, last.as_ref());
            let printed = self.call(Command::Add, kind(plugin), attachment, &conf)?.unwrap_or(Value::Null);
            let named = |error: Error| Error { msg: format!("{} ADD: {}", kind(plugin), error.msg), ..error };
            result = AddResult::from_json_or(&printed, version).map_err(named)?;
            // As it was printed, so that what only foreign plugins know is passed on; but in the chain's version.
            let same = printed.get("cniVersion").and_then(Value::as_str) == Some(version.as_str());
            *last = Some(if same { printed } else { result.to_json(version).map_err(named)? });
        }
        if let Some(cache) = &self.cache {
            cache.put(&CacheEntry {
                network: list.name.clone(),
                container_id: attachment.container_id.clone(),
                ifname: attachment.ifname.clone(),
                netns: attachment.netns.clone(),
                args: attachment.args.clone(),
                capability_args: attachment.capability_args.clone(),
                config: list.to_value().to_string().into_bytes(),
                result: last.clone(),
            })?;
        }
        Ok(result)
    }

    /// The DELs after a failed ADD: for all plugins, even those that were not reached, and one that fails does not stop
    /// the others (specification 1.1.0, section 3, "Adding an attachment").
    fn undo(
        &self,
        list: &ConfList,
        attachment: &Attachment,
        version: Version,
        previous: Option<&Value>,
    ) -> Result<(), InvokeError> {
        let del = |plugin: &Map<String, Value>| {
            let conf = derive(list, plugin, version, &attachment.capability_args, previous);
            self.call(Command::Del, kind(plugin), attachment, &conf).err()
        };
        let errors: Vec<InvokeError> = list.plugins.iter().rev().filter_map(del).collect();
        if let Some(cache) = &self.cache {
            cache.remove(&list.name, &attachment.container_id, &attachment.ifname)?;
        }
        all_of(errors)
    }

    /// What the cache has of an attachment. A file that cannot be read is as none: DEL must work without.
    fn added(&self, list: &ConfList, attachment: &Attachment) -> Option<CacheEntry> {
        let cache = self.cache.as_ref()?;
        cache.get(&list.name, &attachment.container_id, &attachment.ifname).ok().flatten()
    }

    /// The version to speak about an attachment: the one that ADD spoke, if the list still has it.
    fn version_of(&self, list: &ConfList, added: Option<&CacheEntry>) -> Result<Version, InvokeError> {
        let said = added.and_then(|entry| entry.result.as_ref()?.get("cniVersion")?.as_str()?.parse().ok());
        match said {
            Some(version) if list.versions.contains(&version) => Ok(version),
            _ => self.negotiate(list),
        }
    }

    /// Detaches a container: executes the plugins' DELs in reverse and forgets the result. It may be repeated.
    ///
    /// # Errors
    /// The first plugin's that fails; those before it in the list have not been executed then, as the specification asks.
    pub fn del(&self, list: &ConfList, attachment: &Attachment) -> Result<(), InvokeError> {
        attachment.validate()?;
        let added = self.added(list, attachment);
        let version = self.version_of(list, added.as_ref())?;
        let attachment = attachment.or_as_added(added.as_ref());
        let previous =
            added.filter(|_| version >= Version::V0_4_0).and_then(|entry| entry.result_as(version).ok()?);
        for plugin in list.plugins.iter().rev() {
            let conf = derive(list, plugin, version, &attachment.capability_args, previous.as_ref());
            self.call(Command::Del, kind(plugin), &attachment, &conf)?;
        }
        if let Some(cache) = &self.cache {
            cache.remove(&list.name, &attachment.container_id, &attachment.ifname)?;
        }
        Ok(())
    }

    /// Asks the plugins whether an attachment is as ADD left it. With `disableCheck` nobody is asked.
    ///
    /// # Errors
    /// The first plugin's that fails; code 1 below 0.4.0; code 3 when the cache has no result of an ADD.
    pub fn check(&self, list: &ConfList, attachment: &Attachment) -> Result<(), InvokeError> {
        attachment.validate()?;
        if list.disable_check {
            return Ok(());
        }
        let added = self.added(list, attachment);
        let version = self.version_of(list, added.as_ref())?;
        Command::Check.check_version(version)?;
        let attachment = attachment.or_as_added(added.as_ref());
        let previous = added.map(|entry| entry.result_as(version)).transpose()?.flatten();
        let previous = previous.ok_or_else(|| {
            let Attachment { container_id, ifname, .. } = &attachment;
            let what = format!("container {container_id}, interface {ifname}, network {}", list.name);
            Error::new(code::UNKNOWN_CONTAINER, format!("no result of an ADD is kept for {what}"))
        })?;
        for plugin in &list.plugins {
            let conf = derive(list, plugin, version, &attachment.capability_args, Some(&previous));
            self.call(Command::Check, kind(plugin), &attachment, &conf)?;
        }
        Ok(())
    }

    /// Removes what belongs to no attachment in `valid`: executes DEL for those that the cache knows, then, from 1.1.0
    /// on, the plugins' GC. With `disableGC` nothing is done.
    ///
    /// # Errors
    /// All that failed; one failure does not stop the rest.
    pub fn gc(&self, list: &ConfList, valid: &[ValidAttachment]) -> Result<(), InvokeError> {
        if list.disable_gc {
            return Ok(());
        }
        let version = self.negotiate(list)?;
        let mut errors = Vec::new();
        let entries = self.cache.as_ref().map_or(Ok(Vec::new()), Cache::entries);
        let entries = entries.unwrap_or_else(|error| {
            errors.push(error.into());
            Vec::new()
        });
        let is_valid = |entry: &CacheEntry| {
            valid.iter().any(|each| each.container_id == entry.container_id && each.ifname == entry.ifname)
        };
        for entry in entries.iter().filter(|entry| entry.network == list.name && !is_valid(entry)) {
            errors.extend(self.del(list, &entry.attachment()).err());
        }
        if version >= Command::Gc.since() {
            let valid: Value = valid
                .iter()
                .map(|each| serde_json::json!({"containerID": each.container_id, "ifname": each.ifname}))
                .collect();
            for plugin in &list.plugins {
                let mut conf = derive(list, plugin, version, &Map::new(), None);
                conf[VALID_ATTACHMENTS] = valid.clone();
                conf[VALID_ATTACHMENTS_OLD] = valid.clone();
                errors.extend(self.call(Command::Gc, kind(plugin), &Attachment::default(), &conf).err());
            }
        }
        all_of(errors)
    }

    /// Asks the plugins whether an ADD could be served. Below 1.1.0 there is no such verb, and the answer is yes.
    ///
    /// # Errors
    /// The first plugin's that says no.
    pub fn status(&self, list: &ConfList) -> Result<(), InvokeError> {
        let version = self.negotiate(list)?;
        if version < Command::Status.since() {
            return Ok(());
        }
        for plugin in &list.plugins {
            let conf = derive(list, plugin, version, &Map::new(), None);
            self.call(Command::Status, kind(plugin), &Attachment::default(), &conf)?;
        }
        Ok(())
    }
}
