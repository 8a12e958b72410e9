//! What the node knows: the view, what of it is this host's own, its leases and endpoints; and how a change of a key
//! changes that, in O(log n).
//!
//! The watch's changes and the outcomes of own transactions go the same way ([`State::apply`]). An own transaction is
//! ahead of the watch: its keys are noted in `touched` with its revision, and what the watch, or a snapshot, tells of them
//! from before is passed over.

use crate::files::Local;
use crate::held::Held;
use crate::keys::{Claim, SingleClaim, SingleState};
use crate::pool;
use crate::record::Read;
use crate::recover::FoundLink;
use ipnetwork::IpNetwork;
use ovl_api::model::{Delta, Endpoint, Host, Network, Subnet, View, is_single};
use ovl_store::{Change, Revision};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// This host's record in the store, and the revision of its last change: the condition of every claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Me {
    pub(crate) host: Host,
    pub(crate) changed: Revision,
}

/// An own block.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    /// When its key was last changed.
    pub(crate) changed: Revision,
    /// The other hosts may not know of it yet.
    pub(crate) fresh: bool,
    /// Since when it has had no lease, as far as somebody looked.
    pub(crate) idle: Option<Instant>,
}

/// A single address that is some host's, or asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Single {
    pub(crate) claim: Claim,
    pub(crate) granted: bool,
    pub(crate) changed: Revision,
    /// The other hosts may not know of it yet.
    pub(crate) fresh: bool,
}

/// What changed since the kernel's side looked.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) delta: Delta,
    pub(crate) veths: BTreeSet<String>,
}

/// Since when a link has not been there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Missing {
    /// The time that was seen to go by without it.
    pub(crate) time: Duration,
    /// The last look.
    pub(crate) at: Instant,
}

