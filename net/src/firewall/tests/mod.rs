//! Tests in network namespaces of their own: with packets from every side, and with what nft and iptables show.

mod bound;
mod concurrency;
mod conflicts;
mod cost;
mod exceptions;
mod forward;
mod iptables;
mod lab;
mod overlay;
mod overlay_table;
mod packets;
mod ruleset;
mod services;
mod spoof;
mod table;

use super::nft::Nftables;
use super::*;
use std::process::Command;

/// A container's addresses in the tests: 10.1.0.N/16 and fd00::N/64.
fn addrs(n: u16) -> Vec<IpNetwork> {
    let v4 = format!("10.1.{}.{}/16", n >> 8, n & 0xff);
    vec![v4.parse().unwrap(), format!("fd00::{n:x}/64").parse().unwrap()]
}

fn owner(container: &str) -> Owner {
    Owner::new("web", container, "eth0")
}

fn tcp(host_ip: Option<&str>, host_port: u16, container_port: u16) -> PortMapping {
    let host_ip = host_ip.map(|ip| ip.parse().unwrap());
    PortMapping { host_ip, host_port, container_port, protocol: Protocol::Tcp }
}

fn udp(host_ip: Option<&str>, host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol: Protocol::Udp, ..tcp(host_ip, host_port, container_port) }
}

fn plain() -> PublishOptions {
    PublishOptions::default()
}

/// Runs a command in the thread's namespace; a failure is the test's.
fn run(line: &str) -> String {
    let words: Vec<_> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|e| panic!("{line}: {e}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ruleset() -> String {
    run("nft list ruleset")
}

/// Is there something in PATH that a test needs? Says so when not.
fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !there {
        println!("skipped: this host has no {program}");
    }
    there
}

/// A link of the name of the owner's host veth, which makes it alive.
fn make_alive(owner: &Owner) {
    run(&format!("ip link add {} type bridge", owner.host_veth()));
}
