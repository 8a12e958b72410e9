//! The table's frame: its chains and rules, and how one that is there is recognised.

use crate::Result;
use crate::firewall::nft::base::{Chain, Services, chain, hook, push_frame};
use crate::firewall::nft::element::Map;
use crate::firewall::nft::expr::{Ct, Rule, Side, Verdict, Way};
use crate::firewall::nft::socket::{Question, Socket};
use crate::firewall::nft::table::Table;
use crate::firewall::nft::wire::{Batch, Writer, attribute, comment_of, msg, number, text};

use super::Rules;
use ipnetwork::{IpNetwork, Ipv6Network};
use std::net::{IpAddr, Ipv6Addr};

/// NF_INET_PRE_ROUTING, and a priority before connections are tracked.
const PREROUTING: u32 = 0;
const RAW: i32 = -300;
/// NF_INET_LOCAL_IN: there fragments have been put together. NF_INET_FORWARD.
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
/// Before the chains that other programs have at 0, the usual place of a filter.
const PRIORITY: i32 = -10;

/// The chains that some rules need.
pub struct Frame {
    chains: Vec<Chain>,
}

/// What is compared of a frame. The table's comment has a number made from all of its rules; each rule has a comment, so one
/// that was added, exchanged or removed by hand shows.
#[derive(Debug, PartialEq, Eq)]
pub struct Shape {
    table: String,
    sets: Vec<String>,
    /// The chains, with a base chain's policy.
    chains: Vec<(String, Option<u32>)>,
    /// Of each rule its chain and comment.
    rules: Vec<(String, String)>,
}

impl Frame {
    /// The frame for these rules: of them it depends on the port, the underlay's link and its address, and whether there is a
    /// store to be closed.
    pub fn of(rules: &Rules, services: Services) -> Frame {
        let hooked = |at| hook("filter", at, PRIORITY);
        let mut frame = Frame {
            chains: vec![
                chain("prerouting", hook("filter", PREROUTING, RAW), prerouting(rules.port, rules.underlay)),
                chain("input", hooked(INPUT), input(rules.port)),
                chain("forward", hooked(FORWARD), forward(rules.underlay)),
                chain("services", None, services.drop()),
                chain("sources", None, sources()),
                chain("astray", None, astray()),
                chain("foreign", None, foreign()),
                chain("errors4", None, errors(false)),
                chain("errors6", None, errors(true)),
                chain("arrive", None, arrive(rules.underlay, rules.vtep)),
                chain("vxlan", None, vxlan(rules.underlay)),
                chain("inward", None, inward(rules.underlay)),
                chain("outward", None, outward()),
            ],
        };
        if rules.closes_store() {
            frame.close_store(rules.underlay);
        }
        frame
    }

    /// Puts the rules that keep containers away from the store before all others, in each hook: before conntrack and translation,
    /// for what a container calls by the endpoint's own name, which may be a Service or a published port; and behind them,
    /// for what is translated to the endpoint. Connections that were there before end too.
    ///
    /// The links are told by their group, which they have from the beginning, so there is no moment in which one is not
    /// known. A bridge that is the underlay's link brings other nodes too.
    fn close_store(&mut self, underlay: u32) {
        let from_container = || {
            let rule = Rule::new().by_container_link();
            if underlay == 0 { rule } else { rule.not_by_link(Way::In, underlay) }
        };
        for chain in self.chains.iter_mut().filter(|chain| chain.hook.is_some()) {
            if chain.name == "input" {
                // The store may listen at all addresses of the node, also at a bridge's.
                let here = from_container().tcp_port_in(Map::StoresHere).then(Verdict::Drop);
                chain.rules.insert(0, here.commented("of a container to the store here"));
            }
            let closed = from_container().then(Verdict::Jump("stores"));
            chain.rules.insert(0, closed.commented("of a container"));
        }
        let to_store = |v6, set| Rule::new().address_and_tcp_port_in(v6, set).then(Verdict::Drop);
        let rules = vec![
            to_store(false, Map::Stores4).commented("to the store"),
            to_store(true, Map::Stores6).commented("to the store, IPv6"),
        ];
        self.chains.push(chain("stores", None, rules));
    }

    /// Adds the table with its sets, chains and rules to a batch.
    pub fn push(&self, batch: &mut Batch) {
        push_frame(batch, &self.comment(), &self.chains);
    }

    fn comment(&self) -> String {
        let mut bytes = Writer::default();
        for chain in &self.chains {
            bytes.str(1, &chain.name);
            if let Some(hook) = &chain.hook {
                bytes.u32(2, hook.hook);
                bytes.u32(3, hook.priority as u32);
            }
            chain.rules.iter().for_each(|rule| bytes.bytes(4, rule.bytes()));
        }
        Map::OVERLAY_FRAME.iter().for_each(|map| map.write(0, &mut bytes));
        format!("Weft overlay networks, frame {:08x}", fnv(&bytes.buf))
    }

