//! Errors that are not the input's: things in the way, and stores that are damaged.

use crate::{bridge, chain, host_with, tolerate_bridge_and_store};
use serde_json::json;

#[test]
fn an_interface_of_that_name_in_the_container() {
    let host = host_with(1);
    host.run("ip -n pod1 link add eth0 type bridge").ok();
    host.note_baseline();
    let chain = chain(&host, "/var/run/netns/pod1");
    let out = chain.exec("ADD", 0, None);
    assert!(out.code != 0 && out.json()["msg"].as_str().unwrap().contains("eth0"), "{out}");
    tolerate_bridge_and_store(&host);
}

#[test]
fn a_link_of_the_bridges_name_that_is_no_bridge() {
    let host = host_with(1);
    host.run("ip link add br-test type veth peer name other").ok();
    host.note_baseline();
    let out = chain(&host, "/var/run/netns/pod1").exec("ADD", 0, None);
    assert!(out.code != 0, "{out}");
    let text = format!("{}", out.json());
    assert!(text.contains("br-test") && text.contains("bridge"), "{out}");
    host.tolerate("file /var/lib/weft/");
}

#[test]
fn a_bridge_with_another_address_and_no_force_address() {
    let host = host_with(1);
    host.run("ip link add br-test type bridge; ip addr add 10.1.2.200/24 dev br-test").ok();
    host.note_baseline();
    let out = chain(&host, "/var/run/netns/pod1").exec("ADD", 0, None);
    // The reference refuses this too: two gateways in one subnet.
    assert!(out.code != 0 && out.stdout.contains("10.1.2.200"), "{out}");
    tolerate_bridge_and_store(&host);
}

#[test]
fn an_exhausted_range() {
    let host = host_with(2);
    let mut one = chain(&host, "/var/run/netns/pod1");
    one.plugins = vec![bridge()];
    one.plugins[0]["ipam"] = json!({"type": "host-local", "subnet": "10.1.2.0/30"});
    let result = one.add_ok();
    let before = host.settled();
    let two = one.of("c2", "/var/run/netns/pod2");
    let out = two.exec("ADD", 0, None);
    assert!(out.code != 0 && out.stdout.contains("10.1.2."), "names the range: {out}");
    host.assert_still(&before);
    one.del_ok(Some(&result));
    tolerate_bridge_and_store(&host);
}

#[test]
fn a_damaged_store_is_set_aside_and_work_goes_on() {
    let host = host_with(1);
    let one = chain(&host, "/var/run/netns/pod1");
    let result = one.add_ok();
    one.del_ok(Some(&result));
    let files = host.run("find /var/lib/weft -type f -name '*.mdb' ! -name 'lock*'").ok();
    let store = files.text().lines().next().unwrap_or_default().to_owned();
    assert!(!store.is_empty(), "where is the store? {}", host.run("find /var/lib/weft"));
    for damage in ["head -c 100 /dev/urandom > FILE", "truncate -s 5000 FILE", ": > FILE"] {
        host.run(&damage.replace("FILE", &store)).ok();
        let result = one.add_ok();
        host.run_in("pod1", "ping -c1 -W2 10.1.2.1").ok();
        one.del_ok(Some(&result));
    }
    tolerate_bridge_and_store(&host);
}

#[test]
fn a_foreign_ipam_plugin_is_executed_and_its_error_passed_on() {
    let host = host_with(1);
    let answer = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.55.0.9/24", "gateway": "10.55.0.1"}],
                        "routes": [{"dst": "0.0.0.0/0"}], "dns": {}});
    let script = format!(
        "#!/bin/sh\ncat > /run/foreign/$CNI_COMMAND\n[ $CNI_COMMAND = ADD ] && echo '{answer}'\nexit 0\n"
    );
    host.write("/run/foreign/my-ipam", script);
    host.run("chmod 755 /run/foreign/my-ipam").ok();
    let mut one = chain(&host, "/var/run/netns/pod1");
    one.plugins = vec![
        json!({"type": "bridge", "bridge": "br-test", "isGateway": true, "ipam": {"type": "my-ipam", "colour": "red"}}),
    ];
    one.env = vec![("CNI_PATH".into(), "/run/foreign:/nowhere".into())];
    let result = one.add_ok();
    assert_eq!(result["ips"][0]["address"], "10.55.0.9/24", "{result}");
    assert_eq!(result["ips"][0]["interface"], 2, "{result}");
    let given = host.run("cat /run/foreign/ADD").ok().json();
    assert_eq!(given["ipam"]["colour"], "red", "{given}");
    one.check(&result).unwrap_or_else(|failure| panic!("CHECK: {}", failure.output));
    one.del_ok(Some(&result));
    host.run("test -s /run/foreign/DEL").ok();
    let failing = r#"#!/bin/sh
echo '{"cniVersion":"1.0.0","code":111,"msg":"no more colours"}'; [ $CNI_COMMAND != ADD ]
"#;
    host.write("/run/foreign/my-ipam", failing);
    let out = one.exec("ADD", 0, None);
    assert!(out.code != 0 && out.json()["code"] == 111 && out.stdout.contains("no more colours"), "{out}");
    tolerate_bridge_and_store(&host);
    host.tolerate("file /run/foreign");
}