/// All that the node knows.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) view: View,
    pub(crate) revision: Revision,
    pub(crate) cluster: Option<u64>,
    /// When `c/subnets` was last changed (0: never).
    pub(crate) subnets_changed: Revision,
    /// The store was read since the start.
    pub(crate) synced: bool,
    /// The store's session is on: the view follows it.
    pub(crate) following: bool,
    pub(crate) error: Option<String>,
    /// Since when there is an error.
    pub(crate) error_since: Option<Instant>,
    /// When the store last did not answer, with no answer since.
    pub(crate) unanswered: Option<Instant>,
    pub(crate) held_back: Option<String>,
    /// None: not registered, or fenced; nothing is own then.
    pub(crate) me: Option<Me>,
    /// Addresses may not be given although blocks are known, and why.
    pub(crate) suspended: Option<String>,
    /// Why this node may not use its name or its identity.
    pub(crate) refused: Option<String>,
    /// The links of containers on this host at the start; and those that were not looked at yet.
    pub(crate) links: Vec<FoundLink>,
    pub(crate) found: Vec<FoundLink>,
    /// It takes its new name, and has not read the store under that yet.
    pub(crate) renaming: bool,
    /// Why this node cannot take its new name.
    pub(crate) rename_refused: Option<String>,
    pub(crate) ids: HashMap<String, String>,
    pub(crate) network_changed: HashMap<String, Revision>,
    pub(crate) live: HashSet<String>,
    pub(crate) own: HashMap<String, BTreeMap<IpNetwork, Own>>,
    pub(crate) singles: HashMap<String, BTreeMap<IpAddr, Single>>,
    pub(crate) touched: HashMap<String, Revision>,
    /// How many blocks of a network are owned, by family (IPv6: true).
    pub(crate) counts: HashMap<(String, bool), usize>,
    /// How many blocks and singles a host has in a network.
    pub(crate) parts: HashMap<String, HashMap<String, usize>>,
    /// Leased addresses, and the link of the endpoint that has them.
    pub(crate) used: HashMap<String, BTreeMap<IpAddr, String>>,
    pub(crate) locals: BTreeMap<String, Local>,
    /// Own blocks and singles that are being given back: the store's answer may be missing, so they are not used again.
    pub(crate) returning: HashSet<(String, IpNetwork)>,
    /// Singles that an attachment is about to use.
    pub(crate) asking: HashMap<(String, IpAddr), usize>,
    /// Attachments under way, by network name, container and interface: the number of the last one.
    pub(crate) attaching: HashMap<(String, String, String), u64>,
    /// The last number.
    pub(crate) tickets: u64,
    /// Attachments whose link was not there at the last look.
    pub(crate) missing: HashMap<(String, u64), Missing>,
    pub(crate) dirty: Dirty,
    /// What this host owns changed, or what it lent: `own.json` is to be written.
    pub(crate) own_changed: bool,
    /// A network was marked as being removed: what this host has in it is to be given back, or the mark taken off, now.
    pub(crate) marked: bool,
    /// Something that `view.json` holds changed.
    pub(crate) view_changed: bool,
    /// Endpoints that the store is to be told of: (network ID, container, interface).
    pub(crate) publish: BTreeSet<(String, String, String)>,
    /// Singles in own blocks that others ask for.
    pub(crate) asked: BTreeSet<(String, IpAddr)>,
    /// Networks in which this host has a part and whose blocks changed: the first and the last revision at which they did
    /// that was not acknowledged.
    pub(crate) acks: BTreeMap<String, (Revision, Revision)>,
    /// Networks that are gone: their leases are to be forgotten.
    pub(crate) gone: BTreeSet<String>,
    /// Records that are not in force, by key.
    pub(crate) held: BTreeMap<String, Held>,
    /// Something that decides whether they are valid changed.
    pub(crate) recheck_held: bool,
    /// Own blocks whose key was deleted while they are in use: they are claimed again, and nothing is given of them
    /// until then.
    pub(crate) lost: BTreeSet<(String, IpNetwork)>,
    /// The VTEPs that the nodes' records say.
    pub(crate) vteps: crate::vteps::Vteps,
    /// This node's VTEP as it registered with it last, and since when it has it; none after it was declared gone.
    pub(crate) own_vtep: Option<(IpAddr, Revision)>,
    /// This host's record is not as this host wrote it: it is to be written again.
    pub(crate) rejoin: bool,
    /// The watch reported that this host's record was deleted or spoiled without a mark of removal; until everything was read.
    pub(crate) record_lost: bool,
    /// The store's history, and whether it was set back.
    pub(crate) past: crate::restored::Past,
    /// A snapshot is being applied: what it lacks was deleted at an unknown time.
    pub(crate) replacing: bool,
    /// The addresses of this host, the VTEP among them.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

impl State {
    /// Whether a claim is this host's, of its present epoch.
    pub(crate) fn is_mine(&self, claim: &Claim) -> bool {
        self.me.as_ref().is_some_and(|me| {
            claim.host == me.host.name && claim.id == me.host.id && claim.epoch == me.host.epoch
        })
    }

    /// Whether those can be answered who ask for single addresses.
    pub(crate) fn can_answer(&self) -> bool {
        self.following && self.suspended.is_none() && self.refused.is_none()
    }

    /// The network of a name.
    pub(crate) fn network(&self, name: &str) -> Option<&Network> {
        self.view.networks.get(self.ids.get(name)?)
    }

    /// The subnet of a network that an address lies in.
    pub(crate) fn subnet_of(&self, network: &str, address: IpAddr) -> Option<Subnet> {
        let subnet = self.view.networks.get(network)?.subnet(address.is_ipv6())?;
        subnet.subnet.contains(address).then_some(*subnet)
    }

    /// Whether an address is this host's: a single granted to it, or in a block of its own and not lent.
    pub(crate) fn owns(&self, network: &str, address: IpAddr) -> bool {
        match self.single(network, address) {
            Some(single) if single.granted => self.is_mine(&single.claim),
            _ => self.in_own_block(network, address),
        }
    }

