//! What this host owns of a network and what of it can be given: free addresses, addresses asked for, how much room is left.

use crate::files::Local;
use crate::inner::lease_problem;
use crate::pool;
use crate::state::{Own, Single, State};
use ipnetwork::IpNetwork;
use ovl_api::model::{Endpoint, Network, Subnet};
use ovl_api::wire::{Attach, Problem, ProblemKind};
use std::collections::HashMap;
use std::net::IpAddr;

/// At most this many own blocks with room are looked at for an address: the order of release holds among them.
const BLOCKS_AT_ONCE: usize = 64;

impl State {
    pub(crate) fn single(&self, network: &str, address: IpAddr) -> Option<&Single> {
        self.singles.get(network)?.get(&address)
    }

    pub(crate) fn own_block(&self, network: &str, block: IpNetwork) -> Option<&Own> {
        self.own.get(network)?.get(&block)
    }

    pub(crate) fn user(&self, network: &str, address: IpAddr) -> Option<&Local> {
        self.locals.get(self.used.get(network)?.get(&address)?)
    }
}

/// The addresses asked for, by family.
pub(crate) fn requested(network: &Network, ips: &[IpAddr]) -> Result<HashMap<bool, IpAddr>, Problem> {
    let mut fixed = HashMap::new();
    for ip in ips.iter().map(IpAddr::to_canonical) {
        let wrong = |why: String| Problem::invalid("--ip", format!("--ip {ip}: {why}"));
        let Some(subnet) = network.subnet(ip.is_ipv6()) else {
            let family = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
            return Err(wrong(format!("the network {} has no {family} subnet", network.name)));
        };
        if !subnet.subnet.contains(ip) {
            return Err(wrong(format!("it is not in {} of the network {}", subnet.subnet, network.name)));
        }
        if let Some(why) = pool::forbidden(subnet, ip) {
            return Err(wrong(format!("it {why} in the network {}", network.name)));
        }
        if fixed.insert(ip.is_ipv6(), ip).is_some_and(|other| other != ip) {
            return Err(wrong("an attachment has one address of each family".to_owned()));
        }
    }
    Ok(fixed)
}

/// Makes sure that neither the attachment nor its link is there already.
pub(crate) fn check_new(state: &State, network: &Network, ask: &Attach) -> Result<(), Problem> {
    let same = |local: &&Local| {
        let Endpoint { network: of, container, ifname, veth, .. } = &local.endpoint;
        *veth == ask.veth || (*of == network.id && *container == ask.container && *ifname == ask.ifname)
    };
    match state.locals.values().find(same) {
        None => Ok(()),
        Some(local) => {
            let Endpoint { container, ifname, veth, addresses, .. } = &local.endpoint;
            let message = format!(
                "container {container} ({ifname}, link {veth}) holds {} of the network {} already; detach it first",
                list(addresses),
                local.name
            );
            Err(Problem::new(ProblemKind::Duplicate, message))
        }
    }
}

/// Whether an address that must be given is this host's to give; false: it has to be claimed.
pub(crate) fn check_fixed(
    state: &State,
    network: &Network,
    subnet: &Subnet,
    address: IpAddr,
) -> Result<bool, Problem> {
    let taken = |by: String| {
        let message = format!("--ip {address}: the network {} has given it to {by}", network.name);
        Problem { kind: ProblemKind::Taken, field: Some("--ip".to_owned()), message }
    };
    if let Some(local) = state.user(&network.id, address) {
        return Err(taken(format!("container {} on this host", local.endpoint.container)));
    }
    let block = pool::block_of(subnet, address);
    let returning = |block| is_away(state, &network.id, block);
    if let Some(single) = state.single(&network.id, address) {
        if !state.is_mine(&single.claim) {
            return Err(taken(format!("a container on host {}", single.claim.host)));
        }
        return Ok(single.granted && !returning(pool::alone(address)));
    }
    if state.own_block(&network.id, block).is_none() || returning(block) {
        return Ok(false);
    }
    if pool::own_address(subnet, block) == Some(address) {
        return Err(taken("this host itself, for it is the first of its block".to_owned()));
    }
    Ok(true)
}