    /// As [`read`] finds it.
    pub fn shape(&self) -> Shape {
        let policy = |chain: &Chain| chain.hook.as_ref().map(|_| ACCEPT);
        let comments = |chain: &Chain| {
            let name = chain.name.clone();
            let comments = chain.rules.iter().map(|rule| rule.comment().unwrap_or_default().to_owned());
            comments.map(|comment| (name.clone(), comment)).collect::<Vec<_>>()
        };
        Shape {
            table: self.comment(),
            sets: sorted(Map::OVERLAY_FRAME.iter().map(|map| map.name().into_owned()).collect()),
            chains: sorted(self.chains.iter().map(|chain| (chain.name.clone(), policy(chain))).collect()),
            rules: self.chains.iter().flat_map(comments).collect(),
        }
    }
}

/// NF_ACCEPT
const ACCEPT: u32 = 1;

fn sorted<T: Ord>(mut all: Vec<T>) -> Vec<T> {
    all.sort();
    all
}

/// FNV-1a (32 bits): the same number from every build.
fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Forged sources, before connections are tracked: an answer to one would make a connection that lets its sender in. A
/// container sends from addresses that are routed to it by its link alone, and a network's address is the source of packets
/// only by the link that its route leads to: a container's, the network's device, or with direct routing the underlay's.
/// Other nodes' VXLAN packets, which are most of what the underlay's link brings, have to pass the cheap rules alone, and a
/// container's have one way looked up.
fn prerouting(port: u16, underlay: u32) -> Vec<Rule> {
    let icmp = |v6| match underlay {
        0 => Rule::new().icmp(v6).grouped(Way::In).group_in(Way::In, Map::Groups),
        link => Rule::new().icmp(v6).not_from_loopback().not_by_link(Way::In, link),
    };
    let from_container = Rule::new().grouped(Way::In).by_veth().group_in(Way::In, Map::Groups);
    let mut rules = vec![
        icmp(false).then(Verdict::Jump("errors4")).commented("ICMP by another link"),
        icmp(true).then(Verdict::Jump("errors6")).commented("ICMP by another link, IPv6"),
        from_container.then(Verdict::Goto("sources")).commented("from a container"),
    ];
    if underlay != 0 {
        let vxlan =
            |v6, set| Rule::new().by_link(Way::In, underlay).udp_port(port).address_in(Side::Source, v6, set);
        rules.push(vxlan(false, Map::Vteps4).then(Verdict::Return).commented("VXLAN of another node"));
        rules.push(vxlan(true, Map::Vteps6).then(Verdict::Return).commented("VXLAN of another node, IPv6"));
    }
    let astray = Rule::new().not_from_loopback().no_way_back().then(Verdict::Jump("astray"));
    rules.push(astray.commented("by another link than the way back"));
    rules
}

/// To look for an address in sets of ranges takes longer than to look up the way back, which nearly all packets have.
fn astray() -> Vec<Rule> {
    let forged = |v6, set| Rule::new().address_and_family_in(Side::Source, v6, set).then(Verdict::Drop);
    vec![
        forged(false, Map::Nets4).commented("a network's address by another link"),
        forged(true, Map::Nets6).commented("a network's address by another link, IPv6"),
    ]
}

fn sources() -> Vec<Rule> {
    let foreign = Rule::new().no_way_back().then(Verdict::Jump("foreign"));
    vec![foreign.commented("from an address that is not the container's")]
}

/// ICMP errors about packets to a node, which the way to it alone may send, and that is the underlay's link. The kernel takes
/// them from any source: a container would lower the MTU between nodes below what the networks need.
/// Those about packets to this node itself would be for another one.
fn errors(v6: bool) -> Vec<Rule> {
    // ICMP_ECHO and ICMP_ECHOREPLY (linux/icmp.h); ICMPv6's errors are those below 128.
    let mut rules = match v6 {
        false => vec![
            Rule::of_family(v6).message_type(8).then(Verdict::Return).commented("an echo request"),
            Rule::of_family(v6).message_type(0).then(Verdict::Return).commented("an echo reply"),
        ],
        true => vec![Rule::of_family(v6).informational().then(Verdict::Return).commented("no error")],
    };
    let paths = if v6 { Map::Paths6 } else { Map::Paths4 };
    let about = Rule::of_family(v6).about(paths);
    rules.push(about.then(Verdict::Drop).commented("about packets to a node"));
    rules
}

/// What is said on the link itself is never forwarded, and the host may have no route for these addresses on each link.
fn foreign() -> Vec<Rule> {
    vec![
        Rule::new()
            .address(Side::Source, link_local())
            .then(Verdict::Return)
            .commented("neighbours on the link, IPv6"),
        Rule::new().then(Verdict::Drop).commented("another's address"),
    ]
}

