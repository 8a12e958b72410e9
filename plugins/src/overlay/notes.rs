//! Release notes: what DELs leave that find no agent. One file an attachment, named by a hash of it, which
//! holds the request that the agent did not get.

use super::conf::Conf;
use crate::place;
use cni::Error;
use net::Owner;
use ovl_api::names;
use ovl_api::wire::Detach;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A file that is older and still not whole was left by a DEL that was killed.
const ABANDONED: Duration = Duration::from_secs(60);

fn directory(conf: &Conf) -> PathBuf {
    names::release_notes(&names::agent_root(&conf.root))
}

/// The agent's run directory, which has its socket.
fn run(conf: &Conf) -> PathBuf {
    let usual = conf.socket.parent().filter(|run| names::socket(run) == conf.socket);
    usual.map_or_else(place::run, PathBuf::from)
}

fn name(detach: &Detach) -> String {
    let Detach { network, container, ifname } = detach;
    format!("{}.json", Owner::new(&**network, &**container, &**ifname).host_veth())
}

/// Leaves a note, which is there as a whole or not at all: in memory when the agent's directory cannot be written, as on a full
/// disk or a read-only file system.
pub fn leave(conf: &Conf, detach: &Detach) -> Result<(), Error> {
    ovl_api::notes::leave(&names::agent_root(&conf.root), &name(detach), detach).or_else(|error| {
        let unsaved = ovl_api::notes::leave_unsaved(&run(conf), &name(detach), detach);
        unsaved.map_err(|second| {
            let doing = format!("cannot leave a note for the overlay agent in {}", directory(conf).display());
            Error::io(doing, error).details(format!("nor in {}: {second}", run(conf).display()))
        })
    })
}

/// Takes an attachment's note away, which is out of date: the agent was told, or it has granted the attachment anew.
pub fn forget(conf: &Conf, detach: &Detach) -> Result<(), Error> {
    let unsaved = names::unsaved_notes(&run(conf));
    let _ = fs::remove_file(unsaved.join(name(detach)));
    let _ = fs::remove_dir(unsaved);
    let path = directory(conf).join(name(detach));
    match fs::remove_file(&path) {
        // What is not there needs no removal, and where the file system is read-only, none was left.
        Err(error)
            if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) && path.exists() =>
        {
            Err(Error::io(format!("cannot remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// The notes that are there. What killed DELs left unfinished is removed.
pub fn all(conf: &Conf) -> Result<Vec<Detach>, Error> {
    let mut notes = in_directory(&directory(conf))?;
    notes.extend(in_directory(&names::unsaved_notes(&run(conf)))?);
    Ok(notes)
}

fn in_directory(directory: &Path) -> Result<Vec<Detach>, Error> {
    let unreadable = |error| Error::io(format!("cannot read {}", directory.display()), error);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut notes = Vec::new();
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            let modified = entry.metadata().and_then(|data| data.modified());
            if modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > ABANDONED)) {
                let _ = fs::remove_file(entry.path());
            }
            continue;
        }
        // The agent may have read and removed it by now.
        let Ok(text) = fs::read(entry.path()) else { continue };
        notes.extend(serde_json::from_slice::<Detach>(&text).ok());
    }
    Ok(notes)
}
