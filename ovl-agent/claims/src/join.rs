//! Registering this host, and putting back what a store lost that was set back or made anew.

use crate::inner::{Inner, lock};
use crate::keys::{self, Claim, SingleClaim, SingleState};
use crate::open::internal;
use crate::record::{self, Read};
use crate::state::{Me, State};
use crate::token::Token;
use ovl_api::model::{Host, Network, is_single};
use ovl_api::wire::Problem;
use ovl_store::{Compare, KeyValue, Op, Revision, Snapshot, Txn};
use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::Ordering;

/// Why a host could not register.
pub(crate) enum Trouble {
    Store(ovl_store::Error),
    Other(Problem),
}

impl From<ovl_store::Error> for Trouble {
    fn from(error: ovl_store::Error) -> Trouble {
        Trouble::Store(error)
    }
}

impl From<Problem> for Trouble {
    fn from(problem: Problem) -> Trouble {
        Trouble::Other(problem)
    }
}

impl Inner {
    /// Makes sure that this host is registered, with a record that is this installation's and not fenced.
    ///
    /// A record that is missing is made under a new epoch: what was claimed under an earlier one was freed by whoever
    /// removed it. One that is fenced is of a removal that was broken off, which is brought to its end first. The first time
    /// it is written anew in any case: what the process before this one sent last, and the store does only now, was on the
    /// condition of the record as it was.
    pub(crate) async fn join(&self) -> Result<(), Trouble> {
        let name = self.name();
        let (key, live) = (keys::host(&name), keys::live(&name));
        let read = |key: &str| {
            let (from, to) = keys::alone(key);
            Op::Get(from, to)
        };
        loop {
            let txn = Txn { then: vec![read(&key), read(&live)], ..Txn::default() };
            let done = self.commit(txn).await?;
            let entry = done.got.first().and_then(|got| got.first());
            let alive = done.got.get(1).and_then(|got| got.first());
            let other = Token::of_other(alive, &self.place);
            // No other task begins a session meanwhile.
            let alone = match alive {
                Some(alive) => Compare::Unchanged(live.clone(), alive.changed),
                None => Compare::Absent(live.clone()),
            };
            let id = lock(&self.identity).id.clone();
            let found: Option<(Host, i64)> = match entry {
                None => None,
                Some(entry) => match record::read::<Host>(&entry.value) {
                    Ok(mut host) => {
                        record::fill_in(&mut host, entry.created);
                        Some((host, entry.changed))
                    }
                    Err(why) => {
                        self.overwrite(entry, &id, &why, done.revision).await?;
                        continue;
                    }
                },
            };
            let (found, epoch) = self.look(|state| state.since_set_back(found, &id));
            match (found, other) {
                (Some((host, _)), other) if host.id != id => {
                    if self.is_this_node(&host).await? {
                        if other.is_some() {
                            return Err(self.session_has_not_ended(&host).into());
                        }
                        self.take_identity(&host)?;
                        continue;
                    }
                    if alive.is_some() || !self.may_replace(&host) {
                        return Err(self.name_is_taken(&host).into());
                    }
                    tracing::warn!(
                        "the dead node {} (VTEP {}) is replaced by this one",
                        host.name,
                        host.vtep
                    );
                    self.remove_node(&host.name, false).await?;
                }
                (_, Some(other)) => return Err(self.identity_is_used(&other).into()),
                (Some((host, _)), None) if alive.is_none() && !self.may_move(&host) => {
                    return Err(self.machine_differs(&host).into());
                }
                (None, None) => self.register(&key, alone, done.revision).await?,
                (Some((host, changed)), None) if host.removed => {
                    self.set_me(None);
                    self.clear_host(&host, changed).await?;
                }
                (Some((host, changed)), None) => {
                    let mine = self.record(host.epoch.max(epoch), Some(&host), done.revision);
                    if host == mine && self.renewed.load(Ordering::Relaxed) {
                        self.keep_epoch(host.epoch)?;
                        self.bind_identity()?;
                        self.set_me(Some(Me { host, changed }));
                        return Ok(());
                    }
                    let txn = Txn {
                        when: vec![Compare::Unchanged(key.clone(), changed), alone],
                        then: vec![Op::Put(key.clone(), keys::json(&mine), None), self.put_token().await?],
                        otherwise: Vec::new(),
                    };
                    if self.put_record(&mine, txn).await? {
                        self.renewed.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// Makes the record under the next epoch, after a look at the store as it was at the revision `at`. The next look shows
    /// whether it was made.
    async fn register(&self, key: &str, alone: Compare, at: Revision) -> Result<(), Trouble> {
        let before = lock(&self.identity).epoch;
        self.keep_epoch(before + 1)?;
        let host = self.record(before + 1, None, at);
        let txn = Txn {
            when: vec![Compare::Absent(key.to_owned()), alone],
            then: vec![Op::Put(key.to_owned(), keys::json(&host), None), self.put_token().await?],
            otherwise: Vec::new(),
        };
        if self.put_record(&host, txn).await? {
            self.renewed.store(true, Ordering::Relaxed);
            tracing::info!("registered as {} (epoch {})", host.name, host.epoch);
        }
        Ok(())
    }

    /// Writes this host's record in the place of one that cannot be understood, unless it is another installation's.
    async fn overwrite(&self, entry: &KeyValue, id: &str, why: &str, at: Revision) -> Result<(), Trouble> {
        let found: serde_json::Value = serde_json::from_slice(&entry.value).unwrap_or_default();
        let of_other = found["id"].as_str().is_some_and(|found| found != id);
        let epoch = lock(&self.identity).epoch;
        if of_other || epoch == 0 {
            let key = &entry.key;
            return Err(internal(format!(
                "the store's {key} is another node's, or cannot be understood: {why}"
            ))
            .into());
        }
        let removed = found["removed"].as_bool() == Some(true);
        let host = Host { removed, ..self.record(epoch, None, at) };
        let txn = Txn {
            when: vec![Compare::Unchanged(entry.key.clone(), entry.changed)],
            then: vec![Op::Put(entry.key.clone(), keys::json(&host), None)],
            otherwise: Vec::new(),
        };
        if self.put_record(&host, txn).await? {
            tracing::warn!("this node's record in the store was overwritten ({why}): it was put back");
        }
        Ok(())
    }

    /// This node's record. What the store has instead, and which revision the store had then, say since when the node has its
    /// VTEP: since now, unless it had it before. A revision above the store's own is of another store.
    fn record(&self, epoch: u64, found: Option<&Host>, at: Revision) -> Host {
        let (vtep, segment) = *lock(&self.underlay);
        let found = found.map(|host| (host.vtep, host.vtep_since));
        let mut known = found.into_iter().chain(self.look(|state| state.own_vtep));
        let known = known.find(|(known, since)| *known == vtep && (1..=at).contains(since));
        let vtep_since = known.map_or(at, |(_, since)| since);
        Host {
            name: self.name(),
            id: lock(&self.identity).id.clone(),
            epoch,
            vtep,
            vtep_since,
            segment,
            port: self.conf.port,
            removed: false,
        }
    }

    /// Writes this node's record, by a transaction with conditions. Returns whether they held. A VTEP that the node gives up by that
    /// it has given up also where the answer is lost, and when it takes it again at once.
    async fn put_record(&self, host: &Host, txn: Txn) -> Result<bool, Trouble> {
        self.update(|state| state.own_vtep = state.own_vtep.filter(|(vtep, _)| *vtep == host.vtep));
        let is_written = self.commit(txn).await?.held;
        if is_written {
            self.update(|state| state.own_vtep = Some((host.vtep, host.vtep_since)));
        }
        Ok(is_written)
    }

    /// Notes the epoch, on disk before it is used.
    fn keep_epoch(&self, epoch: u64) -> Result<(), Problem> {
        let mut identity = lock(&self.identity);
        if identity.epoch != epoch {
            identity.epoch = epoch;
            self.files.save_identity(&identity)?;
        }
        Ok(())
    }

    /// Takes the record as this host's. Under a new epoch nothing of before is own. Where the store may have lost it, the
    /// endpoints stay in the view until a snapshot is applied; nothing is given meanwhile ([`Inner::hold`]).
    pub(crate) fn set_me(&self, me: Option<Me>) {
        self.update(|state| {
            if me.is_none() {
                if state.me.is_some() {
                    state.fenced();
                }
                return;
            }
            let epoch = |me: &Option<Me>| me.as_ref().map(|me| (me.host.id.clone(), me.host.epoch));
            let changed = epoch(&state.me) != epoch(&me);
            if changed && state.me.is_some() {
                state.suspended = Some("this host registers anew; try again".to_owned());
            }
            if changed {
                state.returning.clear();
            }
            state.own_vtep = me.as_ref().map(|me| (me.host.vtep, me.host.vtep_since));
            // The file has the record's revision, too.
            state.own_changed |= state.me != me;
            state.recheck_held |= changed;
            state.me = me;
        });
    }

    /// Writes this host's claims of an earlier epoch under the present one: this host's record was lost, not removed, for a
    /// removal frees them. True when there were some.
    pub(crate) async fn renew_claims(&self, snapshot: &Snapshot) -> Result<bool, Problem> {
        let me = self.me()?;
        let is_old = |claim: &Claim| {
            (&claim.host, &claim.id) == (&me.host.name, &me.host.id) && claim.epoch < me.host.epoch
        };
        let mut renewed = false;
        for entry in &snapshot.entries {
            let (network, range, value) = match Read::of(&entry.key, Some(&entry.value)) {
                Read::Block(network, block, Some(claim)) if is_old(&claim) => {
                    (network, block, keys::json(&crate::claim::claim(&me)))
                }
                Read::Single(network, address, Some(SingleClaim { claim, state })) if is_old(&claim) => {
                    let renewed = SingleClaim { claim: crate::claim::claim(&me), state };
                    (network, crate::pool::alone(address), keys::json(&renewed))
                }
                _ => continue,
            };
            if self.look(|state| state.is_overtaken(network, range, entry.changed)) {
                continue;
            }
            let txn = Txn {
                when: vec![Compare::Unchanged(entry.key.clone(), entry.changed)],
                then: vec![Op::Put(entry.key.clone(), value, None)],
                otherwise: Vec::new(),
            };
            self.commit_fenced(&me, txn).await?;
            renewed = true;
        }
        Ok(renewed)
    }

    /// When the store lost its data, or many hosts vanished: puts in what a snapshot lacks of this host's part. This host's
    /// record is back already, or never was away. The networks it has blocks or containers in come back as they were,
    /// unless another with the name, the VNI or an overlapping subnet was made since; then its blocks, unless others claimed
    /// them since.
    pub(crate) async fn put_back(&self, snapshot: &Snapshot) -> Result<(), Problem> {
        let me = self.me()?;
        let there: HashSet<&str> = snapshot.entries.iter().map(|entry| entry.key.as_str()).collect();
        let (networks, blocks, singles) = self.look(|state| {
            let ids: BTreeSet<&String> = state.own.keys().chain(state.used.keys()).collect();
            let networks = ids.into_iter().filter_map(|id| state.view.networks.get(id));
            let networks = networks.filter(|network| !there.contains(keys::network(&network.name).as_str()));
            let blocks =
                state.own.iter().flat_map(|(id, own)| own.keys().map(move |block| (id.clone(), *block)));
            let blocks = blocks.filter(|block| !state.returning.contains(block));
            let blocks = blocks.map(|(id, block)| keys::block(&id, block));
            let blocks = blocks.filter(|key| !there.contains(key.as_str()));
            (
                networks.cloned().collect::<Vec<Network>>(),
                blocks.collect::<Vec<String>>(),
                singles(state, &there),
            )
        });
        for network in networks {
            if self.put_network(&network, &me).await? {
                tracing::warn!("the store had lost the network {}: it was put back", network.name);
            }
        }
        let claim = crate::claim::claim(&me);
        let value = keys::json(&claim);
        let granted = keys::json(&SingleClaim { claim, state: SingleState::Granted });
        let blocks = blocks.into_iter().map(|key| (key, value.clone()));
        for (key, value) in blocks.chain(singles.into_iter().map(|key| (key, granted.clone()))) {
            let txn = Txn {
                when: vec![Compare::Absent(key.clone())],
                then: vec![Op::Put(key, value, None)],
                otherwise: Vec::new(),
            };
            self.commit_fenced(&me, txn).await?;
        }
        self.overwrite_old_claims(snapshot, &me).await
    }
}

/// The keys of this host's single addresses that are not there.
fn singles(state: &State, there: &HashSet<&str>) -> Vec<String> {
    let own = state.view.owners.iter().filter(|(entry, owner)| {
        **owner == state.view.me && is_single(entry.1) && !state.returning.contains(*entry)
    });
    let keys = own.map(|((id, range), _)| keys::single(id, range.ip()));
    keys.filter(|key| !there.contains(key.as_str())).collect()
}
