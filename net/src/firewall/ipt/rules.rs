//! The rules of an attachment, as text, and what can be read from a listed one.

use super::frame::Chain;
use crate::firewall::{PortMapping, Protocol, PublishOptions, first_of_each_family, targets};
use crate::{Error, Result, names::Owner};
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// What a guard's tag starts with; the bridge follows.
const GUARD: &str = "weft-guard:";
/// What the tag of its last rule starts with.
const GUARD_LAST: &str = "weft-guard-end:";

/// A rule to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub v6: bool,
    pub chain: Chain,
    /// Goes before those that are not.
    pub first: bool,
    pub text: String,
    /// The port that it publishes.
    pub port: Option<Port>,
}

/// A published port: which rules are in each other's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    pub at: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
}

/// The match that carries the tag. The words of a rule are split at blanks and quotes, so a tag must have none; only
/// interface names could.
fn comment(tag: &str) -> Result<String> {
    match tag.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\')) {
        false => Ok(format!("-m comment --comment {tag}")),
        true => Err(Error::Invalid {
            what: "name",
            value: tag.into(),
            why: "must have no quotes, backslashes or blanks for iptables".into(),
        }),
    }
}

fn rule(net: &IpNetwork, chain: Chain, text: String) -> Rule {
    Rule { v6: net.is_ipv6(), chain, first: false, text, port: None }
}

/// Rules that masquerade what leaves these addresses, but for these destinations; `shut` says for IPv4 and IPv6 whether FORWARD's policy is DROP.
pub fn masquerade(
    owner: &Owner,
    addrs: &[IpNetwork],
    except: &[IpNetwork],
    shut: [bool; 2],
) -> Result<Vec<Rule>> {
    let tag = comment(&owner.tag())?;
    let mut rules = Vec::new();
    for net in addrs {
        let (ip, subnet) = (net.ip(), subnet(net));
        let multicast = if net.is_ipv6() { "ff00::/8" } else { "224.0.0.0/4" };
        rules.push(rule(net, Chain::Masquerade, format!("-s {ip} -d {subnet} {tag} -j RETURN")));
        for to in except.iter().filter(|to| to.is_ipv4() == net.is_ipv4()) {
            rules.push(rule(
                net,
                Chain::Masquerade,
                format!("-s {ip} -d {} {tag} -j RETURN", self::subnet(to)),
            ));
        }
        rules.push(rule(net, Chain::Masquerade, format!("-s {ip} ! -d {multicast} {tag} -j MASQUERADE")));
        if shut[usize::from(net.is_ipv6())] {
            let answers = "-m conntrack --ctstate RELATED,ESTABLISHED";
            rules.push(rule(net, Chain::Forward, format!("-s {ip} {tag} -j ACCEPT")));
            rules.push(rule(net, Chain::Forward, format!("-d {ip} {answers} {tag} -j ACCEPT")));
        }
    }
    Ok(rules)
}

fn subnet(net: &IpNetwork) -> String {
    format!("{}/{}", net.network(), net.prefix())
}

/// Rules that publish ports. Marking and masquerading are as in the reference portmap: before the translation of its
/// destination a packet gets the mark bit, and what has it is masqueraded behind the routing.
pub fn publish(
    owner: &Owner,
    addrs: &[IpNetwork],
    ports: &[PortMapping],
    options: &PublishOptions,
    shut: [bool; 2],
) -> Result<Vec<Rule>> {
    if options.mark_bit > 31 {
        return Err(Error::Invalid {
            what: "markMasqBit",
            value: options.mark_bit.to_string(),
            why: "must be 0 to 31".into(),
        });
    }
    let tag = comment(&owner.tag())?;
    let mark = format!("{0:#x}/{0:#x}", 1u32 << options.mark_bit);
    let set_mark = match &options.external_set_mark_chain {
        Some(chain) => word(chain)?,
        None => format!("MARK --set-xmark {mark}"),
    };
    let mut rules = Vec::new();
    for mapping in ports {
        for (net, at) in targets(addrs, mapping) {
            let conditions = if net.is_ipv6() { &options.conditions_v6 } else { &options.conditions_v4 };
            let (protocol, port) = (mapping.protocol, mapping.host_port);
            let mut text = format!("-p {protocol} -m {protocol} --dport {port} ");
            if let Some(at) = at {
                text.insert_str(0, &format!("-d {at} "));
            }
            // A rule takes one source: beside one of the user's, marking goes by our own alone. That is enough, as only
            // what was led to the container is masqueraded by the mark.
            let has_source =
                conditions.iter().any(|word| matches!(word.as_str(), "-s" | "--source" | "--src"));
            let bare = format!("{text}{tag}");
            for condition in conditions {
                text.push_str(&word(condition)?);
                text.push(' ');
            }
            text.push_str(&tag);
            let sources = match (options.snat, options.masq_all, net.is_ipv6()) {
                (false, ..) => vec![],
                (_, true, _) => vec![String::new()],
                (_, _, false) => vec![format!("-s {} ", subnet(&net)), "-s 127.0.0.0/8 ".to_owned()],
                (_, _, true) => vec![format!("-s {} ", subnet(&net))],
            };
            let first = at.is_some();
            for source in sources {
                let text = if has_source && !source.is_empty() { &bare } else { &text };
                let text = format!("{source}{text} -j {set_mark}");
                rules.push(Rule { first, ..rule(&net, Chain::Dnat, text) });
            }
            let to = match net.ip() {
                IpAddr::V4(ip) => format!("{ip}:{}", mapping.container_port),
                IpAddr::V6(ip) => format!("[{ip}]:{}", mapping.container_port),
            };
            let text = format!("{text} -j DNAT --to-destination {to}");
            let port = Some(Port { at, protocol, port });
            rules.push(Rule { first, port, ..rule(&net, Chain::Dnat, text) });
        }
    }
    for net in first_of_each_family(addrs) {
        if !rules.iter().any(|rule| rule.v6 == net.is_ipv6() && rule.port.is_some()) {
            continue;
        }
        let ip = net.ip();
        if options.snat && options.external_set_mark_chain.is_none() {
            let text = format!("-d {ip} -m mark --mark {mark} {tag} -j MASQUERADE");
            rules.push(rule(&net, Chain::Hairpin, text));
        }
        if shut[usize::from(net.is_ipv6())] {
            let text = format!("-d {ip} -m conntrack --ctstate DNAT {tag} -j ACCEPT");
            rules.push(rule(&net, Chain::Published, text));
            let text = format!("-s {ip} -m conntrack --ctstate DNAT {tag} -j ACCEPT");
            rules.push(rule(&net, Chain::Published, text));
        }
    }
    Ok(rules)
}

