//! portmap after a bridge: published ports answer from everywhere they should, and go without a trace.

#![allow(clippy::unwrap_used)]

mod common;

use common::{CLIENT, Host, SERVER, address, bridge, with};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};

struct Published {
    host: Host,
    /// The bridge's configuration.
    web: Value,
    /// portmap's, with the result of the bridge's ADD.
    map: Value,
    result: Value,
    servers: Vec<std::process::Child>,
}

impl Drop for Published {
    fn drop(&mut self) {
        self.stop();
    }
}

fn portmap(ports: Value) -> Value {
    json!({"cniVersion": "1.1.0", "name": "web", "type": "portmap", "runtimeConfig": {"portMappings": ports}})
}

/// A host with a link to a second machine (192.0.2.2), and container c1 with a server on port 80 behind port 8080.
fn published(ports: Value, keys: Value) -> Published {
    let host = Host::new();
    host.netns("c1");
    host.netns("far");
    host.sh(
        "ip link add wan type veth peer name wan netns far && ip addr add 192.0.2.1/24 dev wan && ip link set wan up && \
         ip -n far addr add 192.0.2.2/24 dev wan && ip -n far link set wan up && ip -n far route add default via 192.0.2.1",
    );
    // Where frames of bridges pass through the IP firewall (br_netfilter), a container reaches itself only by hairpin.
    let mut web = with(&bridge("web", "10.5.0.0/24"), json!({"ipMasq": true, "hairpinMode": true}));
    web["ipam"]["ranges"] = json!([[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd00:5::/64"}]]);
    let result = host.about("ADD", &web, "c1").run().ok();
    let map = with(&with(&portmap(ports), keys), json!({"prevResult": result}));
    let mut published = Published { host, web, map, result, servers: Vec::new() };
    for address in ["0.0.0.0", "::"] {
        published.serve("c1", address, 80);
    }
    let passed_on = published.host.about("ADD", &published.map, "c1").run().ok();
    assert_eq!(passed_on, published.result);
    published
}

impl Published {
    /// Ends the servers: while they live, so do their namespaces.
    fn stop(&mut self) {
        for mut server in self.servers.drain(..) {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    fn serve(&mut self, id: &str, address: &str, port: u16) {
        let mut command = self.host.command("ip");
        let port = port.to_string();
        command.args(["netns", "exec", id, "python3", "-c", SERVER, address, &port]);
        self.servers.push(command.spawn().unwrap());
        let shown =
            if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
        self.host.eventually(&format!("ip netns exec {id} ss -ltn | grep -qF '{shown}'"));
    }

    /// Connects from a namespace, or with "" from the host; the address that the server saw.
    fn get(&self, from: &str, to: &str, port: u16) -> Option<String> {
        let enter = if from.is_empty() { String::new() } else { format!("ip netns exec {from} ") };
        let (success, text) = self.host.try_sh(&format!("{enter}python3 -c '{CLIENT}' {to} {port}"));
        success.then_some(text)
    }
}

fn tcp(host: u16, container: u16) -> Value {
    json!([{"hostPort": host, "containerPort": container, "protocol": "tcp"}])
}

#[test]
fn a_published_port_answers_from_everywhere() {
    let mut published = published(tcp(8080, 80), json!({}));
    published.host.netns("c2");
    published.host.about("ADD", &published.web, "c2").run().ok();
    let own = address(&published.result, 0);
    for (from, to) in
        [("", "127.0.0.1"), ("", "192.0.2.1"), ("far", "192.0.2.1"), ("c2", "192.0.2.1"), ("c1", "192.0.2.1")]
    {
        let seen = published.get(from, to, 8080);
        assert!(seen.is_some(), "{from} to {to}: {}", published.host.sh("nft list ruleset; ip addr"));
        if from == "far" {
            // The container sees who it is that comes from afar.
            assert_eq!(seen.as_deref(), Some("192.0.2.2"));
        }
    }
    assert_eq!(published.get("", "fd00:5::1", 8080).as_deref().map(|seen| seen.contains(':')), Some(true));
    // A port of another machine that has the same number is not taken.
    published.serve("far", "0.0.0.0", 8080);
    assert_eq!(
        published.get("c1", "192.0.2.2", 8080).as_deref(),
        Some("192.0.2.1"),
        "masqueraded, not redirected"
    );
    let check = with(&published.map, json!({"prevResult": published.result}));
    published.host.about("CHECK", &check, "c1").run().ok();
    assert_ne!(own, "");
}

#[test]
fn del_leaves_nothing_also_without_the_ports_and_the_result() {
    for keys in [json!({}), json!({"runtimeConfig": null}), json!({"prevResult": null, "runtimeConfig": {}})]
    {
        let published = published(tcp(8080, 80), json!({}));
        let host = &published.host;
        let map = with(&published.map, keys);
        for _ in 0..2 {
            host.about("DEL", &map, "c1").run().ok();
        }
        assert_eq!(published.get("far", "192.0.2.1", 8080), None);
        host.about("DEL", &published.web, "c1").run().ok();
        host.eventually("test -z \"$(nft list ruleset)\"");
    }
}

#[test]
fn a_taken_port_is_refused_by_name_and_one_of_a_dead_container_is_not() {
    let mut published = published(tcp(8080, 80), json!({}));
    published.stop();
    let host = &published.host;
    host.netns("c2");
    let result = host.about("ADD", &published.web, "c2").run().ok();
    let before = host.sh("nft list ruleset");
    let map = with(&published.map, json!({"prevResult": result}));
    let refused = host.about("ADD", &map, "c2").run();
    assert_eq!(refused.code(), 104);
    assert!(refused.text().contains("8080") && refused.text().contains("web/c1/eth0"), "{}", refused.text());
    assert_eq!(host.sh("nft list ruleset"), before);
    host.sh("ip netns del c1");
    host.eventually("test $(ip -o link show master br0 | wc -l) = 1");
    host.about("ADD", &map, "c2").run().ok();
    assert!(host.sh("nft list ruleset").contains("web/c2/eth0"));
}

#[test]
fn a_port_of_one_address_is_not_reached_by_another() {
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}]);
    let published = published(ports, json!({}));
    assert!(published.get("", "127.0.0.1", 8080).is_some());
    assert_eq!(published.get("far", "192.0.2.1", 8080), None);
    // Neither by a route to the host's loopback.
    published.host.sh("ip netns exec far sh -c 'ip route add 127.0.0.0/8 via 192.0.2.1 table 7 && \
        echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet && ip rule add to 127.0.0.1 pref 0 table 7 && ip rule del pref 0 lookup local; true'");
    assert_eq!(published.get("far", "127.0.0.1", 8080), None);
}

#[test]
fn iptables_does_the_same() {
    let published = published(tcp(8080, 80), json!({"backend": "iptables"}));
    assert!(published.host.sh("iptables-save -t nat").contains("8080"));
    for (from, to) in [("", "127.0.0.1"), ("", "192.0.2.1"), ("far", "192.0.2.1"), ("c1", "192.0.2.1")] {
        assert!(published.get(from, to, 8080).is_some(), "{from} to {to}");
    }
    published.host.about("DEL", &published.map, "c1").run().ok();
    assert_eq!(published.get("far", "192.0.2.1", 8080), None);
    assert!(!published.host.sh("iptables-save -t nat").contains("8080"));
}

/// A service on the host's loopback is closed to the containers of a bridge, also when its last port went.
fn loopback_stays_closed(bridge_is_foreign: bool, backend: &str, masquerades: bool) {
    let host = Host::new();
    if bridge_is_foreign {
        host.sh("ip link add br0 type bridge && ip link set br0 up");
    }
    let web = with(&bridge("web", "10.5.0.0/24"), json!({"ipMasq": masquerades}));
    let mut maps = Vec::new();
    for (at, id) in ["c1", "c2"].into_iter().enumerate() {
        host.netns(id);
        let result = host.about("ADD", &web, id).run().ok();
        let ports = tcp(8080 + at as u16, 80);
        maps.push(with(&with(&portmap(ports), json!({"backend": backend})), json!({"prevResult": result})));
        host.about("ADD", &maps[at], id).run().ok();
    }
    host.sh(
        "ip netns exec c2 sh -c 'ip route add 127.0.0.0/8 via 10.5.0.1 table 7 && ip rule add to 127.0.0.1 pref 0 table 7 && \
         ip rule del pref 0 lookup local && echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet'",
    );
    // Ahead of every rule of Weft's, so that a lost packet is a dropped one.
    let count = "nft 'add table ip count; add chain ip count in { type filter hook prerouting priority -400; }; \
                 add chain ip count up { type filter hook input priority 400; }; \
                 add rule ip count in iifname br0 ip daddr 127.0.0.1 counter; \
                 add rule ip count up iifname br0 ip daddr 127.0.0.1 counter'";
    host.sh(count);
    for (at, id) in ["c1", "c2"].into_iter().enumerate() {
        host.about("DEL", &maps[at], id).run().ok();
        host.try_sh("ip netns exec c2 ping -qc1 -W1 -I 10.5.0.3 127.0.0.1");
        let counters = host.sh("nft list table ip count | grep -o 'packets [0-9]*'");
        let [sent, received] = counters.lines().collect::<Vec<_>>()[..] else { panic!("{counters}") };
        assert_ne!(sent, "packets 0", "no packet reached the host's filter");
        assert_eq!(received, "packets 0", "after DEL of {id}");
    }
    host.eventually("test $(cat /proc/sys/net/ipv4/conf/br0/route_localnet) = 0");
    host.sh("nft delete table ip count");
    if !masquerades {
        host.about("DEL", &web, "c1").run().ok();
        host.about("DEL", &web, "c2").run().ok();
        host.eventually("! nft list table inet weft 2>/dev/null");
        let rules = host.sh("nft list ruleset; iptables-save");
        assert!(!rules.to_lowercase().contains("weft"), "{rules}");
    }
}

#[test]
fn loopback_after_last_port_stays_closed() {
    loopback_stays_closed(false, "nftables", false);
}

#[test]
fn loopback_of_foreign_bridge_stays_closed() {
    loopback_stays_closed(true, "nftables", false);
}

#[test]
fn loopback_with_masquerade_stays_closed() {
    loopback_stays_closed(true, "nftables", true);
}

#[test]
fn loopback_under_iptables_stays_closed() {
    loopback_stays_closed(true, "iptables", false);
}

#[test]
fn conditions_choose_iptables_by_themselves() {
    let conditions = json!({"conditionsV4": ["!", "-s", "192.0.2.2"], "conditionsV6": []});
    let published = published(tcp(8080, 80), conditions);
    assert_eq!(published.get("far", "192.0.2.1", 8080), None);
    assert!(published.get("", "192.0.2.1", 8080).is_some());
    let contradiction = with(&published.map, json!({"backend": "nftables"}));
    assert_eq!(published.host.about("ADD", &contradiction, "c1").run().code(), 7);
}

#[test]
fn conditions_in_words_of_nft_work_with_its_backend() {
    for backend in ["nftables", ""] {
        let conditions = json!({"backend": backend, "conditionsV4": ["ip", "saddr", "!=", "192.0.2.2"],
            "conditionsV6": ["ip6 saddr ::/0"]});
        let published = published(tcp(8080, 80), conditions);
        assert_eq!(published.get("far", "192.0.2.1", 8080), None);
        assert!(published.get("", "192.0.2.1", 8080).is_some());
        published.host.about("CHECK", &published.map, "c1").run().ok();
        published.host.about("DEL", &published.map, "c1").run().ok();
        published.host.sh("! nft list ruleset | grep WEFT");
    }
    let host = Host::new();
    host.netns("c1");
    let unknown = with(
        &portmap(tcp(8080, 80)),
        json!({"backend": "nftables", "conditionsV4": ["ip ttl 5"],
        "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.5.0.2/24"}]}}),
    );
    let refused = host.about("ADD", &unknown, "c1").run();
    assert!(refused.code() == 7 && refused.text().contains("ip ttl"), "{}", refused.text());
}

