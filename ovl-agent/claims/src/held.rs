//! Records of the store that are not applied: those that cannot be understood, contradict others, or were deleted while
//! they are in use. The last valid value stays in force; the record is logged once and shown in the status, and checked
//! again when a record that it depends on changes.

use crate::keys::{self, Claim, Key, SingleClaim, SingleState};
use crate::pool;
use crate::record::{self, Read};
use crate::state::State;
use ipnetwork::IpNetwork;
use ovl_api::model::{Host, Network, overlap};
use ovl_api::wire::HeldRecord;
use ovl_store::Revision;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A record that is held back.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) why: String,
    /// There is no record any more.
    pub(crate) deleted: bool,
    /// The store was set back ([`crate::restored`]).
    pub(crate) restored: bool,
    /// What it says, when that may become valid.
    waiting: Option<Waiting>,
}

/// A record that is valid in itself.
#[derive(Debug, Clone)]
struct Waiting {
    value: Value,
    changed: Revision,
}

#[derive(Debug, Clone)]
enum Value {
    Network(Network),
    Host(Host),
    Block(Claim),
    Single(SingleClaim),
}

impl Held {
    /// A node's record, which may become valid again.
    pub(crate) fn host(why: String, host: Host, changed: Revision) -> Held {
        let waiting = Some(Waiting { value: Value::Host(host), changed });
        Held { why, deleted: false, restored: false, waiting }
    }
}

impl State {
    /// Takes what was read of a key, unless it must be held back.
    pub(crate) fn apply_read(&mut self, read: Read<'_>, changed: Revision) {
        self.apply_checked(read, changed);
        // Each turn applies one at least, so this ends.
        while std::mem::take(&mut self.recheck_held) && !self.held.is_empty() {
            let waiting: Vec<(String, Waiting)> = self
                .held
                .iter()
                .filter_map(|(key, held)| Some((key.clone(), held.waiting.clone()?)))
                .collect();
            for (key, Waiting { value, changed }) in waiting {
                if let Some(read) = Read::again(&key, value) {
                    self.apply_checked(read, changed);
                }
            }
        }
    }

    fn apply_checked(&mut self, read: Read<'_>, changed: Revision) {
        // A node whose record is deleted has its address until the deletion is applied.
        let is_deletion = matches!(read, Read::Host(_, None));
        if !is_deletion {
            self.note_vtep(&read, changed);
        }
        let outlasted = self.outlasts(&read, changed);
        let restored = outlasted.is_some();
        let why = match outlasted.map_or_else(|| self.check(&read), Err) {
            Ok(()) => {
                self.release(&read);
                if is_deletion {
                    self.note_vtep(&read, changed);
                }
                let node = match read {
                    Read::Host(name, _) | Read::Live(name, _) => Some(name),
                    _ => None,
                };
                self.apply_valid(read, changed);
                return node.into_iter().for_each(|name| self.check_sharers(name));
            }
            Err(why) => why,
        };
        self.note_lost(&read);
        let deleted = matches!(
            read,
            Read::Network(_, None) | Read::Host(_, None) | Read::Block(_, _, None) | Read::Single(_, _, None)
        );
        let (key, waiting) = match read {
            Read::Network(name, network) => (keys::network(name), network.map(Value::Network)),
            Read::Host(name, host) => (keys::host(name), host.map(Value::Host)),
            Read::Block(network, block, claim) => (keys::block(network, block), claim.map(Value::Block)),
            Read::Single(network, address, single) => {
                self.reserve_single(network, address, single.as_ref(), changed);
                (keys::single(network, address), single.map(Value::Single))
            }
            Read::Invalid(key, _) => {
                if let Key::Single(network, address) = key {
                    self.reserve_single(network, address, Some(&unknown_claim()), changed);
                }
                (key.text(), None)
            }
            Read::Live(..) | Read::Subnets | Read::History(_) | Read::Back(..) | Read::Other => return,
        };
        if self.held.get(&key).is_none_or(|held| held.why != why) {
            tracing::warn!(key, "store record held back, the last valid value stays in force: {why}");
        }
        let waiting = waiting.map(|value| Waiting { value, changed });
        self.held.insert(key, Held { why, deleted, restored, waiting });
    }

    /// Has what was deleted or spoiled of this host's part written again.
    fn note_lost(&mut self, read: &Read<'_>) {
        match read {
            Read::Host(name, None) | Read::Invalid(Key::Host(name), _) => {
                let own = *name == self.view.me;
                self.rejoin |= own;
                self.record_lost |= own && !self.replacing;
            }
            // The keeper puts it back.
            Read::Network(_, None) => self.marked = true,
            Read::Block(network, block, None) if self.own_block(network, *block).is_some() => {
                self.own_changed |= self.lost.insert(((*network).to_owned(), *block));
            }
            _ => {}
        }
    }

