//! What a lab is: its machines and their addresses, networks, containers, and what is expected of them. The plan is made
//! from a file or from `--hosts N`, checked whole before anything is made, and kept in the lab's directory.

use anyhow::{Result, anyhow, bail};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::expect::Expectation;

/// The most hosts a lab may have.
pub const MAX_HOSTS: u32 = 200;
/// A lab's name when nobody gives one.
pub const DEFAULT_NAME: &str = "lab";
/// The smallest MTU of a link with IPv6 (RFC 8200, section 5), and what the largest datagram leaves of 16 bits.
pub const MTU: (u32, u32) = (1280, 65_000);
/// What a container runs when its plan says nothing.
const IDLE: [&str; 2] = ["sleep", "infinity"];

/// A lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// When it was made, RFC 3339.
    #[serde(default)]
    pub created: String,
    /// The network that the hosts are on.
    pub underlay: Underlay,
    /// The members of etcd, `etcd1` and so on; none: each agent has a store of its own.
    pub etcd: Vec<Machine>,
    /// The hosts.
    pub hosts: Vec<Machine>,
    /// The overlay networks.
    pub networks: Vec<Network>,
    /// The containers.
    pub containers: Vec<Container>,
    /// What `check` looks at; empty: every container reaches every other of its networks.
    pub expect: Vec<Expectation>,
}

/// The network between the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Underlay {
    /// Its IPv4 subnet.
    pub ipv4: Option<Ipv4Network>,
    /// Its IPv6 subnet.
    pub ipv6: Option<Ipv6Network>,
    /// The MTU of its links in bytes.
    pub mtu: u32,
}

impl Default for Underlay {
    fn default() -> Self {
        let ipv4 = Ipv4Network::new(Ipv4Addr::new(10, 99, 0, 0), 24).ok();
        let ipv6 = Ipv6Network::new(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0), 64).ok();
        Underlay { ipv4, ipv6, mtu: 1500 }
    }
}

/// A machine on the underlay: a network namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name, also that of its link on the underlay's bridge.
    pub name: String,
    /// Its addresses on the underlay, IPv4 first, with the subnets' lengths.
    pub addresses: Vec<IpNetwork>,
    /// More flags for its agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agent: Vec<String>,
}

/// An overlay network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its subnets as they are handed to `network create --subnet`.
    pub subnets: Vec<String>,
    /// It has IPv6, with a subnet that is chosen when none is given.
    pub ipv6: bool,
    /// It has no way out.
    pub internal: bool,
    /// Options, as for `--opt`.
    pub options: BTreeMap<String, String>,
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Its name, unique in the lab.
    pub name: String,
    /// The host it runs on.
    pub host: String,
    /// Its networks.
    pub networks: Vec<String>,
    /// The addresses it asks for in the first network.
    pub ips: Vec<IpAddr>,
    /// Published ports, as for `--publish`.
    pub publish: Vec<String>,
    /// What it runs; empty: something idle.
    pub command: Vec<String>,
}

impl Container {
    /// What it runs.
    pub fn words(&self) -> Vec<&str> {
        match self.command.is_empty() {
            true => IDLE.to_vec(),
            false => self.command.iter().map(String::as_str).collect(),
        }
    }
}

impl Network {
    /// Whether it has a family: IPv6, or IPv4.
    pub fn has(&self, ipv6: bool) -> bool {
        let given = |subnet: &String| subnet.contains(':') == ipv6;
        // Without a subnet an IPv4 one is chosen, and one for IPv6 when it is asked for.
        self.subnets.iter().any(given) || if ipv6 { self.ipv6 } else { self.subnets.is_empty() }
    }
}

impl Machine {
    /// Its first address on the underlay.
    pub fn ip(&self) -> Option<IpAddr> {
        self.addresses.first().map(IpNetwork::ip)
    }
}

impl Underlay {
    /// Says so when its MTU leaves a network's containers less than IPv6 needs: they have what VXLAN does not take of it, also
    /// with `encap: direct`, unless the network says how much.
    ///
    /// # Errors
    /// It does; names the MTU and what is allowed.
    pub fn check_mtu(&self, network: &Network) -> Result<()> {
        // By IPv4, where the hosts have it.
        let overhead = if self.ipv4.is_some() { 50 } else { 70 };
        let least = MTU.0 + overhead;
        let own = ["mtu", crate::network::options::MTU].map(|key| network.options.get(key));
        let says = own.iter().flatten().any(|text| text.as_str() != "0");
        if !network.has(true) || says || self.mtu >= least {
            return Ok(());
        }
        bail!(
            "{} is too small for the network {}: IPv6 needs an MTU of {} in the containers, and VXLAN takes {overhead} bytes: \
             allowed is {least} to {}",
            self.mtu,
            network.name,
            MTU.0,
            MTU.1
        )
    }

