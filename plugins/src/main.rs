//! The CNI executables of Weft: one static file under many names.
//!
//! The name it is called by chooses the plugin: `bridge`, `host-local` and so on are hard links to one `weft-cni`. Called
//! by its own name it installs those links and tells what it has.

#![forbid(unsafe_code)]

mod args;
mod attach;
mod bridge;
mod check;
mod container;
mod errors;
mod firewall;
mod host;
mod hostlocal;
mod install;
mod ipam_client;
mod loopback;
mod netns;
mod none;
mod overlay;
mod place;
mod portmap;
mod rollback;
mod rules;
mod static_ipam;

use cni::plugin::Plugin;
use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

/// Every plugin in this file, by name.
const PLUGINS: [&dyn Plugin; 9] = [
    &bridge::Bridge,
    &container::Container,
    &host::Host,
    &hostlocal::HostLocal,
    &loopback::Loopback,
    &none::None,
    &overlay::Overlay,
    &portmap::Portmap,
    &static_ipam::Static,
];

/// The first line a person sees who runs a plugin by hand.
fn about(name: &str) -> String {
    format!("CNI {name} plugin, Weft {}", env!("CARGO_PKG_VERSION"))
}

/// musl's own gives every size of allocation pages of its own and returns them at once, which is a tenth of what a call
/// takes. A child of [`net::dead`] goes on to use this one, so no other thread may run when it is forked.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&called).file_name().and_then(OsStr::to_str).unwrap_or_default();
    match PLUGINS.iter().find(|plugin| plugin.name() == name) {
        Some(plugin) => cni::plugin::main(&rules::Restoring(*plugin)),
        None => install::main(),
    }
}
