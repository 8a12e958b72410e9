//! The Linux kernel's networking, as Weft needs it: namespaces, links, addresses, routes, neighbours, bridge ports and
//! VLANs, packet filtering, settings (sysctl) and connection tracking. One blocking netlink socket and the fewest messages
//! and system calls; no other program is run. This library knows no JSON and keeps no state.

#![deny(unsafe_code)]

mod error;
pub mod names;
mod netlink;
pub mod ns;
pub mod socket;
pub mod testns;
pub mod wire;

pub use error::{Error, Refusal, Result};
pub use names::Owner;
pub use netlink::Netlink;
pub use ns::Netns;
