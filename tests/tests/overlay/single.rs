//! One host with the agent's own store: `runtime network create --driver overlay`, containers on it, and nothing left.

use serde_json::{Value, json};
use std::cell::RefCell;
use std::time::{Duration, Instant};
use tests::{Agent, Container, Host, Machine, Output, Running};

/// A machine with another one on its link, an agent, and the network `ov`.
struct Site {
    host: Host,
    agent: RefCell<Option<Agent>>,
}

const FLAGS: &str = "--node-name host1 --interface uplink0";

impl Site {
    #[track_caller]
    fn set_up() -> Site {
        let site = Site::without_network();
        site.host
            .weft()
            .run("network create --driver overlay --subnet 10.42.0.0/16 --subnet fd42::/64 --label tier=web ov")
            .ok();
        site
    }

    #[track_caller]
    fn without_network() -> Site {
        let host = Host::new();
        host.link_machine("outside");
        let agent = host.agent(FLAGS);
        host.note_baseline();
        Site { host, agent: RefCell::new(Some(agent)) }
    }

    /// The agent, taken out to be ended.
    #[track_caller]
    fn agent(&self) -> Agent {
        self.agent.take().unwrap_or_else(|| panic!("no agent runs"))
    }

    /// The agent runs again.
    #[track_caller]
    fn agent_returns(&self) {
        *self.agent.borrow_mut() = Some(self.host.agent(FLAGS));
    }

    /// A container on these networks that answers on port 7000 with its name.
    #[track_caller]
    fn server(&self, name: &str, options: &str) -> Container<'_> {
        let server =
            self.host.weft().traffic_container(name, options, &format!("tcp-serve [::]:7000 {name}"));
        server.until_listening(7000);
        server
    }

    /// Asks a server of [`Site::server`] from the other machine.
    #[track_caller]
    fn outside(&self, address: &str) -> Output {
        self.host.run_in("outside", &ask(address))
    }

    /// A server on the other machine, at port 9000.
    #[track_caller]
    fn far(&self) -> Running {
        let traffic = tests::traffic().display().to_string();
        self.host.spawn("ip", &["netns", "exec", "outside", &traffic, "tcp-serve", "0.0.0.0:9000", "far"])
    }

    /// Removes these networks; nothing may use them, and nothing may be left of them but what the agent keeps.
    #[track_caller]
    fn finish(self, networks: &str) {
        self.host.weft().run(&format!("network rm {networks}")).ok();
        self.host.assert_as_before();
        self.end();
    }

    /// The agent goes too, with all that it keeps.
    #[track_caller]
    fn end(self) {
        self.agent().stop(&self.host);
        self.host.run("rm -r /var/lib/weft/ovl-agent; rmdir /var/lib/weft /run/weft; true");
        let left = self.host.settled();
        let left: Vec<&str> = left.lines().filter(|line| line.contains("ovl-agent")).collect();
        assert!(left.is_empty(), "{left:?}");
        self.host.note_baseline();
    }
}

fn ask(address: &str) -> String {
    format!("{} tcp {address} 1500", tests::traffic().display())
}

/// A server's answer on port 7000, asked from another container.
#[track_caller]
fn answer(from: &Container<'_>, address: &str) -> Output {
    from.sh(&format!("/traffic/weft-traffic tcp {address}:7000 1500"))
}

fn file(host: &Host) -> Value {
    host.run("cat /etc/weft/net.d/ov.conflist").ok().json()
}

#[test]
fn containers_reach_each_other_by_both_families_and_with_the_first_packet() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let one = site.server("one", "--network ov");
    let two = weft.traffic_container("two", "--network ov", "tcp-serve [::]:7000 two");
    assert!(one.address().starts_with("10.42.") && one.address6().starts_with("fd42::"), "{}", one.inspect());
    one.sh(&format!("ping -c1 -W2 {}", two.address())).ok();
    one.sh(&format!("ping -c1 -W2 {}", two.address6())).ok();
    two.until_listening(7000);
    assert!(answer(&two, &one.address()).ok().text().starts_with("one "));
    assert!(answer(&one, &format!("[{}]", two.address6())).ok().text().starts_with("two "));
    // The host reaches them too.
    assert!(site.host.run(&ask(&format!("{}:7000", one.address()))).ok().text().starts_with("one "));
    one.remove();
    two.remove();
    site.finish("ov");
}

