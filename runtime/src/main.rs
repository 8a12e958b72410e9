//! `runtime`: a small container runtime that drives CNI executables.

mod engine;
mod paths;
mod spec;
mod state;

fn main() {}
