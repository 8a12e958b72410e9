//! Who shares whose network namespace: a container that joins another's is counted, so that the runtime does not take the
//! namespace away beneath it. The count is a directory of empty files, `<dir>/<target>/<joiner>--<ifname>`.

use crate::error::Error;
use crate::validate;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The counts of every container whose namespace is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The directory; it is made when the first container joins.
    pub dir: PathBuf,
    /// Where it is noted, in memory, who left while `dir` could not be written: `<left>/<target>/<joiner>--<ifname>`.
    left: Option<PathBuf>,
}

/// The file's name. In the interface's name, '-' is written as "%2d", so that the last "--" is always the separator:
/// a container's ID may contain, and end with, '-'.
fn file_name(joiner: &str, ifname: &str) -> String {
    format!("{joiner}--{}", ifname.replace('%', "%25").replace('-', "%2d"))
}

fn parse_name(name: &str) -> Option<(String, String)> {
    let (joiner, ifname) = name.rsplit_once("--")?;
    Some((joiner.to_owned(), ifname.replace("%2d", "-").replace("%25", "%")))
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::io(format!("cannot {doing} {}", path.display()), error)
}

/// What making a directory and a file in it says when somebody else removes that directory at the same time.
fn passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists)
}

/// What a file system says that is full or read-only.
fn is_unwritable(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), QuotaExceeded | ReadOnlyFilesystem | StorageFull)
}

/// The names in a directory; none where there is no such directory.
fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed("read the directory", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in listing {
        match entry {
            Ok(entry) => names.extend(entry.file_name().into_string()),
            // The directory was removed meanwhile, so it was empty.
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(failed("read the directory", dir)(error)),
        }
    }
    names.sort_unstable();
    Ok(names)
}

