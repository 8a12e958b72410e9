//! DEL in every state of the world, CHECK, VERSION, and ADD a second time.

use crate::{chain, host_with, tolerate_bridge_and_store};
use serde_json::json;

#[test]
fn del_without_result_namespace_or_earlier_add() {
    let host = host_with(2);
    let chain = chain(&host, "/var/run/netns/pod1");
    chain.del_ok(None); // never added
    let result = chain.add_ok();
    chain.del_ok(None); // without prevResult
    chain.add_ok();
    let mut gone = chain.clone();
    gone.netns = None; // the runtime knows no namespace any more
    gone.del_ok(Some(&result));
    chain.add_ok();
    gone.netns = Some(String::new());
    gone.del_ok(None);
    chain.add_ok();
    host.netns_del("pod1"); // the namespace has gone first
    chain.del_ok(Some(&result));
    chain.del_ok(Some(&result));
    host.netns_add("pod1");
    tolerate_bridge_and_store(&host);
}

#[test]
fn an_address_can_be_used_again_at_once_after_del() {
    let host = host_with(2);
    let mut one = chain(&host, "/var/run/netns/pod1");
    one.plugins[0]["ipam"]["ranges"] = json!([[{"subnet": "10.1.2.0/30"}]]);
    for _ in 0..20 {
        let result = one.add_ok();
        assert_eq!(result["ips"][0]["address"], "10.1.2.2/30");
        host.run_in("pod1", "ping -c1 -W2 10.1.2.1").ok();
        one.del_ok(Some(&result));
        let two = one.of("c2", "/var/run/netns/pod2");
        let result = two.add_ok();
        host.run_in("pod2", "ping -c1 -W2 10.1.2.1").ok();
        two.del_ok(Some(&result));
    }
    tolerate_bridge_and_store(&host);
}

#[test]
fn a_second_add_is_an_error_and_changes_nothing() {
    let host = host_with(1);
    let chain = chain(&host, "/var/run/netns/pod1");
    let result = chain.add_ok();
    let before = host.settled();
    let out = chain.exec("ADD", 0, None);
    assert!(out.code != 0, "{out}");
    host.assert_still(&before);
    chain.check(&result).unwrap_or_else(|failure| panic!("CHECK: {}", failure.output));
    chain.del_ok(Some(&result));
    tolerate_bridge_and_store(&host);
}

#[test]
fn two_interfaces_in_one_container() {
    let host = host_with(1);
    let one = chain(&host, "/var/run/netns/pod1");
    let mut two = one.clone();
    two.ifname = "eth1".into();
    two.name = "other".into();
    two.plugins = vec![one.plugins[0].clone()];
    two.plugins[0]["bridge"] = json!("br-other");
    two.plugins[0]["ipam"] = json!({"type": "host-local", "subnet": "10.2.2.0/24"});
    let first = one.add_ok();
    let second = two.add_ok();
    host.run_in("pod1", "ping -c1 -W2 10.1.2.1 && ping -c1 -W2 10.2.2.1").ok();
    one.del_ok(Some(&first));
    host.run_in("pod1", "ping -c1 -W2 10.2.2.1").ok();
    two.check(&second).unwrap_or_else(|failure| panic!("CHECK: {}", failure.output));
    two.del_ok(Some(&second));
    tolerate_bridge_and_store(&host);
    host.tolerate("br-other");
}

#[test]
fn check_notices_what_was_changed_by_hand() {
    let host = host_with(1);
    let chain = chain(&host, "/var/run/netns/pod1");
    for damage in [
        "ip -n pod1 addr del 10.1.2.2/24 dev eth0",
        "ip -n pod1 route del default",
        "ip -n pod1 link del eth0",
        "nft flush map inet weft ports4",
        "ip link set $(ls -d /sys/class/net/br-test/brif/* | xargs basename) nomaster",
    ] {
        chain.del(None);
        let failures = chain.gc(&[]);
        assert!(failures.is_empty(), "{failures:?}");
        let result = chain.add_ok();
        chain.check(&result).unwrap_or_else(|failure| panic!("CHECK: {}", failure.output));
        let address = result["ips"][0]["address"].as_str().unwrap_or_default();
        host.run(&damage.replace("10.1.2.2/24", address)).ok();
        assert!(chain.check(&result).is_err(), "CHECK does not notice `{damage}`");
        chain.del_ok(Some(&result));
    }
    tolerate_bridge_and_store(&host);
}

#[test]
fn version_needs_nothing_but_the_verb() {
    let host = host_with(0);
    for kind in
        ["bridge", "host", "none", "container", "loopback", "host-local", "overlay", "static", "portmap"]
    {
        let file = tests::weft_cni().join(kind);
        let out = host.cni_raw(&file, &[("CNI_COMMAND", "VERSION")], br#"{"cniVersion": "0.3.1"}"#).ok();
        let answer = out.json();
        assert_eq!(answer["cniVersion"], "0.3.1", "{answer}");
        let all = json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        assert_eq!(answer["supportedVersions"], all, "{kind}: {answer}");
    }
}

#[test]
fn a_failing_link_of_the_chain_leaves_nothing_after_the_dels() {
    let host = host_with(2);
    let one = chain(&host, "/var/run/netns/pod1");
    let two = one.of("c2", "/var/run/netns/pod2"); // the same host port
    let result = one.add_ok();
    let before = host.settled();
    let failure = two.add().expect_err("8080 is taken by c1");
    assert_eq!(failure.at, 1, "{}", failure.output);
    let document = failure.output.json();
    let text = format!("{} {}", document["msg"], document["details"]);
    assert!(text.contains("8080") && text.contains("c1"), "names port and holder: {document}");
    two.del_ok(None);
    host.assert_still(&before);
    one.check(&result).unwrap_or_else(|failure| panic!("CHECK: {}", failure.output));
    one.del_ok(Some(&result));
    tolerate_bridge_and_store(&host);
}

#[test]
fn leases_of_a_host_local_directory_are_honoured_and_taken_over() {
    let host = host_with(2);
    host.write("/var/lib/cni/networks/testnet/10.1.2.2", "other\r\neth0");
    host.write("/var/lib/cni/networks/testnet/10.1.2.3", "older");
    host.write("/var/lib/cni/networks/testnet/10.1.2.4", "");
    host.write("/var/lib/cni/networks/testnet/last_reserved_ip.0", "10.1.2.3");
    host.write("/var/lib/cni/networks/testnet/lock", "");
    let mut one = chain(&host, "/var/run/netns/pod1");
    one.plugins[0]["ipam"] = json!({"type": "host-local", "subnet": "10.1.2.0/24"});
    let result = one.add_ok();
    assert_eq!(result["ips"][0]["address"], "10.1.2.4/24");
    // A container of the days before can be deleted now.
    let other = one.of("other", "/var/run/netns/pod2");
    other.del_ok(None);
    one.del_ok(Some(&result));
    let left = host.run("ls /var/lib/cni/networks/testnet 2>/dev/null; true");
    assert!(!left.stdout.contains("10.1.2.2"), "{left}");
    tolerate_bridge_and_store(&host);
    host.tolerate("file /var/lib/cni/");
}

#[test]
fn an_executable_without_a_verb_says_what_it_is() {
    let host = host_with(0);
    let out = host.run(&format!("{} --version </dev/null", tests::weft_cni().join("bridge").display()));
    assert!(!out.stdout.is_empty() || !out.stderr.is_empty(), "{out}");
}
