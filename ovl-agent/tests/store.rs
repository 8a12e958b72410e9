//! Containers do not reach the cluster's store, and all other users of it do. Needs root and etcd.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Child, Stdio};
use support::container::Container;
use support::lan::{ETCD, Lan};
use support::{Host, Space, eventually};

/// Where an operator's machine is, on a link of its own.
const OPERATOR: &str = "198.51.100.2";

/// A container of a bridge as the bridge plugin makes it: the bridge has Weft's label, and this group.
fn bridged(host: &Host, bridge: &str, number: u8, group: u32) -> Space {
    let container = Space::new();
    let (net, pid) = (format!("10.50.{number}"), container.pid());
    host.space.ok(&format!(
        "ip link add {bridge} group {group} type bridge && ip link set {bridge} alias weft:bridge up && \
         ip addr add {net}.1/24 dev {bridge} && \
         ip link add v{bridge} master {bridge} up type veth peer name eth0 netns {pid} && \
         nft add table ip nat{number} && \
         nft 'add chain ip nat{number} post {{ type nat hook postrouting priority 100; }}' && \
         nft add rule ip nat{number} post ip saddr {net}.0/24 oifname != {bridge} masquerade"
    ));
    container.ok(&format!(
        "ip addr add {net}.2/24 dev eth0 && ip link set eth0 up && ip route add default via {net}.1"
    ));
    container
}

/// A machine on another link of the host, which has 198.51.100.1 there.
fn operator(host: &Host) -> Space {
    let operator = Space::new();
    host.space.ok(&format!(
        "ip link add eth1 up type veth peer name eth0 netns {} && ip addr add 198.51.100.1/24 dev eth1 && \
         echo 1 > /proc/sys/net/ipv4/ip_forward",
        operator.pid()
    ));
    operator.ok(&format!(
        "ip addr add {OPERATOR}/24 dev eth0 && ip link set eth0 up && ip route add default via 198.51.100.1"
    ));
    operator
}

/// A server of nothing on a TCP port of all addresses, which shows that the way is open.
struct Server(Child);

