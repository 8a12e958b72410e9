//! Containers as running things: a supervisor process each, their launch, and what is done to them afterwards.
//!
//! What the command line uses: `start`, `run`, `attach`, `stop`, `kill`, `restart`, `remove`, `wait`, `exec` and `logs` of
//! [`Container`](crate::state::Container), [`recover`], and [`supervisor::main`] for the hidden subcommand `supervise ID`.
//! `run`, `attach` and `exec` must be called from a process that has one thread.

pub(crate) mod cgroup;
mod client;
mod etc;
mod exec;
mod launch;
mod lifecycle;
mod logs;
mod own;
pub(crate) mod process;
pub(crate) mod release;
mod starter;
pub mod supervisor;
pub(crate) mod sys;
mod tree;
mod tty;
mod volumes;
mod wire;

pub use lifecycle::recover;

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
