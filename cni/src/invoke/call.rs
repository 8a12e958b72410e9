//! One execution of one plugin: find it, run it, and tell success from error.

use super::InvokeError;
use crate::error::Error;
use crate::exec::{self, Failure, Output};
use crate::request::Command;
use crate::validate;
use serde_json::Value;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// How much of a plugin's stdout is shown when it is not what it should be, in bytes.
const STDOUT_SHOWN: usize = 200;

/// A plugin and what it is to do.
pub(crate) struct Call<'a> {
    pub kind: &'a str,
    pub verb: Command,
    /// The directories to search.
    pub path: &'a [PathBuf],
    /// Variables beside those that this process has; all of `CNI_…` is replaced by them.
    pub env: Vec<(&'static str, OsString)>,
    /// More variables, which win.
    pub more_env: &'a [(String, String)],
    pub stdin: &'a Value,
    pub limit: Option<Duration>,
    /// Whether what the plugin writes to stderr goes to this process's stderr too.
    pub relay_stderr: bool,
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

impl Call<'_> {
    /// Executes the plugin, and returns what it printed; `None` when that is nothing but white space.
    pub(crate) fn run(self) -> Result<Option<Value>, InvokeError> {
        validate::kind(self.kind)?;
        let (kind, verb) = (self.kind.to_owned(), self.verb);
        let Some(path) = exec::find(self.kind, self.path) else {
            return Err(InvokeError::NotFound { kind, verb, searched: self.path.to_vec() });
        };
        let own = self.env.iter().map(|(name, value)| (OsString::from(name), value.clone()));
        let more = self.more_env.iter().map(|(name, value)| (name.into(), value.into()));
        let output = exec::run(&path, own.chain(more), self.stdin.to_string().as_bytes(), self.limit);
        let Output { status, stdout, stderr } = match output {
            Ok(output) => output,
            Err(Failure::Io(source)) => return Err(InvokeError::Execute { kind, path, verb, source }),
            Err(Failure::Timeout(limit, stderr)) => {
                return Err(InvokeError::Timeout { kind, path, verb, limit, stderr: lossy(&stderr) });
            }
            Err(Failure::TooLong) => {
                let why = "it printed more than 8 MiB".into();
                return Err(InvokeError::Output {
                    kind,
                    path,
                    verb,
                    why,
                    stdout: "".into(),
                    stderr: "".into(),
                });
            }
        };
        if self.relay_stderr && !stderr.is_empty() {
            eprint!("{}", String::from_utf8_lossy(&stderr));
        }
        let blank = stdout.iter().all(u8::is_ascii_whitespace);
        let document = serde_json::from_slice::<Value>(&stdout);
        let why = match document {
            Ok(document) if status.success() => return Ok(Some(document)),
            Err(_) if status.success() && blank => return Ok(None),
            Err(error) if status.success() => format!("what it printed cannot be decoded ({error})"),
            Ok(document) => match Error::from_json(&document) {
                Some(error) => return Err(InvokeError::Plugin { kind, path, verb, error }),
                None => format!("{status}, and what it printed is not an error document"),
            },
            Err(_) if blank => format!("{status}, and it printed no error document"),
            Err(error) => format!("{status}, and what it printed cannot be decoded ({error})"),
        };
        let stdout = lossy(&stdout[..stdout.len().min(STDOUT_SHOWN)]).into();
        Err(InvokeError::Output { kind, path, verb, why, stdout, stderr: lossy(&stderr).into() })
    }
}
