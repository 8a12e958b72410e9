//! Which version to speak: the newest that the list names and every plugin of it supports.

use super::{Attachment, InvokeError, Invoker, kind};
use crate::config::ConfList;
use crate::error::Error;
use crate::exec;
use crate::request::Command;
use crate::version::Version;
use serde_json::{Value, json};
use std::path::PathBuf;

impl Invoker {
    /// The versions that a plugin supports, the oldest first; those that this library does not know are left out.
    ///
    /// # Errors
    /// When the plugin cannot be executed, or does not say.
    pub fn version(&self, kind: &str) -> Result<Vec<Version>, InvokeError> {
        // Plugins of the first days insist on every variable.
        let dummy = Attachment {
            container_id: "dummy".into(),
            netns: Some(PathBuf::from("dummy")),
            ifname: "dummy".into(),
            ..Attachment::default()
        };
        let stdin = json!({"cniVersion": Version::CURRENT.as_str()});
        let said = match self.call(Command::Version, kind, &dummy, &stdin) {
            Ok(said) => said.unwrap_or(Value::Null),
            // The verb came with 0.2.0; this is how plugins that are older refuse it.
            Err(InvokeError::Plugin { error, .. }) if error.msg.contains("unknown CNI_COMMAND") => {
                return Ok(vec![Version::V0_1_0]);
            }
            Err(error) => return Err(error),
        };
        let listed = said.get("supportedVersions").and_then(Value::as_array);
        let Some(listed) = listed else {
            return Err(Error::decode(format!("the versions that {kind} supports"), said).into());
        };
        let mut versions: Vec<Version> =
            listed.iter().filter_map(|version| version.as_str()?.parse().ok()).collect();
        versions.sort_unstable();
        versions.dedup();
        Ok(versions)
    }

    /// The version to speak with the plugins of a list. One that names a single version speaks that, and nobody is asked.
    ///
    /// # Errors
    /// When a plugin does not say what it supports; code 1 when there is no version that all support.
    pub fn negotiate(&self, list: &ConfList) -> Result<Version, InvokeError> {
        if list.versions.len() < 2 {
            return Ok(list.version);
        }
        let mut kinds: Vec<&str> = list.plugins.iter().map(kind).collect();
        for plugin in &list.plugins {
            // The delegate gets the same version. One that is not found here is the plugin's business.
            let delegate = plugin.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
            kinds.extend(delegate.filter(|kind| exec::find(kind, &self.path).is_some()));
        }
        kinds.sort_unstable();
        kinds.dedup();
        let mut common = list.versions.clone();
        for kind in kinds {
            let supported = self.version(kind)?;
            common.retain(|version| supported.contains(version));
            if common.is_empty() {
                let listed: Vec<&str> = list.versions.iter().map(|version| version.as_str()).collect();
                let mut error = Error::version(&listed.join(", "), &supported);
                error.msg = format!("network {}: {} with the plugin {kind}", list.name, error.msg);
                return Err(error.into());
            }
        }
        Ok(common.last().copied().unwrap_or(list.version))
    }
}
