//! The launch of a container: from a prepared plan to its program running in its own namespaces.
//!
//! Everything is done by the new process itself, after clone and before exec, so that nothing of it is ever visible on the
//! host and everything goes when the process does.

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

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{sethostname, setsid};

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
    /// What its processes may not do.
    pub filters: Filters,
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

impl Plan<'_> {
    /// Launches the program; returns when it runs. An error leaves no process. The caller has one thread.
    pub fn launch(&self, stdio: Stdio) -> Result<Launched> {
        let (listener, reporter) = report::pair()?;
        let null = open_null()?;
        let flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        let cgroup = self.cgroup.and_then(Cgroup::directory);
        let guard = Guard::new()?;
        match guard.clone(flags, cgroup).context("cannot make the container's process")? {
            Cloned::Child => {
                drop(listener);
                // Not without the supervisor: it would be nobody's.
                let error = match reporter.wait().and_then(|()| self.set_up(&reporter)) {
                    Ok(()) => self.program(stdio, null).run(&reporter),
                    Err(error) => error,
                };
                give_up(&reporter, error)
            }
            Cloned::Parent(pid, pidfd) => {
                drop((reporter, stdio, null));
                Ok(Launched { guard: Some(guard), ..hear(&listener, pid, pidfd)? })
            }
        }
    }

    fn program(&self, stdio: Stdio, null: OwnedFd) -> Program<'_> {
        Program {
            command: &self.spec.command,
            env: self.spec.env.clone(),
            workdir: &self.spec.workdir,
            user: self.spec.user.as_deref(),
            hostname: &self.hostname,
            stdio,
            null,
            filters: &self.filters,
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
        let cgroup2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        rootfs::enter(&root)?;
        let is_host = *self.root.from == Rootfs::Host;
        let (fresh, hidden): (&[_], &[_]) =
            if is_host { (&[("/run", 0o755), ("/tmp", 0o1777)], &self.root.hidden) } else { (&[], &[]) };
        let system = mounts::System::mount(fresh, hidden, cgroup2)?;
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
    match listener.go().and_then(|()| listener.listen()) {
        Ok(heard) => Ok(Launched { pid, pidfd, heard, guard: None }),
        Err(error) => {
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
            Err(error)
        }
    }
}
