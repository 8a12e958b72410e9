//! From a network's settings to its conflist: a bridge with host-local addresses, or the overlay; and portmap. Pure.

use super::meta::{self, KEY, Meta, Subnet};
use super::options::Options;
use super::{overlay, pools};
use ovl_api::model;
use serde_json::{Map, Value, json};

/// The version of new conflists.
const VERSION: &str = "1.1.0";

/// The conflist of a new network. `mtu` is the bridge's, when it is not the kernel's default.
pub fn build(name: &str, meta: &Meta, options: &Options, bridge: &str, mtu: Option<u32>) -> Value {
    chain(name, meta, bridge_plugin(meta, options, bridge, mtu))
}

/// The conflist of an overlay network, wherever it was created.
pub fn overlay(network: &model::Network) -> Value {
    let subnet = |subnet: &model::Subnet| Subnet {
        subnet: subnet.subnet,
        gateway: subnet.gateway,
        ip_range: None,
        aux_addresses: [].into(),
        block: Some(subnet.block),
    };
    let meta = Meta {
        id: network.id.clone(),
        created: network.created.clone(),
        driver: overlay::DRIVER.into(),
        internal: network.internal,
        ipv6: network.subnet(true).is_some(),
        labels: network.labels.clone(),
        options: network.options.clone(),
        subnets: network.subnets.iter().map(subnet).collect(),
        overlay: Some(meta::Overlay { vni: network.vni, mtu: network.mtu, encap: network.encap }),
    };
    let plugin = json!({
        "type": "overlay",
        "isDefaultGateway": !meta.internal,
        "ipMasq": !meta.internal,
        "capabilities": {"mac": true, "ips": true},
    });
    chain(&network.name, &meta, plugin)
}

/// The plugin that attaches, and portmap behind it when there is a way out.
fn chain(name: &str, meta: &Meta, plugin: Value) -> Value {
    let mut plugins = vec![plugin];
    if !meta.internal {
        plugins.push(json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}));
    }
    json!({"cniVersion": VERSION, "name": name, KEY: meta, "plugins": plugins})
}

fn bridge_plugin(meta: &Meta, options: &Options, bridge: &str, mtu: Option<u32>) -> Value {
    let mut plugin = Map::new();
    plugin.insert("type".into(), "bridge".into());
    plugin.insert("bridge".into(), bridge.into());
    plugin.insert("isGateway".into(), true.into());
    plugin.insert("isDefaultGateway".into(), (!meta.internal).into());
    plugin.insert("ipMasq".into(), (options.masquerade && !meta.internal).into());
    if !options.exceptions.is_empty() {
        plugin.insert("nonMasqueradeCIDRs".into(), json!(options.exceptions));
    }
    plugin.insert("hairpinMode".into(), true.into());
    if let Some(mtu) = mtu {
        plugin.insert("mtu".into(), mtu.into());
    }
    if !options.icc {
        plugin.insert("portIsolation".into(), true.into());
    }
    if meta.internal {
        plugin.insert("internal".into(), true.into());
    }
    // What is not published is not reachable from outside, nor from other networks.
    plugin.insert("ingressPolicy".into(), "same-bridge".into());
    plugin.insert("capabilities".into(), json!({"mac": true, "ips": true}));
    plugin.insert("ipam".into(), ipam(meta));
    plugin.into()
}

fn ipam(meta: &Meta) -> Value {
    let ranges: Vec<Value> = meta.subnets.iter().map(|subnet| json!([range(subnet)])).collect();
    let mut ipam = json!({"type": "host-local", "ranges": ranges});
    let reserved: Vec<Value> = meta
        .subnets
        .iter()
        .flat_map(|subnet| subnet.aux_addresses.values())
        .map(|ip| ip.to_string().into())
        .collect();
    if !reserved.is_empty() {
        ipam["reserved"] = reserved.into();
    }
    ipam
}

fn range(subnet: &Subnet) -> Value {
    let mut range = json!({"subnet": subnet.subnet, "gateway": subnet.gateway});
    if let Some(part) = subnet.ip_range {
        let (first, last) = pools::ends(subnet.subnet, part);
        range["rangeStart"] = first.to_string().into();
        range["rangeEnd"] = last.to_string().into();
    }
    range
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(internal: bool) -> Meta {
        Meta {
            id: "0123456789ab".repeat(5),
            created: "2026-01-01T00:00:00Z".into(),
            driver: "bridge".into(),
            internal,
            ipv6: false,
            labels: [("a".into(), "b".into())].into(),
            options: [].into(),
            subnets: vec![Subnet {
                subnet: "10.1.0.0/16".parse().unwrap(),
                gateway: "10.1.0.1".parse().unwrap(),
                ip_range: "10.1.5.0/24".parse().ok(),
                aux_addresses: [("router".into(), "10.1.5.7".parse().unwrap())].into(),
                block: None,
            }],
            overlay: None,
        }
    }

    #[test]
    fn a_network_is_a_bridge_and_portmap() {
        let list = build("web", &meta(false), &Options::default(), "br-0123456789ab", Some(1400));
        let read = cni::config::ConfList::from_slice(list.to_string().as_bytes()).unwrap();
        assert_eq!(read.name, "web");
        let bridge = &read.plugins[0];
        assert_eq!(bridge["isDefaultGateway"], true);
        assert_eq!(bridge["ipMasq"], true);
        assert_eq!(bridge["mtu"], 1400);
        assert_eq!(bridge["ingressPolicy"], "same-bridge");
        assert_eq!(bridge["ipam"]["ranges"][0][0]["rangeStart"], "10.1.5.0");
        assert_eq!(bridge["ipam"]["ranges"][0][0]["rangeEnd"], "10.1.5.255");
        assert_eq!(bridge["ipam"]["reserved"], json!(["10.1.5.7"]));
        assert_eq!(read.plugins[1]["type"], "portmap");
        let back: Meta = serde_json::from_value(read.raw[KEY].clone()).unwrap();
        assert_eq!(back, meta(false));
    }

    #[test]
    fn an_internal_network_has_no_way_out() {
        let list = build("web", &meta(true), &Options::default(), "br-0", None);
        let plugins = list["plugins"].as_array().unwrap();
        assert_eq!(plugins.len(), 1);
        assert_eq!(plugins[0]["isDefaultGateway"], false);
        assert_eq!(plugins[0]["ipMasq"], false);
        assert_eq!(plugins[0]["ingressPolicy"], "same-bridge");
    }

    #[test]
    fn without_icc_the_ports_of_the_bridge_are_isolated() {
        let options = Options { icc: false, masquerade: false, ..Options::default() };
        let list = build("web", &meta(false), &options, "br-0", None);
        assert_eq!(list["plugins"][0]["portIsolation"], true);
        assert_eq!(list["plugins"][0]["ipMasq"], false);
    }
}
