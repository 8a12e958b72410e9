//! The hosts of the cluster, and the removal of those that are gone.
//!
//! A removal first marks the host's record: from then on no claim of the host succeeds, for each is conditional on the
//! record. Then what it claimed goes, in batches that are conditional on the mark and on each key being as it was read, and
//! the record last. Broken off anywhere, it is taken up again by whoever tries next, the host itself included.

use crate::inner::{BATCH, Inner, store_problem};
use crate::keys;
use ovl_api::model::Host;
use ovl_api::wire::{Node as Peer, Problem, ProblemKind};
use ovl_store::{Compare, Error, Op, Txn, range_end};
use std::collections::BTreeSet;
use std::time::Duration;

impl Inner {
    /// [`crate::Node::nodes`].
    pub(crate) fn nodes(&self) -> Result<Vec<Peer>, Problem> {
        self.look(|state| {
            if state.view.hosts.is_empty() {
                return Err(crate::inner::not_registered(state));
            }
            let peer = |host: &Host| {
                let of = |parts: &std::collections::HashMap<String, usize>| parts.get(&host.name).copied();
                let blocks = state.parts.values().filter_map(of).sum();
                Peer { host: host.clone(), alive: state.live.contains(&host.name), blocks }
            };
            Ok(state.view.hosts.values().map(peer).collect())
        })
    }

    /// [`crate::Node::remove_node`].
    pub(crate) async fn remove_node(&self, name: &str, force: bool) -> Result<(), Problem> {
        let unknown = || Problem::new(ProblemKind::NotFound, format!("there is no host {name}"));
        crate::validate::host_name(name).map_err(|_| unknown())?;
        let (key, live) = (keys::host(name), keys::live(name));
        // The epoch that is removed. A node that is alive may have registered anew before this is done: that is another one.
        let mut removing = None;
        loop {
            let read = |key: &str| {
                let (from, to) = keys::alone(key);
                Op::Get(from, to)
            };
            let txn = Txn { then: vec![read(&key), read(&live)], ..Txn::default() };
            let done = self.commit(txn).await.map_err(|error| store_problem(&error))?;
            let Some(entry) = done.got.first().and_then(|got| got.first()) else {
                return if removing.is_some() { Ok(()) } else { Err(unknown()) };
            };
            let host: Host = serde_json::from_slice(&entry.value)
                .map_err(|e| crate::open::internal(format!("the store's {key} cannot be understood: {e}")))?;
            if *removing.get_or_insert(host.epoch) != host.epoch {
                return Ok(());
            }
            let alive = done.got.get(1).is_some_and(|got| !got.is_empty());
            if alive && !force && !host.removed {
                let left = self.conf.kv.remaining(&live).await.map_err(|error| store_problem(&error))?;
                let message = may_be_alive(name, name == self.name(), self.conf.liveness, left);
                return Err(Problem::new(ProblemKind::InUse, message));
            }
            let changed = entry.changed;
            if !host.removed {
                let marked = Host { removed: true, ..host };
                let txn = Txn {
                    when: vec![Compare::Unchanged(key.clone(), changed)],
                    then: vec![Op::Put(key.clone(), keys::json(&marked), None)],
                    otherwise: Vec::new(),
                };
                // Whether it was done, also when the store does not say, shows at the next look.
                self.commit(txn).await.map_err(|error| store_problem(&error))?;
                continue;
            }
            self.clear_host(&host, changed).await.map_err(|error| store_problem(&error))?;
            tracing::info!("host {name} was removed");
            return Ok(());
        }
    }

