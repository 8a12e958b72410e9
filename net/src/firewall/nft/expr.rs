//! Rules: the few expressions they are made of (linux/netfilter/nf_tables.h), written as nft itself compiles them, so
//! that `nft list ruleset` can read them back.

mod address;
mod service;
mod store;
mod unreachable;

pub use address::Sender;

use super::element::Map;
use super::wire::Writer;

/// NFT_REG_1, and the registers of four bytes behind it.
const REG1: u32 = 1;
const REG32: u32 = 8;
/// NFT_REG_3, which `dnat` leaves alone.
const REG3: u32 = 3;
/// NFT_CT_LABELS
const CT_LABELS: u32 = 13;
/// The label (of 128) of connections that Weft's own rules translated.
const LABEL: u128 = 1 << 87;
/// NFT_LOOKUP_F_INV
const LOOKUP_INV: u32 = 1;
/// The verdict register.
const VERDICT: u32 = 0;

/// Which address of a packet.
#[derive(Clone, Copy)]
pub enum Side {
    Source,
    Destination,
}

/// Which link of a forwarded packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
}

impl Way {
    fn group(self) -> Meta {
        if self == Way::In { Meta::Iifgroup } else { Meta::Oifgroup }
    }

    fn link(self) -> Meta {
        if self == Way::In { Meta::Iif } else { Meta::Oif }
    }
}

/// `meta` keys (enum nft_meta_keys).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    Protocol = 1,
    Iif = 4,
    Oif = 5,
    Iifname = 6,
    Oifname = 7,
    Nfproto = 15,
    L4proto = 16,
    Iifgroup = 21,
    Oifgroup = 22,
    Iifkind = 26,
}

/// `ct` keys and the bits asked for.
#[derive(Clone, Copy)]
pub enum Ct {
    /// state: established or related
    Known,
    /// state: invalid
    Invalid,
    /// status: destination translated
    Dnat,
    /// status: destination not translated
    NotDnat,
}