    /// Whether an own block is in use, and only this host may delete its key: it is not being given back, nor was this
    /// host declared gone. A host that registered anew may have been declared gone meanwhile, and another may have claimed the
    /// block, unless the watch showed that this host's record was deleted without that.
    fn needs(&self, network: &str, block: IpNetwork) -> bool {
        let entry = (network.to_owned(), block);
        self.me.is_some()
            && (self.suspended.is_none() || self.record_lost)
            && self.own_block(network, block).is_some()
            && !self.returning.contains(&entry)
            && !crate::claim::unused(self, network, block)
    }

    /// Networks of this host's containers whose records were deleted.
    pub(crate) fn lost_networks(&self) -> Vec<Network> {
        let deleted = self.held.iter().filter(|(_, held)| held.deleted);
        let network = |(key, _): (&String, &Held)| match Key::parse(key) {
            Key::Network(name) => self.network(name).cloned(),
            _ => None,
        };
        let part = |network: &Network| {
            self.own.contains_key(&network.id)
                || self.used.get(&network.id).is_some_and(|used| !used.is_empty())
        };
        deleted.filter_map(network).filter(part).collect()
    }

    /// Notes that a single address is that of a node that is not known, or not yet: it is not this node's to give.
    fn reserve_single(
        &mut self,
        network: &str,
        address: IpAddr,
        single: Option<&SingleClaim>,
        changed: Revision,
    ) {
        let can_be = self.known(network).is_ok_and(|known| record::check_single(known, address).is_ok());
        if let Some(single) = single.filter(|_| can_be)
            && self.single(network, address).is_none()
        {
            self.note_single(network, address, Some(single.clone()), changed);
        }
    }

    /// A record is as it should be, or gone.
    fn release(&mut self, read: &Read<'_>) {
        if self.held.is_empty() {
            return;
        }
        let key = match read {
            Read::Network(name, _) => keys::network(name),
            Read::Host(name, _) => keys::host(name),
            Read::Block(network, block, _) => keys::block(network, *block),
            Read::Single(network, address, _) => keys::single(network, *address),
            Read::Live(..) | Read::Subnets | Read::History(_) | Read::Back(..) => return,
            Read::Invalid(..) | Read::Other => return,
        };
        if self.held.remove(&key).is_some() {
            tracing::info!(key, "store record no longer held back");
        }
    }

    fn check(&self, read: &Read<'_>) -> Result<(), String> {
        match read {
            Read::Network(name, Some(network)) => self.check_network(name, network),
            Read::Network(name, None) => match self.ids.get(*name) {
                Some(id) if self.is_in_use(id) && !self.may_go(id) => {
                    Err(deleted("nodes have blocks in the network"))
                }
                _ => Ok(()),
            },
            Read::Host(name, Some(host)) => self.check_host(name, host),
            Read::Host(name, None) if self.owns_something(name) => {
                Err(deleted("the node has blocks (a node that is gone: `ovl-agent node rm`)"))
            }
            Read::Block(network, block, None) if self.needs(network, *block) => {
                Err(deleted("containers of this node have addresses in it"))
            }
            Read::Block(network, block, Some(claim)) => self.check_block(network, *block, claim),
            Read::Single(network, address, Some(single)) => {
                self.check_single(network, *address)?;
                self.check_claim((network, pool::alone(*address)), &single.claim)
            }
            Read::Invalid(_, why) => Err(why.clone()),
            _ => Ok(()),
        }
    }

    fn known(&self, id: &str) -> Result<&Network, String> {
        self.view.networks.get(id).ok_or_else(|| format!("there is no network with the ID {id}"))
    }

    /// Whether nodes have blocks in a network, or this node has containers in it. Its record goes after both.
    pub(crate) fn is_in_use(&self, id: &str) -> bool {
        self.parts.contains_key(id) || self.used.get(id).is_some_and(|used| !used.is_empty())
    }

    /// Whether a network was marked as being removed, and this node has no container in it. Its record is then deleted on the
    /// condition that the blocks' are, and an own deletion is known before the watch shows what came before it.
    fn may_go(&self, id: &str) -> bool {
        self.view.networks.get(id).is_some_and(|network| network.removing)
            && self.used.get(id).is_none_or(BTreeMap::is_empty)
    }

    /// Whether a node has blocks or single addresses. Its record goes after them, and is marked before.
    fn owns_something(&self, name: &str) -> bool {
        self.parts.values().any(|parts| parts.contains_key(name))
            && self.view.hosts.get(name).is_some_and(|host| !host.removed)
    }

    fn check_network(&self, name: &str, network: &Network) -> Result<(), String> {
        if network.name != name {
            return Err(format!("invalid name \"{}\": expected that of the key", network.name));
        }
        let others = || self.view.networks.values().filter(|other| other.name != name);
        if let Some(other) = others().find(|other| other.id == network.id) {
            return Err(format!("invalid id \"{}\": the network {} has it", network.id, other.name));
        }
        if let Some(before) = self.network(name)
            && self.is_in_use(&before.id)
        {
            if before.id != network.id {
                let why = "another network, with blocks, has this name";
                return Err(format!("invalid id \"{}\": {why} ({})", network.id, before.id));
            }
            if (before.vni, &before.subnets) != (network.vni, &network.subnets) {
                return Err("invalid vni or subnets: they do not change while nodes have blocks".to_owned());
            }
        }
        if let Some(other) = others().find(|other| other.vni == network.vni) {
            return Err(format!("invalid vni {}: the network {} has it", network.vni, other.name));
        }
        for subnet in network.subnets.iter().map(|subnet| subnet.subnet) {
            let overlaps = |other: &&Network| other.subnets.iter().any(|is| overlap(is.subnet, subnet));
            if let Some(other) = others().find(overlaps) {
                return Err(format!("invalid subnet \"{subnet}\": it overlaps the network {}", other.name));
            }
            if let Some(host) = self.view.hosts.values().find(|host| subnet.contains(host.vtep)) {
                return Err(format!("invalid subnet \"{subnet}\": the VTEP of node {} is in it", host.name));
            }
        }
        Ok(())
    }

