//! Keeps what this host claimed in order: gives back what is idle, claims ahead of need, claims again what was lost while
//! the host was fenced, and clears networks that are being removed.

use crate::claim::unused;
use crate::files::Local;
use crate::inner::{Fenced, Inner, lock};
use crate::keys;
use crate::own::{own_blocks, room};
use crate::pool;
use crate::state::State;
use ipnetwork::IpNetwork;
use ovl_api::model::{Network, Subnet};
use ovl_api::wire::{EndpointDetail, Problem};
use ovl_store::{Compare, Op, Txn};
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Another block is claimed when less than one in so many of the own addresses is free.
const AHEAD: u128 = 4;
/// Nothing is claimed ahead when less than one in so many of the network's blocks is free: others may need them.
const SCARCE: u128 = 8;
/// A lost address that another host's block holds is asked for this often.
const ASK_AGAIN: Duration = Duration::from_secs(60);

impl Inner {
    /// Looks everything over, again and again.
    pub(crate) async fn keep(&self) {
        let mut asked = HashMap::new();
        loop {
            let wait = tokio::time::sleep(crate::random::jitter(self.conf.timing.keep));
            tokio::select! {
                () = wait => {}
                () = self.wake.keeper.notified() => {}
            }
            self.forget_gone();
            if !self.look(|state| state.following && state.suspended.is_none() && state.me.is_some()) {
                continue;
            }
            if let Err(problem) = self.keep_once(&mut asked).await {
                tracing::debug!("looking over the claims: {problem}");
                // Whatever woke this up will not wake it again.
                tokio::time::sleep(self.backoff(0)).await;
                self.wake.keeper.notify_one();
            }
        }
    }

    async fn keep_once(&self, asked: &mut HashMap<IpAddr, Instant>) -> Result<(), Problem> {
        for network in self
            .look(|state| state.view.networks.values().filter(|n| n.removing).cloned().collect::<Vec<_>>())
        {
            if !self.look(|state| state.parts_of(&network.id)) {
                continue;
            }
            self.veto(&network).await?;
        }
        self.put_lost_back().await?;
        let idle = self.update(|state| idle(state, self.conf.timing.idle));
        for (id, block) in idle {
            self.give_back(&id, block).await?;
        }
        for (network, subnet) in self.look(short) {
            self.claim_ahead(&network, &subnet).await?;
        }
        self.claim_again(asked).await
    }

    /// Puts networks back whose record was deleted while this host has a part in them, and own blocks likewise.
    async fn put_lost_back(&self) -> Result<(), Problem> {
        for network in self.look(State::lost_networks) {
            if self.put_network(&network, &self.me()?).await? {
                tracing::warn!("the record of network {} was deleted: it was put back", network.name);
            }
        }
        for (id, block) in self.look(|state| state.lost.clone()) {
            let subnet = self.look(|state| state.subnet_of(&id, block.ip()));
            let Some(subnet) = subnet else { continue };
            // Where another has it now, its record ends the own claim when it is applied; until then nothing is given of it.
            if self.claim_this(&id, &subnet, block).await? {
                tracing::warn!("the record of block {block} of network {id} was deleted: it was put back");
            }
        }
        Ok(())
    }

    /// Takes the mark of removal off a network in which this host has containers, and says which.
    async fn veto(&self, network: &Network) -> Result<(), Problem> {
        let me = self.me()?;
        let found = self.look(|state| {
            let local = state.locals.values().find(|local| local.endpoint.network == network.id)?;
            Some((detail(state, local), state.network_changed.get(&network.id).copied().unwrap_or(0)))
        });
        let Some((endpoint, changed)) = found else { return Ok(()) };
        let key = keys::network(&network.name);
        let value = keys::json(&Network { removing: false, ..network.clone() });
        let told = keys::endpoint(&network.id, &me.host.name, &endpoint.container, &endpoint.ifname);
        let txn = Txn {
            when: vec![Compare::Unchanged(key.clone(), changed)],
            then: vec![Op::Put(key.clone(), value.clone(), None), Op::Put(told, keys::json(&endpoint), None)],
            otherwise: Vec::new(),
        };
        if let Fenced::Held(done) = self.commit_fenced(&me, txn).await? {
            self.learn(&key, Some(&value), done.revision);
        }
        Ok(())
    }

