//! The launch of a container: from a prepared plan to its program running in its own namespaces.
//!
//! Everything is done by the new process itself, after clone and before exec, so that nothing of it is ever visible on the
//! host and everything goes when the process does.

mod archive;
mod caps;
mod guard;
mod mounts;
mod place;
mod program;
pub mod report;
mod rootfs;
mod seccomp;
mod secrets;
mod user;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, sethostname, setsid};

pub use guard::Guard;
pub use mounts::open_null;
pub use program::{Program, Stdio};
pub use rootfs::Root;
pub use seccomp::Filters;

use super::cgroup::Cgroup;
use super::sys::{self, Cloned};
use super::{Failure, volumes};
use crate::spec::{Rootfs, Spec};
use report::{Heard, Listener, Reporter};

/// All that a launch needs.
pub struct Plan<'a> {
    /// What was asked for.
    pub spec: &'a Spec,
    /// The root.
    pub root: Root<'a>,
    /// The network namespace to be in; none: the host's.
    pub netns: Option<net::ns::Netns>,
    /// Whether that namespace is this container's own, to be given Docker's defaults.
    pub owns_netns: bool,
    /// The name in its UTS namespace.
    pub hostname: String,
    /// Files of the host and where they go: hosts, resolv.conf, hostname.
    pub files: Vec<(PathBuf, &'static str)>,
    /// Volumes of the host.
    pub volumes: Vec<volumes::Mount>,
    /// Its cgroup.
    pub cgroup: Option<&'a Cgroup>,
}

/// A launched process.
pub struct Launched {
    /// Its PID on the host.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// What it told on its way.
    pub heard: Heard,
    /// What ends it with its supervisor; none of a process in a container that has one.
    pub guard: Option<Guard>,
}

/// A process that sets itself up for its program. Dropping this ends it.
pub struct Pending {
    listener: Listener,
    /// None once it is finished.
    process: Option<(i32, OwnedFd, Guard)>,
}

impl Pending {
    /// Lets the process become its program, when it is set up; returns when the program runs. An error leaves no process.
    pub fn finish(mut self) -> Result<Launched> {
        let Some((pid, pidfd, guard)) = self.process.take() else { bail!("it is finished already") };
        Ok(Launched { guard: Some(guard), ..hear(&self.listener, pid, pidfd)? })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some((pid, pidfd, _)) = &self.process {
            reap(*pid, pidfd);
        }
    }
}

impl Plan<'_> {
    /// Makes the process, which sets up all but the program and then waits (see [`Pending::finish`]). An error leaves no process.
    /// The caller has one thread.
    pub fn begin(&self, stdio: Stdio) -> Result<Pending> {
        let (listener, reporter) = report::pair()?;
        let null = open_null()?;
        let flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        let cgroup = self.cgroup.and_then(Cgroup::directory);
        let guard = Guard::new()?;
        match guard.clone(flags, cgroup).context("cannot make the container's process")? {
            Cloned::Child => {
                drop(listener);
                let ready = || -> Result<Filters> {
                    self.set_up(&reporter)?;
                    let filters = Filters::new()?;
                    reporter.wait()?;
                    Ok(filters)
                };
                let error = match ready() {
                    Ok(filters) => self.program(stdio, null, &filters).run(&reporter),
                    Err(error) => error,
                };
                give_up(&reporter, error)
            }
            Cloned::Parent(pid, pidfd) => Ok(Pending { listener, process: Some((pid, pidfd, guard)) }),
        }
    }

    fn program<'a>(&'a self, stdio: Stdio, null: OwnedFd, filters: &'a Filters) -> Program<'a> {
        Program {
            command: &self.spec.command,
            env: self.spec.env.clone(),
            workdir: &self.spec.workdir,
            user: self.spec.user.as_deref(),
            hostname: &self.hostname,
            stdio,
            null,
            filters,
            dies_with_parent: true,
        }
    }

    /// In the new process: everything about it but the program.
    fn set_up(&self, report: &Reporter) -> Result<()> {
        prctl::set_pdeathsig(Signal::SIGKILL).context("cannot tie the process to its supervisor")?;
        prctl::set_dumpable(false).context("cannot hide the process")?;
        setsid().context("setsid")?;
        if let Some(netns) = &self.netns {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
        }
        if let Some(Err(error)) = self.cgroup.map(Cgroup::enter) {
            report.note(&format!("no cgroup for this container: {error}"));
        }
        unshare(CloneFlags::CLONE_NEWCGROUP).context("cannot make a cgroup namespace")?;
        sethostname(&self.hostname).context("cannot set the host name")?;
        umask(Mode::empty());
        let root = self.root.mount(report)?;
        let mut grafts = Vec::new();
        for (source, target) in &self.files {
            grafts.push(mounts::Graft::new(source, Path::new(target), false)?);
        }
        for volume in &self.volumes {
            grafts.push(mounts::Graft::new(&volume.source, &volume.target, volume.read_only)?);
        }
        let fresh = self.root.fresh()?;
        let cgroup2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        rootfs::enter(&root)?;
        let hidden: &[_] = if *self.root.from == Rootfs::Host { &self.root.hidden } else { &[] };
        let system = mounts::System::mount(&fresh, hidden, cgroup2)?;
        if self.owns_netns {
            // Docker's: ping and ports below 1024 for every user.
            let _ = system.set("net/ipv4/ping_group_range", "0 2147483647");
            let _ = system.set("net/ipv4/ip_unprivileged_port_start", "0");
        }
        // Before the volumes, so that nothing of theirs is in the way.
        system.protect()?;
        for graft in &grafts {
            graft.mount(&system)?;
        }
        system.check()?;
        umask(Mode::from_bits_truncate(0o022));
        Ok(())
    }
}

/// In a new process: tells why there will be no program, and ends.
pub fn give_up(report: &Reporter, error: anyhow::Error) -> ! {
    let failure = match error.downcast::<Failure>() {
        Ok(failure) => failure,
        Err(error) => Failure { code: 125, message: format!("{error:#}") },
    };
    report.fail(&failure);
    sys::exit_now(i32::from(failure.code));
}

/// In the old process: lets the new one go on and hears how it goes. A process that fails is reaped.
pub fn hear(listener: &Listener, pid: i32, pidfd: OwnedFd) -> Result<Launched> {
    // One that has ended says why in what it sent before.
    let went = listener.go();
    match listener.listen().and_then(|heard| went.map(|()| heard)) {
        Ok(heard) => Ok(Launched { pid, pidfd, heard, guard: None }),
        Err(error) => {
            reap(pid, &pidfd);
            Err(error)
        }
    }
}

fn reap(pid: i32, pidfd: &OwnedFd) {
    let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
    while waitpid(Pid::from_raw(pid), None) == Err(Errno::EINTR) {}
}
