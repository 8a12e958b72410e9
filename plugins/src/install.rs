//! What the executable does under its own name: `install DIR`, `list`, `--version`, and running one plugin by hand.

use crate::PLUGINS;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "weft-cni: the CNI plugins of Weft in one executable

usage:
  weft-cni install DIR   put every plugin into DIR, as hard links to one file (a copy on another file system)
  weft-cni list          print the names of the plugins
  weft-cni --version     print the version

As a CNI plugin it is called by a runtime under one of those names, with CNI_COMMAND and the other variables set.";

/// Serves the command line.
pub fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let first = args.first().and_then(|arg| arg.to_str());
    match (first, args.get(1), args.len()) {
        (Some("list"), None, _) => {
            for plugin in PLUGINS {
                println!("{}", plugin.name());
            }
            ExitCode::SUCCESS
        }
        (Some("--version" | "-V" | "version"), None, _) => {
            println!("weft-cni {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        (Some("--help" | "-h" | "help"), None, _) => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        (Some("install"), Some(dir), 2) => match install(Path::new(dir)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("weft-cni: {why}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> String {
    move |error| format!("cannot {doing} {}: {error}", path.display())
}

/// Puts every plugin into `dir`. A name is replaced in one step, so a runtime never finds half a plugin.
fn install(dir: &Path) -> Result<(), String> {
    let own = std::env::current_exe().map_err(failed("find", Path::new("this executable")))?;
    fs::create_dir_all(dir).map_err(failed("make the directory", dir))?;
    let mut from = own;
    for plugin in PLUGINS {
        let to = dir.join(plugin.name());
        put(&mut from, &to)?;
        println!("{}", to.display());
    }
    Ok(())
}

/// Links `from` as `to`. Where a link is impossible (another file system, or one without hard links), a copy is made,
/// and the next plugins are links to that copy.
fn put(from: &mut PathBuf, to: &Path) -> Result<(), String> {
    let inode = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    // Renaming a hard link over another of the same file does nothing and would leave the temporary name behind.
    let is_link = fs::symlink_metadata(to).is_ok_and(|meta| meta.is_symlink());
    if !is_link && inode(to).is_some() && inode(to) == inode(from) {
        return Ok(());
    }
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let part = to.with_file_name(format!(".{name}.{}", std::process::id()));
    let made = match fs::hard_link(&*from, &part) {
        Ok(()) => Ok(false),
        Err(_) => fs::copy(&*from, &part).map(|_| true),
    };
    let copied = made.and_then(|copied| fs::rename(&part, to).map(|()| copied)).map_err(|error| {
        // It may not exist; the error that counts is the first one.
        let _ = fs::remove_file(&part);
        failed("install", to)(error)
    })?;
    if copied {
        *from = to.to_owned();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_replaced_and_repeating_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut from = dir.path().join("weft-cni");
        fs::write(&from, "new").unwrap();
        let to = dir.path().join("bridge");
        fs::write(&to, "old").unwrap();
        put(&mut from, &to).unwrap();
        put(&mut from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(fs::metadata(&to).unwrap().nlink(), 2);
    }

    #[test]
    fn a_symbolic_link_is_replaced_and_what_it_points_to_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut from = dir.path().join("weft-cni");
        fs::write(&from, "new").unwrap();
        fs::write(dir.path().join("reference"), "old").unwrap();
        let to = dir.path().join("portmap");
        std::os::unix::fs::symlink("reference", &to).unwrap();
        put(&mut from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "new");
        assert_eq!(fs::read_to_string(dir.path().join("reference")).unwrap(), "old");
    }
}
