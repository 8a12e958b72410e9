//! The guard: a process that ends a container with its supervisor, however that ends.
//!
//! A container's first process may clear its parent-death signal, and every change of user does (prctl(2),
//! PR_SET_PDEATHSIG). So its PID namespace lies in another one, whose init is the guard. With the guard the kernel kills all
//! that is in the namespace and those below it (pid_namespaces(7)). The guard runs nothing but these lines, has no descriptor
//! of the host, and is not seen from the container.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use crate::engine::sys::{self, Cloned};

/// A guard. It ends when this is dropped, and all that it guards.
pub struct Guard {
    pid: i32,
    pidfd: OwnedFd,
    /// The guard ends when the other end of its pipe is closed.
    _alive: OwnedFd,
}

impl Guard {
    /// Starts a guard. The caller has one thread.
    pub fn new() -> Result<Self> {
        let (end, alive) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
        match sys::clone(libc::CLONE_NEWPID, None).context("cannot make the container's guard")? {
            Cloned::Child => guard(&end),
            Cloned::Parent(pid, pidfd) => Ok(Self { pid, pidfd, _alive: alive }),
        }
    }

    /// As [`sys::clone`], with the new process the first in a PID namespace inside of the guard's.
    ///
    /// A PID namespace is made by a process in the one around it (kernel/pid_namespace.c: copy_pid_ns), so a helper makes the
    /// process, as a sibling of its own.
    pub fn clone(&self, flags: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .context("socketpair")?;
        let own = File::open("/proc/self/ns/pid").context("/proc/self/ns/pid")?;
        setns(&self.pidfd, CloneFlags::CLONE_NEWPID).context("cannot enter the guard's PID namespace")?;
        let helper = sys::clone(0, None);
        if matches!(helper, Ok(Cloned::Child)) {
            return help(&theirs, flags, cgroup);
        }
        setns(&own, CloneFlags::CLONE_NEWPID).context("cannot leave the guard's PID namespace")?;
        drop(theirs);
        let Cloned::Parent(helper, _) = helper? else { bail!("a child went on as its parent") };
        let received = sys::receive(ours.as_fd(), &mut [0]);
        match waitpid(Pid::from_raw(helper), None)? {
            WaitStatus::Exited(_, 0) => {}
            WaitStatus::Exited(_, errno) => return Err(io::Error::from_raw_os_error(errno).into()),
            status => bail!("the process that was to make it ended: {status:?}"),
        }
        let (_, Some(pidfd)) = received? else { bail!("the process that was to make it sent nothing") };
        Ok(Cloned::Parent(pid_of(&pidfd)?, pidfd))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = sys::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        while waitpid(Pid::from_raw(self.pid), None) == Err(Errno::EINTR) {}
    }
}

/// In the guard: waits for the supervisor's end.
fn guard(end: &OwnedFd) -> ! {
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let _ = sys::close_all_but(end.as_fd());
    while nix::unistd::read(end, &mut [0]) == Err(Errno::EINTR) {}
    sys::exit_now(0)
}

/// In the helper: makes the process and sends its pidfd. The process returns, the helper does not.
fn help(to: &OwnedFd, flags: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    let sent = match sys::clone(flags | libc::CLONE_PARENT, cgroup) {
        Ok(Cloned::Child) => return Ok(Cloned::Child),
        Ok(Cloned::Parent(_, pidfd)) => {
            let fds = [pidfd.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&fds)];
            let parts = [io::IoSlice::new(b"p")];
            sendmsg::<()>(to.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None)
                .map(drop)
                .map_err(io::Error::from)
        }
        Err(error) => Err(error),
    };
    sys::exit_now(sent.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0))
}

/// The PID of a pidfd's process, as this process sees it.
fn pid_of(pidfd: &OwnedFd) -> Result<i32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.filter(|pid| *pid > 0).with_context(|| format!("{path} has no PID"))
}
