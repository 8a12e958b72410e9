//! What is mounted in a container beside its root: proc, sys, dev and the like, the files that the runtime writes, volumes;
//! and what of them is masked or read-only, as Docker has it (moby, oci/defaults.go).
//!
//! Everything goes by open descriptors, never by paths: /proc, /sys and /dev must be real directories of the root, what is
//! masked or write-protected is opened from the very mount that was made, and masked by a null device that was made here.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use libc::{
    MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MOUNT_ATTR_STRICTATIME,
};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, makedev, mknodat};
use nix::unistd::symlinkat;

use super::place::{self, Links, Make};
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
            let devices = if is_standard_device(&meta) { 0 } else { MOUNT_ATTR_NODEV };
            let writing = if read_only { MOUNT_ATTR_RDONLY } else { 0 };
            sys::mount_setattr(tree.as_fd(), devices | writing, is_dir)?;
            Ok(Self { tree, is_dir, target: target.to_owned() })
        };
        get().with_context(|| format!("cannot mount {} in the container", source.display()))
    }

    /// An empty directory of the host's for `target`.
    pub fn empty(source: &Path, target: &Path) -> Result<Self> {
        let graft = Self::new(source, target, false)?;
        sys::mount_setattr(graft.tree.as_fd(), MOUNT_ATTR_NOSUID, false)?;
        Ok(graft)
    }

    /// Mounts it at its target inside `system`'s root, which is made when it is missing.
    pub fn mount(&self, system: &System) -> Result<()> {
        let make = if self.is_dir { Make::Directory } else { Make::File };
        let mount = || -> Result<()> {
            let target = place::open_in(system.root.as_fd(), &self.target, Links::Follow, make)?;
            // Below the directory alone is what is masked.
            if same(target.as_fd(), system.sys.as_fd())? {
                bail!("expected a directory below /sys");
            }
            Ok(sys::move_mount(self.tree.as_fd(), target.as_fd())?)
        };
        mount().with_context(|| format!("cannot mount at {}", self.target.display()))
    }
}

/// The attributes of a mount that holds nothing to execute.
const SAFE: u64 = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;

/// A container's root and the mounts of the kernel's file systems in it.
pub struct System {
    root: OwnedFd,
    proc: OwnedFd,
    sys: OwnedFd,
    /// The mount of /dev/null.
    null: OwnedFd,
}

impl System {
    /// Mounts proc, sys and dev in the root, which is `/`. `fresh` are further directories that begin empty, `hidden` ones that
    /// show nothing.
    pub fn mount(fresh: &[Graft], hidden: &[PathBuf], cgroup2: bool) -> Result<Self> {
        let root = place::root(Path::new("/")).context("cannot open the container's root")?;
        let top = root.as_fd();
        let proc = at(top, c"proc", &[], SAFE, "/proc", Links::Refuse)?;
        let dev = [(c"mode", c"755"), (c"size", c"65536k")];
        let dev = at(top, c"tmpfs", &dev, MOUNT_ATTR_NOSUID | MOUNT_ATTR_STRICTATIME, "/dev", Links::Refuse)?;
        let null = devices(dev.as_fd()).context("cannot make the devices of /dev")?;
        let pts = [(c"ptmxmode", c"0666"), (c"mode", c"0620"), (c"gid", c"5")];
        at(dev.as_fd(), c"devpts", &pts, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, "pts", Links::Refuse)?;
        let shm = [(c"mode", c"1777"), (c"size", c"65536k")];
        at(dev.as_fd(), c"tmpfs", &shm, SAFE, "shm", Links::Refuse)?;
        at(dev.as_fd(), c"mqueue", &[], SAFE, "mqueue", Links::Refuse)?;
        let sys = at(top, c"sysfs", &[], SAFE | MOUNT_ATTR_RDONLY, "/sys", Links::Refuse)?;
        if cgroup2 && beneath(sys.as_fd(), "fs/cgroup", OFlag::O_PATH)?.is_some() {
            let options = [(c"nsdelegate", c"")];
            let flags = SAFE | MOUNT_ATTR_RDONLY;
            at(sys.as_fd(), c"cgroup2", &options, flags, "fs/cgroup", Links::Refuse)?;
        }
        let system = Self { root, proc, sys, null };
        fresh.iter().try_for_each(|graft| graft.mount(&system))?;
        for dir in hidden {
            let Ok(dir) = place::open_in(system.root.as_fd(), dir, Links::Follow, Make::Nothing) else {
                continue;
            };
            if place::kind(&fstat(&dir)?) == SFlag::S_IFDIR {
                mask(dir.as_fd(), system.null.as_fd())?;
            }
        }
        Ok(system)
    }

