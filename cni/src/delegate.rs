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

/// Counts how deep a call is in plugins that execute each other. Not `CNI_…`: those variables are replaced at each call.
const DEPTH: &str = "WEFT_DELEGATION_DEPTH";

/// How deep it may be: an IPAM plugin that is made of others needs two or three.
const MAX_DEPTH: u32 = 4;

/// The depth of the delegate of this process.
///
/// # Errors
/// Code 7 for a plugin that would execute itself, or when plugins execute each other in a circle.
fn depth(request: &Request, kind: &str) -> Result<u32, Error> {
    if kind == request.conf.kind {
        return Err(Error::config(
            "ipam.type",
            format!("{kind:?}"),
            "another plugin than the one that executes it",
        ));
    }
    let depth = std::env::var(DEPTH).ok().and_then(|text| text.parse::<u32>().ok()).unwrap_or_default();
    if depth >= MAX_DEPTH {
        let why = format!(
            "cannot execute the plugin {kind:?}: {MAX_DEPTH} plugins have executed each other already"
        );
        return Err(
            Error::new(code::INVALID_CONFIG, why).details("an IPAM plugin must not execute its caller")
        );
    }
    Ok(depth + 1)
}

fn call(request: &Request, kind: &str, verb: Command) -> Result<Option<Value>, Error> {
    if request.path.is_empty() {
        return Err(Error::environment(
            &["CNI_PATH"],
            format!("required to find the plugin {kind:?}, but not set"),
        ));
    }
    let depth = depth(request, kind)?;
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
    env.push((DEPTH, depth.to_string().into()));
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
