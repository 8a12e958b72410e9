//! What a view of the host's root does not show: files that the host's other users cannot read, and directories of keys.
//!
//! It is covered in the container's own layer before that is mounted for the first time: a file by a whiteout, a directory by
//! an opaque empty one (Documentation/filesystems/overlayfs.rst). So the container may make its own in their place, and finds
//! these again when it starts again. The layer is new, so nothing in it is the container's.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, DirBuilder, Metadata};
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use nix::sys::stat::SFlag;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, openat, statat};
use rustix::io::Errno;

use crate::engine::sys;

/// Covered whatever their modes, where they are.
const DIRECTORIES: [&str; 41] = [
    "/etc/cni",
    "/etc/containerd",
    "/etc/docker",
    "/etc/kubernetes",
    "/etc/letsencrypt",
    "/etc/netplan",
    "/etc/rancher",
    "/etc/ssl/private",
    "/etc/weft",
    "/etc/wireguard",
    "/home",
    "/root",
    "/var/backups",
    "/var/lib/NetworkManager",
    "/var/lib/cloud",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/etcd",
    "/var/lib/incus",
    "/var/lib/jenkins",
    "/var/lib/krb5kdc",
    "/var/lib/kubelet",
    "/var/lib/libvirt",
    "/var/lib/lxc",
    "/var/lib/lxd",
    "/var/lib/machines",
    "/var/lib/mongodb",
    "/var/lib/mysql",
    "/var/lib/pgsql",
    "/var/lib/postgresql",
    "/var/lib/private",
    "/var/lib/rancher",
    "/var/lib/redis",
    "/var/lib/samba",
    "/var/lib/sss",
    "/var/lib/tor",
    "/var/lib/weft",
    "/var/log/journal",
    "/var/mail",
    "/var/spool",
];

/// Replaced by their names without passwords, so that programs that add users work. Also with `-` at the end.
const PASSWORDS: [&str; 2] = ["/etc/shadow", "/etc/gshadow"];

/// Where all is covered that the host's other users cannot read, down to how many directories.
const TREES: [(&str, usize); 7] =
    [("/", 1), ("/boot", 3), ("/etc", usize::MAX), ("/opt", 4), ("/srv", 4), ("/usr/local", 2), ("/var", 3)];

/// Directories of these trees with a depth of their own. The lists of package managers are long, and for all to read.
const DEPTHS: [(&str, usize); 7] = [
    ("/usr/local/etc", usize::MAX),
    ("/var/lib", 4),
    ("/var/lib/apt", 1),
    ("/var/lib/dpkg", 1),
    ("/var/log", 4),
    ("/var/opt", 4),
    ("/var/www", 4),
];

/// Covers secrets in `upper`, the new layer over `lower`, the root of one of the host's mounts. `mounts` are the places of all.
pub fn cover(lower: &Path, upper: &Path, mounts: &[PathBuf]) -> Result<()> {
    let cover = || -> Result<()> {
        let others = mounts.iter().filter(|place| *place != lower && place.starts_with(lower)).collect();
        let layer = Layer { lower, upper, others };
        for path in covered() {
            if let Some(meta) = layer.find(path)
                && meta.is_dir()
            {
                layer.cover(path, &meta)?;
            }
        }
        for path in passwords() {
            layer.without_passwords(path)?;
        }
        static RESOLVED: OnceLock<Vec<(PathBuf, usize)>> = OnceLock::new();
        for (top, depth) in RESOLVED.get_or_init(|| resolved(&TREES)) {
            let (dir, depth) = start(top, *depth, lower);
            layer.walk(dir, depth)?;
        }
        Ok(())
    };
    cover().with_context(|| format!("cannot cover the host's secrets in {}", upper.display()))
}

/// These directories, those that are there, where symbolic links lead.
fn resolved(dirs: &[(&str, usize)]) -> Vec<(PathBuf, usize)> {
    dirs.iter().filter_map(|(dir, depth)| Some((fs::canonicalize(dir).ok()?, *depth))).collect()
}

/// Where a tree begins in the mount at `lower`, and its depth from there: a mount inside of the tree is a part of it.
fn start<'a>(top: &'a Path, depth: usize, lower: &'a Path) -> (&'a Path, usize) {
    let Some(inside) = lower.strip_prefix(top).ok().filter(|rest| !rest.as_os_str().is_empty()) else {
        return (top, depth);
    };
    let mut dir = top.to_owned();
    let mut depth = depth;
    for part in inside {
        dir.push(part);
        depth = depth_of(&dir).unwrap_or(depth.saturating_sub(1));
    }
    (lower, depth)
}

