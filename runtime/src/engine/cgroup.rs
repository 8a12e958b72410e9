//! A container's cgroup: where its processes are found and counted. Version 2 where it is mounted, else the hierarchies of
//! version 1. A container runs without one too.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// All containers' cgroups are in this one.
const PARENT: &str = "weft";

/// A container's cgroup.
pub struct Cgroup {
    /// Its directory in every hierarchy.
    dirs: Vec<PathBuf>,
    /// The directory of version 2, into which a process can be born.
    version2: Option<File>,
}

impl Cgroup {
    /// Makes the cgroup of container `id`.
    pub fn create(id: &str) -> io::Result<Self> {
        let mut cgroup = Self { dirs: Vec::new(), version2: None };
        let mut error = io::Error::other("no cgroup file system is mounted");
        for base in hierarchies() {
            let dir = base.join(PARENT).join(id);
            // The last of other containers may just be taking the parent away.
            match crate::paths::retry(|| fs::create_dir_all(&dir)) {
                Ok(()) => cgroup.dirs.push(dir),
                Err(e) => error = e,
            }
        }
        let Some(first) = cgroup.dirs.first() else { return Err(error) };
        if is_version2(first) {
            cgroup.version2 = Some(File::open(first)?);
        }
        Ok(cgroup)
    }

    /// The cgroup of container `id`, where it has one.
    pub fn open(id: &str) -> Option<Self> {
        let dirs = hierarchies().into_iter().map(|base| base.join(PARENT).join(id));
        let dirs: Vec<PathBuf> = dirs.filter(|dir| dir.is_dir()).collect();
        let version2 = dirs.first().filter(|dir| is_version2(dir)).and_then(|dir| File::open(dir).ok());
        (!dirs.is_empty()).then_some(Self { dirs, version2 })
    }

    /// The directory into which a process can be born.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.version2.as_ref().map(AsFd::as_fd)
    }

    /// Moves this process there, unless it was born there.
    pub fn enter(&self) -> io::Result<()> {
        match self.version2 {
            Some(_) => Ok(()),
            None => self.dirs.iter().try_for_each(|dir| fs::write(dir.join("cgroup.procs"), "0")),
        }
    }
}

/// Removes the cgroup of container `id`, and what holds all when it was the last. Its processes have ended, or are about
/// to: the kernel refuses (EBUSY) until they have.
pub fn remove(id: &str) {
    let patience = Instant::now() + Duration::from_millis(500);
    for base in hierarchies() {
        let parent = base.join(PARENT);
        let dir = parent.join(id);
        while let Err(error) = fs::remove_dir(&dir) {
            if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() > patience {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = fs::remove_dir(&parent);
    }
}

/// Where version 2 is mounted; else every hierarchy of version 1 but the one that is only for names.
fn hierarchies() -> Vec<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    for dir in [base.to_owned(), base.join("unified")] {
        if is_version2(&dir) {
            return vec![dir];
        }
    }
    // cpuset takes no process before it is given processors and memory.
    ["memory", "pids", "cpu", "freezer"]
        .iter()
        .map(|name| base.join(name))
        .filter(|dir| dir.join("tasks").exists())
        .collect()
}

fn is_version2(dir: &Path) -> bool {
    dir.join("cgroup.controllers").exists()
}
