//! `network create --driver overlay`: what can be checked here is, then the agent makes it, then its conflist is written.

use super::options::Options;
use super::{check_overlap, client, files};
use crate::network::create::{self, Request};
use crate::network::pools::{self, Asked};
use crate::network::{self, DEFAULT, Network};
use crate::paths::Paths;
use anyhow::{Result, bail};
use ipnetwork::IpNetwork;
use ovl_api::wire::NetworkCreate;
use ovl_api::{Client, ClientError, model};
use std::fs;

/// Makes an overlay network.
///
/// # Errors
/// Anything that was asked for and cannot be; names the flag, the value and what is allowed. Nothing is changed then.
pub fn create(paths: &Paths, request: &Request) -> Result<Network> {
    let ask = checked(request)?;
    let name = &request.name;
    let mut networks = network::all(paths);
    let has_name = |all: &[Network]| all.iter().find(|network| network.name() == name).cloned();
    if has_name(&networks).is_some_and(|network| network.is_overlay()) {
        // It may be gone, by another host's doing.
        let _ = files::confirm(paths);
        networks = network::all(paths);
    }
    if has_name(&networks).is_some() || files::path(paths, name).exists() {
        bail!("network with name {name} already exists");
    }
    let asked: Vec<IpNetwork> = ask.subnets.iter().copied().map(pools::network_of).collect();
    check_overlap("--subnet", &asked, name, &networks)?;
    let client = client(paths);
    let made = client.create_network(&ask).map_err(|error| match error {
        ClientError::TimedOut { .. } => anyhow::Error::new(error)
            .context(format!("whether network {name} was made is not known, `network ls` will show it")),
        error => error.into(),
    })?;
    let chosen: Vec<IpNetwork> = made.subnets.iter().map(|subnet| subnet.subnet).collect();
    let written = check_overlap("the chosen subnet", &chosen, name, &networks)
        .map_err(|error| error.context("give another one with --subnet"))
        .and_then(|()| files::add(paths, &made));
    written.map_err(|error| undone(paths, &client, &made, error))
}

/// Takes a network back that this host cannot have.
fn undone(paths: &Paths, client: &Client, made: &model::Network, error: anyhow::Error) -> anyhow::Error {
    // Only when it is empty: then this call may have made it.
    let _ = fs::remove_dir(&paths.config_dir);
    match client.remove_network(&made.name) {
        Ok(()) => error,
        Err(second) => error.context(format!("network {} was made, and is still there: {second}", made.name)),
    }
}

/// Whether a network can be asked for like this, as far as can be told without the agent and the other networks.
///
/// # Errors
/// It cannot: as [`crate::network::create()`].
pub fn check(request: &Request) -> Result<()> {
    create::check_name(&request.name)?;
    checked(request).map(drop)
}

/// The request to the agent.
fn checked(request: &Request) -> Result<NetworkCreate> {
    if request.name == DEFAULT {
        bail!(
            "invalid network name {DEFAULT:?} for an overlay network: each host has a network of this name"
        );
    }
    if let Some(range) = request.ip_ranges.first() {
        bail!(
            "--ip-range {range}: overlay networks have none; each host gives addresses from its own blocks"
        );
    }
    if let Some((name, ip)) = request.aux_addresses.first() {
        bail!("--aux-address {name}={ip}: overlay networks have none; take the address with `run --ip`");
    }
    let asked = request.subnets.iter().map(|text| pools::parse_subnet(text)).collect::<Result<Vec<_>>>()?;
    create::check_asked(&asked, &[])?;
    match (asked.is_empty(), request.gateways.first()) {
        (true, Some(gateway)) => bail!("--gateway {gateway}: it needs the --subnet that it is in"),
        _ => drop(create::assign(request, asked.clone())?),
    }
    let ipv6 = request.ipv6 || asked.iter().any(|one| one.subnet.is_ipv6());
    let options = Options::parse(&request.options, ipv6)?;
    Ok(NetworkCreate {
        name: request.name.clone(),
        subnets: asked.iter().map(with_host_bits).collect(),
        gateways: request.gateways.clone(),
        ipv6: request.ipv6,
        internal: request.internal,
        vni: options.vni,
        mtu: options.mtu,
        block_size: options.block_size,
        encap: options.encap,
        labels: request.labels.clone(),
        options: request.options.clone(),
    })
}

/// The subnet as it was written: host bits are the gateway.
fn with_host_bits(asked: &Asked) -> IpNetwork {
    let ip = asked.address.unwrap_or(asked.subnet.ip());
    IpNetwork::new(ip, asked.subnet.prefix()).unwrap_or(asked.subnet)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(subnets: &[&str]) -> Request {
        let subnets = subnets.iter().map(|text| (*text).into()).collect();
        Request { name: "ov".into(), driver: "overlay".into(), subnets, ..Request::default() }
    }

    #[test]
    fn all_that_was_asked_for_reaches_the_agent() {
        let asked = Request {
            gateways: vec!["fd00::9".parse().unwrap()],
            ipv6: true,
            internal: true,
            labels: [("a".into(), "b".into())].into(),
            options: [("vni".into(), "7".into()), ("block-size".into(), "27".into())].into(),
            ..request(&["10.42.0.7/16", "fd00::/64"])
        };
        let ask = checked(&asked).unwrap();
        let expected = NetworkCreate {
            name: "ov".into(),
            subnets: vec!["10.42.0.7/16".parse().unwrap(), "fd00::/64".parse().unwrap()],
            gateways: asked.gateways.clone(),
            ipv6: true,
            internal: true,
            vni: Some(7),
            block_size: Some(27),
            labels: asked.labels.clone(),
            options: asked.options.clone(),
            ..NetworkCreate::default()
        };
        assert_eq!(ask, expected);
    }

    #[test]
    fn what_an_overlay_network_cannot_have_is_refused_by_name() {
        let base = request(&["10.42.0.0/16"]);
        let ip = |text: &str| text.parse().unwrap();
        for (wrong, named) in [
            (Request { name: "bridge".into(), ..base.clone() }, "bridge"),
            (
                Request { ip_ranges: vec!["10.42.1.0/24".parse().unwrap()], ..base.clone() },
                "--ip-range 10.42.1.0/24",
            ),
            (
                Request { aux_addresses: vec![("r".into(), ip("10.42.0.9"))], ..base.clone() },
                "--aux-address r=10.42.0.9",
            ),
            (Request { gateways: vec![ip("10.43.0.1")], ..base.clone() }, "--gateway 10.43.0.1"),
            (Request { gateways: vec![ip("10.42.0.0")], ..base.clone() }, "--gateway 10.42.0.0"),
            (Request { gateways: vec![ip("10.42.0.1")], ..request(&[]) }, "--gateway 10.42.0.1"),
            (Request { options: [("mut".into(), "1".into())].into(), ..base.clone() }, "--opt mut"),
            (request(&["10.42.0.0/16", "10.43.0.0/16"]), "--subnet"),
            (request(&["10.42.0.0"]), "--subnet"),
        ] {
            let error = checked(&wrong).unwrap_err().to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
    }
}
