//! The command line: what it is made of, and how commands end.
//!
//! Errors go to stderr as `runtime: …`. Exit codes are Docker's: 125 for what `run` and `create` could not do
//! themselves, 126 and 127 for a program that cannot be executed or is not there, 1 for other commands that fail.

mod args;
mod inspect;
mod lab;
mod life;
mod network;
mod process;
mod ps;
mod signal;
mod spec;
mod text;
mod usage;

use crate::engine::{self, Failure, supervisor};
use crate::ipam_cmd;
use crate::paths::Paths;
use anyhow::{Context, Result, bail};
use args::{Cli, Command, Global, IpamCommand};
use clap::{CommandFactory, Parser};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(crate) use text::check_name as check_container_name;

/// Directories of CNI executables when nothing names any; the last is relative to that of this executable.
const CNI_BIN: [&str; 2] = ["/opt/cni/bin", "../cni"];

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::report(error),
    };
    let own = own_failure(&cli.command);
    match paths(&cli.global).and_then(|paths| dispatch(&paths, cli.command)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("runtime: {error:#}");
            ExitCode::from(error.downcast_ref::<Failure>().map_or(own, |failure| failure.code))
        }
    }
}

/// The exit code of a command's own failures.
fn own_failure(command: &Command) -> u8 {
    match command {
        Command::Run(_) | Command::Create(_) | Command::Supervise { .. } => 125,
        _ => 1,
    }
}

/// The directories to work with.
fn paths(global: &Global) -> Result<Paths> {
    let absolute = |dir: &Path| {
        std::path::absolute(dir).with_context(|| format!("{} cannot be made absolute", dir.display()))
    };
    let mut cni_bin: Vec<PathBuf> =
        global.cni_bin.iter().filter(|dir| !dir.as_os_str().is_empty()).cloned().collect();
    if cni_bin.is_empty() {
        let own =
            std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned)).unwrap_or_default();
        // Joining an absolute path gives that path.
        cni_bin = CNI_BIN.iter().map(|dir| own.join(dir)).filter(|dir| dir.is_dir()).collect();
    }
    Ok(Paths {
        root: absolute(&global.root)?,
        run: absolute(&global.run)?,
        config_dir: absolute(&global.config_dir)?,
        cni_bin: cni_bin
            .iter()
            .map(|dir| absolute(&dir.canonicalize().unwrap_or(dir.clone())))
            .collect::<Result<_>>()?,
    })
}

/// Makes true again what supervisors that were killed left; that this fails keeps no command from its work.
fn recover(paths: &Paths) {
    if let Err(error) = engine::recover(paths) {
        eprintln!("runtime: warning: {error:#}");
    }
}

fn dispatch(paths: &Paths, command: Command) -> Result<ExitCode> {
    let recovers = match &command {
        Command::Completion { .. } | Command::Supervise { .. } | Command::Ipam(_) | Command::Lab(_) => false,
        Command::Network(command) => command.needs_true_states(),
        _ => true,
    };
    if !matches!(command, Command::Completion { .. }) && !nix::unistd::geteuid().is_root() {
        bail!("it needs root: run it as root, or by sudo");
    }
    if !matches!(command, Command::Completion { .. } | Command::Supervise { .. } | Command::Lab(_)) {
        crate::network::rules::restore(paths);
    }
    if !matches!(command, Command::Completion { .. } | Command::Supervise { .. })
        && let Err(error) = crate::network::sweep(paths)
    {
        eprintln!("runtime: warning: {error:#}");
    }
    if recovers {
        recover(paths);
    }
    let done = |result: Result<()>| result.map(|()| ExitCode::SUCCESS);
    match command {
        Command::Run(args) => life::run(paths, &args),
        Command::Create(args) => done(life::create(paths, &args)),
        Command::Start(args) => life::start(paths, &args),
        Command::Stop(args) => life::stop(paths, &args),
        Command::Restart(args) => life::restart(paths, &args),
        Command::Kill(args) => life::kill(paths, &args),
        Command::Rm(args) => life::rm(paths, &args),
        Command::Wait { containers } => life::wait(paths, &containers),
        Command::Ps(args) => done(ps::ps(paths, &args)),
        Command::Exec(args) => process::exec(paths, &args),
        Command::Logs(args) => done(process::logs(paths, &args)),
        Command::Inspect(args) => inspect::inspect(paths, &args),
        Command::Port { container, port } => done(inspect::port(paths, &container, port.as_deref())),
        Command::Network(command) => network::network(paths, command),
        Command::Ipam(IpamCommand::Ls { network, format, quiet, no_trunc }) => {
            done(ipam_cmd::list(paths, network.as_deref(), format.as_deref(), quiet, no_trunc))
        }
        Command::Ipam(IpamCommand::Release { network, address }) => {
            done(ipam_cmd::release(paths, &network, address))
        }
        Command::Ipam(IpamCommand::Import { dir, network }) => {
            done(ipam_cmd::import(paths, &network, dir.as_deref()))
        }
        Command::Lab(command) => lab::lab(paths, command),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "runtime", &mut script);
            done(crate::format::print(&String::from_utf8_lossy(&script)).map_err(Into::into))
        }
        Command::Supervise { id } => Ok(supervisor::main(paths, &id)),
    }
}

/// Does something to each of several things: prints what it gives, goes on after an error, and fails when one did.
fn each(names: &[String], mut act: impl FnMut(&str) -> Result<String>) -> Result<ExitCode> {
    let mut failed = false;
    for name in names {
        match act(name) {
            Ok(text) => crate::format::print(&(text + "\n"))?,
            Err(error) => {
                eprintln!("runtime: {error:#}");
                failed = true;
            }
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}

/// As [`each`], with all of them at the same time; the output is in the order of the names.
fn each_at_once(names: &[String], act: impl Fn(&str) -> Result<String> + Sync) -> Result<ExitCode> {
    let results: Vec<Result<String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = names.iter().map(|name| scope.spawn(|| act(name))).collect();
        let joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.map(|done| done.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))).collect()
    });
    let mut results = results.into_iter();
    each(names, |_| results.next().unwrap_or_else(|| bail!("a result is missing")))
}

/// The exit code of a container or process as this process's own.
fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
