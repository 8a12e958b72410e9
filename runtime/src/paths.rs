//! Where one installation keeps its things. Several sets of paths are several "hosts" on one machine: nothing outside of
//! them (and of the kernel's namespaces) is shared.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The directories a command works with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// What outlives a reboot: containers, volumes, leases, cached results (`--root`, /var/lib/weft).
    pub root: PathBuf,
    /// What does not: locks, sockets, namespaces (`--run`, /run/weft).
    pub run: PathBuf,
    /// The networks, one conflist each (`--config-dir`, /etc/weft/net.d).
    pub config_dir: PathBuf,
    /// Where CNI executables are looked for, in this order.
    pub cni_bin: Vec<PathBuf>,
}

impl Paths {
    /// What container `id` keeps across restarts: spec.json, state.json, log.json, its writable layer;
    /// and hosts, resolv.conf, hostname and what is to begin empty, which each start makes anew.
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// The directory of all containers' lasting state.
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// What container `id` has while it runs: lock, attach.sock.
    pub fn container_run(&self, id: &str) -> PathBuf {
        self.run.join("containers").join(id)
    }

    /// The file at which the network namespace of container `id` is bound.
    pub fn netns(&self, id: &str) -> PathBuf {
        self.run.join("netns").join(id)
    }

    /// The cache of CNI results.
    pub fn results(&self) -> PathBuf {
        self.root.join("results")
    }

    /// The count of who shares whose network namespace.
    pub fn shared(&self) -> PathBuf {
        self.root.join("shared")
    }

    /// Who left a shared namespace while that count could not be written.
    pub fn left(&self) -> PathBuf {
        self.run.join("left")
    }

    /// Named volumes.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The global flags that make another process of this executable work with the same paths.
    pub fn to_args(&self) -> Vec<OsString> {
        let flag = |name: &str, dir: &Path| [OsString::from(name), dir.as_os_str().to_owned()];
        let mut args = Vec::new();
        args.extend(flag("--root", &self.root));
        args.extend(flag("--run", &self.run));
        args.extend(flag("--config-dir", &self.config_dir));
        for dir in &self.cni_bin {
            args.extend(flag("--cni-bin", dir));
        }
        args
    }
}

/// Makes a directory that root alone may enter, and its parents: a container's files are in it, with secrets in its
/// environment and set-user-ID programs among them, and are not for the host's other users.
///
/// # Errors
/// It cannot be made.
pub fn make_private(dir: &Path) -> io::Result<()> {
    // A parent that is empty may be removed by another process at any time.
    retry(|| {
        let make = || DirBuilder::new().mode(0o700).create(dir);
        let made = match (make(), dir.parent()) {
            (Err(e), Some(parent)) if e.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(parent).and_then(|()| make())
            }
            (made, _) => made,
        };
        match made {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    })
}

/// Repeats what fails with "not found" because another process removes an empty directory at the same time.
///
/// # Errors
/// Those of `act`; "not found" only when it stays so.
pub fn retry<T>(mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    const TRIES: usize = 1000;
    for _ in 0..TRIES {
        match act() {
            Err(error) if error.kind() == ErrorKind::NotFound => std::thread::yield_now(),
            done => return done,
        }
    }
    act()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_its_places_under_root_and_run() {
        let paths = Paths {
            root: "/r".into(),
            run: "/u".into(),
            config_dir: "/c".into(),
            cni_bin: vec!["/a".into(), "/b".into()],
        };
        assert_eq!(paths.container("x"), Path::new("/r/containers/x"));
        assert_eq!(paths.container_run("x"), Path::new("/u/containers/x"));
        assert_eq!(paths.netns("x"), Path::new("/u/netns/x"));
        assert_eq!(
            paths.to_args(),
            ["--root", "/r", "--run", "/u", "--config-dir", "/c", "--cni-bin", "/a", "--cni-bin", "/b"]
        );
    }
}
