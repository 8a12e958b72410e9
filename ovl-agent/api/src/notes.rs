//! Release notes: what is left for the agent of an attachment that ended while it could not be told.

use crate::names;
use crate::wire::Detach;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Leaves a note in the agent's root, under this name, in the place of one of that name. It is there as a whole or not at
/// all: until then it has a dot in front.
///
/// # Errors
/// It cannot be written.
pub fn leave(agent_root: &Path, name: &str, detach: &Detach) -> io::Result<()> {
    write(&names::release_notes(agent_root), name, detach)
}

/// As [`leave`], in the run directory, which is in memory.
///
/// # Errors
/// It cannot be written.
pub fn leave_unsaved(run: &Path, name: &str, detach: &Detach) -> io::Result<()> {
    write(&names::unsaved_notes(run), name, detach)
}

/// Moves the notes of the run directory to the agent's root. What cannot be moved stays for another time.
///
/// # Errors
/// A note cannot be written, or removed.
pub fn save(run: &Path, agent_root: &Path) -> io::Result<()> {
    let directory = names::unsaved_notes(run);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().into_string().unwrap_or_default();
        // What begins with a dot is being written.
        if name.is_empty() || name.starts_with('.') {
            continue;
        }
        let text = base::file::read_text(&entry.path())?;
        // What is no note is no DEL's.
        if let Ok(detach) = serde_json::from_str::<Detach>(&text) {
            leave(agent_root, &name, &detach)?;
        }
        fs::remove_file(entry.path())?;
    }
    // Only when it is empty.
    let _ = fs::remove_dir(directory);
    Ok(())
}

fn write(directory: &Path, name: &str, detach: &Detach) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let unfinished = directory.join(format!(".{name}.{}", std::process::id()));
    let text = serde_json::to_vec(detach)?;
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished);
    let written = opened.and_then(|mut file| file.write_all(&text));
    // On a full disk there may be room for the name alone.
    written.and_then(|()| fs::rename(&unfinished, directory.join(name))).inspect_err(|_| {
        let _ = fs::remove_file(&unfinished);
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn unsaved_notes_are_moved_when_there_is_room() {
        let (run, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        save(run.path(), root.path()).unwrap();
        let detach = Detach { network: "web".into(), container: "c1".into(), ifname: "eth0".into() };
        leave_unsaved(run.path(), "one.json", &detach).unwrap();
        std::fs::write(names::unsaved_notes(run.path()).join("two.json"), "{").unwrap();
        // A file in the place of the agent's directory is as good as a full disk.
        let blocked = root.path().join("blocked");
        std::fs::write(&blocked, "").unwrap();
        assert!(save(run.path(), &blocked).is_err());
        assert!(names::unsaved_notes(run.path()).join("one.json").exists());
        save(run.path(), root.path()).unwrap();
        assert!(!names::unsaved_notes(run.path()).exists());
        let moved: Vec<_> = std::fs::read_dir(names::release_notes(root.path())).unwrap().collect();
        assert_eq!(moved.len(), 1);
        let text = std::fs::read(names::release_notes(root.path()).join("one.json")).unwrap();
        assert_eq!(serde_json::from_slice::<Detach>(&text).unwrap().container, "c1");
    }
}