    /// Takes a change that the watch told.
    pub(crate) fn follow(&mut self, change: &Change) {
        if self.touched.get(&change.key).is_none_or(|touched| *touched < change.revision) {
            let read = Read::of(&change.key, change.value.as_deref()).made_at(change.created);
            self.apply_read(read, change.revision);
        }
    }

    /// Takes what an own transaction put, removed or read at a revision.
    pub(crate) fn learn(&mut self, key: &str, value: Option<&[u8]>, at: Revision, changed: Revision) {
        if at > self.revision && self.touched.get(key).is_none_or(|touched| *touched < at) {
            self.touched.insert(key.to_owned(), at);
            self.apply(key, value, changed);
        }
    }

    /// The view is at this revision now.
    pub(crate) fn reached(&mut self, revision: Revision) {
        self.revision = revision;
        self.touched.retain(|_, touched| *touched > revision);
        self.end_restored();
    }

    /// Takes a key's new value; None: it was removed.
    pub(crate) fn apply(&mut self, key: &str, value: Option<&[u8]>, changed: Revision) {
        self.apply_read(Read::of(key, value), changed);
    }

    /// The same, of what was read already and can be applied.
    pub(crate) fn apply_valid(&mut self, read: Read<'_>, changed: Revision) {
        match read {
            Read::Network(name, network) => self.apply_network(name, network, changed),
            Read::Host(name, host) => self.apply_host(name, host, changed),
            Read::Live(name, true) => {
                self.live.insert(name.to_owned());
            }
            Read::Live(name, false) => {
                self.live.remove(name);
            }
            Read::Block(network, block, claim) => self.apply_block(network, block, claim, changed),
            Read::Single(network, address, single) => self.apply_single(network, address, single, changed),
            Read::Subnets => self.subnets_changed = changed,
            Read::History(history) => self.note_history(history.as_ref()),
            Read::Back(name, id) => self.note_back(name, id),
            // The last value that was understood stays in force.
            Read::Invalid(..) | Read::Other => {}
        }
    }

    fn apply_network(&mut self, name: &str, network: Option<Network>, changed: Revision) {
        self.recheck_held = true;
        let before = self.ids.get(name).cloned();
        if let Some(id) = before.filter(|id| network.as_ref().is_none_or(|network| network.id != *id)) {
            self.view.networks.remove(&id);
            self.network_changed.remove(&id);
            self.ids.remove(name);
            self.gone.insert(id.clone());
            self.recheck_network(&id);
            self.dirty.delta.networks.insert(id);
            self.view_changed = true;
        }
        let Some(network) = network else { return };
        self.network_changed.insert(network.id.clone(), changed);
        self.ids.insert(name.to_owned(), network.id.clone());
        self.gone.remove(&network.id);
        let id = network.id.clone();
        if self.view.networks.get(&id) != Some(&network) {
            self.marked |= network.removing;
            self.view.networks.insert(id.clone(), network);
            self.recheck_network(&id);
            self.dirty.delta.networks.insert(id);
            self.view_changed = true;
        }
    }

    fn apply_host(&mut self, name: &str, host: Option<Host>, changed: Revision) {
        if name == self.view.me
            && let Some(me) = &mut self.me
        {
            match &host {
                Some(host) if host.id == me.host.id && host.epoch == me.host.epoch && !host.removed => {
                    self.rejoin |= *host != me.host;
                    *me = Me { host: host.clone(), changed };
                }
                _ => self.fenced(),
            }
        }
        let same = self.view.hosts.get(name) == host.as_ref();
        match host {
            _ if same => return,
            Some(host) => self.view.hosts.insert(name.to_owned(), host),
            None => self.view.hosts.remove(name),
        };
        self.release_restored(name);
        self.recheck_held = true;
        self.dirty.delta.hosts.insert(name.to_owned());
        self.view_changed = true;
    }

