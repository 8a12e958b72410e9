//! GC and STATUS: what is stale goes, what is valid stays, and with nothing valid nothing is left.

use crate::{chain, host_with, tolerate_bridge_and_store};
use serde_json::json;

#[test]
fn gc_removes_what_is_not_valid_and_keeps_what_is() {
    let host = host_with(3);
    let all = chain(&host, "/var/run/netns/pod1");
    let mut results = Vec::new();
    for n in 1..=3 {
        let mut one = all.of(&format!("c{n}"), &format!("/var/run/netns/pod{n}"));
        one.runtime["portMappings"][0]["hostPort"] = json!(8080 + n);
        one.runtime["portMappings"][1]["hostPort"] = json!(5353 + n);
        results.push((one.add_ok(), one));
    }
    host.netns_del("pod2"); // its container has gone without a DEL
    let failures = all.gc(&[("c1", "eth0"), ("c3", "eth0")]);
    assert!(failures.is_empty(), "{failures:?}");
    for n in [1, 3] {
        host.run_in(&format!("pod{n}"), "ping -c1 -W2 10.1.2.1").ok();
        let (result, one) = &results[n - 1];
        one.check(result).unwrap_or_else(|failure| panic!("CHECK of c{n}: {}", failure.output));
    }
    let rules = host.run("nft list ruleset").ok();
    assert!(
        rules.stdout.contains("8081") && rules.stdout.contains("8083") && !rules.stdout.contains("8082"),
        "{rules}"
    );
    // The address of the one that went can be given again.
    let failures = all.gc(&[]);
    assert!(failures.is_empty(), "{failures:?}");
    host.netns_add("pod2");
    host.tolerate("file /var/lib/weft/"); // the empty store
}

#[test]
fn gc_with_nothing_valid_removes_the_bridge_too() {
    let host = host_with(1);
    let chain = chain(&host, "/var/run/netns/pod1");
    let result = chain.add_ok();
    chain.del_ok(Some(&result));
    assert!(chain.gc(&[]).is_empty());
    assert!(host.run("ip link show br-test 2>/dev/null").code != 0, "the bridge is still there");
    host.tolerate("file /var/lib/weft/");
}

#[test]
fn gc_keeps_a_bridge_that_was_there_before() {
    let host = host_with(1);
    host.run("ip link add br-test type bridge && ip link set br-test up").ok();
    let chain = chain(&host, "/var/run/netns/pod1");
    let result = chain.add_ok();
    chain.del_ok(Some(&result));
    assert!(chain.gc(&[]).is_empty());
    host.run("ip link show br-test").ok();
    tolerate_bridge_and_store(&host);
}

#[test]
fn gc_of_one_network_leaves_another_alone() {
    let host = host_with(2);
    let one = chain(&host, "/var/run/netns/pod1");
    let mut two = one.of("c2", "/var/run/netns/pod2");
    two.name = "other".into();
    two.plugins[0]["bridge"] = json!("br-other");
    two.plugins[0]["ipam"]["ranges"] = json!([[{"subnet": "10.2.2.0/24"}]]);
    two.runtime["portMappings"] = json!([{"hostPort": 9090, "containerPort": 80, "protocol": "tcp"}]);
    one.add_ok();
    let result = two.add_ok();
    assert!(one.gc(&[]).is_empty());
    two.check(&result).unwrap_or_else(|failure| panic!("CHECK: {}", failure.output));
    assert!(host.run("nft list ruleset").stdout.contains("9090"));
    assert!(two.gc(&[]).is_empty());
    host.tolerate("file /var/lib/weft/");
}

#[test]
fn gc_without_the_list_is_refused() {
    let host = host_with(1);
    let chain = chain(&host, "/var/run/netns/pod1");
    let result = chain.add_ok();
    for at in 0..2 {
        let mut bare = chain.clone();
        bare.version = Some("1.1.0".into());
        let out = bare.exec("GC", at, None);
        assert!(out.code != 0, "{out}");
        assert!(out.json()["msg"].as_str().unwrap().contains("valid-attachments"), "{out}");
    }
    chain.check(&result).unwrap_or_else(|failure| panic!("CHECK: {}", failure.output));
    chain.del_ok(Some(&result));
    tolerate_bridge_and_store(&host);
}

#[test]
fn status_says_when_addresses_are_used_up() {
    let host = host_with(1);
    let mut chain = chain(&host, "/var/run/netns/pod1");
    chain.version = Some("1.1.0".into());
    chain.plugins[0]["ipam"]["ranges"] = json!([[{"subnet": "10.1.2.0/30"}]]);
    let status = || chain.exec("STATUS", 0, None);
    status().code(0);
    let result = chain.add_ok();
    let out = status();
    assert!(out.code != 0 && [json!(50), json!(51)].contains(&out.json()["code"]), "{out}");
    chain.del_ok(Some(&result));
    status().code(0);
    tolerate_bridge_and_store(&host);
}
