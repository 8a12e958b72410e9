//! Deletion without the wait. The kernel takes some 20 ms to delete a veth, whatever was done to it before: it waits until
//! no other CPU can still be using it (RCU). A DEL does not have to: [`detach`] takes the pair out of service in a
//! fraction of a millisecond (out of its bridge, down, renamed, without addresses), after which its names, its addresses
//! and its namespace are free for others. The dead links of a namespace are in one device group, [`DEAD_GROUP`], and
//! [`reap`] deletes them all at once, for the price of one. [`reap_soon`] has a short-lived child process do that.
//!
//! Nothing is lost when that child dies: the next [`reap_soon`], or a garbage collection, finds the group.
#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, sendmsg,
    socket, sockopt,
};
use nix::unistd::{ForkResult, fork};

use crate::batch::{Batch, Outcome, Ticket};
use crate::change::LinkSet;
use crate::error::Result;
use crate::link::Link;
use crate::names::DEAD_GROUP;
use crate::netlink::Netlink;
use crate::ns::Netns;

/// The abstract Unix socket by whose name a reaper tells, within its network namespace, that it is there.
const LOCK: &[u8] = b"weft-reaper";
/// For how long the reaper gathers the dead of others.
const GATHER: Duration = Duration::from_millis(20);

/// Takes a container's interface out of service: the host's end `host_link` (in the namespace of `host`), if it is there
/// and carries the label `alias` (a link of that name with another label is not ours and stays),
/// and in the container's namespace, if that is known and still there, the interface `ifname`. Both are left down, in
/// [`DEAD_GROUP`] and renamed, the host's end out of its bridge, the container's without addresses. What is missing is no
/// error. Returns true when there is something for [`reap`] to delete.
///
/// An interface `ifname` that is not the other end of `host_link` is left alone: somebody may have made a new one.
///
/// Where the kernel refuses, the pair is deleted, which takes longer: who may change links in the container can have made one
/// there that has the name which its end is to get.
///
/// # Errors
/// The host's end is there, and stays in service.
pub fn detach(
    host: &mut Netlink,
    host_link: &str,
    alias: &str,
    container: Option<&Netns>,
    ifname: &str,
) -> Result<bool> {
    let Some(near) = host.link(host_link)?.filter(|link| link.alias.as_deref() == Some(alias)) else {
        return Ok(false);
    };
    let Err(refused) = retire(host, &near, container, ifname) else { return Ok(true) };
    let mut batch = Batch::new();
    batch.link_del(near.index).or_missing();
    match host.run(batch) {
        Ok(_) => Ok(false),
        Err(_) => Err(refused),
    }
}

fn retire(host: &mut Netlink, near: &Link, container: Option<&Netns>, ifname: &str) -> Result<()> {
    if let Some(netns) = container {
        detach_far_end(netns, ifname, near)?;
    }
    let mut batch = Batch::new();
    kill(&mut batch, near.index, near.master.map(|_| 0));
    host.run(batch).map(|_| ())
}

/// Makes a link dead.
fn kill(batch: &mut Batch, index: u32, master: Option<u32>) {
    // Two messages: the kernel renames first and takes down last, and before Linux 6.2 would not rename what is up.
    batch.set(index, &LinkSet { up: Some(false), master, ..LinkSet::default() }).or_missing();
    let name = format!("dead{index}");
    let dead = LinkSet { name: Some(&name), alias: Some(""), group: Some(DEAD_GROUP), ..LinkSet::default() };
    batch.set(index, &dead).or_missing();
}

fn detach_far_end(netns: &Netns, ifname: &str, near: &Link) -> Result<()> {
    let mut netlink = Netlink::open_in(netns)?;
    let Some(far) = netlink.link(ifname)? else { return Ok(()) };
    if near.peer_index != Some(far.index) || far.peer_index != Some(near.index) {
        return Ok(());
    }
    let mut batch = Batch::new();
    // Down first: with that the routes go, and taking the addresses away has less to do.
    kill(&mut batch, far.index, None);
    for addr in netlink.addrs(Some(far.index))? {
        batch.addr_del(far.index, addr.net).or_missing();
    }
    netlink.run(batch).map(|_| ())
}

