//! The links for which the kernel routes 127.0.0.0/8 (`route_localnet`). As long as one has it, the rule that drops such
//! packets from outside must stay, or the host's loopback services are open to what is behind that link.

use crate::{Batch, Error, LinkSet, Netlink, Result};

/// Where the kernel shows the setting of each link of the reader's network namespace.
const CONF: &str = "/proc/sys/net/ipv4/conf";
/// What the alias of every link that Weft made starts with.
const OURS: &str = "weft:";

/// Returns the names of the links that have `route_localnet`. `all` is not Weft's to protect: Weft never sets it.
fn open_links() -> Result<Vec<String>> {
    let fail = |e| Error::io("read route_localnet of the links", e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(CONF).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if matches!(name.as_str(), "all" | "default" | "lo") {
            continue;
        }
        match std::fs::read_to_string(entry.path().join("route_localnet")) {
            Ok(value) if value.trim() != "0" => names.push(name),
            Ok(_) => {}
            // The link was deleted in between.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(fail(e)),
        }
    }
    Ok(names)
}

/// Returns whether a link has `route_localnet`, or that cannot be read.
pub fn is_open() -> bool {
    open_links().map_or(true, |names| !names.is_empty())
}

/// Clears `route_localnet` of these links, which Weft set. Returns the indices of those that had it, for [`set`].
pub fn close(names: &[String]) -> Result<Vec<u32>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let open = open_links()?;
    let indices = names.iter().filter(|name| open.contains(name));
    let indices: Vec<u32> =
        indices.filter_map(|name| nix::net::if_::if_nametoindex(name.as_str()).ok()).collect();
    set(&indices, false)?;
    Ok(indices)
}

/// Clears `route_localnet` of the links that Weft made, whether or not it is recorded. Returns as [`close`].
pub fn close_own() -> Result<Vec<u32>> {
    let open = open_links()?;
    if open.is_empty() {
        return Ok(Vec::new());
    }
    let is_ours = |alias: &Option<String>| alias.as_deref().is_some_and(|alias| alias.starts_with(OURS));
    let links = Netlink::open()?.links()?;
    let ours = links.iter().filter(|link| open.contains(&link.name) && is_ours(&link.alias));
    let indices: Vec<u32> = ours.map(|link| link.index).collect();
    set(&indices, false)?;
    Ok(indices)
}

/// Sets or clears `route_localnet` of these links; a link that is gone is skipped.
pub fn set(indices: &[u32], on: bool) -> Result<()> {
    if indices.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open()?;
    for index in indices {
        let mut batch = Batch::new();
        batch.set(*index, &LinkSet { route_localnet: Some(on), ..LinkSet::default() });
        // A link that could not be cleared still counts as open.
        let _ = netlink.run(batch);
    }
    Ok(())
}
