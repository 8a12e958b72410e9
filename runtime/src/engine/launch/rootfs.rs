//! The container's root directory, built inside its own mount namespace so that the host never sees its mounts.
//!
//! It is copy-on-write (overlayfs) over the host's root or a directory; a tar archive is unpacked once and is the
//! container's own.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::pivot_root;
use sha2::{Digest, Sha256};

use super::archive;
use super::mounts::{Graft, no_devices};
use super::place::{self, Links, Make};
use super::report::Reporter;
use super::secrets;
use crate::engine::tree;
use crate::spec::Rootfs;

/// File systems of the host that are no files of its own: not part of the view of its root.
const PSEUDO: [&str; 22] = [
    "autofs",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "ramfs",
    "rpc_pipefs",
    "securityfs",
    "sysfs",
    "tracefs",
];

/// What the container gets anew, so nothing of the host's below is shown.
const FRESH: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];

/// What of it begins empty at each start, with its mode. It is on disk: what is kept in memory would be the host's, and no limit
/// of the container's counts it once its processes have ended.
const EMPTY: [(&str, u32); 2] = [("run", 0o755), ("tmp", 0o1777)];

/// Where a container's root comes from and is put together.
pub struct Root<'a> {
    /// What was asked for.
    pub from: &'a Rootfs,
    /// The container's lasting directory: `upper`, `work` and `rootfs` are in it.
    pub keep: PathBuf,
    /// An empty directory to mount on.
    pub at: PathBuf,
    /// Directories of the host that a view of its root does not show below.
    pub hidden: Vec<PathBuf>,
    /// Whether a view of the host's root shows the host's secrets (see [`secrets`]).
    pub shows_secrets: bool,
}

impl Root<'_> {
    /// Before the launch: makes the directories, unpacks the archive. Safe to repeat.
    pub fn prepare(&self) -> Result<()> {
        fs::create_dir_all(&self.at).with_context(|| format!("cannot make {}", self.at.display()))?;
        match self.from {
            Rootfs::Tar(file) => {
                let rootfs = self.keep.join("rootfs");
                if !rootfs.exists() {
                    archive::unpack(file, &rootfs)?;
                }
            }
            Rootfs::Dir(dir) if !dir.is_dir() => bail!("--rootfs {}: no such directory", dir.display()),
            Rootfs::Dir(_) => {}
            Rootfs::Host => {
                for (name, mode) in EMPTY {
                    let dir = self.empty(name);
                    let make = || -> io::Result<()> {
                        tree::remove(&dir)?;
                        fs::create_dir_all(&dir)?;
                        fs::set_permissions(&dir, fs::Permissions::from_mode(mode))
                    };
                    make().with_context(|| format!("cannot make {}", dir.display()))?;
                }
            }
        }
        Ok(())
    }

    fn empty(&self, name: &str) -> PathBuf {
        self.keep.join("empty").join(name)
    }

    /// Before the host's root is out of reach: takes hold of the directories that begin empty.
    pub fn fresh(&self) -> Result<Vec<Graft>> {
        let names = if *self.from == Rootfs::Host { &EMPTY[..] } else { &[] };
        let graft = |(name, _): &(&str, _)| Graft::empty(&self.empty(name), &Path::new("/").join(name));
        names.iter().map(graft).collect()
    }

    /// In the new mount namespace: mounts the root at its place.
    pub fn mount(&self, report: &Reporter) -> Result<PathBuf> {
        mount_(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, "")
            .context("cannot make the mounts private")?;
        match self.from {
            Rootfs::Tar(_) => {
                bind(&self.keep.join("rootfs"), &self.at)?;
                Ok(self.at.clone())
            }
            Rootfs::Dir(dir) => {
                let dir = fs::canonicalize(dir).with_context(|| dir.display().to_string())?;
                match self.view(&dir, report) {
                    Ok((root, _)) => Ok(root),
                    Err(error) => {
                        report.note(&format!(
                            "{} cannot be used copy-on-write ({error:#}): what the container writes goes there",
                            dir.display()
                        ));
                        bind(&dir, &self.at)?;
                        Ok(self.at.clone())
                    }
                }
            }
            Rootfs::Host => {
                let (root, layers) = self.view(Path::new("/"), report)?;
                let top = place::root(&root).with_context(|| root.display().to_string())?;
                for place in self.host_mounts() {
                    let name = layer_name(&place);
                    let [upper, work] = ["upper", "work"].map(|kind| layers.join(format!("{kind}-{name}")));
                    // The container may have put a link in the place of a directory above it.
                    let Ok(target) = place::open_in(top.as_fd(), &place, Links::Refuse, Make::Nothing) else {
                        continue;
                    };
                    let target = PathBuf::from(format!("/proc/self/fd/{}", target.as_raw_fd()));
                    // What cannot be laid over (a file, a mount that is gone) is not essential: it stays empty.
                    if target.is_dir() && self.layer(&place, &upper, &work).is_ok() {
                        let _ = overlay(&place, &upper, &work, &target);
                    }
                }
                Ok(root)
            }
        }
    }

    /// Lays the container's own layer over `lower`, on disk or, where that file system takes no layers, in memory. Gives
    /// the mounted root and the directory of the layers.
    fn view(&self, lower: &Path, report: &Reporter) -> Result<(PathBuf, PathBuf)> {
        let [upper, work] = ["upper", "work"].map(|name| self.keep.join(name));
        let on_disk = self.layer(lower, &upper, &work).and_then(|()| overlay(lower, &upper, &work, &self.at));
        let error = match on_disk {
            Ok(()) => return Ok((self.at.clone(), self.keep.clone())),
            Err(error) => error,
        };
        mount_(Some("tmpfs"), &self.at, Some("tmpfs"), MsFlags::empty(), "mode=0700")
            .context("cannot mount a tmpfs")?;
        let [upper, work, root] = ["upper", "work", "root"].map(|name| self.at.join(name));
        self.layer(lower, &upper, &work)?;
        fs::create_dir(&root).with_context(|| format!("cannot make {}", root.display()))?;
        if let Err(second) = overlay(lower, &upper, &work, &root) {
            let _ = umount2(&self.at, MntFlags::MNT_DETACH);
            return Err(second);
        }
        report.note(&format!(
            "the file system of {} takes no overlay ({error:#}): what the container writes is kept in memory and gone when it ends",
            self.keep.display()
        ));
        Ok((root, self.at.clone()))
    }

    /// Makes the directories of the container's own layer over `lower`, whose owner and mode are those of the directory that
    /// the container sees. The working directory is there when all is.
    fn layer(&self, lower: &Path, upper: &Path, work: &Path) -> Result<()> {
        if work.exists() {
            return Ok(());
        }
        let make = || -> Result<()> {
            // Of a start that was cut off.
            tree::remove(upper)?;
            fs::create_dir_all(upper)?;
            let like = fs::metadata(lower)?;
            chown(upper, Some(like.uid()), Some(like.gid()))?;
            fs::set_permissions(upper, like.permissions())?;
            if *self.from == Rootfs::Host && !self.shows_secrets {
                let mounts: Vec<PathBuf> = table().lines().filter_map(place_of).collect();
                secrets::cover(lower, upper, &mounts)?;
            }
            Ok(fs::create_dir_all(work)?)
        };
        make().with_context(|| format!("cannot make {}", upper.display()))
    }

    /// The host's other file systems that belong to its root, an outer one before those in it.
    fn host_mounts(&self) -> Vec<PathBuf> {
        let table = table();
        let shown = |place: &PathBuf| {
            place != Path::new("/")
                && !FRESH.iter().any(|f| place.starts_with(f))
                && !self.hidden.iter().any(|h| place.starts_with(h))
                && (self.shows_secrets || !secrets::is_covered(place))
        };
        let mut places: Vec<PathBuf> = table.lines().filter_map(mounted).filter(shown).collect();
        // The order of the table is that of mounting: a later one hides an earlier at the same place.
        places.sort();
        places.dedup();
        places
    }
}

