//! What can go wrong when a plugin is executed.

use crate::error::{Error, code};
use crate::request::Command;
use std::fmt::Write;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A failed execution of a plugin; it names the plugin's type, its path and the verb.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    /// The plugin printed an error document.
    #[error("{kind} ({}) {verb}: {error} (code {})", path.display(), error.code)]
    Plugin {
        /// The plugin's type.
        kind: String,
        /// Its executable.
        path: PathBuf,
        /// What it was to do.
        verb: Command,
        /// What it said.
        error: Error,
    },
    /// No directory of the path has the plugin.
    #[error("no plugin {kind:?} for {verb} in {}", directories(searched))]
    NotFound {
        /// The plugin's type.
        kind: String,
        /// What it was to do.
        verb: Command,
        /// The directories that were searched.
        searched: Vec<PathBuf>,
    },
    /// The plugin could not be started or talked to.
    #[error("cannot execute {kind} ({}) for {verb}: {source}", path.display())]
    Execute {
        /// The plugin's type.
        kind: String,
        /// Its executable.
        path: PathBuf,
        /// What it was to do.
        verb: Command,
        /// What the system said.
        source: io::Error,
    },
    /// The plugin did not end in time and was killed.
    #[error("{kind} ({}) {verb}: killed after {limit:?}{}", path.display(), quote("stderr", stderr))]
    Timeout {
        /// The plugin's type.
        kind: String,
        /// Its executable.
        path: PathBuf,
        /// What it was to do.
        verb: Command,
        /// How long it had.
        limit: Duration,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// What the plugin printed is not what the specification asks for.
    #[error("{kind} ({}) {verb}: {why}{}{}", path.display(), quote("stdout", stdout), quote("stderr", stderr))]
    Output {
        /// The plugin's type.
        kind: String,
        /// Its executable.
        path: PathBuf,
        /// What it was to do.
        verb: Command,
        /// What is wrong, with the exit status.
        why: String,
        /// The beginning of what it printed.
        stdout: Box<str>,
        /// The end of what it wrote to stderr.
        stderr: Box<str>,
    },
    /// The request itself, or the cache of results, is at fault; no plugin was executed for it.
    #[error("{0}")]
    Request(#[from] Error),
    /// An ADD failed, and so did the DELs that were to undo it: something may be left.
    #[error("{error}; undoing it failed too: {undo}")]
    Undo {
        /// Why ADD failed.
        error: Box<InvokeError>,
        /// Why DEL failed.
        undo: Box<InvokeError>,
    },
    /// Several plugins failed, where one does not stop the others.
    #[error("{}", join(.0))]
    Several(Vec<InvokeError>),
}

fn directories(searched: &[PathBuf]) -> String {
    if searched.is_empty() {
        return "CNI_PATH, which is empty".into();
    }
    searched.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn quote(what: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("; {what}: {text:?}") }
}

fn join(errors: &[InvokeError]) -> String {
    let mut text = String::new();
    for error in errors {
        let separator = if text.is_empty() { "" } else { "; " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{error}");
    }
    text
}

impl InvokeError {
    /// The number of the error that it is at heart.
    pub fn code(&self) -> u32 {
        match self {
            InvokeError::Plugin { error, .. } | InvokeError::Request(error) => error.code,
            InvokeError::NotFound { .. } => code::INVALID_ENVIRONMENT,
            InvokeError::Execute { .. } => code::IO,
            InvokeError::Timeout { .. } => code::TRY_AGAIN,
            InvokeError::Output { .. } => code::DECODE,
            InvokeError::Undo { error, .. } => error.code(),
            InvokeError::Several(errors) => errors.first().map_or(code::PLUGIN, InvokeError::code),
        }
    }

    /// The error as a plugin passes it on to its own caller: the code is kept, the message names the plugin.
    pub fn into_error(self) -> Error {
        match self {
            InvokeError::Plugin { kind, verb, error, .. } => {
                Error { msg: format!("{kind} {verb}: {}", error.msg), ..error }
            }
            InvokeError::Request(error) => error,
            other => Error::new(other.code(), other.to_string()),
        }
    }

    /// The errors that are collected in it, or it alone.
    pub fn all(&self) -> &[InvokeError] {
        match self {
            InvokeError::Several(errors) => errors,
            one => std::slice::from_ref(one),
        }
    }
}
