//! Which subnet a network gets: parsing of `--subnet`, the default pools, and what overlaps what. Pure.

use anyhow::{Context, Result, bail};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses that are in use, and by what, in words for an error ("route 10.0.0.0/8 dev eth0").
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// The addresses.
    pub net: IpNetwork,
    /// Who uses them.
    pub by: String,
    /// How.
    pub how: Use,
}

/// How addresses are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// They are the subnet of a link or of another network: neither may overlap a new network.
    Subnet,
    /// A route leads there without a router: a subnet that is chosen avoids it, one that is asked for may overlap it.
    OnLink,
    /// A route leads there by a router: as [`Use::OnLink`], and a subnet that is chosen may be a part of it.
    Route,
}

/// A subnet as asked for: the network, and the address that was written when it is not the network's own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Asked {
    /// The network, without host bits.
    pub subnet: IpNetwork,
    /// The host bits' address, which is to be the gateway.
    pub address: Option<IpAddr>,
}

/// The network of an address and prefix, without the address's host bits.
pub fn network_of(net: IpNetwork) -> IpNetwork {
    IpNetwork::new(net.network(), net.prefix()).unwrap_or(net)
}

/// Whether two networks share an address.
pub fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    if a.prefix() <= b.prefix() { a.contains(b.network()) } else { b.contains(a.network()) }
}

/// The first subnet that a network overlaps.
pub fn overlapped(net: IpNetwork, taken: &[Taken]) -> Option<&Taken> {
    taken.iter().find(|each| each.how == Use::Subnet && overlap(net, each.net))
}

/// Whether a network can be chosen beside what is in use. A router's route that is less specific (a static one for all
/// private addresses), and one for half of all addresses as VPNs have it, is there for what has no route of its own.
fn is_free(net: IpNetwork, taken: &[Taken]) -> bool {
    const SHORTEST: u8 = 8;
    let avoids = |each: &Taken| match each.how {
        Use::Subnet => true,
        Use::OnLink => each.net.prefix() >= SHORTEST,
        Use::Route => each.net.prefix() >= net.prefix(),
    };
    !taken.iter().any(|each| avoids(each) && overlap(net, each.net))
}

/// Reads `--subnet`: an address and a prefix, with room for the gateway and one container at least.
///
/// # Errors
/// Says what is allowed.
pub fn parse_subnet(text: &str) -> Result<Asked> {
    const ALLOWED: &str = "an address and a prefix like 10.1.0.0/16 or fd00:1::/64";
    let Some((address, _)) = text.split_once('/') else {
        bail!("--subnet {text:?}: the prefix is missing; allowed is {ALLOWED}");
    };
    let address: IpAddr =
        address.parse().ok().with_context(|| format!("--subnet {text:?}: allowed is {ALLOWED}"))?;
    let net: IpNetwork = text.parse().ok().with_context(|| {
        format!(
            "--subnet {text:?}: the prefix is a number up to {}",
            if address.is_ipv4() { 30 } else { 126 }
        )
    })?;
    let subnet = network_of(net);
    if let IpNetwork::V6(net) = subnet
        && net.ip().to_ipv4_mapped().is_some()
    {
        bail!("--subnet {text:?}: an IPv4 subnet in IPv6 form; write it as IPv4");
    }
    let (longest, special) = match subnet {
        IpNetwork::V4(net) => {
            let ip = net.ip();
            (30, ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || ip.is_link_local())
        }
        IpNetwork::V6(net) => {
            let ip = net.ip();
            let link_local = ip.segments()[0] & 0xffc0 == 0xfe80;
            (126, ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || link_local)
        }
    };
    if subnet.prefix() > longest {
        bail!("--subnet {text:?}: too small; the longest prefix is /{longest}, a gateway and one container");
    }
    if subnet.prefix() < 8 {
        bail!("--subnet {text:?}: too large; the shortest prefix is /8");
    }
    if special {
        bail!(
            "--subnet {text:?}: loopback, link-local, multicast and unspecified addresses are not for networks"
        );
    }
    Ok(Asked { subnet, address: (net.ip() != subnet.ip()).then_some(net.ip()) })
}