/// Deletes the dead links of the namespace of `netlink`, all by one request, and waits for the kernel to do so.
pub fn reap(netlink: &mut Netlink) -> Result<()> {
    let mut batch = Batch::new();
    batch.link_del_group(DEAD_GROUP).or_missing();
    netlink.run(batch).map(|_| ())
}

/// Asks, in a batch, whether there are dead links: [`are_found`].
pub fn look_for(batch: &mut Batch) -> Ticket {
    batch.link_group_probe(DEAD_GROUP).probing()
}

/// Whether there are dead links, as [`look_for`] asked.
pub fn are_found(outcome: &Outcome, ticket: Ticket) -> bool {
    outcome.errno(ticket) == Some(libc::EINVAL)
}

/// Are there dead links in the namespace of `netlink`? One request, whatever the number of links: the kernel is asked to
/// change them in a way that it must refuse.
pub fn remain(netlink: &mut Netlink) -> Result<bool> {
    let mut batch = Batch::new();
    batch.link_group_probe(DEAD_GROUP);
    match netlink.run(batch) {
        Ok(_) => Ok(false),
        Err(error) if error.errno() == Some(libc::EINVAL) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Sees to it that the dead links of this thread's namespace are deleted soon, and does not wait for it: a child process
/// gathers for some 20 ms what other DELs leave, deletes it at once, calls `housekeeping` and ends. While a child is
/// gathering, no second one is started: mark first ([`detach`]), then call this. The child has none of the caller's files
/// open, is in no session with it and does not live on if it hangs: its housekeeping must be short.
///
/// The child inherits this thread alone and no open file: `housekeeping` opens what it needs. A caller that lives on should reap the
/// child (`waitpid`): its process ID is returned, None when another's child does the work.
/// Where no process can be made the dead are deleted on the spot. A caller that may not change links starts no child: it
/// would hold the name while others, who may, leave their dead to it.
pub fn reap_soon(housekeeping: impl FnOnce()) -> Result<Option<u32>> {
    reap_soon_and_close(Vec::new(), Caller::Unknown, housekeeping)
}

/// What is known of the caller of [`reap_soon_and_close`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// It has just changed links of this namespace.
    ChangesLinks,
    /// Nothing: the kernel is asked whether it may change links.
    Unknown,
}

/// As [`reap_soon`], and has the child close these files: closing a socket of nftables waits until what was deleted, by
/// whatever socket, is out of use everywhere, another 5 to 20 ms ([`crate::firewall::Firewall::handle`]). When another's
/// child does the work it gets the files.
pub fn reap_soon_and_close(
    files: Vec<OwnedFd>,
    caller: Caller,
    housekeeping: impl FnOnce(),
) -> Result<Option<u32>> {
    if caller == Caller::Unknown
        && remain(&mut Netlink::open()?).is_err_and(|error| error.errno() == Some(libc::EPERM))
    {
        return Ok(None);
    }
    let lock = match lock() {
        Ok(Lock::Ours(lock)) => lock,
        Ok(Lock::Theirs(reaper)) => {
            hand_over(&reaper, &files);
            return Ok(None);
        }
        // Somebody else sits on the name: no reason to leave the dead lying about.
        Err(_) => return reap(&mut Netlink::open()?).map(|()| None),
    };
    // SAFETY: the child has this thread alone. It runs Rust code with the allocator, which the C libraries that Weft is
    // built with (glibc, musl) keep usable after a fork; the plugins' own (dlmalloc) is as long as no other thread runs,
    // and a plugin has joined by now those that it had. It takes no lock that another thread may have held, and leaves by
    // _exit, without running the parent's exit handlers or flushing its buffers.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => Ok(Some(child.as_raw() as u32)),
        Ok(ForkResult::Child) => {
            // A panic must not run into the parent's frames.
            let work = std::panic::AssertUnwindSafe(|| reaper(lock, files, housekeeping));
            let code = if std::panic::catch_unwind(work).is_ok() { 0 } else { 1 };
            // SAFETY: _exit takes a number and does not return.
            unsafe { libc::_exit(code) }
        }
        Err(_) => {
            drop(lock);
            reap(&mut Netlink::open()?).map(|()| None)
        }
    }
}