/// One argument, quoted where it has blanks.
fn word(argument: &str) -> Result<String> {
    if argument.is_empty() || argument.contains(['"', '\'', '\n']) {
        return Err(Error::Invalid {
            what: "iptables argument",
            value: argument.into(),
            why: "must not be empty nor have quotes".into(),
        });
    }
    Ok(if argument.contains(' ') { format!("\"{argument}\"") } else { argument.to_owned() })
}

/// A guard: the tag of its rules, that of its last one, and the rules.
pub fn guard(bridge: &str) -> Result<(String, String, Vec<String>)> {
    let (tag, last) = (format!("{GUARD}{bridge}"), format!("{GUARD_LAST}{bridge}"));
    let (comment, end) = (comment(&tag)?, comment(&last)?);
    let rules = vec![
        format!("-o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED {comment} -j RETURN"),
        format!("-o {bridge} -m conntrack --ctstate DNAT {comment} -j RETURN"),
        format!("-i {bridge} -o {bridge} {comment} -j RETURN"),
        format!("-o {bridge} {end} -j DROP"),
    ];
    Ok((tag, last, rules))
}

/// The bridge that a guard's tag is about.
pub fn guarded_bridge(tag: &str) -> Option<&str> {
    tag.strip_prefix(GUARD).or_else(|| tag.strip_prefix(GUARD_LAST))
}

/// The word behind an option of a listed rule.
pub fn value_of<'a>(line: &'a str, option: &str) -> Option<&'a str> {
    let mut words = line.split(' ');
    words.find(|word| *word == option)?;
    words.next()
}

/// The tag of a listed rule: the last comment in it, as conditions of the user's stand before.
pub fn tag_of(line: &str) -> Option<&str> {
    let (_, rest) = line.rsplit_once(" --comment ")?;
    Some(rest.split(' ').next()?.trim_matches('"'))
}

/// The port that a listed rule publishes.
pub fn port_of(line: &str) -> Option<Port> {
    value_of(line, "-j").filter(|target| *target == "DNAT")?;
    Some(Port {
        at: value_of(line, "-d").and_then(|d| d.split('/').next()?.parse().ok()),
        protocol: value_of(line, "-p")?.parse().ok()?,
        port: value_of(line, "--dport")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_rule_tells_its_tag_and_port() {
        let line = "-A WEFT-DNAT -d 10.0.0.1/32 -p udp -m udp --dport 53 -m comment --comment \"a b\" \
                    -m comment --comment \"web/a~b.c/eth0\" -j DNAT --to-destination 10.1.0.3:53";
        assert_eq!(tag_of(line), Some("web/a~b.c/eth0"));
        let port = Port { at: Some([10, 0, 0, 1].into()), protocol: Protocol::Udp, port: 53 };
        assert_eq!(port_of(line), Some(port));
        assert_eq!(port_of("-A WEFT-DNAT -p udp -m udp --dport 53 -j MARK --set-xmark 0x2000/0x2000"), None);
    }

    #[test]
    fn what_iptables_would_read_as_several_words_is_refused_or_quoted() {
        assert!(comment("web/abc/et\"h0").is_err());
        assert!(word("it's").is_err());
        assert_eq!(word("a b").unwrap(), "\"a b\"");
    }
}
