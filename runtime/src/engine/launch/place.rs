//! Places in a container's root to mount at, found directory by directory from an open root: what a container or an image has
//! put there, symbolic links above all, never leads out of the root or to the kernel's own file systems.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

/// As many symbolic links as the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// What is done about a symbolic link on the way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// It is followed inside the root.
    Follow,
    /// It is an error: every component is a real directory.
    Refuse,
}

/// What a missing last component becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// A directory, with those on the way to it.
    Directory,
    /// An empty file, with the directories on the way to it.
    File,
    /// Nothing: it is an error of kind `NotFound`.
    Nothing,
}

/// Opens a directory as the root of a search.
pub fn root(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Opens `path` in this process's root, which is the container's. A link to an open file, as /proc/self/fd/0 is one, is an error
/// (ELOOP): it would lead out of the root, and to what this process has open.
pub fn open_file(path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    Ok(openat2(root(Path::new("/"))?, path, how)?)
}

/// Opens `path` inside `root` as an `O_PATH` descriptor, made when it is missing. It is neither in a proc file system, where
/// links lead anywhere, nor the root itself.
pub fn open_in(root: BorrowedFd<'_>, path: &Path, links: Links, make: Make) -> Result<OwnedFd> {
    let mut walk = Walk { root, above: Vec::new(), rest: parts(path), links: 0 };
    while let Some(part) = walk.rest.pop_front() {
        walk.step(&part, links, make)?;
    }
    let Some(found) = walk.above.pop() else { bail!("it is the root directory") };
    let is_dir = kind(&fstat(&found)?) == SFlag::S_IFDIR;
    match make {
        Make::Directory if !is_dir => Err(Errno::ENOTDIR.into()),
        Make::File if is_dir => Err(Errno::EISDIR.into()),
        _ => Ok(found),
    }
}

struct Walk<'a> {
    root: BorrowedFd<'a>,
    /// From the root to where the walk is.
    above: Vec<OwnedFd>,
    rest: VecDeque<OsString>,
    links: usize,
}

impl Walk<'_> {
    fn step(&mut self, part: &OsString, links: Links, make: Make) -> Result<()> {
        if part == ".." {
            self.above.pop();
            return Ok(());
        }
        let here = self.above.last().map_or(self.root, AsFd::as_fd);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = || openat(here, part.as_os_str(), flags, Mode::empty());
        let found = match opened() {
            Err(Errno::ENOENT) if make != Make::Nothing => {
                if make == Make::File && self.rest.is_empty() {
                    let new = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                    openat(here, part.as_os_str(), new, Mode::from_bits_truncate(0o644)).map(drop)?;
                } else {
                    mkdirat(here, part.as_os_str(), Mode::from_bits_truncate(0o755))?;
                }
                opened()?
            }
            other => other?,
        };
        if fstatfs(&found)?.filesystem_type() == PROC_SUPER_MAGIC {
            bail!("it is in a proc file system, where nothing can be mounted");
        }
        if kind(&fstat(&found)?) != SFlag::S_IFLNK {
            self.above.push(found);
            return Ok(());
        }
        if links == Links::Refuse {
            bail!("{part:?} is a symbolic link; expected a directory");
        }
        self.links += 1;
        if self.links > MOST_LINKS {
            return Err(Errno::ELOOP.into());
        }
        let to = readlinkat(&found, "").context("cannot read a symbolic link")?;
        let to = Path::new(&to);
        if to.is_absolute() {
            self.above.clear();
        }
        for part in parts(to).into_iter().rev() {
            self.rest.push_front(part);
        }
        Ok(())
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let components = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    components.collect()
}

/// The type of a file.
pub fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn path_of(fd: &OwnedFd) -> std::path::PathBuf {
        use std::os::fd::AsRawFd;
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn links_lead_to_places_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("real")).unwrap();
        symlink("/real", at("absolute")).unwrap();
        symlink("../../../real", at("up")).unwrap();
        symlink("/real/new/file", at("missing")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let top = root(dir.path()).unwrap();
        let open = |path: &str, make| open_in(top.as_fd(), Path::new(path), Links::Follow, make);
        assert_eq!(path_of(&open("/absolute", Make::Directory).unwrap()), at("real"));
        assert_eq!(path_of(&open("/up/x", Make::Directory).unwrap()), at("real/x"));
        assert_eq!(path_of(&open("/missing", Make::File).unwrap()), at("real/new/file"));
        for path in ["/loop", "/", "/..", "/real/..", "/missing/x"] {
            open(path, Make::Directory).unwrap_err();
        }
        open("/nothing", Make::Nothing).unwrap_err();
        let refused = open_in(top.as_fd(), Path::new("/absolute/x"), Links::Refuse, Make::Directory);
        assert!(refused.unwrap_err().to_string().contains("symbolic link"));
    }
}