/// fe80::/10 (RFC 4291, section 2.4)
fn link_local() -> IpNetwork {
    const ADDR: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
    Ipv6Network::new(ADDR, 10).map_or_else(|_| IpAddr::from(ADDR).into(), IpNetwork::V6)
}

/// VXLAN packets of our networks; others' are left alone. And what internal networks send to the host itself.
fn input(port: u16) -> Vec<Rule> {
    vec![
        Rule::new().udp_port(port).vni_in(Map::Vnis).then(Verdict::Jump("arrive")).commented("VXLAN of ours"),
        Rule::new()
            .group_in(Way::In, Map::Internal)
            .then(Verdict::Jump("services"))
            .commented("from a network without a way out"),
    ]
}

/// They are taken from nodes that we know, by the underlay's link: a container of this host, also one of an ordinary bridge,
/// may have any address as its source. The kernel's socket takes those to any address of this node; other nodes send to the
/// VTEP, and keep what their containers send from it alone.
fn arrive(underlay: u32, vtep: Option<IpAddr>) -> Vec<Rule> {
    let foreign = |v6, set| Rule::new().address_not_in(Side::Source, v6, set).then(Verdict::Drop);
    let elsewhere = if underlay == 0 {
        Rule::new().grouped(Way::In).group_in(Way::In, Map::Groups)
    } else {
        Rule::new().not_by_link(Way::In, underlay)
    };
    let mut rules = vec![
        elsewhere.then(Verdict::Drop).commented("by another link than the underlay's"),
        foreign(false, Map::Vteps4).commented("from a host that is none of ours"),
        foreign(true, Map::Vteps6).commented("from a host that is none of ours, IPv6"),
    ];
    if let Some(vtep) = vtep {
        let to_vtep = Rule::new().address(Side::Destination, vtep.into());
        rules.push(to_vtep.then(Verdict::Return).commented("to this node's VTEP"));
        rules.push(Rule::new().then(Verdict::Drop).commented("to another address of this node"));
    }
    rules
}

/// Drops VXLAN packets that are forwarded to a node, unless one node routes for another: nodes send their own, and a
/// container's would, masqueraded, seem to be its node's. So are those from a node's address, to whichever address.
fn vxlan(underlay: u32) -> Vec<Rule> {
    let to = |rule: Rule, v6, set| rule.address_in(Side::Destination, v6, set).then(Verdict::Drop);
    let from = |rule: Rule, v6, set| rule.address_in(Side::Source, v6, set).then(Verdict::Drop);
    let elsewhere = || match underlay {
        0 => Rule::new().group_in(Way::In, Map::Groups),
        link => Rule::new().not_by_link(Way::In, link),
    };
    let foreign = |v6, set| Rule::new().address_not_in(Side::Source, v6, set);
    vec![
        to(elsewhere(), false, Map::Nodes4).commented("by another link than the underlay's to a node"),
        to(elsewhere(), true, Map::Nodes6).commented("by another link than the underlay's to a node, IPv6"),
        from(elsewhere(), false, Map::Nodes4).commented("by another link than the underlay's from a node"),
        from(elsewhere(), true, Map::Nodes6)
            .commented("by another link than the underlay's from a node, IPv6"),
        to(foreign(false, Map::Vteps4), false, Map::Vteps4).commented("from none of ours to a host"),
        to(foreign(true, Map::Vteps6), true, Map::Vteps6).commented("from none of ours to a host, IPv6"),
    ]
}

