//! Existing configurations keep working: the reference plugins and Weft get the same ones on machines that are alike,
//! and results, addresses, routes, MTUs, traffic, CHECK and DEL are compared. One test is one configuration.

mod bridge;
mod differences;
mod ipam;
mod portmap;
mod refused;
mod upgrade;
mod versions;

use serde_json::{Value, json};

/// A bridge with host-local on 10.1.0.0/16, and further keys.
pub fn bridge(keys: Value) -> Value {
    bridge_with(keys, json!({"type": "host-local", "subnet": "10.1.0.0/16"}))
}

/// A bridge with this IPAM, and further keys.
pub fn bridge_with(keys: Value, ipam: Value) -> Value {
    let mut plugin = json!({"type": "bridge", "bridge": "br-test", "ipam": ipam});
    if let (Some(plugin), Some(keys)) = (plugin.as_object_mut(), keys.as_object()) {
        plugin.extend(keys.clone());
    }
    plugin
}

/// A dual-stack host-local.
pub fn dual() -> Value {
    json!({"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1:2::/64"}]],
           "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]})
}
