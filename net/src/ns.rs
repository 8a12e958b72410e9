//! Network namespaces: opened, compared, entered and left, made and removed.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use crate::error::{Error, Result};

/// This thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";
/// SO_NETNS_COOKIE of asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// NS_GET_NSTYPE of linux/nsfs.h: `_IO(0xb7, 3)`.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// Returns the number of the calling thread's network namespace, which no other has until the next boot; `None` before Linux 5.14.
pub fn cookie() -> Option<u64> {
    cookie_of(&UnixDatagram::unbound().ok()?)
}

/// As [`cookie`], of the network namespace in which this socket was made.
pub fn cookie_of(socket: &impl AsRawFd) -> Option<u64> {
    let (mut cookie, mut len) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the descriptor is open for as long as `socket` lives; the kernel writes at most `len` bytes, which `cookie` has.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    (asked == 0 && len as usize == size_of::<u64>()).then_some(cookie)
}

/// An open network namespace. While it is open the namespace lives.
#[derive(Debug)]
pub struct Netns {
    file: File,
    device: u64,
    inode: u64,
}

impl Netns {
    /// Opens the namespace at `path` (`/run/netns/NAME`, `/proc/PID/ns/net`).
    ///
    /// # Errors
    /// [`Error::NetnsMissing`] when nothing is there, [`Error::NotANamespace`] for a plain file, [`Error::NotNetwork`] for a
    /// namespace of another kind, [`Error::Io`] otherwise.
    pub fn open(path: impl AsRef<Path>) -> Result<Netns> {
        let path = path.as_ref();
        // Not blocking: should the path be a FIFO, opening it must not hang.
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
            Ok(file) => file,
            Err(error) => {
                return Err(match error.raw_os_error() {
                    Some(libc::ENOENT | libc::ENOTDIR) => Error::NetnsMissing(path.to_owned()),
                    _ => Error::io(format!("open network namespace {}", path.display()), error),
                });
            }
        };
        let failed = |error| Error::io(format!("examine network namespace {}", path.display()), error);
        let status = fstatfs(&file).map_err(|error| failed(io::Error::from(error)))?;
        if status.filesystem_type() != NSFS_MAGIC {
            return Err(Error::NotANamespace(path.to_owned()));
        }
        // SAFETY: the descriptor is open for as long as `file` lives, and NS_GET_NSTYPE takes no argument and writes nothing.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE as _) };
        let kind = match CloneFlags::from_bits_truncate(Errno::result(kind).map_err(|e| failed(e.into()))?) {
            CloneFlags::CLONE_NEWNET => return Netns::from_file(file).map_err(failed),
            CloneFlags::CLONE_NEWNS => "mount",
            CloneFlags::CLONE_NEWPID => "PID",
            CloneFlags::CLONE_NEWUTS => "UTS",
            CloneFlags::CLONE_NEWIPC => "IPC",
            CloneFlags::CLONE_NEWUSER => "user",
            CloneFlags::CLONE_NEWCGROUP => "cgroup",
            _ => "time",
        };
        Err(Error::NotNetwork { path: path.to_owned(), kind })
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Netns> {
        File::open(OWN)
            .and_then(Netns::from_file)
            .map_err(|error| Error::io(format!("open this thread's network namespace ({OWN})"), error))
    }

    fn from_file(file: File) -> io::Result<Netns> {
        let metadata = file.metadata()?;
        Ok(Netns { device: metadata.dev(), inode: metadata.ino(), file })
    }

