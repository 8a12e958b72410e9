//! The file of a lab (docs/lab.md describes it): read, checked, and made a plan.

use anyhow::{Context, Result};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use net::Family;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use super::expect::{Attempt, Expectation};
use super::node::{self, Map, Node};
use super::plan::{self, Container, DEFAULT_NAME, MAX_HOSTS, Machine, Network, Plan, Underlay};
use super::rules;

const HOST_NAME: &str = "a name of small letters, digits and '-', at most 15 bytes";
const NAME: &str = "a name: [a-zA-Z0-9][a-zA-Z0-9_.-]+";

/// Reads the file of a lab.
///
/// # Errors
/// It cannot be read, or something in it is not allowed.
pub fn read(path: &Path) -> Result<Plan> {
    let file = path.display().to_string();
    let text = base::file::read_text(path).with_context(|| format!("cannot read {file}"))?;
    parse(&file, &text)
}

/// The plan of a text; `file` is what errors call it.
///
/// # Errors
/// Something in it is not allowed.
pub fn parse(file: &str, text: &str) -> Result<Plan> {
    let root = node::parse(file, text)?;
    let map = root.map(&["name", "underlay", "etcd", "hosts", "networks", "containers", "expect"])?;
    let name = match map.get("name") {
        Some(node) => {
            let name = node.text(NAME)?;
            plan::check_name(name).map_err(|error| node.wrong(error))?;
            name.to_owned()
        }
        None => DEFAULT_NAME.to_owned(),
    };
    let underlay = map.get("underlay").map_or_else(|| Ok(Underlay::default()), underlay)?;
    let hosts = hosts(map.need("hosts")?, &underlay)?;
    let etcd = etcd(&map, &underlay, hosts.len())?;
    let mut networks: Vec<Network> = Vec::new();
    for node in map.get("networks").map(Node::list).unwrap_or_default() {
        networks.push(network(&node, &underlay, &networks)?);
    }
    if let Some(mtu) =
        map.get("underlay").map(underlay_map).transpose()?.as_ref().and_then(|map| map.get("mtu"))
    {
        networks
            .iter()
            .try_for_each(|network| underlay.check_mtu(network))
            .map_err(|error| mtu.wrong(error))?;
    }
    let mut names: BTreeSet<String> = hosts.iter().map(|host| host.name.clone()).collect();
    names.extend(etcd.iter().map(|member| member.name.clone()));
    let mut containers: Vec<Container> = Vec::new();
    for node in map.get("containers").map(Node::list).unwrap_or_default() {
        let made = container(&node, &hosts, &networks, &containers)?;
        if !names.insert(made.name.clone()) {
            let name = &made.name;
            return Err(node.wrong(format_args!("the name {name:?} is another container's or machine's")));
        }
        containers.push(made);
    }
    let mut plan = Plan {
        name,
        created: String::new(),
        underlay,
        etcd,
        hosts,
        networks,
        containers,
        expect: Vec::new(),
    };
    plan.expect = each(&map, "expect", |node| expectation(node, &plan))?;
    Ok(plan)
}

/// The elements of the list behind a key.
fn each<T>(map: &Map<'_>, key: &str, mut read: impl FnMut(&Node<'_>) -> Result<T>) -> Result<Vec<T>> {
    map.get(key).map(Node::list).unwrap_or_default().iter().map(&mut read).collect()
}

fn underlay_map<'f>(node: &Node<'f>) -> Result<Map<'f>> {
    node.map(&["ipv4", "ipv6", "mtu"])
}

fn underlay(node: &Node<'_>) -> Result<Underlay> {
    let map = underlay_map(node)?;
    let mut underlay = Underlay::default();
    if let Some(node) = map.get("ipv4") {
        underlay.ipv4 = subnet::<Ipv4Network>(node, "an IPv4 subnet like 10.99.0.0/24, or none")?;
    }
    if let Some(node) = map.get("ipv6") {
        underlay.ipv6 = subnet::<Ipv6Network>(node, "an IPv6 subnet like fd99::/64, or none")?;
    }
    if let Some(node) = map.get("mtu") {
        underlay.mtu = node.number(plan::MTU.0, plan::MTU.1)?;
    }
    if underlay.ipv4.is_none() && underlay.ipv6.is_none() {
        return Err(node.wrong("one of ipv4 and ipv6 has to be a subnet"));
    }
    Ok(underlay)
}

