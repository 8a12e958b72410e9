//! The part of the table that is the same on every host, and the chains that a subnet needs.
//!
//! An attachment is elements in maps only; a packet's way therefore has the same length whatever the number of containers.

use super::element::{GOTO, JUMP, Map, Value};
use super::expr::{Ct, Rule, Side, Verdict};
use super::wire::{Batch, Writer, flag, msg};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Weft's table, of the family inet.
pub const TABLE: &str = "weft";
/// Shown by `nft list ruleset`.
const COMMENT: &str = "Weft container networking";

/// A base chain's type, hook (enum nf_inet_hooks) and priority.
struct Hook {
    kind: &'static str,
    hook: u32,
    priority: i32,
}

/// A chain and its rules.
struct Chain {
    name: String,
    hook: Option<Hook>,
    rules: Vec<Rule>,
}

fn hook(kind: &'static str, hook: u32, priority: i32) -> Option<Hook> {
    Some(Hook { kind, hook, priority })
}

fn chain(name: &str, hook: Option<Hook>, rules: Vec<Rule>) -> Chain {
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

/// The chain in which everything is masqueraded (`masqAll`).
const HAIRPIN_ALL: &str = "hairpin-all";

fn chains() -> Vec<Chain> {
    use Verdict::{Accept, Drop, Jump};
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
                Rule::new().address(Side::Destination, loopback6()).then(Verdict::Return),
                Rule::new().dnat(true, true, Map::Ports6At),
                Rule::new().dnat(true, false, Map::Ports6),
            ],
        ),
        chain(
            "postrouting",
            hook("nat", 4, 100),
            vec![
                Rule::new().ct(Ct::Dnat).vmap(Side::Destination, false, Map::Hairpin4),
                Rule::new().ct(Ct::Dnat).vmap(Side::Destination, true, Map::Hairpin6),
                Rule::new().vmap(Side::Source, false, Map::Masq4),
                Rule::new().vmap(Side::Source, true, Map::Masq6),
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
        chain(HAIRPIN_ALL, None, vec![Rule::new().masquerade()]),
    ]
}

/// A chain that attachments' verdicts lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Masquerades what leaves this subnet.
    Masquerade(IpNetwork),
    /// Masquerades what comes to a published port from this subnet itself or from the host's loopback.
    Hairpin(IpNetwork),
    /// Masquerades all that comes to a published port.
    HairpinAll,
}

/// A network without host bits.
fn subnet(net: IpNetwork) -> IpNetwork {
    network(net.network(), net.prefix())
}

impl Target {
    /// The chain's name. Colons cannot be in a name that nft reads back, so IPv6's are written `_`.
    pub fn name(self) -> String {
        match self {
            Target::Masquerade(net) => format!("masq-{}", subnet(net)).replace(':', "_"),
            Target::Hairpin(net) => format!("hairpin-{}", subnet(net)).replace(':', "_"),
            Target::HairpinAll => HAIRPIN_ALL.to_owned(),
        }
    }

    /// The element's value that leads there.
    pub fn value(self) -> Value {
        match self {
            Target::Masquerade(_) => Value::Verdict(GOTO, self.name()),
            // A jump: what the hairpin does not concern may still be masqueraded.
            _ => Value::Verdict(JUMP, self.name()),
        }
    }

    /// Is that the name of a chain which is made for a subnet? Then, how many rules it has.
    pub fn rules_of(name: &str) -> Option<u32> {
        match name {
            HAIRPIN_ALL => None,
            _ if name.starts_with("masq-") => Some(3),
            // IPv6 (a name with `_`) has none for the loopback.
            _ if name.starts_with("hairpin-") => Some(if name.contains('_') { 1 } else { 2 }),
            _ => None,
        }
    }

    fn chain(self) -> Option<Chain> {
        let rules = match self {
            Target::HairpinAll => return None,
            Target::Masquerade(net) => {
                let multicast = match net {
                    IpNetwork::V4(_) => network(Ipv4Addr::new(224, 0, 0, 0).into(), 4),
                    IpNetwork::V6(_) => network(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
                };
                vec![
                    Rule::new().address(Side::Destination, subnet(net)).then(Verdict::Return),
                    Rule::new().address(Side::Destination, multicast).then(Verdict::Return),
                    Rule::new().masquerade(),
                ]
            }
            Target::Hairpin(net) => {
                let mut rules = vec![Rule::new().address(Side::Source, subnet(net)).masquerade()];
                if net.is_ipv4() {
                    rules.push(Rule::new().address(Side::Source, loopback4()).masquerade());
                }
                rules
            }
        };
        Some(Chain { name: self.name(), hook: None, rules })
    }

    /// Adds the chain to a batch; it must not be there yet (EEXIST), or its rules would be doubled.
    pub fn push(self, batch: &mut Batch) {
        if let Some(chain) = self.chain() {
            chain.push(batch);
            chain.push_rules(batch);
        }
    }
}

impl Chain {
    fn push(&self, batch: &mut Batch) {
        batch.push("add a chain to table inet weft", msg::NEWCHAIN, flag::CREATE | flag::EXCL, |w| {
            w.str(1, TABLE);
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
            batch.push("add a rule to table inet weft", msg::NEWRULE, flag::CREATE | flag::APPEND, |w| {
                w.str(1, TABLE);
                w.str(2, &self.name);
                w.bytes(4 | 0x8000, rule.bytes());
            });
        }
    }
}

/// Adds the table with all of its base to a batch; it must not be there yet (EEXIST).
pub fn push(batch: &mut Batch) {
    batch.push("create table inet weft", msg::NEWTABLE, flag::CREATE | flag::EXCL, |w| {
        w.str(1, TABLE);
        w.u32(2, 0);
        let mut user = vec![0, (COMMENT.len() + 1) as u8];
        user.extend_from_slice(COMMENT.as_bytes());
        user.push(0);
        w.bytes(6, &user);
    });
    for (id, map) in Map::ALL.into_iter().enumerate() {
        batch.push("add a map to table inet weft", msg::NEWSET, flag::CREATE | flag::EXCL, |w| {
            map.write(id as u32 + 1, w)
        });
    }
    let chains = chains();
    chains.iter().for_each(|chain| chain.push(batch));
    chains.iter().for_each(|chain| chain.push_rules(batch));
}

/// The names of the base chains and how many rules each has.
pub fn census() -> Vec<(String, usize)> {
    chains().into_iter().map(|c| (c.name, c.rules.len())).collect()
}

/// Table and chain, the key of questions about a chain.
pub fn chain_key(w: &mut Writer, name: &str) {
    w.str(1, TABLE);
    w.str(3, name);
}
