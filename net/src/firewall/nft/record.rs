//! What a record of [`super::records`] says, as text: a line for each thing, a last line `end`. One that was not written to its
//! end is none.

use super::BridgeRules;
use super::table::Table;
use crate::firewall::{PortMapping, Protocol, PublishOptions};
use crate::link::{mac_text, parse_mac};
use crate::names::Owner;
use ipnetwork::IpNetwork;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::{FromStr, SplitWhitespace};

/// The first line: the form of what follows.
const HEAD: &str = "weft-rules 1";
/// The last line.
const END: &str = "end";
/// The line of a record in whose place another one was, so that the tables may have more than it says.
const REPLACED: &str = "replaced another\n";

/// Which of an attachment's records. Each plugin writes its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Masquerading, and the rules of the attachment's bridge.
    Link,
    /// Published ports.
    Ports,
    /// The watch on the source addresses of frames.
    Watch,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Link, Kind::Ports, Kind::Watch];

    /// How the names of its files end.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Kind::Link => "link",
            Kind::Ports => "ports",
            Kind::Watch => "watch",
        }
    }

    /// The table that has what it is about.
    pub(super) fn table(self) -> Table {
        match self {
            Kind::Link | Kind::Ports => Table::Inet,
            Kind::Watch => Table::Bridge,
        }
    }
}

/// What an attachment has in the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// [`Kind::Link`]
    Link {
        /// The addresses that are masqueraded, with their subnets' prefixes.
        masqueraded: Vec<IpNetwork>,
        /// Destinations to which nothing is masqueraded.
        except: Vec<IpNetwork>,
        /// The rules of the bridge.
        bridge: Option<BridgeRules>,
        /// Other programs' forward chains accept the bridge's traffic.
        forward: bool,
    },
    /// [`Kind::Ports`]
    Ports {
        /// The container's addresses.
        addresses: Vec<IpNetwork>,
        /// The ports.
        ports: Vec<PortMapping>,
        /// Traffic from the container's own subnet and from the host's loopback is masqueraded.
        snat: bool,
        /// All traffic through the ports is.
        masq_all: bool,
    },
    /// [`Kind::Watch`]
    Watch {
        /// The hardware address that the container may send from.
        mac: [u8; 6],
        /// The addresses that it may send from alone.
        bound: Option<Bound>,
    },
}

/// What [`super::Sources`] says of a bound container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Its addresses.
    pub addresses: Vec<IpNetwork>,
    /// Whether IPv6 packets are looked at too.
    pub ipv6: bool,
}

impl Content {
    /// Which record it is.
    pub fn kind(&self) -> Kind {
        match self {
            Content::Link { .. } => Kind::Link,
            Content::Ports { .. } => Kind::Ports,
            Content::Watch { .. } => Kind::Watch,
        }
    }

    /// Whether there is nothing to restore.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Content::Link { masqueraded, bridge, forward, .. } => {
                let has_rules = bridge.as_ref().is_some_and(BridgeRules::has_any);
                masqueraded.is_empty() && !has_rules && !forward
            }
            Content::Ports { ports, .. } => ports.is_empty(),
            Content::Watch { .. } => false,
        }
    }

    /// How ports are published.
    pub(super) fn options(&self) -> PublishOptions {
        let (snat, masq_all) = match self {
            Content::Ports { snat, masq_all, .. } => (*snat, *masq_all),
            _ => (false, false),
        };
        PublishOptions { snat, masq_all, ..PublishOptions::default() }
    }
}

/// An attachment's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetnsMark {
    /// Where it is bound.
    pub path: PathBuf,
    /// Its device and inode number.
    pub id: (u64, u64),
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose it is.
    pub owner: Owner,
    /// The container's namespace, when it is known.
    pub netns: Option<NetnsMark>,
    /// What is in the tables.
    pub content: Content,
}

