//! From what the agent granted to what the container gets. No kernel here.

use cni::types::{AddResult, IpConfig, Route};
use cni::{Error, code};
use ipnetwork::{IpNetwork, Ipv6Network};
use net::Family;
use net::route::SCOPE_LINK;
use ovl_api::wire::Attached;
use std::net::{IpAddr, Ipv6Addr};

/// The container's interface in the result: the host's end of the veth comes first.
pub const CONTAINER: usize = 1;
/// The host's own address on every container's link: the next hop for IPv6. It is on no other link, so all may have it.
pub const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What an attachment gets.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// The container's addresses, each with its subnet's length.
    pub addresses: Vec<IpNetwork>,
    /// The container's hardware address.
    pub mac: [u8; 6],
    /// The same addresses with their gateways, as the result has them.
    pub ips: Vec<IpConfig>,
    /// The container's routes, as the result has them: to the subnets, and unless the network is internal to everywhere.
    pub routes: Vec<Route>,
    /// Routes to next hops that no address leads to; the result does not have them.
    pub to_next_hops: Vec<Route>,
    /// The next hops of the routes, all of them the host's end.
    pub next_hops: Vec<IpAddr>,
    /// The destinations to which the network has nothing masqueraded.
    pub exceptions: Vec<IpNetwork>,
}

/// An address alone.
pub fn host_net(ip: IpAddr) -> IpNetwork {
    ip.into()
}

/// fe80::1/64, as the host's end has it.
pub fn router6() -> IpNetwork {
    // 64 is a valid length.
    Ipv6Network::new(ROUTER6, 64).map_or_else(|_| IpAddr::from(ROUTER6).into(), Into::into)
}

/// The next hop of an address's family, where the network's gateway is that.
pub fn next_hop(gateway: IpAddr) -> IpAddr {
    if gateway.is_ipv4() { gateway } else { ROUTER6.into() }
}

impl Plan {
    /// What follows from a grant; without `default_route` there is none, as in an internal network.
    ///
    /// # Errors
    /// Code 6 when the grant makes no sense.
    pub fn of(granted: &Attached, default_route: bool) -> Result<Plan, Error> {
        let nonsense =
            |why: String| Error::new(code::DECODE, "the overlay agent's answer makes no sense").details(why);
        let mac = net::parse_mac(&granted.mac).map_err(|error| nonsense(error.to_string()))?;
        let mut plan = Plan {
            addresses: granted.addresses.clone(),
            mac,
            ips: Vec::new(),
            routes: Vec::new(),
            to_next_hops: Vec::new(),
            next_hops: Vec::new(),
            exceptions: granted.network.exceptions().map_err(|bad| nonsense(bad.to_string()))?,
        };
        for &address in &granted.addresses {
            let subnet = granted.network.subnet(address.is_ipv6());
            let subnet = subnet.filter(|subnet| subnet.subnet.contains(address.ip())).ok_or_else(|| {
                nonsense(format!("{address} is in no subnet of network {}", granted.network.name))
            })?;
            let hop = next_hop(subnet.gateway);
            plan.ips.push(IpConfig { interface: Some(CONTAINER), address, gateway: Some(subnet.gateway) });
            plan.routes.push(Route::new(subnet.subnet, Some(hop)));
            if default_route && !granted.network.internal {
                plan.routes.push(Route::new(Family::of(hop).default_net(), Some(hop)));
            }
            if hop.is_ipv4() {
                plan.to_next_hops.push(Route { scope: Some(SCOPE_LINK), ..Route::new(host_net(hop), None) });
            }
            plan.next_hops.push(hop);
        }
        if plan.addresses.is_empty() {
            return Err(nonsense("it has no address".into()));
        }
        Ok(plan)
    }

    /// The result, but for its interfaces.
    pub fn result(&self) -> AddResult {
        AddResult { ips: self.ips.clone(), routes: self.routes.clone(), ..AddResult::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovl_api::model::{Network, Subnet};

    fn granted(addresses: &[&str], internal: bool) -> Attached {
        let subnet = |subnet: &str, gateway: &str, block| Subnet {
            subnet: subnet.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
            block,
        };
        Attached {
            network: Network {
                id: "0123456789ab".into(),
                name: "ov".into(),
                vni: 42,
                subnets: vec![
                    subnet("10.42.0.0/16", "10.42.0.1", 26),
                    subnet("fd00:42::/64", "fd00:42::1", 80),
                ],
                mtu: None,
                encap: Default::default(),
                internal,
                labels: Default::default(),
                options: Default::default(),
                created: String::new(),
                removing: false,
            },
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            mac: "02:00:00:00:00:05".into(),
            mtu: 1450,
            group: 0x5700_002a,
        }
    }

    fn shown(routes: &[Route]) -> Vec<String> {
        let gw = |route: &Route| route.gw.map_or("link".into(), |gw| gw.to_string());
        routes.iter().map(|route| format!("{} {}", route.dst, gw(route))).collect()
    }

    #[test]
    fn both_families_go_through_the_hosts_end() {
        let plan = Plan::of(&granted(&["10.42.0.5/16", "fd00:42::5/64"], false), true).unwrap();
        assert_eq!(
            shown(&plan.routes),
            ["10.42.0.0/16 10.42.0.1", "0.0.0.0/0 10.42.0.1", "fd00:42::/64 fe80::1", "::/0 fe80::1"]
        );
        assert_eq!(shown(&plan.to_next_hops), ["10.42.0.1/32 link"]);
        assert_eq!(plan.next_hops, ["10.42.0.1".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
        assert_eq!(plan.result().ips[1].gateway, Some("fd00:42::1".parse().unwrap()));
    }

    #[test]
    fn an_internal_network_or_one_that_is_not_the_default_has_no_default_route() {
        for (internal, default_route) in [(true, true), (false, false), (true, false)] {
            let plan = Plan::of(&granted(&["10.42.0.5/16"], internal), default_route).unwrap();
            assert_eq!(shown(&plan.routes), ["10.42.0.0/16 10.42.0.1"]);
        }
    }

    #[test]
    fn a_grant_that_makes_no_sense_is_refused() {
        for addresses in [&[][..], &["10.43.0.5/16"], &["fd01::5/64"]] {
            assert_eq!(Plan::of(&granted(addresses, false), true).unwrap_err().code, 6, "{addresses:?}");
        }
        let wrong = Attached { mac: "02:00".into(), ..granted(&["10.42.0.5/16"], false) };
        assert_eq!(Plan::of(&wrong, true).unwrap_err().code, 6);
    }
}
