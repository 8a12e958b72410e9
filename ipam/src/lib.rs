//! Address pools, ranges and leases, and the embedded store that keeps them.
//!
//! A lease says who holds an address: (network, address) → (container, interface, boot, time). Leases live in one
//! LMDB environment that many short-lived processes share: readers take no lock, writers queue up, and a writer that
//! is killed half-way leaves what was there before. Nothing is synced to disk, since a reboot voids every lease; what
//! a reboot or a clumsy hand left of the file is examined before it is used, and set aside when it is damaged.
//!
//! This crate knows neither JSON nor the kernel: the caller says which boot this is and whether a container lives.
//!
//! `unsafe` is denied but for the module `lmdb`, which opens the memory map; every other line of the crate is safe.
#![deny(unsafe_code)]

mod address;
mod allocate;
pub mod check;
mod consistency;
mod error;
mod free;
mod import;
mod keys;
mod lease;
mod lmdb;
mod open;
mod query;
mod range;
mod record;
mod release;
mod store;

pub use error::{Error, Result};
pub use ipnetwork::IpNetwork;
pub use lease::{Allocated, Ask, Attachment, Lease};
pub use open::Opened;
pub use range::{Range, RangeSet, check_disjoint};
pub use store::Store;