impl Share {
    /// The counts in this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Share {
        Share { dir: dir.into(), left: None }
    }

    /// Has a directory on another file system, one in memory, note who leaves while the counts cannot be written.
    #[must_use]
    pub fn with_notes(self, left: impl Into<PathBuf>) -> Share {
        Share { left: Some(left.into()), ..self }
    }

    fn note(&self, target: &str, name: &str) -> Option<PathBuf> {
        self.left.as_ref().map(|left| left.join(target).join(name))
    }

    fn has_left(&self, target: &str, name: &str) -> bool {
        self.note(target, name).is_some_and(|note| note.exists())
    }

    /// Removes the counts of those who left while that was impossible. Where none did it costs one system call.
    fn apply_notes(&self) {
        let Some(left) = &self.left else { return };
        for target in names(left).unwrap_or_default() {
            for name in names(&left.join(&target)).unwrap_or_default() {
                let removed = fs::remove_file(self.dir.join(&target).join(&name));
                if removed.is_ok() || removed.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                    let _ = fs::remove_file(left.join(&target).join(&name));
                }
            }
            let _ = fs::remove_dir(self.dir.join(&target));
            let _ = fs::remove_dir(left.join(&target));
        }
        let _ = fs::remove_dir(left);
    }

    /// Counts `joiner` with its interface as one that shares `target`'s namespace. Repeating it changes nothing.
    ///
    /// # Errors
    /// Code 4 for an impossible ID or interface, code 5 when the count cannot be written.
    pub fn join(&self, target: &str, joiner: &str, ifname: &str) -> Result<(), Error> {
        validate::container_id(target)?;
        validate::container_id(joiner)?;
        validate::ifname(ifname)?;
        self.apply_notes();
        let dir = self.dir.join(target);
        let file = dir.join(file_name(joiner, ifname));
        let mut tries = 0;
        loop {
            let made = fs::create_dir_all(&dir).and_then(|()| fs::write(&file, ""));
            match made {
                // The last one that left removed the directory in between.
                Err(error) if passing(&error) && tries < 1000 => tries += 1,
                outcome => return outcome.map_err(failed("write", &file)),
            }
        }
    }

    /// Gives the count back, whoever the target was. Repeating it changes nothing.
    ///
    /// # Errors
    /// Code 5 when the count cannot be read, or neither removed nor noted.
    pub fn leave(&self, joiner: &str, ifname: &str) -> Result<(), Error> {
        self.apply_notes();
        while let Some(target) = self.target(joiner, ifname)? {
            let dir = self.dir.join(&target);
            let name = file_name(joiner, ifname);
            let file = dir.join(&name);
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let note = self.note(&target, &name).filter(|_| is_unwritable(&error));
                    let noted = note.is_some_and(|note| {
                        note.parent().map_or(Ok(()), fs::create_dir_all).is_ok()
                            && fs::write(note, "").is_ok()
                    });
                    if !noted {
                        return Err(failed("remove", &file)(error));
                    }
                }
                // Fails as long as others are counted there, which is meant.
                _ => drop(fs::remove_dir(&dir)),
            }
        }
        Ok(())
    }

    /// Whose namespace `joiner` shares by this interface.
    ///
    /// # Errors
    /// Code 5 when the counts cannot be read.
    pub fn target(&self, joiner: &str, ifname: &str) -> Result<Option<String>, Error> {
        let name = file_name(joiner, ifname);
        let is_counted =
            |target: &String| self.dir.join(target).join(&name).exists() && !self.has_left(target, &name);
        Ok(names(&self.dir)?.into_iter().find(is_counted))
    }

    /// Every container that is shared.
    ///
    /// # Errors
    /// Code 5 when the counts cannot be read.
    pub fn targets(&self) -> Result<Vec<String>, Error> {
        names(&self.dir)
    }

    /// Those who share `target`'s namespace: (container's ID, interface).
    ///
    /// # Errors
    /// Code 4 for an impossible ID, code 5 when the count cannot be read.
    pub fn joiners(&self, target: &str) -> Result<Vec<(String, String)>, Error> {
        validate::container_id(target)?;
        let mut names = names(&self.dir.join(target))?;
        names.retain(|name| !self.has_left(target, name));
        Ok(names.iter().filter_map(|name| parse_name(name)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share() -> (tempfile::TempDir, Share) {
        let dir = tempfile::tempdir().unwrap();
        let share = Share::new(dir.path().join("shared"));
        (dir, share)
    }

    fn pair(joiner: &str, ifname: &str) -> (String, String) {
        (joiner.into(), ifname.into())
    }

    #[test]
    fn joiners_are_counted_until_they_leave() {
        let (_dir, share) = share();
        assert_eq!(share.joiners("web").unwrap(), []);
        share.join("web", "side", "eth0").unwrap();
        share.join("web", "side", "eth0").unwrap();
        share.join("web", "other", "eth0").unwrap();
        assert_eq!(share.joiners("web").unwrap(), [pair("other", "eth0"), pair("side", "eth0")]);
        assert_eq!(share.target("side", "eth0").unwrap().as_deref(), Some("web"));
        share.leave("side", "eth0").unwrap();
        share.leave("side", "eth0").unwrap();
        assert_eq!(share.joiners("web").unwrap(), [pair("other", "eth0")]);
    }

    #[test]
    fn nothing_is_left_after_the_last_one() {
        let (_dir, share) = share();
        share.join("web", "side", "eth0").unwrap();
        share.leave("side", "eth0").unwrap();
        assert_eq!(share.targets().unwrap(), Vec::<String>::new());
        assert_eq!(fs::read_dir(&share.dir).unwrap().count(), 0);
    }

    #[test]
    fn names_with_hyphens_are_kept_apart() {
        let (_dir, share) = share();
        let all = [pair("a", "b--c"), pair("a--b", "c"), pair("a-", "-c"), pair("a", "%2d%25")];
        for (joiner, ifname) in &all {
            share.join("t", joiner, ifname).unwrap();
        }
        let mut found = share.joiners("t").unwrap();
        found.sort_unstable();
        let mut all = all.to_vec();
        all.sort_unstable();
        assert_eq!(found, all);
    }

    #[test]
    fn a_target_outside_the_directory_is_refused() {
        let (_dir, share) = share();
        assert_eq!(share.join("../x", "a", "eth0").unwrap_err().code, 4);
        assert_eq!(share.joiners("..").unwrap_err().code, 4);
    }

    #[test]
    fn joining_and_leaving_at_once_loses_no_count() {
        let (_dir, share) = share();
        std::thread::scope(|scope| {
            for joiner in ["a", "b", "c", "d"] {
                let share = &share;
                scope.spawn(move || {
                    for _ in 0..50 {
                        share.join("t", joiner, "eth0").unwrap();
                        assert!(share.joiners("t").unwrap().contains(&pair(joiner, "eth0")));
                        share.leave(joiner, "eth0").unwrap();
                    }
                    share.join("t", joiner, "eth0").unwrap();
                });
            }
        });
        assert_eq!(share.joiners("t").unwrap().len(), 4);
    }
}
