//! Writing networks' files: whole or not at all, for root alone, and what writers that were killed left.

use super::{lock, remove};
use crate::paths::Paths;
use anyhow::{Context, Result, bail};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where a file is written before it gets its name. The caller has the networks alone.
fn temporary(path: &Path) -> PathBuf {
    path.with_extension(format!("new{}", std::process::id()))
}

/// Whether a file is one that [`temporary`] named.
fn is_temporary(path: &Path) -> bool {
    let number = path.extension().and_then(|it| it.to_str()?.strip_prefix("new"));
    number.is_some_and(|it| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_digit()))
}

fn write(path: &Path, text: &[u8]) -> std::io::Result<File> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    Ok(file)
}

/// Writes a file that did not exist. The caller has the networks alone.
pub fn create(path: &Path, text: &[u8]) -> Result<()> {
    let temporary = temporary(path);
    let written = write(&temporary, text)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::hard_link(&temporary, path));
    let _ = fs::remove_file(&temporary);
    match written {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!("{} already exists", path.display()),
        other => other.with_context(|| format!("cannot write {}", path.display())),
    }
}

/// Writes a file in place of the one that may be there. The caller has the networks alone.
pub fn replace(path: &Path, text: &[u8]) -> Result<()> {
    let temporary = temporary(path);
    let written = write(&temporary, text).and_then(|_| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Removes what killed writers left. When another process has the networks, it may be writing: the next command does it.
pub fn sweep(paths: &Paths) -> Result<()> {
    let leftovers = || -> Vec<PathBuf> {
        let entries = fs::read_dir(&paths.config_dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| is_temporary(path)).collect()
    };
    if leftovers().is_empty() {
        return Ok(());
    }
    let Some(lock) = lock::try_exclusive(paths)? else { return Ok(()) };
    for path in leftovers() {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    remove::tidy(paths);
    drop(lock);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(dir: &Path) -> Paths {
        let at = |name: &str| dir.join(name);
        Paths { root: at("root"), run: at("run"), config_dir: at("net.d"), cni_bin: vec![] }
    }

    #[test]
    fn sweep_removes_leftovers_alone() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let at = |name: &str| paths.config_dir.join(name);
        fs::create_dir(&paths.config_dir).unwrap();
        for name in ["a.new7", "b.conflist", "c.new", "d.new7x", "e.newest"] {
            fs::write(at(name), "").unwrap();
        }
        sweep(&paths).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(&paths.config_dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["b.conflist", "c.new", "d.new7x", "e.newest"]);
    }

    #[test]
    fn sweep_leaves_the_file_of_a_writer_at_work() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let lock = lock::create(&paths).unwrap();
        fs::write(paths.config_dir.join("a.new7"), "").unwrap();
        sweep(&paths).unwrap();
        assert!(paths.config_dir.join("a.new7").exists());
        drop(lock);
        sweep(&paths).unwrap();
        assert!(!paths.config_dir.exists());
    }

    #[test]
    fn networks_files_are_for_root_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.conflist");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        create(&path, b"{}").unwrap();
        assert_eq!(mode(), 0o600);
        create(&path, b"{}").unwrap_err();
        replace(&path, b"[]").unwrap();
        assert_eq!((mode(), fs::read(&path).unwrap()), (0o600, b"[]".to_vec()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