    /// Device and inode number, which identify a namespace while it lives.
    pub fn id(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// True when both are the same namespace.
    pub fn same(&self, other: &Netns) -> bool {
        self.id() == other.id()
    }

    /// Runs `f` in this namespace, on the calling thread, which is back in its own namespace afterwards, also when `f`
    /// panics. Should there be no way back the process is aborted: it would go on to change the wrong namespace.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> Result<T> {
        let home = Netns::current()?;
        if home.same(self) {
            return Ok(f());
        }
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|error| Error::io("enter the network namespace", error))?;
        let _back = Back(home);
        Ok(f())
    }

    /// Makes a new network namespace and mounts it at `path`, whose directories are made as needed. The caller's own
    /// namespace stays what it is. The new one has nothing but a loopback interface that is down.
    ///
    /// # Errors
    /// When something exists at `path` already, or the caller lacks CAP_SYS_ADMIN.
    pub fn create(path: impl AsRef<Path>) -> Result<Netns> {
        let path = path.as_ref();
        let failed =
            |error: io::Error| Error::io(format!("create network namespace {}", path.display()), error);
        // The directory may be removed by another process in between, when that removes its last namespace.
        const TRIES: usize = 1000;
        let place = || {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)
        };
        let mut placed = place();
        for _ in 0..TRIES {
            match &placed {
                Err(error) if error.kind() == io::ErrorKind::NotFound => placed = place(),
                _ => break,
            }
        }
        placed.map_err(failed)?;
        // A thread of its own: only a thread can leave its namespace, and this one ends right after.
        let made = thread::scope(|scope| {
            let make = || -> io::Result<Netns> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
                File::open(OWN).and_then(Netns::from_file)
            };
            let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, make)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that made it panicked")))
        });
        made.map_err(|error| {
            let _ = Netns::delete(path);
            failed(error)
        })
    }

    /// Unmounts and removes what [`Netns::create`] made. The namespace itself goes when its last process has left it.
    /// Succeeds when there is nothing (any more).
    pub fn delete(path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let failed =
            |error: io::Error| Error::io(format!("remove network namespace {}", path.display()), error);
        loop {
            // A second mount may lie on top, left by a create that was killed.
            match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(error) => return Err(failed(error.into())),
            }
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }
}

/// Runs `f` on a thread in a network namespace of its own, which is gone afterwards: to try things out.
pub fn in_scratch<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T> {
    let failed = |error: io::Error| Error::io("make a network namespace to try things out", error);
    thread::scope(|scope| {
        let run = || -> io::Result<T> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        };
        let thread = thread::Builder::new().name("scratch".into()).spawn_scoped(scope, run)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
    .map_err(failed)
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Brings the thread back when it is dropped.
struct Back(Netns);

impl Drop for Back {
    fn drop(&mut self) {
        if setns(&self.0.file, CloneFlags::CLONE_NEWNET).is_err() {
            eprintln!(
                "weft: cannot return from a network namespace: stopping before the wrong one is changed"
            );
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testns;

    #[test]
    fn paths_that_are_no_network_namespace_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        assert!(matches!(Netns::open(dir.path().join("nothing")), Err(Error::NetnsMissing(_))));
        assert!(matches!(Netns::open(plain.join("below")), Err(Error::NetnsMissing(_))));
        assert!(matches!(Netns::open(&plain), Err(Error::NotANamespace(_))));
        assert!(matches!(Netns::open("/proc/self/ns/mnt"), Err(Error::NotNetwork { kind: "mount", .. })));
        let own = Netns::open("/proc/self/ns/net").unwrap();
        assert!(own.same(&Netns::current().unwrap()));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(Netns::open(&fifo), Err(Error::NotANamespace(_))));
    }

    #[test]
    fn a_namespace_is_made_entered_left_and_removed() {
        testns::private_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("netns/one");
            let home = Netns::current().unwrap();
            let made = Netns::create(&path).unwrap();
            assert!(Netns::current().unwrap().same(&home));
            assert!(!made.same(&home));
            assert!(Netns::open(&path).unwrap().same(&made));
            assert!(Netns::create(&path).is_err());
            assert!(
                Netns::open(&path).unwrap().same(&made),
                "a create that fails must not remove the other's"
            );
            let inside = made.run(|| Netns::current().unwrap()).unwrap();
            assert!(inside.same(&made));
            let panicked = std::panic::catch_unwind(|| made.run(|| panic!("on purpose")));
            assert!(panicked.is_err());
            assert!(Netns::current().unwrap().same(&home));
            Netns::delete(&path).unwrap();
            Netns::delete(&path).unwrap();
            assert!(matches!(Netns::open(&path), Err(Error::NetnsMissing(_))));
        });
    }
}
