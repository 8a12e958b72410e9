//! Where a lab keeps its things: all of it below `<run>/labs/NAME`, which is also a mount of its own, shared, so that
//! namespaces that are bound below it are seen in the mount namespaces of `lab exec`.
//!
//! ```text
//! lab.json         the plan
//! ready            there when `lab up` was through
//! mount-points     directories that `lab exec` made on the machine to mount on
//! netns/NAME       network namespaces: the underlay's bridge, etcd's members, the hosts
//! etcd/NAME/       of a member: data, log, pid
//! hosts/NAME/      of a host: root, run, etc/net.d, its agent's log and pid, and in netns what `ip netns` makes there
//! ```

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::plan::{self, Plan};
use crate::paths::{Paths, make_private};
use crate::state::same_file;

/// The namespace of the underlay's bridge.
pub const UNDERLAY: &str = "underlay";
/// The longest path of a Unix socket (sockaddr_un of unix(7), less the NUL).
const SOCKET_PATH: usize = 107;

/// A lab on disk.
#[derive(Debug, Clone)]
pub struct Lab {
    /// Its directory.
    pub dir: PathBuf,
    /// What it is.
    pub plan: Plan,
    /// Where CNI executables are.
    pub cni_bin: Vec<PathBuf>,
}

/// The right to change a lab. It ends with the process.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "held, not looked at")] Flock<File>);

/// The directory of all labs.
pub fn labs(paths: &Paths) -> PathBuf {
    paths.run.join("labs")
}

/// The names of the labs that there are, also of halves.
pub fn names(paths: &Paths) -> Vec<String> {
    let entries = fs::read_dir(labs(paths)).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

impl Lab {
    /// A lab that exists.
    ///
    /// # Errors
    /// It does not, or it is a half that cannot be used.
    pub fn open(paths: &Paths, name: &str) -> Result<Lab> {
        plan::check_name(name)?;
        let dir = labs(paths).join(name);
        if !dir.is_dir() {
            let all = names(paths);
            match all.is_empty() {
                true => bail!("no lab is up: make one by `runtime lab up --hosts 3`"),
                false => bail!("there is no lab {name:?}: there are {}", all.join(", ")),
            }
        }
        let text = match fs::read(dir.join("lab.json")) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!(
                    "lab {name} is the rest of one that did not come up: remove it by `runtime lab down {name}`"
                )
            }
            text => text.with_context(|| format!("cannot read {}", dir.join("lab.json").display()))?,
        };
        let plan = serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged", dir.join("lab.json").display()))?;
        Ok(Lab { dir, plan, cni_bin: paths.cni_bin.clone() })
    }

    /// Makes the directory of a new lab, and takes its lock.
    ///
    /// # Errors
    /// There is a lab of that name already, or the path is too long.
    pub fn make(paths: &Paths, plan: Plan) -> Result<(Lab, Lock)> {
        plan::check_name(&plan.name)?;
        let (all, dir) = (labs(paths), labs(paths).join(&plan.name));
        let lab = Lab { dir, plan, cni_bin: paths.cni_bin.clone() };
        let socket = lab.plan.hosts.iter().map(|host| ovl_api::names::socket(&lab.host(&host.name).run));
        if let Some(long) = socket.max_by_key(|path| path.as_os_str().len())
            && long.as_os_str().len() > SOCKET_PATH
        {
            bail!(
                "{} is too long for a socket ({} bytes, at most {SOCKET_PATH}): choose a shorter --run or name",
                long.display(),
                long.as_os_str().len()
            );
        }
        make_private(&all).with_context(|| format!("cannot make {}", all.display()))?;
        match fs::create_dir(&lab.dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let name = &lab.plan.name;
                bail!(
                    "a lab {name} exists already: remove it by `runtime lab down {name}`, or choose another --name"
                )
            }
            made => made.with_context(|| format!("cannot make {}", lab.dir.display()))?,
        }
        let lock = lock(&lab.dir)?;
        Ok((lab, lock))
    }

    /// The namespace of a machine.
    pub fn netns(&self, machine: &str) -> PathBuf {
        self.dir.join("netns").join(machine)
    }

    /// The directory of a member of etcd.
    pub fn member(&self, name: &str) -> PathBuf {
        self.dir.join("etcd").join(name)
    }

    /// The directory of a host.
    pub fn host_dir(&self, name: &str) -> PathBuf {
        host_dir(&self.dir, name)
    }

    /// The directories that the runtime works with on a host.
    pub fn host(&self, name: &str) -> Paths {
        host_paths(&self.dir, name, &self.cni_bin)
    }

    /// Says that `lab up` is through.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_ready(&self) -> Result<()> {
        Ok(fs::write(self.dir.join("ready"), "")?)
    }

    /// Whether `lab up` was through.
    pub fn is_ready(&self) -> bool {
        self.dir.join("ready").exists()
    }

    /// Writes the plan.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self) -> Result<()> {
        let (temporary, file) = (self.dir.join("lab.json.new"), self.dir.join("lab.json"));
        fs::write(&temporary, serde_json::to_vec_pretty(&self.plan)?)?;
        fs::rename(&temporary, &file).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// The directory of a host in the lab at `dir`.
