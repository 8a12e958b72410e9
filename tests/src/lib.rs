//! The harness of the end-to-end tests: machines of their own, the executables under test, traffic, and a report of
//! everything that a test left behind.
//!
//! A [`Host`] is a set of namespaces with the real file system, in which `/run`, `/etc` and `/var/lib` are its own.
//! Tests run in parallel, each on hosts of its own; every command has a time limit; when a `Host` is dropped, what
//! it looks like is compared with what it looked like at first, and a difference fails the test.
//!
//! The executables under test are those in `$WEFT_DIST`, by default `dist/` of the workspace (`make build`).
#![forbid(unsafe_code)]

mod agent;
mod cni;
mod command;
pub mod compare;
mod host;
mod machine;
mod pods;
mod snapshot;

pub use agent::{Agent, SOCKET};
pub use cni::{Chain, Failure};
pub use command::{Output, Running};
pub use host::{Host, LIMIT};
pub use machine::{Machine, link_line};
pub use pods::{Container, Weft};
pub use snapshot::{Leak, Snapshot};

use std::path::{Path, PathBuf};

/// Where Debian's package containernetworking-plugins puts the reference plugins.
pub const REFERENCE: &str = "/usr/lib/cni";

/// The directory with `bin/` and `cni/` under test.
///
/// # Panics
/// When the executables are not there: nothing can be tested then.
pub fn dist() -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist");
    let dist = std::env::var_os("WEFT_DIST").map_or(default, PathBuf::from);
    match dist.canonicalize() {
        Ok(dist) if dist.join("cni/bridge").exists() => dist,
        _ => panic!("no executables in {}: run `make build`, or set WEFT_DIST", dist.display()),
    }
}

/// The directory of Weft's CNI executables.
pub fn weft_cni() -> PathBuf {
    dist().join("cni")
}

/// The helper that holds namespaces and makes traffic, beside the test's own executable.
///
/// # Panics
/// When it has not been built: `cargo test -p tests` builds it.
pub fn traffic() -> PathBuf {
    let here = std::env::current_exe().unwrap_or_default();
    let found = here.ancestors().skip(1).map(|dir| dir.join("weft-traffic")).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("no weft-traffic beside {}", here.display()))
}

/// Says why a test did not run; `tests/summary.sh` counts these lines.
pub fn skipped(why: &str) {
    // Straight to the terminal: cargo keeps the output of tests that pass.
    use std::io::Write;
    let line = format!("skipped: {why}\n");
    let shown = std::fs::OpenOptions::new().append(true).open("/proc/self/fd/2");
    let _ = shown.and_then(|mut out| out.write_all(line.as_bytes()));
}
