//! Giving addresses to containers, and taking them back.
//!
//! Choosing an address, its lease and the endpoint's entry in the view are one step under the state's lock, so neither a
//! fence nor a block that is given back can come in between. The store is asked only when this host owns no address that
//! fits.

use crate::files::Local;
use crate::inner::{Inner, lease_problem, not_registered};
use crate::keys;
use crate::node::Grant;
use crate::own::{check_fixed, check_new, fixed_range, free_ranges, fresh, full, requested, room};
use crate::pool;
use crate::state::State;
use crate::validate;
use ipam::{Ask, Attachment, RangeSet};
use ipnetwork::IpNetwork;
use ovl_api::model::{Endpoint, Network};
use ovl_api::names;
use ovl_api::wire::{Attach, Detach, Gc, Problem, ProblemKind};
use ovl_store::{Op, Txn};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long an attachment waits for the watch to tell of a network that the store has.
const LOOK_UP: Duration = Duration::from_secs(4);
/// An attachment does not claim more often than this: addresses went to others each time.
const CLAIMS: usize = 16;

/// What came of looking for addresses among this host's own.
enum Step {
    Given(Box<Grant>),
    /// No own address of the family (IPv6: true) is free.
    Block(bool),
    /// The address is not this host's.
    Single(IpAddr),
}

/// What an attachment asks for, checked.
struct Wanted<'a> {
    ask: &'a Attach,
    ticket: u64,
    mac: Option<String>,
    /// An address that must be given, by family.
    fixed: HashMap<bool, IpAddr>,
}

/// An attachment under way. A DEL that comes before it has its address ends it, and nobody will ask for that again.
struct Attaching<'a> {
    inner: &'a Inner,
    of: (String, String, String),
    ticket: u64,
}

impl Attaching<'_> {
    fn begin<'a>(inner: &'a Inner, ask: &Attach) -> Attaching<'a> {
        let of = (ask.network.clone(), ask.container.clone(), ask.ifname.clone());
        let ticket = inner.update(|state| {
            state.tickets += 1;
            state.attaching.insert(of.clone(), state.tickets);
            state.tickets
        });
        Attaching { inner, of, ticket }
    }
}

impl Drop for Attaching<'_> {
    fn drop(&mut self) {
        self.inner.update(|state| {
            if state.attaching.get(&self.of) == Some(&self.ticket) {
                state.attaching.remove(&self.of);
            }
            self.inner.wake_rename(state);
        });
    }
}

impl Inner {
    /// [`crate::Node::attach`].
    pub(crate) async fn attach(&self, ask: &Attach) -> Result<Grant, Problem> {
        validate::attachment(&ask.container, &ask.ifname)?;
        validate::veth(&ask.veth)?;
        let mac = ask.mac.as_deref().map(validate::mac).transpose()?;
        // A note that is there is of an earlier attachment; read later, it would end this one.
        if let Err(problem) = self.read_notes() {
            tracing::warn!("{problem}");
        }
        if self.look(|state| state.renaming) {
            // That takes a moment; then it is given in the new name.
            let done = |state: &State| (!state.renaming).then_some(());
            self.until(Instant::now() + LOOK_UP, done).await;
        }
        let attaching = Attaching::begin(self, ask);
        let network = self.find_network(&ask.network).await?;
        let fixed = requested(&network, &ask.ips)?;
        let mut wanted = Wanted { ask, ticket: attaching.ticket, mac, fixed };
        let mut asking = Vec::new();
        for _ in 0..CLAIMS {
            match self.update(|state| self.give(state, &network.id, &wanted))? {
                Step::Given(grant) => {
                    self.wake.keeper.notify_one();
                    return Ok(*grant);
                }
                Step::Single(address) => {
                    asking.push(self.asking(&network.id, address));
                    self.claim_single(&network, address, Instant::now() + self.conf.timing.consent).await?;
                }
                Step::Block(v6) => {
                    if !self.claim_for(&network, v6).await? {
                        let (address, guard) = self.borrow(&network, v6).await?;
                        asking.push(guard);
                        wanted.fixed.insert(v6, address);
                    }
                }
            }
        }
        Err(Problem::new(
            ProblemKind::Full,
            format!("network {}: every address was given to another", network.name),
        ))
    }

