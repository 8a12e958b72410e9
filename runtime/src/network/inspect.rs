//! `network inspect`: Docker's fields, and under `Weft` the file and its plugins.

use super::{Network, overlay, usage};
use crate::paths::Paths;
use crate::state::AttachState;
use anyhow::Result;
use cni::types::AddResult;
use serde_json::{Map, Value, json};

/// What there is to say about a network.
///
/// # Errors
/// The containers' states cannot be read.
pub fn inspect(paths: &Paths, network: &Network) -> Result<Value> {
    let mut containers = Map::new();
    for usage::Endpoint { id, name, attached } in usage::active(paths, network)? {
        if let Some(attached) = attached {
            let endpoint = Endpoint::of(&attached);
            let address = |is_ipv4: bool| {
                let mut all = endpoint.ips.iter().filter(|(net, _)| net.is_ipv4() == is_ipv4);
                all.next().map(|(net, _)| net.to_string()).unwrap_or_default()
            };
            containers.insert(
                id,
                json!({
                    "Name": name,
                    "Interface": attached.ifname,
                    "MacAddress": endpoint.mac,
                    "IPv4Address": address(true),
                    "IPv6Address": address(false),
                }),
            );
        }
    }
    let meta = network.meta.as_ref();
    let subnets = network.subnets();
    let kinds: Vec<&str> =
        network.list.plugins.iter().filter_map(|plugin| plugin.get("type")?.as_str()).collect();
    let mut object = json!({
        "Name": network.name(),
        "Id": network.id(),
        "Created": meta.map(|meta| meta.created.as_str()).unwrap_or_default(),
        "Scope": network.scope(),
        "Driver": network.driver(),
        "EnableIPv4": subnets.iter().any(|subnet| subnet.is_ipv4()),
        "EnableIPv6": subnets.iter().any(|subnet| subnet.is_ipv6()),
        "IPAM": {"Driver": "default", "Options": {}, "Config": config(network)},
        "Internal": network.internal(),
        "Attachable": true,
        "Ingress": false,
        "ConfigOnly": false,
        "Containers": containers,
        "Options": meta.map(|meta| json!(meta.options)).unwrap_or_else(|| json!({})),
        "Labels": meta.map(|meta| json!(meta.labels)).unwrap_or_else(|| json!({})),
        "Weft": {
            "File": network.path,
            "CNIVersion": network.list.version.to_string(),
            "Plugins": kinds,
            "Bridge": network.bridge().unwrap_or_default(),
        },
    });
    if let Some(overlay) = meta.and_then(|meta| meta.overlay.as_ref()) {
        overlay::complete(paths, network, overlay, &mut object);
    }
    Ok(object)
}

fn config(network: &Network) -> Vec<Value> {
    let Some(meta) = &network.meta else {
        return network.subnets().iter().map(|subnet| json!({"Subnet": subnet})).collect();
    };
    let one = |subnet: &super::meta::Subnet| {
        let mut one = json!({"Subnet": subnet.subnet});
        if let Some(range) = subnet.ip_range {
            one["IPRange"] = json!(range);
        }
        one["Gateway"] = json!(subnet.gateway);
        if !subnet.aux_addresses.is_empty() {
            one["AuxiliaryAddresses"] = json!(subnet.aux_addresses);
        }
        one
    };
    meta.subnets.iter().map(one).collect()
}

/// A container's interface on a network, as the result of its ADD has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Endpoint {
    /// The hardware address; empty when the result does not tell.
    pub mac: String,
    /// Addresses with prefixes, and gateways.
    pub ips: Vec<(ipnetwork::IpNetwork, Option<std::net::IpAddr>)>,
}

impl Endpoint {
    /// Reads the result. What it does not have, or has in another form, is left out.
    pub fn of(attached: &AttachState) -> Endpoint {
        let Ok(result) = AddResult::from_json(&attached.result) else { return Endpoint::default() };
        let inside = |at: usize| result.interfaces.get(at).is_none_or(|each| each.sandbox.is_some());
        let mac =
            result.interfaces.iter().find(|each| each.name == attached.ifname && each.sandbox.is_some());
        let ips = result.ips.iter().filter(|ip| ip.interface.is_none_or(inside));
        Endpoint {
            mac: mac.and_then(|each| each.mac.clone()).unwrap_or_default(),
            ips: ips.map(|ip| (ip.address, ip.gateway)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_the_containers_side_of_the_result() {
        let result = json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "br0", "mac": "02:00:00:00:00:01"},
                {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"},
            ],
            "ips": [{"address": "10.1.0.2/16", "gateway": "10.1.0.1", "interface": 1}],
        });
        let attached = AttachState { network: "web".into(), ifname: "eth0".into(), result };
        let endpoint = Endpoint::of(&attached);
        assert_eq!(endpoint.mac, "02:00:00:00:00:02");
        assert_eq!(endpoint.ips, [("10.1.0.2/16".parse().unwrap(), "10.1.0.1".parse().ok())]);
        assert_eq!(Endpoint::of(&AttachState::default()), Endpoint::default());
    }
}