impl Server {
    fn new(space: &Space, port: u16) -> Server {
        let program = format!(
            "import socket\ns = socket.create_server(('', {port}), backlog=64)\nwhile True: s.accept()[0].close()"
        );
        let server = space.command("python3").args(["-c", &program]).stdin(Stdio::null()).spawn().unwrap();
        eventually("it listens", || space.ok(&format!("ss -Htnl sport = :{port}")).contains("LISTEN"));
        Server(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a TCP connection is made. What is dropped takes the whole second.
fn connects(space: &Space, to: &str, port: u16) -> bool {
    let program = format!("import socket; socket.create_connection(('{to}', {port}), 1)");
    space.command("python3").args(["-c", &program]).stderr(Stdio::null()).status().unwrap().success()
}

#[track_caller]
fn assert_reached(space: &Space, to: &str, port: u16) {
    // A machine under load may lose a packet in the beginning, as neighbours are looked for.
    assert!((0..10).any(|_| connects(space, to, port)), "{to}:{port} is not reached");
}

#[track_caller]
fn assert_closed(space: &Space, to: &str, port: u16) {
    assert!(!connects(space, to, port), "{to}:{port} is reached");
}

const REMOTE: &str = "192.0.2.200";

#[test]
fn store_elsewhere_is_closed_to_containers_alone() {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    let _open = [2378, 2999].map(|port| Server::new(lan.switch(), port));
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    lan.switch().ok("ip route add 198.51.100.0/24 via 192.0.2.1");
    // h2 has no part in any network, and a bridge of an earlier version, which has no group.
    let agents = [h1.ready(&["--etcd", ETCD]), h2.ready(&["--etcd", ETCD])];
    h1.create("ov", &["10.42.0.0/16"]);
    let operator = operator(h1);
    let before = bridged(h2, "old", 2, 0);
    let bridge = bridged(h1, "new", 1, 0x5700_0000);
    let overlay = Container::new(h1, "ov", "c1");
    overlay.space.ok("ip route add default via 10.42.0.1 dev eth0 onlink");
    h1.space.ok(
        "nft add table ip nat9 && nft 'add chain ip nat9 post { type nat hook postrouting priority 100; }' && \
         nft add rule ip nat9 post ip saddr 10.42.0.0/16 oifname eth0 masquerade",
    );
    h2.space.ok("echo 1 > /proc/sys/net/ipv4/ip_forward");
    h2.sync();
    // A Service of the store's, and a published port that leads there.
    h1.space.ok(
        "nft add table ip svc && nft 'add chain ip svc pre { type nat hook prerouting priority -100; }' && \
         nft add rule ip svc pre ip daddr 10.96.0.1 tcp dport 443 dnat to 192.0.2.200:2379 && \
         nft add rule ip svc pre ip daddr 10.96.0.1 tcp dport 444 dnat to 192.0.2.200:2999",
    );
    for (name, space) in [("bridge", &bridge), ("old bridge", &before), ("overlay", &overlay.space)] {
        println!("{name}");
        assert_reached(space, REMOTE, 2999);
        assert_closed(space, REMOTE, 2379);
        // Which the member lists, and no flag names.
        eventually("the member's other port is closed", || !connects(space, REMOTE, 2378));
    }
    for space in [&bridge, &overlay.space] {
        assert_reached(space, "10.96.0.1", 444);
        assert_closed(space, "10.96.0.1", 443);
    }
    for space in [&operator, &h1.space, &h2.space] {
        assert_reached(space, REMOTE, 2379);
    }
    assert_reached(&operator, "10.96.0.1", 443);
    assert!(h2.space.ok("ip -d link show old").contains("group 1459617792"));
    // With the flag they do, and the rules are gone.
    drop(agents);
    let _agent = h1.ready(&["--etcd", ETCD, "--allow-store-from-containers"]);
    for space in [&bridge, &overlay.space] {
        assert_reached(space, REMOTE, 2379);
        assert_reached(space, "10.96.0.1", 443);
    }
    assert!(!h1.space.ok("nft list table inet weft-overlay").contains("jump stores"));
}

#[test]
fn store_on_the_node_is_closed_at_each_of_its_addresses() {
    let lan = Lan::new(2);
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    let data = tempfile::tempdir().unwrap();
    let mut etcd = h1.space.command("etcd");
    etcd.arg("--data-dir").arg(data.path()).args(["--listen-client-urls", "http://0.0.0.0:2379"]);
    etcd.args([
        "--advertise-client-urls",
        "http://localhost:2379",
        "--log-level",
        "error",
        "--unsafe-no-fsync",
    ]);
    etcd.args(["--listen-peer-urls", "http://127.0.0.1:2390"]);
    let _etcd =
        Server(etcd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    eventually("etcd answers", || h1.space.run("curl -sf http://127.0.0.1:2379/health").status.success());
    let _open = Server::new(&h1.space, 2999);
    // By a name, which has addresses that mean this node.
    let agents =
        [h1.ready(&["--etcd", "http://localhost:2379"]), h2.ready(&["--etcd", "http://192.0.2.1:2379"])];
    let (operator, bridge) = (operator(h1), bridged(h1, "new", 1, 0x5700_0000));
    let addresses = ["10.50.1.1", "192.0.2.1", "198.51.100.1"];
    for address in addresses {
        assert_reached(&bridge, address, 2999);
        assert_closed(&bridge, address, 2379);
        assert_reached(&operator, address, 2379);
    }
    // Other nodes need it, and their containers do not get it by their node's address.
    assert_reached(&h2.space, "192.0.2.1", 2379);
    let other = bridged(h2, "new", 2, 0x5700_0000);
    h2.space.ok("echo 1 > /proc/sys/net/ipv4/ip_forward");
    assert_reached(&other, "192.0.2.1", 2999);
    assert_closed(&other, "192.0.2.1", 2379);
    drop(agents);
    let _agent = h1.ready(&["--etcd", "http://localhost:2379", "--allow-store-from-containers"]);
    for address in addresses {
        assert_reached(&bridge, address, 2379);
    }
}

#[test]
fn connections_to_the_store_end_when_the_agent_comes() {
    let mut lan = Lan::new(1);
    lan.start_etcd();
    let h1 = &lan.hosts[0];
    h1.space.ok("echo 1 > /proc/sys/net/ipv4/ip_forward");
    let bridge = bridged(h1, "new", 1, 0x5700_0000);
    let program = "import http.client, time\n\
                   c = http.client.HTTPConnection('192.0.2.200', 2379, timeout=1)\n\
                   while True:\n c.request('GET', '/version'); c.getresponse().read(); print(1, flush=True)\n \
                   time.sleep(0.05)";
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = bridge.command("python3");
    command.args(["-c", program]).stdin(Stdio::null()).stderr(Stdio::null()).stdout(log.reopen().unwrap());
    let mut client = Server(command.spawn().unwrap());
    eventually("it talks", || std::fs::metadata(log.path()).unwrap().len() > 0);
    let _agent = h1.ready(&["--etcd", ETCD]);
    eventually("it is cut off", || client.0.try_wait().unwrap().is_some());
    // There is no other node and no network, so the table is for this alone.
    h1.space.ok("nft flush ruleset");
    let table = || h1.space.run("nft list table inet weft-overlay").stdout;
    eventually("the rules are back", || String::from_utf8_lossy(&table()).contains("jump stores"));
}

#[test]
fn embedded_store_makes_no_rules() {
    let host = Host::alone("h1");
    let _agent = host.ready(&[]);
    host.create("ov", &["10.42.0.0/16"]);
    let _container = Container::new(&host, "ov", "c1");
    host.sync();
    assert!(!host.space.ok("nft list table inet weft-overlay").contains("jump stores"));
}
