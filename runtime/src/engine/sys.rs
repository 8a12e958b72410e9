//! The system calls that neither the standard library nor nix offers safely: making a process in new namespaces, detached
//! mounts, pidfds, terminals. The only unsafe code of the runtime; it decides nothing.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use libc::{c_int, c_long, c_uint};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// include/uapi/linux/sched.h; the libc crate's is too narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// include/uapi/linux/mount.h.
const FSOPEN_CLOEXEC: c_uint = 1;
const FSMOUNT_CLOEXEC: c_uint = 1;
const FSCONFIG_SET_FLAG: c_uint = 0;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_CMD_CREATE: c_uint = 6;

/// Which side of [`clone`] this is.
pub enum Cloned {
    /// The new process.
    Child,
    /// The old one, with the new one's PID and pidfd (close-on-exec).
    Parent(i32, OwnedFd),
}

/// How often the number of threads is asked for, a millisecond apart.
const THREAD_TRIES: usize = 2000;

/// Waits until this process has one thread. One that was joined runs no code any more, but the kernel lists it until it has
/// cleared away what it was.
fn wait_for_one(mut threads: impl FnMut() -> io::Result<usize>) -> io::Result<()> {
    for _ in 0..THREAD_TRIES {
        if threads()? == 1 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::other("a process can be launched from a single-threaded process alone"))
}

/// Makes a child process in new namespaces (`CLONE_NEW*` flags), as fork does: a copy of this process, and when it ends
/// SIGCHLD. With a cgroup directory (v2) it begins its life there, which costs none of the waiting that moving a process
/// does (kernel/cgroup/cgroup.c: cgroup_css_set_fork).
///
/// Refuses in a process of several threads, when they do not end within two seconds: the child would have the locks of the other ones without their holders.
pub fn clone(flags: c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    wait_for_one(|| Ok(std::fs::read_dir("/proc/self/task")?.count()))?;
    let mut pidfd: c_int = -1;
    // SAFETY: clone_args is a plain struct of integers, of which zero is the neutral value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags as u64 | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    // A sibling's is that of its maker (clone3(2), CLONE_PARENT).
    args.exit_signal = if flags & libc::CLONE_PARENT == 0 { libc::SIGCHLD as u64 } else { 0 };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has a copy of the address space and goes on from here on its own copy of the
    // stack, as after fork; this process has one thread (checked above), so no lock is held by anybody else. `args` and
    // `pidfd` outlive the call.
    let mut pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    if pid == -1 && cgroup.is_none() && last_errno() == libc::ENOSYS {
        let flags = flags | libc::CLONE_PIDFD | libc::SIGCHLD;
        // SAFETY: as above; a null stack means that the child goes on on its copy of this one. With CLONE_PIDFD the
        // third argument is where the pidfd is stored, on every architecture.
        pid = unsafe {
            libc::syscall(
                libc::SYS_clone,
                c_long::from(flags),
                0 as c_long,
                &raw mut pidfd,
                0 as c_long,
                0 as c_long,
            )
        };
    }
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        // SAFETY: the kernel has just stored a new descriptor there, which nobody else owns.
        pid => Ok(Cloned::Parent(pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) })),
    }
}

/// A detached copy of the mount at `path` (with those below it when `recursive`): it can be mounted elsewhere later, also
/// when `path` is out of reach by then. Close-on-exec; unmounted when it is closed unused.
pub fn open_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = c_string(path)?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as c_uint;
    }
    // SAFETY: `path` is a C string that outlives the call.
    fd(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// A detached copy of the mount that `place`, an open file or directory, is on; as [`open_tree`] for a path.
pub fn clone_tree(place: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as c_uint;
    if recursive {
        flags |= libc::AT_RECURSIVE as c_uint;
    }
    // SAFETY: the path is a C string that outlives the call.
    fd(unsafe { libc::syscall(libc::SYS_open_tree, place.as_raw_fd(), c"".as_ptr(), flags) })
}

/// Makes a new, detached mount of file system `kind` with these options (an empty value: a flag) and attributes
/// (`MOUNT_ATTR_*`). Close-on-exec; unmounted when it is closed without [`move_mount`].
pub fn new_mount(kind: &CStr, options: &[(&CStr, &CStr)], attributes: u64) -> io::Result<OwnedFd> {
    // SAFETY: `kind` is a C string that outlives the call.
    let context = fd(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    let configure = |command: c_uint, key: *const libc::c_char, value: *const libc::c_char| {
        // SAFETY: `key` and `value` are null or C strings that outlive the call, as the command asks for.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0) })
    };
    configure(FSCONFIG_SET_STRING, c"source".as_ptr(), kind.as_ptr())?;
    for (key, value) in options {
        match value.is_empty() {
            true => configure(FSCONFIG_SET_FLAG, key.as_ptr(), std::ptr::null())?,
            false => configure(FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())?,
        }
    }
    configure(FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null())?;
    // SAFETY: takes integers only.
    fd(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
}

/// Mounts a detached mount on the open file or directory `target`. No path is followed.
pub fn move_mount(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both strings are C strings that outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    })
}

/// Lets the other end of the terminal whose master this is be opened (ioctl_tty(2)).
pub fn unlock_terminal(master: BorrowedFd<'_>) -> io::Result<()> {
    let locked: c_int = 0;
    // SAFETY: TIOCSPTLCK reads an integer, which outlives the call.
    check(c_long::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked) }))
}

