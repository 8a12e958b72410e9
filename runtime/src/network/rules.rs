//! The packet filter's rules of running containers, when another program removes them (`nft flush ruleset`). The plugins record
//! them in the run directory.

use crate::paths::Paths;
use net::firewall::nft::{self, Records};

fn records(paths: &Paths) -> net::Result<Records> {
    Records::below(&paths.run.join("rules"))
}

/// Restores what is missing. That it fails is a warning only.
pub fn restore(paths: &Paths) {
    match records(paths).and_then(|records| nft::restore_if_lost(&records)) {
        Ok(restored) if restored.is_any() => eprintln!(
            "runtime: warning: another program removed rules of the packet filter; {} elements restored",
            restored.elements
        ),
        Ok(_) => {}
        Err(error) => eprintln!("runtime: warning: cannot restore the packet filter: {error}"),
    }
}

/// Restores at once what is removed from now on, in a thread that ends with this process. Of a host's supervisors one works.
pub fn keep(paths: &Paths) {
    let Ok(records) = records(paths) else { return };
    // Without it the next command restores.
    let thread = std::thread::Builder::new().name("rules".to_owned());
    let _ = thread.spawn(move || nft::keep(&records, &|_| ()));
}
