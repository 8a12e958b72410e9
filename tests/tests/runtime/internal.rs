//! What containers of an internal network do not reach, by whichever program on the host would pass it on.

use crate::Site;
use tests::{Container, Machine};

const INSIDE: &str = "fd53::1";
const BESIDE: &str = "fd54::1";

/// Whether a published port answers at an address of the host.
fn answers(from: &Container<'_>, protocol: &str, address: &str) -> bool {
    let port = if protocol == "tcp" { 7000 } else { 7001 };
    let out = from.sh(&format!("/traffic/weft-traffic {protocol} [{address}]:{port} 1000"));
    out.code == 0 && out.stdout.contains("answer")
}

#[test]
fn internal_network_does_not_reach_ports_through_proxy() {
    let site = Site::set_up();
    let weft = site.host.weft();
    weft.run("network create --internal --subnet 10.53.0.0/24 --subnet fd53::1/64 inside").ok();
    weft.run("network create --subnet 10.54.0.0/24 --subnet fd54::1/64 beside").ok();
    // It has no IPv6, so that its ports are answered there by the proxy alone.
    let tcp =
        weft.traffic_container("stream", "--network testbridge -p 7000:7000", "tcp-serve [::]:7000 answer");
    let udp =
        weft.traffic_container("packets", "--network testbridge -p 7001:53/udp", "udp-serve [::]:53 answer");
    tcp.until_listening(7000);
    udp.until_listening(53);
    let inside = weft.traffic_container("inside", "--network inside", "udp-serve [::]:9 client");
    let beside = weft.traffic_container("beside", "--network beside", "udp-serve [::]:9 client");
    for address in [BESIDE, Machine::HOST6, INSIDE] {
        assert!(answers(&beside, "tcp", address), "{address} from an ordinary network");
    }
    // A UDP socket answers with the address that leads to the client.
    assert!(answers(&beside, "udp", BESIDE), "UDP from an ordinary network");
    // Any of the host's addresses, by its gateway.
    let enter = format!("nsenter --net --target {}", inside.pid());
    site.host.run(&format!("{enter} ip -6 route add default via {INSIDE}")).ok();
    inside.sh(&format!("ping -c1 -W5 {INSIDE}")).ok();
    for address in [INSIDE, BESIDE, Machine::HOST6] {
        assert!(!answers(&inside, "tcp", address), "{address} from the internal network");
        assert!(!answers(&inside, "udp", address), "{address} from the internal network");
    }
    for container in [tcp, udp, inside, beside] {
        container.remove();
    }
    weft.run("network rm inside beside").ok();
    site.finish();
}
