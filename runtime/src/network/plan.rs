//! What a container's attachments are made with: each network's conflist as this container needs it, and the values for
//! its capabilities. Pure.

use super::Network;
use super::pools;
use crate::spec::{NetAttach, PortMapping};
use anyhow::{Context, Result, bail};
use cni::config::ConfList;
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::net::IpAddr;

/// One attachment, ready for the plugins.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The conflist.
    pub list: ConfList,
    /// The interface's name in the container.
    pub ifname: String,
    /// Values for capabilities.
    pub capability_args: Map<String, Value>,
}

/// Plans all attachments of a container.
///
/// Ports are published on one network, and the default route goes through one: that which is not internal, has most
/// families, and comes first by name. Networks that Weft did not create keep their default route.
///
/// # Errors
/// An address that is in no subnet of the network, and what is asked of a network that has no plugin for it.
pub fn plan(wanted: &[(Network, NetAttach)], ports: &[PortMapping]) -> Result<Vec<Planned>> {
    let order = |(network, _): &&(Network, NetAttach)| {
        let subnets = network.subnets();
        let families =
            [true, false].iter().filter(|v4| subnets.iter().any(|net| net.is_ipv4() == **v4)).count();
        (network.internal(), Reverse(families), network.name().to_owned())
    };
    let default = wanted.iter().min_by_key(order).map(|(network, _)| network.name());
    let publisher = wanted.iter().filter(|(network, _)| network.takes("portMappings")).min_by_key(order);
    if !ports.is_empty() && publisher.is_none() {
        let names = wanted.iter().map(|(network, _)| network.name()).collect::<Vec<_>>().join(", ");
        bail!("--publish: no plugin of network {names} publishes ports (capability portMappings)");
    }
    let publisher = publisher.map(|(network, _)| network.name());
    let one = |(network, attach): &(Network, NetAttach)| {
        let mut list = network.list.clone();
        if network.meta.is_some() && default != Some(network.name()) {
            without_default_route(&mut list);
        }
        let mut args = Map::new();
        let ips = addresses(network, attach, &mut list)?;
        if !ips.is_empty() {
            args.insert("ips".into(), ips.into());
        }
        if let Some(mac) = &attach.mac {
            needs(network, "mac", "--mac-address")?;
            args.insert("mac".into(), mac.as_str().into());
        }
        if publisher == Some(network.name()) {
            // A host's address of a family that the network has not: the proxy passes on what comes there.
            let subnets = network.subnets();
            let has =
                |ip: IpAddr| subnets.is_empty() || subnets.iter().any(|net| net.is_ipv4() == ip.is_ipv4());
            let ports: Vec<_> = ports.iter().filter(|port| port.host_ip.is_none_or(has)).collect();
            if !ports.is_empty() {
                args.insert("portMappings".into(), json!(ports));
            }
        }
        Ok(Planned { list, ifname: attach.ifname.clone(), capability_args: args })
    };
    wanted.iter().map(one).collect()
}

fn needs(network: &Network, capability: &str, flag: &str) -> Result<()> {
    if network.takes(capability) {
        return Ok(());
    }
    bail!("{flag}: no plugin of network {} takes it (capability {capability})", network.name())
}

/// The addresses that were asked for, with their subnets' prefixes. One that lies outside of where dynamic addresses
/// come from (`--ip-range`) widens the range in this container's conflist.
fn addresses(network: &Network, attach: &NetAttach, list: &mut ConfList) -> Result<Vec<String>> {
    let asked = [("--ip", attach.ip.map(IpAddr::V4)), ("--ip6", attach.ip6.map(IpAddr::V6))];
    let mut ips = Vec::new();
    for (flag, ip) in asked {
        let Some(ip) = ip else { continue };
        needs(network, "ips", flag)?;
        let subnets = network.subnets();
        let subnet = subnets.iter().find(|subnet| subnet.contains(ip));
        if subnet.is_none() && network.meta.is_some() {
            let all = subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            bail!("{flag} {ip} is in no subnet of network {} ({all})", network.name());
        }
        if let Some(subnet) = subnet.filter(|_| network.meta.is_some()) {
            if !pools::is_host(*subnet, ip) {
                bail!("{flag} {ip} is the network's or the broadcast address of {subnet}");
            }
            widen(list, ip);
        }
        ips.push(match subnet {
            Some(subnet) => format!("{ip}/{}", subnet.prefix()),
            None => ip.to_string(),
        });
    }
    Ok(ips)
}

/// The first plugin of a list that Weft wrote, which attaches: the bridge, or the overlay.
fn attaching(list: &mut ConfList) -> Option<&mut Map<String, Value>> {
    list.plugins.first_mut()
}

fn without_default_route(list: &mut ConfList) {
    if let Some(plugin) = attaching(list) {
        plugin.insert("isDefaultGateway".into(), false.into());
    }
}

/// Takes the ends off a range that does not hold this address.
fn widen(list: &mut ConfList, ip: IpAddr) {
    let ranges = attaching(list).and_then(|plugin| plugin.get_mut("ipam")?.get_mut("ranges")?.as_array_mut());
    let ranges = ranges.into_iter().flatten().filter_map(Value::as_array_mut).flatten();
    for range in ranges.filter_map(Value::as_object_mut) {
        let end = |key: &str| range.get(key).and_then(|end| end.as_str()?.parse::<IpAddr>().ok());
        if let (Some(first), Some(last)) = (end("rangeStart"), end("rangeEnd"))
            && first.is_ipv4() == ip.is_ipv4()
            && !(first <= ip && ip <= last)
        {
            range.remove("rangeStart");
            range.remove("rangeEnd");
        }
    }
}