impl Record {
    /// The name of its file: no part of a tag has a colon or a slash.
    pub(super) fn file_name(owner: &Owner, kind: Kind) -> String {
        let mut name = owner.tag().replace('/', ":");
        name.push('.');
        name.push_str(kind.suffix());
        name
    }

    /// The text.
    pub(super) fn encode(&self) -> String {
        let mut text = String::with_capacity(512);
        let Owner { network, container, ifname } = &self.owner;
        let _ = writeln!(text, "{HEAD}\nowner {network} {container} {ifname}");
        if let Some((mark, path)) = self.netns.as_ref().and_then(|mark| Some((mark, mark.path.to_str()?)))
            && !path.contains('\n')
        {
            let _ = writeln!(text, "netns {} {} {path}", mark.id.0, mark.id.1);
        }
        match &self.content {
            Content::Link { masqueraded, except, bridge, forward } => {
                for net in except {
                    let _ = writeln!(text, "except {net}");
                }
                for net in masqueraded {
                    let _ = writeln!(text, "masquerade {net}");
                }
                if let Some(bridge) = bridge {
                    let _ = write!(text, "bridge {}", bridge.link);
                    for (word, _) in words(bridge).into_iter().filter(|(_, is_set)| *is_set) {
                        let _ = write!(text, " {word}");
                    }
                    text.push_str(if *forward { " forward\n" } else { "\n" });
                }
            }
            Content::Ports { addresses, ports, snat, masq_all } => {
                for net in addresses {
                    let _ = writeln!(text, "address {net}");
                }
                let word = |is_set: &bool, word| if *is_set { word } else { "" };
                let _ = writeln!(text, "publish {} {}", word(snat, "snat"), word(masq_all, "masq-all"));
                for port in ports {
                    let PortMapping { host_port, container_port, protocol, .. } = port;
                    let _ = write!(text, "port {protocol} {host_port} {container_port}");
                    if let Some(ip) = port.host_ip {
                        let _ = write!(text, " {ip}");
                    }
                    text.push('\n');
                }
            }
            Content::Watch { mac, bound } => {
                let _ = writeln!(text, "watch {}", mac_text(*mac));
                if let Some(Bound { addresses, ipv6 }) = bound {
                    let _ = writeln!(text, "bound {}", if *ipv6 { "both" } else { "ipv4" });
                    for net in addresses {
                        let _ = writeln!(text, "address {net}");
                    }
                }
            }
        }
        let _ = writeln!(text, "{END}");
        text
    }

    /// Whether the tables may have more of the attachment than the text of its record says.
    pub(super) fn is_partial(text: &str) -> bool {
        text.split_inclusive('\n').any(|line| line == REPLACED)
    }

    /// The text of a record that is written in the place of another one.
    pub(super) fn in_place_of(&self, other: &str) -> String {
        let text = self.encode();
        if other.replacen(REPLACED, "", 1) == text {
            return other.to_owned();
        }
        text.replacen('\n', &format!("\n{REPLACED}"), 1)
    }

    /// Reads the text of a record of this kind.
    ///
    /// # Errors
    /// The line that is not as this version writes it.
    pub(super) fn decode(kind: Kind, text: &str) -> Result<Record, String> {
        let text = text.strip_suffix(&format!("{END}\n")).ok_or("it does not end with \"end\"")?;
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return Err(format!("it does not begin with {HEAD:?}"));
        }
        let mut draft = Draft::default();
        for line in lines {
            draft.read(line).ok_or_else(|| format!("line {line:?}"))?;
        }
        draft.finish(kind).ok_or_else(|| format!("it is no record of {}", kind.suffix()))
    }
}

