//! The frames of the tables, which are the same on every host, and what a subnet needs.
//!
//! An attachment is elements in sets and maps only; a packet's way therefore has the same length whatever the number of
//! containers.

use super::element::{Map, Scope, head, is_hosts, net_name};
use super::expr::{Ct, Rule, Sender, Side, Verdict};
use super::table::Table;
use super::wire::{Batch, Message, attribute, flag, msg, number, user_comment};
use crate::firewall::{Protocol, SERVICE_MARK};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Shown by `nft list ruleset`.
pub const COMMENT: &str = "Weft container networking";

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

/// fe80::/10
fn link_local() -> IpNetwork {
    network(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10)
}

/// 0.0.0.0, as DHCP's clients have it.
fn unspecified4() -> IpNetwork {
    network(Ipv4Addr::UNSPECIFIED.into(), 32)
}

/// ::, as duplicate address detection has it.
fn unspecified6() -> IpNetwork {
    network(Ipv6Addr::UNSPECIFIED.into(), 128)
}

/// A network of constants here: always valid ones.
fn network(addr: IpAddr, prefix: u8) -> IpNetwork {
    match addr {
        IpAddr::V4(a) => Ipv4Network::new(a, prefix).map_or_else(|_| addr.into(), IpNetwork::V4),
        IpAddr::V6(a) => Ipv6Network::new(a, prefix).map_or_else(|_| addr.into(), IpNetwork::V6),
    }
}

/// Which of the host's services are closed to networks without a way out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Services {
    /// Those of Weft: their sockets have [`SERVICE_MARK`].
    #[default]
    Marked,
    /// All: the kernel cannot ask for a socket's mark (CONFIG_NFT_SOCKET).
    All,
}

impl Services {
    /// Drops what is for one of them; the name of each rule comes with it.
    pub fn drop(self) -> Vec<Rule> {
        use Protocol::{Sctp, Tcp, Udp};
        match self {
            Services::Marked => vec![
                Rule::new().socket_mark(SERVICE_MARK).then(Verdict::Drop).commented("to a service of Weft"),
            ],
            Services::All => [(Tcp, "TCP to the host"), (Udp, "UDP to the host"), (Sctp, "SCTP to the host")]
                .map(|(protocol, name)| {
                    Rule::new().new_connection(protocol).then(Verdict::Drop).commented(name)
                })
                .into(),
        }
    }