    /// The network of a name; one that the view lacks is looked up in the store.
    pub(crate) async fn find_network(&self, name: &str) -> Result<Network, Problem> {
        let known = |state: &State| state.network(name).cloned();
        if let Some(network) = self.look(known) {
            return Ok(network);
        }
        if let Some(why) = self.look(|state| state.refused.clone()) {
            return Err(Problem::new(ProblemKind::NotReady, why));
        }
        let missing = || Problem::new(ProblemKind::NotFound, format!("there is no overlay network {name}"));
        validate::network_name(name).map_err(|_| missing())?;
        let (from, to) = keys::alone(&keys::network(name));
        let txn = Txn { then: vec![Op::Get(from, to)], ..Txn::default() };
        let done = self.commit(txn).await.map_err(|error| {
            let message = format!("this host knows no overlay network {name}, and {error}");
            Problem::new(ProblemKind::Store, message)
        })?;
        if done.got.first().is_none_or(Vec::is_empty) {
            return Err(missing());
        }
        if let Some(why) =
            self.look(|state| state.held.get(&keys::network(name)).map(|held| held.why.clone()))
        {
            let message = format!("the store's record of the overlay network {name} is held back: {why}");
            return Err(Problem::new(ProblemKind::NotReady, message));
        }
        if !self.look(|state| state.following) {
            // The store is back, and this host waits before it tries again to follow it.
            self.wake.session.notify_one();
        }
        let found = self.until(Instant::now() + LOOK_UP, known).await;
        found.ok_or_else(|| {
            Problem::new(
                ProblemKind::NotReady,
                format!("the store has just told of the network {name}; try again"),
            )
        })
    }

    /// Gives addresses out of what this host owns.
    fn give(&self, state: &mut State, id: &str, wanted: &Wanted<'_>) -> Result<Step, Problem> {
        let ask = wanted.ask;
        let network = state.view.networks.get(id).cloned();
        let network = network.ok_or_else(|| {
            Problem::new(
                ProblemKind::NotFound,
                format!("the overlay network {} was just removed", ask.network),
            )
        })?;
        if network.removing {
            let message = format!("the overlay network {} is being removed", network.name);
            return Err(Problem::new(ProblemKind::InUse, message));
        }
        if state.me.is_none() {
            return Err(not_registered(state));
        }
        if let Some(why) = state.refused.as_ref().or(state.suspended.as_ref()) {
            return Err(Problem::new(ProblemKind::NotReady, why.clone()));
        }
        check_new(state, &network, ask)?;
        let of = (ask.network.clone(), ask.container.clone(), ask.ifname.clone());
        if state.attaching.get(&of) != Some(&wanted.ticket) {
            let message = format!("container {} ({}) was detached meanwhile", ask.container, ask.ifname);
            return Err(Problem::new(ProblemKind::NotReady, message));
        }
        let mut sets = Vec::new();
        let mut reserved = Vec::new();
        for subnet in &network.subnets {
            let v6 = subnet.subnet.is_ipv6();
            let ranges = match wanted.fixed.get(&v6) {
                Some(address) => match check_fixed(state, &network, subnet, *address)? {
                    true => vec![fixed_range(state, id, subnet, *address)?],
                    false => return Ok(Step::Single(*address)),
                },
                None => free_ranges(state, id, subnet, &mut reserved)?,
            };
            if ranges.is_empty() {
                return Ok(Step::Block(v6));
            }
            sets.push(RangeSet::new(ranges).map_err(|e| lease_problem(&e))?);
        }
        let requested: Vec<IpAddr> = wanted.fixed.values().copied().collect();
        let attachment = Attachment::new(ask.container.as_str(), ask.ifname.as_str());
        let lease = Ask {
            network: id,
            attachment: &attachment,
            sets: &sets,
            requested: &requested,
            reserved: &reserved,
            netns: ask.netns.as_deref(),
        };
        let given = self.leases.allocate(&lease, &|_| false).map_err(|e| lease_problem(&e))?;
        let addresses: Vec<IpAddr> = given.iter().map(|given| given.address).collect();
        let first = addresses.first().copied().unwrap_or(IpAddr::V4([0, 0, 0, 0].into()));
        let mac = wanted.mac.clone();
        let mac = mac.unwrap_or_else(|| validate::mac_text(&names::container_mac(id, first)));
        let endpoint = Endpoint {
            network: id.to_owned(),
            container: ask.container.clone(),
            ifname: ask.ifname.clone(),
            veth: ask.veth.clone(),
            mac: mac.clone(),
            addresses: addresses.clone(),
        };
        let boot = self.conf.boot_id.clone();
        let (name, netns, ticket) = (network.name.clone(), ask.netns.clone(), wanted.ticket);
        let local = Local { endpoint, name, boot, netns, ticket };
        if let Err(problem) = self.files.save_endpoint(&local) {
            // The lease has no endpoint; should this fail too, the next start ends it.
            let _ = self.leases.release(id, &attachment);
            return Err(problem);
        }
        let claimed = addresses.iter().filter_map(|address| fresh(state, id, *address)).max();
        let of = state.used.entry(id.to_owned()).or_default();
        of.extend(addresses.iter().map(|address| (*address, ask.veth.clone())));
        state.locals.insert(ask.veth.clone(), local);
        state.view.links.insert(ask.veth.clone());
        state.recheck(&ask.veth);
        let nets = given.iter().filter_map(|given| IpNetwork::new(given.address, given.prefix).ok());
        Ok(Step::Given(Box::new(Grant { addresses: nets.collect(), network, mac, claimed, ticket })))
    }