    /// Writes a value below /proc/sys.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let file = beneath(self.proc.as_fd(), &format!("sys/{key}"), OFlag::O_WRONLY)?;
        let Some(file) = file else { bail!("no such key") };
        nix::unistd::write(file, value.as_bytes())?;
        Ok(())
    }

    /// Masks and write-protects what Docker does. A kernel need not have all of it, but /proc/sys must be there.
    pub fn protect(&self) -> Result<()> {
        for (path, is_masked) in
            MASKED.map(|path| (path, true)).into_iter().chain(READ_ONLY.map(|p| (p, false)))
        {
            let protect = || -> Result<()> {
                let (base, rest) = match path.strip_prefix("/proc/") {
                    Some(rest) => (&self.proc, rest),
                    None => (&self.sys, path.trim_start_matches("/sys/")),
                };
                match beneath(base.as_fd(), rest, OFlag::O_PATH)? {
                    Some(place) if is_masked => mask(place.as_fd(), self.null.as_fd()),
                    Some(place) => {
                        let tree = sys::clone_tree(place.as_fd(), true)?;
                        sys::mount_setattr(tree.as_fd(), MOUNT_ATTR_RDONLY, true)?;
                        Ok(sys::move_mount(tree.as_fd(), place.as_fd())?)
                    }
                    None if rest == "sys" => bail!("it is missing"),
                    None => Ok(()),
                }
            };
            protect().with_context(|| format!("cannot protect {path}"))?;
        }
        self.mask_throttling().context("cannot protect /sys/devices/system/cpu")
    }

    /// Masks what of each processor tells of the load on the host.
    fn mask_throttling(&self) -> Result<()> {
        let cpus = "devices/system/cpu";
        let Some(dir) = beneath(self.sys.as_fd(), cpus, OFlag::O_RDONLY | OFlag::O_DIRECTORY)? else {
            return Ok(());
        };
        let mut cover = None;
        for entry in nix::dir::Dir::from_fd(dir)?.iter() {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let Some(number) = name.strip_prefix("cpu") else { continue };
            if !number.starts_with(|digit: char| digit.is_ascii_digit()) {
                continue;
            }
            let path = format!("{cpus}/{name}/thermal_throttle");
            let Some(place) = beneath(self.sys.as_fd(), &path, OFlag::O_PATH)? else { continue };
            // Only a mount that has its place can be copied before Linux 6.15.
            let next = match &cover {
                Some(cover) => sys::clone_tree(OwnedFd::as_fd(cover), false)?,
                None => empty()?,
            };
            sys::move_mount(next.as_fd(), place.as_fd())?;
            cover.get_or_insert(next);
        }
        Ok(())
    }

    /// Checks that /proc and /sys are what was mounted there, whatever came later.
    pub fn check(&self) -> Result<()> {
        for (name, mount) in [("proc", &self.proc), ("sys", &self.sys)] {
            let now = beneath_any(self.root.as_fd(), name, OFlag::O_PATH, ResolveFlag::RESOLVE_NO_SYMLINKS)?;
            let now = now.with_context(|| format!("/{name} is missing"))?;
            if !same(now.as_fd(), mount.as_fd())? {
                bail!("/{name} is covered by another mount");
            }
        }
        Ok(())
    }
}

/// Covers a directory by an empty one that may only be read, anything else by the null device.
fn mask(place: BorrowedFd<'_>, null: BorrowedFd<'_>) -> Result<()> {
    let cover = if place::kind(&fstat(place)?) == SFlag::S_IFDIR {
        empty()?
    } else {
        let tree = sys::clone_tree(null, false)?;
        check_null(tree.as_fd())?;
        tree
    };
    Ok(sys::move_mount(cover.as_fd(), place)?)
}