#[test]
fn a_published_port_answers_and_nothing_else_does() {
    let site = Site::set_up();
    let www = site.server("www", "--network ov -p 8080:7000");
    let other = site.server("other", "--network ov");
    assert_eq!(site.outside(&format!("{}:8080", Machine::HOST)).ok().text(), "www 192.0.2.2");
    assert!(site.host.run(&ask("127.0.0.1:8080")).ok().text().starts_with("www "));
    // Through the host's address, from the network and from the container itself.
    for from in [&other, &www] {
        let out = from.sh(&format!("/traffic/weft-traffic tcp {}:8080 1500", Machine::HOST));
        assert!(out.code == 0 && out.text().starts_with("www "), "{out}");
    }
    site.host.run_in("outside", &format!("ip route add 10.42.0.0/16 via {}", Machine::HOST)).ok();
    let out = site.outside(&format!("{}:7000", other.address()));
    assert!(out.code != 0, "a port that is not published answers outside: {out}");
    site.host.run_in("outside", "ip route del 10.42.0.0/16").ok();
    // Out of the network, with the host's address.
    let mut server = site.far();
    server.until("listening");
    let out = other.sh(&format!("/traffic/weft-traffic tcp {}:9000 1500", Machine::ADDRESS)).ok();
    assert_eq!(out.text(), format!("far {}", Machine::HOST));
    drop(server);
    www.remove();
    other.remove();
    site.finish("ov");
}

#[test]
fn ls_and_inspect_show_the_network_its_host_blocks_and_endpoints() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let one = site.server("one", "--network ov");
    let line = weft.run("network ls --format '{{.Name}} {{.Driver}} {{.Scope}} {{.IPv6}}'").ok();
    assert_eq!(line.text(), "ov overlay global true");
    let about = weft.run("network inspect ov").ok().json();
    let about = &about[0];
    assert_eq!((&about["Driver"], &about["Scope"]), (&json!("overlay"), &json!("global")));
    assert_eq!(about["Labels"], json!({"tier": "web"}));
    assert_eq!(about["IPAM"]["Config"][0], json!({"Subnet": "10.42.0.0/16", "Gateway": "10.42.0.1"}));
    assert_eq!(about["Containers"][&one.id]["IPv4Address"], format!("{}/16", one.address()));
    assert_eq!(about["Peers"][0]["Name"], "host1");
    assert_eq!(
        (&about["Peers"][0]["IP"], &about["Peers"][0]["Alive"]),
        (&json!(Machine::HOST), &json!(true))
    );
    assert_eq!(about["Options"]["encap"], "vxlan");
    let v4: Vec<&Value> = about["Weft"]["Blocks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|block| block["Block"].as_str().unwrap_or_default().starts_with("10.42."))
        .collect();
    assert_eq!((v4.len(), &v4[0]["Host"]), (1, &json!("host1")), "{about}");
    let device = about["Weft"]["Device"].as_str().unwrap();
    site.host.run(&format!("ip -d link show {device} | grep -q 'vxlan id {}'", about["Weft"]["VNI"])).ok();
    // Endpoints are told to the store a moment later.
    let start = Instant::now();
    loop {
        let shown = weft.run("network inspect -f '{{json .Weft.Endpoints}}' ov").ok().json();
        if shown[0]["Container"] == one.id {
            assert_eq!(shown[0]["Host"], "host1");
            assert_eq!(shown[0]["Addresses"], json!([one.address(), one.address6()]));
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "never among the endpoints: {shown}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let endpoint = one.inspect()["NetworkSettings"]["Networks"]["ov"].clone();
    assert_eq!(endpoint["IPAddress"], one.address());
    assert_eq!((&endpoint["IPPrefixLen"], &endpoint["Gateway"]), (&json!(16), &json!("10.42.0.1")));
    assert_eq!(endpoint["NetworkID"], about["Id"]);
    assert_eq!(endpoint["GlobalIPv6Address"], one.address6());
    one.remove();
    site.finish("ov");
}

#[test]
fn a_network_in_use_is_not_removed() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let one = site.server("one", "--network ov");
    let out = weft.run("network rm ov").code(1);
    assert!(out.stderr.contains("one"), "names who uses it: {out}");
    weft.run("network prune -f").ok();
    assert!(weft.run("network ls -q").ok().text().len() == 12);
    site.host.run(&ask(&format!("{}:7000", one.address()))).ok();
    one.remove();
    assert!(weft.run("network prune -f").ok().stdout.contains("ov"));
    site.host.assert_as_before();
    site.end();
}

#[test]
fn addresses_and_hardware_addresses_that_are_asked_for() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let options = "--network ov --ip 10.42.200.7 --ip6 fd42::77 --mac-address 02:42:00:00:00:07";
    let one = site.server("one", options);
    assert_eq!((one.address().as_str(), one.address6().as_str()), ("10.42.200.7", "fd42::77"));
    one.sh("grep -q 02:42:00:00:00:07 /sys/class/net/eth0/address").ok();
    let two = site.server("two", "--network ov");
    assert!(answer(&two, "10.42.200.7").ok().text().starts_with("one "));
    let before = site.host.settled();
    let out = weft.run("run --rm --network ov --ip 10.42.200.7 true").code(125);
    assert!(out.stderr.contains("10.42.200.7"), "{out}");
    for wrong in ["--ip 10.43.0.1", "--ip 10.42.0.0", "--ip 10.42.0.1", "--ip6 fd43::1"] {
        let out = weft.run(&format!("run --rm --network ov {wrong} true")).code(125);
        assert!(out.stderr.contains(wrong.rsplit(' ').next().unwrap()), "{out}");
    }
    site.host.assert_still(&before);
    one.remove();
    two.remove();
    // It is free again.
    site.server("one", options).remove();
    site.finish("ov");
}

