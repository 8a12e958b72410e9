//! Tells the store of this host's endpoints, in the background: for people to look at, and for others to choose addresses
//! by. What the store was told wrong, or not at all, is mended whenever the host (re)connects.

use crate::files::Local;
use crate::inner::{BATCH, Fenced, Inner, store_problem};
use crate::keeper::detail;
use crate::keys;
use crate::state::State;
use ovl_api::wire::Problem;
use ovl_store::{KeyValue, Op, Txn, range_end};

impl Inner {
    /// Publishes what changed, again and again.
    pub(crate) async fn publish(&self) {
        let mut failures = 0;
        loop {
            self.wake.publisher.notified().await;
            tokio::time::sleep(self.conf.timing.publish).await;
            while self.look(|state| state.me.is_some() && state.following && !state.publish.is_empty()) {
                match self.publish_some().await {
                    Ok(()) => failures = 0,
                    Err(problem) => {
                        tracing::debug!("publishing endpoints: {problem}");
                        tokio::time::sleep(self.backoff(failures)).await;
                        failures += 1;
                    }
                }
            }
        }
    }

    pub(crate) async fn publish_some(&self) -> Result<(), Problem> {
        let me = self.me()?;
        let some = self.update(|state| {
            let some = std::iter::from_fn(|| state.publish.pop_first());
            some.take(BATCH).collect::<Vec<_>>()
        });
        let then = self.look(|state| {
            let op = |(id, container, ifname): &(String, String, String)| {
                let key = keys::endpoint(id, &me.host.name, container, ifname);
                match find(state, id, container, ifname) {
                    Some(local) => Op::Put(key, keys::json(&detail(state, local)), None),
                    None => Op::Delete(key),
                }
            };
            some.iter().map(op).collect()
        });
        let told = self.commit_fenced(&me, Txn { then, ..Txn::default() }).await;
        match told {
            Ok(Fenced::Held(_)) => Ok(()),
            // With no condition but the fence it holds, or is an error.
            Ok(Fenced::Not(_)) => Ok(()),
            Err(problem) => {
                self.update(|state| state.publish.extend(some));
                Err(problem)
            }
        }
    }

    /// Compares what the store holds of this host's endpoints with what there is, and notes what differs.
    pub(crate) async fn mend_published(&self) -> Result<(), Problem> {
        let (me, networks) = self.look(|state| {
            let networks: Vec<String> = state.view.networks.keys().cloned().collect();
            (state.view.me.clone(), networks)
        });
        for some in networks.chunks(BATCH) {
            let range = |id: &String| {
                let prefix = keys::endpoints_of(id, &me);
                Op::Get(prefix.clone(), range_end(&prefix))
            };
            let txn = Txn { then: some.iter().map(range).collect(), ..Txn::default() };
            let done = self.commit(txn).await.map_err(|error| store_problem(&error))?;
            self.update(|state| {
                for (id, told) in some.iter().zip(&done.got) {
                    compare(state, id, told);
                }
            });
        }
        Ok(())
    }
}

fn find<'a>(state: &'a State, id: &str, container: &str, ifname: &str) -> Option<&'a Local> {
    state.locals.values().find(|local| {
        let endpoint = &local.endpoint;
        endpoint.network == id && endpoint.container == container && endpoint.ifname == ifname
    })
}

fn compare(state: &mut State, id: &str, told: &[KeyValue]) {
    let mut differ = Vec::new();
    let mut right = std::collections::HashSet::new();
    for entry in told {
        let mut parts = entry.key.rsplitn(3, '/');
        let (Some(ifname), Some(container)) = (parts.next(), parts.next()) else { continue };
        let there = find(state, id, container, ifname);
        if there.is_some_and(|local| keys::json(&detail(state, local)) == entry.value) {
            right.insert((container, ifname));
        } else {
            differ.push((id.to_owned(), container.to_owned(), ifname.to_owned()));
        }
    }
    for local in state.locals.values().filter(|local| local.endpoint.network == id) {
        let endpoint = &local.endpoint;
        if !right.contains(&(endpoint.container.as_str(), endpoint.ifname.as_str())) {
            differ.push((id.to_owned(), endpoint.container.clone(), endpoint.ifname.clone()));
        }
    }
    state.publish.extend(differ);
}