/// A new empty directory that may only be read.
fn empty() -> Result<OwnedFd> {
    let options = [(c"mode", c"755"), (c"size", c"4k")];
    Ok(sys::new_mount(c"tmpfs", &options, SAFE | MOUNT_ATTR_RDONLY)?)
}

/// Checks that this is the null device, character device 1:3.
///
/// # Errors
/// It is anything else.
pub fn check_null(file: BorrowedFd<'_>) -> Result<()> {
    let stat = fstat(file)?;
    if place::kind(&stat) != SFlag::S_IFCHR || stat.st_rdev != makedev(1, 3) {
        bail!("/dev/null is not the null device (character device 1:3)");
    }
    Ok(())
}

/// The host's null device, for standard input and output.
pub fn open_null() -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let null = open("/dev/null", flags, Mode::empty()).context("cannot open /dev/null")?;
    check_null(null.as_fd())?;
    Ok(null)
}

/// Opens what is at `path` on the mount `base` itself: no symbolic link and no other mount is on the way. None when it is
/// missing.
fn beneath(base: BorrowedFd<'_>, path: &str, flags: OFlag) -> Result<Option<OwnedFd>> {
    beneath_any(base, path, flags, ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV)
}

fn beneath_any(
    base: BorrowedFd<'_>,
    path: &str,
    flags: OFlag,
    resolve: ResolveFlag,
) -> Result<Option<OwnedFd>> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH | resolve);
    match openat2(base, path, how) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether both are the same file.
fn same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Makes the standard devices: each a mount of its own, after which no other node in /dev can be opened. Gives the mount of
/// the null device.
fn devices(dev: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut trees = Vec::new();
    for (name, major, minor) in DEVICES {
        mknodat(dev, name, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
            .with_context(|| format!("cannot make /dev/{name}"))?;
        let node = beneath(dev, name, OFlag::O_PATH)?.with_context(|| format!("/dev/{name} is missing"))?;
        trees.push((sys::clone_tree(node.as_fd(), false)?, node));
    }
    sys::mount_setattr(dev, MOUNT_ATTR_NODEV, true)?;
    for (tree, node) in &trees {
        sys::move_mount(tree.as_fd(), node.as_fd()).context("cannot mount a device")?;
    }
    for (to, name) in LINKS {
        symlinkat(to, dev, name).with_context(|| format!("cannot make /dev/{name}"))?;
    }
    // The first of them.
    let (null, _) = trees.swap_remove(0);
    check_null(null.as_fd())?;
    Ok(null)
}

/// Device nodes of the mount at `path`, and of those below it, cannot be opened from here on.
pub fn no_devices(path: &Path) -> Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mount = open(path, flags, Mode::empty())?;
    Ok(sys::mount_setattr(mount.as_fd(), MOUNT_ATTR_NODEV, true)?)
}

/// Whether it is a device that every container has: as the source of a volume it hides a file, as in `-v /dev/null:/etc/x`.
fn is_standard_device(meta: &fs::Metadata) -> bool {
    meta.file_type().is_char_device()
        && DEVICES.iter().any(|&(_, major, minor)| meta.rdev() == makedev(major, minor))
}

/// Mounts a new file system at `target` inside `base`; gives its root.
fn at(
    base: BorrowedFd<'_>,
    kind: &std::ffi::CStr,
    options: &[(&std::ffi::CStr, &std::ffi::CStr)],
    attributes: u64,
    target: &str,
    links: Links,
) -> Result<OwnedFd> {
    let mounted = || -> Result<OwnedFd> {
        let place = place::open_in(base, Path::new(target), links, Make::Directory)?;
        let mount = sys::new_mount(kind, options, attributes)?;
        sys::move_mount(mount.as_fd(), place.as_fd())?;
        Ok(mount)
    };
    mounted().with_context(|| format!("cannot mount {} at {target}", kind.to_string_lossy()))
}
