//! What `network inspect` says of an overlay network beyond what it says of others: hosts, blocks and endpoints.

use super::client;
use crate::network::meta::Overlay;
use crate::network::{Network, warn};
use crate::paths::Paths;
use ovl_api::model::Encap;
use ovl_api::wire::{EndpointDetail, NetworkDetail, Node};
use ovl_api::{ClientError, names};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Puts it into the object. With the agent down there are no peers, blocks and endpoints, and a warning says so.
pub fn complete(paths: &Paths, network: &Network, overlay: &Overlay, object: &mut Value) {
    let (detail, nodes) = asked(paths, network).unwrap_or_else(|error| {
        let name = network.name();
        warn(format!("hosts, blocks and endpoints of network {name} are not known: {error}"));
        (None, Vec::new())
    });
    let text = |value: &dyn ToString| Value::String(value.to_string());
    // What was not asked for is shown as what it is.
    let options = &mut object["Options"];
    options["vni"] = text(&overlay.vni);
    options["encap"] = text(&encap(overlay.encap));
    options["mtu"] = overlay.mtu.map_or("auto".into(), |mtu| text(&mtu));
    for subnet in network.meta.iter().flat_map(|meta| &meta.subnets) {
        if let (Some(block), true) = (subnet.block, subnet.subnet.is_ipv4()) {
            options["block-size"] = text(&block);
        }
    }
    object["Peers"] = detail.as_ref().map(|detail| peers(detail, &nodes)).unwrap_or_default().into();
    let weft = &mut object["Weft"];
    weft["VNI"] = overlay.vni.into();
    weft["Device"] = names::device(network.id()).into();
    weft["Blocks"] = detail.iter().flat_map(blocks).collect();
    weft["Endpoints"] = detail.iter().flat_map(|detail| &detail.endpoints).map(endpoint).collect();
}

fn asked(paths: &Paths, network: &Network) -> Result<(Option<NetworkDetail>, Vec<Node>), ClientError> {
    let client = client(paths);
    Ok((Some(client.network_detail(network.name())?), client.nodes()?))
}

fn encap(encap: Encap) -> &'static str {
    match encap {
        Encap::Vxlan => "vxlan",
        Encap::Direct => "direct",
    }
}

/// The hosts with a block or a container, by name.
fn peers(detail: &NetworkDetail, nodes: &[Node]) -> Vec<Value> {
    let blocks = |name: &str| detail.blocks.iter().filter(|block| block.host == name).count();
    let endpoints = |name: &str| detail.endpoints.iter().filter(|each| each.host == name).count();
    let mut names: BTreeSet<&str> = detail.blocks.iter().map(|block| block.host.as_str()).collect();
    names.extend(detail.endpoints.iter().map(|endpoint| endpoint.host.as_str()));
    let peer = |name: &&str| {
        let node = nodes.iter().find(|node| node.host.name == *name);
        json!({
            "Name": name,
            "IP": node.map(|node| node.host.vtep.to_string()).unwrap_or_default(),
            "Alive": node.is_some_and(|node| node.alive),
            "Blocks": blocks(name),
            "Endpoints": endpoints(name),
        })
    };
    names.iter().map(peer).collect()
}

fn blocks(detail: &NetworkDetail) -> Vec<Value> {
    let mut all: Vec<_> = detail.blocks.iter().map(|each| (each.block, each.host.as_str())).collect();
    all.sort();
    all.iter().map(|(block, host)| json!({"Block": block, "Host": host})).collect()
}

fn endpoint(endpoint: &EndpointDetail) -> Value {
    json!({
        "Host": endpoint.host,
        "Container": endpoint.container,
        "Interface": endpoint.ifname,
        "MacAddress": endpoint.mac,
        "Addresses": endpoint.addresses,
        "Fenced": endpoint.fenced,
    })
}
