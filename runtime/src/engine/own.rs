//! This executable, kept out of reach of containers.
//!
//! A process on its way into a container is still this program, and a script of the container whose interpreter is
//! /proc/self/exe becomes it again: root in there could then open the host's file and write to it (CVE-2019-5736). So it is
//! executed from a mount of its own that is read-only.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::sys;
use crate::paths::Paths;

/// This executable on a read-only mount, opened rather than named, so that it may be replaced meanwhile. As it is where no
/// such mount can be made.
pub fn executable() -> io::Result<OwnedFd> {
    read_only().or_else(|_| Ok(File::open("/proc/self/exe")?.into()))
}

/// The path by which to execute what [`executable`] gave.
pub fn path(executable: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", executable.as_raw_fd()).into()
}

/// Executes this command line again from a read-only mount, unless it is so already.
pub fn protect(paths: &Paths) {
    if File::open("/proc/self/exe").is_ok_and(|file| is_read_only(&file)) {
        return;
    }
    // One that is not read-only all the same would be executed again for ever.
    if let Some(executable) = read_only().ok().filter(is_read_only) {
        let mut command = Command::new(path(&executable));
        command.arg0("runtime").args(std::env::args_os().skip(1));
        // It no longer finds what is beside it.
        if let Ok(beside) = std::env::join_paths(&paths.cni_bin) {
            command.env("CNI_PATH", beside);
        }
        // Comes back only when it fails; then this process goes on as it is.
        let _ = command.exec();
    }
}

/// Whether a file is on a read-only mount or file system.
fn is_read_only(file: &impl AsFd) -> bool {
    fstatvfs(file).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY))
}

fn read_only() -> io::Result<OwnedFd> {
    let tree = sys::open_tree(Path::new("/proc/self/exe"), false)?;
    sys::mount_setattr(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, false)?;
    Ok(tree)
}