/// A subnet without host bits, or `none`.
fn subnet<T: std::str::FromStr + Into<IpNetwork> + Copy>(
    node: &Node<'_>,
    allowed: &str,
) -> Result<Option<T>> {
    if node.text(allowed)? == "none" {
        return Ok(None);
    }
    let subnet: T = node.get(allowed)?;
    let net: IpNetwork = subnet.into();
    if !node.text(allowed)?.contains('/') || net.ip() != net.network() {
        return Err(node.refused(allowed));
    }
    Ok(Some(subnet))
}

fn hosts(node: &Node<'_>, underlay: &Underlay) -> Result<Vec<Machine>> {
    let fits = |error: anyhow::Error| node.wrong(error);
    if !node.is_list() && !node.is_map() {
        let count = node.number(1, MAX_HOSTS)?;
        return underlay.hosts((1..=count).map(|number| format!("host{number}"))).map_err(fits);
    }
    let list = node.list();
    if list.is_empty() || list.len() > MAX_HOSTS as usize {
        return Err(node.refused(format_args!("a number of hosts, or a list of 1 to {MAX_HOSTS}")));
    }
    let mut names: Vec<String> = Vec::new();
    let mut flags = Vec::new();
    for node in &list {
        // A host is its name, or its name and more.
        let (at, agent) = match node.is_map() {
            false => (node.clone(), Vec::new()),
            true => {
                let map = node.map(&["name", "agent"])?;
                let agent = map.get("agent").map(|node| words(node, "flags of ovl-agent run")).transpose()?;
                (map.need("name")?.clone(), agent.unwrap_or_default())
            }
        };
        let name = at.text(HOST_NAME)?;
        let is_etcd = name.strip_prefix("etcd").is_some_and(|rest| rest.bytes().all(|c| c.is_ascii_digit()));
        if !plan::is_host_name(name) || is_etcd || name == super::dirs::UNDERLAY {
            return Err(at.refused(format_args!("{HOST_NAME}; not underlay, nor etcd and a number")));
        }
        if names.iter().any(|other| other == name) {
            return Err(at.wrong(format_args!("the name {name:?} is another host's")));
        }
        names.push(name.to_owned());
        flags.push(agent);
    }
    let mut machines = underlay.hosts(names).map_err(fits)?;
    for (machine, flags) in machines.iter_mut().zip(flags) {
        machine.agent = flags;
    }
    Ok(machines)
}

fn etcd(map: &Map<'_>, underlay: &Underlay, hosts: usize) -> Result<Vec<Machine>> {
    let allowed =
        if hosts == 1 { "0, 1 or 3 members" } else { "1 or 3 members; none only for a single host" };
    let count = map.get("etcd").map(|node| node.get::<u32>(allowed)).transpose()?.unwrap_or(1);
    match map.get("etcd") {
        Some(node) if !matches!((count, hosts), (1 | 3, _) | (0, 1)) => Err(node.refused(allowed)),
        node => underlay.members(count).map_err(|error| node.unwrap_or(map.at()).wrong(error)),
    }
}

fn network(node: &Node<'_>, underlay: &Underlay, others: &[Network]) -> Result<Network> {
    let map = node.map(&["name", "driver", "subnet", "ipv6", "internal", "opt"])?;
    if let Some(driver) = map.get("driver") {
        let allowed = "overlay: a lab's file has the networks between hosts";
        if driver.text(allowed)? != "overlay" {
            return Err(driver.refused(allowed));
        }
    }
    let flag = |key: &str| map.get(key).map(|node| node.get::<bool>("true or false")).transpose();
    let at = map.need("name")?;
    let mut network = Network { name: at.text(NAME)?.to_owned(), ..Network::default() };
    rules::network(&network).map_err(|error| at.wrong(error))?;
    if others.iter().any(|other| other.name == network.name) {
        return Err(at.wrong(format_args!("the name {:?} is another network's", network.name)));
    }
    network.ipv6 = flag("ipv6")?.unwrap_or(false);
    network.internal = flag("internal")?.unwrap_or(false);
    for node in map.get("subnet").map(Node::list).unwrap_or_default() {
        let allowed = "a subnet like 10.42.0.0/16 or fd42::/48";
        let _: IpNetwork = node.get(allowed)?;
        let text = node.text(allowed)?;
        if !text.contains('/') {
            return Err(node.refused(allowed));
        }
        network.subnets.push(text.to_owned());
        let checked = rules::network(&network).and_then(|()| rules::subnet(text, underlay, others));
        checked.map_err(|error| node.wrong(error))?;
    }
    for (key, node) in
        map.get("opt").map(|node| node.pairs("options: NAME: VALUE")).transpose()?.unwrap_or_default()
    {
        let value = node.text("a value")?.to_owned();
        network.options.insert(key, value);
        rules::network(&network).map_err(|error| node.wrong(error))?;
        let vni = |network: &Network| network.options.get("vni").and_then(|text| text.parse::<u32>().ok());
        if let Some(other) = others.iter().find(|other| vni(other).is_some() && vni(other) == vni(&network)) {
            return Err(node.wrong(format_args!("the VNI is that of the network {} already", other.name)));
        }
    }
    Ok(network)
}

