//! What the overlay agent, the overlay plugin and the runtime share: the model of an overlay ([`model`]), what they say to
//! each other ([`wire`]), the names that follow from the model ([`names`]), the client ([`client`]), and what is left for an agent
//! that is not there ([`notes`]).
//!
//! It touches no kernel and no store.

#![forbid(unsafe_code)]

pub mod client;
pub mod model;
pub mod names;
pub mod notes;
pub mod wire;

pub use client::{Client, ClientError};