    /// This host was declared gone: nothing is its own any more.
    pub(crate) fn fenced(&mut self) {
        tracing::warn!("this host was declared gone: what it had claimed is not its own any more");
        self.disown();
    }

    /// Nothing is this node's own any more.
    pub(crate) fn disown(&mut self) {
        (self.me, self.own_vtep) = (None, None);
        self.own.clear();
        self.lost.clear();
        self.record_lost = false;
        // No giving back that is still under way can succeed now: its condition was this host's record.
        self.returning.clear();
        self.own_changed = true;
        let veths: Vec<String> = self.locals.keys().cloned().collect();
        veths.iter().for_each(|veth| self.recheck(veth));
    }

    fn apply_block(&mut self, network: &str, block: IpNetwork, claim: Option<Claim>, changed: Revision) {
        self.own_changed |= self.lost.remove(&(network.to_owned(), block));
        self.set_owner(network, block, claim.as_ref().map(|claim| claim.host.as_str()), changed);
        if claim.as_ref().is_some_and(|claim| self.is_mine(claim)) {
            let of = self.own.entry(network.to_owned()).or_default();
            let fresh = self.synced;
            let own = of.entry(block).or_insert(Own { changed, fresh, idle: None });
            own.changed = changed;
            self.ask_again(network, block);
        } else if let Some(of) = self.own.get_mut(network)
            && of.remove(&block).is_some()
        {
            if of.is_empty() {
                self.own.remove(network);
            }
            self.returning.remove(&(network.to_owned(), block));
        } else {
            return;
        }
        self.own_changed = true;
        self.recheck_block(network, block);
    }

    fn apply_single(
        &mut self,
        network: &str,
        address: IpAddr,
        single: Option<SingleClaim>,
        changed: Revision,
    ) {
        let granted = single.as_ref().filter(|single| single.state == SingleState::Granted);
        let owner = granted.map(|single| single.claim.host.as_str());
        self.set_owner(network, pool::alone(address), owner, changed);
        self.note_single(network, address, single, changed);
    }

    /// Takes what is said of a single address, but for its route.
    pub(crate) fn note_single(
        &mut self,
        network: &str,
        address: IpAddr,
        single: Option<SingleClaim>,
        changed: Revision,
    ) {
        let fresh = self.synced;
        let before = self.single(network, address).is_some_and(|single| self.is_mine(&single.claim));
        let lent = self.in_own_block(network, address);
        self.own_changed |=
            before || lent || single.as_ref().is_some_and(|single| self.is_mine(&single.claim));
        match single {
            Some(SingleClaim { claim, state }) => {
                let granted = state == SingleState::Granted;
                let mine = self.is_mine(&claim);
                let single = Single { claim, granted, changed, fresh };
                self.singles.entry(network.to_owned()).or_default().insert(address, single);
                if !granted && !mine && lent {
                    self.asked.insert((network.to_owned(), address));
                }
            }
            None => {
                if let Some(of) = self.singles.get_mut(network) {
                    of.remove(&address);
                    if of.is_empty() {
                        self.singles.remove(network);
                    }
                }
                self.returning.remove(&(network.to_owned(), pool::alone(address)));
            }
        }
        self.recheck_block(network, pool::alone(address));
    }

    /// Whether the block that an address lies in is this host's, whoever has the address.
    pub(crate) fn in_own_block(&self, network: &str, address: IpAddr) -> bool {
        let block = self.subnet_of(network, address).map(|subnet| pool::block_of(&subnet, address));
        block.is_some_and(|block| self.own_block(network, block).is_some())
    }

    /// Singles that were asked for before the block became this host's.
    fn ask_again(&mut self, network: &str, block: IpNetwork) {
        let Some(of) = self.singles.get(network) else { return };
        let inside = of.range(block.network()..=block.broadcast());
        let asked = inside.filter(|(_, single)| !single.granted && !self.is_mine(&single.claim));
        let asked: Vec<_> = asked.map(|(address, _)| (network.to_owned(), *address)).collect();
        self.asked.extend(asked);
    }

