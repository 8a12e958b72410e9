//! What the store has told this host: of every followed key when it last changed. By that the store is asked, now and then
//! and after every connection that was lost, whether something was missed, without being read whole.
//!
//! A check compares the number of keys, and a few of the keys, with what was told, at one revision of the store: when
//! the watch is behind, what was told is compared when it has come to that revision. Each check looks at other keys, so that
//! all of them were looked at in the end.

use crate::keys;
use ovl_store::{Change, Event, Kv, Part, Revision, Snapshot};
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;
use tokio::time::Instant;

/// Keys that one check looks at: about 40 kB.
pub(crate) const SLICE: usize = 500;

/// What was told.
#[derive(Debug)]
pub(crate) struct Told {
    /// Everything up to this revision was told.
    pub(crate) revision: Revision,
    /// What was told and not applied to the view yet.
    pub(crate) waiting: Vec<Change>,
    /// When everything is to be read again.
    pub(crate) due: Instant,
    /// By the hash of the key: with the names, this would be five times as large.
    changed: HashMap<u64, Revision>,
    hasher: RandomState,
    /// The key that changed last, but for removals.
    newest: String,
    /// Where the next check begins.
    cursor: String,
}

/// A check that was begun: what the store has.
#[derive(Debug)]
pub(crate) struct Check {
    part: Part,
    /// The key that the part has to begin with, if there is that key.
    first: Option<String>,
    /// What has not been told by then was missed.
    pub(crate) until: Instant,
}

impl Told {
    /// A snapshot was read; so it is to be again after some time.
    pub(crate) fn of(snapshot: &Snapshot, again: Duration) -> Told {
        let mut told = Told {
            revision: snapshot.revision,
            waiting: Vec::new(),
            due: Instant::now() + again,
            changed: HashMap::with_capacity(snapshot.entries.len()),
            hasher: RandomState::new(),
            newest: String::new(),
            cursor: String::new(),
        };
        for entry in &snapshot.entries {
            told.changed.insert(told.hasher.hash_one(&entry.key), entry.changed);
        }
        let newest = snapshot.entries.iter().max_by_key(|entry| entry.changed);
        told.newest = newest.map_or_else(String::new, |entry| entry.key.clone());
        told
    }

    /// Asks the store what it has. Nothing must be told meanwhile: the answer has to be of the told revision, or a later one.
    ///
    /// `first`: of a store that was away. What changed last is looked at then: a store that was set back has not got it.
    pub(crate) async fn ask(
        &mut self,
        kv: &Kv,
        patience: Duration,
        first: bool,
    ) -> Result<Check, ovl_store::Error> {
        let from = if first { &self.newest } else { &self.cursor };
        let part = kv.part(keys::FOLLOWED, from, SLICE).await?;
        if !first {
            let last = part.keys.last().filter(|_| part.more);
            self.cursor = last.map_or_else(String::new, |(key, _)| format!("{key}\0"));
        }
        let first = first.then(|| self.newest.clone());
        Ok(Check { part, first, until: Instant::now() + patience })
    }

    /// Whether what was told is what the store has.
    ///
    /// When it is, nothing was missed, whether the revisions are the same or not. When it is not, that means something
    /// only when the revisions are the same.
    fn agrees(&self, check: &Check) -> bool {
        let known = |key: &String| self.changed.get(&self.hasher.hash_one(key));
        let keys = &check.part.keys;
        let lost =
            |first: &String| known(first).is_some() && keys.first().is_none_or(|(key, _)| key != first);
        self.changed.len() == check.part.count
            && keys.iter().all(|(key, changed)| known(key) == Some(changed))
            && !check.first.as_ref().is_some_and(lost)
    }

    /// Takes what the watch told, into [`Told::waiting`]. Returns what came of the check, once that is known.
    pub(crate) fn hear(&mut self, event: Event, check: Option<&Check>) -> Option<bool> {
        let mut verdict = None;
        match event {
            Event::Progress(revision) => self.revision = self.revision.max(revision),
            Event::Changes(changes) => {
                for change in changes {
                    // What was told so far is what there was at every revision from the last one told up to this one.
                    if let Some(check) = check
                        && verdict.is_none()
                        && change.revision > check.part.revision
                    {
                        verdict = Some(self.agrees(check));
                    }
                    let hash = self.hasher.hash_one(&change.key);
                    if change.value.is_some() {
                        self.changed.insert(hash, change.revision);
                        self.newest.clone_from(&change.key);
                    } else {
                        self.changed.remove(&hash);
                    }
                    self.revision = self.revision.max(change.revision);
                    self.waiting.push(change);
                }
            }
        }
        verdict.or_else(|| self.verdict(check?))
    }

