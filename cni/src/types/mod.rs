//! The result of an ADD. In memory there is one form, the newest; [`AddResult::from_json`] and [`AddResult::to_json`]
//! convert from and to what each version of the specification can say.

mod decode;
mod encode;

use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// An interface that a plugin made or uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// The interface's name.
    pub name: String,
    /// Its hardware address, as `aa:bb:cc:dd:ee:ff`.
    pub mac: Option<String>,
    /// Its MTU in bytes (since 1.1.0).
    pub mtu: Option<u32>,
    /// The path of its network namespace; `None` for an interface of the host.
    pub sandbox: Option<String>,
    /// The path of its socket, for interfaces of user space (since 1.1.0).
    pub socket_path: Option<String>,
    /// Its PCI device (since 1.1.0).
    pub pci_id: Option<String>,
}

/// An address that an interface was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// The interface, as its index in the result's `interfaces` (since 0.3.0).
    pub interface: Option<usize>,
    /// The address with the length of its subnet's prefix.
    pub address: IpNetwork,
    /// The subnet's gateway.
    pub gateway: Option<IpAddr>,
}

/// A route that the container was given.
///
/// The specification has `mtu` to `scope` since 1.1.0; like the reference, every version prints them.
/// For `table` and `scope`, 0 differs from unset; for the others 0 means unset and is read as such.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub dst: IpNetwork,
    /// The next hop; unset, a plugin takes the gateway of the first address of this family.
    pub gw: Option<IpAddr>,
    /// The path's MTU in bytes.
    pub mtu: Option<u32>,
    /// The TCP maximum segment size that is announced, in bytes.
    pub advmss: Option<u32>,
    /// The metric; lower wins.
    pub priority: Option<u32>,
    /// The routing table.
    pub table: Option<u32>,
    /// The scope, as rtnetlink(7) numbers it: 0 universe, 253 link, 254 host.
    pub scope: Option<u8>,
}

impl Route {
    /// A route with a destination and perhaps a next hop, all else unset.
    pub fn new(dst: IpNetwork, gw: Option<IpAddr>) -> Route {
        Route { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// What a resolver needs to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers, the preferred one first.
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: Option<String>,
    /// Domains to search, the preferred one first.
    pub search: Vec<String>,
    /// Options of the resolver (resolv.conf(5)).
    pub options: Vec<String>,
}

impl Dns {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

/// The result of an ADD (specification 1.1.0, section 5, "Success").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddResult {
    /// The interfaces, in the order that `IpConfig::interface` counts.
    pub interfaces: Vec<Interface>,
    /// The addresses.
    pub ips: Vec<IpConfig>,
    /// The routes.
    pub routes: Vec<Route>,
    /// The resolver's configuration.
    pub dns: Dns,
}
