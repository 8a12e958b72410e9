//! Where the executables keep what they must: leases, and counts of shared namespaces. Everything else is in the kernel.

use std::fs;
use std::path::PathBuf;

/// `WEFT_ROOT`, or /var/lib/weft.
pub fn root() -> PathBuf {
    from_environment("WEFT_ROOT", "/var/lib/weft")
}

/// `WEFT_RUN`, or /run/weft: where sockets are.
pub fn run() -> PathBuf {
    from_environment("WEFT_RUN", "/run/weft")
}

fn from_environment(name: &str, usual: &str) -> PathBuf {
    std::env::var_os(name).filter(|path| !path.is_empty()).map_or_else(|| PathBuf::from(usual), PathBuf::from)
}

/// The kernel's name for this boot (random(4)); empty when it cannot be read, which no boot's name equals.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The directories with the results that runtimes keep: Weft's own, and libcni's.
pub fn caches() -> [cni::cache::Cache; 2] {
    [cni::cache::Cache::new(root().join("results")), cni::cache::Cache::new("/var/lib/cni/results")]
}
