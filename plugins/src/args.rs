//! Reading addresses, routes and hardware addresses from configurations, with errors that name the key.

use cni::Error;
use cni::Version;
use cni::code::INVALID_CONFIG;
use cni::config::{get, present};
use cni::request::Request;
use cni::types::{AddResult, Route};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// An IPv4 address in IPv6's clothes (::ffff:10.0.0.1) is the IPv4 address.
pub fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// An address; `key` names where it stands.
pub fn address(key: &str, text: &str) -> Result<IpAddr, Error> {
    let parsed = text.trim().parse();
    parsed.map(plain).map_err(|_| Error::config(key, format!("{text:?}"), "an IP address"))
}

/// An address with a prefix length.
pub fn cidr(key: &str, text: &str) -> Result<IpNetwork, Error> {
    let wrong = || Error::config(key, format!("{text:?}"), "an address with a prefix, as 10.1.2.3/24");
    let (ip, length) = text.trim().split_once('/').ok_or_else(wrong)?;
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let ip = ip.parse().map(plain).map_err(|_| wrong())?;
    IpNetwork::new(ip, length.parse().map_err(|_| wrong())?).map_err(|_| wrong())
}

/// An address, or an address with a prefix length of which only the address counts.
pub fn address_or_cidr(key: &str, text: &str) -> Result<IpAddr, Error> {
    if text.contains('/') { cidr(key, text).map(|net| net.ip()) } else { address(key, text) }
}

/// `routes` of an IPAM configuration: the same objects as in a result of the newest version.
pub fn routes(ipam: &Map<String, Value>) -> Result<Vec<Route>, Error> {
    let Some(routes) = present(ipam, "routes") else { return Ok(Vec::new()) };
    AddResult::from_json_as(&json!({ "routes": routes }), Version::CURRENT)
        .map(|result| result.routes)
        .map_err(|error| Error::new(INVALID_CONFIG, "invalid \"ipam.routes\"").details(error.details))
}

/// A unicast hardware address.
pub fn mac(key: &str, text: &str) -> Result<[u8; 6], Error> {
    let allowed = "six bytes, as 0a:58:0a:01:02:03, the first of which is even (not a multicast address)";
    net::parse_mac(text).map_err(|_| Error::config(key, format!("{text:?}"), allowed))
}

/// The addresses that a request asks for, from `CNI_ARGS`, `args.cni` and the runtime. They add up; the same address from two
/// places is one request.
pub fn requested_ips(request: &Request) -> Result<Vec<IpAddr>, Error> {
    let mut all = Vec::new();
    if let Some(ip) = request.args.get("IP").filter(|ip| !ip.is_empty()) {
        let parsed = address_or_cidr("CNI_ARGS IP", ip);
        all.push(parsed.map_err(|error| Error::environment(&["CNI_ARGS"], error.details))?);
    }
    for (from, key) in
        [(&request.conf.args_cni, "args.cni.ips"), (&request.conf.runtime_config, "runtimeConfig.ips")]
    {
        for text in get::<Vec<String>>(from, "ips")?.unwrap_or_default() {
            all.push(address_or_cidr(key, &text)?);
        }
    }
    let mut seen = Vec::new();
    for ip in all.into_iter().map(plain) {
        if !seen.contains(&ip) {
            seen.push(ip);
        }
    }
    Ok(seen)
}

/// The hardware address that a request asks for: the runtime's before `args.cni`'s before that of `CNI_ARGS`.
pub fn container_mac(request: &Request) -> Result<Option<[u8; 6]>, Error> {
    if let Some(text) = request.conf.capability::<String>("mac")?.filter(|text| !text.is_empty()) {
        return mac("runtimeConfig.mac", &text).map(Some);
    }
    let from_args = get::<String>(&request.conf.args_cni, "mac")?;
    if let Some(text) = from_args.filter(|text| !text.is_empty()) {
        return mac("args.cni.mac", &text).map(Some);
    }
    let text = request.args.get("MAC").filter(|text| !text.is_empty());
    let parsed = text.map(|text| mac("MAC", text)).transpose();
    parsed.map_err(|error| Error::environment(&["CNI_ARGS"], error.details))
}

/// Versions below 0.3.0 have room for one address of each family.
pub fn one_each(version: Version, addresses: impl Iterator<Item = IpAddr>) -> Result<(), Error> {
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.partition(IpAddr::is_ipv4);
    if version < Version::V0_3_0 && (v4.len() > 1 || v6.len() > 1) {
        return Err(Error::new(
            cni::code::INCOMPATIBLE_VERSION,
            format!("CNI {version} does not support more than 1 address per family"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_their_prefix_where_one_is_asked_for() {
        assert_eq!(cidr("a", "10.1.2.3/24").unwrap().to_string(), "10.1.2.3/24");
        assert_eq!(cidr("a", " fd00::1/64 ").unwrap().to_string(), "fd00::1/64");
        for text in ["", "10.1.2.3", "10.1.2.3/", "10.1.2.3/33", "10.1.2/24", "fd00::/129", "10.0.0.1/+8"] {
            let error = cidr("ipam.subnet", text).unwrap_err();
            assert!(error.code == 7 && error.to_string().contains("ipam.subnet"), "{text}: {error}");
        }
        assert_eq!(address_or_cidr("ips", "10.1.2.3/24").unwrap().to_string(), "10.1.2.3");
        assert_eq!(address("ips", "::ffff:10.0.0.1").unwrap().to_string(), "10.0.0.1");
    }

    #[test]
    fn hardware_addresses_are_six_bytes_and_unicast() {
        assert_eq!(net::mac_text(mac("mac", "C2:b0:57:49:47:f1").unwrap()), "c2:b0:57:49:47:f1");
        for text in ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "01:00:00:00:00:01", "0g:00:00:00:00:01"] {
            assert_eq!(mac("mac", text).unwrap_err().code, 7, "{text}");
        }
    }

    #[test]
    fn a_bad_route_is_an_error_of_the_configuration() {
        let ipam = json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "x"}]});
        let error = routes(ipam.as_object().unwrap()).unwrap_err();
        assert!(error.code == 7 && error.to_string().contains("routes[1].dst"), "{error}");
        let ipam = json!({"routes": [{"dst": "0.0.0.0/0", "table": 0, "mtu": 1400}]});
        assert_eq!(routes(ipam.as_object().unwrap()).unwrap()[0].table, Some(0));
    }
}
