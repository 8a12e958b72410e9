//! One more process in a running container: in all its namespaces, and with no more rights than its first process has.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2, setsid};

use super::cgroup::Cgroup;
use super::launch::report::{self, Reporter};
use super::launch::{self, Filters, Launched, Program, Stdio};
use super::sys::{self, Cloned};
use super::{ExecOptions, etc, own, process, release, tty};
use crate::state::{Container, Status};

/// How long output is waited for when the process has ended but something else holds its pipes.
const DRAIN: Duration = Duration::from_secs(1);

/// What is entered after the PID namespace, which takes a child.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWCGROUP);

impl Container {
    /// Runs one more process in it; gives that process's exit code, 128+signal when a signal ended it, 0 when detached.
    /// The calling process has one thread.
    pub fn exec(&self, options: &ExecOptions) -> Result<i32> {
        own::protect(&self.paths);
        let this = release::current(self)?;
        tty::check(options.tty, options.stdin)?;
        let process = (this.state.status == Status::Running).then(|| process::find(&this.state)).flatten();
        let Some(target) = process else { bail!("container {} is not running", self.spec.name) };
        let pipe = || pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe");
        let mut ours = Ours::default();
        let stdio = if options.detach {
            Stdio::Nothing
        } else if options.tty {
            Stdio::Terminal(tty::known_size())
        } else {
            let (output, to_output) = pipe()?;
            let (errors, to_errors) = pipe()?;
            (ours.output, ours.errors) = (Some(output), Some(errors));
            let mut input = None;
            if options.stdin {
                let (read, write) = pipe()?;
                (input, ours.input) = (Some(read), Some(write));
            }
            Stdio::Pipes(input, to_output, to_errors)
        };
        let launched = self.enter(options, &target, stdio)?;
        if options.detach {
            return Ok(0);
        }
        ours.relay(launched, options)
    }

    fn enter(&self, options: &ExecOptions, target: &OwnedFd, stdio: Stdio) -> Result<Launched> {
        let mut env = self.spec.env.clone();
        env.extend(options.env.iter().cloned());
        let hostname = etc::hostname(self)?;
        let filters = Filters::new()?;
        let null = launch::open_null()?;
        let cgroup = Cgroup::open(self.id());
        let (listener, reporter) = report::pair()?;
        let own = File::open("/proc/self/ns/pid").context("/proc/self/ns/pid")?;
        setns(target, CloneFlags::CLONE_NEWPID).context("cannot enter the container's PID namespace")?;
        let cloned = sys::clone(0, cgroup.as_ref().and_then(Cgroup::directory));
        if matches!(cloned, Ok(Cloned::Child)) {
            drop(listener);
            let error = match reporter.wait().and_then(|()| join(target, cgroup.as_ref(), &reporter)) {
                Err(error) => error,
                Ok(()) => Program {
                    command: &options.command,
                    env,
                    workdir: options.workdir.as_deref().unwrap_or(&self.spec.workdir),
                    user: options.user.as_deref().or(self.spec.user.as_deref()),
                    hostname: &hostname,
                    stdio,
                    null,
                    filters: &filters,
                    dies_with_parent: false,
                }
                .run(&reporter),
            };
            launch::give_up(&reporter, error);
        }
        // A process whose children go elsewhere cannot make threads (kernel/fork.c: copy_process).
        setns(&own, CloneFlags::CLONE_NEWPID)
            .context("cannot come back from the container's PID namespace")?;
        drop((reporter, stdio, null));
        match cloned.context("cannot make a process in the container")? {
            Cloned::Parent(pid, pidfd) => launch::hear(&listener, pid, pidfd),
            Cloned::Child => bail!("a child went on as its parent"),
        }
    }
}

/// In the new process: enters everything of the container.
fn join(target: &OwnedFd, cgroup: Option<&Cgroup>, report: &Reporter) -> Result<()> {
    // From here the container's processes see this one; they must not get at what it still has of the host.
    prctl::set_dumpable(false).context("cannot hide the process")?;
    if let Some(Err(error)) = cgroup.map(Cgroup::enter) {
        report.note(&format!("not in the container's cgroup: {error}"));
    }
    setns(target, NAMESPACES).context("cannot enter the container")?;
    setsid().context("setsid")?;
    umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

/// This process's ends of the pipes.
#[derive(Default)]
struct Ours {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    errors: Option<OwnedFd>,
}

impl Ours {
    /// Joins this process's standard input and output to the new one's until it ends.
    fn relay(mut self, launched: Launched, options: &ExecOptions) -> Result<i32> {
        for note in &launched.heard.notes {
            eprintln!("runtime: note: {note}");
        }
        let raw = if options.tty && options.stdin { tty::Raw::new()? } else { None };
        if let Some(terminal) = launched.heard.terminal {
            follow_window(&terminal)?;
            if options.stdin {
                self.input = Some(terminal.try_clone()?);
            }
            self.output = Some(terminal);
        }
        let (done, all_done) = channel();
        if let Some(output) = self.output.take() {
            copy(File::from(output), io::stdout(), done.clone());
        }
        if let Some(errors) = self.errors.take() {
            copy(File::from(errors), io::stderr(), done.clone());
        }
        drop(done);
        if let Some(input) = self.input.take() {
            // Ends with this process when the container has no use for its input any more.
            std::thread::spawn(move || copy_all(io::stdin().lock(), File::from(input)));
        }
        let code = loop {
            match waitpid(Pid::from_raw(launched.pid), None) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error).context("waitpid"),
                Ok(WaitStatus::Exited(_, code)) => break code,
                Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
                Ok(_) => continue,
            }
        };
        // All senders are gone when all output is out.
        let _ = all_done.recv_timeout(DRAIN);
        drop(raw);
        Ok(code)
    }
}

/// Gives the new terminal the size of this process's window, now and whenever it changes.
fn follow_window(terminal: &OwnedFd) -> Result<()> {
    let terminal = terminal.try_clone()?;
    let mut changes = SigSet::empty();
    changes.add(Signal::SIGWINCH);
    changes.thread_block().context("cannot watch the window")?;
    let follow = move || {
        if let Some((rows, columns)) = tty::known_size() {
            let _ = sys::set_window_size(terminal.as_fd(), rows, columns);
        }
    };
    follow();
    std::thread::spawn(move || {
        while changes.wait().is_ok() {
            follow();
        }
    });
    Ok(())
}

fn copy(from: File, to: impl Write + Send + 'static, done: Sender<()>) {
    std::thread::spawn(move || {
        copy_all(from, to);
        drop(done);
    });
}

/// Copies and flushes as it comes. An error is an end: a terminal's output ends with EIO.
fn copy_all(mut from: impl Read, mut to: impl Write) {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(size) => {
                if to.write_all(&buffer[..size]).and_then(|()| to.flush()).is_err() {
                    return;
                }
            }
        }
    }
}
