//! Who owns which network, VNI, block and address of the overlay.
//!
//! A [`Node`] is one host's part in that: it registers the host in the store, follows the store, claims blocks of addresses
//! and single ones, leases addresses to containers, and keeps the [`ovl_api::model::View`] that the kernel is to show. It
//! touches no kernel itself.
//!
//! - Every claim is a transaction that holds only while this host's record is as it was (the fence: who was declared gone
//!   claims nothing), and while nobody else has what is claimed. Claims have no term: a host that is silent keeps its own.
//! - An attachment is served from blocks that the host owns, with no look at the store. A lease lives in the host's own
//!   lease store, an endpoint in a file.
//! - An address that is lent, a block that is given back: this host forgets first, then tells the store.

#![forbid(unsafe_code)]

mod attach;
mod claim;
mod conf;
mod create;
mod files;
mod held;
mod identity;
mod inner;
mod join;
mod keeper;
mod keys;
mod missing;
mod node;
mod nodes;
mod notes;
mod open;
mod outage;
mod own;
mod pool;
mod publish;
mod random;
mod record;
mod recover;
mod remove;
mod rename;
mod restored;
mod session;
mod settle;
mod single;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod token;
mod told;
mod validate;
mod vteps;

pub use conf::{NodeConf, TakeOver, Timing};
pub use node::{Grant, Node, NodeStatus};
pub use recover::FoundLink;
