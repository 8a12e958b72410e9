//! Release notes, which DELs leave that found no agent; and the view's file.

use crate::files::{self, ViewFile};
use crate::inner::{Inner, lock};
use ovl_api::wire::{Detach, Problem};
use std::fs;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

/// A note that cannot be read may still be being written for this long.
const YOUNG: Duration = Duration::from_secs(10);
/// Writing the view takes at most one in so many parts of the time.
const SHARE: u32 = 50;

impl Inner {
    /// Reads the notes, again and again; first at once, for some may have come since [`crate::Node::open`] read them.
    pub(crate) async fn notes(&self) {
        loop {
            if let Err(problem) = self.read_notes() {
                tracing::warn!("{problem}");
            }
            tokio::time::sleep(crate::random::jitter(self.conf.timing.notes)).await;
        }
    }

    /// Ends the attachments that notes tell of; a note for one that is not there is dropped. Afterwards no note is known that
    /// was there before, whoever read it.
    pub(crate) fn read_notes(&self) -> Result<(), Problem> {
        let _alone = lock(&self.noting);
        let dir = self.files.notes();
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|e| files::trouble("read", &dir, &e))?,
        };
        for entry in entries {
            let entry = entry.map_err(|e| files::trouble("read", &dir, &e))?;
            let path = entry.path();
            // Notes are written under a name with a dot, and renamed.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let text = match fs::read(&path) {
                Ok(text) => text,
                // Its DEL took it back.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => {
                    tracing::warn!("{}", files::trouble("read", &path, &e));
                    continue;
                }
            };
            match serde_json::from_slice::<Detach>(&text) {
                Ok(note) => {
                    let ended = self.detach(&note)?;
                    let what = if ended { "was" } else { "is" };
                    tracing::info!(
                        "container {} ({}) {what} detached from {}",
                        note.container,
                        note.ifname,
                        note.network
                    );
                }
                Err(e) => {
                    let age =
                        entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|m| m.elapsed().ok());
                    if age.is_none_or(|age| age < YOUNG) {
                        continue;
                    }
                    tracing::warn!("{} is no release note ({e}); it is dropped", path.display());
                }
            }
            files::remove(&path)?;
        }
        Ok(())
    }

    /// Writes the view some time after it changed, again and again.
    pub(crate) async fn save(&self) {
        loop {
            self.wake.saver.notified().await;
            tokio::time::sleep(self.conf.timing.save).await;
            if !self.update(|state| std::mem::take(&mut state.view_changed) && state.synced) {
                continue;
            }
            let started = Instant::now();
            let view = self.look(|state| {
                let view = &state.view;
                let changed = |id: &String| state.network_changed.get(id).copied().unwrap_or(0);
                ViewFile {
                    cluster: state.cluster,
                    // A start from the file has to see again that the store was set back.
                    revision: state.past.restored.as_ref().map_or(state.revision, |is| is.known),
                    history: state.past.history.clone(),
                    subnets: state.subnets_changed,
                    hosts: view.hosts.values().cloned().collect(),
                    networks: view.networks.values().map(|n| (n.clone(), changed(&n.id))).collect(),
                    owners: view
                        .owners
                        .iter()
                        .map(|((id, b), host)| (id.clone(), *b, host.clone()))
                        .collect(),
                }
            });
            if let Err(problem) = self.files.save_view(&view) {
                tracing::warn!("{problem}");
            }
            tokio::time::sleep(started.elapsed() * SHARE).await;
        }
    }
}
