//! Processes, told from later ones with the same PID.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::sys;
use crate::state::State;

/// This boot's ID; empty where the kernel tells none.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// When process `pid` started, in clock ticks since boot (field 22 of /proc/PID/stat, proc(5)); none when it is gone.
pub fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the program's name, may have spaces and parentheses itself.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The pidfd of a container's first process, if it is still there.
pub fn find(state: &State) -> Option<OwnedFd> {
    let is_it =
        || state.pid > 0 && state.boot_id == boot_id() && started(state.pid) == Some(state.pid_started);
    if !is_it() {
        return None;
    }
    let pidfd = sys::pidfd_open(state.pid).ok()?;
    // Only now the PID cannot become another's.
    is_it().then_some(pidfd)
}

/// The pidfd of a container's supervisor, if it is still there.
pub fn supervisor(state: &State, id: &str) -> Option<OwnedFd> {
    if state.supervisor_pid <= 0 || state.boot_id != boot_id() {
        return None;
    }
    let pidfd = sys::pidfd_open(state.supervisor_pid).ok()?;
    let line = fs::read(format!("/proc/{}/cmdline", state.supervisor_pid)).ok()?;
    line.ends_with(format!("\0supervise\0{id}\0").as_bytes()).then_some(pidfd)
}

/// Waits until the process has ended; false when it has not after `patience` (none: for ever).
pub fn wait(pidfd: &OwnedFd, patience: Option<Duration>) -> bool {
    let end = patience.map(|p| std::time::Instant::now() + p);
    loop {
        let left = match end {
            None => PollTimeout::NONE,
            Some(end) => {
                let left = end.saturating_duration_since(std::time::Instant::now());
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], left) {
            Err(Errno::EINTR) => continue,
            Ok(0) if end.is_none_or(|end| std::time::Instant::now() < end) => continue,
            Ok(0) | Err(_) => return false,
            Ok(_) => return true,
        }
    }
}

/// Kills the process and waits until it is dead, at most 10 s.
pub fn kill(pidfd: &OwnedFd) -> bool {
    let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
    wait(pidfd, Some(Duration::from_secs(10)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_pid_and_start_and_not_when_either_differs() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let mut state =
            State { pid, pid_started: started(pid).unwrap(), boot_id: boot_id(), ..Default::default() };
        let pidfd = find(&state).unwrap();
        assert!(!wait(&pidfd, Some(Duration::ZERO)));
        assert!(kill(&pidfd));
        child.wait().unwrap();
        assert!(find(&state).is_none());
        state.pid = std::process::id() as i32;
        // It may have begun in the same tick as its child.
        state.pid_started = started(state.pid).unwrap() + 1;
        assert!(find(&state).is_none());
    }
}
