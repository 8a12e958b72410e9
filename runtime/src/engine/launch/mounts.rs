//! What is mounted in a container beside its root: proc, sys, dev and the like, the files that the runtime writes, volumes;
//! and what of them is masked or read-only, as Docker has it (moby, oci/defaults.go). Called when the container's root is
//! `/`, so that no symbolic link in it leads to the host.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::engine::sys;

/// The standard devices: name, major, minor.
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// The standard links of /dev.
const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
    ("pts/ptmx", "ptmx"),
];

/// Nothing of these is shown.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// These may only be read.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Something of the host to be mounted in the container, taken hold of while the host's root is still in reach.
pub struct Graft {
    tree: OwnedFd,
    is_dir: bool,
    target: PathBuf,
}

impl Graft {
    /// Takes hold of `source` for `target`.
    pub fn new(source: &Path, target: &Path, read_only: bool) -> Result<Self> {
        let get = || -> Result<Self> {
            let meta = fs::metadata(source)?;
            let is_dir = meta.is_dir();
            let tree = sys::open_tree(source, is_dir)?;
            let devices = if is_standard_device(&meta) { 0 } else { libc::MOUNT_ATTR_NODEV };
            let writing = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
            sys::mount_setattr(tree.as_fd(), devices | writing, is_dir)?;
            Ok(Self { tree, is_dir, target: target.to_owned() })
        };
        get().with_context(|| format!("cannot mount {} in the container", source.display()))
    }

    /// Mounts it at its target, which is made when it is missing.
    pub fn mount(&self) -> Result<()> {
        let mount = || -> Result<()> {
            let target = place(&self.target, self.is_dir)?;
            Ok(sys::move_mount(self.tree.as_fd(), &target)?)
        };
        mount().with_context(|| format!("cannot mount at {}", self.target.display()))
    }
}

/// proc, sys, dev. `fresh` are further directories that begin empty (with their modes), `hidden` ones that show nothing.
pub fn system(fresh: &[(&str, u32)], hidden: &[PathBuf], cgroup2: bool) -> Result<()> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    at("proc", "/proc", safe, "")?;
    at("tmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME, "mode=755,size=65536k")?;
    devices().context("cannot make the devices of /dev")?;
    let pts = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    at("devpts", "/dev/pts", pts, "newinstance,ptmxmode=0666,mode=0620,gid=5")?;
    at("tmpfs", "/dev/shm", safe, "mode=1777,size=65536k")?;
    at("mqueue", "/dev/mqueue", safe, "")?;
    at("sysfs", "/sys", safe | MsFlags::MS_RDONLY, "")?;
    if cgroup2 && Path::new("/sys/fs/cgroup").is_dir() {
        at("cgroup2", "/sys/fs/cgroup", safe | MsFlags::MS_RDONLY, "nsdelegate")?;
    }
    for (dir, mode) in fresh {
        at("tmpfs", dir, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, &format!("mode={mode:o}"))?;
    }
    for dir in hidden.iter().filter(|dir| dir.is_dir()) {
        at("tmpfs", &dir.to_string_lossy(), safe | MsFlags::MS_RDONLY, "mode=755,size=4k")?;
    }
    Ok(())
}

/// Masks and write-protects what Docker does.
pub fn protect() -> Result<()> {
    for path in MASKED.map(Path::new) {
        let Ok(meta) = fs::symlink_metadata(path) else { continue };
        let masked = if meta.is_dir() {
            let flags = MsFlags::MS_RDONLY;
            mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some("size=0")).map_err(Into::into)
        } else {
            sys::open_tree(Path::new("/dev/null"), false).and_then(|null| sys::move_mount(null.as_fd(), path))
        };
        masked.with_context(|| format!("cannot mask {}", path.display()))?;
    }
    for path in READ_ONLY.map(Path::new).into_iter().filter(|path| path.exists()) {
        sys::open_tree(path, true)
            .and_then(|tree| {
                sys::mount_setattr(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, true)?;
                sys::move_mount(tree.as_fd(), path)
            })
            .with_context(|| format!("cannot write-protect {}", path.display()))?;
    }
    Ok(())
}

/// Makes the standard devices: each a mount of its own, after which no other node in /dev can be opened.
fn devices() -> Result<()> {
    let mut trees = Vec::new();
    for (name, major, minor) in DEVICES {
        let path = Path::new("/dev").join(name);
        mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
            .with_context(|| path.display().to_string())?;
        trees.push((sys::open_tree(&path, false)?, path));
    }
    no_devices(Path::new("/dev"))?;
    for (tree, path) in trees {
        sys::move_mount(tree.as_fd(), &path).with_context(|| path.display().to_string())?;
    }
    for (to, name) in LINKS {
        symlink(to, Path::new("/dev").join(name)).with_context(|| format!("cannot make /dev/{name}"))?;
    }
    Ok(())
}

/// Device nodes of the mount at `path`, and of those below it, cannot be opened from here on.
pub fn no_devices(path: &Path) -> Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mount = open(path, flags, Mode::empty())?;
    Ok(sys::mount_setattr(mount.as_fd(), libc::MOUNT_ATTR_NODEV, true)?)
}

/// Whether it is a device that every container has: as the source of a volume it hides a file, as in `-v /dev/null:/etc/x`.
fn is_standard_device(meta: &fs::Metadata) -> bool {
    meta.file_type().is_char_device()
        && DEVICES.iter().any(|&(_, major, minor)| meta.rdev() == makedev(major, minor))
}

fn at(kind: &str, target: &str, flags: MsFlags, data: &str) -> Result<()> {
    let mounted = || -> Result<()> {
        let target = place(Path::new(target), true)?;
        Ok(mount(Some(kind), &target, Some(kind), flags, (!data.is_empty()).then_some(data))?)
    };
    mounted().with_context(|| format!("cannot mount {kind} at {target}"))
}

/// The place to mount at: made when it is missing, at the end of symbolic links when they lead to nothing yet.
fn place(target: &Path, is_dir: bool) -> Result<PathBuf> {
    let mut target = Path::new("/").join(target);
    for _ in 0..40 {
        match fs::read_link(&target) {
            Ok(to) => target = target.parent().unwrap_or(Path::new("/")).join(to),
            Err(_) => break,
        }
    }
    if target.exists() {
        return Ok(target);
    }
    let make = |dir: &Path| match fs::create_dir_all(dir) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o755))),
    };
    if is_dir {
        make(&target)?;
    } else {
        let parent = target.parent().unwrap_or(Path::new("/"));
        if !parent.exists() {
            make(parent)?;
        }
        fs::write(&target, "")?;
    }
    Ok(target)
}
