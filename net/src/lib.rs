//! The Linux kernel's networking, as Weft needs it: namespaces, links, addresses, routes, neighbours, bridge ports and
//! VLANs, packet filtering, settings (sysctl) and connection tracking. One blocking netlink socket and the fewest messages
//! and system calls; no other program is run. This library knows no JSON, and keeps no state but
//! the packet filter's records ([`firewall::nft::Records`]).

#![deny(unsafe_code)]

mod addr;
mod batch;
mod change;
pub mod conntrack;
pub mod dead;
mod error;
pub mod firewall;
mod link;
mod monitor;
pub mod names;
mod neigh;
mod netlink;
pub mod ns;
pub mod probe;
pub mod route;
pub mod socket;
pub mod sysctl;
pub mod testns;
mod vlan;
mod vxlan;
pub mod wire;

pub use addr::{Addr, NewAddr};
pub use batch::{Batch, Outcome, Ticket};
pub use change::{Bridge, LinkSet, On, PortSet, Veth};
pub use error::{Error, Refusal, Result};
pub use link::{Bridging, Link, LinkConf, Port, mac_text, parse_mac};
pub use monitor::{FilterTable, Monitor, Told};
pub use names::{DEAD_GROUP, Owner};
pub use neigh::{Fdb, Neigh};
pub use netlink::Netlink;
pub use ns::Netns;
pub use route::{Family, Route, RouteFilter};
pub use vlan::Vlans;
pub use vxlan::{Vxlan, Vxlanning};