/// Makes `root` the root of this mount namespace and lets go of the old one.
pub fn enter(root: &Path) -> Result<()> {
    std::env::set_current_dir(root).with_context(|| root.display().to_string())?;
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up over the new one and is taken off.
    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot let go of the host's root")?;
    std::env::set_current_dir("/").context("/")
}

/// What the layers over the mount at a place of the host are named by: also when the host has other mounts at the next start.
/// A path may be longer than a name.
fn layer_name(place: &Path) -> String {
    let digest = Sha256::digest(place.as_os_str().as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The table of mounts (mountinfo, proc(5)).
fn table() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

/// The place of a line of mountinfo when it is a file system of files.
fn mounted(line: &str) -> Option<PathBuf> {
    let (_, back) = line.split_once(" - ")?;
    let kind = back.split(' ').next()?;
    place_of(line).filter(|_| !PSEUDO.contains(&kind))
}

fn place_of(line: &str) -> Option<PathBuf> {
    Some(PathBuf::from(unescape(line.split(' ').nth(4)?)))
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn overlay(lower: &Path, upper: &Path, work: &Path, at: &Path) -> Result<()> {
    let [lower_, upper_, work_] = [lower, upper, work].map(escape);
    let options = format!("lowerdir={lower_},upperdir={upper_},workdir={work_}");
    mount_(Some("overlay"), at, Some("overlay"), MsFlags::MS_NODEV, &options)
        .with_context(|| format!("cannot lay {} over {}", upper.display(), lower.display()))
}

/// Overlayfs separates options by commas and layers by colons.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount_(from.to_str(), to, None, MsFlags::MS_BIND | MsFlags::MS_REC, "")
        .map_err(Into::into)
        .and_then(|()| no_devices(to))
        .with_context(|| format!("cannot bind {}", from.display()))
}

fn mount_(
    source: Option<&str>,
    at: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    data: &str,
) -> nix::Result<()> {
    mount(source, at, kind, flags, (!data.is_empty()).then_some(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_gives_the_places_of_files() {
        let home = r"36 35 98:0 / /my\040home rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mounted(home), Some("/my home".into()));
        assert_eq!(mounted("22 27 0:21 / /proc rw - proc proc rw"), None);
        assert_eq!(mounted("nonsense"), None);
    }

    #[test]
    fn separators_in_paths_are_escaped() {
        assert_eq!(escape(Path::new("/a:b,c")), r"/a\:b\,c");
    }
}
