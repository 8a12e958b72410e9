//! Containers as running things: a supervisor process each, their launch, and what is done to them afterwards.
//!
//! What the command line uses: [`Container::start`], [`Container::run`], [`Container::attach`], [`Container::stop`],
//! [`Container::kill`], [`Container::restart`], [`Container::remove`], [`Container::wait`], [`Container::exec`],
//! [`Container::logs`], [`recover`], and [`supervisor::main`] for the hidden subcommand `supervise ID`.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::paths::Paths;
use crate::state::Container;

pub mod supervisor;

/// An error that has its own exit code (126: not executable, 127: not found); every other error of the runtime is 125.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    /// The exit code of the command that reports it.
    pub code: u8,
    /// What happened.
    pub message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// What of this process's terminal takes part in a container's input and output.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interact {
    /// Whether standard input goes to the container.
    pub stdin: bool,
    /// Whether signals to this process are passed on (not with a terminal in raw mode, which passes keys).
    pub sig_proxy: bool,
}

/// How to run one more process in a container.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// `KEY=VALUE`, beside the container's own.
    pub env: Vec<String>,
    /// The working directory; none: the container's.
    pub workdir: Option<String>,
    /// `user[:group]`; none: the container's.
    pub user: Option<String>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether it reads this process's standard input.
    pub stdin: bool,
    /// Whether it is left alone.
    pub detach: bool,
}

/// Which lines of a container's log to print, and how.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Whether to wait for more until the container ends.
    pub follow: bool,
    /// How many of the last lines; none: all.
    pub tail: Option<usize>,
    /// Whether each line begins with its time.
    pub timestamps: bool,
    /// Only lines of this time or later.
    pub since: Option<time::OffsetDateTime>,
    /// Only lines before this time.
    pub until: Option<time::OffsetDateTime>,
}

/// Brings every container whose supervisor died into a true state: kills what is left, releases networks, removes those
/// with `--rm`.
pub fn recover(_paths: &Paths) -> Result<()> {
    bail!("not built yet")
}

impl Container {
    /// Starts it in the background; returns when its process runs. A [`Failure`] says why it could not be executed.
    pub fn start(&mut self) -> Result<()> {
        bail!("not built yet")
    }

    /// Starts it with this process attached from its first byte; returns its exit code when all of it is taken down.
    pub fn run(&mut self, _io: Interact) -> Result<i32> {
        bail!("not built yet")
    }

    /// Attaches to a running container; returns its exit code.
    pub fn attach(&self, _io: Interact) -> Result<i32> {
        bail!("not built yet")
    }

    /// Ends it: its stop signal, then after `patience` (none: 10 s) SIGKILL. Returns when its network is released.
    pub fn stop(&mut self, _patience: Option<Duration>) -> Result<()> {
        bail!("not built yet")
    }

    /// Sends its process a signal.
    pub fn kill(&mut self, _signal: i32) -> Result<()> {
        bail!("not built yet")
    }

    /// Stops and starts it.
    pub fn restart(&mut self, patience: Option<Duration>) -> Result<()> {
        self.stop(patience)?;
        self.start()
    }

    /// Removes it and all it left. A running one, or one whose network another shares, only by `force`.
    pub fn remove(self, _force: bool) -> Result<()> {
        bail!("not built yet")
    }

    /// Waits until it ends and gives its exit code.
    pub fn wait(&mut self) -> Result<i32> {
        bail!("not built yet")
    }

    /// Runs one more process in it; gives that process's exit code (0 when detached).
    pub fn exec(&self, _options: &ExecOptions) -> Result<i32> {
        bail!("not built yet")
    }

    /// Prints its log to standard output and standard error.
    pub fn logs(&self, _options: &LogOptions) -> Result<()> {
        bail!("not built yet")
    }
}
