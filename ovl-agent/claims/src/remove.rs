//! Removing networks, and showing them.
//!
//! A removal marks the network's record. Every agent sees the mark: from then on it attaches nothing there; when it has a
//! container in the network it takes the mark off again, which is a veto, and when not it gives its blocks back. Once all
//! are gone, the record goes, in a transaction that holds only when there is none, and nobody can claim one any more.

use crate::inner::{Inner, store_problem};
use crate::keys;
use crate::record;
use crate::state::State;
use ovl_api::model::Network;
use ovl_api::wire::{BlockDetail, EndpointDetail, NetworkDetail, Problem, ProblemKind};
use ovl_store::{Compare, KeyValue, Op, Txn, range_end};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often is looked whether all blocks are gone, when nothing else told.
const LOOK: Duration = Duration::from_millis(250);
/// How long the store may still show a container that ended on another host: agents tell it a little later.
const LAG: Duration = Duration::from_millis(300);
/// How long the store is asked for news while the view follows it, and while not. The runtime waits half a second when it
/// can do without an answer.
const NEWS: (Duration, Duration) = (Duration::from_millis(400), Duration::from_secs(1));

impl Inner {
    /// [`crate::Node::remove_network`].
    pub(crate) async fn remove_network(&self, name: &str) -> Result<(), Problem> {
        self.me()?;
        let deadline = Instant::now() + self.conf.timing.removal;
        let (network, changed) = self.read_network(name).await?;
        self.check_unused(&network).await?;
        let key = keys::network(name);
        let marked = Network { removing: true, ..network.clone() };
        let value = keys::json(&marked);
        let mark = Txn {
            when: vec![Compare::Unchanged(key.clone(), changed)],
            then: vec![Op::Put(key.clone(), value.clone(), None)],
            otherwise: Vec::new(),
        };
        let done = self.commit(mark).await.map_err(|error| store_problem(&error))?;
        if !done.held {
            let message = format!("the network {name} was just changed by another; try again");
            return Err(Problem::new(ProblemKind::InUse, message));
        }
        let mark = done.revision;
        self.learn(&key, Some(&value), mark);
        self.wake.keeper.notify_one();
        loop {
            let removed = self.commit(removal(&marked, mark)).await.map_err(|error| store_problem(&error))?;
            if removed.held {
                self.learn(&key, None, removed.revision);
                tracing::info!("network {name} ({}) was removed", network.id);
                return Ok(());
            }
            let record = removed.got.first().and_then(|got| got.first());
            if record.is_none_or(|record| record.changed != mark) {
                // Gone by another's hand, or a veto.
                let Some(record) = record else { return Ok(()) };
                self.learn_read(&key, Some(record), removed.revision);
                self.check_endpoints(&network).await?;
                let message = format!("the network {name} is in use: a host has containers in it");
                return Err(Problem::new(ProblemKind::InUse, message));
            }
            if Instant::now() >= deadline {
                let left: Vec<KeyValue> = removed.got.into_iter().skip(1).flatten().collect();
                return Err(self.give_up(&network, mark, &left).await);
            }
            let mut revision = self.revision.subscribe();
            let _ = tokio::time::timeout(LOOK, revision.changed()).await;
        }
    }