    /// What came of a check, if that is known already.
    pub(crate) fn verdict(&self, check: &Check) -> Option<bool> {
        let known = self.agrees(check) || self.revision >= check.part.revision;
        known.then(|| self.agrees(check))
    }

    /// For people: what differs.
    pub(crate) fn difference(&self, check: &Check) -> String {
        let Part { revision, count, .. } = check.part;
        let known = self.changed.len();
        if count == known {
            format!("the store changed keys of which it did not tell (revision {revision})")
        } else {
            format!("the store has {count} keys, this host was told of {known} (revision {revision})")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovl_store::KeyValue;

    fn told(keys: &[(&str, Revision)], revision: Revision) -> Told {
        let entry = |(key, changed): &(&str, Revision)| KeyValue {
            key: (*key).to_owned(),
            value: Vec::new(),
            created: *changed,
            changed: *changed,
        };
        let snapshot = Snapshot { revision, cluster: 1, entries: keys.iter().map(entry).collect() };
        Told::of(&snapshot, Duration::from_secs(1))
    }

    fn check(count: usize, keys: &[(&str, Revision)], revision: Revision) -> Check {
        let keys = keys.iter().map(|(key, changed)| ((*key).to_owned(), *changed)).collect();
        Check { part: Part { revision, count, keys, more: false }, first: None, until: Instant::now() }
    }

    fn changes(changes: &[(&str, Revision, bool)]) -> Event {
        let change = |(key, revision, there): &(&str, Revision, bool)| Change {
            key: (*key).to_owned(),
            value: there.then(Vec::new),
            created: if *there { *revision } else { 0 },
            revision: *revision,
        };
        Event::Changes(changes.iter().map(change).collect())
    }

    #[test]
    fn at_one_revision_a_difference_is_known_at_once() {
        let told = told(&[("c/a", 3), ("c/b", 5)], 5);
        for (check, verdict) in [
            (check(2, &[("c/a", 3)], 5), Some(true)),
            (check(3, &[("c/a", 3)], 5), Some(false)),
            (check(1, &[("c/a", 3)], 5), Some(false)),
            (check(2, &[("c/a", 4)], 5), Some(false)),
            (check(2, &[("c/c", 3)], 5), Some(false)),
            // Other keys of the store changed, or these did and it was not told yet.
            (check(2, &[("c/a", 3)], 9), Some(true)),
            (check(3, &[("c/a", 3)], 9), None),
            (check(2, &[("c/a", 9)], 9), None),
        ] {
            assert_eq!(told.verdict(&check), verdict, "{check:?}");
        }
    }

    #[test]
    fn a_watch_that_is_behind_is_compared_when_it_has_come_to_the_revision() {
        let lacking = check(3, &[], 7);
        let one = || told(&[("c/a", 3), ("c/b", 5)], 5);
        let told = |events: Vec<Event>| {
            let mut told = one();
            let verdicts = events.into_iter().map(|event| told.hear(event, Some(&lacking)));
            verdicts.collect::<Vec<_>>()
        };
        assert_eq!(told(vec![changes(&[("c/c", 7, true)])]), [Some(true)]);
        // What comes after the revision does not count, though it comes at once with the rest.
        assert_eq!(told(vec![changes(&[("c/c", 6, true), ("c/d", 8, true)])]), [Some(true)]);
        assert_eq!(told(vec![changes(&[("c/c", 8, true)])]), [Some(false)]);
        assert_eq!(told(vec![changes(&[("c/a", 6, true)]), Event::Progress(7)]), [None, Some(false)]);
        assert_eq!(told(vec![changes(&[("c/c", 6, true), ("c/a", 7, false)])]), [Some(false)]);
    }

    #[test]
    fn a_store_without_what_changed_last_was_set_back() {
        let mut told = told(&[("c/a", 3), ("c/b", 5)], 5);
        let looked = |keys| Check { first: Some("c/b".to_owned()), ..check(2, keys, 9) };
        assert_eq!(told.verdict(&looked(&[("c/b", 5)])), Some(true));
        assert_eq!(told.verdict(&looked(&[])), None);
        assert_eq!(told.hear(Event::Progress(9), Some(&looked(&[]))), Some(false));
        // Unless it was removed since.
        let event = changes(&[("c/b", 8, false), ("c/0", 8, true)]);
        assert_eq!(self::told(&[("c/a", 3), ("c/b", 5)], 5).hear(event, Some(&looked(&[]))), Some(true));
    }
}
