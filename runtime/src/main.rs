//! `runtime`: a small container runtime that drives CNI executables.

#![deny(unsafe_code)]

mod cli;
mod engine;
mod format;
mod ipam_cmd;
mod lab;
mod network;
mod paths;
mod ports;
mod spec;
mod state;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