fn container(
    node: &Node<'_>,
    hosts: &[Machine],
    networks: &[Network],
    others: &[Container],
) -> Result<Container> {
    let map = node.map(&["name", "host", "network", "ip", "publish", "command"])?;
    let known: Vec<&str> = networks.iter().map(|network| network.name.as_str()).collect();
    let name = map.need("name")?;
    let host = map.need("host")?;
    let mut made = Container { name: name.text(NAME)?.to_owned(), ..Container::default() };
    crate::cli::check_container_name(&made.name).map_err(|error| name.wrong(error))?;
    let all: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
    made.host = one_of(host, &all)?;
    match map.get("network") {
        Some(node) => {
            for each in node.list() {
                let name = one_of(&each, &known)?;
                if made.networks.contains(&name) {
                    return Err(each.wrong(format_args!("the network {name} is given twice")));
                }
                made.networks.push(name);
            }
        }
        None => match known.as_slice() {
            [only] => made.networks.push((*only).to_owned()),
            _ => return Err(node.wrong("the key \"network\" is missing")),
        },
    }
    let networks: Vec<&Network> = made
        .networks
        .iter()
        .filter_map(|name| networks.iter().find(|network| network.name == *name))
        .collect();
    for node in map.get("ip").map(Node::list).unwrap_or_default() {
        let ip: IpAddr = node.get("an address")?;
        if made.ips.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            return Err(
                node.wrong(format_args!("{ip} is the second address of its family: one of each is allowed"))
            );
        }
        let Some(first) = networks.first() else {
            return Err(node.wrong(format_args!("{ip}: a container without a network has no address")));
        };
        rules::address(first, ip).map_err(|error| node.wrong(error))?;
        // Both ask for it in their first network.
        let same =
            |other: &&Container| other.networks.first() == Some(&first.name) && other.ips.contains(&ip);
        if let Some(other) = others.iter().find(same) {
            return Err(node.wrong(format_args!("{ip} is the address of {}", other.name)));
        }
        made.ips.push(ip);
    }
    if let Some(node) = map.get("publish") {
        for each in node.list() {
            made.publish.push(each.text("a port like 8080:80")?.to_owned());
            let ports = rules::ports(&made.publish).map_err(|error| each.wrong(error))?;
            if let Some((other, port)) = rules::port_of_another(&ports, &made.host, others) {
                return Err(each.wrong(format_args!("port {port} of {} is published by {other}", made.host)));
            }
        }
        if !made.publish.is_empty() && networks.iter().all(|network| network.internal) {
            return Err(
                node.wrong("a container publishes ports by a network that is not internal, and has none")
            );
        }
    }
    if let Some(node) = map.get("command") {
        made.command = words(node, "words")?;
    }
    Ok(made)
}

/// A list of words, or a text that is split at white space.
fn words(node: &Node<'_>, what: &str) -> Result<Vec<String>> {
    let allowed = format!("{what}: a list, or a text that is split at white space");
    if node.is_list() {
        return node.texts(&allowed);
    }
    Ok(node.text(&allowed)?.split_whitespace().map(str::to_owned).collect())
}

fn one_of(node: &Node<'_>, known: &[&str]) -> Result<String> {
    let allowed = known.join(", ");
    let text = node.text(&allowed)?;
    known.contains(&text).then(|| text.to_owned()).ok_or_else(|| node.refused(allowed))
}