pub fn host_dir(dir: &Path, host: &str) -> PathBuf {
    dir.join("hosts").join(host)
}

/// Where `ip netns` has its namespaces on a host of the lab at `dir`.
pub fn named(dir: &Path, host: &str) -> PathBuf {
    host_dir(dir, host).join("netns")
}

/// The directories of the runtime on a host of the lab at `dir`.
pub fn host_paths(dir: &Path, host: &str, cni_bin: &[PathBuf]) -> Paths {
    let dir = host_dir(dir, host);
    Paths {
        root: dir.join("root"),
        run: dir.join("run"),
        config_dir: dir.join("etc/net.d"),
        cni_bin: cni_bin.to_vec(),
    }
}

/// Takes the lock of the lab at `dir`.
///
/// # Errors
/// Another command works on the lab, or it is gone.
pub fn lock(dir: &Path) -> Result<Lock> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let file = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => {
            anyhow::anyhow!("another command is at work on lab {name}: try again when it is through")
        }
        error => anyhow::Error::new(error).context(format!("cannot lock {}", dir.display())),
    })?;
    if !same_file(&lock, dir) {
        bail!("lab {name} has just been taken down");
    }
    Ok(Lock(lock))
}

/// Makes the lab's directory a shared mount.
///
/// # Errors
/// The kernel refuses.
pub fn mount_shared(dir: &Path) -> Result<()> {
    let none = None::<&str>;
    mount(Some(dir), dir, none, MsFlags::MS_BIND, none)
        .and_then(|()| mount(none, dir, none, MsFlags::MS_SHARED, none))
        .with_context(|| format!("cannot mount {} on itself", dir.display()))
}

/// The places of this process's mounts at or below a directory, those mounted last first.
pub fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = mount_points()?.into_iter().filter(|at| at.starts_with(dir)).collect();
    found.reverse();
    Ok(found)
}

/// The places of this process's mounts, in the order of mounting (proc_pid_mountinfo(5)).
pub fn mount_points() -> Result<Vec<PathBuf>> {
    let table =
        fs::read_to_string("/proc/thread-self/mountinfo").context("cannot read the table of mounts")?;
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|at| PathBuf::from(unescape(at)))
        .collect())
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// Takes away every mount at or below a directory.
///
/// # Errors
/// The kernel refuses.
pub fn unmount_below(dir: &Path) -> Result<()> {
    // Some come away with others, and the kernel may have put one on another: so it is looked at again.
    for _ in 0..50 {
        let all = mounts_below(dir)?;
        if all.is_empty() {
            return Ok(());
        }
        for at in all {
            match umount2(&at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot unmount {}", at.display())),
            }
        }
    }
    bail!("what is mounted below {} does not come away", dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::Quick;

    fn paths(dir: &Path) -> Paths {
        Paths { root: dir.join("r"), run: dir.join("u"), config_dir: dir.join("c"), cni_bin: vec![] }
    }

    fn plan(name: &str) -> Plan {
        let quick =
            Quick { name: name.into(), hosts: 1, etcd: 1, ipv6: false, mtu: 1500, encap: "vxlan".into() };
        Plan::quick(&quick).unwrap()
    }

    #[test]
    fn a_lab_is_made_once_and_told_from_the_rest_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        assert!(Lab::open(&paths, "x").unwrap_err().to_string().contains("no lab is up"));
        let (lab, held) = Lab::make(&paths, plan("x")).unwrap();
        let again = Lab::make(&paths, plan("x")).unwrap_err().to_string();
        assert!(again.contains("a lab x exists already"), "{again}");
        assert!(lock(&lab.dir).unwrap_err().to_string().contains("another command is at work on lab x"));
        drop(held);
        lock(&lab.dir).unwrap();
        assert!(Lab::open(&paths, "x").unwrap_err().to_string().contains("did not come up"));
        lab.save().unwrap();
        assert_eq!(Lab::open(&paths, "x").unwrap().plan, lab.plan);
        let other = Lab::open(&paths, "y").unwrap_err().to_string();
        assert!(other.contains("there are x"), "{other}");
        assert_eq!(names(&paths), ["x"]);
    }

    #[test]
    fn a_run_directory_too_long_for_sockets_is_refused_and_nothing_made() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(90));
        let error = Lab::make(&paths(&deep), plan("x")).unwrap_err().to_string();
        assert!(error.contains("at most 107"), "{error}");
        assert!(!deep.exists());
    }

    #[test]
    fn mounts_below_a_directory_are_found_and_taken_away() {
        net::testns::private_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            let odd = dir.path().join("a b\\c");
            fs::create_dir_all(odd.join("in")).unwrap();
            mount_shared(&odd).unwrap();
            net::Netns::create(odd.join("netns")).unwrap();
            assert_eq!(mounts_below(&odd).unwrap(), [odd.join("netns"), odd.clone()]);
            unmount_below(&odd).unwrap();
            assert!(mounts_below(&odd).unwrap().is_empty());
            unmount_below(&odd).unwrap();
        });
    }
}
