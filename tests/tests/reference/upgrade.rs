//! The executables are replaced while containers run: Weft detaches what the reference plugins attached.

use serde_json::json;
use std::path::Path;
use tests::{Host, REFERENCE};

#[test]
fn a_container_of_the_reference_plugins_is_detached_without_a_trace() {
    let host = Host::new();
    if !Path::new(REFERENCE).join("bridge").exists()
        || host.run("iptables --version && ip6tables --version").code != 0
    {
        return tests::skipped("containernetworking-plugins or iptables is not installed");
    }
    for pod in ["pod1", "pod2"] {
        host.netns_add(pod);
    }
    host.note_baseline();
    let plugins = vec![
        json!({"type": "bridge", "bridge": "br-up", "isGateway": true, "ipMasq": true,
               "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd00:7::/64"}]]}}),
        json!({"type": "portmap", "capabilities": {"portMappings": true}}),
    ];
    let mut old = host.cni(Path::new(REFERENCE), "/var/run/netns/pod1", plugins);
    old.runtime = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let result = old.add_ok();
    assert_eq!(result["ips"][0]["address"], "10.7.0.2/24");

    let mut weft = old.clone();
    weft.dir = tests::weft_cni();
    let mut new = weft.of("c2", "/var/run/netns/pod2");
    new.runtime["portMappings"][0]["hostPort"] = json!(8081);
    let added = new.add_ok();
    assert_eq!(added["ips"][0]["address"], "10.7.0.3/24", "the old container's address is not given twice");

    weft.del_ok(Some(&result));
    let rules = host.run("iptables-save -t nat; ip6tables-save -t nat").ok();
    assert!(!rules.stdout.contains("10.7.0.2") && !rules.stdout.contains("fd00:7::2"), "{rules}");
    assert!(!rules.stdout.contains("CNI-DN-") && !rules.stdout.contains("c1"), "{rules}");
    new.del_ok(Some(&added));
    // The reference's empty frame, the bridge, which stays until a GC, and the empty store.
    for stays in ["table ip nat", "table ip6 nat", "br-up", "file /var/lib/weft/", "file /var/lib/cni/"] {
        host.tolerate(stays);
    }
}
