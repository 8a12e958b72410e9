//! portmap behind a plugin that gives addresses without a subnet, as Calico does.

#![allow(clippy::unwrap_used)]

mod common;

use common::{CLIENT, Host, SERVER, with};
use serde_json::{Value, json};
use std::process::{Child, Stdio};

/// A server in a namespace, until it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(host: &Host, netns: &str, address: &str) -> Server {
    let mut command = host.command("ip");
    command.args(["netns", "exec", netns, "python3", "-c", SERVER, address, "80"]);
    let server = Server(command.stdout(Stdio::null()).spawn().unwrap());
    host.eventually(&format!("ip netns exec {netns} ss -Hltn 'sport = :80' | grep -qF '{address}'"));
    server
}

/// Who the server says that the client is.
#[track_caller]
fn seen(host: &Host, netns: Option<&str>, address: &str) -> String {
    let within = netns.map(|netns| format!("ip netns exec {netns} ")).unwrap_or_default();
    host.sh(&format!("{within}python3 -c '{CLIENT}' {address} 8080"))
}

/// A routed container with one address of each family.
fn routed(host: &Host, n: usize) {
    host.netns(&format!("c{n}"));
    host.sh(&format!(
        "ip link add h{n} type veth peer name eth0 netns c{n} && ip addr add fe80::1/64 dev h{n} nodad && \
         echo 0 > /proc/sys/net/ipv6/conf/h{n}/accept_dad; ip link set h{n} up && \
         ip -n c{n} addr add 10.9.0.{n}/32 dev eth0 && ip -n c{n} addr add fd00:9::{n}/128 dev eth0 nodad && \
         ip -n c{n} link set lo up && ip -n c{n} link set eth0 up && \
         ip -n c{n} route add default via 169.254.1.1 dev eth0 onlink && \
         ip -n c{n} route add default via fe80::1 dev eth0 && \
         ip -n c{n} neigh add 169.254.1.1 lladdr $(cat /sys/class/net/h{n}/address) dev eth0 && \
         ip route add 10.9.0.{n}/32 dev h{n} && ip route add fd00:9::{n}/128 dev h{n}"
    ));
}

fn portmap(n: usize, port: u16) -> Value {
    json!({"cniVersion": "1.1.0", "name": "web", "type": "portmap",
        "prevResult": {"cniVersion": "1.1.0", "ips": [
            {"address": format!("10.9.0.{n}/32")}, {"address": format!("fd00:9::{n}/128")}]},
        "runtimeConfig": {"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]}})
}

#[test]
fn ports_of_addresses_without_subnet_share_one_chain() {
    let host = Host::new();
    let chains = "nft list ruleset | grep -c 'chain subnet-'";
    for n in 1..=12 {
        host.about("ADD", &portmap(n, 8000 + n as u16), &format!("c{n}")).run().ok();
    }
    assert_eq!(host.sh(chains), "2");
    host.about("CHECK", &portmap(5, 8005), "c5").run().ok();
    for n in 1..=11 {
        host.about("DEL", &with(&portmap(n, 8000 + n as u16), json!({"prevResult": null})), &format!("c{n}"))
            .run()
            .ok();
    }
    assert_eq!(host.sh(chains), "2");
    let rules = host.sh("nft list ruleset");
    assert!(!rules.contains("web/c1/") && rules.contains("web/c12/"), "{rules}");
    host.call("GC", &with(&portmap(1, 1), json!({"cni.dev/valid-attachments": []}))).run().ok();
    assert_eq!(host.sh("nft list ruleset"), "");
}

#[test]
fn container_without_subnet_reaches_its_own_port() {
    let host = Host::new();
    host.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; \
         ip addr add 192.0.2.1/32 dev lo && ip addr add 2001:db8::1/128 dev lo");
    for n in [1, 2] {
        routed(&host, n);
        host.about("ADD", &portmap(n, 8079 + n as u16), &format!("c{n}")).run().ok();
    }
    let _servers = [serve(&host, "c1", "0.0.0.0"), serve(&host, "c1", "::")];
    // Not from its own address: it would answer itself.
    assert_ne!(seen(&host, Some("c1"), "192.0.2.1"), "10.9.0.1");
    assert_ne!(seen(&host, Some("c1"), "2001:db8::1"), "fd00:9::1");
    // Another published container is known by its own.
    assert_eq!(seen(&host, Some("c2"), "192.0.2.1"), "10.9.0.2");
    assert_eq!(seen(&host, Some("c2"), "2001:db8::1"), "fd00:9::2");
    seen(&host, None, "127.0.0.1");
}
