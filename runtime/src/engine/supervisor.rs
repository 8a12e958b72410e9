//! The process that looks after one container for all its life.

use std::process::ExitCode;

use crate::paths::Paths;

/// The hidden subcommand `supervise ID`.
pub fn main(_paths: &Paths, _id: &str) -> ExitCode {
    ExitCode::from(125)
}
