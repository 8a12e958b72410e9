//! From what the IPAM gave to what the container gets: gateways, the default route, and the result's order. No kernel here.

use super::conf::Conf;
use cni::Error;
use cni::code::INVALID_CONFIG;
use cni::types::{AddResult, Route};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The container's interface in the result: the bridge and the host's end of the veth come first.
pub const CONTAINER: usize = 2;

/// The first host of a subnet.
fn first_host(subnet: IpNetwork) -> IpAddr {
    match subnet {
        IpNetwork::V4(net) => Ipv4Addr::from(u32::from(net.network()).wrapping_add(1)).into(),
        IpNetwork::V6(net) => Ipv6Addr::from(u128::from(net.network()).wrapping_add(1)).into(),
    }
}

/// The default route's destination of an address's family.
fn default_of(ip: IpAddr) -> IpNetwork {
    match ip {
        IpAddr::V4(_) => Ipv4Network::from(Ipv4Addr::UNSPECIFIED).with_length(0),
        IpAddr::V6(_) => Ipv6Network::from(Ipv6Addr::UNSPECIFIED).with_length(0),
    }
}

trait WithLength {
    fn with_length(self, length: u8) -> IpNetwork;
}

impl WithLength for Ipv4Network {
    fn with_length(self, length: u8) -> IpNetwork {
        Ipv4Network::new(self.ip(), length).map_or(self.into(), Into::into)
    }
}

impl WithLength for Ipv6Network {
    fn with_length(self, length: u8) -> IpNetwork {
        Ipv6Network::new(self.ip(), length).map_or(self.into(), Into::into)
    }
}

/// Completes what the IPAM gave, and returns the addresses that the bridge must have.
///
/// # Errors
/// Code 7 when the IPAM gave no address.
pub fn complete(result: &mut AddResult, conf: &Conf) -> Result<Vec<IpNetwork>, Error> {
    if result.ips.is_empty() {
        return Err(Error::new(INVALID_CONFIG, "the IPAM plugin gave no address"));
    }
    let mut gateways = Vec::new();
    for ip in &mut result.ips {
        ip.interface = Some(CONTAINER);
        if !conf.is_gateway {
            continue;
        }
        let gateway = *ip.gateway.get_or_insert_with(|| first_host(ip.address));
        let address = IpNetwork::new(gateway, ip.address.prefix()).map_err(|_| {
            Error::config("gateway", gateway, "an address of the same family as the container's")
        })?;
        if !gateways.contains(&address) {
            gateways.push(address);
        }
        if conf.is_default_gateway {
            default_route(&mut result.routes, gateway);
        }
    }
    Ok(gateways)
}

/// The first gateway of a family is its default route's next hop. A default route of the IPAM's without one is this very
/// route; one that has a next hop stays as it is.
fn default_route(routes: &mut Vec<Route>, gateway: IpAddr) {
    let dst = default_of(gateway);
    match routes.iter_mut().find(|route| route.dst == dst && route.table.is_none()) {
        Some(route) => drop(route.gw.get_or_insert(gateway)),
        None => routes.push(Route::new(dst, Some(gateway))),
    }
}