    /// Leaves a published port to its proxy. Without sockets' marks it is not known whether there is one.
    fn proxied(self) -> Rule {
        match self {
            Services::Marked => Rule::new().socket_mark(SERVICE_MARK).then(Verdict::Accept),
            Services::All => Rule::new().then(Verdict::Return),
        }
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
    let bound = |ethertype| Rule::new().frame_type(ethertype).came_in_by(Map::Bound);
    let bound6 = || Rule::new().frame_type(IPV6).came_in_by(Map::Bound6);
    let others =
        Rule::new().not_frame_type(IPV4).not_frame_type(ARP).not_frame_type(IPV6).came_in_by(Map::Bound);
    vec![
        chain("prerouting", hook("filter", 0, -300), vec![foreign]),
        chain(
            ADDRESSES,
            hook("filter", 0, -299),
            vec![
                bound(IPV4).sender_not_in(Sender::Ip, Map::Addresses4).then(Verdict::Drop),
                bound(ARP).sender_not_in(Sender::Arp, Map::Addresses4).then(Verdict::Drop),
                bound6().sender_not_in(Sender::Ip6, Map::Addresses6).then(Verdict::Drop),
                bound6().advertised_not_in(Map::Targets6).then(Verdict::Drop),
                // Whatever may hold a packet of IP, as a VLAN tag: of one with ID 0 in another the bridge's own link takes it.
                others.then(Verdict::Drop),
            ],
        ),
    ]
}

/// The chain for ports that send from certain addresses alone.
pub const ADDRESSES: &str = "addresses";

/// Types of frames (ETH_P_IP, ETH_P_ARP and ETH_P_IPV6 of linux/if_ether.h).
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

fn inet_chains() -> Vec<Chain> {
    use Verdict::{Drop, Jump, Return};
    vec![
        // Publishing on 127.0.0.1 needs route_localnet on the bridge, and that would let others reach this host's
        // loopback services by the wire (CVE-2020-8558).
        chain(
            "raw",
            hook("filter", 0, -300),
            vec![
                Rule::new().not_from_loopback().address(Side::Destination, loopback4()).then(Drop),
                Rule::new().not_from_loopback().address(Side::Source, loopback4()).then(Drop),
                Rule::new().no_way_back().then(Jump("foreign")),
            ],
        ),
        // Before connections are tracked: a forged source would make a connection whose answers the forger may send to the
        // true owner. What is said on a link alone passes: it is never forwarded.
        chain(
            "foreign",
            None,
            vec![
                Rule::new().address(Side::Source, link_local()).then(Return),
                Rule::new().address(Side::Source, unspecified6()).then(Return),
                Rule::new().address(Side::Source, unspecified4()).then(Return),
                Rule::new().came_in_by(Map::Strict).then(Drop),
                Rule::new().source_is_behind(Map::Bridges).then(Drop),
            ],
        ),
    ]
}

/// The chains of [`Scope::Tracked`].
fn tracked_chains(services: Services) -> Vec<Chain> {
    use Verdict::{Accept, Drop, Jump, Return};
    vec![
        chain(
            "prerouting",
            hook("nat", 0, -100),
            vec![
                Rule::new().for_this_host().came_in_by(Map::Proxied).then(Jump("proxied")),
                Rule::new().for_this_host().then(Jump("publish")),
            ],
        ),
        // In a chain of translations this ends those of Weft alone.
        chain("proxied", None, vec![services.proxied()]),
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
            "forward",
            hook("filter", 2, 0),
            vec![
                Rule::new().through(Map::BridgePairs).then(Jump("within")),
                Rule::new().came_in_by(Map::Closed).then(Drop),
                Rule::new().out_of(Map::Closed).then(Drop),
                Rule::new().ct(Ct::Invalid).then(Jump(UNTRANSLATED)),
                Rule::new().out_of(Map::Guarded).then(Jump("guard")),
            ],
        ),
        // A port that address translation does not publish in a family is answered there by a proxy on the host, and what that
        // passes on is never forwarded.
        chain(
            "input",
            hook("filter", 1, 0),
            vec![Rule::new().came_in_by(Map::Sealed).then(Jump("services"))],
        ),
        chain("services", None, services.drop()),
        // A packet that connection tracking calls invalid is not masqueraded, and would leave with the container's address.
        // Each subnet has a rule here.
        chain(UNTRANSLATED, None, Vec::new()),
        // What a container sends to the gateway's MAC comes back to its bridge, isolated or not.
        chain(
            "within",
            None,
            vec![Rule::new().came_in_by(Map::Isolated).ct(Ct::NotDnat).then(Drop), Rule::new().then(Accept)],
        ),
        chain(
            "guard",
            None,
            vec![
                Rule::new().ct(Ct::Known).then(Accept),
                Rule::new().ct(Ct::Dnat).then(Accept),
                Rule::new().then(Drop),
            ],
        ),
    ]
}

/// A chain of each table, and how many rules it has: what is asked for to see whether the tables are as they were made.
pub const GUARDS: [(Table, &str, usize); 2] = [(Table::Inet, "raw", 3), (Table::Bridge, "prerouting", 1)];

/// How many rules, and jumps to it, the chain has that was asked for; none when it is missing.
pub fn rules_of(answer: std::result::Result<&Message<'_>, i32>) -> usize {
    // NFTA_CHAIN_USE
    answer.ok().and_then(|m| attribute(m.attrs(), 6)).and_then(number).unwrap_or(0) as usize
}

/// The chain for packets that the address translation passes over.
pub const UNTRANSLATED: &str = "untranslated";

/// The name of a scope's chain; of several, of the one that tells whether they are there.
pub fn chain_of(scope: Scope) -> String {
    match scope {
        Scope::Subnet(net) => format!("subnet-{}", net_name(net)),
        Scope::Excepting(net) => format!("except-{}", net_name(net)),
        Scope::All => "postrouting".into(),
        Scope::Tracked => "forward".into(),
    }
}

