//! What a network may be: every rule that needs no store, with errors that name the field as the user writes it.

use ipnetwork::IpNetwork;
use ovl_api::model::{Network, Subnet, overlap, parse_exceptions};
use ovl_api::names::{self, MAX_VNI};
use ovl_api::wire::{NetworkCreate, Problem};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The longest name of a network or host, in bytes.
const MAX_NAME: usize = names::LONGEST_NETWORK;
/// The longest prefix of a subnet: two blocks of four addresses.
const LONGEST: (u8, u8) = (29, 125);

/// Networks that no overlay can have, and why.
const RESERVED: [(&str, &str); 9] = [
    ("0.0.0.0/8", "\"this network\""),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/127", "loopback"),
    ("::ffff:0:0/96", "IPv4 written as IPv6"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
];

/// Checks a name: a letter or digit, then letters, digits, `_`, `.` and `-`.
fn check_name(field: &str, what: &str, name: &str) -> Result<(), Problem> {
    let plain = |c: char| c.is_ascii_alphanumeric();
    let first = name.starts_with(plain);
    if !first || !name.chars().all(|c| plain(c) || "_.-".contains(c)) || name.len() > MAX_NAME {
        return Err(Problem::invalid(
            field,
            format!(
                "{what} {name:?} cannot be used: it must begin with a letter or digit, then have only letters, digits, \
                 `_`, `.` and `-`, {MAX_NAME} in all"
            ),
        ));
    }
    Ok(())
}

/// Checks a network's name.
pub(crate) fn network_name(name: &str) -> Result<(), Problem> {
    check_name("name", "network name", name)?;
    if names::RESERVED_NETWORKS.contains(&name) || name == names::DEFAULT_NETWORK {
        let message = format!(
            "network name {name:?} cannot be used: it has a meaning of its own where networks are named"
        );
        return Err(Problem::invalid("name", message));
    }
    Ok(())
}

/// Checks the options that the runtime reads.
pub(crate) fn options(options: &BTreeMap<String, String>) -> Result<(), Problem> {
    let option = names::PREFIX_OPTION;
    match options.get(option) {
        Some(prefix) if !names::is_interface_prefix(prefix) => {
            let allowed = "1 to 13 bytes without '/', ':' and white space";
            let message = format!("--opt {option}={prefix}: allowed is {allowed}");
            Err(Problem::invalid(&format!("--opt {option}"), message))
        }
        _ => Ok(()),
    }
}

/// Checks a host's name.
pub(crate) fn host_name(name: &str) -> Result<(), Problem> {
    check_name("--node-name", "host name", name)
}

/// Checks what an attachment says of itself: its parts become names of keys and files.
pub(crate) fn attachment(container: &str, ifname: &str) -> Result<(), Problem> {
    check_name("container", "container ID", container)?;
    let plain = |c: char| c.is_ascii_graphic() && !"/:".contains(c);
    if ifname.is_empty() || ifname.len() > 15 || !ifname.chars().all(plain) || [".", ".."].contains(&ifname) {
        return Err(Problem::invalid("ifname", format!("interface name {ifname:?} cannot be used")));
    }
    Ok(())
}

/// Checks the name of the host's end of a link.
pub(crate) fn veth(veth: &str) -> Result<(), Problem> {
    if veth.len() > 15 {
        return Err(Problem::invalid(
            "veth",
            format!("{veth:?} is longer than a link's name can be (15 bytes)"),
        ));
    }
    check_name("veth", "link name", veth)
}

/// Checks a hardware address and writes it the usual way.
pub(crate) fn mac(text: &str) -> Result<String, Problem> {
    let parts: Vec<&str> = text.split(':').collect();
    let byte = |part: &&str| {
        (part.len() == 2 && part.chars().all(|c| c.is_ascii_hexdigit()))
            .then(|| u8::from_str_radix(part, 16).ok())
            .flatten()
    };
    let bytes: Vec<u8> = parts.iter().filter_map(byte).collect();
    let group = bytes.first().is_some_and(|first| first & 1 == 1);
    if parts.len() != 6 || bytes.len() != 6 || group || bytes.iter().all(|byte| *byte == 0) {
        let message =
            format!("--mac {text:?} is not the hardware address of an interface, as in 02:42:ac:11:00:02");
        return Err(Problem::invalid("--mac", message));
    }
    Ok(mac_text(&bytes))
}

/// A hardware address as text.
pub(crate) fn mac_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// Checks all of a request but what depends on other networks, and returns the subnets as given, each complete, IPv4 first.
pub(crate) fn network(ask: &NetworkCreate) -> Result<Vec<Subnet>, Problem> {
    network_name(&ask.name)?;
    options(&ask.options)?;
    if let Some(vni) = ask.vni
        && !(1..=MAX_VNI).contains(&vni)
    {
        return Err(Problem::invalid("--opt vni", format!("--opt vni={vni}: allowed are 1 to {MAX_VNI}")));
    }
    let v6 = ask.ipv6 || ask.subnets.iter().any(IpNetwork::is_ipv6);
    if let Some(mtu) = ask.mtu {
        let least = if v6 { 1280 } else { 576 };
        if !(least..=65485).contains(&mtu) {
            let why = if v6 { " in a network with IPv6" } else { "" };
            return Err(Problem::invalid(
                "--opt mtu",
                format!("--opt mtu={mtu}: allowed are {least} to 65485{why}"),
            ));
        }
    }
    if let Some(value) = ask.options.get(Network::INGRESS_OPTION) {
        let option = format!("--opt {}", Network::INGRESS_OPTION);
        let [published, routed] = Network::INGRESS;
        if !Network::INGRESS.contains(&value.as_str()) {
            let message = format!("{option}={value}: allowed are {published} and {routed}");
            return Err(Problem::invalid(&option, message));
        }
        if ask.internal && value == routed {
            let message = format!("{option}={value}: an internal network has no way in");
            return Err(Problem::invalid(&option, message));
        }
    }
    if let Some(value) = ask.options.get(Network::EXCEPTIONS_OPTION) {
        let option = format!("--opt {}", Network::EXCEPTIONS_OPTION);
        parse_exceptions(value.split(','))
            .map_err(|why| Problem::invalid(&option, format!("{option}={value}: {why}")))?;
        if ask.internal {
            let message = format!("{option}={value}: an internal network has no way out");
            return Err(Problem::invalid(&option, message));
        }
    }
    let v4 = ask.subnets.is_empty() || ask.subnets.iter().any(IpNetwork::is_ipv4);
    if let Some(size) = ask.block_size {
        if !(20..=30).contains(&size) {
            let message =
                format!("--opt block-size={size}: allowed are 20 to 30, the prefix length of IPv4 blocks");
            return Err(Problem::invalid("--opt block-size", message));
        }
        if !v4 {
            let message = format!("--opt block-size={size} is for IPv4, and the network has no IPv4 subnet");
            return Err(Problem::invalid("--opt block-size", message));
        }
    }
    let mut subnets = Vec::new();
    for given in &ask.subnets {
        let gateways: Vec<IpAddr> =
            ask.gateways.iter().copied().filter(|gateway| gateway.is_ipv4() == given.is_ipv4()).collect();
        if subnets.iter().any(|subnet: &Subnet| subnet.subnet.is_ipv4() == given.is_ipv4()) {
            let message = format!("--subnet {given}: a network has one subnet of each family");
            return Err(Problem::invalid("--subnet", message));
        }
        if let [_, second, ..] = gateways[..] {
            let message = format!("--gateway {second}: a network has one gateway of each family");
            return Err(Problem::invalid("--gateway", message));
        }
        subnets.push(complete(*given, gateways.first().copied(), ask.block_size)?);
    }
    let homeless = ask
        .gateways
        .iter()
        .find(|gateway| !ask.subnets.iter().any(|subnet| subnet.is_ipv4() == gateway.is_ipv4()));
    if let Some(gateway) = homeless {
        let message = format!("--gateway {gateway} is in no subnet that was given: give --subnet too");
        return Err(Problem::invalid("--gateway", message));
    }
    subnets.sort_by_key(|subnet| subnet.subnet.is_ipv6());
    Ok(subnets)
}

/// Checks a subnet and fills in its gateway (its first address) and the length of its blocks.
pub(crate) fn complete(
    given: IpNetwork,
    gateway: Option<IpAddr>,
    block: Option<u8>,
) -> Result<Subnet, Problem> {
    let wrong = |why: String| Problem::invalid("--subnet", format!("--subnet {given}: {why}"));
    let subnet = IpNetwork::new(given.network(), given.prefix()).map_err(|e| wrong(e.to_string()))?;
    for (reserved, what) in RESERVED {
        let reserved: IpNetwork = reserved.parse().map_err(|_| wrong(reserved.to_owned()))?;
        if overlap(subnet, reserved) {
            return Err(wrong(format!("it overlaps {reserved}, which is {what}")));
        }
    }
    let longest = if subnet.is_ipv4() { LONGEST.0 } else { LONGEST.1 };
    if subnet.prefix() > longest {
        return Err(wrong(format!("it is too small: the smallest is /{longest}, which has two blocks")));
    }
    let named = (given.ip() != subnet.network()).then_some(given.ip());
    if let (Some(named), Some(gateway)) = (named, gateway)
        && named != gateway
    {
        let message = format!("--gateway {gateway}: --subnet {given} already names {named} as the gateway");
        return Err(Problem::invalid("--gateway", message));
    }
    let first = crate::pool::address(subnet.network(), crate::pool::number(subnet.network()) + 1);
    let (gateway, field) = match (gateway, named) {
        (Some(gateway), _) => (gateway, format!("--gateway {gateway}")),
        (None, Some(named)) => (named, format!("--subnet {given}")),
        (None, None) => (first, String::new()),
    };
    let name = if named.is_some() && !field.starts_with("--gateway") { "--subnet" } else { "--gateway" };
    if !subnet.contains(gateway) {
        return Err(Problem::invalid(name, format!("{field} is not in the subnet {subnet}")));
    }
    if gateway == subnet.network() {
        let message = format!("{field} is the subnet's own address, which cannot be the gateway");
        return Err(Problem::invalid(name, message));
    }
    if gateway.is_ipv4() && gateway == subnet.broadcast() {
        let message = format!("{field} is the subnet's broadcast address, which cannot be the gateway");
        return Err(Problem::invalid(name, message));
    }
    let block = if subnet.is_ipv4() { block } else { None };
    if let Some(size) = block
        && size <= subnet.prefix()
    {
        let message = format!(
            "--opt block-size={size}: the subnet {subnet} is too small for the block size; it must hold two blocks at \
             least, so allowed are {} to 30",
            (subnet.prefix() + 1).max(20)
        );
        return Err(Problem::invalid("--opt block-size", message));
    }
    let block = block.unwrap_or_else(|| default_block(&subnet));
    Ok(Subnet { subnet, gateway, block })
}

/// The length of a subnet's blocks when none was asked for.
///
/// IPv4: /26 (63 containers a block), or longer so that 32 hosts can have one, but never longer than /30: /16 to /21 → /26,
/// /24 → /29, /25 and longer → /30. IPv6: /112 (65,535 containers a block; 2^48 blocks in a /64), or longer so that
/// 32 hosts can have one, but never longer than /126.
fn default_block(subnet: &IpNetwork) -> u8 {
    let (usual, longest) = if subnet.is_ipv4() { (26, 30) } else { (112, 126) };
    (subnet.prefix() + 5).clamp(usual, longest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovl_api::wire::ProblemKind;

    fn ask(subnets: &[&str]) -> NetworkCreate {
        let subnets = subnets.iter().map(|text| text.parse().unwrap()).collect();
        NetworkCreate { name: "web".into(), subnets, ..NetworkCreate::default() }
    }

    fn refusal(ask: NetworkCreate) -> String {
        let problem = network(&ask).unwrap_err();
        assert_eq!(problem.kind, ProblemKind::Invalid);
        let field = problem.field.expect("a field");
        let said = field.strip_prefix("--opt ").unwrap_or(&field);
        assert!(problem.message.contains(said), "{} names {field}", problem.message);
        problem.message
    }

    #[test]
    fn blocks_are_such_that_32_hosts_fit() {
        let block = |text: &str| complete(text.parse().unwrap(), None, None).unwrap().block;
        let v4 =
            ["10.0.0.0/8", "10.42.0.0/16", "10.42.0.0/21", "10.42.0.0/22", "10.42.0.0/24", "10.42.0.0/25"];
        assert_eq!(v4.map(block), [26, 26, 26, 27, 29, 30]);
        assert_eq!(["10.42.0.0/28", "10.42.0.0/29"].map(block), [30, 30]);
        assert_eq!(["fd00::/48", "fd00::/64", "fd00::/112", "fd00::/125"].map(block), [112, 112, 117, 126]);
    }

    #[test]
    fn host_bits_name_the_gateway() {
        let named = network(&ask(&["fd00::7/64", "10.42.0.9/16"])).unwrap();
        let text: Vec<String> = named.iter().map(|s| format!("{} {}", s.subnet, s.gateway)).collect();
        assert_eq!(text, ["10.42.0.0/16 10.42.0.9", "fd00::/64 fd00::7"]);
        let plain = network(&ask(&["10.42.0.0/16"])).unwrap();
        assert_eq!(plain[0].gateway.to_string(), "10.42.0.1");
        let mut both = ask(&["10.42.0.9/16"]);
        both.gateways = vec!["10.42.0.8".parse().unwrap()];
        assert!(refusal(both).starts_with("--gateway 10.42.0.8: --subnet 10.42.0.9/16 already names"));
    }

    #[test]
    fn what_cannot_be_a_subnet_is_refused_with_the_reason() {
        for (subnet, why) in [
            ("127.1.0.0/16", "overlaps 127.0.0.0/8, which is loopback"),
            ("0.0.0.0/0", "overlaps 0.0.0.0/8"),
            ("224.0.0.0/24", "multicast"),
            ("169.254.0.0/16", "link-local"),
            ("255.0.0.0/16", "reserved"),
            ("fe80::/64", "link-local"),
            ("ff02::/64", "multicast"),
            ("::1/64", "loopback"),
            ("10.42.0.0/30", "too small: the smallest is /29"),
            ("fd00::/126", "too small: the smallest is /125"),
            ("10.42.255.255/16", "broadcast address"),
        ] {
            let message = refusal(ask(&[subnet]));
            assert!(message.starts_with(&format!("--subnet {subnet}")) && message.contains(why), "{message}");
        }
        assert!(refusal(ask(&["10.1.0.0/16", "10.2.0.0/16"])).contains("one subnet of each family"));
    }

    #[test]
    fn gateways_that_cannot_be_are_refused() {
        for (gateway, why) in [
            ("10.43.0.1", "not in the subnet 10.42.0.0/16"),
            ("10.42.0.0", "the subnet's own address"),
            ("10.42.255.255", "broadcast"),
            ("fd00::1", "in no subnet that was given"),
        ] {
            let mut wrong = ask(&["10.42.0.0/16"]);
            wrong.gateways = vec![gateway.parse().unwrap()];
            let message = refusal(wrong);
            assert!(
                message.starts_with(&format!("--gateway {gateway}")) && message.contains(why),
                "{message}"
            );
        }
    }

    #[test]
    fn options_out_of_range_are_refused_naming_the_option() {
        let with = |change: fn(&mut NetworkCreate), subnet: &str| {
            let mut asked = ask(&[subnet]);
            change(&mut asked);
            refusal(asked)
        };
        assert!(with(|a| a.vni = Some(0), "10.1.0.0/16").contains("--opt vni=0: allowed are 1 to 16777215"));
        assert!(with(|a| a.vni = Some(1 << 24), "10.1.0.0/16").contains("--opt vni=16777216"));
        assert!(with(|a| a.mtu = Some(575), "10.1.0.0/16").contains("allowed are 576 to 65485"));
        assert!(with(|a| a.mtu = Some(1279), "fd00::/64").contains("allowed are 1280 to 65485"));
        assert!(with(|a| a.mtu = Some(65486), "10.1.0.0/16").contains("--opt mtu=65486"));
        assert!(with(|a| a.block_size = Some(31), "10.1.0.0/16").contains("allowed are 20 to 30"));
        assert!(with(|a| a.block_size = Some(19), "10.1.0.0/16").contains("allowed are 20 to 30"));
        assert!(with(|a| a.block_size = Some(26), "fd00::/64").contains("is for IPv4"));
        let open = with(|a| drop(a.options.insert("ingress".into(), "open".into())), "10.1.0.0/16");
        assert!(open.contains("--opt ingress=open: allowed are published and routed"), "{open}");
        let mut routed = ask(&["10.1.0.0/16"]);
        routed.options.insert("ingress".into(), "routed".into());
        network(&routed).unwrap();
        routed.internal = true;
        assert!(refusal(routed).contains("an internal network has no way in"));
        let mut exempt = ask(&["10.1.0.0/16"]);
        let mut except = |value: &str, internal: bool| {
            exempt.options.insert("non-masquerade-cidrs".into(), value.into());
            exempt.internal = internal;
            exempt.clone()
        };
        network(&except("192.0.2.0/24,fd00::/8,0.0.0.0/0", false)).unwrap();
        for wrong in ["", "10.0.0.0/8,", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.1", "10.0.0.0/8;fd00::/8"] {
            let message = refusal(except(wrong, false));
            assert!(message.starts_with(&format!("--opt non-masquerade-cidrs={wrong}: ")), "{message}");
            assert!(message.contains("expected a CIDR without host bits"), "{message}");
        }
        assert!(
            refusal(except(&["10.0.0.0/8"; 65].join(","), false)).contains("65 CIDRs: expected 64 at most")
        );
        assert!(refusal(except("10.0.0.0/8", true)).contains("an internal network has no way out"));
        let small = with(|a| a.block_size = Some(24), "10.1.0.0/24");
        assert!(small.contains("10.1.0.0/24 is too small for the block size"), "{small}");
        assert!(small.contains("allowed are 25 to 30"), "{small}");
    }

    #[test]
    fn names_are_those_of_networks_elsewhere() {
        for name in ["a", "Web_1.x-y", &"n".repeat(128)] {
            network_name(name).unwrap();
        }
        for name in [
            "bridge",
            "default",
            "host",
            "none",
            "container",
            "loopback",
            "",
            "-a",
            ".a",
            "a b",
            "a/b",
            "ä",
            &"n".repeat(129),
        ] {
            assert!(network_name(name).is_err(), "{name:?}");
        }
        assert_eq!(mac("02:AB:00:00:00:01").unwrap(), "02:ab:00:00:00:01");
        for wrong in
            ["", "02:ab", "01:00:5e:00:00:01", "00:00:00:00:00:00", "02:ab:00:00:00:0g", "+2:ab:00:00:00:01"]
        {
            assert!(mac(wrong).is_err(), "{wrong}");
        }
    }
}
