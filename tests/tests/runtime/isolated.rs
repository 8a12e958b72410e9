//! Containers of a network with `enable_icc=false`: closed to each other, but for published ports.

use crate::Site;
use tests::{Container, Host, Machine};

const CREATE: &str = "network create -o com.docker.network.bridge.enable_icc=false \
    -o com.docker.network.bridge.name=apart0 --subnet 10.55.0.0/24 --subnet fd55::1/64 apart";

/// Has the host pass frames of bridges through the firewall for IP, or not. Whether its kernel has br_netfilter.
fn set_br_netfilter(host: &Host, value: u8) -> bool {
    let set = format!(
        "cd /proc/sys/net/bridge && echo {value} > bridge-nf-call-iptables && echo {value} > bridge-nf-call-ip6tables"
    );
    host.run(&set).code == 0
}

fn asked(from: &Container<'_>, protocol: &str, to: &str, wait: u32) -> Option<String> {
    let out = from.sh(&format!("/traffic/weft-traffic {protocol} {to} {wait}"));
    (out.code == 0).then(|| out.text().to_owned())
}

#[test]
fn isolated_network_reaches_own_published_ports_with_br_netfilter() {
    let site = Site::set_up();
    let host = &site.host;
    if !set_br_netfilter(host, 1) {
        eprintln!("skipped: this kernel has no br_netfilter");
        return site.finish();
    }
    let weft = host.weft();
    weft.run(CREATE).ok();
    let tcp = weft.traffic_container("stream", "--network apart -p 7000:7000", "tcp-serve [::]:7000 tcp");
    tcp.until_listening(7000);
    let udp = weft.traffic_container("packets", "--network apart -p 7002:53/udp", "udp-serve [::]:53 udp");
    udp.until_listening(53);
    let other = weft.traffic_container("other", "--network apart", "udp-serve [::]:9 client");
    let beside = weft.traffic_container("beside", "--network testbridge", "udp-serve [::]:9 client");
    let addresses = |container: &Container<'_>| {
        let addresses = container.sh("ip -j addr show dev eth0 scope global").ok().json();
        let infos = addresses[0]["addr_info"].as_array().cloned().unwrap_or_default();
        let one = |family: &str| {
            let info = infos.iter().find(|info| info["family"] == family);
            info.and_then(|info| info["local"].as_str()).unwrap_or_default().to_owned()
        };
        (one("inet"), one("inet6"))
    };
    let (tcp4, tcp6) = addresses(&tcp);
    let (udp4, udp6) = addresses(&udp);
    for to in ["10.55.0.1", "[fd55::1]", Machine::HOST, &format!("[{}]", Machine::HOST6)] {
        for from in [&other, &tcp] {
            let answer = asked(from, "tcp", &format!("{to}:7000"), 5000);
            assert!(answer.is_some_and(|answer| answer.starts_with("tcp ")), "TCP at {to}");
            let answer = asked(from, "udp", &format!("{to}:7002"), 5000);
            assert!(answer.is_some_and(|answer| answer.starts_with("udp ")), "UDP at {to}");
        }
    }
    // From another network it answers too, and from outside it is translated: the container sees the client.
    assert!(
        asked(&beside, "tcp", &format!("{}:7000", Machine::HOST), 5000).is_some(),
        "from another network"
    );
    let ask = format!("{} tcp {}:7000", tests::traffic().display(), Machine::HOST);
    assert_eq!(site.outside(&ask).ok().text(), "tcp 192.0.2.2");
    // Neither by their own addresses nor by a frame to the gateway do they reach each other, with the rules or without.
    for rules in ["", "nft flush ruleset"] {
        host.run(rules).ok();
        for to in [&format!("{tcp4}:7000"), &format!("[{tcp6}]:7000")] {
            assert_eq!(asked(&other, "tcp", to, 300), None, "{to} {rules}");
        }
        for to in [&format!("{udp4}:53"), &format!("[{udp6}]:53")] {
            assert_eq!(asked(&other, "udp", to, 300), None, "{to} {rules}");
        }
    }
    let flags = host.run("bridge -d -j link show | grep -o '\"isolated\":[a-z]*' | sort | uniq -c").ok();
    assert!(flags.text().contains("3 \"isolated\":true"), "{flags}");
    // Restored rules do the same.
    weft.run("network ls").ok();
    assert!(asked(&other, "tcp", "10.55.0.1:7000", 5000).is_some(), "after a flush");
    for container in [tcp, udp, other, beside] {
        container.remove();
    }
    weft.run("network rm apart").ok();
    site.finish();
}

#[test]
fn isolated_network_without_br_netfilter_keeps_translation() {
    let site = Site::set_up();
    set_br_netfilter(&site.host, 0);
    let weft = site.host.weft();
    weft.run(CREATE).ok();
    let tcp = weft.traffic_container("stream", "--network apart -p 7000:7000", "tcp-serve [::]:7000 tcp");
    tcp.until_listening(7000);
    let other = weft.traffic_container("other", "--network apart", "udp-serve [::]:9 client");
    // A firewall that takes nothing for the host itself is no hindrance.
    site.host
        .run(
            "nft 'add table inet strict; add chain inet strict in { type filter hook input priority 0; }; \
        add rule inet strict in iifname apart0 tcp dport 7000 drop'",
        )
        .ok();
    for to in ["10.55.0.1", "[fd55::1]", Machine::HOST] {
        assert!(asked(&other, "tcp", &format!("{to}:7000"), 5000).is_some(), "{to}");
    }
    site.host.run("nft delete table inet strict").ok();
    tcp.remove();
    other.remove();
    weft.run("network rm apart").ok();
    site.finish();
}
