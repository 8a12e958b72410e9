//! The process that looks after one container for all its life: it takes what the container needs, launches it, relays its
//! input and output, and gives everything back.
//!
//! It is this executable again (`supervise ID`), detached from whoever started it. On its standard input it has a socket to
//! the starter, to whom it reports once; on its standard output, when the starter attaches, the first attached client.

mod hub;
mod log;
mod serve;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, pipe2, setsid};
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;
use super::launch::{Plan, Root, Stdio};
use super::release::{self, Lock};
use super::wire::{self, Frame};
use super::{Failure, etc, process, volumes};
use crate::paths::Paths;
use crate::spec::{NetMode, Spec};
use crate::state::{Container, State, Status, now};
use crate::{network, ports};
use serve::{Orders, Service};

/// What the supervisor tells its starter, once.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Why the container does not run; none: it does.
    pub failure: Option<Failure>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// The hidden subcommand `supervise ID`.
pub fn main(paths: &Paths, id: &str) -> ExitCode {
    let (report, client) = match channels() {
        Ok(channels) => channels,
        Err(error) => {
            eprintln!("runtime: supervise is for the runtime's own use: {error:#}");
            return ExitCode::from(125);
        }
    };
    match supervise(paths, id, report, client) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(125),
    }
}

/// The starter's socket and the first client's, from the standard descriptors, which become /dev/null.
fn channels() -> Result<(UnixStream, Option<UnixStream>)> {
    let socket = |fd: OwnedFd| -> Result<Option<UnixStream>> {
        let file = File::from(fd);
        let is_socket = file.metadata()?.file_type().is_socket();
        Ok(is_socket.then(|| UnixStream::from(OwnedFd::from(file))))
    };
    let report = socket(std::io::stdin().as_fd().try_clone_to_owned()?)?;
    let client = socket(std::io::stdout().as_fd().try_clone_to_owned()?)?;
    let report = report.ok_or_else(|| anyhow!("standard input is no socket"))?;
    let null = File::options().read(true).write(true).open("/dev/null").context("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    // The starter may be a session leader's child or have been started in the background: either way it is left alone.
    let _ = setsid();
    // What every user of the container is to read is made here, whatever the starter keeps for itself.
    umask(Mode::from_bits_truncate(0o022));
    // A starter that stays in the foreground holds signals back, to pass them on; this process obeys them.
    SigSet::all().thread_unblock()?;
    std::env::set_current_dir("/")?;
    Ok((report, client))
}

fn supervise(paths: &Paths, id: &str, report: UnixStream, client: Option<UnixStream>) -> Result<()> {
    let mut notes = Vec::new();
    let begun = Orders::new()
        .context("cannot catch signals")
        .and_then(|orders| Ok((begin(paths, id, client.as_ref(), &mut notes)?, orders)));
    let (service, failure) = match begun {
        Ok(begun) => (Some(begun), None),
        Err(error) => {
            let failure =
                error.downcast().unwrap_or_else(|e| Failure { code: 125, message: format!("{e:#}") });
            (None, Some(failure))
        }
    };
    let told = serde_json::to_vec(&Report { failure, notes })?;
    // A starter that is gone has started it all the same.
    let _ = (&report).write_all(&told);
    drop(report);
    match service {
        Some((service, orders)) => service.serve(orders, client),
        None => bail!("not started"),
    }
}

/// Takes everything and launches; on failure all is given back before this returns.
fn begin(paths: &Paths, id: &str, client: Option<&UnixStream>, notes: &mut Vec<String>) -> Result<Service> {
    let mut container = Container::by_id(paths, id)?.ok_or_else(|| anyhow!("No such container: {id}"))?;
    let Some(lock) = lock(&mut container)? else {
        let joiners = release::joiners(&container);
        match joiners.is_empty() {
            true => bail!("container {} is already running", container.spec.name),
            false => bail!(
                "container {} has ended, but its network is still used by {}",
                container.spec.name,
                joiners.join(", ")
            ),
        }
    };
    container.state = State {
        boot_id: process::boot_id(),
        supervisor_pid: std::process::id() as i32,
        // What a start that fails leaves is what was there before.
        status: container.state.status,
        exit_code: container.state.exit_code,
        started: container.state.started.take(),
        finished: container.state.finished.take(),
        ..State::default()
    };
    match launch(&mut container, client) {
        Ok(mut service) => {
            notes.clone_from(&container.state.notes);
            service.keep(container, lock);
            Ok(service)
        }
        Err(error) => {
            let code = error.downcast_ref::<Failure>().map_or(125, |failure| failure.code);
            container.state.exit_code = i32::from(code);
            container.state.error = format!("{error:#}");
            container.state.pid = 0;
            if let Err(second) = release::release(&mut container) {
                let message = format!("{error:#}; and then: {second:#}");
                return Err(Failure { code, message }.into());
            }
            drop(lock);
            release::finish_late_removal(&mut container);
            release::release_joined(&container);
            Err(error)
        }
    }
}

/// The lock. One that is about to be given up, at the end of the run before or of a recovery, is waited for a little.
fn lock(container: &mut Container) -> Result<Option<Lock>> {
    for _ in 0..100 {
        if let Some(lock) = Lock::take(container)? {
            return Ok(Some(lock));
        }
        container.refresh()?;
        if container.state.status == Status::Running || !release::joiners(container).is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(None)
}

fn launch(container: &mut Container, client: Option<&UnixStream>) -> Result<Service> {
    let paths = container.paths.clone();
    let hostname = etc::hostname(container)?;
    // The sockets first: a port that is taken fails at once, before anything is made.
    let held = ports::bind(&paths, &container.spec)?;
    container.state.ports = held.ports();
    container.state.ports_ipv6 = held.answers_ipv6();
    let is_host = container.spec.network == NetMode::Host;
    container.state.netns = if is_host { None } else { release::netns_path(container) };
    // From here on something is held (see release::release).
    container.save_state()?;
    let netns = namespace(container)?;
    let files = etc::make(container)?;
    let root = Root {
        from: &container.spec.rootfs,
        keep: container.dir(),
        at: container.run_dir().join("merged"),
        hidden: hidden(&paths, &container.spec),
        shows_secrets: container.spec.shows_host_secrets,
    };
    root.prepare()?;
    let cgroup = match Cgroup::create(container.id()) {
        Ok(cgroup) => Some(cgroup),
        Err(error) => {
            container.state.notes.push(format!("no cgroup for this container: {error}"));
            None
        }
    };
    let plan = Plan {
        spec: &container.spec,
        root,
        netns,
        owns_netns: release::owns_netns(container),
        hostname: hostname.clone(),
        files,
        volumes: volumes::prepare(&paths, &container.spec.volumes)?,
        cgroup: cgroup.as_ref(),
    };
    // The first client begins with the size of its window, so that the terminal has it from its first moment.
    let size = match client.map(Frame::read) {
        Some(Ok(Some(Frame::Hello { rows: rows @ 1.., columns: columns @ 1.., .. }))) => {
            Some((rows, columns))
        }
        _ => None,
    };
    let (ours, theirs) = stdio(container, size)?;
    // It mounts its root while its networks are attached.
    let pending = plan.begin(theirs)?;
    drop(plan);
    let path = release::netns_path(container).unwrap_or_default();
    container.state.attachments = network::attach(&paths, &release::with_ports(container), &path)?;
    etc::write(container, &hostname)?;
    let listener = wire::listen(&container.run_dir()).context("cannot listen on attach.sock")?;
    let log = log::Log::open(&container.dir().join("log.json")).context("cannot open the log")?;
    let mut launched = pending.finish()?;
    let heard = std::mem::take(&mut launched.heard);
    let state = &mut container.state;
    state.status = Status::Running;
    state.pid = launched.pid;
    state.pid_started = process::started(launched.pid).unwrap_or_default();
    state.started = Some(now());
    state.finished = None;
    state.exit_code = 0;
    state.error.clear();
    state.notes.extend(heard.notes);
    let terminal = heard.terminal;
    let addresses = etc::addresses(&container.state.attachments);
    match container.save_state().and_then(|()| held.serve(&addresses)) {
        Ok(proxy) => Ok(Service::new(launched, ours, terminal, log, listener, proxy)),
        Err(error) => {
            process::kill(&launched.pidfd);
            let _ = waitpid(Pid::from_raw(launched.pid), None);
            container.state.status = Status::Exited;
            Err(error)
        }
    }
}

/// The namespace that the container's processes are to be in; none: the host's.
fn namespace(container: &Container) -> Result<Option<net::ns::Netns>> {
    let paths = &container.paths;
    match &container.spec.network {
        NetMode::Host => Ok(None),
        NetMode::Container(id) => {
            let other = Container::by_id(paths, id)?.ok_or_else(|| anyhow!("No such container: {id}"))?;
            if other.state.status != Status::Running || !Lock::is_taken(&other) {
                bail!("cannot join the network of container {}: it is not running", other.spec.name);
            }
            match other.spec.network {
                NetMode::Host | NetMode::Container(_) => {
                    bail!("cannot join the network of container {}: it has none of its own", other.spec.name)
                }
                _ => Ok(Some(net::ns::Netns::open(paths.netns(id)).map_err(|e| anyhow!("{e}"))?)),
            }
        }
        _ => {
            let path = paths.netns(container.id());
            Ok(Some(net::ns::Netns::create(&path).map_err(|e| anyhow!("{e}"))?))
        }
    }
}

/// Our ends of the container's pipes.
#[derive(Default)]
pub struct Pipes {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    errors: Option<OwnedFd>,
}

/// `size` is that of the terminal (rows, columns).
fn stdio(container: &Container, size: Option<(u16, u16)>) -> Result<(Pipes, Stdio)> {
    if container.spec.tty {
        return Ok((Pipes::default(), Stdio::Terminal(size)));
    }
    let pipe = || pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe");
    let input = if container.spec.stdin_open { Some(pipe()?) } else { None };
    let (input, feed) = input.map_or((None, None), |(read, write)| (Some(read), Some(write)));
    let (output, to_output) = pipe()?;
    let (errors, to_errors) = pipe()?;
    let ours = Pipes { input: feed, output: Some(output), errors: Some(errors) };
    Ok((ours, Stdio::Pipes(input, to_output, to_errors)))
}

/// The directories that a container does not see: the runtime's own, also at the usual place, where `lab exec` mounts them, and
/// the networks' files.
fn hidden(paths: &Paths, spec: &Spec) -> Vec<std::path::PathBuf> {
    let usual = Path::new("/var/lib/weft");
    let same = File::open(&paths.root).is_ok_and(|root| crate::state::same_file(&root, usual));
    let all = [real(&paths.root), real(&paths.run)];
    let networks = (!spec.shows_host_secrets).then(|| real(&paths.config_dir));
    all.into_iter().chain(same.then(|| usual.to_owned())).chain(networks).collect()
}

fn real(path: &Path) -> std::path::PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}
