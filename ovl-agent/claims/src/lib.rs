//! Who owns which network, VNI, block and address of the overlay.
#![forbid(unsafe_code)]

mod conf;
mod node;

pub use conf::{NodeConf, Timing};
pub use node::{Grant, Node, NodeStatus};
