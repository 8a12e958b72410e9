//! Acknowledgements: a host tells the store which revision its kernel shows, and whoever claimed something waits for the
//! others to show it before its container is told to be reachable.
//!
//! Only blocks matter, and only hosts with a part in the network. With more than [`MOST`] of them nobody acknowledges, and
//! a claim waits a fixed time: the writes would cost more than they give.

use crate::inner::{Inner, lock};
use crate::keys;
use crate::node::Grant;
use crate::state::State;
use ovl_store::{Event, Op, Revision, Txn};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// Networks with more hosts than this do without acknowledgements.
const MOST: usize = 64;
/// The time in which a watch tells everybody, where nobody acknowledges.
const GRACE: Duration = Duration::from_millis(250);

/// A claim: the network's ID and the revision.
type Claim = (String, Revision);

/// Claims that somebody waits for, each once.
#[derive(Debug, Default)]
pub(crate) struct Settling {
    cells: Mutex<HashMap<Claim, Arc<OnceCell<()>>>>,
}

impl Inner {
    /// [`crate::Node::settle`].
    pub(crate) async fn settle(&self, grant: &Grant) {
        let Some(claimed) = grant.claimed else { return };
        self.settled(&grant.network.id, &grant.network.name, claimed).await;
    }

    /// Settles every new block, so that the first container in one that was claimed ahead of need does not wait, whatever
    /// the store does by then.
    pub(crate) async fn settle_ahead(&self) {
        loop {
            self.wake.settler.notified().await;
            while let Some((id, name, claimed)) = self.look(newest) {
                self.settled(&id, &name, claimed).await;
            }
        }
    }

    /// Waits for the others, together with whoever waits for the same claim.
    async fn settled(&self, id: &str, name: &str, claimed: Revision) {
        let key = (id.to_owned(), claimed);
        let cell = Arc::clone(lock(&self.settling.cells).entry(key.clone()).or_default());
        cell.get_or_init(|| self.settle_once(id, name, claimed)).await;
        lock(&self.settling.cells).remove(&key);
    }

    async fn settle_once(&self, id: &str, name: &str, claimed: Revision) {
        let deadline = Instant::now() + self.conf.timing.settle;
        let followed = self.until(deadline, |state| (state.revision >= claimed).then_some(())).await;
        let hosts = self.look(|state| others(state, id));
        if followed.is_none() {
            tracing::warn!(
                "network {name}: the store's watch is slow, so other hosts may not know of new addresses yet"
            );
        } else if hosts.len() > MOST {
            tokio::time::sleep(GRACE.min(self.conf.timing.settle)).await;
        } else if !hosts.is_empty() {
            let waiting = self.await_acks(id, claimed, hosts);
            let silent = tokio::time::timeout_at(deadline.into(), waiting).await;
            // Who is missing is only known to the wait that was broken off.
            if silent.is_err() {
                tracing::warn!(
                    "network {name}: not every host told in time that it knows of the new addresses"
                );
            }
        }
        self.update(|state| {
            let blocks = state.own.get_mut(id).into_iter().flat_map(|own| own.values_mut());
            blocks.filter(|own| own.changed <= claimed).for_each(|own| own.fresh = false);
            let singles = state.singles.get_mut(id).into_iter().flat_map(|singles| singles.values_mut());
            singles.filter(|single| single.changed <= claimed).for_each(|single| single.fresh = false);
        });
    }

    /// Waits until every host that is alive and has a part has acknowledged the revision or a later one.
    async fn await_acks(&self, id: &str, claimed: Revision, mut hosts: BTreeSet<String>) {
        let prefix = keys::acks(id);
        // Whoever acknowledges this claim does so after it.
        let Ok(mut watch) = self.conf.kv.watch(&prefix, claimed + 1).await else { return };
        while !hosts.is_empty() {
            let Ok(event) = watch.next().await else { return };
            let Event::Changes(changes) = event else { continue };
            for change in changes {
                let revision =
                    change.value.as_deref().and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
                if revision.is_some_and(|revision: Revision| revision >= claimed)
                    && let Some(host) = change.key.strip_prefix(&prefix)
                {
                    hosts.remove(host);
                }
            }
            let still = self.look(|state| others(state, id));
            hosts.retain(|host| still.contains(host));
        }
    }

    /// Tells the store what the kernel shows, again and again.
    pub(crate) async fn acknowledge(&self) {
        let mut applied = self.applied.subscribe();
        loop {
            // The sender lives as long as this.
            let _ = applied.changed().await;
            let (shown, failed) = applied.borrow_and_update().clone();
            let (me, due) = self.update(|state| (state.me.clone(), due(state, shown, &failed)));
            let Some(me) = me else { continue };
            for some in due.chunks(crate::inner::BATCH) {
                let op =
                    |id: &String| Op::Put(keys::ack(id, &me.host.name), shown.to_string().into_bytes(), None);
                let txn = Txn { then: some.iter().map(op).collect(), ..Txn::default() };
                if let Err(problem) = self.commit_fenced(&me, txn).await {
                    // Whoever waited for it does not wait for long.
                    tracing::debug!("acknowledging revision {shown}: {problem}");
                }
            }
        }
    }
}

/// The last claim on a block of some network of which the others may not know: the network's ID and name, the revision.
fn newest(state: &State) -> Option<(String, String, Revision)> {
    state.own.iter().find_map(|(id, own)| {
        let claimed = own.values().filter(|own| own.fresh).map(|own| own.changed).max()?;
        Some((id.clone(), state.view.networks.get(id)?.name.clone(), claimed))
    })
}

/// The hosts that a claim in a network waits for.
fn others(state: &State, id: &str) -> BTreeSet<String> {
    let hosts = state.parts.get(id).into_iter().flatten().map(|(host, _)| host);
    hosts.filter(|host| **host != state.view.me && state.live.contains(*host)).cloned().collect()
}

/// Takes the networks out whose changes up to a revision are to be acknowledged; what failed is once it is shown.
fn due(state: &mut State, shown: Revision, failed: &BTreeSet<String>) -> Vec<String> {
    let mut due = Vec::new();
    state.acks.retain(|id, (first, last)| {
        if failed.contains(id) {
            return true;
        }
        if *first <= shown {
            due.push(id.clone());
            *first = *last;
        }
        *last > shown
    });
    let few = |id: &String| state.parts.get(id).is_some_and(|parts| parts.len() <= MOST);
    due.into_iter().filter(few).collect()
}
