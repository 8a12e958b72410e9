//! Who uses a bridge, and who may remove it: a lock that leaves no file behind.
//!
//! flock(2) on the file of the host's own network namespace: all processes of the host share that inode, the kernel gives
//! the lock back when a process dies, and a host in another namespace has another lock.

use cni::Error;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::time::{Duration, Instant};

/// The lock, until it is dropped.
pub struct BridgeLock {
    _lock: Flock<File>,
}

fn own_namespace() -> Result<File, Error> {
    let path = "/proc/thread-self/ns/net";
    File::open(path).map_err(|error| Error::io(format!("cannot open {path}"), error))
}

fn failed((_, error): (File, Errno)) -> Error {
    Error::io("cannot lock the host's bridges", error)
}

impl BridgeLock {
    /// For an ADD, from when it looks for the bridge until its veth is a port of it: many at once.
    pub fn shared() -> Result<BridgeLock, Error> {
        let lock = Flock::lock(own_namespace()?, FlockArg::LockShared);
        lock.map(|lock| BridgeLock { _lock: lock }).map_err(failed)
    }

    /// For who removes a bridge without ports; `None` while an ADD is under way, which may be about to use it.
    pub fn exclusive() -> Result<Option<BridgeLock>, Error> {
        match Flock::lock(own_namespace()?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(BridgeLock { _lock: lock })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err(other) => Err(failed(other)),
        }
    }

    /// As [`BridgeLock::exclusive`], tried until this time is over.
    pub fn exclusive_within(time: Duration) -> Result<Option<BridgeLock>, Error> {
        let start = Instant::now();
        loop {
            match BridgeLock::exclusive()? {
                None if start.elapsed() < time => std::thread::sleep(Duration::from_millis(5)),
                locked => return Ok(locked),
            }
        }
    }
}
