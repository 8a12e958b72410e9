//! What `network inspect` says of an overlay network beyond what it says of others: hosts, blocks and endpoints.

use super::client;
use crate::network::meta::Overlay;
use crate::network::{Network, warn};
use crate::paths::Paths;
use ovl_api::model::Encap;
use ovl_api::wire::{Away, EndpointDetail, NetworkDetail, Node};
use ovl_api::{ClientError, names};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What the agent says.
struct Told {
    detail: NetworkDetail,
    nodes: Vec<Node>,
    /// With the store away: this host's name. Of the others it is not known whether they live, and what they have.
    alone: Option<String>,
}

/// Puts it into the object. With the agent down there are no peers, blocks and endpoints; with the store away it is what the
/// agent last saw. A warning says so.
pub fn complete(paths: &Paths, network: &Network, overlay: &Overlay, object: &mut Value) {
    let told = asked(paths, network).map_err(|error| {
        let name = network.name();
        warn(format!("hosts, blocks and endpoints of network {name} are not known: {error}"));
    });
    let told = told.ok();
    if let Some(away) = told.as_ref().and_then(|told| told.detail.away.as_ref()) {
        warn(away_in_words(network.name(), away));
    }
    let detail = told.as_ref().map(|told| &told.detail);
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
    object["Peers"] = told.as_ref().map(peers).unwrap_or_default().into();
    let weft = &mut object["Weft"];
    weft["VNI"] = overlay.vni.into();
    weft["Device"] = names::device(network.id()).into();
    weft["Blocks"] = detail.into_iter().flat_map(blocks).collect();
    weft["Endpoints"] = detail.into_iter().flat_map(|detail| &detail.endpoints).map(endpoint).collect();
}

fn asked(paths: &Paths, network: &Network) -> Result<Told, ClientError> {
    let client = client(paths);
    let detail = client.network_detail(network.name())?;
    let alone = detail.away.is_some().then(|| client.status(None)).transpose()?.map(|status| status.host);
    Ok(Told { detail, nodes: client.nodes()?, alone })
}

fn away_in_words(name: &str, Away { seconds, why }: &Away) -> String {
    let time = if *seconds == 0 { String::new() } else { format!(" for {seconds} s") };
    format!(
        "the overlay's store has not answered{time} ({why}): hosts and blocks of network {name} are as this host last saw them, \
         and containers of other hosts are not known"
    )
}

fn encap(encap: Encap) -> &'static str {
    match encap {
        Encap::Vxlan => "vxlan",
        Encap::Direct => "direct",
    }
}

/// The hosts with a block or a container, by name. What is not known is null.
fn peers(Told { detail, nodes, alone }: &Told) -> Vec<Value> {
    let known = |name: &str| alone.as_ref().is_none_or(|own| own == name);
    let blocks = |name: &str| detail.blocks.iter().filter(|block| block.host == name).count();
    let endpoints = |name: &str| detail.endpoints.iter().filter(|each| each.host == name).count();
    let mut names: BTreeSet<&str> = detail.blocks.iter().map(|block| block.host.as_str()).collect();
    names.extend(detail.endpoints.iter().map(|endpoint| endpoint.host.as_str()));
    let peer = |name: &&str| {
        let node = nodes.iter().find(|node| node.host.name == *name);
        json!({
            "Name": name,
            "IP": node.map(|node| node.host.vtep.to_string()).unwrap_or_default(),
            "Alive": known(name).then(|| alone.is_some() || node.is_some_and(|node| node.alive)),
            "Blocks": blocks(name),
            "Endpoints": known(name).then(|| endpoints(name)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_away_is_told_with_the_time_and_the_reason() {
        let away = |seconds| Away { seconds, why: "no answer in time".into() };
        let text = away_in_words("ov", &away(42));
        assert!(text.contains("has not answered for 42 s (no answer in time)"), "{text}");
        assert!(text.contains("network ov") && text.contains("other hosts are not known"), "{text}");
        assert!(away_in_words("ov", &away(0)).contains("has not answered (no"));
    }
}
