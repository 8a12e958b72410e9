//! Whether the store answers this node, and since when it does not.

use crate::state::State;
use ovl_api::wire::Away;
use std::time::Instant;

impl State {
    /// Notes that the store, or what it holds, is in the way of this host, or that it is not any more.
    pub(crate) fn set_error(&mut self, error: Option<String>) {
        self.error_since = error.is_some().then(|| self.error_since.unwrap_or_else(Instant::now));
        self.error = error;
    }

    /// That the store does not answer, for this reason if there is no better one.
    pub(crate) fn away(&self, why: &str) -> Away {
        Away {
            seconds: self.error_since.map_or(0, |since| since.elapsed().as_secs()),
            why: self.error.clone().unwrap_or_else(|| why.to_owned()),
        }
    }
}
