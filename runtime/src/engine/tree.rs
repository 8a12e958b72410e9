//! Removal of what a container left, however deep its directories lie in each other.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Removes a file, or a directory with all that is in it. What is missing is no error. No symbolic link is followed.
///
/// Directories are moved up to the top before they are removed, so that neither descriptors nor the stack grow with the depth:
/// `std::fs::remove_dir_all` holds a descriptor for each level, and a container can make more levels than there are.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return absent(fs::remove_file(path)),
        Err(error) => return absent(Err(error)),
    }
    let mut number = 0;
    loop {
        let mut top = match Dir::open(path, directory(), Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        let names = names(&mut top)?;
        if names.is_empty() {
            return absent(fs::remove_dir(path));
        }
        for name in names {
            if !remove_one(top.as_fd(), &name)? {
                empty(&top, &name, &mut number)?;
            }
        }
    }
}

/// Removes what is in directory `name` of `top`, and moves to `top` what is a directory with something in it itself.
fn empty(top: &Dir, name: &CStr, number: &mut u64) -> io::Result<()> {
    let mut dir = match Dir::openat(top, name, directory(), Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other?,
    };
    for inner in names(&mut dir)? {
        if remove_one(dir.as_fd(), &inner)? {
            continue;
        }
        loop {
            *number += 1;
            let to = format!("{number}.removed");
            // An empty directory of that name is replaced, which is as good; anything else stays (rename(2)).
            match renameat(&dir, inner.as_c_str(), top, to.as_str()) {
                Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => {}
                Ok(()) | Err(Errno::ENOENT) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    remove_one(top.as_fd(), name).map(drop)
}

/// Removes a file or an empty directory; false for a directory with something in it.
fn remove_one(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    let unlinked = match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => unlinkat(dir, name, UnlinkatFlags::RemoveDir),
        other => other,
    };
    match unlinked {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn names(dir: &mut Dir) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in dir.iter() {
        let name = entry?.file_name().to_owned();
        if name.as_c_str() != c"." && name.as_c_str() != c".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn directory() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_and_wide_directories_are_removed_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("a/b/1.removed")).unwrap();
        fs::create_dir_all(top.join("1.removed/c/d")).unwrap();
        fs::write(top.join("a/b/1.removed/file"), "").unwrap();
        std::os::unix::fs::symlink(&kept, top.join("a/link")).unwrap();
        let mut at: nix::dir::Dir = Dir::open(&top, directory(), Mode::empty()).unwrap();
        for _ in 0..3000 {
            nix::sys::stat::mkdirat(&at, "deep", Mode::S_IRWXU).unwrap();
            at = Dir::openat(&at, "deep", directory(), Mode::empty()).unwrap();
        }
        remove(&top).unwrap();
        assert!(!top.exists() && kept.join("file").exists());
        remove(&top).unwrap();
    }
}