    /// Takes the mark back, and says which hosts kept their blocks.
    async fn give_up(&self, network: &Network, mark: i64, left: &[KeyValue]) -> Problem {
        let key = keys::network(&network.name);
        let value = keys::json(&Network { removing: false, ..network.clone() });
        let txn = Txn {
            when: vec![Compare::Unchanged(key.clone(), mark)],
            then: vec![Op::Put(key.clone(), value.clone(), None)],
            otherwise: Vec::new(),
        };
        match self.commit(txn).await {
            Ok(done) if done.held => self.learn(&key, Some(&value), done.revision),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!("the network {} stays marked as being removed: {error}", network.name)
            }
        }
        let host = |entry: &KeyValue| Some(serde_json::from_slice::<keys::Claim>(&entry.value).ok()?.host);
        let mut hosts: Vec<String> = left.iter().filter_map(host).collect();
        hosts.sort();
        hosts.dedup();
        let (alive, silent): (Vec<String>, Vec<String>) =
            self.look(|state| hosts.into_iter().partition(|host| state.live.contains(host)));
        let mut message = format!("the network {} is not removed", network.name);
        if !alive.is_empty() {
            message += &format!("; hosts that are slow to give their blocks back: {}", alive.join(", "));
        }
        if !silent.is_empty() {
            message += &format!(
                "; hosts that do not answer, and may have containers in it: {} (when they are gone for good: `ovl-agent \
                 node rm`)",
                silent.join(", ")
            );
        }
        Problem::new(ProblemKind::InUse, message)
    }

    /// As [`Inner::check_endpoints`], but waits for what other hosts are about to tell: a network is removed right after
    /// its last container, wherever that was.
    async fn check_unused(&self, network: &Network) -> Result<(), Problem> {
        let patience = Instant::now() + LAG;
        loop {
            let unused = self.check_endpoints(network).await;
            let own = self.look(|state| !own_endpoints(state, &network.id).is_empty());
            if unused.is_ok() || own || Instant::now() >= patience {
                return unused;
            }
            tokio::time::sleep(self.conf.timing.publish).await;
        }
    }

    /// Refuses when the store, or this host, knows of containers in the network.
    async fn check_endpoints(&self, network: &Network) -> Result<(), Problem> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for endpoint in self.endpoints(network).await? {
            *counts.entry(endpoint.host).or_default() += 1;
        }
        if counts.is_empty() {
            return Ok(());
        }
        let hosts: Vec<String> = self.look(|state| {
            let silent = |host: &str| {
                let alive = state.live.contains(host) || host == state.view.me;
                if alive { String::new() } else { ", and does not answer".to_owned() }
            };
            counts.iter().map(|(host, count)| format!("{host} ({count}{})", silent(host))).collect()
        });
        let message =
            format!("the network {} is in use: containers are in it on {}", network.name, hosts.join(", "));
        Err(Problem::new(ProblemKind::InUse, message))
    }

    /// The network's containers on all hosts, as far as the store knows, and on this one as they are.
    async fn endpoints(&self, network: &Network) -> Result<Vec<EndpointDetail>, Problem> {
        let told = self.conf.kv.snapshot(&keys::endpoints(&network.id)).await;
        self.note(told.as_ref().err());
        let told = told.map_err(|error| store_problem(&error))?;
        let read = |entry: &KeyValue| serde_json::from_slice::<EndpointDetail>(&entry.value).ok();
        let me = self.name();
        let mut endpoints: Vec<EndpointDetail> =
            told.entries.iter().filter_map(read).filter(|endpoint| endpoint.host != me).collect();
        endpoints.extend(self.look(|state| own_endpoints(state, &network.id)));
        endpoints.sort_by(|a, b| (&a.host, &a.addresses).cmp(&(&b.host, &b.addresses)));
        Ok(endpoints)
    }

    /// A network's record, and when it was last changed.
    async fn read_network(&self, name: &str) -> Result<(Network, i64), Problem> {
        let missing = || Problem::new(ProblemKind::NotFound, format!("there is no overlay network {name}"));
        crate::validate::network_name(name).map_err(|_| missing())?;
        let (from, to) = keys::alone(&keys::network(name));
        let txn = Txn { then: vec![Op::Get(from, to)], ..Txn::default() };
        let done = self.commit(txn).await.map_err(|error| store_problem(&error))?;
        let entry = done.got.first().and_then(|got| got.first()).ok_or_else(missing)?;
        let network = record::read(&entry.value).map_err(|why| {
            crate::open::internal(format!("the store's record of the network {name} is held back: {why}"))
        })?;
        Ok((network, entry.changed))
    }

    /// [`crate::Node::networks`].
    pub(crate) async fn networks(&self) -> Result<Vec<Network>, Problem> {
        let txn = Txn {
            then: vec![Op::Get(keys::NETWORKS.to_owned(), range_end(keys::NETWORKS))],
            ..Txn::default()
        };
        let seen = |state: &State| {
            let mut networks: Vec<Network> = state.view.networks.values().cloned().collect();
            networks.sort_by(|a, b| a.name.cmp(&b.name));
            networks
        };
        let Some(patience) = self.patience_for_news() else { return Ok(self.look(seen)) };
        let asked = tokio::time::timeout(patience, self.commit(txn)).await;
        match asked.unwrap_or_else(|_| Err(self.unheard())) {
            Ok(done) => {
                // Of a record that is held back the last valid value is in force.
                let is_held = |key: &String| self.look(|state| state.held.contains_key(key));
                let entries = done.got.iter().flatten().filter(|entry| !is_held(&entry.key));
                let read = |entry: &KeyValue| record::read::<Network>(&entry.value).ok();
                let mut networks: Vec<Network> = entries.filter_map(read).collect();
                let kept = self.look(|state| {
                    let held = state.ids.keys().filter(|name| state.held.contains_key(&keys::network(name)));
                    held.filter_map(|name| state.network(name).cloned()).collect::<Vec<_>>()
                });
                networks.extend(kept);
                networks.sort_by(|a, b| a.name.cmp(&b.name));
                Ok(networks)
            }
            Err(error) if !self.look(knows_something) => Err(store_problem(&error)),
            Err(_) => Ok(self.look(seen)),
        }
    }

    /// How long the store is asked for what the view shows too, as last seen. None: not at all, for it did not answer just
    /// now. Who wants more of a store that is silent, an attachment say, waits long enough for that.
    fn patience_for_news(&self) -> Option<Duration> {
        self.look(|state| match state.unanswered {
            _ if !knows_something(state) => Some(ovl_store::PATIENCE),
            Some(at) if at.elapsed() < ovl_store::PATIENCE => None,
            // The watch has told all there is, as far as one can tell.
            _ if state.following => Some(NEWS.0),
            _ => Some(NEWS.1),
        })
    }

    /// The store did not answer within [`Inner::patience_for_news`].
    fn unheard(&self) -> ovl_store::Error {
        let why = "no answer in time".to_owned();
        let error = ovl_store::Error::Unreachable { endpoints: self.conf.kv.describe(), why };
        self.update(|state| state.unanswered = Some(Instant::now()));
        error
    }

    /// [`crate::Node::detail`].
    pub(crate) async fn detail(&self, name: &str) -> Result<NetworkDetail, Problem> {
        let read = match self.patience_for_news() {
            Some(patience) => tokio::time::timeout(patience, self.read_network(name)).await.ok(),
            None => None,
        };
        let network = match read.unwrap_or_else(|| Err(store_problem(&self.unheard()))) {
            Ok((network, _)) => network,
            Err(problem) => {
                let held = self.look(|state| state.held.contains_key(&keys::network(name)));
                let known = self.look(|state| state.network(name).cloned());
                match known {
                    Some(known) if problem.kind == ProblemKind::Store || held => {
                        return Ok(self.last_seen(known, &problem));
                    }
                    _ => return Err(problem),
                }
            }
        };
        let read = async { Ok((self.endpoints(&network).await?, self.read_blocks(&network.id).await?)) };
        Ok(match read.await {
            Ok((endpoints, blocks)) => NetworkDetail { network, blocks, endpoints, away: None },
            Err(problem) => self.last_seen(network, &problem),
        })
    }

    /// A network as this host knows it by itself.
    fn last_seen(&self, network: Network, why: &Problem) -> NetworkDetail {
        self.look(|state| NetworkDetail {
            blocks: blocks(state, &network.id),
            endpoints: own_endpoints(state, &network.id),
            away: Some(state.away(&why.message)),
            network,
        })
    }

    /// The blocks and single addresses of a network as the store has them now.
    async fn read_blocks(&self, id: &str) -> Result<Vec<BlockDetail>, Problem> {
        let mut found = Vec::new();
        for prefix in [keys::blocks(id), keys::singles(id)] {
            let snapshot = self.conf.kv.snapshot(&prefix).await.map_err(|error| store_problem(&error))?;
            found.extend(snapshot.entries.iter().filter_map(|entry| {
                let granted = serde_json::from_slice::<keys::SingleClaim>(&entry.value);
                if granted.is_ok_and(|single| single.state == keys::SingleState::Asked) {
                    return None;
                }
                let claim: keys::Claim = serde_json::from_slice(&entry.value).ok()?;
                let block = match keys::Key::parse(&entry.key) {
                    keys::Key::Block(_, block) => block,
                    keys::Key::Single(_, address) => crate::pool::alone(address),
                    _ => return None,
                };
                Some(BlockDetail { block, host: claim.host })
            }));
        }
        found.sort_by_key(|detail| detail.block);
        Ok(found)
    }
}

