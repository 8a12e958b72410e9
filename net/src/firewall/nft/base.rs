//! The frames of the tables, which are the same on every host, and what a subnet needs.
//!
//! An attachment is elements in sets and maps only; a packet's way therefore has the same length whatever the number of
//! containers.

use super::element::{Map, head, is_hosts, net_name, subnet};
use super::expr::{Ct, Rule, Side, Verdict};
use super::table::Table;
use super::wire::{Batch, flag, msg, user_comment};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Shown by `nft list ruleset`.
const COMMENT: &str = "Weft container networking";

/// A base chain's type, hook (enum nf_inet_hooks) and priority.
pub struct Hook {
    pub kind: &'static str,
    pub hook: u32,
    pub priority: i32,
}

/// A chain and its rules.
pub struct Chain {
    pub name: String,
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

pub fn hook(kind: &'static str, hook: u32, priority: i32) -> Option<Hook> {
    Some(Hook { kind, hook, priority })
}

pub fn chain(name: &str, hook: Option<Hook>, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), hook, rules }
}

/// 127.0.0.0/8
fn loopback4() -> IpNetwork {
    network(Ipv4Addr::new(127, 0, 0, 0).into(), 8)
}

/// ::1
fn loopback6() -> IpNetwork {
    network(Ipv6Addr::LOCALHOST.into(), 128)
}

/// A network of constants here: always valid ones.
fn network(addr: IpAddr, prefix: u8) -> IpNetwork {
    match addr {
        IpAddr::V4(a) => Ipv4Network::new(a, prefix).map_or_else(|_| addr.into(), IpNetwork::V4),
        IpAddr::V6(a) => Ipv6Network::new(a, prefix).map_or_else(|_| addr.into(), IpNetwork::V6),
    }
}

fn chains(table: Table) -> Vec<Chain> {
    match table {
        Table::Inet => inet_chains(),
        Table::Bridge => bridge_chains(),
        // They depend on the host: see [`crate::firewall::overlay`].
        Table::Overlay => Vec::new(),
    }
}

/// Before any rule of others sees the frame, and before the bridge learns where its source address is.
fn bridge_chains() -> Vec<Chain> {
    let foreign = Rule::new().came_in_by(Map::Watched).not_from(Map::Sources).then(Verdict::Drop);
    vec![chain("prerouting", hook("filter", 0, -300), vec![foreign])]
}

fn inet_chains() -> Vec<Chain> {
    use Verdict::{Accept, Drop, Jump, Return};
    vec![
        // Publishing on 127.0.0.1 needs route_localnet on the bridge, and that would let others reach this host's
        // loopback services by the wire (CVE-2020-8558).
        chain(
            "raw",
            hook("filter", 0, -300),
            vec![Rule::new().not_from_loopback().address(Side::Destination, loopback4()).then(Drop)],
        ),
        chain("prerouting", hook("nat", 0, -100), vec![Rule::new().for_this_host().then(Jump("publish"))]),
        chain("output", hook("nat", 3, -100), vec![Rule::new().for_this_host().then(Jump("publish"))]),
        chain(
            "publish",
            None,
            vec![
                Rule::new().dnat(false, true, Map::Ports4At),
                Rule::new().dnat(false, false, Map::Ports4),
                // What comes from ::1 cannot leave by another link: that address is left to programs.
                Rule::new().address(Side::Destination, loopback6()).then(Return),
                Rule::new().dnat(true, true, Map::Ports6At),
                Rule::new().dnat(true, false, Map::Ports6),
            ],
        ),
        chain(
            "postrouting",
            hook("nat", 4, 100),
            vec![
                Rule::new().ct(Ct::Dnat).address_in(Side::Destination, false, Map::HairpinAll4).masquerade(),
                Rule::new().ct(Ct::Dnat).address_in(Side::Destination, true, Map::HairpinAll6).masquerade(),
            ],
        ),
        chain("forward", hook("filter", 2, 0), vec![Rule::new().out_of(Map::Guarded).then(Jump("guard"))]),
        chain(
            "guard",
            None,
            vec![
                Rule::new().ct(Ct::Known).then(Accept),
                Rule::new().ct(Ct::Dnat).then(Accept),
                Rule::new().through(Map::GuardedPairs).then(Accept),
                Rule::new().then(Drop),
            ],
        ),
    ]
}

/// The name of a subnet's chain.
pub fn chain_of(net: IpNetwork) -> String {
    format!("subnet-{}", net_name(net))
}

