//! One agent a root directory: a lock that the kernel lets go when its holder dies, with the holder's PID in the file.

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// The lock; held while this lives.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "it is held, not read")] Flock<File>);

/// Takes the lock of an agent's directory, which is made if it is missing.
///
/// # Errors
/// Another agent has it: the error says its PID.
pub fn take(agent_root: &Path) -> Result<Lock> {
    private_dir(agent_root)?;
    let path = agent_root.join("agent.pid");
    let shown = path.display();
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = open.with_context(|| format!("open {shown}"))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0)
                .and_then(|()| lock.rewind())
                .and_then(|()| writeln!(lock, "{}", std::process::id()))
                .with_context(|| format!("write {shown}"))?;
            Ok(Lock(lock))
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "of unknown PID" } else { pid.trim() };
            bail!("an agent runs with --root {} already: process {pid}", parent(agent_root).display())
        }
        Err((_, error)) => Err(error).with_context(|| format!("lock {shown}")),
    }
}

/// Makes a directory, and those above it, for root alone. One that is there stays as it is.
pub fn private_dir(dir: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("make the directory {}", dir.display()))
}

fn parent(agent_root: &Path) -> &Path {
    agent_root.parent().unwrap_or(agent_root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_the_first_ones_pid_and_comes_in_when_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root/ovl-agent");
        let first = take(&root).unwrap();
        let error = take(&root).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.contains(&format!("--root {}", dir.path().join("root").display())), "{error}");
        drop(first);
        take(&root).unwrap();
    }
}
