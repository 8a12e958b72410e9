//! `ovl-agent`: the overlay on each host. `run` is the agent; the other commands ask it.
//!
//! Exit codes: 0 done, 1 failed, 2 a flag, a variable or the configuration file is wrong.
#![forbid(unsafe_code)]

mod api;
mod args;
mod commands;
mod config;
mod engine;
mod lock;
mod logging;
mod metrics;
mod notify;
mod run;
mod table;

use anyhow::Result;
use args::{Cli, Command, RunArgs};
use clap::{CommandFactory, Parser};
use config::{Config, ConfigError, Layers};
use std::process::ExitCode;

fn main() -> ExitCode {
    match dispatch(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ovl-agent: {error:#}");
            ExitCode::from(if error.is::<ConfigError>() { 2 } else { 1 })
        }
    }
}

fn dispatch(cli: &Cli) -> Result<()> {
    let env = |name: &str| std::env::var(name).ok();
    match &cli.command {
        Command::Run(flags) => {
            let layers = Layers::read(&cli.global, flags, env)?;
            let host = nix::unistd::gethostname()?;
            run::run(Config::check(&layers, &host.to_string_lossy(), env)?)
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "ovl-agent", &mut script);
            commands::print(&String::from_utf8_lossy(&script))
        }
        command => {
            let layers = Layers::read(&cli.global, &RunArgs::default(), env)?;
            commands::ask(&config::run_dir(&layers)?, command)
        }
    }
}
