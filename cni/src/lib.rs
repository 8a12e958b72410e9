//! The CNI protocol, both sides of it: what a plugin reads and prints, and how a runtime executes a chain of plugins.
//!
//! It follows the CNI specification 1.1.0 and speaks every version since 0.1.0. It touches files and processes, but no
//! kernel networking: that is the business of the plugins which stand on it.
//!
//! * A plugin implements [`plugin::Plugin`] and calls [`plugin::main`].
//! * A runtime reads a [`config::ConfList`] and drives it by an [`invoke::Invoker`].

#![forbid(unsafe_code)]

pub mod cache;
pub mod config;
pub mod delegate;
mod error;
mod exec;
pub mod invoke;
pub mod plugin;
pub mod request;
pub mod share;
pub mod types;
pub mod validate;
mod version;

pub use error::{Error, code};
pub use version::Version;

/// The longest document that is read from a runtime or a plugin, in bytes (8 MiB).
pub const MAX_DOCUMENT: usize = 8 * 1024 * 1024;