/// The routes as the kernel gets them: those without a next hop take the first gateway of their family, and the same route
/// twice is one.
pub fn kernel_routes(result: &AddResult) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for route in &result.routes {
        let mut route = route.clone();
        let same_family = |ip: &IpAddr| ip.is_ipv4() == route.dst.is_ipv4();
        // A scope of link or host says that there is no next hop.
        if route.gw.is_none() && route.scope.is_none_or(|scope| scope == 0) {
            route.gw = result.ips.iter().filter_map(|ip| ip.gateway).find(same_family);
        }
        if let Ok(dst) = IpNetwork::new(route.dst.network(), route.dst.prefix()) {
            route.dst = dst;
        }
        if !routes.contains(&route) {
            routes.push(route);
        }
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::config::NetConf;
    use cni::request::{Command, Request};
    use cni::types::IpConfig;
    use serde_json::json;

    fn conf(keys: &[&str]) -> Conf {
        let mut conf = json!({"name": "n", "type": "bridge"});
        keys.iter().for_each(|key| conf[key] = true.into());
        let conf = NetConf::from_value(conf).unwrap();
        let path = Vec::new();
        Conf::of(&Request {
            command: Command::Add,
            container_id: "c".into(),
            netns: None,
            ifname: "eth0".into(),
            args: cni::request::Args::default(),
            path,
            conf,
            netns_override: false,
        })
        .unwrap()
    }

    fn result(ips: &[(&str, Option<&str>)], routes: &[(&str, Option<&str>)]) -> AddResult {
        let gw = |gw: &Option<&str>| gw.map(|gw| gw.parse().unwrap());
        let ips = ips.iter();
        AddResult {
            ips: ips
                .map(|(a, g)| IpConfig { interface: None, address: a.parse().unwrap(), gateway: gw(g) })
                .collect(),
            routes: routes.iter().map(|(dst, g)| Route::new(dst.parse().unwrap(), gw(g))).collect(),
            ..AddResult::default()
        }
    }

    fn shown(routes: &[Route]) -> Vec<String> {
        let gw = |route: &Route| route.gw.map_or("-".into(), |gw| gw.to_string());
        routes.iter().map(|route| format!("{} {}", route.dst, gw(route))).collect()
    }

    #[test]
    fn a_missing_gateway_is_the_first_host() {
        let mut given = result(&[("10.1.2.3/24", None), ("fd00::5/64", None)], &[]);
        let gateways = complete(&mut given, &conf(&["isGateway"])).unwrap();
        assert_eq!(gateways, ["10.1.2.1/24".parse().unwrap(), "fd00::1/64".parse().unwrap()]);
        assert_eq!(given.ips[0].gateway, Some("10.1.2.1".parse().unwrap()));
        assert!(given.routes.is_empty() && given.ips[1].interface == Some(CONTAINER));
    }

    #[test]
    fn without_a_gateway_the_bridge_gets_no_address() {
        let mut given = result(&[("10.1.2.3/24", Some("10.1.2.254"))], &[]);
        assert!(complete(&mut given, &conf(&[])).unwrap().is_empty());
        assert!(complete(&mut AddResult::default(), &conf(&[])).is_err());
    }

    #[test]
    fn the_default_route_of_the_ipam_and_of_is_default_gateway_are_one() {
        let mut given = result(&[("10.1.2.3/24", Some("10.1.2.1"))], &[("0.0.0.0/0", None)]);
        complete(&mut given, &conf(&["isDefaultGateway"])).unwrap();
        assert_eq!(shown(&given.routes), ["0.0.0.0/0 10.1.2.1"]);

        let mut given = result(&[("10.1.2.3/24", Some("10.1.2.1"))], &[("0.0.0.0/0", Some("10.1.2.9"))]);
        complete(&mut given, &conf(&["isDefaultGateway"])).unwrap();
        assert_eq!(shown(&given.routes), ["0.0.0.0/0 10.1.2.9"]);
    }

    #[test]
    fn each_family_has_one_default_route() {
        let ips = [("10.1.2.3/24", None), ("10.9.0.3/24", None), ("fd00::5/64", None)];
        let mut given = result(&ips, &[]);
        complete(&mut given, &conf(&["isDefaultGateway"])).unwrap();
        assert_eq!(shown(&given.routes), ["0.0.0.0/0 10.1.2.1", "::/0 fd00::1"]);
    }

    #[test]
    fn routes_without_a_next_hop_take_their_familys_gateway() {
        let ips = [("10.1.2.3/24", Some("10.1.2.1")), ("fd00::5/64", Some("fd00::1"))];
        let routes = [("192.0.2.1/24", None), ("2001:db8::/32", None), ("192.0.2.0/24", None)];
        let given = result(&ips, &routes);
        assert_eq!(shown(&kernel_routes(&given)), ["192.0.2.0/24 10.1.2.1", "2001:db8::/32 fd00::1"]);
        assert_eq!(given.routes.len(), 3);
    }
}
