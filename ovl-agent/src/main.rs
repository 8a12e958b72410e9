//! `ovl-agent`: the overlay on each host. `run` is the agent; the other commands ask it.
//!
//! Exit codes: 0 done, 1 failed, 2 a flag, a variable or the configuration file is wrong.
#![forbid(unsafe_code)]

mod api;
mod args;
mod caller;
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
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match dispatch(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ovl-agent: {error:#}");
            ExitCode::from(if is_setting(&error) { 2 } else { 1 })
        }
    }
}

/// Prints a usage error, or what `--help` and `--version` ask for.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    eprint!(
        "{}",
        text.strip_prefix("error: ").map_or_else(|| text.clone(), |text| format!("ovl-agent: {text}"))
    );
    ExitCode::from(2)
}

/// Whether a flag, a variable or the file is wrong. What the store's settings name is looked at when it is opened.
fn is_setting(error: &anyhow::Error) -> bool {
    let of_store = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(ovl_store::Error::Setting { .. }))
    };
    error.is::<ConfigError>() || error.chain().any(of_store)
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
