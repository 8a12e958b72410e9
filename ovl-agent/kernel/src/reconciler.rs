//! What ties wanted state, dump, plan and application together.

use std::collections::BTreeMap;

use ovl_api::model::{Delta, View};

use crate::error::Result;
use crate::underlay::Underlay;

/// What a pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// What changed, a line each: `route 10.42.3.0/26 via 10.42.3.1 on vx-… added`; a repair says what `was missing` or
    /// `was changed`. A pass that changes much names some and counts the rest.
    pub lines: Vec<String>,
    /// What cannot be made to work with the state as it is, and was not told by an earlier pass.
    pub warnings: Vec<String>,
    /// Networks, by ID, whose state the kernel does not wholly show, with the first reason. The pass has done all else, and
    /// [`Reconciler::full`] tries again.
    pub failed: BTreeMap<String, String>,
    /// The reasons of failures that are no network's.
    pub failed_elsewhere: Vec<String>,
}

impl Changes {
    /// Nothing changed, and there is nothing to say.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }

    /// The kernel shows everything.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.failed_elsewhere.is_empty()
    }
}

/// Brings the kernel of one network namespace to what a [`View`] wants. It blocks, and is to be made and used by one thread
/// that stays in that namespace.
pub struct Reconciler {
    underlay: Underlay,
}

impl Reconciler {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    /// When no netlink socket can be opened.
    pub fn new(underlay: Underlay) -> Result<Reconciler> {
        Ok(Reconciler { underlay })
    }

    /// The underlay as it was last seen: its MTU may change.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// All that cannot be made to work with the state as it is, whether it was told before or not.
    pub fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Reads all that the kernel shows, and mends what differs from the view. Nothing is done while the view does not have this
    /// host, which is not registered then.
    ///
    /// # Errors
    /// When the kernel cannot be asked. What it refuses is in [`Changes::failed`], not an error.
    pub fn full(&mut self, _view: &View) -> Result<Changes> {
        Ok(Changes::default())
    }

    /// As [`Self::full`], but deletes nothing: for a view that is the one last seen, because the store has not been read since the
    /// agent's start (`ovl_claims::Node::synced` is false). Later deltas may delete what they say.
    ///
    /// # Errors
    /// As [`Self::full`].
    pub fn mend(&mut self, _view: &View) -> Result<Changes> {
        Ok(Changes::default())
    }

    /// Applies what changed since the last pass, without reading anything: the cost is the delta's. Becomes [`Self::full`] when
    /// there was none yet, when `delta.all`, when this host itself changed, and when the kernel refuses something.
    ///
    /// # Errors
    /// As [`Self::full`].
    pub fn delta(&mut self, view: &View, _delta: &Delta) -> Result<Changes> {
        self.full(view)
    }
}