/// Has the reaper of this namespace close the files, if there is one ([`reap_soon_and_close`]). Without one they are closed
/// here: then nothing was deleted of late that would have to be waited for.
pub fn close_by_reaper(files: &[OwnedFd]) {
    if let Ok(Some(reaper)) = reaper_at() {
        hand_over(&reaper, files);
    }
}

/// Leaves files in the queue of a connection that the reaper never accepts: they are closed when it closes its socket.
/// When it has done that already they stay the caller's alone, who then waits.
fn hand_over(reaper: &OwnedFd, files: &[OwnedFd]) {
    if !files.is_empty() {
        let numbers: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let content = [ControlMessage::ScmRights(&numbers)];
        let word = [IoSlice::new(&[0])];
        let _ = sendmsg::<()>(reaper.as_raw_fd(), &word, &content, MsgFlags::MSG_NOSIGNAL, None);
    }
}

/// The life of the child.
fn reaper(lock: UnixListener, files: Vec<OwnedFd>, housekeeping: impl FnOnce()) {
    let mut kept: Vec<libc::c_uint> = files.iter().map(|file| file.as_raw_fd() as libc::c_uint).collect();
    kept.push(lock.as_raw_fd() as libc::c_uint);
    kept.sort_unstable();
    // Whoever reads the parent's output waits for its end of file, and its session's end must not end the child.
    // SAFETY: these calls take numbers; the descriptors that they close are not used again: those of `lock` and `files`
    // are spared.
    unsafe {
        libc::setsid();
        let mut from = 0;
        for kept in kept {
            if kept > from {
                close_range(from, kept - 1);
            }
            from = kept + 1;
        }
        close_range(from, libc::c_uint::MAX);
        // A namespace or file system must not be kept by the working directory. It may fail: then it is.
        libc::chdir(c"/".as_ptr());
        // Should the kernel hang, the child does not.
        libc::signal(libc::SIGALRM, libc::SIG_DFL);
        libc::alarm(10);
    }
    sleep(GATHER);
    // What was handed over stays open until the links are gone: then the wait for its closing is over, too, and no other
    // user of nftables is kept waiting by it.
    let _ = lock.set_nonblocking(true);
    let handed: Vec<_> = std::iter::from_fn(|| lock.accept().ok()).collect();
    // Who marks from now on starts a child of its own; who marked before is seen below.
    drop(lock);
    let _ = Netlink::open().and_then(|mut netlink| reap(&mut netlink));
    drop((files, handed));
    housekeeping();
}

/// # Safety
/// No file with a descriptor in the range may be used afterwards.
unsafe fn close_range(first: libc::c_uint, last: libc::c_uint) {
    // SAFETY: the call takes numbers; the caller vouches for the descriptors.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return;
    }
    // Linux before 5.9.
    for fd in first..=last.min(1023) {
        // SAFETY: as above.
        unsafe { libc::close(fd as libc::c_int) };
    }
}

/// Who has the lock of a namespace.
enum Lock {
    /// This process, from now on.
    Ours(UnixListener),
    /// A reaper, to which this leads.
    Theirs(OwnedFd),
}

/// Takes the lock of this namespace, if no reaper of ours has it.
///
/// # Errors
/// When the name cannot be had, though no reaper has it: any user may bind it.
fn lock() -> io::Result<Lock> {
    let address = SocketAddr::from_abstract_name(LOCK)?;
    match UnixListener::bind_addr(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        result => return result.map(Lock::Ours),
    }
    match reaper_at()? {
        Some(reaper) => Ok(Lock::Theirs(reaper)),
        // Released just now. It may have looked for the dead before there was ours.
        None => UnixListener::bind_addr(&address).map(Lock::Ours),
    }
}

/// A connection to the reaper of this namespace; None when there is none.
fn reaper_at() -> io::Result<Option<OwnedFd>> {
    // Not blocking: whoever sits on the name may let nobody in.
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(stream.as_raw_fd(), &UnixAddr::new_abstract(LOCK)?) {
        Ok(()) => {}
        Err(Errno::ECONNREFUSED) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let owner = getsockopt(&stream, sockopt::PeerCredentials)?.uid();
    if owner == nix::unistd::geteuid().as_raw() {
        Ok(Some(stream))
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}
