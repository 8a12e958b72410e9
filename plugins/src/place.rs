//! Where the executables keep what they must: leases, and counts of shared namespaces. Everything else is in the kernel.

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use std::fs;
use std::path::{Path, PathBuf};

/// `WEFT_ROOT`, or /var/lib/weft. Without root's rights over that, as under a rootless podman: `weft` in `XDG_DATA_HOME`
/// (`~/.local/share`), or, without a home, in /run.
pub fn root() -> PathBuf {
    from_environment("WEFT_ROOT", "/var/lib/weft", || {
        let home = || variable("HOME").map(|home| home.join(".local/share"));
        variable("XDG_DATA_HOME")
            .or_else(home)
            .map_or_else(|| "/run/weft/root".into(), |data| data.join("weft"))
    })
}

/// `WEFT_RUN`, or /run/weft: where sockets are. Without the right to write there, `weft` in `XDG_RUNTIME_DIR`.
pub fn run() -> PathBuf {
    from_environment("WEFT_RUN", "/run/weft", || {
        variable("XDG_RUNTIME_DIR").map_or_else(|| root().join("run"), |dir| dir.join("weft"))
    })
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn from_environment(name: &str, usual: &str, otherwise: impl FnOnce() -> PathBuf) -> PathBuf {
    variable(name).unwrap_or_else(|| {
        let usual = PathBuf::from(usual);
        if is_forbidden(&usual) { otherwise() } else { usual }
    })
}

/// Whether this process may not write in a directory, or not make it. A read-only file system is another matter.
pub fn is_forbidden(dir: &Path) -> bool {
    match access(dir, AccessFlags::W_OK | AccessFlags::X_OK) {
        Err(Errno::ENOENT) => dir.parent().is_some_and(is_forbidden),
        access => access == Err(Errno::EACCES),
    }
}

/// The kernel's name for this boot (random(4)); empty when it cannot be read, which no boot's name equals.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The directories with the results that runtimes keep: Weft's own, and libcni's.
pub fn caches() -> [cni::cache::Cache; 2] {
    [cni::cache::Cache::new(root().join("results")), cni::cache::Cache::new("/var/lib/cni/results")]
}
