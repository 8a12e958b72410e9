//! What a runtime asks of a plugin: the verb, its parameters from the environment, and the configuration.

mod args;

pub use args::Args;

use crate::config::{NetConf, VALID_ATTACHMENTS, version_of};
use crate::error::{Error, code};
use crate::validate;
use crate::version::Version;
use serde_json::{Map, Value};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The verbs (specification 1.1.0, section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Attach a container to the network.
    Add,
    /// Detach it.
    Del,
    /// Say whether its attachment is as ADD left it (since 0.4.0).
    Check,
    /// Remove what belongs to no valid attachment (since 1.1.0).
    Gc,
    /// Say whether an ADD could be served (since 1.1.0).
    Status,
    /// Say which versions are supported.
    Version,
}

impl Command {
    /// Every verb.
    pub const ALL: &'static [Command] =
        &[Command::Add, Command::Del, Command::Check, Command::Gc, Command::Status, Command::Version];

    /// The verb as `CNI_COMMAND` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
            Command::Version => "VERSION",
        }
    }

    /// The first version of the specification that has the verb.
    pub const fn since(self) -> Version {
        match self {
            Command::Add | Command::Del | Command::Version => Version::V0_1_0,
            Command::Check => Version::V0_4_0,
            Command::Gc | Command::Status => Version::V1_1_0,
        }
    }

    /// Whether a configuration of this version allows the verb.
    ///
    /// # Errors
    /// Code 1, naming the verb and the version that it came with.
    pub fn check_version(self, version: Version) -> Result<(), Error> {
        if version >= self.since() {
            return Ok(());
        }
        Err(Error::new(code::INCOMPATIBLE_VERSION, format!("CNI {version} does not have {self}"))
            .details(format!("set cniVersion to {} or newer", self.since())))
    }

    /// The environment variables without which the verb cannot be served, beside `CNI_COMMAND` (specification 1.1.0,
    /// section 2, "Required environment parameters").
    pub const fn required(self) -> &'static [&'static str] {
        match self {
            Command::Add | Command::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Command::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Command::Gc | Command::Status => &["CNI_PATH"],
            Command::Version => &[],
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Command {
    type Err = Error;

    fn from_str(text: &str) -> Result<Command, Error> {
        let known = Command::ALL.iter().copied().find(|command| command.as_str() == text);
        known.ok_or_else(|| {
            let why = format!("{text:?} is not a verb; allowed: ADD, DEL, CHECK, GC, STATUS, VERSION");
            Error::environment(&["CNI_COMMAND"], why)
        })
    }
}

/// A validated request.
#[derive(Debug, Clone)]
pub struct Request {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`; empty for GC and STATUS.
    pub container_id: String,
    /// `CNI_NETNS`, the path of the container's network namespace; `None` when unset or empty, which DEL must bear.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`; empty for GC and STATUS.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: Args,
    /// `CNI_PATH`, where the executables of delegates are searched.
    pub path: Vec<PathBuf>,
    /// The configuration from stdin.
    pub conf: NetConf,
    /// `CNI_NETNS_OVERRIDE` is `1` or `true`: the namespace may be the host's own.
    pub netns_override: bool,
}

/// Whether a variable that switches something is on: `1` or `true`.
pub(crate) fn is_true(text: &str) -> bool {
    text == "1" || text.eq_ignore_ascii_case("true")
}

/// Splits a `CNI_PATH`; empty parts are dropped, they would mean the working directory.
pub fn split_path(path: &str) -> Vec<PathBuf> {
    path.split(':').filter(|part| !part.is_empty()).map(PathBuf::from).collect()
}

impl Request {
    /// Puts a request together from the environment and the decoded configuration. `versions` are those that the plugin
    /// supports.
    ///
    /// # Errors
    /// Code 4 for variables that are missing or wrong, code 1 for a version that the plugin or the verb does not know,
    /// code 7 for a wrong configuration, and for GC without the list of valid attachments.
    pub fn new(
        command: Command,
        env: &dyn Fn(&str) -> Option<String>,
        mut raw: Map<String, Value>,
        versions: &[Version],
    ) -> Result<Request, Error> {
        check_environment(command, env)?;
        let var = |name: &str| env(name).unwrap_or_default();
        let version = version_of(&raw)?;
        if !versions.contains(&version) {
            return Err(Error::version(version.as_str(), versions));
        }
        command.check_version(version)?;
        if command == Command::Del {
            drop_unreadable_prev_result(&mut raw, version);
        }
        let conf = NetConf::from_value(raw.into())?;
        if command == Command::Gc && conf.valid_attachments.is_none() {
            return Err(Error::new(code::INVALID_CONFIG, format!("missing {VALID_ATTACHMENTS:?}")).details(
                "GC without a list of valid attachments is refused; an empty list means that all are stale",
            ));
        }
        let about_one = matches!(command, Command::Add | Command::Del | Command::Check);
        let (container_id, ifname) =
            if about_one { (var("CNI_CONTAINERID"), var("CNI_IFNAME")) } else { Default::default() };
        if about_one {
            validate::container_id(&container_id)?;
            validate::ifname(&ifname)?;
        }
        Ok(Request {
            command,
            container_id,
            netns: env("CNI_NETNS").filter(|netns| !netns.is_empty()).map(PathBuf::from),
            ifname,
            args: Args::parse(&var("CNI_ARGS")),
            path: split_path(&var("CNI_PATH")),
            conf,
            netns_override: is_true(&var("CNI_NETNS_OVERRIDE")),
        })
    }
}

/// Names every variable that the verb requires and that is unset or empty.
pub(crate) fn check_environment(command: Command, env: &dyn Fn(&str) -> Option<String>) -> Result<(), Error> {
    let missing = |name: &&&str| env(name).is_none_or(|value| value.is_empty());
    let missing: Vec<&str> = command.required().iter().filter(missing).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::environment(&missing, format!("required for {command}, but not set")))
}

/// DEL must work without `prevResult`, so one that cannot be read must not stop it.
fn drop_unreadable_prev_result(raw: &mut Map<String, Value>, version: Version) {
    use crate::types::AddResult;
    let Some(previous) = raw.get("prevResult").filter(|value| !value.is_null()) else { return };
    if let Err(error) = AddResult::from_json_or(previous, version) {
        eprintln!("DEL goes on without prevResult: {error}");
        raw.remove("prevResult");
    }
}