    /// Claims blocks again in which endpoints are that were cut off, and single addresses likewise.
    async fn claim_again(&self, asked: &mut HashMap<IpAddr, Instant>) -> Result<(), Problem> {
        asked.retain(|_, when| when.elapsed() < ASK_AGAIN);
        let lost = self.look(|state| {
            let mut lost = BTreeSet::new();
            for local in state.locals.values() {
                let network = &local.endpoint.network;
                if state.view.endpoints.contains_key(&local.endpoint.veth) {
                    continue;
                }
                lost.extend(
                    local
                        .endpoint
                        .addresses
                        .iter()
                        .filter(|a| !state.owns(network, **a))
                        .map(|a| (network.clone(), *a)),
                );
            }
            lost
        });
        for (id, address) in lost {
            let seen = self.look(|state| {
                let network = state.view.networks.get(&id)?.clone();
                let subnet = state.subnet_of(&id, address)?;
                let block = pool::block_of(&subnet, address);
                let free = !state.view.owners.contains_key(&(id.clone(), block));
                Some((network, subnet, block, free, state.owns(&id, address)))
            });
            let Some((network, subnet, block, free, false)) = seen else { continue };
            if network.removing || (free && self.claim_this(&id, &subnet, block).await?) {
                continue;
            }
            if asked.contains_key(&address) {
                continue;
            }
            asked.insert(address, Instant::now());
            let _asking = self.asking(&id, address);
            let deadline = Instant::now() + self.conf.timing.consent;
            if let Err(problem) = self.claim_single(&network, address, deadline).await {
                tracing::info!("{address} of network {} does not come back: {problem}", network.name);
            }
        }
        Ok(())
    }

    /// Forgets the leases of networks that are gone; endpoints that are still there keep theirs.
    pub(crate) fn forget_gone(&self) {
        let gone = self.update(|state| {
            let gone = std::mem::take(&mut state.gone);
            lock(&self.claiming).retain(|(id, _), _| !gone.contains(id));
            gone.into_iter().filter(|id| !state.used.contains_key(id)).collect::<Vec<_>>()
        });
        for id in gone {
            if let Err(error) = self.leases.forget_network(&id) {
                tracing::warn!("the leases of the removed network {id}: {error}");
            }
        }
    }
}

impl State {
    /// Whether this host has blocks, singles or containers in a network.
    fn parts_of(&self, network: &str) -> bool {
        self.parts.get(network).is_some_and(|parts| parts.contains_key(&self.view.me))
            || self.locals.values().any(|local| local.endpoint.network == network)
    }
}

/// An endpoint as the store is told of it.
pub(crate) fn detail(state: &State, local: &Local) -> EndpointDetail {
    let endpoint = &local.endpoint;
    EndpointDetail {
        host: state.view.me.clone(),
        container: endpoint.container.clone(),
        ifname: endpoint.ifname.clone(),
        mac: endpoint.mac.clone(),
        addresses: endpoint.addresses.clone(),
        fenced: !state.view.endpoints.contains_key(&endpoint.veth),
    }
}

/// What is to be given back: what already is being given back, single addresses that nothing uses, all that nothing uses in
/// a network that is being removed, and blocks that were idle long enough. While something is attached, the first own block
/// stays, for the host's own address is in it, and so do blocks that would have to be claimed ahead again.
fn idle(state: &mut State, after: Duration) -> Vec<(String, IpNetwork)> {
    let mut back: BTreeSet<(String, IpNetwork)> = state.returning.iter().cloned().collect();
    for (id, singles) in &state.singles {
        let mine = singles.iter().filter(|(_, single)| state.is_mine(&single.claim));
        let free = mine.map(|(address, _)| pool::alone(*address)).filter(|single| unused(state, id, *single));
        back.extend(free.map(|single| (id.clone(), single)));
    }
    let now = Instant::now();
    let mut seen_idle = Vec::new();
    for id in state.own.keys() {
        let Some(network) = state.view.networks.get(id) else { continue };
        let attached = state.used.contains_key(id);
        for subnet in &network.subnets {
            let (mut free, mut all) = room(state, id, subnet);
            for (index, block) in own_blocks(state, id, subnet).enumerate() {
                let of = state.own_block(id, block);
                if !unused(state, id, block) {
                    continue;
                }
                let since = of.and_then(|own| own.idle);
                seen_idle.push((id.clone(), block));
                let long = since.is_some_and(|since| now.duration_since(since) >= after);
                let usable = pool::usable(subnet, block);
                let spare = crate::own::free_in(state, id, subnet, block);
                let (left, of_all) = (free.saturating_sub(spare), all.saturating_sub(usable));
                let needed = attached && (index == 0 || left * AHEAD < of_all.max(1));
                if network.removing || (long && !needed) {
                    back.insert((id.clone(), block));
                    (free, all) = (left, of_all);
                }
            }
        }
    }
    for (id, block) in seen_idle {
        if let Some(own) = state.own.get_mut(&id).and_then(|own| own.get_mut(&block)) {
            own.idle.get_or_insert(now);
        }
    }
    back.into_iter().collect()
}

/// The networks and subnets in which few own addresses are free, while others can spare blocks.
fn short(state: &State) -> Vec<(Network, Subnet)> {
    let mut short = Vec::new();
    for id in state.used.keys() {
        let Some(network) = state.view.networks.get(id).filter(|network| !network.removing) else { continue };
        for subnet in &network.subnets {
            let (free, all) = room(state, id, subnet);
            let owned =
                state.counts.get(&(id.clone(), subnet.subnet.is_ipv6())).copied().unwrap_or(0) as u128;
            let total = pool::count(subnet);
            let plenty = total.saturating_sub(owned) > total / SCARCE;
            if all > 0 && free * AHEAD < all && plenty {
                short.push((network.clone(), *subnet));
            }
        }
    }
    short
}