/// Matches what is to be masqueraded when it leaves the scope's subnet, which has no host bits; nothing when the scope has
/// none.
fn leaving(scope: Scope) -> Option<Rule> {
    let (net, masq) = match scope {
        Scope::Subnet(net) => (net, Map::Masq(net)),
        Scope::Excepting(net) => (net, Map::MasqExcept(net)),
        Scope::All | Scope::Tracked => return None,
    };
    let v6 = net.is_ipv6();
    let multicast = match v6 {
        false => network(Ipv4Addr::new(224, 0, 0, 0).into(), 4),
        true => network(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
    };
    let rule = Rule::new().address_in(Side::Source, v6, masq);
    // A container without a subnet is alone in its own.
    let rule = if is_hosts(net) { rule } else { rule.not_address(Side::Destination, net) };
    let rule = rule.not_address(Side::Destination, multicast);
    Some(match scope {
        Scope::Excepting(net) => rule.pair_not_in(v6, Map::Except(net)),
        _ => rule,
    })
}

/// What a scope needs besides its sets and its rule in [`UNTRANSLATED`]: a chain that masquerades what leaves the subnet, and
/// what comes to published ports from the subnet itself, from the host's loopback, or, for [`Scope::All`], from anywhere. It
/// hangs in the hook by itself, so that no rule has to lead to it.
fn scope_chains(scope: Scope, services: Services) -> Vec<Chain> {
    let mut rules: Vec<_> = leaving(scope).map(Rule::masquerade).into_iter().collect();
    match scope {
        Scope::Subnet(net) => rules.extend(hairpins(net)),
        Scope::Excepting(_) => {}
        Scope::Tracked => return tracked_chains(services),
        Scope::All => rules.extend([false, true].map(|v6| {
            let set = Map::hairpin_all(v6);
            Rule::new().translated_by_us().address_in(Side::Destination, v6, set).masquerade()
        })),
    }
    vec![chain(&chain_of(scope), hook("nat", 4, 100), rules)]
}

/// Masquerades what comes to published ports.
fn hairpins(net: IpNetwork) -> Vec<Rule> {
    let v6 = net.is_ipv6();
    let hairpin = |from| {
        Rule::new()
            .translated_by_us()
            .address(Side::Source, from)
            .address_in(Side::Destination, v6, Map::hairpin(net))
            .masquerade()
    };
    let mut rules = vec![if is_hosts(net) {
        // A container without a subnet is alone in its own.
        Rule::new().translated_by_us().pair_in(v6, Map::hairpin_self(v6)).masquerade()
    } else {
        hairpin(net)
    }];
    if !v6 {
        rules.push(hairpin(loopback4()));
    }
    rules
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
    push_chains(batch, chains);
}

/// Adds chains, and then their rules, which may lead to any of them.
fn push_chains(batch: &mut Batch, chains: &[Chain]) {
    chains.iter().for_each(|chain| chain.push(batch));
    chains.iter().for_each(|chain| chain.push_rules(batch));
}

/// Adds what a scope needs to a batch; it must not be there yet (EEXIST), or its rules would be doubled.
pub fn push_scope(batch: &mut Batch, scope: Scope, services: Services) {
    for map in Map::of_scope(scope) {
        push_set(batch, map);
    }
    push_chains(batch, &scope_chains(scope, services));
    let Some(leaving) = leaving(scope) else { return };
    batch.push("add a rule to", msg::NEWRULE, flag::CREATE | flag::APPEND, |w| {
        w.str(2, UNTRANSLATED);
        w.bytes(4 | 0x8000, leaving.then(Verdict::Drop).bytes());
        w.bytes(7, &user_comment(0, &comment_of(scope)));
    });
}

/// The comment of a scope's rule in [`UNTRANSLATED`].
fn comment_of(scope: Scope) -> String {
    match scope {
        Scope::Subnet(net) => net.to_string(),
        Scope::Excepting(net) => format!("{net} with exceptions"),
        Scope::All => "all".into(),
        Scope::Tracked => "tracked".into(),
    }
}

/// Adds the deletion of what a scope needed to a batch; `rules` are those of [`UNTRANSLATED`]: comment and handle.
pub fn push_scope_deletion(batch: &mut Batch, scope: Scope, rules: &[(String, Vec<u8>)]) {
    let comment = comment_of(scope);
    for (_, handle) in rules.iter().filter(|(found, _)| *found == comment) {
        batch.push("delete a rule of", msg::DELRULE, 0, |w| {
            w.str(2, UNTRANSLATED);
            w.bytes(3, handle);
        });
    }
    batch.push("delete a chain of", msg::DELCHAIN, 0, |w| w.str(3, &chain_of(scope)));
    for map in Map::of_scope(scope) {
        batch.push("delete a set of", msg::DELSET, 0, |w| head(w, map));
    }
}

/// The names of the table's and these scopes' chains, and how many rules each has.
pub fn census(table: Table, scopes: &[Scope]) -> Vec<(String, usize)> {
    // Of the scopes in question, each that masquerades what leaves a subnet has a rule there.
    let untranslated = scopes.iter().filter(|scope| leaving(**scope).is_some()).count();
    let of_table = chains(table).into_iter().map(|chain| (chain.name, chain.rules.len()));
    let of_scopes = scopes.iter().flat_map(|scope| census_of(*scope));
    let counted = |(name, count)| if name == UNTRANSLATED { (name, untranslated) } else { (name, count) };
    of_table.chain(of_scopes.map(counted)).collect()
}

/// The names of a scope's chains, and how many rules each has for itself.
pub fn census_of(scope: Scope) -> Vec<(String, usize)> {
    // Without the mark there are more rules.
    scope_chains(scope, Services::Marked).into_iter().map(|chain| (chain.name, chain.rules.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_have_the_rules_of_their_chains() {
        for (table, name, count) in GUARDS {
            assert!(census(table, &[]).contains(&(name.to_owned(), count)), "{table} {name}");
        }
    }
}
