//! A plugin that executes another one, as a bridge does its IPAM (specification 1.1.0, section 4, "Plugin delegation").
//!
//! The delegate is searched in `CNI_PATH` and gets the same environment and the same configuration. Its errors are passed
//! on with their codes. When its ADD fails, the caller must call its DEL.

use crate::error::{Error, code};
use crate::invoke::call::Call;
use crate::invoke::environment;
use crate::request::{Command, Request};
use crate::types::AddResult;
use serde_json::Value;

fn call(request: &Request, kind: &str, verb: Command) -> Result<Option<Value>, Error> {
    if request.path.is_empty() {
        return Err(Error::environment(
            &["CNI_PATH"],
            format!("required to find the plugin {kind:?}, but not set"),
        ));
    }
    let mut env = environment(
        verb,
        &request.container_id,
        request.netns.as_deref(),
        &request.ifname,
        request.args.as_str(),
        &request.path,
    );
    if request.netns_override {
        env.push(("CNI_NETNS_OVERRIDE", "1".into()));
    }
    let stdin = Value::Object(request.conf.raw.clone());
    let call = Call {
        kind,
        verb,
        path: &request.path,
        env,
        more_env: &[],
        stdin: &stdin,
        limit: None,
        relay_stderr: true,
    };
    call.run().map_err(crate::invoke::InvokeError::into_error)
}

/// Executes the delegate's ADD and returns its result.
///
/// # Errors
/// The delegate's own; code 4 when `CNI_PATH` is not set or does not have it, code 6 when it prints no result.
pub fn add(request: &Request, kind: &str) -> Result<AddResult, Error> {
    let printed = call(request, kind, Command::Add)?;
    let printed =
        printed.ok_or_else(|| Error::new(code::DECODE, format!("{kind} ADD: it printed no result")))?;
    AddResult::from_json_or(&printed, request.conf.version)
        .map_err(|error| Error { msg: format!("{kind} ADD: {}", error.msg), ..error })
}

/// Executes the delegate's DEL.
///
/// # Errors
/// The delegate's own; code 4 when `CNI_PATH` is not set or does not have it.
pub fn del(request: &Request, kind: &str) -> Result<(), Error> {
    call(request, kind, Command::Del).map(drop)
}

/// Executes the delegate's CHECK.
///
/// # Errors
/// As [`del`].
pub fn check(request: &Request, kind: &str) -> Result<(), Error> {
    call(request, kind, Command::Check).map(drop)
}

/// Executes the delegate's GC.
///
/// # Errors
/// As [`del`].
pub fn gc(request: &Request, kind: &str) -> Result<(), Error> {
    call(request, kind, Command::Gc).map(drop)
}

/// Executes the delegate's STATUS.
///
/// # Errors
/// As [`del`].
pub fn status(request: &Request, kind: &str) -> Result<(), Error> {
    call(request, kind, Command::Status).map(drop)
}