/// In an order in which most packets meet few and cheap rules. What direct routing asks last is the address in a set of
/// ranges, which takes as long as all the rest: one packet of a connection is enough for it.
fn forward(underlay: u32) -> Vec<Rule> {
    use Verdict::{Accept, Drop, Jump};
    let by = |way| Rule::new().by_link(way, underlay);
    let mut rules = vec![Rule::new().udp_port_in(Map::VxlanPorts).then(Jump("vxlan")).commented("VXLAN")];
    if underlay != 0 {
        let out = by(Way::Out).ct(Ct::Known);
        let out = out.group_in(Way::In, Map::Groups).group_not_in(Way::In, Map::Internal);
        let known = by(Way::In).ct(Ct::Known).group_not_in(Way::Out, Map::Internal);
        rules.push(out.then(Accept).commented("of a connection that has got out"));
        rules.push(known.then(Accept).commented("of a connection that has got in"));
    }
    rules.push(Rule::new().groups_in(Map::GroupPairs).then(Accept).commented("within a network"));
    if underlay != 0 {
        // A node's own programs, and what kube-proxy masquerades there, come from its underlay address as they are.
        for (v6, set) in [(false, Map::Vteps4), (true, Map::Vteps6)] {
            let node = by(Way::In).address_in(Side::Source, v6, set);
            let node = node.group_in(Way::Out, Map::Groups).group_not_in(Way::Out, Map::Internal);
            rules.push(node.then(Accept).commented(if v6 { "from a node, IPv6" } else { "from a node" }));
        }
        let families = [
            (false, Map::Direct4, "from another host, as it is", "to another host, as it is"),
            (true, Map::Direct6, "from another host, as it is, IPv6", "to another host, as it is, IPv6"),
        ];
        for (v6, set, from, to) in families {
            let of = |side, way, group| by(way).address_and_group_in(side, v6, group, set).then(Accept);
            rules.push(of(Side::Source, Way::In, Way::Out).commented(from));
            rules.push(of(Side::Destination, Way::Out, Way::In).commented(to));
        }
    }
    rules.extend([
        Rule::new().group_in(Way::In, Map::Internal).then(Drop).commented("no way out"),
        Rule::new().group_in(Way::Out, Map::Internal).then(Drop).commented("no way in"),
        Rule::new().group_in(Way::Out, Map::Groups).then(Jump("inward")).commented("from outside"),
    ]);
    if underlay != 0 {
        // What came by the same link has a source of its own, which the other node sees.
        let outward = Rule::new().not_by_link(Way::In, underlay).by_link(Way::Out, underlay);
        rules.push(outward.then(Jump("outward")).commented("to outside"));
    }
    rules
}

/// Out by the underlay's link, everything goes but to a network's addresses on other nodes: masqueraded, it would seem to be
/// this node's own, which they let in.
fn outward() -> Vec<Rule> {
    let network = |v6, set| {
        let to = Rule::new().address_and_family_in(Side::Destination, v6, set);
        to.then(Verdict::Jump("inward"))
    };
    vec![
        Rule::new().ct(Ct::Known).then(Verdict::Accept).commented("of a connection that has got out"),
        network(false, Map::Nets4).commented("to a network by the underlay"),
        network(true, Map::Nets6).commented("to a network by the underlay, IPv6"),
    ]
}

/// What gets into a network from outside, or from another network.
fn inward(underlay: u32) -> Vec<Rule> {
    let mut rules = vec![
        Rule::new().ct(Ct::Known).then(Verdict::Accept).commented("answers"),
        Rule::new().ct(Ct::Dnat).then(Verdict::Accept).commented("published ports"),
    ];
    if underlay != 0 {
        let routed = Rule::new().by_link(Way::In, underlay).group_in(Way::Out, Map::Routed);
        rules.push(routed.then(Verdict::Accept).commented("routed from outside"));
    }
    rules.push(Rule::new().then(Verdict::Drop).commented("the rest"));
    rules
}

/// Is there such a table?
pub fn exists(socket: &mut Socket) -> Result<bool> {
    table(socket).map(|table| table.is_some())
}

/// The table's comment; with flags (it may be set dormant) that is not ours.
fn table(socket: &mut Socket) -> Result<Option<String>> {
    let mut found = None;
    socket.ask(&[Question::Table(Table::Overlay)], |_, answer| {
        found = answer.ok().map(|m| {
            let flags = attribute(m.attrs(), 2).and_then(number).unwrap_or(0);
            let comment = attribute(m.attrs(), 6).and_then(|user| comment_of(0, user));
            comment.filter(|_| flags == 0).unwrap_or_default()
        });
    })?;
    Ok(found)
}

/// The frame that is there, if there is one.
pub fn read(socket: &mut Socket) -> Result<Option<Shape>> {
    let Some(comment) = table(socket)? else { return Ok(None) };
    let sets = socket.maps(Table::Overlay)?.into_iter().map(|map| map.name().into_owned()).collect();
    let (mut chains, mut rules) = (Vec::new(), Vec::new());
    let named = |attrs: &[u8], kind| attribute(attrs, kind).map(text).unwrap_or_default();
    // Kernels that do not look at the table here dump those of all.
    let ours = |attrs: &[u8]| named(attrs, 1) == Table::Overlay.name();
    socket.dump(
        Table::Overlay,
        msg::GETCHAIN,
        |_| {},
        |m| {
            if ours(m.attrs()) {
                let policy = attribute(m.attrs(), 5).and_then(number);
                chains.push((named(m.attrs(), 3), policy));
            }
            true
        },
    )?;
    socket.dump(
        Table::Overlay,
        msg::GETRULE,
        |_| {},
        |m| {
            if ours(m.attrs()) {
                let comment = attribute(m.attrs(), 7).and_then(|user| comment_of(0, user));
                rules.push((named(m.attrs(), 2), comment.unwrap_or_default()));
            }
            true
        },
    )?;
    Ok(Some(Shape { table: comment, sets: sorted(sets), chains: sorted(chains), rules }))
}
