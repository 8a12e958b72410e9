//! Internal networks beside the host's own services.

use std::time::{Duration, Instant};
use tests::{Container, Host, Machine};

/// The agent's metrics and a port that the proxy answers: an address of the host, by IPv6.
fn answers(from: &Container<'_>, address: &str) -> [bool; 2] {
    let metrics = from.sh(&format!("curl -sS -m 2 http://[{address}]:9100/metrics"));
    let port = from.sh(&format!("/traffic/weft-traffic tcp [{address}]:7000 1000"));
    [metrics.stdout.contains("weft_"), port.stdout.contains("answer")]
}

#[test]
fn internal_networks_reach_no_service_of_weft() {
    let host = Host::new();
    host.link_machine("outside");
    let agent = host.agent("--node-name host1 --interface uplink0 --metrics-listen [::]:9100");
    host.note_baseline();
    let weft = host.weft();
    for line in [
        "--internal --driver overlay --subnet 10.42.0.0/16 --subnet fd42::/64 shut",
        "--driver overlay --subnet 10.43.0.0/16 --subnet fd43::/64 open",
        "--internal --subnet 10.53.0.0/24 --subnet fd53::1/64 inside",
        "--subnet 10.54.0.0/24 --subnet fd54::1/64 beside",
        "--subnet 10.55.0.0/24 four",
    ] {
        weft.run(&format!("network create {line}")).ok();
    }
    // It has no IPv6, so that its port is answered there by the proxy alone.
    let server =
        weft.traffic_container("server", "--network four -p 7000:7000", "tcp-serve [::]:7000 answer");
    server.until_listening(7000);
    let client = |network: &str| {
        weft.traffic_container(network, &format!("--network {network}"), "udp-serve [::]:9 c")
    };
    for (network, address) in [("open", "fd43::1"), ("beside", "fd54::1")] {
        let client = client(network);
        for address in [address, Machine::HOST6] {
            assert_eq!(answers(&client, address), [true, true], "{address} from {network}");
        }
        client.remove();
    }
    for (network, gateway) in [("shut", "fd42::1"), ("inside", "fd53::1")] {
        let client = client(network);
        let enter = format!("nsenter --net --target {}", client.pid());
        host.run(&format!("{enter} ip -6 route replace default via {gateway} dev eth0 onlink")).ok();
        client.sh(&format!("ping -c1 -W5 {gateway}")).ok();
        for address in [gateway, Machine::HOST6] {
            assert_eq!(answers(&client, address), [false, false], "{address} from {network}");
        }
        if network == "shut" {
            // The agent repairs the rule.
            host.run("nft flush chain inet weft-overlay services").ok();
            let start = Instant::now();
            while !host.run("nft list chain inet weft-overlay services").ok().stdout.contains("socket mark") {
                assert!(start.elapsed() < Duration::from_secs(60), "the rule never comes back");
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(answers(&client, gateway), [false, false], "after the repair");
        }
        client.remove();
    }
    server.remove();
    weft.run("network rm shut open inside beside four").ok();
    host.assert_as_before();
    agent.stop(&host);
    host.run("rm -r /var/lib/weft/ovl-agent; rmdir /var/lib/weft /run/weft; true");
    host.note_baseline();
}