/// Sends a datagram every 20 ms from one socket, so that the kernel never forgets the connection; prints what comes back.
const UDP_CLIENT: &str = "import socket,sys,time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.02)
s.bind((\"192.0.2.2\", 5555))
end = time.time() + float(sys.argv[1])
seen = []
while time.time() < end:
    s.sendto(b\"?\", (\"192.0.2.1\", 5353))
    try:
        word = s.recvfrom(100)[0].decode()
        if word not in seen:
            seen.append(word)
            print(word, flush=True)
    except OSError:
        time.sleep(0.02)
";

const UDP_SERVER: &str = "import socket,sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((\"0.0.0.0\", 53))
while True:
    a = s.recvfrom(100)[1]
    s.sendto(sys.argv[1].encode(), a)
";

#[test]
fn udp_that_flows_already_reaches_the_new_container() {
    let ports = json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]);
    let mut published = published(ports, json!({}));
    published.host.netns("c2");
    let second = published.host.about("ADD", &published.web, "c2").run().ok();
    for id in ["c1", "c2"] {
        let mut command = published.host.command("ip");
        published
            .servers
            .push(command.args(["netns", "exec", id, "python3", "-c", UDP_SERVER, id]).spawn().unwrap());
    }
    let mut client = published.host.command("ip");
    client
        .args(["netns", "exec", "far", "python3", "-c", UDP_CLIENT, "30"])
        .stdout(std::process::Stdio::piped());
    let mut client = client.spawn().unwrap();
    let mut seen = BufReader::new(client.stdout.take().unwrap()).lines();
    assert_eq!(seen.next().unwrap().unwrap(), "c1");
    published.host.about("DEL", &published.map, "c1").run().ok();
    let map = with(&published.map, json!({"prevResult": second}));
    published.host.about("ADD", &map, "c2").run().ok();
    assert_eq!(seen.next().unwrap().unwrap(), "c2");
    client.kill().unwrap();
    client.wait().unwrap();
}

#[test]
fn without_ports_the_result_is_passed_on_and_nothing_is_made() {
    let host = Host::new();
    let result = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.5.0.2/24"}]});
    let conf = with(&portmap(json!([])), json!({"prevResult": result}));
    assert_eq!(host.about("ADD", &conf, "c1").run().ok(), result);
    assert_eq!(host.sh("nft list ruleset"), "");
    assert_eq!(host.about("ADD", &portmap(json!([])), "c1").run().code(), 7);
}

#[test]
fn gc_takes_back_the_ports_of_stale_containers() {
    let published = published(tcp(8080, 80), json!({}));
    let valid = |list: Value| with(&published.map, json!({"cni.dev/valid-attachments": list}));
    published.host.call("GC", &valid(json!([{"containerID": "c1", "ifname": "eth0"}]))).run().ok();
    assert!(published.get("far", "192.0.2.1", 8080).is_some());
    published.host.call("GC", &valid(json!([]))).run().ok();
    assert_eq!(published.get("far", "192.0.2.1", 8080), None);
}

#[test]
fn status_says_whether_there_is_a_firewall() {
    let host = Host::new();
    host.call("STATUS", &portmap(json!([]))).run().ok();
}

/// As `tcp`, of many ports of the host.
fn tcps(ports: std::ops::RangeInclusive<u16>) -> Value {
    ports.flat_map(|port| tcp(port, 80).as_array().unwrap().clone()).collect()
}

/// A DEL's system calls on sockets, its child's not among them.
fn calls_of_del(host: &Host, map: &Value, id: &str) -> usize {
    let (_scratch, dir) = common::scratch();
    let trace = dir.join("trace");
    let strace = ["strace", "-qq", "-e", "trace=recvfrom,sendto", "-o", trace.to_str().unwrap()];
    host.about("DEL", map, id).under(&strace).run().ok();
    std::fs::read_to_string(trace).unwrap().lines().count()
}

/// How many ports are published does not matter to a DEL, as long as they are others'.
#[test]
fn del_among_many_ports_reads_only_its_own() {
    let published = published(tcp(8080, 80), json!({}));
    let host = &published.host;
    ["c2", "c3"].iter().for_each(|id| drop(host.netns(id)));
    let [c2, c3] = ["c2", "c3"].map(|id| host.about("ADD", &published.web, id).run().ok());
    let of = |ports: Value| with(&portmap(ports), json!({"prevResult": c3}));
    let none = of(json!([]));
    let cases = [
        ("none", none.clone(), none.clone()),
        ("as configured", of(tcp(8081, 80)), of(tcp(8081, 80))),
        ("not configured any more", of(tcp(8081, 80)), none),
        ("configured otherwise", of(tcp(8081, 80)), of(tcp(8082, 80))),
        ("many", of(tcps(8100..=8299)), of(tcps(8100..=8299))),
    ];
    let measure = || {
        let measure = |(what, add, del): &(&str, Value, Value)| {
            host.about("ADD", add, "c3").run().ok();
            let calls = calls_of_del(host, del, "c3");
            assert!(!host.sh("nft list ruleset").contains("web/c3/eth0\" : "), "{what}");
            calls
        };
        cases.each_ref().map(measure)
    };
    let alone = measure();
    let crowd = with(&portmap(tcps(20_000..=60_000)), json!({"prevResult": c2}));
    host.about("ADD", &crowd, "c2").run().ok();
    let crowded = measure();
    for (at, (what, ..)) in cases.iter().enumerate() {
        assert!(crowded[at] <= alone[at] + 10, "{what}: {} calls, alone {}", crowded[at], alone[at]);
    }
    // Its own are all there is to it.
    host.about("DEL", &crowd, "c2").run().ok();
    assert!(!host.sh("nft list ruleset").contains("web/c2/eth0\" : "));
}

/// The attachment's ports that are left.
fn left(host: &Host) -> Vec<String> {
    let rules = host.sh("nft list ruleset");
    let left = rules.lines().flat_map(|line| line.split(',')).filter(|part| part.contains("web/c1/eth0"));
    // What the bridge has is another DEL's.
    left.filter(|part| part.contains(" : ")).map(str::to_owned).collect()
}

#[test]
fn del_after_changed_ports_leaves_none() {
    let published = published(tcps(8080..=8082), json!({}));
    let host = &published.host;
    let with_ports = |ports: Value| with(&published.map, json!({"runtimeConfig": {"portMappings": ports}}));
    let record = || host.sh("find /run -path '*rules*' -name 'web:c1:eth0.ports*'");
    let add = |ports: Value| host.about("ADD", &with_ports(ports), "c1").run().ok();
    let del = |what: &str, ports: Value| {
        host.about("DEL", &with_ports(ports), "c1").run().ok();
        assert_eq!(left(host), Vec::<String>::new(), "{what}");
        assert_eq!(record(), "", "{what}");
    };
    del("fewer are configured", tcp(8080, 80));
    add(tcp(8080, 80));
    del("others are configured", tcp(8090, 80));
    add(tcp(8080, 80));
    add(tcp(8081, 80));
    del("the second of two ADDs is configured", tcp(8081, 80));
    add(tcp(8080, 80));
    add(json!([]));
    del("none is configured after the second ADD", json!([]));
    add(json!([]));
    add(tcp(8080, 80));
    del("none is configured", json!([]));
    add(tcps(8080..=8081));
    host.sh(&format!("rm {}", record()));
    del("there is no record", tcp(8080, 80));
    add(tcps(8080..=8081));
    host.sh(&format!("sed -i '/8081/d' {}", record()));
    del("the record lacks a configured port", tcps(8080..=8081));
    add(tcps(8080..=8081));
    host.sh(&format!("sed -i s/8081/8091/ {}", record()));
    del("the record has other ports", tcp(8080, 80));
    add(tcps(8080..=8081));
    host.sh(&format!("sed -i '$d' {}", record()));
    del("the record is cut off", tcp(8080, 80));
}

/// A DEL that is killed anywhere, and an ADD of the same attachment with another port before the next one.
#[test]
fn del_after_killed_del_and_other_ports_leaves_none() {
    let published = published(tcp(8080, 80), json!({}));
    let host = &published.host;
    let other = |ports| with(&published.map, json!({"runtimeConfig": {"portMappings": ports}}));
    let places = host.recorded(host.about("DEL", &published.map, "c1"));
    for place in places
        .iter()
        .filter(|(name, _)| name.starts_with("send") || name.contains("link") || name.contains("rename"))
    {
        for ports in [tcp(8081, 80), json!([])] {
            host.about("ADD", &published.map, "c1").run().ok();
            host.about("DEL", &published.map, "c1").killed_at(place);
            host.about("ADD", &other(ports.clone()), "c1").run().ok();
            host.about("DEL", &other(ports), "c1").run().ok();
            assert_eq!(left(host), Vec::<String>::new(), "killed at {place:?}");
        }
    }
}