fn words(rules: &BridgeRules) -> [(&'static str, bool); 6] {
    [
        ("protected", rules.protected),
        ("strict", rules.strict),
        ("guarded", rules.guarded),
        ("closed", rules.closed),
        ("isolated", rules.isolated),
        ("proxied", rules.proxied),
    ]
}

/// What was read so far.
#[derive(Default)]
struct Draft {
    owner: Option<Owner>,
    netns: Option<NetnsMark>,
    masqueraded: Vec<IpNetwork>,
    except: Vec<IpNetwork>,
    bridge: Option<BridgeRules>,
    forward: bool,
    addresses: Vec<IpNetwork>,
    publish: Option<(bool, bool)>,
    ports: Vec<PortMapping>,
    mac: Option<[u8; 6]>,
    bound6: Option<bool>,
}

impl Draft {
    /// Reads a line; `None` when it is not valid.
    fn read(&mut self, line: &str) -> Option<()> {
        let (key, rest) = line.split_once(' ')?;
        let mut words = rest.split_whitespace();
        match key {
            "owner" => {
                let owner = Owner::new(words.next()?, words.next()?, words.next()?);
                let is_name = |name: &String| name.len() <= 4096 && !name.contains(['/', ':']);
                let are_names = is_name(&owner.network) && is_name(&owner.container);
                (are_names && is_link(&owner.ifname) && self.owner.is_none()).then_some(())?;
                self.owner = Some(owner);
            }
            "netns" => {
                let mut parts = rest.splitn(3, ' ');
                let id = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
                self.netns = Some(NetnsMark { path: parts.next()?.into(), id });
                return Some(());
            }
            "masquerade" => self.masqueraded.push(address(&mut words)?),
            "except" => self.except.push(IpNetwork::from_str(words.next()?).ok()?),
            "address" => self.addresses.push(address(&mut words)?),
            "bridge" => {
                let mut rules = BridgeRules { link: words.next()?.to_owned(), ..BridgeRules::default() };
                is_link(&rules.link).then_some(())?;
                for word in words.by_ref() {
                    match word {
                        "protected" => rules.protected = true,
                        "strict" => rules.strict = true,
                        "guarded" => rules.guarded = true,
                        "closed" => rules.closed = true,
                        "isolated" => rules.isolated = true,
                        "proxied" => rules.proxied = true,
                        "forward" => self.forward = true,
                        _ => return None,
                    }
                }
                self.bridge = Some(rules);
            }
            "publish" => {
                let (mut snat, mut masq_all) = (false, false);
                for word in words.by_ref() {
                    match word {
                        "snat" => snat = true,
                        "masq-all" => masq_all = true,
                        _ => return None,
                    }
                }
                self.publish = Some((snat, masq_all));
            }
            "port" => self.ports.push(port(&mut words)?),
            "watch" => self.mac = Some(parse_mac(words.next()?).ok()?),
            "replaced" => (words.next()? == "another").then_some(())?,
            "bound" => {
                self.bound6 = Some(match words.next()? {
                    "both" => true,
                    "ipv4" => false,
                    _ => return None,
                });
            }
            _ => return None,
        }
        words.next().is_none().then_some(())
    }

    fn finish(self, kind: Kind) -> Option<Record> {
        let content = match kind {
            Kind::Link => Content::Link {
                masqueraded: self.masqueraded,
                except: self.except,
                bridge: self.bridge,
                forward: self.forward,
            },
            Kind::Ports => {
                let (snat, masq_all) = self.publish?;
                Content::Ports { addresses: self.addresses, ports: self.ports, snat, masq_all }
            }
            Kind::Watch => {
                let bound = self.bound6.map(|ipv6| Bound { addresses: self.addresses, ipv6 });
                Content::Watch { mac: self.mac?, bound }
            }
        };
        (!content.is_empty()).then_some(Record { owner: self.owner?, netns: self.netns, content })
    }
}

/// Whether the kernel takes it for the name of a link (dev_valid_name of net/core/dev.c).
fn is_link(name: &str) -> bool {
    (1..16).contains(&name.len()) && !matches!(name, "." | "..") && !name.contains(['/', ':'])
}

/// An address that a container can have, with its subnet's prefix.
fn address(words: &mut SplitWhitespace<'_>) -> Option<IpNetwork> {
    let net = IpNetwork::from_str(words.next()?).ok()?;
    let ip = net.ip();
    (!ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && net.prefix() > 0).then_some(net)
}

fn port(words: &mut SplitWhitespace<'_>) -> Option<PortMapping> {
    let protocol = Protocol::from_str(words.next()?).ok()?;
    let mut number = || words.next()?.parse::<u16>().ok().filter(|number| *number > 0);
    let (host_port, container_port) = (number()?, number()?);
    let host_ip = words.next().map(IpAddr::from_str).transpose().ok()?;
    Some(PortMapping { host_ip, host_port, container_port, protocol })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(content: Content) -> Record {
        let netns = Some(NetnsMark { path: "/run/netns/a b".into(), id: (4, 4_026_532_000) });
        Record { owner: Owner::new("pods", "c1", "eth0"), netns, content }
    }

    fn all() -> Vec<Record> {
        let rules = BridgeRules {
            link: "cni0".into(),
            protected: true,
            strict: true,
            isolated: true,
            proxied: true,
            ..BridgeRules::default()
        };
        let net = |text: &str| text.parse::<IpNetwork>().unwrap();
        let port = |host_ip: Option<&str>, protocol| PortMapping {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port: 8080,
            container_port: 80,
            protocol,
        };
        vec![
            record(Content::Link {
                masqueraded: vec![net("10.1.0.2/24"), net("fd00::2/64")],
                except: vec![net("10.0.0.0/8")],
                bridge: Some(rules),
                forward: true,
            }),
            record(Content::Ports {
                addresses: vec![net("10.1.0.2/24"), net("fd00::2/64")],
                ports: vec![port(None, Protocol::Tcp), port(Some("::1"), Protocol::Udp)],
                snat: true,
                masq_all: false,
            }),
            record(Content::Watch { mac: [2, 0, 0, 0, 0, 1], bound: None }),
            record(Content::Watch {
                mac: [2, 0, 0, 0, 0, 1],
                bound: Some(Bound { addresses: vec![net("10.1.0.2/24"), net("fd00::2/64")], ipv6: true }),
            }),
        ]
    }

    #[test]
    fn record_reads_back_as_written() {
        for record in all() {
            let kind = record.content.kind();
            assert_eq!(Record::decode(kind, &record.encode()).unwrap(), record);
        }
    }

    #[test]
    fn record_that_is_cut_off_is_refused() {
        for record in all() {
            let text = record.encode();
            for end in 0..text.len() {
                assert!(Record::decode(record.content.kind(), &text[..end]).is_err(), "{}", &text[..end]);
            }
        }
    }

    #[test]
    fn record_with_an_impossible_value_is_refused() {
        let with = |line: &str| format!("{HEAD}\nowner n c eth0\nmasquerade 10.0.0.2/8\n{line}\n{END}\n");
        assert!(Record::decode(Kind::Link, &with("bridge cni0 protected")).is_ok());
        for line in [
            "bridge ../etc protected",
            "bridge cni0 open",
            "bridge 0123456789abcdef",
            "masquerade 0.0.0.0/0",
            "masquerade 127.0.0.1/8",
            "masquerade 224.0.0.1/4",
            "masquerade 10.0.0.1/33",
            "owner n c eth1",
            "port tcp 0 80",
            "port icmp 80 80",
            "port tcp 80 80 1.2.3.4 x",
            "watch 01:00:5e:00:00:01",
            "exec sh",
            "",
        ] {
            assert!(Record::decode(Kind::Link, &with(line)).is_err(), "{line}");
        }
        assert!(Record::decode(Kind::Ports, &with("")).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_handled(text in "\\PC{0,80}(\n\\PC{0,20}){0,4}") {
            for kind in Kind::ALL {
                let _ = Record::decode(kind, &text);
                let _ = Record::decode(kind, &format!("{HEAD}\n{text}\n{END}\n"));
            }
        }
    }
}