#[test]
fn overlay_and_bridge_at_once() {
    let site = Site::set_up();
    let weft = site.host.weft();
    weft.run("network create --subnet 192.168.10.0/24 web").ok();
    let both = site.server("both", "--network ov --network web -p 8080:7000");
    let addresses = both.sh("ip -br -4 addr show scope global").ok();
    assert!(addresses.stdout.contains("10.42.") && addresses.stdout.contains("192.168.10."), "{addresses}");
    let default = both.sh("ip -j route show default").ok().json();
    assert_eq!(default.as_array().map(Vec::len), Some(1), "{default}");
    assert_eq!(default[0]["gateway"], "10.42.0.1", "the one with most families");
    let one = site.server("one", "--network ov");
    let two = site.server("two", "--network web");
    for from in [&one, &two] {
        let to = if from.name == "one" { both.address() } else { both_on(&both, "eth1") };
        assert!(answer(from, &to).ok().text().starts_with("both "), "{to}");
    }
    assert_eq!(site.outside(&format!("{}:8080", Machine::HOST)).ok().text(), "both 192.0.2.2");
    // The networks stay apart for those that are on one of them.
    assert!(answer(&two, &one.address()).code != 0);
    assert!(answer(&one, &two.address()).code != 0);
    for container in [&both, &one, &two] {
        container.remove();
    }
    site.finish("ov web");
}