/// Verdicts of rules.
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(&'static str),
    /// As a jump, and the chain's end is that of the one before it.
    Goto(&'static str),
}

/// One rule.
pub struct Rule {
    /// Its expressions.
    expressions: Writer,
    /// The family (is it IPv6?) that it asks for already.
    family: Option<bool>,
    /// What nft shows behind it.
    comment: Option<&'static str>,
}

impl Rule {
    pub fn new() -> Self {
        Rule { expressions: Writer::default(), family: None, comment: None }
    }

    /// A rule for a table of this family alone (is it IPv6?), which need not ask for it.
    pub fn of_family(v6: bool) -> Self {
        Rule { family: Some(v6), ..Rule::new() }
    }

    /// The bytes of NFTA_RULE_EXPRESSIONS' content.
    pub fn bytes(&self) -> &[u8] {
        &self.expressions.buf
    }

    /// Its comment.
    pub fn comment(&self) -> Option<&'static str> {
        self.comment
    }

    /// With a comment, of at most 127 bytes.
    pub fn commented(mut self, comment: &'static str) -> Self {
        self.comment = Some(comment);
        self
    }

    fn expr(&mut self, name: &str, fill: impl FnOnce(&mut Writer)) {
        self.expressions.nest(1, |w| {
            w.str(1, name);
            w.nest(2, fill);
        });
    }

    fn meta_to(&mut self, key: Meta, register: u32) {
        self.expr("meta", |w| {
            w.u32(1, register);
            w.u32(2, key as u32);
        });
    }

    fn compare(&mut self, not: bool, bytes: &[u8]) {
        self.expr("cmp", |w| {
            w.u32(1, REG1);
            w.u32(2, not as u32);
            w.nest(3, |w| w.bytes(1, bytes));
        });
    }

    fn payload(&mut self, base: u32, offset: u32, len: u32, register: u32) {
        self.expr("payload", |w| {
            w.u32(1, register);
            w.u32(2, base);
            w.u32(3, offset);
            w.u32(4, len);
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        self.expr("bitwise", |w| {
            w.u32(1, REG1);
            w.u32(2, REG1);
            w.u32(3, mask.len() as u32);
            w.nest(4, |w| w.bytes(1, mask));
            w.nest(5, |w| w.bytes(1, &vec![0; mask.len()]));
        });
    }

    fn lookup(&mut self, map: Map, to: Option<u32>) {
        self.expr("lookup", |w| {
            w.str(1, &map.name());
            w.u32(2, REG1);
            if let Some(register) = to {
                w.u32(3, register);
            }
        });
    }

    fn lookup_not(&mut self, map: Map) {
        self.expr("lookup", |w| {
            w.str(1, &map.name());
            w.u32(2, REG1);
            w.u32(5, LOOKUP_INV);
        });
    }

    fn fib(&mut self, result: u32, flags: u32) {
        self.expr("fib", |w| {
            w.u32(1, REG1);
            w.u32(2, result);
            w.u32(3, flags);
        });
    }

    fn offset(side: Side, v6: bool) -> u32 {
        match (side, v6) {
            (Side::Source, false) => 12,
            (Side::Destination, false) => 16,
            (Side::Source, true) => 8,
            (Side::Destination, true) => 24,
        }
    }

    /// Matches on NFPROTO_IPV4 or NFPROTO_IPV6, once in a rule.
    fn family(mut self, v6: bool) -> Self {
        if self.family != Some(v6) {
            self.family = Some(v6);
            self.meta_to(Meta::Nfproto, REG1);
            self.compare(false, &[if v6 { 10 } else { 2 }]);
        }
        self
    }

    /// `iif != "lo"`: the loopback device has index 1 in every namespace.
    pub fn not_from_loopback(mut self) -> Self {
        self.meta_to(Meta::Iif, REG1);
        self.compare(true, &1u32.to_ne_bytes());
        self
    }

    /// `iif != eth0` or `oif != eth0`, the interface by its index
    pub fn not_by_link(mut self, way: Way, index: u32) -> Self {
        self.meta_to(way.link(), REG1);
        self.compare(true, &index.to_ne_bytes());
        self
    }

    /// `iif eth0` or `oif eth0`, the interface by its index
    pub fn by_link(mut self, way: Way, index: u32) -> Self {
        self.meta_to(way.link(), REG1);
        self.compare(false, &index.to_ne_bytes());
        self
    }

    /// `iifgroup @set` or `oifgroup @set`
    pub fn group_in(mut self, way: Way, map: Map) -> Self {
        self.meta_to(way.group(), REG1);
        self.lookup(map, None);
        self
    }

    /// `iifgroup != 0` or `oifgroup != 0`: the link is in a group
    pub fn grouped(mut self, way: Way) -> Self {
        self.meta_to(way.group(), REG1);
        self.compare(true, &[0; 4]);
        self
    }

    /// `iifgroup != @set` or `oifgroup != @set`
    pub fn group_not_in(mut self, way: Way, map: Map) -> Self {
        self.meta_to(way.group(), REG1);
        self.lookup_not(map);
        self
    }

    /// `iifgroup . oifgroup @set`
    pub fn groups_in(mut self, map: Map) -> Self {
        self.meta_to(Meta::Iifgroup, REG1);
        self.meta_to(Meta::Oifgroup, REG32 + 1);
        self.lookup(map, None);
        self
    }

    /// `ip saddr . oifgroup @set`: an address and the group of the link on the given way
    pub fn address_and_group_in(self, side: Side, v6: bool, way: Way, map: Map) -> Self {
        self.address_and(side, v6, way.group(), map)
    }

    /// `ip saddr . meta nfproto @set`: an address and the family, for sets of ranges that have nothing else to ask (nftables'
    /// set of ranges that is fast wants two fields)
    pub fn address_and_family_in(self, side: Side, v6: bool, map: Map) -> Self {
        self.address_and(side, v6, Meta::Nfproto, map)
    }

    fn address_and(self, side: Side, v6: bool, number: Meta, map: Map) -> Self {
        let mut rule = self.family(v6);
        let words = if v6 { 4 } else { 1 };
        rule.payload(1, Self::offset(side, v6), words * 4, REG1);
        rule.meta_to(number, REG32 + words);
        if number != Meta::Nfproto {
            // In sets of ranges nft has all numbers in network byte order. NFT_BYTEORDER_HTON, of one number of four bytes.
            rule.expr("byteorder", |w| {
                [REG32 + words, REG32 + words, 1, 4, 4]
                    .into_iter()
                    .zip(1..)
                    .for_each(|(value, kind)| w.u32(kind, value));
            });
        }
        rule.lookup(map, None);
        rule
    }

    /// `udp dport 4789`
    pub fn udp_port(mut self, port: u16) -> Self {
        self.meta_to(Meta::L4proto, REG1);
        self.compare(false, &[17]);
        self.payload(2, 2, 2, REG1);
        self.compare(false, &port.to_be_bytes());
        self
    }

    /// `udp dport @set`
    pub fn udp_port_in(mut self, map: Map) -> Self {
        self.meta_to(Meta::L4proto, REG1);
        self.compare(false, &[17]);
        self.payload(2, 2, 2, REG1);
        self.lookup(map, None);
        self
    }

    /// `@th,96,24 @set`: the VNI of VXLAN, behind UDP's header of 8 bytes and flags of 4 (RFC 7348, section 5)
    pub fn vni_in(mut self, map: Map) -> Self {
        self.payload(2, 12, 3, REG1);
        self.lookup(map, None);
        self
    }

    /// `fib daddr type local`
    pub fn for_this_host(mut self) -> Self {
        // NFT_FIB_RESULT_ADDRTYPE; NFTA_FIB_F_DADDR
        self.fib(3, 2);
        self.compare(false, &2u32.to_ne_bytes());
        self
    }

    /// `iifkind "veth"`
    pub fn by_veth(mut self) -> Self {
        self.meta_to(Meta::Iifkind, REG1);
        self.compare(false, b"veth\0\0\0\0\0\0\0\0\0\0\0\0");
        self
    }

    /// `fib saddr . iif oif 0`: no route leads back to the source by the link that the packet came by
    pub fn no_way_back(mut self) -> Self {
        // NFT_FIB_RESULT_OIF; NFTA_FIB_F_SADDR and NFTA_FIB_F_IIF
        self.fib(1, 9);
        self.compare(false, &[0; 4]);
        self
    }

    /// `fib saddr oif @set`: the link by which the source is reached
    pub fn source_is_behind(mut self, map: Map) -> Self {
        // NFT_FIB_RESULT_OIF; NFTA_FIB_F_SADDR
        self.fib(1, 1);
        self.lookup(map, None);
        self
    }

    /// `ct state established,related` or `ct status dnat`
    pub fn ct(mut self, what: Ct) -> Self {
        let (key, bits) = match what {
            Ct::Known => (0u32, 6u32),
            Ct::Invalid => (0, 1),
            Ct::Dnat | Ct::NotDnat => (2, 0x20),
        };
        self.expr("ct", |w| {
            w.u32(1, REG1);
            w.u32(2, key);
        });
        self.mask(&bits.to_ne_bytes());
        self.compare(!matches!(what, Ct::NotDnat), &[0; 4]);
        self
    }

    /// `ct state established,related,dnat` as iptables has it: revision 3 of its match `conntrack`
    /// (struct xt_conntrack_mtinfo3 of linux/netfilter/xt_conntrack.h)
    pub fn iptables_known_or_dnat(mut self) -> Self {
        let mut info = [0; 168];
        // match_flags: XT_CONNTRACK_STATE; state_mask: ESTABLISHED, RELATED and DNAT
        info[146..148].copy_from_slice(&1u16.to_ne_bytes());
        info[150..152].copy_from_slice(&0x86u16.to_ne_bytes());
        self.expr("match", |w| {
            w.str(1, "conntrack");
            w.u32(2, 3);
            w.bytes(3, &info);
        });
        self
    }

    /// `ct status dnat ct label 87`: a connection that one of Weft's own rules translated
    pub fn translated_by_us(self) -> Self {
        let mut rule = self.ct(Ct::Dnat);
        rule.expr("ct", |w| {
            w.u32(1, REG1);
            w.u32(2, CT_LABELS);
        });
        rule.mask(&LABEL.to_ne_bytes());
        rule.compare(true, &[0; 16]);
        rule
    }

    /// `ct label set 87 dnat ip to [ip daddr .] meta l4proto . th dport map @map`. The label is set only where the map has
    /// the key (in a rule that nft has loaded again, wherever the map is asked).
    pub fn dnat(self, v6: bool, at: bool, map: Map) -> Self {
        let mut rule = self.family(v6);
        let words = if v6 { 4 } else { 1 };
        let mut register = REG1;
        let mut next = REG32;
        if at {
            rule.payload(1, Self::offset(Side::Destination, v6), words * 4, REG1);
            next += words;
            register = next;
        }
        rule.meta_to(Meta::L4proto, register);
        next += 1;
        rule.payload(2, 2, 2, next);
        rule.lookup(map, Some(REG1));
        rule.expr("immediate", |w| {
            w.u32(1, REG3);
            w.nest(2, |w| w.bytes(1, &LABEL.to_ne_bytes()));
        });
        rule.expr("ct", |w| {
            w.u32(2, CT_LABELS);
            w.u32(4, REG3);
        });
        rule.expr("nat", |w| {
            w.u32(1, 1);
            w.u32(2, if v6 { 10 } else { 2 });
            w.u32(3, REG1);
            w.u32(5, REG32 + words);
        });
        rule
    }

    /// `iifname @set`
    pub fn came_in_by(mut self, map: Map) -> Self {
        self.meta_to(Meta::Iifname, REG1);
        self.lookup(map, None);
        self
    }

    /// `iifname . ether saddr != @set`
    pub fn not_from(mut self, map: Map) -> Self {
        self.meta_to(Meta::Iifname, REG1);
        // In the link layer's header, behind the destination.
        self.payload(0, 6, 6, REG32 + 4);
        self.lookup_not(map);
        self
    }

    /// `oifname @set`
    pub fn out_of(mut self, map: Map) -> Self {
        self.meta_to(Meta::Oifname, REG1);
        self.lookup(map, None);
        self
    }

    /// `iifname . oifname @set`
    pub fn through(mut self, map: Map) -> Self {
        self.meta_to(Meta::Iifname, REG1);
        self.meta_to(Meta::Oifname, REG32 + 4);
        self.lookup(map, None);
        self
    }

    /// `iifname "br0"` or `oifname "br0"`
    pub fn by_name(mut self, way: Way, name: &str) -> Self {
        self.meta_to(if way == Way::In { Meta::Iifname } else { Meta::Oifname }, REG1);
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(16, 0);
        self.compare(false, &bytes);
        self
    }

    /// `counter`
    pub fn counter(mut self) -> Self {
        self.expr("counter", |_| {});
        self
    }

    /// `masquerade`
    pub fn masquerade(mut self) -> Self {
        self.expr("masq", |_| {});
        self
    }

    /// Ends the rule with a verdict.
    pub fn then(mut self, end: Verdict) -> Self {
        // Codes: enum nft_verdicts and linux/netfilter.h.
        let (code, chain): (i32, _) = match end {
            Verdict::Accept => (1, None),
            Verdict::Drop => (0, None),
            Verdict::Return => (-5, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
        };
        self.expr("immediate", |w| {
            w.u32(1, VERDICT);
            w.nest(2, |w| {
                w.nest(2, |w| {
                    w.u32(1, code as u32);
                    if let Some(chain) = chain {
                        w.str(2, chain);
                    }
                });
            });
        });
        self
    }
}
