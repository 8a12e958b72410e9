//! Networks: create, ls, inspect, rm, pools, isolation, and the conflist that a network is.

use crate::Site;
use serde_json::{Value, json};
use std::path::Path;
use tests::Host;

fn conflist(host: &Host, name: &str) -> Value {
    let files = host.run("cd /etc/weft/net.d && ls").ok();
    for file in files.text().lines() {
        let list: Value = host.run(&format!("cat /etc/weft/net.d/{file}")).ok().json();
        if list["name"] == name {
            return list;
        }
    }
    panic!("no conflist of {name} in {files}");
}

#[test]
fn host_bits_of_the_subnet_are_the_gateway() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let out = weft.run("run --rm --network testbridge ip -j route show default").ok();
    assert_eq!(out.json()[0]["gateway"], "192.168.10.1");
    weft.run("network create --subnet 192.168.30.99/24 other").ok();
    let out = weft.run("run --rm --network other ip -j -4 addr show scope global").ok();
    assert_eq!(
        out.json()[0]["addr_info"][0]["local"],
        "192.168.30.1",
        "the first address is not the gateway here"
    );
    let out = weft.run("run --rm --network other ip -j route show default").ok();
    assert_eq!(out.json()[0]["gateway"], "192.168.30.99");
    weft.run("network rm other").ok();
    site.finish();
}

#[test]
fn a_network_without_subnet_takes_the_first_pool_that_is_free() {
    let host = Host::new();
    host.link_machine("outside");
    host.run("ip addr add 172.18.5.1/24 dev uplink0").ok();
    host.note_baseline();
    let weft = host.weft();
    let subnet = |name: &str| {
        weft.run(&format!("network create {name}")).ok();
        let out = weft.run(&format!("run --rm --network {name} ip -j -4 route")).ok();
        let routes = out.json();
        let all = routes.as_array().cloned().unwrap_or_default();
        all.iter()
            .filter_map(|route| route["dst"].as_str())
            .find(|dst| dst.contains('/'))
            .unwrap_or("")
            .to_owned()
    };
    assert_eq!(subnet("one"), "172.17.0.0/16");
    assert_eq!(subnet("two"), "172.19.0.0/16", "172.18.0.0/16 overlaps the machine's 172.18.5.0/24");
    weft.run("network rm one two").ok();
}

#[test]
fn a_subnet_that_overlaps_is_refused() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let out = weft.run("network create --subnet 192.168.10.128/25 other").code(1);
    assert!(out.stderr.contains("192.168.10."), "{out}");
    let out = weft.run("network create --subnet 192.0.2.0/24 other").code(1);
    assert!(out.stderr.contains("192.0.2.0/24"), "{out}");
    site.finish();
}

#[test]
fn ls_and_inspect_show_a_network() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let out = weft.run("network ls").ok();
    assert!(out.stdout.starts_with("NETWORK ID"), "{out}");
    let line = out.stdout.lines().find(|line| line.contains("testbridge")).unwrap_or_default();
    assert!(line.contains("bridge"), "{out}");
    let names = weft.run("network ls --format json").ok();
    for line in names.text().lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
    let about = weft.run("network inspect testbridge").ok().json();
    assert_eq!(about[0]["Name"], "testbridge");
    assert_eq!(about[0]["Driver"], "bridge");
    let config = &about[0]["IPAM"]["Config"][0];
    assert_eq!((&config["Subnet"], &config["Gateway"]), (&json!("192.168.10.0/24"), &json!("192.168.10.1")));
    weft.run("network inspect no-such-network").code(1);
    site.finish();
}

#[test]
fn a_network_in_use_is_not_removed() {
    let site = Site::set_up();
    let www = site.www();
    let out = site.host.weft().run("network rm testbridge").code(1);
    assert!(out.stderr.contains("www"), "names who uses it: {out}");
    crate::is_page(site.host.run(&crate::page("127.0.0.1:8080")));
    www.remove();
    site.finish();
}