/// A container's IPv4 address on one of its interfaces.
#[track_caller]
fn both_on(container: &Container<'_>, interface: &str) -> String {
    let shown = container.sh(&format!("ip -j -4 addr show dev {interface}")).ok().json();
    shown[0]["addr_info"][0]["local"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn two_overlay_networks_are_apart() {
    let site = Site::set_up();
    let weft = site.host.weft();
    weft.run("network create --driver overlay --subnet 10.43.0.0/16 other").ok();
    let one = site.server("one", "--network ov");
    let two = site.server("two", "--network other");
    // Each answers those of its own network, so that silence is the other network's doing.
    let near = [site.server("near-one", "--network ov"), site.server("near-two", "--network other")];
    for (server, same, other) in [(&one, &near[0], &near[1]), (&two, &near[1], &near[0])] {
        assert!(answer(same, &server.address()).ok().text().starts_with(&format!("{} ", server.name)));
        let out = answer(other, &server.address());
        assert!(out.code != 0, "a container of another overlay network got through: {out}");
    }
    for container in [&one, &two, &near[0], &near[1]] {
        container.remove();
    }
    site.finish("ov other");
}

#[test]
fn an_internal_network_has_no_way_out() {
    let site = Site::without_network();
    let weft = site.host.weft();
    weft.run("network create --driver overlay --subnet 10.42.0.0/16 --internal ov").ok();
    let one = site.server("one", "--network ov");
    let two = site.server("two", "--network ov");
    assert!(answer(&two, &one.address()).ok().text().starts_with("one "));
    assert_eq!(one.sh("ip route show default").ok().text(), "");
    let mut far = site.far();
    far.until("listening");
    site.host.run(&ask(&format!("{}:9000", Machine::ADDRESS))).ok();
    let out = one.sh(&format!("/traffic/weft-traffic tcp {}:9000 1500", Machine::ADDRESS));
    assert!(out.code != 0, "there is a way out: {out}");
    drop(far);
    let out = weft.run("run --rm --network ov -p 8081:80 true").code(125);
    assert!(out.stderr.contains("--publish") && out.stderr.contains("ov"), "{out}");
    one.remove();
    two.remove();
    site.finish("ov");
}

#[test]
fn what_cannot_be_is_refused_by_name_and_changes_nothing() {
    let site = Site::set_up();
    let weft = site.host.weft();
    weft.run("network create --subnet 192.168.10.0/24 web").ok();
    let vni = weft.run("network inspect -f '{{.Weft.VNI}}' ov").ok().text().to_owned();
    let taken = format!("--opt vni={vni} next");
    let before = site.host.settled();
    for (flags, named) in [
        ("--subnet 10.44.0.0/16 ov", "ov"),
        ("--subnet 10.44.0.0/16 web", "web"),
        ("--subnet 10.44.0.0/16 bridge", "bridge"),
        ("--subnet 10.42.7.0/24 next", "10.42."),
        ("--subnet 192.168.0.0/16 next", "network web"),
        ("--subnet 192.0.2.0/24 next", "uplink0"),
        ("--subnet 10.44.0.0/16 --gateway 10.45.0.1 next", "--gateway"),
        ("--gateway 10.45.0.1 next", "--gateway"),
        ("--subnet 10.44.0.0/16 --ip-range 10.44.1.0/24 next", "--ip-range"),
        ("--subnet 10.44.0.0/16 --aux-address r=10.44.0.9 next", "--aux-address"),
        ("--opt encrypted= next", "encrypted"),
        ("--opt com.docker.network.bridge.name=br7 next", "com.docker.network.bridge.name"),
        ("--opt mtu=1000000 next", "mtu=1000000"),
        ("--opt vni=16777216 next", "vni=16777216"),
        ("--opt block-size=31 next", "block-size=31"),
        ("--subnet 10.44.0.0/24 --opt block-size=24 next", "24"),
        ("--opt encap=gre next", "encap=gre"),
        (&taken, &vni),
    ] {
        let out = weft.run(&format!("network create --driver overlay {flags}")).code(1);
        assert!(out.stderr.starts_with("runtime: ") && out.stderr.contains(named), "{named}: {out}");
        assert_eq!(out.stderr.lines().count(), 1, "{out}");
    }
    site.host.assert_still(&before);
    let networks = site.host.ask_agent("GET", "/v1/networks").ok().json();
    assert_eq!(networks.as_array().map(Vec::len), Some(1), "{networks}");
    site.finish("ov web");
}

#[test]
fn a_network_of_this_host_that_overlaps_keeps_containers_off_the_overlay() {
    let site = Site::set_up();
    let weft = site.host.weft();
    // Written by hand, as an administrator may: the runtime refuses to.
    let list = json!({"cniVersion": "1.0.0", "name": "near", "plugins": [
        {"type": "bridge", "bridge": "br-near", "isGateway": true,
         "ipam": {"type": "host-local", "subnet": "10.42.9.0/24"}}]});
    weft.run("network create --subnet 10.42.9.0/24 near").code(1);
    site.host.write("/etc/weft/net.d/near.conflist", list.to_string());
    let before = site.host.settled();
    let out = weft.run("run --rm --network ov true").code(125);
    assert!(out.stderr.contains("network ov") && out.stderr.contains("network near"), "{out}");
    site.host.assert_still(&before);
    site.host.run("rm /etc/weft/net.d/near.conflist").ok();
    weft.run("run --rm --network ov true").ok();
    site.finish("ov");
}

#[test]
fn the_conflist_is_restored_from_the_agent_and_dropped_with_the_network() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let written = file(&site.host);
    site.host.run("rm /etc/weft/net.d/ov.conflist").ok();
    weft.run("run --rm --network ov true").ok();
    assert_eq!(file(&site.host), written);
    site.host.run("rm /etc/weft/net.d/ov.conflist").ok();
    assert!(weft.run("network ls").ok().stdout.contains("ov"));
    assert_eq!(file(&site.host), written);
    site.host.run("rm /etc/weft/net.d/ov.conflist").ok();
    let id = written["weft"]["id"].as_str().unwrap().to_owned();
    assert_eq!(weft.run(&format!("network inspect -f '{{{{.Name}}}}' {}", &id[..6])).ok().text(), "ov");
    // Somebody removes it, and makes it anew, as on another host.
    site.host.ask_agent("DELETE", "/v1/networks/ov").ok();
    let out = weft.run("run --rm --network ov true").code(125);
    assert!(out.stderr.contains("network ov not found"), "{out}");
    assert!(!weft.run("network ls").ok().stdout.contains("ov"));
    weft.run("network create --driver overlay --subnet 10.42.0.0/16 ov").ok();
    assert_ne!(file(&site.host)["weft"]["id"], written["weft"]["id"]);
    weft.run("run --rm --network ov true").ok();
    site.finish("ov");
}

#[test]
fn with_the_agent_down_containers_go_on_and_can_be_removed() {
    let site = Site::set_up();
    let one = site.server("one", "--network ov");
    let two = site.server("two", "--network ov -p 8080:7000");
    let address = one.address();
    let host = &site.host;
    let stopped = site.agent().kill(host);
    assert!(!stopped.contains("panicked"), "{stopped}");
    let weft = host.weft();
    assert!(answer(&two, &address).ok().text().starts_with("one "));
    assert!(host.run(&ask("127.0.0.1:8080")).ok().text().starts_with("two "));
    assert!(weft.run("network ls").ok().stdout.contains("ov"));
    weft.run("network inspect ov").ok();
    let out = weft.run("run --rm --network ov true").code(125);
    assert!(out.stderr.contains("ovl-agent run"), "says what to start: {out}");
    let out = weft.run("network create --driver overlay next").code(1);
    assert!(out.stderr.contains("ovl-agent run"), "says what to start: {out}");
    let out = weft.run("network rm ov").code(1);
    assert!(out.stderr.contains("one"), "{out}");
    one.remove();
    two.remove();
    let out = weft.run("network rm ov").code(1);
    assert!(out.stderr.contains("ovl-agent run"), "{out}");
    // A network of this host alone has nothing to do with it.
    weft.run("run --rm true").ok();
    weft.run("network rm bridge").ok();
    site.agent_returns();
    // What was removed meanwhile is free.
    let again = host.weft().container("again", &format!("--network ov --ip {address} sleep 1000"));
    again.remove();
    site.finish("ov");
}

#[test]
fn containers_outlive_the_agent_and_its_return() {
    let site = Site::set_up();
    let one = site.server("one", "--network ov");
    let two = site.server("two", "--network ov");
    let address = one.address();
    site.agent().stop(&site.host);
    assert!(answer(&two, &address).ok().text().starts_with("one "));
    site.agent_returns();
    assert!(answer(&two, &address).ok().text().starts_with("one "));
    let three = site.server("three", "--network ov");
    assert!(answer(&three, &address).ok().text().starts_with("one "));
    assert!(![one.address(), two.address()].contains(&three.address()), "an address is given twice");
    for container in [&one, &two, &three] {
        container.remove();
    }
    site.finish("ov");
}

#[test]
fn many_containers_at_once_on_a_network_that_this_host_has_no_file_of_yet() {
    let site = Site::set_up();
    let weft = site.host.weft();
    site.host.run("rm /etc/weft/net.d/ov.conflist").ok();
    let starts: Vec<Output> = std::thread::scope(|scope| {
        let start = |at: usize| {
            let weft = site.host.weft();
            scope.spawn(move || weft.run(&format!("run -d --name box{at} --network ov sleep 1000")))
        };
        let running: Vec<_> = (0..8).map(start).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let addresses: std::collections::BTreeSet<String> = (0..8)
        .map(|at| {
            assert_eq!(starts[at].code, 0, "{}", starts[at]);
            let format = "{{.NetworkSettings.Networks.ov.IPAddress}}";
            weft.run(&format!("inspect -f {format} box{at}")).ok().text().to_owned()
        })
        .collect();
    assert_eq!(addresses.len(), 8, "{addresses:?}");
    let names: Vec<String> = (0..8).map(|at| format!("box{at}")).collect();
    weft.run(&format!("rm -f {}", names.join(" "))).ok();
    site.finish("ov");
}

#[test]
fn a_host_without_an_agent_sees_nothing_of_overlays() {
    let host = Host::new();
    let weft = host.weft();
    for line in ["network ls", "network prune -f", "ps"] {
        let out = weft.run(line).ok();
        assert_eq!(out.stderr, "", "{line}");
    }
    let out = weft.run("run --rm --network ov true").code(125);
    assert_eq!(out.stderr.trim(), "runtime: network ov not found in /etc/weft/net.d");
    let out = weft.run("network create --driver overlay ov").code(1);
    assert!(out.stderr.contains("/run/weft/ovl-agent.sock") && out.stderr.contains("ovl-agent run"), "{out}");
    host.assert_as_before();
}
