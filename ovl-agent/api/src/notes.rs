//! Release notes: what is left for the agent of an attachment that ended while it could not be told.

use crate::names;
use crate::wire::Detach;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Leaves a note in the agent's root, under this name, in the place of one of that name. It is there as a whole or not at
/// all: until then it has a dot in front.
///
/// # Errors
/// It cannot be written.
pub fn leave(agent_root: &Path, name: &str, detach: &Detach) -> io::Result<()> {
    let directory = names::release_notes(agent_root);
    DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let unfinished = directory.join(format!(".{name}.{}", std::process::id()));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(&serde_json::to_vec(detach)?)?;
    fs::rename(&unfinished, directory.join(name))
}
