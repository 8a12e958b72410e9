//! What the packets of an attached container meet: masquerading, published ports.

use super::common::agent::Agent;
use super::common::{CLIENT, Host, SERVER, with};
use super::{add, host};
use serde_json::json;
use std::process::Child;

/// A server in a namespace, until it is dropped.
struct Server(Child);

impl Server {
    fn new(host: &Host, netns: &str, address: &str) -> Server {
        let mut command = host.command("ip");
        let server =
            command.args(["netns", "exec", netns, "python3", "-c", SERVER, address, "80"]).spawn().unwrap();
        let shown = if address.contains(':') { format!("[{address}]:80") } else { format!("{address}:80") };
        host.eventually(&format!("ip netns exec {netns} ss -ltn | grep -qF '{shown}'"));
        Server(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connects from a namespace, or with "" from the host; the address that the server saw.
fn get(host: &Host, from: &str, to: &str, port: u16) -> Option<String> {
    let enter = if from.is_empty() { String::new() } else { format!("ip netns exec {from} ") };
    let (success, text) = host.try_sh(&format!("{enter}python3 -c '{CLIENT}' {to} {port}"));
    success.then_some(text)
}

/// A second machine, 192.0.2.2 and 2001:db8::2, beside the host's 192.0.2.1 and 2001:db8::1.
fn far(host: &Host) {
    host.netns("far");
    host.sh(
        "ip link add wan type veth peer name wan netns far && ip addr add 192.0.2.1/24 dev wan && \
         ip addr add 2001:db8::1/64 dev wan nodad && ip link set wan up && ip -n far addr add 192.0.2.2/24 dev wan && \
         ip -n far addr add 2001:db8::2/64 dev wan nodad && ip -n far link set wan up && \
         ip -n far route add default via 192.0.2.1 && ip -n far -6 route add default via 2001:db8::1",
    );
    host.eventually(
        "ip netns exec far ping -qc1 -W1 192.0.2.1 && ip netns exec far ping -qc1 -W1 2001:db8::1",
    );
}

#[test]
fn what_leaves_the_network_is_masqueraded_unless_it_is_internal() {
    let (host, agent) = (host(), Agent::new());
    far(&host);
    let _servers = ["0.0.0.0", "::"].map(|address| Server::new(&host, "far", address));
    let conf = agent.conf("web");
    let masqueraded = add(&host, &conf, "c5");
    add(&host, &with(&conf, json!({"ipMasq": false})), "c6");
    assert_eq!(get(&host, "c5", "192.0.2.2", 80).as_deref(), Some("192.0.2.1"));
    assert_eq!(get(&host, "c5", "2001:db8::2", 80).as_deref(), Some("2001:db8::1"));
    assert_eq!(get(&host, "c6", "192.0.2.2", 80).as_deref(), Some("10.42.0.6"));
    let _more = Server::new(&host, "c6", "0.0.0.0");
    assert_eq!(get(&host, "c5", "10.42.0.6", 80).as_deref(), Some("10.42.0.5"), "within the network");
    agent.network(json!({"internal": true}));
    let internal = add(&host, &conf, "c7");
    assert_eq!(
        internal["routes"],
        json!([
        {"dst": "10.42.0.0/16", "gw": "10.42.0.1"}, {"dst": "fd00:42::/64", "gw": "fe80::1"}])
    );
    assert!(!host.sh("nft list ruleset").contains("c7"));
    assert_eq!(get(&host, "c7", "192.0.2.2", 80), None);
    assert_eq!(get(&host, "c7", "10.42.0.6", 80).as_deref(), Some("10.42.0.7"));
    agent.network(json!({}));
    let conf8 = with(&conf, json!({"isDefaultGateway": false}));
    let second = add(&host, &conf8, "c8");
    assert_eq!(second["routes"], internal["routes"]);
    for (id, conf, result) in [("c5", &conf, &masqueraded), ("c7", &conf, &internal), ("c8", &conf8, &second)]
    {
        let known = with(conf, json!({"prevResult": result}));
        host.about("CHECK", &known, id).run().ok();
        host.about("DEL", &known, id).run().ok();
    }
    host.eventually("test -z \"$(nft list ruleset)\"");
}

#[test]
fn exceptions_see_containers_own_address() {
    let (host, agent) = (host(), Agent::new());
    far(&host);
    host.sh("ip -n far addr add 192.0.2.3/24 dev wan && ip -n far addr add 2001:db8::3/64 dev wan nodad");
    let _servers = ["0.0.0.0", "::"].map(|address| Server::new(&host, "far", address));
    agent.network(json!({"options": {"non-masquerade-cidrs": "192.0.2.2/32,2001:db8::2/128"}}));
    let conf = agent.conf("web");
    let own = with(&conf, json!({"nonMasqueradeCIDRs": ["192.0.2.3/32"]}));
    let [first, second] = [("c5", &conf), ("c6", &own)].map(|(id, conf)| add(&host, conf, id));
    for (id, to, seen) in [
        ("c5", "192.0.2.2", "10.42.0.5"),
        ("c5", "192.0.2.3", "192.0.2.1"),
        ("c5", "2001:db8::2", "fd00:42::5"),
        ("c5", "2001:db8::3", "2001:db8::1"),
        ("c6", "192.0.2.2", "10.42.0.6"),
        ("c6", "192.0.2.3", "10.42.0.6"),
        ("c6", "2001:db8::3", "2001:db8::1"),
    ] {
        assert_eq!(get(&host, id, to, 80).as_deref(), Some(seen), "{id} to {to}");
    }
    for (id, conf, result) in [("c5", &conf, first), ("c6", &own, second)] {
        let known = with(conf, json!({"prevResult": result}));
        host.about("CHECK", &known, id).run().ok();
    }
    // By what the attachment has, not by what is configured by then.
    for id in ["c5", "c6"] {
        host.about("DEL", &conf, id).run().ok();
    }
    host.eventually("test -z \"$(nft list ruleset)\"");
}

#[test]
fn published_ports_answer_from_everywhere() {
    let (host, agent) = (host(), Agent::new());
    far(&host);
    let conf = agent.conf("web");
    let result = add(&host, &conf, "c5");
    add(&host, &conf, "c6");
    let _servers = ["0.0.0.0", "::"].map(|address| Server::new(&host, "c5", address));
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let map = json!({"cniVersion": "1.1.0", "name": "web", "type": "portmap", "prevResult": result,
        "runtimeConfig": {"portMappings": ports}});
    assert_eq!(host.about("ADD", &map, "c5").run().ok(), result);
    for (from, to) in [
        ("", "127.0.0.1"),
        ("", "192.0.2.1"),
        ("", "2001:db8::1"),
        ("far", "192.0.2.1"),
        ("far", "2001:db8::1"),
        ("c6", "192.0.2.1"),
        ("c6", "2001:db8::1"),
        ("c5", "192.0.2.1"),
        ("c5", "2001:db8::1"),
    ] {
        let seen = get(&host, from, to, 8080);
        assert!(seen.is_some(), "{from} to {to}: {}", host.sh("nft list ruleset; ip addr; ip route"));
        if from == "far" {
            assert_eq!(seen.as_deref(), Some(if to.contains(':') { "2001:db8::2" } else { "192.0.2.2" }));
        }
    }
    host.about("CHECK", &map, "c5").run().ok();
    host.about("DEL", &map, "c5").run().ok();
    host.about("DEL", &with(&conf, json!({"prevResult": result})), "c5").run().ok();
    assert_eq!(get(&host, "far", "192.0.2.1", 8080), None);
}
