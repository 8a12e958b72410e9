//! The lock on the networks: the configuration directory itself, so that no file is left behind. Attaching shares it;
//! creating and removing networks has it alone.

use crate::paths::Paths;
use crate::state::same_file;
use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io::ErrorKind;

/// The lock; dropping it gives it back.
pub struct Lock {
    _dir: Flock<File>,
}

/// Shares the networks with others that only use them. Without the directory there is nothing to lock.
pub fn shared(paths: &Paths) -> Result<Option<Lock>> {
    lock(paths, FlockArg::LockShared, false)
}

/// Has the networks alone, if there is a directory of them.
pub fn exclusive(paths: &Paths) -> Result<Option<Lock>> {
    lock(paths, FlockArg::LockExclusive, false)
}

/// Has the networks alone, and makes their directory.
pub fn create(paths: &Paths) -> Result<Lock> {
    lock(paths, FlockArg::LockExclusive, true)?
        .ok_or_else(|| anyhow!("{} vanished", paths.config_dir.display()))
}

/// As [`exclusive`], without waiting: none also when another process has the networks.
pub fn try_exclusive(paths: &Paths) -> Result<Option<Lock>> {
    lock(paths, FlockArg::LockExclusiveNonblock, false)
}

fn lock(paths: &Paths, how: FlockArg, make: bool) -> Result<Option<Lock>> {
    let dir = &paths.config_dir;
    // The directory may be removed between its making and the lock, with the last network: then it is made again.
    loop {
        if make {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let file = match File::open(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound && make => continue,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("cannot open {}", dir.display()))?,
        };
        let lock = match Flock::lock(file, how) {
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            other => other.map_err(|(_, error)| {
                anyhow::Error::new(error).context(format!("cannot lock {}", dir.display()))
            })?,
        };
        if same_file(&lock, dir) {
            return Ok(Some(Lock { _dir: lock }));
        }
    }
}
