//! The bridge plugin's configuration, checked before anything is changed.

use crate::args::container_mac;
use crate::firewall::{Backend, exceptions, masquerade_backend};
use cni::Error;
use cni::request::Request;
use ipnetwork::IpNetwork;
use net::firewall::nft::BridgeRules;
use net::names::BRIDGE_ALIAS;
use net::{Link, sysctl};
use serde::Deserialize;

/// The keys, as configurations have them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Keys {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    #[serde(rename = "nonMasqueradeCIDRs")]
    exceptions: Option<Vec<String>>,
    mtu: i64,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: i64,
    vlan_trunk: Vec<Trunk>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    enabledad: bool,
    disable_container_interface: bool,
    port_isolation: bool,
    ingress_policy: Option<String>,
    internal: bool,
    forward_accept: Option<bool>,
}

/// An item of `vlanTrunk`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Trunk {
    #[serde(rename = "minID")]
    min_id: Option<i64>,
    #[serde(rename = "maxID")]
    max_id: Option<i64>,
    id: Option<i64>,
}

/// What a configuration asks for.
#[derive(Debug, Clone)]
pub struct Conf {
    /// The bridge's name.
    pub bridge: String,
    /// The bridge has the gateway's address (`isGateway` or `isDefaultGateway`).
    pub is_gateway: bool,
    /// The container's default route goes through it.
    pub is_default_gateway: bool,
    /// An address that the bridge has and that is in the way is removed.
    pub force_address: bool,
    /// Masquerade what the container sends beyond its subnet, and by what.
    pub masquerade: Option<Backend>,
    /// Destinations to which that is not masqueraded (`nonMasqueradeCIDRs`).
    pub exceptions: Vec<IpNetwork>,
    /// MTU of bridge and veth in bytes; `None` is the kernel's choice.
    pub mtu: Option<u32>,
    /// Frames may go back through the port they came from.
    pub hairpin: bool,
    /// The bridge takes every frame.
    pub promisc: bool,
    /// The port's VLAN, untagged.
    pub vlan: Option<u16>,
    /// The port's tagged VLANs, as inclusive ranges.
    pub trunk: Vec<(u16, u16)>,
    /// The port keeps the bridge's default VLAN beside `vlan`.
    pub preserve_default_vlan: bool,
    /// Frames with another source address than the container's are dropped.
    pub mac_spoof_check: bool,
    /// Duplicate address detection is waited for.
    pub dad: bool,
    /// The container's interface stays down.
    pub disable_container_interface: bool,
    /// Isolated ports do not see each other.
    pub port_isolation: bool,
    /// Forwarded packets come in only from the bridge itself, or as answers (`ingressPolicy: same-bridge`).
    pub same_bridge: bool,
    /// Nothing is forwarded into the bridge or out of it (`internal`).
    pub internal: bool,
    /// Forward chains of other programs whose policy is drop accept the bridge's traffic (`forwardAccept`).
    pub forward_accept: bool,
    /// The container's hardware address.
    pub mac: Option<[u8; 6]>,
}

fn vlan(key: &str, id: i64, from: i64) -> Result<u16, Error> {
    let wrong = || Error::config(key, id, format!("{from} to 4094"));
    if (from..=4094).contains(&id) { u16::try_from(id).map_err(|_| wrong()) } else { Err(wrong()) }
}

fn trunk(items: &[Trunk]) -> Result<Vec<(u16, u16)>, Error> {
    let mut ranges = Vec::new();
    for item in items {
        match (item.min_id, item.max_id) {
            (Some(min), Some(max)) if min <= max => {
                ranges.push((vlan("vlanTrunk.minID", min, 1)?, vlan("vlanTrunk.maxID", max, 1)?));
            }
            (None, None) => {}
            (min, max) => {
                let text = |id: Option<i64>| id.map_or("missing".to_owned(), |id| id.to_string());
                let pair = format!("minID {} and maxID {}", text(min), text(max));
                return Err(Error::config("vlanTrunk", pair, "both, minID not above maxID"));
            }
        }
        if let Some(id) = item.id {
            let id = vlan("vlanTrunk.id", id, 1)?;
            ranges.push((id, id));
        }
    }
    Ok(ranges)
}

