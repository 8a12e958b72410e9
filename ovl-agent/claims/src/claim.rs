//! Claiming blocks and giving them back.
//!
//! When the store does not say what became of a claim, it may still be done, even later. Nothing is assumed then: a block
//! that became this host's shows up in the watch or the next snapshot, and is used, or given back as idle. A block whose
//! giving back is not known to have failed is not used again: the giving back is repeated until the store says what is.

use crate::inner::{Fenced, Inner};
use crate::keys;
use crate::own::{own_blocks, room};
use crate::pool;
use crate::random;
use crate::state::{Me, State};
use ipnetwork::IpNetwork;
use ovl_api::model::{Network, Subnet, is_single};
use ovl_api::wire::{Problem, ProblemKind};
use ovl_store::{Compare, KeyValue, Op, Revision, Txn};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

/// A free block is chosen among this many: hosts that claim at the same time rarely choose the same.
const CHOICE: usize = 8;
/// As many blocks may be lost to others before a claim is given up.
const TRIES: usize = 64;

/// What became of a claim on one block.
enum Claimed {
    Yes,
    /// Another has it, or cannot be had.
    No,
}

impl Inner {
    /// Claims a block of the network's subnet of this family, or waits for a claim that is under way. True when an own
    /// address is free then; false when no block is.
    pub(crate) async fn claim_for(&self, network: &Network, v6: bool) -> Result<bool, Problem> {
        let Some(subnet) = network.subnet(v6) else { return Ok(false) };
        let queue = {
            let mut claiming = crate::inner::lock(&self.claiming);
            Arc::clone(claiming.entry((network.id.clone(), v6)).or_default())
        };
        let asked = Instant::now();
        let mut last = queue.lock().await;
        if self.look(|state| room(state, &network.id, subnet).0 > 0) {
            return Ok(true);
        }
        // Who waited while a claim failed need not try the same.
        if let Some((when, problem)) = &*last
            && *when >= asked
        {
            return Err(problem.clone());
        }
        let claimed = self.claim_any(network, subnet).await;
        *last = claimed.as_ref().err().map(|problem| (Instant::now(), problem.clone()));
        claimed
    }

    /// Claims one block ahead of need. Nothing is done when somebody claims already.
    pub(crate) async fn claim_ahead(&self, network: &Network, subnet: &Subnet) -> Result<(), Problem> {
        let queue = {
            let mut claiming = crate::inner::lock(&self.claiming);
            Arc::clone(claiming.entry((network.id.clone(), subnet.subnet.is_ipv6())).or_default())
        };
        let Ok(_waits) = queue.try_lock() else { return Ok(()) };
        self.claim_any(network, subnet).await.map(|_| ())
    }

    /// Claims any free block; false when there is none.
    async fn claim_any(&self, network: &Network, subnet: &Subnet) -> Result<bool, Problem> {
        let mut avoid = HashSet::new();
        for _ in 0..TRIES {
            let chosen = self.look(|state| {
                // Behind the own first block, whose first address is the host's own: it should stay.
                let first = own_blocks(state, &network.id, subnet).next();
                let free = |from| pool::free_blocks(&state.view, &network.id, subnet, from, &avoid, CHOICE);
                let mut free =
                    Some(free(first)).filter(|free| !free.is_empty()).unwrap_or_else(|| free(None));
                (!free.is_empty()).then(|| free.swap_remove(random::below(free.len())))
            });
            let Some(block) = chosen else { return Ok(false) };
            match self.claim_block(&network.id, subnet, block).await? {
                Claimed::Yes => return Ok(true),
                Claimed::No => avoid.insert(block),
            };
        }
        let message =
            format!("network {}: every block that was free went to other hosts; try again", network.name);
        Err(Problem::new(ProblemKind::NotReady, message))
    }

    /// Claims this block when nobody has it. True when it is this host's now.
    pub(crate) async fn claim_this(
        &self,
        id: &str,
        subnet: &Subnet,
        block: IpNetwork,
    ) -> Result<bool, Problem> {
        Ok(matches!(self.claim_block(id, subnet, block).await?, Claimed::Yes))
    }

