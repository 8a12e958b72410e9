//! What this kernel has and what it lacks, found out by trying, in a network namespace made for that. A user is told "this
//! kernel has no …"; a test that needs more than there is says so and is skipped.

use std::path::Path;

use crate::batch::Batch;
use crate::change::Bridge;
use crate::error::{Error, Result};
use crate::netlink::Netlink;
use crate::ns;
use crate::vlan;

/// True when links of a kind ("vxlan", "dummy", "macvlan" …) can be made. The kernel loads a module for it, if it can.
pub fn link_kind(kind: &str) -> Result<bool> {
    let attempt = || -> Result<bool> {
        let mut batch = Batch::new();
        batch.simple("probe0", kind);
        match Netlink::open()?.run(batch) {
            Err(Error::Unsupported(_)) => Ok(false),
            // Before Linux 4.20 there is no text that would tell the reason.
            Err(Error::Kernel { refusal, .. }) => {
                Ok(refusal.errno != libc::EOPNOTSUPP || refusal.text.is_some())
            }
            Err(error) => Err(error),
            // Some kinds want more settings, or a lower device: refused for that, they are there.
            Ok(_) => Ok(true),
        }
    };
    ns::in_scratch(attempt)?
}

/// True when bridges can filter by VLAN (CONFIG_BRIDGE_VLAN_FILTERING).
pub fn bridge_vlan_filtering() -> Result<bool> {
    let attempt = || -> Result<bool> {
        let bridge = Netlink::open()?.create_bridge(&Bridge { name: "probe0", ..Bridge::default() })?;
        Ok(bridge.bridge.is_some_and(|bridge| bridge.vlan_filtering.is_some()))
    };
    ns::in_scratch(attempt)?
}

/// True when there is IPv6, and it was not switched off at the start (`ipv6.disable=1`).
pub fn ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Fails with "this kernel has no …" when links of the kind cannot be made.
pub fn need_link_kind(kind: &str) -> Result<()> {
    if link_kind(kind)? { Ok(()) } else { Err(Error::Unsupported(format!("{kind} devices"))) }
}

/// Fails with "this kernel has no bridge VLAN filtering" when that is so.
pub fn need_bridge_vlan_filtering() -> Result<()> {
    if bridge_vlan_filtering()? { Ok(()) } else { Err(Error::Unsupported(vlan::FEATURE.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_apart() {
        assert!(link_kind("bridge").unwrap());
        assert!(link_kind("veth").unwrap());
        assert!(!link_kind("nosuchkind").unwrap());
        let text = need_link_kind("nosuchkind").unwrap_err().to_string();
        assert_eq!(text, "this kernel has no nosuchkind devices");
        assert_eq!(need_bridge_vlan_filtering().is_ok(), bridge_vlan_filtering().unwrap());
        for kind in ["vxlan", "dummy", "macvlan", "ipvlan", "vlan", "vrf", "ifb", "netkit"] {
            println!("{kind}: {}", if link_kind(kind).unwrap() { "yes" } else { "this kernel has none" });
        }
    }
}
