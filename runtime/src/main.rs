//! `runtime`: a small container runtime that drives CNI executables.

#![deny(unsafe_code)]

mod engine;
mod format;
mod network;
mod paths;
mod ports;
mod spec;
mod state;

fn main() {}
