//! The forms of `--publish`: `80`, `8080:80`, `127.0.0.1:8080:80`, `[::1]:8080:80`, `127.0.0.1::80`, ranges, `/udp`. Pure.

use crate::spec::{PortMapping, Protocol};
use anyhow::{Result, anyhow, bail};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// What `--publish` asked for, for one container port.
#[derive(Debug, Clone, PartialEq)]
pub struct Publish {
    /// The host's address; none for all.
    pub host_ip: Option<IpAddr>,
    /// The host's ports to choose from; none for a free one of the kernel's.
    pub host: Option<RangeInclusive<u16>>,
    /// The container's port.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

const ALLOWED: &str = "[HOST-ADDRESS:][HOST-PORT[-LAST]:]CONTAINER-PORT[-LAST][/tcp|/udp|/sctp]";

/// Reads one `--publish`.
///
/// # Errors
/// Names the value, what is wrong with it, and the form.
pub fn parse(text: &str) -> Result<Vec<Publish>> {
    let bad = |why: &str| anyhow!("invalid --publish {text:?}: {why}; the form is {ALLOWED}");
    let (rest, protocol) = match text.rsplit_once('/') {
        Some((rest, protocol)) => (rest, protocol.parse::<Protocol>().map_err(|why| bad(&why))?),
        None => (text, Protocol::Tcp),
    };
    let (host_ip, rest) = host_address(rest).map_err(|why| bad(&why))?;
    let (host, container) = match rest.rsplit_once(':') {
        Some((host, container)) => (host, container),
        None if host_ip.is_some() => return Err(bad("the container's port is missing")),
        None => ("", rest),
    };
    let container = ports(container).map_err(|why| bad(&format!("container port {why}")))?;
    if host.is_empty() {
        let any = |port| Publish { host_ip, host: None, container_port: port, protocol };
        return Ok(container.map(any).collect());
    }
    let host = ports(host).map_err(|why| bad(&format!("host port {why}")))?;
    if host.len() == container.len() {
        let one =
            |(host, container_port)| Publish { host_ip, host: Some(host..=host), container_port, protocol };
        Ok(host.zip(container).map(one).collect())
    } else if container.len() == 1 {
        Ok(vec![Publish { host_ip, host: Some(host), container_port: *container.start(), protocol }])
    } else {
        let why =
            format!("{} host ports cannot be mapped to {} container ports", host.len(), container.len());
        Err(bad(&why))
    }
}

/// Reads a host's address.
fn address(text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr = text.parse().map_err(|_| format!("host address {text:?} is no IP address"))?;
    match ip {
        IpAddr::V6(six) if six.to_ipv4_mapped().is_some() => {
            Err(format!("host address {text:?} is an IPv4 address in IPv6 form; write {}", ip.to_canonical()))
        }
        _ => Ok(ip),
    }
}

/// Takes the host's address off the front, when there is one: of the text's parts it is what stands before the last two.
fn host_address(text: &str) -> Result<(Option<IpAddr>, &str), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (ip, rest) = rest.split_once(']').ok_or("a [ is not closed by ]")?;
        let ip = address(ip)?;
        let rest = rest.strip_prefix(':').ok_or("the container's port is missing after the host address")?;
        return Ok((Some(ip), rest));
    }
    match text.match_indices(':').count() {
        0 | 1 => Ok((None, text)),
        2 => match text.split_once(':') {
            Some(("", rest)) => Ok((None, rest)),
            Some((ip, rest)) => Ok((Some(address(ip)?), rest)),
            None => Ok((None, text)),
        },
        _ => Err("an IPv6 host address is written in brackets, like [::1]:8080:80".into()),
    }
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text:?} is not 1 to 65535")),
    };
    match text.split_once('-') {
        None => port(text).map(|port| port..=port),
        Some((first, last)) => {
            let (first, last) = (port(first)?, port(last)?);
            if first > last { Err(format!("range {text:?} runs backwards")) } else { Ok(first..=last) }
        }
    }
}

/// All `--publish` as mappings. `default_ip` is for those that name no host address. A mapping without a host port keeps 0,
/// and one with a range keeps that, for the start to choose.
///
/// # Errors
/// As [`parse`]; a host port that is given twice.
pub fn mappings(texts: &[String], default_ip: Option<IpAddr>) -> Result<Vec<PortMapping>> {
    let mut all: Vec<PortMapping> = Vec::new();
    let mut known: HashSet<PortMapping> = HashSet::new();
    let mut by_port: HashMap<(Protocol, u16), Vec<PortMapping>> = HashMap::new();
    for text in texts {
        for publish in parse(text)? {
            let host_ip = publish.host_ip.or(default_ip);
            let (host_port, host_port_last) = match publish.host {
                None => (0, 0),
                Some(range) if range.len() == 1 => (*range.start(), 0),
                Some(range) => (*range.start(), *range.end()),
            };
            let mapping = PortMapping {
                host_ip,
                host_port,
                host_port_last,
                container_port: publish.container_port,
                protocol: publish.protocol,
            };
            if !known.insert(mapping) {
                continue;
            }
            let same_port = by_port.entry((mapping.protocol, host_port)).or_default();
            if let Some(other) = same_port.iter().find(|other| clash(other, &mapping)) {
                bail!(
                    "invalid --publish {text:?}: host port {host_port}/{} is given to container port {} already",
                    mapping.protocol,
                    other.container_port
                );
            }
            same_port.push(mapping);
            all.push(mapping);
        }
    }
    Ok(all)
}

/// Whether two mappings want the same port of the same host address. One with a choice does not.
pub fn clash(a: &PortMapping, b: &PortMapping) -> bool {
    let meet = match (a.host_ip, b.host_ip) {
        (Some(a), Some(b)) => {
            a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
        }
        _ => true,
    };
    let has_choice = |mapping: &PortMapping| mapping.host_port == 0 || mapping.host_port_last != 0;
    !has_choice(a) && !has_choice(b) && a.host_port == b.host_port && a.protocol == b.protocol && meet
}

/// A mapping as `port` prints it: `0.0.0.0:8080`, `[::]:8080`. Without a host address there are two lines, the IPv6 one
/// only where the port answers there (see [`crate::state::State::ports_ipv6`]).
pub fn shown(mapping: &PortMapping, has_ipv6: bool) -> Vec<String> {
    match mapping.host_ip {
        Some(IpAddr::V4(ip)) => vec![format!("{ip}:{}", mapping.host_port)],
        Some(IpAddr::V6(ip)) => vec![format!("[{ip}]:{}", mapping.host_port)],
        None => {
            let mut lines = vec![format!("0.0.0.0:{}", mapping.host_port)];
            lines.extend(has_ipv6.then(|| format!("[::]:{}", mapping.host_port)));
            lines
        }
    }
}