/// What a subnet needs besides its two sets: a chain that masquerades what leaves the subnet, and what comes to published
/// ports from the subnet itself or from the host's loopback. It hangs in the hook by itself, so that no rule has to lead
/// to it.
fn subnet_chain(net: IpNetwork) -> Chain {
    let (net, v6) = (subnet(net), net.is_ipv6());
    let multicast = match v6 {
        false => network(Ipv4Addr::new(224, 0, 0, 0).into(), 4),
        true => network(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
    };
    let hairpin = |from| {
        Rule::new()
            .ct(Ct::Dnat)
            .address(Side::Source, from)
            .address_in(Side::Destination, v6, Map::hairpin(net))
            .masquerade()
    };
    let masquerade = Rule::new().address_in(Side::Source, v6, Map::masq(net));
    let mut rules = if is_hosts(net) {
        // A container without a subnet is alone in its own.
        vec![
            masquerade.not_address(Side::Destination, multicast).masquerade(),
            Rule::new().ct(Ct::Dnat).pair_in(v6, Map::hairpin_self(v6)).masquerade(),
        ]
    } else {
        let leaving = masquerade.not_address(Side::Destination, net);
        vec![leaving.not_address(Side::Destination, multicast).masquerade(), hairpin(net)]
    };
    if !v6 {
        rules.push(hairpin(loopback4()));
    }
    chain(&chain_of(net), hook("nat", 4, 100), rules)
}

impl Chain {
    fn push(&self, batch: &mut Batch) {
        batch.push("add a chain to", msg::NEWCHAIN, flag::CREATE | flag::EXCL, |w| {
            w.str(3, &self.name);
            if let Some(hook) = &self.hook {
                w.nest(4, |w| {
                    w.u32(1, hook.hook);
                    w.u32(2, hook.priority as u32);
                });
                w.u32(5, 1);
                w.str(7, hook.kind);
            }
        });
    }

    fn push_rules(&self, batch: &mut Batch) {
        for rule in &self.rules {
            batch.push("add a rule to", msg::NEWRULE, flag::CREATE | flag::APPEND, |w| {
                w.str(2, &self.name);
                w.bytes(4 | 0x8000, rule.bytes());
                if let Some(comment) = rule.comment() {
                    w.bytes(7, &user_comment(0, comment));
                }
            });
        }
    }
}

fn push_set(batch: &mut Batch, map: Map) {
    // The number only has to differ from those of the batch's other sets.
    let id = batch.len() as u32 + 1;
    batch.push("add a set to", msg::NEWSET, flag::CREATE | flag::EXCL, |w| map.write(id, w));
}

/// Adds the batch's table with all of its frame to it; it must not be there yet (EEXIST).
pub fn push(batch: &mut Batch) {
    push_frame(batch, COMMENT, &chains(batch.table()));
}

/// Adds the batch's table with its sets and maps and these chains to it.
pub fn push_frame(batch: &mut Batch, comment: &str, chains: &[Chain]) {
    batch.push("create", msg::NEWTABLE, flag::CREATE | flag::EXCL, |w| {
        w.u32(2, 0);
        w.bytes(6, &user_comment(0, comment));
    });
    batch.table().frame().iter().for_each(|map| push_set(batch, *map));
    chains.iter().for_each(|chain| chain.push(batch));
    chains.iter().for_each(|chain| chain.push_rules(batch));
}

/// Adds what a subnet needs to a batch; it must not be there yet (EEXIST), or its rules would be doubled.
pub fn push_subnet(batch: &mut Batch, net: IpNetwork) {
    for map in Map::of_subnet(net) {
        push_set(batch, map);
    }
    let chain = subnet_chain(net);
    chain.push(batch);
    chain.push_rules(batch);
}

/// Adds the deletion of what a subnet needed to a batch.
pub fn push_subnet_deletion(batch: &mut Batch, net: IpNetwork) {
    batch.push("delete a chain of", msg::DELCHAIN, 0, |w| w.str(3, &chain_of(net)));
    for map in Map::of_subnet(net) {
        batch.push("delete a set of", msg::DELSET, 0, |w| head(w, map));
    }
}

/// The names of the table's and these subnets' chains, and how many rules each has.
pub fn census(table: Table, subnets: &[IpNetwork]) -> Vec<(String, usize)> {
    let subnets = subnets.iter().map(|net| subnet_chain(*net));
    chains(table).into_iter().chain(subnets).map(|c| (c.name, c.rules.len())).collect()
}