/// Opens the other end of the terminal whose master this is. No path of the container is followed (ioctl_tty(2)).
pub fn terminal_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes an integer and gives a new descriptor.
    fd(c_long::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }))
}

/// Sets attributes (`MOUNT_ATTR_*`) of a mount that [`open_tree`] gave.
pub fn mount_setattr(tree: BorrowedFd<'_>, set: u64, recursive: bool) -> io::Result<()> {
    setattr(tree.as_raw_fd(), c"", set, libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 })
}

fn setattr(dir: RawFd, path: &CStr, set: u64, flags: c_int) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: `path` and `attr` outlive the call, and the size is that of `attr`.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir,
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
}

/// Sets an extended attribute of the file at `path`, whose last component is no symbolic link.
pub fn set_attribute(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = c_string(path)?;
    // SAFETY: `path` and `name` are C strings, `value` is as long as the call is told; all outlive the call.
    check(c_long::from(unsafe {
        libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    }))
}

/// A descriptor of process `pid`, close-on-exec: readable when the process has ended.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Sends a signal to the process of a pidfd; `signal` 0 only asks whether it is there.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: takes integers and a null siginfo, which means "as kill does".
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
}

/// Closes every descriptor from 3 up but `keep`. For a child process on its way to exec: descriptors that Rust values
/// still own are gone afterwards, so nothing of them may be used or dropped.
pub fn close_all_but(keep: BorrowedFd<'_>) -> io::Result<()> {
    let keep = keep.as_raw_fd() as c_uint;
    for (first, last) in [(3, keep.saturating_sub(1)), (keep + 1, c_uint::MAX)] {
        if first <= last {
            // SAFETY: takes integers only. The caller never returns to code that owns the descriptors (see above).
            check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0 as c_uint) })?;
        }
    }
    Ok(())
}

/// Makes the terminal the controlling one of this session.
pub fn set_controlling_terminal(tty: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    check(c_long::from(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY, 0) }))
}

/// Sets the window size of a terminal, in characters.
pub fn set_window_size(tty: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize, which outlives the call.
    check(c_long::from(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }))
}

/// The window size (rows, columns) of a terminal.
pub fn window_size(tty: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes a winsize, which outlives the call.
    check(c_long::from(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }))?;
    Ok((size.ws_row, size.ws_col))
}

/// Gives every signal its default action and lets all through: what a new program expects to find.
pub fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is no handler of ours; for SIGKILL, SIGSTOP and the C library's own signals the call fails, and
        // they have their default action anyway.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// Receives one message with at most one descriptor (close-on-exec) from a socket; empty at its end.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [io::IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut received = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just made these descriptors for this process, and nobody else owns them.
            received = fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).next();
        }
    }
    Ok((message.bytes, received))
}

/// A descriptor to wait for in an event loop, which must run.
pub fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is the same open descriptor for all its life, and owns it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Ends this process at once, running nothing of what Rust or C would at an exit: for a child that shares its parent's
/// buffers and handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

fn c_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn check(result: c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn fd(result: c_long) -> io::Result<OwnedFd> {
    check(result)?;
    // SAFETY: the system call has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clone_waits_for_ending_threads_alone() {
        let mut counts = [3, 2, 2, 1, 7].into_iter();
        wait_for_one(|| Ok(counts.next().unwrap())).unwrap();
        assert_eq!(counts.next(), Some(7));
        let mut asked = 0;
        let refused = wait_for_one(|| {
            asked += 1;
            Ok(2)
        });
        assert!(refused.unwrap_err().to_string().contains("single-threaded"));
        assert_eq!(asked, THREAD_TRIES);
    }
}