    /// [`crate::Node::detach`].
    pub(crate) fn detach(&self, ask: &Detach) -> Result<bool, Problem> {
        self.update(|state| {
            state.attaching.remove(&(ask.network.clone(), ask.container.clone(), ask.ifname.clone()));
            // Its link was there when the node started, and is not any more: it must not be taken over.
            state.found.retain(|link| (&link.container, &link.ifname) != (&ask.container, &ask.ifname));
            let is_it = |local: &&Local| {
                local.name == ask.network
                    && local.endpoint.container == ask.container
                    && local.endpoint.ifname == ask.ifname
            };
            let Some(local) = state.locals.values().find(is_it).cloned() else { return Ok(false) };
            self.end(state, &local).map(|()| true)
        })
    }

    /// [`crate::Node::undo`].
    pub(crate) fn undo(&self, grant: &Grant) -> Result<(), Problem> {
        self.update(|state| {
            let local = state.locals.values().find(|local| local.ticket == grant.ticket).cloned();
            local.map_or(Ok(()), |local| self.end(state, &local))
        })
    }

    /// [`crate::Node::gc`].
    pub(crate) fn gc(&self, ask: &Gc) -> Result<usize, Problem> {
        let valid: std::collections::HashSet<&(String, String)> = ask.valid.iter().collect();
        self.update(|state| {
            let over = |local: &&Local| {
                let Endpoint { container, ifname, .. } = &local.endpoint;
                local.name == ask.network && !valid.contains(&(container.clone(), ifname.clone()))
            };
            let over: Vec<Local> = state.locals.values().filter(over).cloned().collect();
            over.iter().try_for_each(|local| self.end(state, local))?;
            Ok(over.len())
        })
    }

    /// Ends an attachment: the endpoint's file first, for a lease without one is ended at the next start.
    pub(crate) fn end(&self, state: &mut State, local: &Local) -> Result<(), Problem> {
        let Endpoint { network, container, ifname, veth, addresses, .. } = &local.endpoint;
        self.files.remove_endpoint(veth)?;
        let attachment = Attachment::new(container.as_str(), ifname.as_str());
        self.leases.release(network, &attachment).map_err(|e| lease_problem(&e))?;
        state.locals.remove(veth);
        state.view.links.remove(veth);
        state.dirty.veths.insert(veth.clone());
        if let Some(used) = state.used.get_mut(network) {
            addresses.iter().for_each(|address| drop(used.remove(address)));
            if used.is_empty() {
                state.used.remove(network);
            }
        }
        state.recheck(veth);
        // Also when it was not in the view, being cut off.
        state.publish.insert((network.clone(), container.clone(), ifname.clone()));
        let now = Instant::now();
        for address in addresses {
            let Some(subnet) = state.subnet_of(network, *address) else { continue };
            let block = pool::block_of(&subnet, *address);
            if let Some(own) = state.own.get_mut(network).and_then(|own| own.get_mut(&block)) {
                own.idle = Some(now);
            }
        }
        self.wake.keeper.notify_one();
        self.wake_rename(state);
        Ok(())
    }

    /// [`crate::Node::available`].
    pub(crate) async fn available(&self, name: &str) -> Result<(), Problem> {
        let network = self.find_network(name).await?;
        self.look(|state| {
            if network.removing {
                let message = format!("the overlay network {name} is being removed");
                return Err(Problem::new(ProblemKind::InUse, message));
            }
            if state.me.is_none() {
                return Err(not_registered(state));
            }
            if let Some(why) = state.refused.as_ref().or(state.suspended.as_ref()) {
                return Err(Problem::new(ProblemKind::NotReady, why.clone()));
            }
            for subnet in &network.subnets {
                let free = room(state, &network.id, subnet).0 > 0;
                if free {
                    continue;
                }
                if let Some(error) = &state.error {
                    return Err(Problem::new(ProblemKind::Store, error.clone()));
                }
                let none = pool::free_blocks(&state.view, &network.id, subnet, None, &Default::default(), 1);
                let others = state.parts.get(&network.id).is_some_and(|parts| parts.len() > 1);
                // With other hosts there, single addresses may be had of them.
                if none.is_empty() && !others {
                    return Err(full(state, &network, subnet));
                }
            }
            Ok(())
        })
    }
}