fn expectation(node: &Node<'_>, plan: &Plan) -> Result<Expectation> {
    let map = node.map(&["ping", "no_ping", "tcp", "no_tcp", "http", "no_http"])?;
    let kinds: Vec<&str> = ["ping", "no_ping", "tcp", "no_tcp", "http", "no_http"]
        .into_iter()
        .filter(|kind| map.get(kind).is_some())
        .collect();
    let [kind] = kinds.as_slice() else {
        return Err(node.wrong("allowed is one of ping, no_ping, tcp, no_tcp, http, no_http"));
    };
    let node = map.need(kind)?;
    let works = !kind.starts_with("no_");
    match kind.trim_start_matches("no_") {
        "ping" => ping(node, plan, works),
        "tcp" => tcp(node, plan, works),
        _ => http(node, plan, works),
    }
}

/// Who may try and be tried.
fn names(plan: &Plan) -> Vec<&str> {
    let containers = plan.containers.iter().map(|container| container.name.as_str());
    containers.chain(plan.hosts.iter().map(|host| host.name.as_str())).collect()
}

/// `A, B -> C, D`.
fn arrow(node: &Node<'_>, plan: &Plan) -> Result<(Vec<String>, Vec<String>)> {
    let known = names(plan);
    let allowed = format!("FROM -> TO, each one or more of {}", known.join(", "));
    let (from, to) = node.text(&allowed)?.split_once("->").ok_or_else(|| node.refused(&allowed))?;
    let side = |text: &str| -> Result<Vec<String>> {
        let each = text.split(',').map(str::trim);
        each.map(|name| match known.contains(&name) {
            true => Ok(name.to_owned()),
            false => Err(node.wrong(format_args!("there is no {name:?}: allowed is {allowed}"))),
        })
        .collect()
    };
    Ok((side(from)?, side(to)?))
}

fn ends(map: &Map<'_>, key: &str, plan: &Plan) -> Result<Vec<String>> {
    let known = names(plan);
    map.need(key)?.list().iter().map(|node| one_of(node, &known)).collect()
}

fn family(map: &Map<'_>) -> Result<Option<Family>> {
    let allowed = "ipv4 or ipv6";
    map.get("family")
        .map(|node| match node.text(allowed)? {
            "ipv4" => Ok(Family::V4),
            "ipv6" => Ok(Family::V6),
            _ => Err(node.refused(allowed)),
        })
        .transpose()
}

fn ping(node: &Node<'_>, plan: &Plan, works: bool) -> Result<Expectation> {
    if !node.is_map() {
        let (from, to) = arrow(node, plan)?;
        return Ok(Expectation { from, what: Attempt::Ping(to), family: None, works });
    }
    let map = node.map(&["from", "to", "family"])?;
    let what = Attempt::Ping(ends(&map, "to", plan)?);
    Ok(Expectation { from: ends(&map, "from", plan)?, what, family: family(&map)?, works })
}

fn tcp(node: &Node<'_>, plan: &Plan, works: bool) -> Result<Expectation> {
    let map = node.map(&["from", "to", "port", "family"])?;
    let port = map.need("port")?.number(1, 65_535)?;
    // Within the bounds of a port, as was just checked.
    let what = Attempt::Tcp(ends(&map, "to", plan)?, port as u16);
    Ok(Expectation { from: ends(&map, "from", plan)?, what, family: family(&map)?, works })
}

fn http(node: &Node<'_>, plan: &Plan, works: bool) -> Result<Expectation> {
    let map = node.map(&["from", "url", "status", "body", "family"])?;
    let at = map.need("url")?;
    let allowed = "http://HOST[:PORT]/PATH, HOST an address, or the name of a container or host";
    let url = at.text(allowed)?.to_owned();
    super::http::Url::parse(&url).ok_or_else(|| at.refused(allowed))?;
    let status = map.get("status").map(|node| node.number(100, 599)).transpose()?.unwrap_or(200);
    let body = map.get("body").map(|node| node.text("a text").map(str::to_owned)).transpose()?;
    let what = Attempt::Http { url, status: status as u16, body };
    Ok(Expectation { from: ends(&map, "from", plan)?, what, family: family(&map)?, works })
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
