//! `network create`.

use super::host::Named;
use super::meta::{Meta, Subnet};
use super::options::{BRIDGE, EXCEPTIONS, Options};
use super::pools::{self, Asked, Taken, Use};
use super::{DEFAULT, Network, conflist, file, host, lock, overlay};
use crate::paths::Paths;
use crate::state;
use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use ovl_api::names::{LONGEST_NETWORK, RESERVED_NETWORKS};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::net::IpAddr;

/// What `network create` was asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The name.
    pub name: String,
    /// `--driver`; empty for bridge.
    pub driver: String,
    /// `--subnet`.
    pub subnets: Vec<String>,
    /// `--gateway`.
    pub gateways: Vec<IpAddr>,
    /// `--ip-range`.
    pub ip_ranges: Vec<IpNetwork>,
    /// `--aux-address`.
    pub aux_addresses: Vec<(String, IpAddr)>,
    /// `--ipv6`.
    pub ipv6: bool,
    /// `--internal`.
    pub internal: bool,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--opt`.
    pub options: BTreeMap<String, String>,
}

/// Makes a network: writes its conflist. The kernel sees nothing of it before the first container.
///
/// # Errors
/// Anything that was asked for and cannot be; names the flag, the value and what is allowed. Nothing is written then.
pub fn create(paths: &Paths, request: &Request) -> Result<Network> {
    check_name(&request.name)?;
    check_driver(&request.driver)?;
    if request.driver == overlay::DRIVER {
        return overlay::create(paths, request);
    }
    // Subnets of overlay networks that were made on other hosts are taken here too. With the agent down those count that
    // are known.
    let _ = overlay::confirm(paths);
    let options = Options::parse(&request.options)?;
    if request.internal && !options.exceptions.is_empty() {
        bail!("--opt {EXCEPTIONS}: an internal network masquerades nothing");
    }
    let asked = request.subnets.iter().map(|text| pools::parse_subnet(text)).collect::<Result<Vec<_>>>()?;
    let _lock = lock::create(paths)?;
    let made = create_locked(paths, request, &options, &asked);
    if made.is_err() {
        // Only when it is empty: then this call may have made it.
        let _ = fs::remove_dir(&paths.config_dir);
    }
    made
}

fn create_locked(paths: &Paths, request: &Request, options: &Options, asked: &[Asked]) -> Result<Network> {
    let networks = super::all(paths);
    let name = &request.name;
    let path = paths.config_dir.join(format!("{name}.conflist"));
    if networks.iter().any(|network| network.name() == name) || path.exists() {
        bail!("network with name {name} already exists");
    }
    let id = random_id()?;
    let host = host::View::read(options.bridge.as_deref())?;
    if let Some(bridge) = options.bridge.as_ref().filter(|_| host.named == Named::OtherLink) {
        bail!("--opt {BRIDGE}={bridge}: the host has a link of this name that is no bridge");
    }
    let mut taken: Vec<Taken> = networks.iter().flat_map(network_subnets).collect();
    taken.extend(host.taken.iter().cloned());
    let mut asked = asked.to_vec();
    if let Named::Bridge(own) = &host.named
        && asked.is_empty()
    {
        // A bridge of the user's own with an address: that is the gateway.
        asked.extend(own.iter().filter_map(|net| pools::parse_subnet(&net.to_string()).ok()));
    }
    let subnets = subnets(request, &asked, &taken, &id)?;
    let bridge = match &options.bridge {
        Some(bridge) => {
            if let Some(other) = networks.iter().find(|network| network.bridge() == Some(bridge)) {
                bail!("bridge name {bridge} is used by network {} already", other.name());
            }
            bridge.clone()
        }
        None => format!("br-{}", &id[..12]),
    };
    let mtu = match options.mtu {
        Some(0) => host.default_mtu,
        other => other,
    };
    let meta = Meta {
        id,
        created: state::now(),
        driver: "bridge".into(),
        internal: request.internal,
        ipv6: request.ipv6,
        labels: request.labels.clone(),
        options: request.options.clone(),
        subnets,
        overlay: None,
    };
    let list = conflist::build(name, &meta, options, &bridge, mtu);
    let text = format!("{list:#}\n");
    // Read before it is written, as every reader of the file will.
    let list = cni::config::ConfList::from_slice(text.as_bytes())?;
    file::create(&path, text.as_bytes())?;
    Network::new(path, list)
}

/// The default network, made when there is none yet.
///
/// # Errors
/// As [`create`].
pub fn ensure_default(paths: &Paths) -> Result<Network> {
    if let Some(network) = super::lookup(paths, DEFAULT)? {
        return Ok(network);
    }
    match create(paths, &Request { name: DEFAULT.into(), ..Request::default() }) {
        Ok(network) => Ok(network),
        // Somebody else was first.
        Err(error) => super::lookup(paths, DEFAULT)?.ok_or(error),
    }
}

pub(super) fn check_name(name: &str) -> Result<()> {
    cni::validate::network_name(name)
        .map_err(|error| anyhow::anyhow!("invalid network name {name:?}: {error}"))?;
    if name.len() > LONGEST_NETWORK {
        bail!("invalid network name {name:?}: {} bytes; the longest has {LONGEST_NETWORK}", name.len());
    }
    if RESERVED_NETWORKS.contains(&name) {
        bail!("invalid network name {name:?}: it has a meaning of its own where networks are named");
    }
    Ok(())
}

fn check_driver(driver: &str) -> Result<()> {
    match driver {
        "" | "bridge" | overlay::DRIVER => Ok(()),
        "host" | "none" | "null" => {
            bail!(
                "--driver {driver}: there is one such network and it always exists: `run --network {driver}`"
            )
        }
        _ => bail!(
            "--driver {driver}: unknown; allowed are bridge and overlay. Networks of other CNI plugins are made by putting \
                    their conflist into the configuration directory"
        ),
    }
}

fn network_subnets(network: &Network) -> Vec<Taken> {
    let by = format!("network {}", network.name());
    network.subnets().into_iter().map(|net| Taken { net, by: by.clone(), how: Use::Subnet }).collect()
}

/// The subnets of a new network: those that were asked for, checked, and those that it gets by itself.
fn subnets(request: &Request, asked: &[Asked], taken: &[Taken], id: &str) -> Result<Vec<Subnet>> {
    check_asked(asked, taken)?;
    let mut asked = asked.to_vec();
    if !asked.iter().any(|one| one.subnet.is_ipv4()) && (asked.is_empty() || request.ipv6) {
        asked.insert(0, Asked { subnet: pools::free(taken)?, address: None });
    }
    if request.ipv6 && !asked.iter().any(|one| one.subnet.is_ipv6()) {
        let subnet = pools::unique_local(id);
        if let Some(other) = pools::overlapped(subnet, taken) {
            bail!("the IPv6 subnet {subnet} overlaps {} ({}); give one with --subnet", other.by, other.net);
        }
        asked.push(Asked { subnet, address: None });
    }
    assign(request, asked)
}

/// Checks the subnets that were asked for: they overlap nothing, and there is one of each family at most.
///
/// # Errors
/// Names the flag, and what is overlapped.
pub(super) fn check_asked(asked: &[Asked], taken: &[Taken]) -> Result<()> {
    for (at, one) in asked.iter().enumerate() {
        if let Some(other) = pools::overlapped(one.subnet, taken) {
            bail!("--subnet {} overlaps {} ({})", one.subnet, other.by, other.net);
        }
        if let Some(other) = asked[..at].iter().find(|other| pools::overlap(other.subnet, one.subnet)) {
            bail!("--subnet {} overlaps --subnet {}", one.subnet, other.subnet);
        }
        if let Some(other) = asked[..at].iter().find(|other| other.subnet.is_ipv4() == one.subnet.is_ipv4()) {
            bail!(
                "--subnet {}: a network has one subnet of each family, and has {}",
                one.subnet,
                other.subnet
            );
        }
    }
    Ok(())
}

/// Gives each subnet the gateway, range and reserved addresses that lie in it.
///
/// # Errors
/// One lies in none, or cannot be in its subnet; names the flag and the value.
pub(super) fn assign(request: &Request, asked: Vec<Asked>) -> Result<Vec<Subnet>> {
    let mut gateways = request.gateways.clone();
    let mut ranges = request.ip_ranges.clone();
    let mut aux = request.aux_addresses.clone();
    let mut subnets = Vec::with_capacity(asked.len());
    for Asked { subnet, address } in asked {
        let gateway = take(&mut gateways, |ip| subnet.contains(*ip), "--gateway", subnet)?;
        let gateway = gateway.or(address).unwrap_or_else(|| pools::first_host(subnet));
        if !pools::is_host(subnet, gateway) {
            bail!("--gateway {gateway}: it is the network's or the broadcast address of {subnet}");
        }
        let part = |range: &IpNetwork| pools::overlap(subnet, *range) && range.prefix() >= subnet.prefix();
        let ip_range = take(&mut ranges, part, "--ip-range", subnet)?.map(pools::network_of);
        if let Some(range) = ip_range {
            check_range(range, subnet, gateway)?;
        }
        let inside: Vec<(String, IpAddr)>;
        (inside, aux) = aux.into_iter().partition(|(_, ip)| subnet.contains(*ip));
        let mut aux_addresses = BTreeMap::new();
        for (name, ip) in inside {
            if ip == gateway || !pools::is_host(subnet, ip) {
                bail!(
                    "--aux-address {name}={ip}: it is the gateway's, the network's or the broadcast address"
                );
            }
            aux_addresses.insert(name, ip);
        }
        subnets.push(Subnet { subnet, gateway, ip_range, aux_addresses, block: None });
    }
    let all = || subnets.iter().map(|one| one.subnet.to_string()).collect::<Vec<_>>().join(", ");
    if let Some(ip) = gateways.first() {
        bail!("--gateway {ip} is in no subnet of the network ({})", all());
    }
    if let Some(range) = ranges.first() {
        bail!("--ip-range {range} is in no subnet of the network ({})", all());
    }
    if let Some((name, ip)) = aux.first() {
        bail!("--aux-address {name}={ip} is in no subnet of the network ({})", all());
    }
    Ok(subnets)
}

/// Checks that `--ip-range` has addresses for containers.
fn check_range(range: IpNetwork, subnet: IpNetwork, gateway: IpAddr) -> Result<()> {
    let longest = if range.is_ipv4() { 31 } else { 127 };
    if range.prefix() > longest {
        bail!(
            "--ip-range {range}: a single address; the longest prefix is /{longest} (`run --ip` gives a container this one)"
        );
    }
    let (first, last) = pools::ends(subnet, range);
    if first > last || (first == last && first == gateway) {
        bail!(
            "--ip-range {range}: it has no address for a container beside the gateway's, the network's and the broadcast address"
        );
    }
    Ok(())
}

/// Takes the one value that belongs to a subnet.
fn take<T: Copy + std::fmt::Display>(
    values: &mut Vec<T>,
    belongs: impl Fn(&T) -> bool,
    flag: &str,
    subnet: IpNetwork,
) -> Result<Option<T>> {
    let Some(at) = values.iter().position(&belongs) else { return Ok(None) };
    let value = values.remove(at);
    match values.iter().find(|other| belongs(other)) {
        Some(other) => bail!("{flag} is given twice for subnet {subnet}: {value} and {other}"),
        None => Ok(Some(value)),
    }
}

fn random_id() -> Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(request: &Request, taken: &[Taken]) -> Result<Vec<Subnet>> {
        let asked =
            request.subnets.iter().map(|text| pools::parse_subnet(text)).collect::<Result<Vec<_>>>()?;
        subnets(request, &asked, taken, &"ab".repeat(32))
    }

    fn request(subnets: &[&str]) -> Request {
        Request { subnets: subnets.iter().map(|text| (*text).into()).collect(), ..Request::default() }
    }

    fn shown(subnets: &[Subnet]) -> Vec<String> {
        subnets.iter().map(|one| format!("{} {}", one.subnet, one.gateway)).collect()
    }

    #[test]
    fn gateways_come_from_the_flag_then_the_host_bits_then_the_first_host() {
        let with_flag =
            Request { gateways: vec!["10.1.0.254".parse().unwrap()], ..request(&["10.1.0.7/24"]) };
        assert_eq!(shown(&build(&with_flag, &[]).unwrap()), ["10.1.0.0/24 10.1.0.254"]);
        assert_eq!(shown(&build(&request(&["10.1.0.7/24"]), &[]).unwrap()), ["10.1.0.0/24 10.1.0.7"]);
        assert_eq!(shown(&build(&request(&["10.1.0.0/24"]), &[]).unwrap()), ["10.1.0.0/24 10.1.0.1"]);
        assert_eq!(shown(&build(&request(&[]), &[]).unwrap()), ["172.17.0.0/16 172.17.0.1"]);
    }

    #[test]
    fn with_ipv6_a_network_has_both_families() {
        let request = Request { ipv6: true, ..request(&[]) };
        let made = shown(&build(&request, &[]).unwrap());
        assert_eq!(made, ["172.17.0.0/16 172.17.0.1", "fdab:abab:abab::/64 fdab:abab:abab::1"]);
    }

    #[test]
    fn an_overlap_names_what_it_overlaps() {
        let taken = |how| [Taken { net: "10.0.0.0/8".parse().unwrap(), by: "address of eth0".into(), how }];
        let error = build(&request(&["10.1.0.0/16"]), &taken(Use::Subnet)).unwrap_err().to_string();
        assert_eq!(error, "--subnet 10.1.0.0/16 overlaps address of eth0 (10.0.0.0/8)");
        build(&request(&["10.1.0.0/16"]), &taken(Use::Route)).unwrap();
    }

    #[test]
    fn what_is_in_no_subnet_is_refused() {
        let base = request(&["10.1.0.0/24"]);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for wrong in [
            Request { gateways: vec![ip("10.2.0.1")], ..base.clone() },
            Request { gateways: vec![ip("10.1.0.255")], ..base.clone() },
            Request { gateways: vec![ip("10.1.0.1"), ip("10.1.0.2")], ..base.clone() },
            Request { ip_ranges: vec!["10.2.0.0/25".parse().unwrap()], ..base.clone() },
            Request { ip_ranges: vec!["10.1.0.0/16".parse().unwrap()], ..base.clone() },
            Request { ip_ranges: vec!["10.1.0.7/32".parse().unwrap()], ..base.clone() },
            Request { ip_ranges: vec!["10.1.0.0/31".parse().unwrap()], ..base.clone() },
            Request { aux_addresses: vec![("a".into(), ip("10.2.0.1"))], ..base.clone() },
            Request { aux_addresses: vec![("a".into(), ip("10.1.0.1"))], ..base.clone() },
            request(&["10.1.0.0/24", "10.2.0.0/24"]),
            request(&["10.1.0.0/24", "10.1.0.0/25"]),
        ] {
            assert!(build(&wrong, &[]).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_and_drivers_that_cannot_be_are_refused() {
        for name in ["", "a/b", ".a", "host", "none", &"a".repeat(129), "a b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("web_1.x-y").is_ok());
        for driver in ["host", "none", "macvlan"] {
            assert!(check_driver(driver).unwrap_err().to_string().contains(driver));
        }
    }
}
