//! The protocol from outside: documents of every version, a plugin's answers, and the execution of chains.

// Helpers of tests are tests too: a failed unwrap is the failure report.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cache;
mod config;
mod conversions;
mod delegate;
mod execution;
mod invoker;
mod plugin;
mod results;
mod scripts;