/// A list of one plugin that is no network of the configuration directory: `loopback`, `none`, `host`, `container`.
///
/// # Errors
/// Never, with the names above.
pub fn single(kind: &str, capabilities: Value) -> Result<ConfList> {
    // `loopback` may be another suite's, and an older one.
    let version = if kind == "loopback" { "1.0.0" } else { "1.1.0" };
    let list = json!({
        "cniVersion": version,
        "name": kind,
        "plugins": [{"type": kind, "capabilities": capabilities}],
    });
    ConfList::from_slice(list.to_string().as_bytes()).with_context(|| format!("the conflist of {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::conflist;
    use crate::network::meta::{Meta, Subnet};
    use crate::network::options::Options;

    fn network(name: &str, internal: bool, subnets: &[&str], ip_range: Option<&str>) -> Network {
        let subnet = |text: &&str| {
            let subnet = text.parse().unwrap();
            let ip_range = ip_range.map(|range| range.parse().unwrap());
            Subnet {
                subnet,
                gateway: pools::first_host(subnet),
                ip_range,
                aux_addresses: [].into(),
                block: None,
            }
        };
        let meta = Meta {
            id: name.repeat(8),
            created: String::new(),
            driver: "bridge".into(),
            internal,
            ipv6: false,
            labels: [].into(),
            options: [].into(),
            subnets: subnets.iter().map(subnet).collect(),
            overlay: None,
        };
        let list = conflist::build(name, &meta, &Options::default(), "br-0", None);
        let list = ConfList::from_slice(list.to_string().as_bytes()).unwrap();
        Network::new("/x".into(), list).unwrap()
    }

    fn attach(network: &Network, ip: Option<&str>) -> NetAttach {
        let ip = ip.map(|ip| ip.parse().unwrap());
        NetAttach { network: network.name().into(), ifname: "eth0".into(), ip, ..NetAttach::default() }
    }

    fn http() -> PortMapping {
        PortMapping { host_port: 8080, container_port: 80, ..PortMapping::default() }
    }

    #[test]
    fn one_network_has_the_default_route_and_the_ports() {
        let networks = [
            network("inside", true, &["10.1.0.0/16", "fd01::/64"], None),
            network("b", false, &["10.2.0.0/16"], None),
            network("both", false, &["10.3.0.0/16", "fd03::/64"], None),
        ];
        let wanted: Vec<_> = networks.iter().map(|each| (each.clone(), attach(each, None))).collect();
        let planned = plan(&wanted, &[http()]).unwrap();
        let defaults: Vec<bool> =
            planned.iter().map(|each| each.list.plugins[0]["isDefaultGateway"] == true).collect();
        assert_eq!(defaults, [false, false, true]);
        let published: Vec<bool> =
            planned.iter().map(|each| each.capability_args.contains_key("portMappings")).collect();
        assert_eq!(published, [false, false, true]);
        assert_eq!(
            planned[2].capability_args["portMappings"],
            json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
        );
    }

    #[test]
    fn a_hosts_address_of_another_family_than_the_networks_is_left_to_the_proxy() {
        let at = |ip: &str| PortMapping { host_ip: Some(ip.parse().unwrap()), ..http() };
        let ports = [http(), at("192.0.2.1"), at("2001:db8::1")];
        let led = |subnets: &[&str]| {
            let net = network("net", false, subnets, None);
            let planned = plan(&[(net.clone(), attach(&net, None))], &ports).unwrap();
            let all = planned[0].capability_args["portMappings"].as_array().unwrap().clone();
            all.iter().map(|port| port["hostIP"].as_str().unwrap_or("any").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(led(&["10.1.0.0/16"]), ["any", "192.0.2.1"]);
        assert_eq!(led(&["fd01::/64"]), ["any", "2001:db8::1"]);
        assert_eq!(led(&["10.1.0.0/16", "fd01::/64"]), ["any", "192.0.2.1", "2001:db8::1"]);
    }

    #[test]
    fn ports_on_internal_networks_alone_are_an_error() {
        let inside = network("inside", true, &["10.1.0.0/16"], None);
        let error = plan(&[(inside.clone(), attach(&inside, None))], &[http()]).unwrap_err().to_string();
        assert!(error.contains("inside") && error.contains("--publish"), "{error}");
    }

    #[test]
    fn an_address_outside_of_the_dynamic_range_widens_it() {
        let web = network("web", false, &["10.1.0.0/16"], Some("10.1.5.0/24"));
        let planned = |ip| plan(&[(web.clone(), attach(&web, Some(ip)))], &[]).unwrap().remove(0);
        let outside = planned("10.1.9.9");
        assert_eq!(outside.capability_args["ips"], json!(["10.1.9.9/16"]));
        assert!(outside.list.plugins[0]["ipam"]["ranges"][0][0].get("rangeStart").is_none());
        assert!(planned("10.1.5.9").list.plugins[0]["ipam"]["ranges"][0][0].get("rangeStart").is_some());
    }

    #[test]
    fn an_address_outside_of_the_subnet_is_an_error() {
        let web = network("web", false, &["10.1.0.0/16"], None);
        for ip in ["10.2.0.1", "10.1.0.0", "10.1.255.255"] {
            let error = plan(&[(web.clone(), attach(&web, Some(ip)))], &[]).unwrap_err().to_string();
            assert!(error.contains(ip), "{error}");
        }
    }
}