    async fn claim_block(&self, id: &str, subnet: &Subnet, block: IpNetwork) -> Result<Claimed, Problem> {
        let me = self.me()?;
        let (network, when_network) = self.network_condition(id)?;
        let key = keys::block(id, block);
        let (from, to) = keys::singles_in(id, block);
        let mut when = vec![Compare::Absent(key.clone()), when_network];
        // The host's own address must not be somebody's single one.
        when.extend(pool::own_address(subnet, block).map(|own| Compare::Absent(keys::single(id, own))));
        let value = keys::json(&claim(&me));
        let read = |key: &str| {
            let (from, to) = keys::alone(key);
            Op::Get(from, to)
        };
        let txn = Txn {
            when,
            then: vec![Op::Put(key.clone(), value.clone(), None), Op::Get(from.clone(), to.clone())],
            otherwise: vec![read(&network), read(&key), Op::Get(from, to)],
        };
        match self.commit_fenced(&me, txn).await? {
            Fenced::Held(done) => {
                let singles = done.got.first().map_or(&[][..], Vec::as_slice);
                self.take_block(&key, &value, done.revision, done.revision, singles);
                tracing::info!("block {block} of network {id} was claimed");
                Ok(Claimed::Yes)
            }
            Fenced::Not(done) => {
                self.learn_read(&network, done.got.first().and_then(|got| got.first()), done.revision);
                let singles = done.got.get(2).map_or(&[][..], Vec::as_slice);
                match done.got.get(1).and_then(|got| got.first()) {
                    Some(entry) if entry.value == value => {
                        // An earlier claim of this host of which the store had not told.
                        self.take_block(&key, &value, done.revision, entry.changed, singles);
                        Ok(Claimed::Yes)
                    }
                    entry => {
                        self.learn_read(&key, entry, done.revision);
                        // One of them may be what is in the way.
                        for single in singles {
                            self.learn_read(&single.key, Some(single), done.revision);
                        }
                        Ok(Claimed::No)
                    }
                }
            }
        }
    }

    /// Takes a block that became this host's into the state, after the single addresses that others have in it.
    fn take_block(&self, key: &str, value: &[u8], at: Revision, changed: Revision, singles: &[KeyValue]) {
        self.update(|state| {
            for single in singles {
                state.learn(&single.key, Some(&single.value), at, single.changed);
            }
            state.learn(key, Some(value), at, changed);
        });
        self.wake.settler.notify_one();
    }

    /// The key of a network's record, and the condition that it is as the view has it: nothing is claimed in a network
    /// that is being removed.
    pub(crate) fn network_condition(&self, id: &str) -> Result<(String, Compare), Problem> {
        self.look(|state| {
            let network = state.view.networks.get(id);
            let network = network.ok_or_else(|| {
                Problem::new(ProblemKind::NotFound, format!("the network with the ID {id} was removed"))
            })?;
            if network.removing {
                let message = format!("the overlay network {} is being removed", network.name);
                return Err(Problem::new(ProblemKind::InUse, message));
            }
            let key = keys::network(&network.name);
            let changed = state.network_changed.get(id).copied().unwrap_or(0);
            Ok((key.clone(), Compare::Unchanged(key, changed)))
        })
    }

    /// Gives a block or a single address back, when nothing uses it. What is not known to be gone is tried again by the
    /// next call.
    pub(crate) async fn give_back(&self, id: &str, block: IpNetwork) -> Result<(), Problem> {
        let me = self.me()?;
        let single = is_single(block);
        let key = if single { keys::single(id, block.ip()) } else { keys::block(id, block) };
        let changed = self.update(|state| {
            let changed = if single {
                state.single(id, block.ip()).filter(|single| state.is_mine(&single.claim)).map(|s| s.changed)
            } else {
                state.own_block(id, block).map(|own| own.changed)
            };
            let is_free = changed.is_some() && unused(state, id, block);
            let entry = (id.to_owned(), block);
            if !is_free {
                // Lost meanwhile: there is nothing to give back. In use it cannot be once it is being given back.
                if changed.is_none() {
                    state.returning.remove(&entry);
                }
                return None;
            }
            // From here on nothing of it is given, and a restart does not know of it.
            state.own_changed |= state.returning.insert(entry);
            changed
        });
        let Some(changed) = changed else { return Ok(()) };
        let (from, to) = keys::alone(&key);
        let txn = Txn {
            when: vec![Compare::Unchanged(key.clone(), changed)],
            then: vec![Op::Delete(key.clone())],
            otherwise: vec![Op::Get(from, to)],
        };
        match self.commit_fenced(&me, txn).await? {
            Fenced::Held(done) => {
                self.learn(&key, None, done.revision);
                tracing::debug!("{block} of network {id} was given back");
            }
            // Gone, or changed by this host's own earlier claim: the next try has the new revision.
            Fenced::Not(done) => {
                self.learn_read(&key, done.got.first().and_then(|got| got.first()), done.revision);
            }
        }
        Ok(())
    }
}

/// The value of this host's claims.
pub(crate) fn claim(me: &Me) -> keys::Claim {
    keys::Claim { host: me.host.name.clone(), id: me.host.id.clone(), epoch: me.host.epoch }
}

/// Whether no lease and no attachment under way is in a block, or has a single address.
pub(crate) fn unused(state: &State, id: &str, block: IpNetwork) -> bool {
    let inside = block.network()..=block.broadcast();
    let leased = |address: &std::net::IpAddr| {
        // A lease on a single address of its own does not need the block.
        let single = state.single(id, *address).is_some_and(|single| state.is_mine(&single.claim));
        block == pool::alone(*address) || !single
    };
    let used = state.used.get(id).is_some_and(|used| used.range(inside).any(|(address, _)| leased(address)));
    let asking = state.asking.keys().any(|(of, address)| of == id && block.contains(*address));
    !used && !asking
}
