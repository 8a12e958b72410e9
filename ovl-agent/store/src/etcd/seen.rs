//! Which cluster answered, and how far it was: another one, or one whose data was set back, is noticed.

use std::sync::{Mutex, PoisonError};

use etcd_client::ResponseHeader;

use crate::Revision;

/// What was seen last; nothing at first.
#[derive(Debug, Default)]
pub(super) struct Seen {
    state: Mutex<Mark>,
}

/// A cluster and the newest revision known of it. An answer to a request that is sent after this was taken has to be
/// from the same cluster and at least as new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    cluster: u64,
    revision: Revision,
}

impl Mark {
    /// What an answer says.
    pub(super) fn of(header: &ResponseHeader) -> Mark {
        Mark { cluster: header.cluster_id(), revision: header.revision() }
    }

    /// A revision that a watch has told.
    pub(super) fn at(cluster: u64, revision: Revision) -> Mark {
        Mark { cluster, revision }
    }

    pub(super) fn cluster(&self) -> u64 {
        self.cluster
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether `later` can come after this one.
    fn leads_to(&self, later: Mark) -> bool {
        self.cluster == 0 || (self.cluster == later.cluster && self.revision <= later.revision)
    }
}

impl Seen {
    /// To be taken before a request is sent: answers can overtake each other.
    pub(super) fn mark(&self) -> Mark {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an answer. One of another cluster is left for [`Seen::admit`] to tell.
    pub(super) fn note(&self, answer: Mark) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.cluster == 0 {
            *state = answer;
        } else if state.cluster == answer.cluster {
            state.revision = state.revision.max(answer.revision);
        }
    }

    /// Notes a linearizable answer to a request that was sent after `before` was taken. False, once: the data is not what
    /// it was; from now on it is.
    pub(super) fn admit(&self, before: Mark, answer: Mark) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Another caller may have been told meanwhile.
        let same = before.leads_to(answer) || state.leads_to(answer);
        if same && state.cluster == answer.cluster {
            state.revision = state.revision.max(answer.revision);
        } else {
            *state = answer;
        }
        same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(cluster: u64, revision: Revision) -> Mark {
        Mark { cluster, revision }
    }

    #[test]
    fn another_cluster_and_a_revision_that_went_back_are_told_once() {
        let seen = Seen::default();
        assert!(seen.admit(seen.mark(), mark(1, 5)));
        assert!(seen.admit(seen.mark(), mark(1, 5)));
        for other in [mark(2, 9), mark(2, 3)] {
            assert!(!seen.admit(seen.mark(), other), "{other:?}");
            assert!(seen.admit(seen.mark(), other), "{other:?}");
        }
    }

    #[test]
    fn an_answer_that_was_overtaken_is_no_step_back() {
        let seen = Seen::default();
        seen.note(mark(1, 5));
        let before = seen.mark();
        seen.note(mark(1, 8));
        assert!(seen.admit(before, mark(1, 6)));
        assert_eq!(seen.mark(), mark(1, 8));
    }

    #[test]
    fn an_answer_that_is_only_noted_does_not_hide_another_cluster() {
        let seen = Seen::default();
        seen.note(mark(1, 5));
        seen.note(mark(2, 9));
        seen.note(mark(1, 3));
        assert_eq!(seen.mark(), mark(1, 5));
        assert!(!seen.admit(seen.mark(), mark(2, 9)));
    }
}
