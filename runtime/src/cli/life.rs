//! `run`, `create`, `start`, `stop`, `restart`, `kill`, `rm`, `wait`: a container's life.

use super::args::{CreateArgs, KillArgs, RmArgs, RunArgs, StartArgs, StopArgs};
use super::{each, each_at_once, exit, signal, spec};
use crate::engine::Interact;
use crate::format;
use crate::paths::Paths;
use crate::state::{Container, NoSuchContainer, Status};
use anyhow::{Context, Result, bail};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The file of `--cidfile`: made first, so that two containers cannot share it, and removed when there is none after all.
struct IdFile(Option<PathBuf>);

impl IdFile {
    fn make(args: &CreateArgs) -> Result<IdFile> {
        if let Some(path) = &args.cidfile {
            let new = OpenOptions::new().write(true).create_new(true).open(path);
            new.with_context(|| format!("--cidfile {}", path.display()))?;
        }
        Ok(IdFile(args.cidfile.clone()))
    }

    fn write(mut self, id: &str) -> Result<()> {
        if let Some(path) = &self.0 {
            let file = OpenOptions::new().write(true).truncate(true).open(path);
            let written = file.and_then(|mut file| file.write_all(id.as_bytes()));
            written.with_context(|| format!("--cidfile {}", path.display()))?;
        }
        self.0 = None;
        Ok(())
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

fn made(paths: &Paths, args: &CreateArgs, detach: bool) -> Result<Container> {
    let file = IdFile::make(args)?;
    let container = Container::create(paths, spec::build(paths, args, detach)?)?;
    match file.write(container.id()) {
        Ok(()) => Ok(container),
        Err(error) => {
            let _ = container.remove(true);
            Err(error)
        }
    }
}

/// `create`.
///
/// # Errors
/// It cannot be as asked for.
pub fn create(paths: &Paths, args: &CreateArgs) -> Result<()> {
    let container = made(paths, args, false)?;
    Ok(format::print(&format!("{}\n", container.id()))?)
}

/// `run`: the container's exit code, or 0 in the background.
///
/// # Errors
/// It cannot be as asked for, or not be started; then nothing of it is left.
pub fn run(paths: &Paths, args: &RunArgs) -> Result<ExitCode> {
    let mut container = made(paths, &args.create, args.detach)?;
    let started = if args.detach {
        container.start().map(|()| None)
    } else {
        let io = Interact { stdin: args.create.interactive, sig_proxy: !args.create.tty };
        container.run(io).map(Some)
    };
    match started {
        Ok(None) => {
            for note in noted(&mut container) {
                eprintln!("runtime: note: {note}");
            }
            format::print(&format!("{}\n", container.id()))?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(Some(code)) => Ok(exit(code)),
        Err(error) => {
            // One that never ran is of no use: the command is repeated with what was wrong put right.
            if container.refresh().unwrap_or(false) && container.state.status == Status::Created {
                if let Err(undo) = container.remove(true) {
                    eprintln!("runtime: warning: {undo:#}");
                }
                if let Some(path) = &args.create.cidfile {
                    let _ = fs::remove_file(path);
                }
            }
            Err(error)
        }
    }
}

fn noted(container: &mut Container) -> Vec<String> {
    if container.refresh().unwrap_or(false) { container.state.notes.clone() } else { Vec::new() }
}

/// `start`.
///
/// # Errors
/// With `--attach` or `--interactive`, what befalls the one container.
pub fn start(paths: &Paths, args: &StartArgs) -> Result<ExitCode> {
    if !(args.attach || args.interactive) {
        return each(&args.containers, |name| {
            let mut container = Container::load(paths, name)?;
            if container.state.status != Status::Running {
                container.start()?;
            }
            Ok(name.to_owned())
        });
    }
    let [name] = args.containers.as_slice() else {
        bail!("--attach and --interactive are for one container");
    };
    let mut container = Container::load(paths, name)?;
    let io = Interact { stdin: args.interactive, sig_proxy: !container.spec.tty };
    let running = container.state.status == Status::Running;
    let code = if running { container.attach(io)? } else { container.run(io)? };
    Ok(exit(code))
}

fn patience(args: &StopArgs, container: &Container) -> Option<Duration> {
    args.time.or(container.spec.stop_timeout.map(u64::from)).map(Duration::from_secs)
}

/// `stop`.
///
/// # Errors
/// Output that cannot be written.
pub fn stop(paths: &Paths, args: &StopArgs) -> Result<ExitCode> {
    each_at_once(&args.containers, |name| {
        let mut container = Container::load(paths, name)?;
        if container.state.status == Status::Running {
            let patience = patience(args, &container);
            container.stop(patience)?;
        }
        Ok(name.to_owned())
    })
}

/// `restart`.
///
/// # Errors
/// Output that cannot be written.
pub fn restart(paths: &Paths, args: &StopArgs) -> Result<ExitCode> {
    each(&args.containers, |name| {
        let mut container = Container::load(paths, name)?;
        if container.state.status == Status::Running {
            let patience = patience(args, &container);
            container.restart(patience)?;
        } else {
            container.start()?;
        }
        Ok(name.to_owned())
    })
}

/// `kill`.
///
/// # Errors
/// The signal is not known.
pub fn kill(paths: &Paths, args: &KillArgs) -> Result<ExitCode> {
    let number = signal::parse("--signal", &args.signal)?;
    each(&args.containers, |name| {
        let mut container = Container::load(paths, name)?;
        if container.state.status != Status::Running {
            bail!("container {name} is not running");
        }
        container.kill(number)?;
        Ok(name.to_owned())
    })
}

/// `rm`.
///
/// # Errors
/// Output that cannot be written.
pub fn rm(paths: &Paths, args: &RmArgs) -> Result<ExitCode> {
    let mut names = args.containers.clone();
    if args.force {
        // As with Docker: what is not there is named, and is no failure.
        names.retain(|name| match Container::load(paths, name) {
            Err(error) if error.is::<NoSuchContainer>() => {
                eprintln!("runtime: {error:#}");
                false
            }
            _ => true,
        });
    }
    each(&names, |name| {
        Container::load(paths, name)?.remove(args.force)?;
        Ok(name.to_owned())
    })
}

/// `wait`.
///
/// # Errors
/// Output that cannot be written.
pub fn wait(paths: &Paths, containers: &[String]) -> Result<ExitCode> {
    each(containers, |name| Ok(Container::load(paths, name)?.wait()?.to_string()))
}
