//! What the store's keys say, and what a record must satisfy by itself before it changes the view: whoever can write to
//! the store does not decide which routes a node has. What depends on other records is checked in [`crate::held`].

use crate::keys::{self, Claim, Key, SingleClaim};
use crate::pool;
use crate::restored::History;
use ipnetwork::IpNetwork;
use ovl_api::model::{Host, Network, is_single, overlap};
use ovl_api::names::MAX_VNI;
use ovl_store::Revision;
use std::net::IpAddr;

/// The most bytes of a record: each is kept in memory and files by every node, and read by each command.
pub(crate) const MAX_RECORD: usize = 64 << 10;

/// What a key says, and its value; with none, the key was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Read<'a> {
    Network(&'a str, Option<Network>),
    Host(&'a str, Option<Host>),
    Live(&'a str, bool),
    Block(&'a str, IpNetwork, Option<Claim>),
    Single(&'a str, IpAddr, Option<SingleClaim>),
    Subnets,
    History(Option<History>),
    Back(&'a str, Option<String>),
    /// There is a value, which cannot be understood or is not allowed, and why.
    Invalid(Key<'a>, String),
    Other,
}

impl Read<'_> {
    pub(crate) fn of<'a>(key: &'a str, value: Option<&[u8]>) -> Read<'a> {
        let parsed = Key::parse(key);
        let read = match parsed {
            Key::Network(name) => parse(value).map(|network| Read::Network(name, network)),
            Key::Host(name) => parse(value).map(|host| Read::Host(name, host)),
            Key::Live(name) => Ok(Read::Live(name, value.is_some())),
            Key::Back(name) => {
                let id = value.map(|value| String::from_utf8_lossy(value).into_owned());
                Ok(Read::Back(name, id))
            }
            Key::Block(network, block) => parse(value).map(|claim| Read::Block(network, block, claim)),
            Key::Single(network, at) => parse(value).map(|single| Read::Single(network, at, single)),
            Key::Other if key == keys::SUBNETS && value.is_some() => Ok(Read::Subnets),
            Key::Other if key == keys::HISTORY => {
                Ok(Read::History(value.and_then(|value| serde_json::from_slice(value).ok())))
            }
            Key::Other => Ok(Read::Other),
        };
        read.unwrap_or_else(|why| Read::Invalid(parsed, why))
    }

    /// Fills in what the record of an earlier release does not say, from the revision that made its key.
    pub(crate) fn made_at(mut self, created: Revision) -> Self {
        if let Read::Host(_, Some(host)) = &mut self {
            fill_in(host, created);
        }
        self
    }
}

/// Since when a node has its VTEP, where its record does not say it: since its record was made.
pub(crate) fn fill_in(host: &mut Host, created: Revision) {
    if host.vtep_since <= 0 {
        host.vtep_since = created;
    }
}

/// Reads and checks a value; None: the key was removed.
fn parse<T: Record>(value: Option<&[u8]>) -> Result<Option<T>, String> {
    value.map(read).transpose()
}

/// Reads and checks a value.
///
/// # Errors
/// Why it cannot be used.
pub(crate) fn read<T: Record>(value: &[u8]) -> Result<T, String> {
    if value.len() > MAX_RECORD {
        return Err(format!("invalid value of {} bytes: expected at most {MAX_RECORD}", value.len()));
    }
    let record: T = serde_json::from_slice(value).map_err(|error| error.to_string())?;
    record.check()?;
    Ok(record)
}

/// A record that can be checked on its own.
pub(crate) trait Record: serde::de::DeserializeOwned {
    /// Checks the record.
    ///
    /// # Errors
    /// The field, its value and what is expected.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

impl Record for Claim {}
impl Record for SingleClaim {}

impl Record for Network {
    fn check(&self) -> Result<(), String> {
        crate::validate::network_name(&self.name).map_err(|e| e.message)?;
        crate::validate::options(&self.options).map_err(|e| e.message)?;
        // It becomes a part of keys and of a device's name, `vx-ID`.
        let digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if self.id.len() != 12 || !self.id.chars().all(digit) {
            return Err(format!("invalid id {:?}: expected 12 lower-case hexadecimal digits", self.id));
        }
        if !(1..=MAX_VNI).contains(&self.vni) {
            return Err(format!("invalid vni {}: expected 1 to {MAX_VNI}", self.vni));
        }
        if let Some(mtu) = self.mtu
            && !(576..=65485).contains(&mtu)
        {
            return Err(format!("invalid mtu {mtu}: expected 576 to 65485"));
        }
        if self.subnets.is_empty() {
            return Err("invalid subnets: expected at least one".to_owned());
        }
        self.exceptions().map_err(|why| format!("invalid option {} {why}", Network::EXCEPTIONS_OPTION))?;
        for (index, subnet) in self.subnets.iter().enumerate() {
            if subnet.subnet.ip() != subnet.subnet.network() {
                return Err(format!("invalid subnet \"{}\": expected no host bits", subnet.subnet));
            }
            crate::validate::complete(subnet.subnet, Some(subnet.gateway), None).map_err(|e| e.message)?;
            let same = |other: &ovl_api::model::Subnet| other.subnet.is_ipv4() == subnet.subnet.is_ipv4();
            if self.subnets[..index].iter().any(same) {
                return Err(format!("invalid subnet \"{}\": expected one of each family", subnet.subnet));
            }
            let (first, last) = (subnet.subnet.prefix() + 1, if subnet.subnet.is_ipv4() { 30 } else { 126 });
            if !(first..=last).contains(&subnet.block) {
                return Err(format!("invalid block {}: expected {first} to {last}", subnet.block));
            }
        }
        Ok(())
    }
}

impl Record for Host {
    fn check(&self) -> Result<(), String> {
        crate::validate::host_name(&self.name).map_err(|e| e.message)?;
        if self.id.is_empty() {
            return Err("invalid id \"\": expected the node's identity".to_owned());
        }
        if self.port == 0 {
            return Err("invalid port 0: expected 1 to 65535".to_owned());
        }
        let vtep = self.vtep;
        if !is_unicast(vtep) {
            return Err(format!("invalid vtep \"{vtep}\": expected a unicast address of an underlay"));
        }
        match self.segment {
            Some(segment) if segment.prefix() == 0 || !segment.contains(vtep) => {
                Err(format!("invalid segment \"{segment}\": expected the subnet of {vtep}"))
            }
            // Packets to these go to every host of the segment.
            Some(segment)
                if vtep.is_ipv4()
                    && segment.prefix() < 31
                    && [segment.network(), segment.broadcast()].contains(&vtep) =>
            {
                Err(format!("invalid vtep \"{vtep}\": expected the address of a node in {segment}"))
            }
            _ => Ok(()),
        }
    }
}

/// Whether other nodes can send to an address: not unspecified, loopback, link-local, multicast, reserved or an IPv4 address
/// written as IPv6.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            (1..=223).contains(&first) && !v4.is_loopback() && !v4.is_link_local()
        }
        IpAddr::V6(v6) => {
            !v6.is_unspecified()
                && !v6.is_loopback()
                && !v6.is_multicast()
                && !v6.is_unicast_link_local()
                && v6.to_ipv4_mapped().is_none()
        }
    }
}

/// Checks that a range is a block of the network.
pub(crate) fn check_block(network: &Network, block: IpNetwork) -> Result<(), String> {
    let Some(subnet) = network.subnet(block.is_ipv6()) else {
        return Err(format!("{block} is in no subnet of the network {}", network.name));
    };
    if !overlap(subnet.subnet, block) || block.prefix() < subnet.subnet.prefix() {
        return Err(format!("{block} is not in {} of the network {}", subnet.subnet, network.name));
    }
    if pool::block_of(subnet, block.ip()) != block {
        return Err(format!("{block} is not a block of {}: expected a /{}", subnet.subnet, subnet.block));
    }
    Ok(())
}

/// Checks that an address is one that a container of the network can have.
pub(crate) fn check_single(network: &Network, address: IpAddr) -> Result<(), String> {
    let subnet = network.subnet(address.is_ipv6()).filter(|subnet| subnet.subnet.contains(address));
    let Some(subnet) = subnet else {
        return Err(format!("{address} is in no subnet of the network {}", network.name));
    };
    match pool::forbidden(subnet, address) {
        Some(why) => Err(format!("{address} {why}")),
        None => Ok(()),
    }
}

/// Whether a range is a block of the network, or a single address of it.
pub(crate) fn is_part(network: &Network, range: IpNetwork) -> bool {
    let checked =
        if is_single(range) { check_single(network, range.ip()) } else { check_block(network, range) };
    checked.is_ok()
}