#[test]
fn a_network_is_a_conflist_that_the_executables_take() {
    let site = Site::set_up();
    let list = conflist(&site.host, "testbridge");
    let pod = site.host.netns_add("pod1");
    let plugins: Vec<Value> = list["plugins"].as_array().cloned().unwrap_or_default();
    let mut chain = site.host.cni(&tests::weft_cni(), &pod, plugins);
    chain.name = "testbridge".into();
    chain.version = list["cniVersion"].as_str().map(str::to_owned);
    chain.runtime = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let result = chain.add_ok();
    assert!(result["ips"][0]["address"].as_str().unwrap_or_default().starts_with("192.168.10."), "{result}");
    site.host.run_in("pod1", "ping -c1 -W2 192.168.10.1").ok();
    let mut server = site.host.spawn(
        "ip",
        &[
            "netns",
            "exec",
            "pod1",
            &tests::traffic().display().to_string(),
            "tcp-serve",
            "0.0.0.0:80",
            "pod1",
        ],
    );
    server.until("listening");
    let ask = format!("{} tcp 192.0.2.1:8080", tests::traffic().display());
    assert_eq!(site.outside(&ask).ok().text(), "pod1 192.0.2.2");
    drop(server);
    chain.check(&result).unwrap_or_else(|failure| panic!("CHECK: {}", failure.output));
    chain.del_ok(Some(&result));
    site.host.netns_del("pod1");
    site.finish();
}

#[test]
fn a_foreign_conflist_with_the_reference_plugins_works() {
    let host = Host::new();
    let list = json!({"cniVersion": "1.0.0", "name": "foreign", "plugins": [
        {"type": "bridge", "bridge": "br-foreign", "isGateway": true,
         "ipam": {"type": "host-local", "subnet": "10.44.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}]});
    host.write("/etc/weft/net.d/foreign.conflist", list.to_string());
    host.note_baseline();
    let weft = host.weft();
    let mut command = weft.command("run --rm --network foreign ip -j -4 addr show scope global");
    command.env("CNI_PATH", tests::REFERENCE);
    let out = command.output().unwrap();
    let shown = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{shown} {}", String::from_utf8_lossy(&out.stderr));
    assert!(shown.contains("10.44.0.2"), "{shown}");
    assert!(Path::new(tests::REFERENCE).exists());
    for what in ["br-foreign", "/var/lib/cni", "anycast"] {
        host.tolerate(what); // the reference's bridge and files stay
    }
}

#[test]
fn networks_are_isolated_from_each_other() {
    let site = Site::set_up();
    let weft = site.host.weft();
    weft.run("network create --subnet 192.168.20.0/24 second").ok();
    let one = weft.traffic_container("one", "--network testbridge", "tcp-serve [::]:7000 one");
    let two = weft.traffic_container("two", "--network second", "tcp-serve [::]:7000 two");
    one.until_listening(7000);
    let same = weft.traffic_container("same", "--network testbridge", "tcp-serve [::]:7000 same");
    let ask = format!("/traffic/weft-traffic tcp {}:7000 1500", one.address());
    assert!(same.sh(&ask).ok().text().starts_with("one "), "containers of one network reach each other");
    let out = two.sh(&ask);
    assert!(out.code != 0, "a container of another network got through: {out}");
    for container in [&one, &two, &same] {
        container.remove();
    }
    weft.run("network rm second").ok();
    site.finish();
}

#[test]
fn a_chosen_address_and_one_that_is_taken() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let c = weft.container("box", "--network testbridge --ip 192.168.10.50 sleep 1000");
    assert_eq!(c.address(), "192.168.10.50");
    let before = site.host.settled();
    let out = weft.run("run --rm --network testbridge --ip 192.168.10.50 true").code(125);
    assert!(out.stderr.contains("192.168.10.50"), "{out}");
    weft.run("run --rm --network testbridge --ip 10.0.0.1 true").code(125);
    site.host.assert_still(&before);
    c.remove();
    site.finish();
}

#[test]
fn leases_are_listed_and_released_by_hand() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let c = weft.container("box", "--network testbridge sleep 1000");
    let out = weft.run("ipam ls").ok();
    assert!(out.stdout.contains(&c.address()) && out.stdout.contains("testbridge"), "{out}");
    let json = weft.run("ipam ls --format json").ok();
    assert!(json.stdout.contains(&c.address()), "{json}");
    c.remove();
    site.finish();
}
