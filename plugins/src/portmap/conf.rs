//! The portmap plugin's configuration, checked before anything is changed.

use super::conditions::{are_of_nft, to_iptables};
use crate::args::address;
use crate::firewall::Backend;
use cni::Error;
use cni::request::Request;
use cni::types::AddResult;
use ipnetwork::IpNetwork;
use net::firewall::{PortMapping, Protocol, PublishOptions};
use serde::Deserialize;
use std::net::IpAddr;

/// The keys, as configurations have them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    backend: Option<String>,
    snat: Option<bool>,
    #[serde(default)]
    masq_all: bool,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    conditions_v4: Option<Vec<String>>,
    conditions_v6: Option<Vec<String>>,
}

/// A mapping of the capability `portMappings`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_port: i64,
    container_port: i64,
    protocol: Option<String>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
}

/// What a configuration asks for.
#[derive(Debug)]
pub struct Conf {
    /// Who writes the rules.
    pub backend: Backend,
    /// The ports.
    pub ports: Vec<PortMapping>,
    /// How.
    pub options: PublishOptions,
}

fn port(key: &str, number: i64) -> Result<u16, Error> {
    let wrong = || Error::config(&format!("runtimeConfig.portMappings.{key}"), number, "1 to 65535");
    u16::try_from(number).ok().filter(|&number| number != 0).ok_or_else(wrong)
}

fn mapping(from: &Mapping) -> Result<PortMapping, Error> {
    let protocol = from.protocol.as_deref().unwrap_or_default();
    let host_ip = from.host_ip.as_deref().filter(|ip| !ip.is_empty());
    Ok(PortMapping {
        host_ip: host_ip.map(|ip| address("runtimeConfig.portMappings.hostIP", ip)).transpose()?,
        host_port: port("hostPort", from.host_port)?,
        container_port: port("containerPort", from.container_port)?,
        protocol: match protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => {
                let key = "runtimeConfig.portMappings.protocol";
                return Err(Error::config(key, format!("{protocol:?}"), "\"tcp\", \"udp\" or \"sctp\""));
            }
        },
    })
}

/// Translates conditions in nft's words; whether all conditions were, and there are any.
fn translate(options: &mut PublishOptions) -> Result<bool, Error> {
    let mut all_of_nft = true;
    for (key, is_v6, words) in [
        ("conditionsV4", false, &mut options.conditions_v4),
        ("conditionsV6", true, &mut options.conditions_v6),
    ] {
        if are_of_nft(words) {
            *words = to_iptables(key, is_v6, words)?;
        } else {
            all_of_nft &= words.is_empty();
        }
    }
    Ok(all_of_nft && !(options.conditions_v4.is_empty() && options.conditions_v6.is_empty()))
}

impl Conf {
    /// Reads the configuration.
    ///
    /// # Errors
    /// Code 7 for a wrong value or a contradiction.
    pub fn of(request: &Request) -> Result<Conf, Error> {
        let keys: Keys = request.conf.parse()?;
        let mappings: Vec<Mapping> = request.conf.capability("portMappings")?.unwrap_or_default();
        let chain = keys.external_set_mark_chain.filter(|chain| !chain.is_empty());
        if chain.is_some() && keys.mark_masq_bit.is_some() {
            return Err(Error::config("externalSetMarkChain", "set", "not together with markMasqBit"));
        }
        let bit = keys.mark_masq_bit.unwrap_or(13);
        let bit = u32::try_from(bit).ok().filter(|&bit| bit <= 31);
        let wrong = || Error::config("markMasqBit", keys.mark_masq_bit.unwrap_or_default(), "0 to 31");
        let mut options = PublishOptions {
            snat: keys.snat.unwrap_or(true),
            masq_all: keys.masq_all,
            mark_bit: bit.ok_or_else(wrong)?,
            external_set_mark_chain: chain,
            conditions_v4: keys.conditions_v4.unwrap_or_default(),
            conditions_v6: keys.conditions_v6.unwrap_or_default(),
            localnet: None,
        };
        // What these ask for, only iptables can apply.
        let wants_iptables = options.external_set_mark_chain.is_some()
            || !options.conditions_v4.is_empty()
            || !options.conditions_v6.is_empty();
        let word = keys.backend.as_deref().unwrap_or_default();
        let are_of_nft = word != "iptables" && translate(&mut options)?;
        let backend = match word {
            "" | "auto" if wants_iptables => Backend::Iptables,
            "nftables" if are_of_nft && options.external_set_mark_chain.is_none() => Backend::Iptables,
            "" => Backend::Nftables,
            "auto" => Backend::Auto,
            "nftables" if wants_iptables => {
                let keys = "externalSetMarkChain, and with conditionsV4 and conditionsV6 in iptables' words";
                return Err(Error::config("backend", "\"nftables\"", format!("\"iptables\" with {keys}")));
            }
            "nftables" => Backend::Nftables,
            "iptables" => Backend::Iptables,
            other => {
                let allowed = "\"nftables\", \"iptables\" or \"auto\"";
                return Err(Error::config("backend", format!("{other:?}"), allowed));
            }
        };
        Ok(Conf { backend, ports: mappings.iter().map(mapping).collect::<Result<_, _>>()?, options })
    }
}

/// The container's addresses to which ports lead: the first of each family that is in the container.
pub fn container_addresses(result: &AddResult) -> Vec<IpNetwork> {
    let inside = |interface: Option<usize>| {
        let interface = interface.and_then(|at| result.interfaces.get(at));
        interface.is_none_or(|interface| interface.sandbox.is_some())
    };
    let ips = result.ips.iter().filter(|ip| inside(ip.interface)).map(|ip| ip.address);
    let first = |v4: bool| ips.clone().find(|address| address.is_ipv4() == v4);
    first(true).into_iter().chain(first(false)).collect()
}

/// The mappings that can lead to these addresses: one that names an address of the host needs one of the same family.
pub fn usable(ports: &[PortMapping], addresses: &[IpNetwork]) -> Vec<PortMapping> {
    let reaches = |ip: IpAddr| addresses.iter().any(|address| address.is_ipv4() == ip.is_ipv4());
    ports.iter().filter(|port| port.host_ip.is_none_or(reaches)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn port_mappings_are_read_as_containerd_writes_them() {
        let conf = cni::config::NetConf::from_value(json!({
            "name": "n", "type": "portmap",
            "runtimeConfig": {"portMappings": [
                {"HostPort": 8080, "ContainerPort": 80, "Protocol": "udp", "HostIP": "192.0.2.1"},
            ]},
        }))
        .unwrap();
        let mappings: Vec<Mapping> = conf.capability("portMappings").unwrap().unwrap();
        let read = mapping(&mappings[0]).unwrap();
        assert_eq!((read.host_port, read.container_port, read.protocol), (8080, 80, Protocol::Udp));
        assert_eq!(read.host_ip, Some("192.0.2.1".parse().unwrap()));
    }
}
