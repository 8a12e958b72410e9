//! Attachments of which nobody said that they ended, and whose link is gone: it went with its namespace, or was never made.
//!
//! The link is made after the address was given, so an attachment under way has none yet, and must not lose its address. No
//! container runtime waits for one as long as [`crate::Timing::missing`]. One that is ended too soon all the same loses its
//! routes, too: it has no connection, but takes nobody else's address.

use crate::files::Local;
use crate::inner::Inner;
use crate::state::Missing;
use ovl_api::model::Endpoint;
use ovl_api::wire::Problem;
use std::time::{Duration, Instant};

/// At most this much of the time between two looks counts. When it was more, the agent did not run, and who is making a
/// link may not have either.
const BETWEEN: Duration = Duration::from_secs(60);

impl Missing {
    /// It was not there at the last look, if that says so, nor is it now.
    fn still(before: Option<&Missing>, now: Instant) -> Missing {
        let since = |before: &Missing| before.time + now.duration_since(before.at).min(BETWEEN);
        Missing { time: before.map_or(Duration::ZERO, since), at: now }
    }
}

impl Inner {
    /// [`crate::Node::missing`].
    pub(crate) fn missing(&self, has_link: &dyn Fn(&str) -> bool) -> Result<(), Problem> {
        let now = Instant::now();
        self.update(|state| {
            let before = std::mem::take(&mut state.missing);
            let mut over: Vec<(Local, Duration)> = Vec::new();
            for (veth, local) in state.locals.iter().filter(|(veth, _)| !has_link(veth)) {
                // A new attachment of the same name is not the one before.
                let key = (veth.clone(), local.ticket);
                let missing = Missing::still(before.get(&key), now);
                if missing.time >= self.conf.timing.missing {
                    over.push((local.clone(), missing.time));
                }
                state.missing.insert(key, missing);
            }
            over.iter().try_for_each(|(local, time)| {
                self.end(state, local)?;
                let Endpoint { container, ifname, veth, addresses, .. } = &local.endpoint;
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                tracing::warn!(
                    "network {}: {container} {ifname} has had no link ({veth}) on this host for {} s: the attachment is ended, \
                     {} free",
                    local.name,
                    time.as_secs(),
                    addresses.join(" ")
                );
                Ok(())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_nobody_looked_counts_for_a_minute() {
        let start = Instant::now();
        let seconds = Duration::from_secs;
        let first = Missing::still(None, start);
        assert_eq!(first.time, Duration::ZERO);
        let second = Missing::still(Some(&first), start + seconds(50));
        assert_eq!(second.time, seconds(50));
        let third = Missing::still(Some(&second), start + seconds(50 + 3600));
        assert_eq!(third.time, seconds(110));
    }
}