/// The range of an address that must be given: its block's, or itself alone.
pub(crate) fn fixed_range(
    state: &State,
    id: &str,
    subnet: &Subnet,
    address: IpAddr,
) -> Result<ipam::Range, Problem> {
    let block = pool::block_of(subnet, address);
    let own = state.own_block(id, block).is_some() && state.single(id, address).is_none();
    let range = if own {
        pool::range(subnet, block)
    } else {
        ipam::Range::new(subnet.subnet, Some(address), Some(address), Some(subnet.gateway))
    };
    range.map_err(|e| lease_problem(&e))
}

/// The own blocks with a free address, and in them what must not be given.
pub(crate) fn free_ranges(
    state: &State,
    id: &str,
    subnet: &Subnet,
    reserved: &mut Vec<IpAddr>,
) -> Result<Vec<ipam::Range>, Problem> {
    let mut ranges = Vec::new();
    for block in own_blocks(state, id, subnet) {
        if ranges.len() == BLOCKS_AT_ONCE {
            break;
        }
        if free_in(state, id, subnet, block) == 0 {
            continue;
        }
        ranges.push(pool::range(subnet, block).map_err(|e| lease_problem(&e))?);
        reserved.extend(pool::own_address(subnet, block));
        if let Some(singles) = state.singles.get(id) {
            reserved.extend(singles.range(block.network()..=block.broadcast()).map(|(address, _)| *address));
        }
    }
    Ok(ranges)
}

/// The own blocks of a subnet that are not being given back.
pub(crate) fn own_blocks<'a>(
    state: &'a State,
    id: &'a str,
    subnet: &'a Subnet,
) -> impl Iterator<Item = IpNetwork> + 'a {
    let blocks = state.own.get(id).into_iter().flat_map(|own| own.keys().copied());
    let kept = |block: &IpNetwork| {
        (state.returning.is_empty() && state.lost.is_empty()) || !is_away(state, id, *block)
    };
    let v6 = subnet.subnet.is_ipv6();
    blocks.filter(move |block| block.is_ipv6() == v6 && block.prefix() == subnet.block && kept(block))
}

/// Whether an own block is being given back, or was taken out of the store.
fn is_away(state: &State, id: &str, block: IpNetwork) -> bool {
    let entry = (id.to_owned(), block);
    state.returning.contains(&entry) || state.lost.contains(&entry)
}

/// How many addresses of an own block are free.
pub(crate) fn free_in(state: &State, id: &str, subnet: &Subnet, block: IpNetwork) -> u128 {
    let inside = block.network()..=block.broadcast();
    let singles = state.singles.get(id);
    let single = |address: &IpAddr| singles.is_some_and(|singles| singles.contains_key(address));
    let leased = |used: &std::collections::BTreeMap<IpAddr, String>| {
        used.range(inside.clone()).filter(|(address, _)| !single(address)).count()
    };
    let leased = state.used.get(id).map_or(0, leased);
    let lent = singles.map_or(0, |singles| singles.range(inside.clone()).count());
    pool::usable(subnet, block).saturating_sub((leased + lent) as u128)
}

/// How many addresses of the own blocks of a subnet are free, and how many there are.
pub(crate) fn room(state: &State, id: &str, subnet: &Subnet) -> (u128, u128) {
    own_blocks(state, id, subnet).fold((0, 0), |(free, all), block| {
        (free + free_in(state, id, subnet, block), all + pool::usable(subnet, block))
    })
}

/// The revision at which an address became this host's, when others may not know yet.
pub(crate) fn fresh(state: &State, id: &str, address: IpAddr) -> Option<i64> {
    if let Some(single) = state.single(id, address) {
        return single.fresh.then_some(single.changed);
    }
    let block = pool::block_of(&state.subnet_of(id, address)?, address);
    state.own_block(id, block).filter(|own| own.fresh).map(|own| own.changed)
}

/// No address is left: says so, and who might be gone.
pub(crate) fn full(state: &State, network: &Network, subnet: &Subnet) -> Problem {
    let mut message = format!("the network {} has no free address in {} left", network.name, subnet.subnet);
    let parts = state.parts.get(&network.id);
    let silent = parts.into_iter().flatten().map(|(host, _)| host.as_str());
    let mut silent: Vec<&str> =
        silent.filter(|host| *host != state.view.me && !state.live.contains(*host)).collect();
    if !silent.is_empty() {
        silent.sort_unstable();
        message += &format!(
            "; hosts that do not answer hold some of it ({}): `ovl-agent node rm` frees what a host that is gone for good \
             holds",
            silent.join(", ")
        );
    }
    Problem::new(ProblemKind::Full, message)
}

/// Addresses for people.
pub(crate) fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
