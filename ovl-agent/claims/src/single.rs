//! Single addresses: of blocks that nobody owns, or with the consent of the block's owner.
//!
//! The owner of a block sees the key "asked" in the watch, which already keeps it from giving the address away, and then
//! says yes ("granted") or no (the key is removed). Both are transactions on the key as it was asked, so that a withdrawal
//! and an answer cannot both succeed.

use crate::claim::claim;
use crate::inner::{Fenced, Inner, store_problem};
use crate::keys::{self, SingleClaim, SingleState};
use crate::pool;
use crate::random;
use crate::state::State;
use ovl_api::model::{Network, Subnet};
use ovl_api::wire::{EndpointDetail, Problem, ProblemKind};
use ovl_store::{Compare, KeyValue, Op, Txn};
use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// This many addresses of others are asked for before an attachment is told that the network is full.
const CANDIDATES: usize = 24;
/// Larger blocks are not searched through: some of their addresses are tried.
const SEARCHED: u128 = 1024;
/// How often is looked again when a block is just being given back.
const PAUSE: Duration = Duration::from_millis(20);

/// Keeps a single address from being given back while an attachment is about to use it.
pub(crate) struct Asking<'a> {
    inner: &'a Inner,
    of: (String, IpAddr),
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.inner.update(|state| {
            if let Some(count) = state.asking.get_mut(&self.of) {
                *count -= 1;
                if *count == 0 {
                    state.asking.remove(&self.of);
                }
            }
        });
        self.inner.wake.keeper.notify_one();
    }
}

/// How a single address stands, as seen by who wants it.
enum Standing {
    /// It can be given.
    Had,
    /// Asked for by this host.
    Waiting,
    /// It, or its block, is just being given back.
    Returning,
    /// Its block has an owner, who is alive.
    Ask,
    /// Nobody owns the block.
    Free,
}