impl Conf {
    /// Reads the configuration.
    ///
    /// # Errors
    /// Code 7 for a wrong value or a contradiction, code 4 for a wrong `MAC` in `CNI_ARGS`.
    pub fn of(request: &Request) -> Result<Conf, Error> {
        let keys: Keys = request.conf.parse()?;
        let bridge = if keys.bridge.is_empty() { "cni0".to_owned() } else { keys.bridge };
        cni::validate::ifname(&bridge).map_err(|_| {
            Error::config("bridge", format!("{bridge:?}"), "the name of an interface, at most 15 bytes")
        })?;
        let backend = masquerade_backend(keys.ip_masq_backend.as_deref())?;
        let same_bridge = match keys.ingress_policy.as_deref().unwrap_or_default() {
            "" | "open" => false,
            "same-bridge" => true,
            other => {
                return Err(Error::config(
                    "ingressPolicy",
                    format!("{other:?}"),
                    "\"open\" or \"same-bridge\"",
                ));
            }
        };
        if keys.hairpin_mode && keys.promisc_mode {
            return Err(Error::config("hairpinMode", "true", "not together with promiscMode"));
        }
        if keys.disable_container_interface && request.conf.ipam_kind().is_some() {
            return Err(Error::config("disableContainerInterface", "true", "only without ipam"));
        }
        let mtu = match keys.mtu {
            0 => None,
            68..=65535 => u32::try_from(keys.mtu).ok(),
            mtu => return Err(Error::config("mtu", mtu, "0 (the kernel's choice), or 68 to 65535")),
        };
        let vlan = Some(vlan("vlan", keys.vlan, 0)?).filter(|&vlan| vlan != 0);
        Ok(Conf {
            bridge,
            is_gateway: keys.is_gateway || keys.is_default_gateway,
            is_default_gateway: keys.is_default_gateway,
            force_address: keys.force_address,
            masquerade: keys.ip_masq.then_some(backend),
            exceptions: exceptions(keys.exceptions.as_deref().unwrap_or_default())?,
            mtu,
            hairpin: keys.hairpin_mode,
            promisc: keys.promisc_mode,
            vlan,
            trunk: trunk(&keys.vlan_trunk)?,
            preserve_default_vlan: keys.preserve_default_vlan,
            mac_spoof_check: keys.macspoofchk,
            dad: keys.enabledad,
            disable_container_interface: keys.disable_container_interface,
            port_isolation: keys.port_isolation,
            same_bridge,
            internal: keys.internal,
            forward_accept: keys.forward_accept.unwrap_or(true) && !keys.internal,
            mac: container_mac(request)?,
        })
    }

    /// What the packet filter does about the link that has the gateways' addresses.
    pub fn rules(&self, link: &Link) -> BridgeRules {
        BridgeRules {
            link: link.name.clone(),
            index: link.index,
            protected: self.is_gateway || self.masquerade.is_some(),
            // A bridge of others may be this host's way out as well.
            strict: self.is_gateway && link.alias.as_deref() == Some(BRIDGE_ALIAS),
            guarded: self.same_bridge,
            closed: self.internal,
            isolated: self.port_isolation,
            proxied: false,
            except: self.exceptions.clone(),
        }
    }

    /// The rules as an ADD makes them, by what holds now: [`Conf::rules`] has what every CHECK expects.
    pub fn rules_now(&self, link: &Link) -> BridgeRules {
        BridgeRules { proxied: self.port_isolation && passes_ip_firewall(link), ..self.rules(link) }
    }

    /// The addresses that nftables masquerades.
    pub fn masqueraded<'a>(&self, addresses: &'a [IpNetwork]) -> &'a [IpNetwork] {
        if self.masquerade == Some(Backend::Nftables) { addresses } else { &[] }
    }

    /// Whether the bridge must tell VLANs apart.
    pub fn needs_vlans(&self) -> bool {
        self.vlan.is_some() || !self.trunk.is_empty()
    }
}

/// Whether br_netfilter has the link's frames pass through the firewall for IP.
fn passes_ip_firewall(link: &Link) -> bool {
    let is_on = |key| sysctl::get(key).is_ok_and(|value| value != "0");
    link.bridge.is_some_and(|bridge| bridge.ip_firewall)
        || is_on("net/bridge/bridge-nf-call-iptables")
        || is_on("net/bridge/bridge-nf-call-ip6tables")
}
