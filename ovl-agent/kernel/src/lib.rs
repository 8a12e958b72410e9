//! The overlay in the kernel of this host: VXLAN devices, their addresses, neighbours and forwarding entries, routes to the
//! blocks of other hosts, the host's half of the containers' links, and the packet filter of the overlay.
//!
//! The middle is pure: [`wanted`] says from a [`ovl_api::model::View`] what the kernel is to show, [`dump`] what it shows,
//! [`plan`] what to do about the difference; none but [`dump`] and [`apply`] talks to a kernel. [`Reconciler`] ties them
//! together, in whole ([`Reconciler::full`]), for what changed in the view ([`Reconciler::delta`]), or for what somebody
//! changed in the kernel ([`Reconciler::restore`], [`drift`]).
#![forbid(unsafe_code)]

pub mod apply;
pub mod drift;
pub mod dump;
mod error;
pub mod model;
pub mod objects;
mod overlap;
mod permission;
pub mod plan;
mod reconciler;
pub mod rules;
mod underlay;
pub mod wanted;
mod words;

pub use error::{Error, Result};
pub use overlap::{foreign, overlapping};
pub use permission::permitted;
pub use reconciler::{Changes, Reconciler, Restored};
pub use underlay::{
    Found, Underlay, VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6, carries, find_underlay, find_underlay_in,
    network_mtu, own_addresses,
};
