//! The plugins that the reference has not: `none`, `host`, `container`; and `loopback`.

use crate::{chain, host_with, tolerate_bridge_and_store};
use serde_json::{Value, json};
use tests::{Chain, Host};

fn single<'h>(host: &'h Host, netns: &str, plugin: Value) -> Chain<'h> {
    host.cni(&tests::weft_cni(), netns, vec![plugin])
}

#[test]
fn none_brings_loopback_up_and_nothing_else() {
    let host = host_with(1);
    let chain = single(&host, "/var/run/netns/pod1", json!({"type": "none"}));
    let result = chain.add_ok();
    chain.check(&result).unwrap_or_else(|failure| panic!("CHECK: {}", failure.output));
    let links = host.run_in("pod1", "ip -j addr").ok().json();
    assert_eq!(links.as_array().map(Vec::len), Some(1), "{links}");
    assert_eq!(links[0]["addr_info"][0]["local"], "127.0.0.1", "{links}");
    chain.del_ok(Some(&result));
    chain.del_ok(None);
}

#[test]
fn none_refuses_the_hosts_namespace() {
    let host = host_with(0);
    let failure = single(&host, "/proc/1/ns/net", json!({"type": "none"})).add().expect_err("refused");
    assert_eq!(failure.output.json()["code"], 4, "{}", failure.output);
}

#[test]
fn host_reports_the_hosts_interfaces_and_changes_nothing() {
    let host = host_with(1);
    host.link_machine("outside");
    let chain = single(&host, "/proc/1/ns/net", json!({"type": "host"}));
    let result = chain.add_ok();
    let names: Vec<_> =
        result["interfaces"].as_array().into_iter().flatten().map(|i| i["name"].clone()).collect();
    assert!(names.contains(&json!("uplink0")), "{result}");
    assert!(result["ips"].to_string().contains("192.0.2.1/24"), "{result}");
    host.assert_as_before();
    chain.check(&result).unwrap_or_else(|failure| panic!("CHECK: {}", failure.output));
    chain.del_ok(Some(&result));
}

#[test]
fn host_refuses_another_namespace() {
    let host = host_with(1);
    let failure = single(&host, "/var/run/netns/pod1", json!({"type": "host"})).add().expect_err("refused");
    assert_eq!(failure.output.json()["code"], 4, "{}", failure.output);
}

#[test]
fn loopback_comes_up_with_both_addresses() {
    let host = host_with(1);
    let mut chain = single(&host, "/var/run/netns/pod1", json!({"type": "loopback"}));
    chain.ifname = "lo".into();
    let result = chain.add_ok();
    assert_eq!(result["interfaces"][0]["name"], "lo", "{result}");
    assert!(host.run_in("pod1", "ping -c1 -W1 127.0.0.1 && ping -6 -c1 -W1 ::1").code == 0);
    chain.check(&result).unwrap_or_else(|failure| panic!("CHECK: {}", failure.output));
    chain.del_ok(Some(&result));
}

#[test]
fn container_joins_the_namespace_of_another() {
    let host = host_with(2);
    let first = chain(&host, "/var/run/netns/pod1");
    let result = first.add_ok();
    let mut joined = single(&host, "/var/run/netns/pod1", json!({"type": "container", "container": "c1"}));
    joined.container = "c2".into();
    joined.name = "joined".into();
    let answer = joined.add();
    match answer {
        Ok(answer) => {
            joined.check(&answer).unwrap_or_else(|failure| panic!("CHECK: {}", failure.output));
            host.run_in("pod1", "ping -c1 -W2 10.1.2.1").ok();
        }
        // By hand there is no cache of results from which the plugin could know c1.
        Err(failure) => assert!(failure.output.json()["code"].as_u64().is_some(), "{}", failure.output),
    }
    joined.del_ok(None);
    joined.del_ok(None);
    host.run_in("pod1", "ping -c1 -W2 10.1.2.1").ok();
    first.del_ok(Some(&result));
    tolerate_bridge_and_store(&host);
}