/// The transaction that removes a marked network in which nobody has anything.
fn removal(network: &Network, mark: i64) -> Txn {
    let key = keys::network(&network.name);
    let (blocks, singles) = (keys::blocks(&network.id), keys::singles(&network.id));
    let (endpoints, acks) = (keys::endpoints(&network.id), keys::acks(&network.id));
    let (from, to) = keys::alone(&key);
    Txn {
        when: vec![
            Compare::Unchanged(key.clone(), mark),
            Compare::Empty(blocks.clone(), range_end(&blocks)),
            Compare::Empty(singles.clone(), range_end(&singles)),
        ],
        then: vec![
            Op::Delete(key),
            Op::Delete(keys::vni(network.vni)),
            Op::DeleteRange(endpoints.clone(), range_end(&endpoints)),
            Op::DeleteRange(acks.clone(), range_end(&acks)),
        ],
        otherwise: vec![
            Op::Get(from, to),
            Op::Get(blocks.clone(), range_end(&blocks)),
            Op::Get(singles.clone(), range_end(&singles)),
        ],
    }
}

/// Whether the store was read, now or before the agent's start.
fn knows_something(state: &State) -> bool {
    state.synced || !state.view.hosts.is_empty()
}

fn blocks(state: &State, id: &str) -> Vec<BlockDetail> {
    let detail =
        |(block, host): (&ipnetwork::IpNetwork, &str)| BlockDetail { block: *block, host: host.to_owned() };
    state.view.blocks(id).map(detail).collect()
}

fn own_endpoints(state: &State, id: &str) -> Vec<EndpointDetail> {
    let of = state.locals.values().filter(|local| local.endpoint.network == id);
    of.map(|local| crate::keeper::detail(state, local)).collect()
}