    fn check_host(&self, name: &str, host: &Host) -> Result<(), String> {
        if host.name != name {
            return Err(format!("invalid name \"{}\": expected that of the key", host.name));
        }
        // What a removed one had is not used any more, and that it is removed must be known.
        if host.removed {
            return Ok(());
        }
        let vtep = host.vtep;
        if name != self.view.me && self.addresses.contains(&vtep) {
            return Err(format!("invalid vtep \"{vtep}\": it is an address of this node"));
        }
        let inside = |network: &&Network| network.subnets.iter().any(|subnet| subnet.subnet.contains(vtep));
        if let Some(network) = self.view.networks.values().find(inside) {
            return Err(format!("invalid vtep \"{vtep}\": it is in the network {}", network.name));
        }
        self.check_vtep(name, host)?;
        if let Some(before) = self.view.hosts.get(name)
            && before.id != host.id
            && self.owns_something(name)
            && name != self.view.me
        {
            return Err(format!("invalid id \"{}\": the node with blocks is {}", host.id, before.id));
        }
        Ok(())
    }

    fn check_block(&self, network: &str, block: IpNetwork, claim: &Claim) -> Result<(), String> {
        record::check_block(self.known(network)?, block)?;
        self.check_claim((network, block), claim)
    }

    fn check_single(&self, network: &str, address: IpAddr) -> Result<(), String> {
        let known = self.known(network)?;
        record::check_single(known, address)?;
        let Some(subnet) = known.subnet(address.is_ipv6()) else { return Ok(()) };
        let block = pool::block_of(subnet, address);
        match self.view.owners.get(&(network.to_owned(), block)) {
            Some(owner) if pool::own_address(subnet, block) == Some(address) => {
                Err(format!("{address} is node {owner}'s own, the first of its block"))
            }
            _ => Ok(()),
        }
    }

    /// Checks that a claim is that of a node as it is registered now.
    fn check_claim(&self, (network, range): (&str, IpNetwork), claim: &Claim) -> Result<(), String> {
        if self.is_mine(claim) {
            return Ok(());
        }
        // A node that registers anew, as its record was lost, writes its claims again a moment later.
        let owner = self.view.owners.get(&(network.to_owned(), range));
        if owner.is_some_and(|owner| *owner == claim.host && *owner != self.view.me) {
            return Ok(());
        }
        let Some(host) = self.view.hosts.get(&claim.host) else {
            return Err(format!("invalid host \"{}\": there is no such node", claim.host));
        };
        if (&host.id, host.epoch) != (&claim.id, claim.epoch) {
            return Err(format!(
                "invalid id \"{}\" or epoch {}: node {} is {}, epoch {}",
                claim.id, claim.epoch, host.name, host.id, host.epoch
            ));
        }
        Ok(())
    }

    /// The records that are held back, for people.
    pub(crate) fn held_records(&self) -> Vec<HeldRecord> {
        let record = |(key, held): (&String, &Held)| HeldRecord { key: key.clone(), why: held.why.clone() };
        self.held.iter().map(record).chain(self.taken_blocks()).collect()
    }

    /// Takes the addresses of this host, which are no other node's VTEP.
    pub(crate) fn set_addresses(&mut self, addresses: std::collections::BTreeSet<IpAddr>) {
        self.recheck_held |= self.addresses != addresses;
        self.addresses = addresses;
        self.apply_read(Read::Other, 0);
    }
}

impl<'a> Read<'a> {
    /// What a key that was held back says.
    fn again(key: &'a str, value: Value) -> Option<Read<'a>> {
        Some(match (Key::parse(key), value) {
            (Key::Network(name), Value::Network(network)) => Read::Network(name, Some(network)),
            (Key::Host(name), Value::Host(host)) => Read::Host(name, Some(host)),
            (Key::Block(network, block), Value::Block(claim)) => Read::Block(network, block, Some(claim)),
            (Key::Single(network, address), Value::Single(single)) => {
                Read::Single(network, address, Some(single))
            }
            _ => return None,
        })
    }
}

/// A claim that cannot be understood, as of a newer release.
fn unknown_claim() -> SingleClaim {
    let claim = Claim { host: "unknown".to_owned(), id: String::new(), epoch: 0 };
    SingleClaim { claim, state: SingleState::Granted }
}

fn deleted(why: &str) -> String {
    format!("the record was deleted, but {why}")
}