    /// Its subnets.
    pub fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        self.ipv4.map(IpNetwork::V4).into_iter().chain(self.ipv6.map(IpNetwork::V6))
    }

    /// The bridge's addresses, which are the machines' gateways.
    pub fn gateways(&self) -> Vec<IpNetwork> {
        self.at(1)
    }

    /// The `number`th addresses. In IPv6 the number is written with the same digits: the 11th is ::11.
    fn at(&self, number: u32) -> Vec<IpNetwork> {
        let v4 = self.ipv4.and_then(|net| {
            let ip = Ipv4Addr::from(u32::from(net.network()).checked_add(number)?);
            (net.contains(ip) && ip != net.broadcast()).then_some(())?;
            Ipv4Network::new(ip, net.prefix()).ok().map(IpNetwork::V4)
        });
        let v6 = self.ipv6.and_then(|net| {
            let digits = u128::from_str_radix(&number.to_string(), 16).ok()?;
            let ip = Ipv6Addr::from(u128::from(net.network()).checked_add(digits)?);
            net.contains(ip).then_some(())?;
            Ipv6Network::new(ip, net.prefix()).ok().map(IpNetwork::V6)
        });
        v4.into_iter().chain(v6).collect()
    }

    /// The machine with this name and the `number`th addresses.
    fn machine(&self, name: String, number: u32) -> Result<Machine> {
        let addresses = self.at(number);
        let wanted = usize::from(self.ipv4.is_some()) + usize::from(self.ipv6.is_some());
        if addresses.len() < wanted {
            bail!("the underlay has no address for {name}: it needs number {number} of each of its subnets");
        }
        Ok(Machine { name, addresses, agent: Vec::new() })
    }

    /// Hosts of these names: the first is number 11.
    ///
    /// # Errors
    /// A subnet is too small.
    pub fn hosts(&self, names: impl IntoIterator<Item = String>) -> Result<Vec<Machine>> {
        names.into_iter().zip(11..).map(|(name, number)| self.machine(name, number)).collect()
    }

    /// Members of etcd: the first is number 2.
    ///
    /// # Errors
    /// A subnet is too small.
    pub fn members(&self, count: u32) -> Result<Vec<Machine>> {
        (1..=count).map(|member| self.machine(format!("etcd{member}"), member + 1)).collect()
    }
}

/// What `lab up --hosts N` asks for.
#[derive(Debug, Clone)]
pub struct Quick {
    /// The lab's name.
    pub name: String,
    /// How many hosts.
    pub hosts: u32,
    /// How many members etcd has: 0, 1 or 3.
    pub etcd: u32,
    /// The underlay has IPv6 alone.
    pub ipv6: bool,
    /// The underlay's MTU.
    pub mtu: u32,
    /// `vxlan` or `direct`.
    pub encap: String,
}

impl Plan {
    /// The lab of `--hosts N`: hosts host1 to hostN, the network `ov`, and on each host a container c1 to cN.
    ///
    /// # Errors
    /// What does not go together.
    pub fn quick(quick: &Quick) -> Result<Plan> {
        let mut underlay = Underlay { mtu: quick.mtu, ..Underlay::default() };
        if quick.ipv6 {
            underlay.ipv4 = None;
        }
        let mut network = Network { name: "ov".into(), ipv6: true, ..Network::default() };
        network.subnets.push("10.42.0.0/16".into());
        if quick.encap != "vxlan" {
            network.options.insert("encap".into(), quick.encap.clone());
        }
        underlay.check_mtu(&network).map_err(|error| anyhow!("--mtu {error}"))?;
        let container = |number: u32| Container {
            name: format!("c{number}"),
            host: format!("host{number}"),
            networks: vec!["ov".into()],
            ..Container::default()
        };
        let plan = Plan {
            name: quick.name.clone(),
            created: String::new(),
            underlay,
            etcd: underlay.members(quick.etcd)?,
            hosts: underlay.hosts((1..=quick.hosts).map(|number| format!("host{number}")))?,
            networks: vec![network],
            containers: (1..=quick.hosts).map(container).collect(),
            expect: Vec::new(),
        };
        if plan.etcd.is_empty() && plan.hosts.len() > 1 {
            bail!(
                "--etcd 0: several hosts need an etcd to tell each other of their addresses: allowed is 1 or 3"
            );
        }
        Ok(plan)
    }

    /// The host of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn host(&self, name: &str) -> Result<&Machine> {
        self.hosts.iter().find(|host| host.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.hosts.iter().map(|host| host.name.as_str()).collect();
            anyhow::anyhow!("lab {} has no host {name:?}: there are {}", self.name, names.join(", "))
        })
    }

    /// All machines: the members of etcd, then the hosts.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.etcd.iter().chain(&self.hosts)
    }

    /// Where the agents find etcd.
    pub fn endpoints(&self) -> Vec<String> {
        self.etcd.iter().filter_map(Machine::ip).map(client_url).collect()
    }
}