    pub(crate) fn set_owner(
        &mut self,
        network: &str,
        block: IpNetwork,
        owner: Option<&str>,
        changed: Revision,
    ) {
        let key = (network.to_owned(), block);
        if self.view.owners.get(&key).map(String::as_str) == owner {
            return;
        }
        let before = match owner {
            Some(owner) => self.view.owners.insert(key.clone(), owner.to_owned()),
            None => self.view.owners.remove(&key),
        };
        if !is_single(block) && before.is_some() != owner.is_some() {
            let count = self.counts.entry((network.to_owned(), block.is_ipv6())).or_default();
            *count = if owner.is_some() { *count + 1 } else { count.saturating_sub(1) };
        }
        let parts = self.parts.entry(network.to_owned()).or_default();
        if let Some(owner) = owner {
            *parts.entry(owner.to_owned()).or_default() += 1;
        }
        if let Some(before) = before
            && let Some(count) = parts.get_mut(&before)
        {
            *count -= 1;
            if *count == 0 {
                parts.remove(&before);
            }
        }
        if owner.is_some() && parts.contains_key(&self.view.me) {
            let (_, last) = self.acks.entry(network.to_owned()).or_insert((changed, changed));
            *last = changed.max(*last);
        }
        if parts.is_empty() {
            self.parts.remove(network);
        }
        self.dirty.delta.blocks.insert(key);
        self.view_changed = true;
    }

    /// Looks again at the endpoints with an address in a block.
    fn recheck_block(&mut self, network: &str, block: IpNetwork) {
        let Some(used) = self.used.get(network) else { return };
        let veths = used.range(block.network()..=block.broadcast()).map(|(_, veth)| veth.clone());
        let veths: BTreeSet<String> = veths.collect();
        veths.iter().for_each(|veth| self.recheck(veth));
    }

    fn recheck_network(&mut self, network: &str) {
        let Some(used) = self.used.get(network) else { return };
        let veths: BTreeSet<String> = used.values().cloned().collect();
        veths.iter().for_each(|veth| self.recheck(veth));
    }

    /// Puts an endpoint into the view when all its addresses are this host's, and takes it out when not.
    pub(crate) fn recheck(&mut self, veth: &str) {
        let shown = self.view.endpoints.get(veth);
        let network = match (self.locals.get(veth), shown) {
            (Some(local), _) => local.endpoint.network.clone(),
            (None, Some(shown)) => shown.network.clone(),
            (None, None) => return,
        };
        let local = self.locals.get(veth);
        let owned = local.filter(|local| {
            local.endpoint.addresses.iter().all(|address| self.owns(&local.endpoint.network, *address))
        });
        match owned {
            Some(local) if shown != Some(&local.endpoint) => {
                let endpoint = local.endpoint.clone();
                self.view.endpoints.insert(veth.to_owned(), endpoint);
            }
            None if shown.is_some() => {
                if let Some(local) = local {
                    let Local { endpoint, name, .. } = local;
                    let Endpoint { container, ifname, addresses, .. } = endpoint;
                    let owner = self.other_owner_text(&network, addresses);
                    tracing::warn!(
                        "container {container} ({ifname}) is cut off from network {name}: {addresses:?} is not this host's any \
                         more{owner}"
                    );
                }
                self.view.endpoints.remove(veth);
            }
            _ => return,
        }
        if let Some(local) = self.locals.get(veth) {
            let Local { endpoint, .. } = local;
            let key = (network.clone(), endpoint.container.clone(), endpoint.ifname.clone());
            self.publish.insert(key);
        }
        self.dirty.delta.networks.insert(network);
        self.dirty.veths.insert(veth.to_owned());
    }
}
