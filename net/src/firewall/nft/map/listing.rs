//! What the kernel keeps of a set for nft alone, so that it lists and loads the set.

use super::Map;

impl Map {
    /// The byte order of the key as nft wants it in a set's user data (0 for a concatenation, 1 the host's, 2 the
    /// network's), without which it prints the elements of some types wrongly.
    pub(super) fn byte_order(self) -> u32 {
        match self {
            Map::HairpinAll4 | Map::HairpinAll6 | Map::Masq(_) | Map::MasqExcept(_) | Map::Hairpin(_) => 2,
            Map::Vteps4 | Map::Vteps6 | Map::Nodes4 | Map::Nodes6 | Map::VxlanPorts | Map::Vnis => 2,
            Map::Paths4 | Map::Paths6 => 2,
            Map::Closed | Map::Sealed | Map::Isolated | Map::Proxied | Map::Bound | Map::Bound6 => 1,
            Map::StoresHere => 2,
            Map::Guarded | Map::Bridges | Map::Strict | Map::Localnet | Map::Watched | Map::SourceOf => 1,
            Map::Groups | Map::Internal | Map::Routed => 1,
            _ => 0,
        }
    }

    /// What nft shows in the set.
    pub(super) fn comment(self) -> Option<&'static str> {
        Some(match self {
            Map::Bridges => "links of bridges with attachments",
            Map::Strict => "bridges that bring only sources behind them",
            Map::Closed => "bridges without a way in or out",
            Map::Sealed => "bridges that reach no service of Weft on the host",
            Map::Isolated => "bridges whose containers do not see each other",
            Map::Proxied => "bridges that reach published ports by their proxies",
            Map::BridgePairs => "the same bridge, in and out",
            Map::Except(_) => "containers and where to they are not masqueraded",
            Map::Localnet => "links with route_localnet set by Weft",
            Map::Bound | Map::Bound6 => "ports that send from their addresses alone",
            Map::Vnis => "VNIs of overlay networks",
            Map::Vteps4 | Map::Vteps6 => "hosts whose VXLAN packets are taken",
            Map::Nodes4 | Map::Nodes6 => "all nodes, to which no container sends VXLAN packets",
            Map::Paths4 | Map::Paths6 => "nodes, about packets to which no container sends ICMP errors",
            Map::VxlanPorts => "ports at which nodes take VXLAN packets",
            Map::Groups => "link groups of overlay networks",
            Map::GroupPairs => "the same link group, in and out",
            Map::Internal => "groups of networks without a way out",
            Map::Routed => "groups of networks with a way in for all that is routed here",
            Map::Direct4 | Map::Direct6 => "subnets whose packets other hosts may send as they are",
            Map::Stores4 | Map::Stores6 => "the cluster's store, to which no container connects",
            Map::StoresHere => "ports of the cluster's store on this node",
            Map::Nets4 | Map::Nets6 => "subnets of overlay networks, with their family",
            _ => return None,
        })
    }

    /// The user data by which nft knows that the keys are `typeof` an expression; else none.
    pub(super) fn typeof_key(self) -> Vec<u8> {
        match self {
            Map::Vnis => nest(3, &payload(96, 24)),
            Map::Paths4 => nest(3, &payload(192, 32)),
            Map::Paths6 => nest(3, &payload(256, 128)),
            Map::Targets6 => nest(3, &port_and_target()),
            _ => Vec::new(),
        }
    }
}

fn number(kind: u8, value: u32) -> Vec<u8> {
    [&[kind, 4][..], &value.to_ne_bytes()].concat()
}

fn nest(kind: u8, inner: &[u8]) -> Vec<u8> {
    [&[kind, inner.len() as u8][..], inner].concat()
}

/// `@th,BIT,BITS`: an expression of type 7 (payload), of no known header field (0, 0), from the transport header (3)
/// (libnftables, payload.c).
fn payload(bit: u32, bits: u32) -> Vec<u8> {
    let of = [number(0, 0), number(1, 0), number(2, 3), number(3, bit), number(4, bits)].concat();
    [number(0, 7), nest(1, &of)].concat()
}

/// `iifname . @th,64,128`: one of type 13 (concatenation) of one of type 9 (meta, the key 6) and the target of a neighbour
/// advertisement (libnftables, expression.c and meta.c).
fn port_and_target() -> Vec<u8> {
    let iifname = [number(0, 9), nest(1, &number(0, 6))].concat();
    let parts = [nest(0, &iifname), nest(1, &payload(64, 128))].concat();
    [number(0, 13), nest(1, &parts)].concat()
}