    /// Frees all that a host claimed whose record is marked, as of that revision, and removes the record. Nothing is done
    /// when the record is another by now: then somebody else has brought this to its end.
    pub(crate) async fn clear_host(&self, host: &Host, marked: i64) -> Result<(), Error> {
        let key = keys::host(&host.name);
        let fence = Compare::Unchanged(key.clone(), marked);
        loop {
            // Read behind the mark: no claim of the host comes after it.
            let claims = self.claims_of(&host.name).await?;
            if claims.is_empty() {
                break;
            }
            for some in claims.chunks(BATCH) {
                let unchanged = some.iter().map(|(key, changed)| Compare::Unchanged(key.clone(), *changed));
                let txn = Txn {
                    when: std::iter::once(fence.clone()).chain(unchanged).collect(),
                    then: some.iter().map(|(key, _)| Op::Delete(key.clone())).collect(),
                    otherwise: vec![alone(&key)],
                };
                let done = self.commit(txn).await?;
                if !done.held && !is_at(&done, marked) {
                    return Ok(());
                }
            }
        }
        let networks = self.conf.kv.snapshot(keys::NETWORKS).await?;
        // Also those whose record cannot be understood: their ID is in the view, or readable by itself.
        let ids = networks.entries.iter().filter_map(|entry| {
            let record: serde_json::Value = serde_json::from_slice(&entry.value).ok()?;
            Some(record.get("id")?.as_str()?.to_owned())
        });
        let mut ids: BTreeSet<String> = ids.collect();
        self.look(|state| ids.extend(state.view.networks.keys().cloned()));
        let ids: Vec<String> = ids.into_iter().collect();
        for some in ids.chunks(BATCH / 2) {
            let ops = some.iter().flat_map(|id| {
                let endpoints = keys::endpoints_of(id, &host.name);
                [
                    Op::DeleteRange(endpoints.clone(), range_end(&endpoints)),
                    Op::Delete(keys::ack(id, &host.name)),
                ]
            });
            let txn = Txn { when: vec![fence.clone()], then: ops.collect(), otherwise: Vec::new() };
            if !self.commit(txn).await?.held {
                return Ok(());
            }
        }
        let txn = Txn {
            when: vec![fence],
            then: [key, keys::live(&host.name), keys::back(&host.name)].map(Op::Delete).into(),
            otherwise: Vec::new(),
        };
        self.commit(txn).await?;
        Ok(())
    }

    /// The keys of a host's blocks and single addresses, and when they were last changed.
    pub(crate) async fn claims_of(&self, name: &str) -> Result<Vec<(String, i64)>, Error> {
        let mut claims = Vec::new();
        for prefix in [keys::BLOCKS, keys::SINGLES] {
            let all = self.conf.kv.snapshot(prefix).await?.entries;
            let of = all.into_iter().filter(|entry| host_of(&entry.value).as_deref() == Some(name));
            claims.extend(of.map(|entry| (entry.key, entry.changed)));
        }
        Ok(claims)
    }
}

/// The node that a claim names, also one that is not understood otherwise, as of a newer release.
fn host_of(value: &[u8]) -> Option<String> {
    let record: serde_json::Value = serde_json::from_slice(value).ok()?;
    Some(record.get("host")?.as_str()?.to_owned())
}

/// Why a host is not removed whose liveness lease has not run out: it renews that as long as it lives, which tells when it
/// was last heard of. `left` is the lease's time, of `term`.
fn may_be_alive(name: &str, this: bool, term: Duration, left: Option<Duration>) -> String {
    if this {
        return format!(
            "host {name} is this one, and its agent runs; remove it from another host, or give --force"
        );
    }
    // A lease that ran out just now is as old as it gets.
    let left = left.unwrap_or_default();
    let (heard, wait) = (term.saturating_sub(left).as_secs(), left.as_secs() + 1);
    format!(
        "host {name} may be alive, it was heard of {heard} s ago: stop the agent there first; if the host is down, try again in \
         {wait} s, or give --force"
    )
}

fn alone(key: &str) -> Op {
    let (from, to) = keys::alone(key);
    Op::Get(from, to)
}

/// Whether a transaction that did not hold read the record as it was marked.
fn is_at(done: &ovl_store::Done, marked: i64) -> bool {
    done.got.first().and_then(|got| got.first()).is_some_and(|record| record.changed == marked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_may_be_alive_is_told_by_when_it_was_heard_of() {
        let term = Duration::from_secs(30);
        let text = may_be_alive("h2", false, term, Some(Duration::from_secs(18)));
        assert!(
            text.contains("heard of 12 s ago") && text.contains("again in 19 s, or give --force"),
            "{text}"
        );
        let text = may_be_alive("h2", false, term, None);
        assert!(text.contains("heard of 30 s ago") && text.contains("again in 1 s"), "{text}");
        assert!(may_be_alive("h1", true, term, None).contains("is this one"));
    }
}