/// Docker's default pools: 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16 in /20s.
pub fn defaults() -> impl Iterator<Item = IpNetwork> {
    let class_b = (17..=31).map(|second| (Ipv4Addr::new(172, second, 0, 0), 16));
    let class_c = (0..16).map(|n| (Ipv4Addr::new(192, 168, n * 16, 0), 20));
    class_b.chain(class_c).filter_map(|(ip, prefix)| Ipv4Network::new(ip, prefix).ok().map(IpNetwork::V4))
}

/// The first default pool that nothing uses.
///
/// # Errors
/// All are used.
pub fn free(taken: &[Taken]) -> Result<IpNetwork> {
    defaults().find(|pool| is_free(*pool, taken)).context(
        "every default pool (172.17.0.0/16 to 172.31.0.0/16, 192.168.0.0/16 in /20s) overlaps a route, an address or \
         a network of this host; give one with --subnet",
    )
}

/// The IPv6 subnet of a network that asked for none: the first /64 of the unique local /48 (RFC 4193) whose global ID is
/// the network ID's first ten digits.
pub fn unique_local(id: &str) -> IpNetwork {
    let mut octets = [0u8; 16];
    octets[0] = 0xfd;
    let digits: Vec<u8> = id.chars().filter_map(|c| u8::try_from(c.to_digit(16)?).ok()).collect();
    for (octet, pair) in octets[1..6].iter_mut().zip(digits.chunks_exact(2)) {
        *octet = pair[0] << 4 | pair[1];
    }
    let ip = Ipv6Addr::from(octets);
    // 64 is a prefix of IPv6, so that the first arm is what happens.
    Ipv6Network::new(ip, 64).map_or_else(|_| IpNetwork::from(IpAddr::V6(ip)), IpNetwork::V6)
}

/// The first address for hosts: the default gateway.
pub fn first_host(net: IpNetwork) -> IpAddr {
    match net {
        IpNetwork::V4(net) => Ipv4Addr::from(u32::from(net.network()) + 1).into(),
        IpNetwork::V6(net) => Ipv6Addr::from(u128::from(net.network()) + 1).into(),
    }
}

/// Whether an address can be a host's in a subnet: inside, and neither the network's own nor the broadcast address.
pub fn is_host(net: IpNetwork, ip: IpAddr) -> bool {
    let broadcast = net.is_ipv4() && ip == net.broadcast();
    net.contains(ip) && ip != net.network() && !broadcast
}

