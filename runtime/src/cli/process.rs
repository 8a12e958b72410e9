//! `exec` and `logs`.

use super::args::{ExecArgs, LogsArgs};
use super::{exit, text};
use crate::engine::{ExecOptions, LogOptions};
use crate::paths::Paths;
use crate::state::{Container, Status};
use anyhow::{Context, Result, bail};
use std::process::ExitCode;

/// `exec`: the process's exit code.
///
/// # Errors
/// The container does not run, or the program cannot be executed in it.
pub fn exec(paths: &Paths, args: &ExecArgs) -> Result<ExitCode> {
    let container = Container::load(paths, &args.container)?;
    if container.state.status != Status::Running {
        bail!("container {} is not running", args.container);
    }
    let options = ExecOptions {
        command: args.command.clone(),
        env: text::variables(&args.env_file, &args.env)?,
        workdir: args.workdir.clone(),
        user: args.user.clone(),
        tty: args.tty,
        stdin: args.interactive,
        detach: args.detach,
    };
    Ok(exit(container.exec(&options)?))
}

/// `logs`.
///
/// # Errors
/// A flag's value, or the log cannot be read.
pub fn logs(paths: &Paths, args: &LogsArgs) -> Result<()> {
    let tail = match args.tail.as_str() {
        "all" | "-1" => None,
        lines => Some(
            lines
                .parse()
                .ok()
                .with_context(|| format!("--tail {lines:?}: allowed is a number of lines, or all"))?,
        ),
    };
    let moment =
        |flag, text: &Option<String>| text.as_deref().map(|text| text::moment(flag, text)).transpose();
    let options = LogOptions {
        follow: args.follow,
        tail,
        timestamps: args.timestamps,
        since: moment("--since", &args.since)?,
        until: moment("--until", &args.until)?,
    };
    Container::load(paths, &args.container)?.logs(&options)
}