/// The URL at which a member of etcd serves clients.
pub fn client_url(ip: IpAddr) -> String {
    format!("http://{}", std::net::SocketAddr::new(ip, 2379))
}

/// Checks a lab's name: it is a directory's, and a part of paths of sockets, which are short.
///
/// # Errors
/// Says what is allowed.
pub fn check_name(name: &str) -> Result<()> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if !first || !rest || name.len() > 32 {
        bail!("invalid lab name {name:?}: allowed is [a-zA-Z0-9][a-zA-Z0-9_.-]*, at most 32 bytes");
    }
    Ok(())
}

/// What a host may be called: its name is also that of a link, of 15 bytes at most.
pub fn is_host_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=15).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quick(hosts: u32) -> Quick {
        Quick { name: "lab".into(), hosts, etcd: 1, ipv6: false, mtu: 1500, encap: "vxlan".into() }
    }

    #[test]
    fn machines_are_numbered_alike_in_both_families() {
        let plan = Plan::quick(&Quick { etcd: 3, ..quick(12) }).unwrap();
        let texts = |machine: &Machine| machine.addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&plan.hosts[0]), ["10.99.0.11/24", "fd99::11/64"]);
        assert_eq!(texts(&plan.hosts[11]), ["10.99.0.22/24", "fd99::22/64"]);
        assert_eq!(plan.hosts[11].name, "host12");
        assert_eq!(
            plan.endpoints(),
            ["http://10.99.0.2:2379", "http://10.99.0.3:2379", "http://10.99.0.4:2379"]
        );
        let gateways: Vec<String> = plan.underlay.gateways().iter().map(ToString::to_string).collect();
        assert_eq!(gateways, ["10.99.0.1/24", "fd99::1/64"]);
    }

    #[test]
    fn an_underlay_may_have_ipv6_alone() {
        let plan = Plan::quick(&Quick { ipv6: true, ..quick(2) }).unwrap();
        assert_eq!(plan.endpoints(), ["http://[fd99::2]:2379"]);
        assert_eq!(plan.hosts[1].addresses.len(), 1);
    }

    #[test]
    fn a_subnet_that_is_too_small_is_refused() {
        let underlay = Underlay { ipv4: "10.0.0.0/28".parse().ok(), ..Underlay::default() };
        let names = |count: u32| (1..=count).map(|n| format!("h{n}"));
        assert_eq!(underlay.hosts(names(4)).unwrap().len(), 4);
        assert!(underlay.hosts(names(5)).unwrap_err().to_string().contains("h5"));
        assert_eq!(Plan::quick(&quick(MAX_HOSTS)).unwrap().hosts.len(), MAX_HOSTS as usize);
    }

    #[test]
    fn several_hosts_need_an_etcd_and_one_does_not() {
        assert!(Plan::quick(&Quick { etcd: 0, ..quick(1) }).unwrap().endpoints().is_empty());
        assert!(Plan::quick(&Quick { etcd: 0, ..quick(2) }).unwrap_err().to_string().contains("--etcd 0"));
    }

    #[test]
    fn an_mtu_that_leaves_too_little_for_ipv6_is_refused() {
        let refused = |quick: Quick| Plan::quick(&quick).unwrap_err().to_string();
        for encap in ["vxlan", "direct"] {
            let of = |mtu, ipv6| Quick { mtu, ipv6, encap: encap.into(), ..quick(2) };
            let said = refused(of(1329, false));
            assert!(said.contains("--mtu 1329") && said.contains("1330 to 65000"), "{said}");
            assert!(refused(of(1349, true)).contains("allowed is 1350 to 65000"));
            Plan::quick(&of(1330, false)).unwrap();
            Plan::quick(&of(1350, true)).unwrap();
        }
        // What has no IPv6, or an MTU of its own, has room enough.
        let underlay = Underlay { mtu: 1280, ..Underlay::default() };
        let network = |ipv6, mtu: &str| Network {
            ipv6,
            options: [("mtu".to_owned(), mtu.to_owned())].into(),
            ..Network::default()
        };
        underlay.check_mtu(&network(false, "0")).unwrap();
        underlay.check_mtu(&network(true, "1280")).unwrap();
        underlay.check_mtu(&network(true, "0")).unwrap_err();
    }

    #[test]
    fn names_are_checked() {
        for name in ["lab", "my.lab_2-x", "L"] {
            check_name(name).unwrap();
        }
        for name in ["", "..", "a/b", "-x", &"a".repeat(33)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(is_host_name("host1") && is_host_name("a") && is_host_name("rack-3"));
        for name in ["", "Host", "a-", "-a", "a.b", "abcdefghijklmnop"] {
            assert!(!is_host_name(name), "{name}");
        }
    }

    #[test]
    fn a_plan_reads_back_as_it_was_written() {
        let plan = Plan::quick(&quick(3)).unwrap();
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }
}