impl Inner {
    /// Notes that an attachment is about to use an address.
    pub(crate) fn asking(&self, id: &str, address: IpAddr) -> Asking<'_> {
        let of = (id.to_owned(), address);
        self.update(|state| *state.asking.entry(of.clone()).or_default() += 1);
        Asking { inner: self, of }
    }

    /// Makes an address this host's, by itself or with its block, when that can be done before the deadline.
    pub(crate) async fn claim_single(
        &self,
        network: &Network,
        address: IpAddr,
        deadline: Instant,
    ) -> Result<(), Problem> {
        let key = keys::single(&network.id, address);
        loop {
            let standing = self.look(|state| standing(state, network, address))?;
            match standing {
                Standing::Had => return Ok(()),
                Standing::Returning if Instant::now() < deadline => {
                    self.wake.keeper.notify_one();
                    tokio::time::sleep(PAUSE).await;
                }
                Standing::Returning => return Err(contended(address)),
                // Each try that does not succeed taught the state why; should that not help, others are quicker each time.
                Standing::Free | Standing::Ask if Instant::now() >= deadline => {
                    return Err(contended(address));
                }
                Standing::Free => self.put_single(network, address, &key, SingleState::Granted).await?,
                Standing::Ask => self.put_single(network, address, &key, SingleState::Asked).await?,
                Standing::Waiting => return self.await_consent(network, address, &key, deadline).await,
            }
        }
    }

    /// Claims a single address, or asks for it. Whether that could be done shows in the state afterwards.
    async fn put_single(
        &self,
        network: &Network,
        address: IpAddr,
        key: &str,
        as_state: SingleState,
    ) -> Result<(), Problem> {
        let me = self.me()?;
        let subnet = network.subnet(address.is_ipv6()).ok_or_else(|| lost(network))?;
        let block = keys::block(&network.id, pool::block_of(subnet, address));
        let (record, when_network) = self.network_condition(&network.id)?;
        let covering = match as_state {
            SingleState::Granted => Compare::Absent(block.clone()),
            SingleState::Asked => Compare::Present(block.clone()),
        };
        let read = |key: &str| {
            let (from, to) = keys::alone(key);
            Op::Get(from, to)
        };
        let value = keys::json(&SingleClaim { claim: claim(&me), state: as_state });
        let txn = Txn {
            when: vec![Compare::Absent(key.to_owned()), covering, when_network],
            then: vec![Op::Put(key.to_owned(), value.clone(), None)],
            otherwise: vec![read(&record), read(key), read(&block)],
        };
        match self.commit_fenced(&me, txn).await? {
            Fenced::Held(done) => self.learn(key, Some(&value), done.revision),
            Fenced::Not(done) => {
                for (key, got) in [&record, &key.to_owned(), &block].into_iter().zip(&done.got) {
                    self.learn_read(key, got.first(), done.revision);
                }
            }
        }
        Ok(())
    }

    /// Waits for the owner's answer, and withdraws when none comes.
    async fn await_consent(
        &self,
        network: &Network,
        address: IpAddr,
        key: &str,
        deadline: Instant,
    ) -> Result<(), Problem> {
        let answered = self.until(deadline, |state| match state.single(&network.id, address) {
            Some(single) if !state.is_mine(&single.claim) => Some(Err(())),
            Some(single) => single.granted.then_some(Ok(single.changed)),
            None => Some(Err(())),
        });
        let owner =
            self.look(|state| owner(state, network, address)).unwrap_or_else(|| "another host".to_owned());
        let denied = || {
            let message = format!("--ip {address}: host {owner} does not give it: it is in use there");
            taken(message)
        };
        match answered.await {
            Some(Ok(_)) => return Ok(()),
            Some(Err(())) => return Err(denied()),
            None => {}
        }
        let Some(asked) = self.look(|state| Some(state.single(&network.id, address)?.changed)) else {
            return Err(denied());
        };
        let (from, to) = keys::alone(key);
        let txn = Txn {
            when: vec![Compare::Unchanged(key.to_owned(), asked)],
            then: vec![Op::Delete(key.to_owned())],
            otherwise: vec![Op::Get(from, to)],
        };
        // When the store does not answer, the keeper withdraws later: nothing here uses the address.
        let done = self.commit(txn).await.map_err(|error| store_problem(&error))?;
        if done.held {
            self.learn(key, None, done.revision);
            return Err(taken(format!(
                "--ip {address} is of a block of host {owner}, which did not answer in time; try again, and when it is gone \
                 for good: `ovl-agent node rm {owner}`"
            )));
        }
        let left = done.got.first().and_then(|got| got.first());
        self.learn_read(key, left, done.revision);
        let granted = self.look(|state| {
            state
                .single(&network.id, address)
                .is_some_and(|single| single.granted && state.is_mine(&single.claim))
        });
        if granted { Ok(()) } else { Err(denied()) }
    }

    /// Gets a single address from another host when no block is left.
    pub(crate) async fn borrow(&self, network: &Network, v6: bool) -> Result<(IpAddr, Asking<'_>), Problem> {
        let subnet = network.subnet(v6).ok_or_else(|| lost(network))?;
        let published = self.conf.kv.snapshot(&keys::endpoints(&network.id)).await;
        self.note(published.as_ref().err());
        let published = published.map_err(|error| store_problem(&error))?;
        let read = |entry: &KeyValue| serde_json::from_slice::<EndpointDetail>(&entry.value).ok();
        let published: HashSet<IpAddr> =
            published.entries.iter().filter_map(read).flat_map(|endpoint| endpoint.addresses).collect();
        let candidates = self.look(|state| candidates(state, network, subnet, &published));
        let deadline = Instant::now() + self.conf.timing.consent * 2;
        for address in candidates {
            let guard = self.asking(&network.id, address);
            let until = deadline.min(Instant::now() + self.conf.timing.consent);
            match self.claim_single(network, address, until).await {
                Ok(()) => return Ok((address, guard)),
                Err(problem) if problem.kind == ProblemKind::Taken => {}
                Err(problem) => return Err(problem),
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(self.look(|state| crate::own::full(state, network, subnet)))
    }

    /// Answers one who asks for a single address in an own block.
    pub(crate) async fn answer(&self, id: &str, address: IpAddr) -> Result<(), Problem> {
        let me = self.me()?;
        let key = keys::single(id, address);
        let asked = self.update(|state| {
            let single = state.single(id, address).filter(|single| !single.granted)?.clone();
            if state.is_mine(&single.claim) || !state.in_own_block(id, address) {
                return None;
            }
            // The file says that it is lent before anybody hears of it.
            state.own_changed = true;
            Some((single, lendable(state, id, address)))
        });
        let Some((single, yes)) = asked else { return Ok(()) };
        let value = keys::json(&SingleClaim { claim: single.claim.clone(), state: SingleState::Granted });
        let op = if yes { Op::Put(key.clone(), value.clone(), None) } else { Op::Delete(key.clone()) };
        let (from, to) = keys::alone(&key);
        let txn = Txn {
            when: vec![Compare::Unchanged(key.clone(), single.changed)],
            then: vec![op],
            otherwise: vec![Op::Get(from, to)],
        };
        match self.commit_fenced(&me, txn).await? {
            Fenced::Held(done) => {
                self.learn(&key, yes.then_some(value.as_slice()), done.revision);
                let answer = if yes { "lent" } else { "not lent: it is in use" };
                tracing::info!(
                    "{address} of network {id}, which host {} asked for, was {answer}",
                    single.claim.host
                );
            }
            Fenced::Not(done) => {
                self.learn_read(&key, done.got.first().and_then(|got| got.first()), done.revision);
            }
        }
        Ok(())
    }
}

/// Whether an address in an own block can be lent.
fn lendable(state: &State, id: &str, address: IpAddr) -> bool {
    let Some(subnet) = state.subnet_of(id, address) else { return false };
    let block = pool::block_of(&subnet, address);
    let own = pool::own_address(&subnet, block) == Some(address);
    let used = state.used.get(id).is_some_and(|used| used.contains_key(&address));
    !own && !used && pool::forbidden(&subnet, address).is_none()
}

fn standing(state: &State, network: &Network, address: IpAddr) -> Result<Standing, Problem> {
    let id = &network.id;
    let subnet = network.subnet(address.is_ipv6()).ok_or_else(|| lost(network))?;
    let block = pool::block_of(subnet, address);
    let returning = |block| state.returning.contains(&(id.clone(), block));
    if let Some(single) = state.single(id, address) {
        if !state.is_mine(&single.claim) {
            let message = format!("--ip {address}: a container on host {} has it", single.claim.host);
            return Err(taken(message));
        }
        return Ok(match single.granted {
            _ if returning(pool::alone(address)) => Standing::Returning,
            true => Standing::Had,
            false => Standing::Waiting,
        });
    }
    if state.own_block(id, block).is_some() {
        return Ok(if returning(block) { Standing::Returning } else { Standing::Had });
    }
    let Some(owner) = state.view.owners.get(&(id.clone(), block)) else { return Ok(Standing::Free) };
    if pool::own_address(subnet, block) == Some(address) {
        let message =
            format!("--ip {address} is host {owner}'s own address: it is the first of its block {block}");
        return Err(taken(message));
    }
    if !state.live.contains(owner) {
        return Err(taken(format!(
            "--ip {address} is of the block {block} of host {owner}, which does not answer; when it is gone for good: \
             `ovl-agent node rm {owner}`"
        )));
    }
    Ok(Standing::Ask)
}

fn owner(state: &State, network: &Network, address: IpAddr) -> Option<String> {
    let block = pool::block_of(network.subnet(address.is_ipv6())?, address);
    state.view.owners.get(&(network.id.clone(), block)).cloned()
}

fn taken(message: String) -> Problem {
    Problem { kind: ProblemKind::Taken, field: Some("--ip".to_owned()), message }
}

fn contended(address: IpAddr) -> Problem {
    let message = format!("--ip {address} is just being claimed or given back; try again");
    Problem::new(ProblemKind::NotReady, message)
}

fn lost(network: &Network) -> Problem {
    Problem::new(ProblemKind::Internal, format!("the network {} lost a subnet", network.name))
}

/// Addresses that could be had of hosts that are alive, or of blocks that nobody can claim because their first address is
/// somebody's, in an order by chance.
fn candidates(state: &State, network: &Network, subnet: &Subnet, published: &HashSet<IpAddr>) -> Vec<IpAddr> {
    let id = &network.id;
    let v6 = subnet.subnet.is_ipv6();
    let single = |address: &IpAddr| state.single(id, *address).is_some();
    let theirs = state.view.blocks(id).filter(|(block, owner)| {
        block.is_ipv6() == v6
            && block.prefix() == subnet.block
            && state.live.contains(*owner)
            && *owner != state.view.me
    });
    let mut blocks: Vec<_> = theirs.map(|(block, _)| *block).collect();
    let singles = state.singles.get(id).into_iter().flat_map(|singles| singles.keys());
    let broken =
        singles.filter(|address| address.is_ipv6() == v6).map(|address| pool::block_of(subnet, *address));
    let broken: HashSet<_> =
        broken.filter(|block| !state.view.owners.contains_key(&(id.clone(), *block))).collect();
    blocks.extend(broken);
    random::shuffle(&mut blocks);
    let mut found = Vec::new();
    for block in blocks {
        let (first, last) = (pool::number(block.network()), pool::number(block.broadcast()));
        let size = last - first + 1;
        let mut tried: Vec<u128> = if size <= SEARCHED {
            (0..size).collect()
        } else {
            (0..CANDIDATES).map(|_| random::below(usize::MAX) as u128 % size).collect()
        };
        random::shuffle(&mut tried);
        let addresses = tried.into_iter().map(|offset| pool::address(block.network(), first + offset));
        found.extend(addresses.filter(|address| {
            pool::forbidden(subnet, *address).is_none()
                && pool::own_address(subnet, block) != Some(*address)
                && !single(address)
                && !published.contains(address)
        }));
        if found.len() >= CANDIDATES {
            found.truncate(CANDIDATES);
            break;
        }
    }
    random::shuffle(&mut found);
    found
}
