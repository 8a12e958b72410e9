//! A host with networks, and a machine beside it: what packets reach, and what they show.

use super::packets::{ASK, FORGE, SERVE};
use super::{Host, bridge, with};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

/// A host between a machine `far` (192.0.2.2, 2001:db8::2, on link `wan`) and the containers of two networks.
pub struct Stage {
    pub host: Host,
    pub servers: Vec<Child>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        for mut server in self.servers.drain(..) {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// A dual-stack network on a bridge: 10.N.0.0/24 and fd00:N::/64.
pub fn network(n: u16, keys: Value) -> Value {
    let mut conf = with(&bridge(&format!("net{n}"), ""), json!({"bridge": format!("br{n}")}));
    conf["ipam"]["ranges"] =
        json!([[{"subnet": format!("10.{n}.0.0/24")}], [{"subnet": format!("fd00:{n}::/64")}]]);
    with(&conf, keys)
}

/// Any source of the destination's family, and any port.
pub fn any(to: &str) -> (&'static str, &'static str) {
    (if to.contains(':') { "::" } else { "0.0.0.0" }, "0")
}

impl Stage {
    pub fn new() -> Stage {
        let host = Host::new();
        host.netns("far");
        host.sh(
            "ip link add wan type veth peer name wan netns far && ip addr add 192.0.2.1/24 dev wan && ip link set wan up && \
             ip addr add 2001:db8::1/64 dev wan nodad && ip -n far addr add 192.0.2.2/24 dev wan && \
             ip -n far addr add 2001:db8::2/64 dev wan nodad && ip -n far link set wan up && \
             ip -n far route add default via 192.0.2.1 && ip -n far route add default via 2001:db8::1",
        );
        host.eventually("ip netns exec far ping -qc1 -W1 2001:db8::1");
        Stage { host, servers: Vec::new() }
    }

    pub fn attach(&self, conf: &Value, id: &str) -> Value {
        self.host.netns(id);
        self.host.sh(&format!("ip -n {id} link set lo up"));
        self.host.about("ADD", conf, id).run().ok()
    }

    /// Starts a UDP server in a namespace.
    pub fn serve(&mut self, netns: &str, port: u16) {
        let mut server = self.host.command("ip");
        server.args(["netns", "exec", netns, "python3", "-c", SERVE, &port.to_string()]);
        let mut server = server.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        self.servers.push(server);
    }

    /// Publishes port 7001 of the host, UDP, as port 7000 of a container of network `n`.
    pub fn publish(&self, n: u16, id: &str, addresses: Value) {
        let ips =
            addresses.as_array().unwrap().iter().map(|address| json!({"address": address, "interface": 0}));
        let map = json!({
            "cniVersion": "1.1.0", "name": format!("net{n}"), "type": "portmap",
            "prevResult": {
                "cniVersion": "1.1.0", "ips": ips.collect::<Vec<_>>(),
                "interfaces": [{"name": "eth0", "sandbox": format!("/run/netns/{id}")}],
            },
            "runtimeConfig": {"portMappings": [{"hostPort": 7001, "containerPort": 7000, "protocol": "udp"}]},
        });
        self.host.about("ADD", &map, id).run().ok();
    }

    pub fn python(&self, netns: &str, script: &str, args: &[&str]) -> Option<String> {
        let mut python = self.host.command("ip");
        python.args(["netns", "exec", netns, "python3", "-c", script]).args(args);
        let output = python.output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    pub fn mac(&self, link: &str) -> String {
        self.host.ip(&format!("link show {link}"))[0]["address"].as_str().unwrap().to_owned()
    }

    /// Sends a datagram by a frame to the host.
    pub fn forge(&self, (netns, link, host_link): (&str, &str, &str), src: (&str, &str), dst: (&str, &str)) {
        let sent = self.python(netns, FORGE, &[link, &self.mac(host_link), src.0, src.1, dst.0, dst.1]);
        assert!(sent.is_some(), "cannot send from {netns}");
    }

    /// What a server answers; `wait` in seconds.
    pub fn ask(&self, netns: &str, from: (&str, &str), to: (&str, &str), wait: &str) -> Option<String> {
        self.python(netns, ASK, &[from.0, from.1, to.0, to.1, wait])
    }

    pub fn rp_filter(&self, value: u8) {
        self.host.sh(&format!("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {value} > $f; done"));
    }
}