/// Whether a directory of the host is covered whatever its mode, or lies in one that is.
pub fn is_covered(dir: &Path) -> bool {
    covered().iter().any(|covered| dir.starts_with(covered))
}

/// The directories of [`DIRECTORIES`] that are there, where symbolic links lead.
fn covered() -> &'static [PathBuf] {
    static COVERED: OnceLock<Vec<PathBuf>> = OnceLock::new();
    COVERED.get_or_init(|| {
        let mut parents = HashMap::new();
        DIRECTORIES.iter().filter_map(|dir| real(Path::new(dir), &mut parents)).collect()
    })
}

/// The path without symbolic links of `dir`, if it is there. `parents` has those of directories that were asked for before.
fn real<'a>(dir: &'a Path, parents: &mut HashMap<&'a Path, Option<PathBuf>>) -> Option<PathBuf> {
    let parent = dir.parent()?;
    let parent = parents.entry(parent).or_insert_with(|| fs::canonicalize(parent).ok());
    let path = parent.as_ref()?.join(dir.file_name()?);
    match fs::symlink_metadata(&path) {
        Ok(meta) if meta.is_symlink() => fs::canonicalize(path).ok(),
        other => other.ok().map(|_| path),
    }
}

/// The files of [`PASSWORDS`] that are there, and those with `-` at the end, where symbolic links lead.
fn passwords() -> &'static [PathBuf] {
    static FILES: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let names = || PASSWORDS.iter().flat_map(|path| [(*path).to_owned(), format!("{path}-")]);
    FILES.get_or_init(|| names().filter_map(|path| fs::canonicalize(path).ok()).collect())
}

struct Layer<'a> {
    lower: &'a Path,
    upper: &'a Path,
    /// The mounts below this one. Device numbers say nothing: in an overlay each file may have another.
    others: Vec<&'a PathBuf>,
}

