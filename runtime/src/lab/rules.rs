//! What a lab's networks and containers cannot have, in the words of the commands that `lab up` gives to make them: their
//! own checks are asked, before anything is made.

use std::net::IpAddr;

use anyhow::{Result, bail};
use ovl_api::model::overlap;

use super::plan::{Container, Network, Underlay};
use crate::network::{Request, overlay, pools};
use crate::ports::form;
use crate::spec::PortMapping;

/// Whether `network create` takes it, as far as it can tell before it asks the agent.
///
/// # Errors
/// What it says.
pub fn network(network: &Network) -> Result<()> {
    overlay::check(&Request {
        name: network.name.clone(),
        driver: overlay::DRIVER.into(),
        subnets: network.subnets.clone(),
        ipv6: network.ipv6,
        internal: network.internal,
        options: network.options.clone(),
        ..Request::default()
    })
}

/// Whether a subnet shares addresses with the underlay, or with a network of the same lab.
///
/// # Errors
/// It does; names both.
pub fn subnet(text: &str, underlay: &Underlay, others: &[Network]) -> Result<()> {
    let net = pools::parse_subnet(text)?.subnet;
    if let Some(other) = underlay.subnets().find(|other| overlap(*other, net)) {
        bail!("{net} overlaps the underlay, {other}");
    }
    for other in others {
        let theirs = other.subnets.iter().filter_map(|text| pools::parse_subnet(text).ok());
        if let Some(theirs) = theirs.map(|asked| asked.subnet).find(|theirs| overlap(*theirs, net)) {
            bail!("{net} overlaps {theirs} of the network {}", other.name);
        }
    }
    Ok(())
}

/// Whether a container can have an address in a network. Of a subnet that the agent chooses nothing is known yet.
///
/// # Errors
/// It cannot.
pub fn address(network: &Network, ip: IpAddr) -> Result<()> {
    let name = &network.name;
    if !network.has(ip.is_ipv6()) {
        bail!("{ip}: the network {name} has no {} subnet", if ip.is_ipv6() { "IPv6" } else { "IPv4" });
    }
    let asked = network.subnets.iter().filter_map(|text| pools::parse_subnet(text).ok());
    for asked in asked.filter(|asked| asked.subnet.is_ipv6() == ip.is_ipv6()) {
        let subnet = asked.subnet;
        if !subnet.contains(ip) {
            bail!("{ip} is not in {subnet} of the network {name}");
        }
        if !pools::is_host(subnet, ip) {
            bail!("{ip} is the network's or the broadcast address of {subnet}");
        }
        if asked.address.unwrap_or_else(|| pools::first_host(subnet)) == ip {
            bail!("{ip} is the gateway of the network {name}");
        }
    }
    Ok(())
}

/// The ports that a container publishes; those of a range, and those that the kernel chooses, are 0.
///
/// # Errors
/// What `run --publish` says.
pub fn ports(texts: &[String]) -> Result<Vec<PortMapping>> {
    form::mappings(texts, None)
}

/// The container that has one of these ports on the same host, and the port's number.
pub fn port_of_another<'c>(
    ports: &[PortMapping],
    host: &str,
    others: &'c [Container],
) -> Option<(&'c str, u16)> {
    others.iter().filter(|other| other.host == host).find_map(|other| {
        let theirs = self::ports(&other.publish).unwrap_or_default();
        let port = ports.iter().find(|port| theirs.iter().any(|theirs| form::clash(theirs, port)))?;
        Some((other.name.as_str(), port.host_port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(subnets: &[&str]) -> Network {
        let subnets = subnets.iter().map(|text| (*text).into()).collect();
        Network { name: "ov".into(), subnets, ..Network::default() }
    }

    #[test]
    fn a_network_is_taken_or_refused_as_the_command_would() {
        network(&net(&[])).unwrap();
        network(&Network { ipv6: true, internal: true, ..net(&["10.1.0.0/16", "fd01::/64"]) }).unwrap();
        let refused = |network: &Network| self::network(network).unwrap_err().to_string();
        assert!(refused(&Network { name: "bridge".into(), ..net(&[]) }).contains("\"bridge\""));
        assert!(refused(&net(&["10.1.0.0/16", "10.2.0.0/16"])).contains("one subnet of each family"));
        let with = |key: &str, value: &str| Network {
            options: [(key.to_owned(), value.to_owned())].into(),
            ..net(&["10.1.0.0/16"])
        };
        network(&with("vni", "77")).unwrap();
        assert!(refused(&with("encap", "direkt")).contains("vxlan or direct"));
    }

    #[test]
    fn an_address_has_to_be_a_containers() {
        let ip = |text: &str| text.parse().unwrap();
        let known = net(&["10.1.0.7/24", "fd01::/64"]);
        for good in ["10.1.0.1", "10.1.0.254", "fd01::9"] {
            address(&known, ip(good)).unwrap();
        }
        for bad in ["10.2.0.1", "10.1.0.0", "10.1.0.255", "10.1.0.7", "fd02::9", "fd01::1"] {
            assert!(address(&known, ip(bad)).unwrap_err().to_string().contains(bad), "{bad}");
        }
        assert!(address(&net(&["10.1.0.0/24"]), ip("fd01::9")).is_err());
        assert!(address(&net(&["fd01::/64"]), ip("10.1.0.9")).is_err());
        // The subnet is chosen later.
        address(&net(&[]), ip("10.9.9.9")).unwrap();
        address(&Network { ipv6: true, ..net(&["10.1.0.0/24"]) }, ip("fd01::9")).unwrap();
    }
}
