//! What changed lately, for watches, and the watches themselves.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::{Changes, Local};
use crate::{Change, Error, Event, Result, Revision};

/// Changes that are remembered; whoever is behind more has to take a snapshot.
const MAX_CHANGES: usize = 10_000;
/// Bytes of keys and values that are remembered.
const MAX_BYTES: usize = 4 << 20;

/// The changes since the store was opened, up to a bound.
pub(super) struct History {
    kept: Mutex<Kept>,
    /// The newest revision, which watches wait on.
    newest: watch::Sender<Revision>,
}

struct Kept {
    /// Changes up to this revision are not kept.
    floor: Revision,
    newest: Revision,
    /// Of each revision its changes, oldest first.
    revisions: VecDeque<(Revision, Changes)>,
    changes: usize,
    bytes: usize,
}

fn size(changes: &[Change]) -> usize {
    changes.iter().map(|c| c.key.len() + c.value.as_ref().map_or(0, Vec::len)).sum()
}

impl History {
    /// Nothing is known of what led to this revision.
    pub(super) fn new(revision: Revision) -> History {
        let kept =
            Kept { floor: revision, newest: revision, revisions: VecDeque::new(), changes: 0, bytes: 0 };
        History { kept: Mutex::new(kept), newest: watch::Sender::new(revision) }
    }

    /// Adds the newest revision and forgets the oldest ones beyond the bounds. The newest is always kept.
    pub(super) fn push(&self, revision: Revision, changes: Changes) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.newest = revision;
        kept.changes += changes.len();
        kept.bytes += size(&changes);
        kept.revisions.push_back((revision, changes));
        while kept.revisions.len() > 1 && (kept.changes > MAX_CHANGES || kept.bytes > MAX_BYTES) {
            if let Some((oldest, changes)) = kept.revisions.pop_front() {
                kept.floor = oldest;
                kept.changes -= changes.len();
                kept.bytes -= size(&changes);
            }
        }
        self.newest.send_replace(revision);
    }

    /// The changes below a prefix from a revision on, and the newest revision.
    fn since(&self, from: Revision, prefix: &str) -> Result<(Changes, Revision)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if from <= kept.floor {
            return Err(Error::Compacted(from));
        }
        let first = kept.revisions.partition_point(|(revision, _)| *revision < from);
        let changes = kept.revisions.iter().skip(first).flat_map(|(_, changes)| changes);
        Ok((changes.filter(|c| c.key.starts_with(prefix)).cloned().collect(), kept.newest))
    }
}

/// A watch of the embedded store.
pub struct Watch {
    store: Local,
    newest: watch::Receiver<Revision>,
    prefix: String,
    /// The first revision that was not told yet.
    next: Revision,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Watch { store, prefix, next, .. } = self;
        f.debug_struct("Watch").field("store", store).field("prefix", prefix).field("next", next).finish()
    }
}

impl Watch {
    pub(super) fn new(store: Local, prefix: &str, from: Revision) -> Result<Watch> {
        let newest = store.history().newest.subscribe();
        let coming = *newest.borrow() + 1;
        if from > coming {
            return Err(Error::OtherCluster { endpoints: store.describe() });
        }
        let next = if from > 0 { from } else { coming };
        Ok(Watch { store, newest, prefix: prefix.to_owned(), next })
    }

    /// All that happened since, or, once there is something, the next change.
    ///
    /// # Errors
    /// [`Error::Compacted`]: it asks for what is not remembered.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            self.newest.borrow_and_update();
            let (changes, newest) = self.store.history().since(self.next, &self.prefix)?;
            if newest >= self.next {
                self.next = newest + 1;
                return Ok(if changes.is_empty() {
                    Event::Progress(newest)
                } else {
                    Event::Changes(changes)
                });
            }
            // The sender lives in the store, which this watch keeps open.
            if self.newest.changed().await.is_err() {
                return Err(Error::Refused("the store was closed".to_owned()));
            }
        }
    }
}
