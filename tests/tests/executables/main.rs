//! The CNI executables driven by hand: bad input, GC, repeated DEL, crashes, many at once, and the plugins that the
//! reference has not.

mod bad_input;
mod crash;
mod errors_of_the_world;
mod first_packet;
mod gc;
mod modes;
mod parallel;
mod verbs;

use serde_json::{Value, json};
use tests::{Chain, Host};

/// A host-local of both families behind a masquerading bridge.
pub fn bridge() -> Value {
    json!({"type": "bridge", "bridge": "br-test", "isGateway": true, "ipMasq": true,
           "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1:2::/64"}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}})
}

/// The bridge, then `portmap` with 8080 → 80 and 5353/udp → 53.
pub fn chain<'h>(host: &'h Host, netns: &str) -> Chain<'h> {
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let mut chain = host.cni(&tests::weft_cni(), netns, vec![bridge(), portmap]);
    chain.runtime = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                                            {"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]});
    chain
}

/// What may stay after the last DEL: the bridge until a GC, and the empty store.
pub fn tolerate_bridge_and_store(host: &Host) {
    for what in ["link br-test ", "address br-test ", "dev br-test", "file /var/lib/weft/"] {
        host.tolerate(what);
    }
}

/// A machine with the namespaces `pod1` … `podN`, as its baseline.
pub fn host_with(pods: usize) -> Host {
    let host = Host::new();
    for n in 1..=pods {
        host.netns_add(&format!("pod{n}"));
    }
    host.note_baseline();
    host
}