impl Layer<'_> {
    /// What is at a path of the host, if it lies in the mount of this layer.
    fn find(&self, path: &Path) -> Option<Metadata> {
        let is_here =
            path.starts_with(self.lower) && !self.others.iter().any(|other| path.starts_with(other));
        is_here.then(|| fs::symlink_metadata(path).ok())?
    }

    /// The path in the layer.
    fn place(&self, path: &Path) -> Result<PathBuf> {
        Ok(self.upper.join(path.strip_prefix(self.lower)?))
    }

    /// Makes the directories above a path in the layer, as those of the host.
    fn make_above(&self, path: &Path) -> Result<()> {
        let mut place = self.upper.to_owned();
        let mut above = self.lower.to_owned();
        for part in path.strip_prefix(self.lower)?.parent().into_iter().flatten() {
            place.push(part);
            above.push(part);
            make_like(&place, &fs::symlink_metadata(&above)?)?;
        }
        Ok(())
    }

    fn cover(&self, path: &Path, meta: &Metadata) -> Result<()> {
        let place = self.place(path)?;
        let cover = || -> io::Result<()> {
            if meta.is_dir() {
                make_like(&place, meta)?;
                return sys::set_attribute(&place, c"trusted.overlay.opaque", b"y");
            }
            let whiteout = nix::sys::stat::Mode::empty();
            match nix::sys::stat::mknod(&place, SFlag::S_IFCHR, whiteout, 0) {
                Err(nix::errno::Errno::EEXIST) => Ok(()),
                other => Ok(other?),
            }
        };
        match cover() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.make_above(path)?;
                Ok(cover()?)
            }
            other => Ok(other?),
        }
    }

    fn without_passwords(&self, path: &Path) -> Result<()> {
        let Some(meta) = self.find(path).filter(Metadata::is_file) else { return Ok(()) };
        let Ok(text) = base::file::read_text(path) else { return self.cover(path, &meta) };
        self.make_above(path)?;
        let place = self.place(path)?;
        fs::write(&place, text.lines().map(without_password).collect::<String>())?;
        own_like(&place, &meta)?;
        Ok(())
    }

    /// Covers what others cannot read in a directory and in those below it, `depth` levels.
    fn walk(&self, top: &Path, depth: usize) -> Result<()> {
        let Some(meta) = self.find(top).filter(Metadata::is_dir) else { return Ok(()) };
        if depth == 0 || is_covered(top) {
            return Ok(());
        }
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let opened = rustix::fs::open(top, DIRECTORY, Mode::empty());
        // The root of a mount cannot be covered as a whole.
        let is_private = !is_public(meta.mode());
        self.walk_in(opened, is_private, &mut top.to_owned(), depth, &mut buffer)
    }

    /// As [`Self::walk`] for a directory that was opened, by names in it: paths would be long, and there are thousands.
    fn walk_in(
        &self,
        dir: rustix::io::Result<OwnedFd>,
        is_private: bool,
        path: &mut PathBuf,
        depth: usize,
        buffer: &mut [MaybeUninit<u8>],
    ) -> Result<()> {
        let dir = match dir {
            // What vanishes meanwhile is no secret any more.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            other => other.with_context(|| path.display().to_string())?,
        };
        let mut below: Vec<CString> = Vec::new();
        let mut entries = RawDir::new(&dir, buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.with_context(|| path.display().to_string())?;
            let (name, kind) = (entry.file_name(), entry.file_type());
            if !matches!(kind, FileType::Directory | FileType::RegularFile | FileType::Unknown)
                || [c".", c".."].contains(&name)
            {
                continue;
            }
            let Ok(stat) = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let is_public = !is_private && is_public(stat.st_mode);
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if is_public => below.push(name.to_owned()),
                FileType::RegularFile if is_public => {}
                FileType::Directory | FileType::RegularFile => {
                    path.push(OsStr::from_bytes(name.to_bytes()));
                    if !is_password_list(path)
                        && !self.is_of_other(path)
                        && let Ok(meta) = fs::symlink_metadata(&*path)
                    {
                        self.cover(path, &meta)?;
                    }
                    path.pop();
                }
                _ => {}
            }
        }
        for name in below {
            path.push(OsStr::from_bytes(name.to_bytes()));
            let depth = depth_of(path).unwrap_or(depth - 1);
            let is_covered = covered().iter().any(|covered| is_same(covered, path));
            if depth > 0 && !is_covered && !self.is_of_other(path) {
                let opened = openat(&dir, &name, DIRECTORY, Mode::empty());
                self.walk_in(opened, false, path, depth, buffer)?;
            }
            path.pop();
        }
        Ok(())
    }

    /// Whether another mount is at a path of this one.
    fn is_of_other(&self, path: &Path) -> bool {
        self.others.iter().any(|other| is_same(other, path))
    }
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// For the entries of a directory, in bytes: enough for all of most.
const BUFFER: usize = 16 * 1024;

/// Whether two paths without symbolic links, dots and doubled slashes are the same: without a look at their components.
fn is_same(one: &Path, other: &Path) -> bool {
    one.as_os_str() == other.as_os_str()
}

/// Whether the host's other users can read a file, or list a directory and reach what is in it.
fn is_public(mode: u32) -> bool {
    let is_dir = FileType::from_raw_mode(mode) == FileType::Directory;
    let needed = if is_dir { 0o005 } else { 0o004 };
    mode & needed == needed
}

/// See [`DEPTHS`].
fn depth_of(dir: &Path) -> Option<usize> {
    static RESOLVED: OnceLock<Vec<(PathBuf, usize)>> = OnceLock::new();
    let depths = RESOLVED.get_or_init(|| resolved(&DEPTHS));
    depths.iter().find(|(path, _)| is_same(dir, path)).map(|(_, depth)| *depth)
}

fn is_password_list(path: &Path) -> bool {
    path.to_str().is_some_and(|path| PASSWORDS.contains(&path.trim_end_matches('-')))
}

/// A line of shadow(5) or gshadow(5), its password one that nothing matches.
fn without_password(line: &str) -> String {
    let mut fields: Vec<&str> = line.split(':').collect();
    if let Some(password) = fields.get_mut(1) {
        *password = "*";
    }
    fields.join(":") + "\n"
}

/// Makes a directory with this owner and mode, unless it is there.
fn make_like(dir: &Path, meta: &Metadata) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.and_then(|()| own_like(dir, meta)),
    }
}

fn own_like(path: &Path, meta: &Metadata) -> io::Result<()> {
    lchown(path, Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(meta.mode() & 0o7777))
}