/// The first and the last address of a part of a subnet that a host can have.
pub fn ends(subnet: IpNetwork, part: IpNetwork) -> (IpAddr, IpAddr) {
    let step = |ip: IpAddr, by: i8| -> IpAddr {
        match ip {
            IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip).wrapping_add_signed(by.into())).into(),
            IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip).wrapping_add_signed(by.into())).into(),
        }
    };
    let (first, last) = (part.network(), part.broadcast());
    (
        if is_host(subnet, first) { first } else { step(first, 1) },
        if is_host(subnet, last) { last } else { step(last, -1) },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn taken(nets: &[&str]) -> Vec<Taken> {
        nets.iter().map(|text| Taken { net: net(text), by: (*text).into(), how: Use::Subnet }).collect()
    }

    #[test]
    fn host_bits_of_a_subnet_are_the_gateway() {
        let asked = parse_subnet("192.168.10.1/24").unwrap();
        assert_eq!(asked, Asked { subnet: net("192.168.10.0/24"), address: "192.168.10.1".parse().ok() });
        assert_eq!(parse_subnet("fd00::/64").unwrap().address, None);
    }

    #[test]
    fn a_subnet_that_cannot_be_one_is_refused() {
        for text in
            ["10.0.0.0", "10.0.0.0/33", "10.0.0/24", "10.0.0.0/31", "fd00::/127", "", "x/8", "0.0.0.0/0"]
        {
            assert!(parse_subnet(text).unwrap_err().to_string().starts_with("--subnet"), "{text}");
        }
        for text in ["127.0.0.0/8", "224.0.0.0/8", "fe80::/64", "169.254.0.0/16", "::/8"] {
            assert!(parse_subnet(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_overlap_when_one_holds_the_other() {
        assert!(overlap(net("10.0.0.0/8"), net("10.1.2.0/24")));
        assert!(overlap(net("10.1.2.0/24"), net("10.0.0.0/8")));
        assert!(!overlap(net("10.1.2.0/24"), net("10.1.3.0/24")));
        assert!(!overlap(net("10.1.2.0/24"), net("fd00::/64")));
    }

    #[test]
    fn the_first_pool_that_nothing_overlaps_is_taken() {
        assert_eq!(free(&[]).unwrap(), net("172.17.0.0/16"));
        assert_eq!(free(&taken(&["172.17.0.0/16", "172.18.5.0/24"])).unwrap(), net("172.19.0.0/16"));
        assert_eq!(free(&taken(&["172.16.0.0/12"])).unwrap(), net("192.168.0.0/20"));
        assert_eq!(free(&taken(&["172.16.0.0/12", "192.168.1.0/24"])).unwrap(), net("192.168.16.0/20"));
        assert!(free(&taken(&["172.16.0.0/12", "192.168.0.0/16"])).is_err());
    }

    #[test]
    fn the_pools_are_dockers() {
        let pools: Vec<String> = defaults().map(|pool| pool.to_string()).collect();
        assert_eq!(pools.len(), 15 + 16);
        assert_eq!((pools[14].as_str(), pools[30].as_str()), ("172.31.0.0/16", "192.168.240.0/20"));
    }

    #[test]
    fn a_unique_local_subnet_comes_from_the_id() {
        assert_eq!(unique_local(&"0123456789abcdef".repeat(4)), net("fd01:2345:6789::/64"));
    }

    #[test]
    fn the_ends_of_a_range_are_hosts() {
        let ends = |subnet, part| {
            let (first, last) = ends(net(subnet), net(part));
            format!("{first} {last}")
        };
        assert_eq!(ends("10.0.0.0/24", "10.0.0.0/25"), "10.0.0.1 10.0.0.127");
        assert_eq!(ends("10.0.0.0/24", "10.0.0.128/25"), "10.0.0.128 10.0.0.254");
        assert_eq!(ends("fd00::/64", "fd00::/120"), "fd00::1 fd00::ff");
    }

    #[test]
    fn less_specific_routes_are_no_conflict() {
        let taken = |text: &str, how| Taken { net: net(text), by: text.into(), how };
        let vpn = [
            taken("0.0.0.0/1", Use::Route),
            taken("128.0.0.0/1", Use::Route),
            taken("172.16.0.0/12", Use::Route),
        ];
        assert_eq!(free(&vpn).unwrap(), net("172.17.0.0/16"));
        assert!(overlapped(net("172.17.0.0/16"), &vpn).is_none());
        // A part of a pool, or all of it, is somewhere else.
        for route in ["172.17.0.0/16", "172.17.5.0/24", "172.17.0.1/32"] {
            assert_eq!(free(&[taken(route, Use::Route)]).unwrap(), net("172.18.0.0/16"), "{route}");
        }
        let on_link = [taken("0.0.0.0/1", Use::OnLink), taken("172.16.0.0/14", Use::OnLink)];
        assert_eq!(free(&on_link).unwrap(), net("172.20.0.0/16"));
        assert!(overlapped(net("172.17.0.0/16"), &on_link).is_none());
        let link = [taken("172.16.0.0/12", Use::Subnet)];
        assert_eq!(free(&link).unwrap(), net("192.168.0.0/20"));
        assert!(overlapped(net("172.17.0.0/16"), &link).is_some());
    }
}
