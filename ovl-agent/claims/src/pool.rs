//! The arithmetic of a network's addresses: blocks, which addresses can be given, which blocks are free.

use ipam::Range;
use ipnetwork::IpNetwork;
use ovl_api::model::{Subnet, View};
use ovl_api::names;
use std::collections::HashSet;
use std::net::IpAddr;

/// An address as a number.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The address of a number, in the family of `like`.
pub(crate) fn address(like: IpAddr, number: u128) -> IpAddr {
    match like {
        // Numbers come from addresses of the same family, so nothing is cut off.
        IpAddr::V4(_) => IpAddr::V4((number as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(number.into()),
    }
}

/// A network of one address.
pub(crate) fn alone(address: IpAddr) -> IpNetwork {
    IpNetwork::from(address)
}

/// The block that an address lies in.
pub(crate) fn block_of(subnet: &Subnet, address: IpAddr) -> IpNetwork {
    let block = IpNetwork::new(address, subnet.block).map(|net| IpNetwork::new(net.network(), subnet.block));
    // A subnet's block length is checked when it is made, and fits its family.
    block.ok().and_then(Result::ok).unwrap_or(subnet.subnet)
}

/// How many addresses a block has.
fn size(subnet: &Subnet) -> u128 {
    let bits: u8 = if subnet.subnet.is_ipv4() { 32 } else { 128 };
    1u128.checked_shl(bits.saturating_sub(subnet.block).into()).unwrap_or(u128::MAX)
}

/// How many blocks a subnet has.
pub(crate) fn count(subnet: &Subnet) -> u128 {
    1u128.checked_shl(subnet.block.saturating_sub(subnet.subnet.prefix()).into()).unwrap_or(u128::MAX)
}

/// Why no container can have an address of the subnet, whoever owns the block.
pub(crate) fn forbidden(subnet: &Subnet, address: IpAddr) -> Option<&'static str> {
    if address == subnet.gateway {
        Some("is the network's gateway")
    } else if address == subnet.subnet.network() {
        Some("is the subnet's own address")
    } else if address.is_ipv4() && address == subnet.subnet.broadcast() {
        Some("is the subnet's broadcast address")
    } else {
        None
    }
}

/// The host's own address in a block; every block has one that no container gets, so that a host's own address never turns
/// out to be a container's when its first block changes.
pub(crate) fn own_address(subnet: &Subnet, block: IpNetwork) -> Option<IpAddr> {
    names::host_address(subnet.subnet, subnet.gateway, block)
}

/// First and last address of a block that containers can have; the gateway and the host's own may lie between.
fn bounds(subnet: &Subnet, block: IpNetwork) -> (IpAddr, IpAddr) {
    let (first, last) = (block.network(), block.broadcast());
    let start = if first == subnet.subnet.network() { address(first, number(first) + 1) } else { first };
    let broadcast = last.is_ipv4() && last == subnet.subnet.broadcast();
    let end = if broadcast { address(last, number(last) - 1) } else { last };
    (start, end)
}

/// The block as a range of the lease store.
pub(crate) fn range(subnet: &Subnet, block: IpNetwork) -> Result<Range, ipam::Error> {
    let (start, end) = bounds(subnet, block);
    Range::new(subnet.subnet, Some(start), Some(end), Some(subnet.gateway))
}

/// How many containers a block has room for.
pub(crate) fn usable(subnet: &Subnet, block: IpNetwork) -> u128 {
    let (start, end) = bounds(subnet, block);
    let gateway = u128::from(start <= subnet.gateway && subnet.gateway <= end);
    (number(end) - number(start) + 1)
        .saturating_sub(gateway + u128::from(own_address(subnet, block).is_some()))
}

/// Up to `want` blocks that nobody owns, the lowest from `from` on; not those to be avoided.
pub(crate) fn free_blocks(
    view: &View,
    network: &str,
    subnet: &Subnet,
    from: Option<IpNetwork>,
    avoid: &HashSet<IpNetwork>,
    want: usize,
) -> Vec<IpNetwork> {
    let (base, step, total) = (number(subnet.subnet.network()), size(subnet), count(subnet));
    let at = |index: u128| address(subnet.subnet.network(), base + index * step);
    let mut index = from.map_or(0, |block| (number(block.network()) - base) / step);
    let mut found = Vec::new();
    let start = (network.to_owned(), alone(at(index.min(total - 1))));
    // A block sorts before or behind a single address at its beginning; only its network matters below.
    let mut owned = view
        .owners
        .range((network.to_owned(), lowest(start.1))..)
        .take_while(|((of, _), _)| of == network)
        .filter(|((_, block), _)| block.prefix() == subnet.block && subnet.subnet.contains(block.network()))
        .map(|((_, block), _)| (number(block.network()) - base) / step)
        .peekable();
    while found.len() < want && index < total {
        while owned.peek().is_some_and(|taken| *taken < index) {
            owned.next();
        }
        let block = IpNetwork::new(at(index), subnet.block);
        match block {
            Ok(block) if owned.peek() != Some(&index) && !avoid.contains(&block) => found.push(block),
            _ => {}
        }
        index += 1;
    }
    found
}

/// The first of all networks that begin at the address of this one.
fn lowest(net: IpNetwork) -> IpNetwork {
    IpNetwork::new(net.ip(), 0).unwrap_or(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str, gateway: &str, block: u8) -> Subnet {
        Subnet { subnet: text.parse().unwrap(), gateway: gateway.parse().unwrap(), block }
    }

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn what_a_block_has_room_for() {
        let small = subnet("10.1.0.0/29", "10.1.0.1", 30);
        assert_eq!(usable(&small, net("10.1.0.0/30")), 1, "network, gateway and host are out: .3 is left");
        assert_eq!(usable(&small, net("10.1.0.4/30")), 2, "host and broadcast are out");
        let wide = subnet("10.42.0.0/16", "10.42.0.1", 26);
        assert_eq!(usable(&wide, net("10.42.0.0/26")), 61);
        assert_eq!(usable(&wide, net("10.42.0.64/26")), 63);
        assert_eq!(usable(&wide, net("10.42.255.192/26")), 62);
        let six = subnet("fd00::/64", "fd00::1", 112);
        assert_eq!(usable(&six, net("fd00::/112")), 65_533);
        assert_eq!(count(&six), 1 << 48);
        assert_eq!(block_of(&wide, "10.42.3.77".parse().unwrap()), net("10.42.3.64/26"));
    }

    #[test]
    fn free_blocks_are_those_between_the_owned() {
        let wide = subnet("10.42.0.0/24", "10.42.0.1", 28);
        let mut view = View::default();
        for block in ["10.42.0.0/28", "10.42.0.32/28", "10.42.0.48/32", "10.42.0.64/28"] {
            view.owners.insert(("n".into(), net(block)), "h".into());
        }
        view.owners.insert(("m".into(), net("10.42.0.16/28")), "h".into());
        let mut avoid = HashSet::new();
        let free = |view: &View, from: Option<&str>, avoid: &HashSet<_>, want| {
            let free = free_blocks(view, "n", &wide, from.map(net), avoid, want);
            free.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(free(&view, None, &avoid, 3), "10.42.0.16/28 10.42.0.48/28 10.42.0.80/28");
        assert_eq!(free(&view, Some("10.42.0.64/28"), &avoid, 1), "10.42.0.80/28");
        assert_eq!(free(&view, Some("10.42.0.32/28"), &avoid, 1), "10.42.0.48/28");
        avoid.insert(net("10.42.0.16/28"));
        assert_eq!(free(&view, None, &avoid, 1), "10.42.0.48/28");
        assert_eq!(free_blocks(&view, "n", &wide, None, &avoid, 100).len(), 12);
    }
}
