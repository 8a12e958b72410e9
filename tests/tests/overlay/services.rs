//! Services as kube-proxy makes them, by its chains in the form of iptables and of nftables, in both families: from every node
//! itself, from containers on every node, and NodePorts from outside.

use crate::cluster::{Cluster, Member, answers_at};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// So long may an answer take.
const PATIENCE: Duration = Duration::from_secs(10);
const HOSTS: [&str; 3] = ["host1", "host2", "host3"];
/// The port of the containers and of their Services.
const PORT: u16 = 7000;

/// A Service with one container behind it.
struct Service {
    pod: Member,
    node_port: u16,
    cluster_ips: [IpAddr; 2],
    /// The network's subnets, which are the cluster CIDR.
    subnets: [&'static str; 2],
}

impl Service {
    fn new(pod: Member, number: u16, subnets: [&'static str; 2]) -> Service {
        let cluster_ips = [format!("10.96.0.{number}"), format!("fd96::{number}")];
        Service { pod, node_port: 30000 + number, cluster_ips: cluster_ips.map(|ip| parsed(&ip)), subnets }
    }

    /// Cluster IP, container address and subnet, IPv4 first.
    fn families(&self) -> [(IpAddr, IpAddr, &'static str); 2] {
        let v6 = self.pod.v6.unwrap_or_else(|| panic!("{} has no IPv6", self.pod.name));
        [(self.cluster_ips[0], self.pod.v4, self.subnets[0]), (self.cluster_ips[1], v6, self.subnets[1])]
    }
}

fn parsed(ip: &str) -> IpAddr {
    ip.parse().unwrap_or_else(|e| panic!("{ip}: {e}"))
}

/// The rules of kube-proxy's iptables mode.
fn iptables(services: &[Service]) -> String {
    let mut lines = String::from("set -e\n");
    for (at, ipt) in ["iptables -w -t nat", "ip6tables -w -t nat"].iter().enumerate() {
        let _ = write!(
            lines,
            "{ipt} -N KUBE-SERVICES; {ipt} -N KUBE-NODEPORTS; {ipt} -N KUBE-MARK-MASQ; {ipt} -N KUBE-POSTROUTING
             {ipt} -A PREROUTING -j KUBE-SERVICES; {ipt} -A OUTPUT -j KUBE-SERVICES
             {ipt} -A POSTROUTING -j KUBE-POSTROUTING
             {ipt} -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
             {ipt} -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
             {ipt} -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
             {ipt} -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n"
        );
        for service in services {
            let (ip, pod, subnet) = service.families()[at];
            let (svc, node_port) = (format!("KUBE-SVC-{}", service.node_port), service.node_port);
            let _ = write!(
                lines,
                "{ipt} -N {svc}
                 {ipt} -A {svc} -s {pod} -j KUBE-MARK-MASQ
                 {ipt} -A {svc} -p tcp -j DNAT --to-destination {to}
                 {ipt} -A KUBE-SERVICES ! -s {subnet} -d {ip} -p tcp --dport {PORT} -j KUBE-MARK-MASQ
                 {ipt} -A KUBE-SERVICES -d {ip} -p tcp --dport {PORT} -j {svc}
                 {ipt} -A KUBE-NODEPORTS -p tcp --dport {node_port} -j KUBE-MARK-MASQ
                 {ipt} -A KUBE-NODEPORTS -p tcp --dport {node_port} -j {svc}\n",
                to = SocketAddr::new(pod, PORT)
            );
        }
        let _ = writeln!(lines, "{ipt} -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS");
    }
    lines
}

/// The rules of kube-proxy's nftables mode.
fn nftables(services: &[Service]) -> String {
    let (mut chains, mut jumps, mut ports) = (String::new(), String::new(), String::new());
    for service in services {
        for (at, (ip, pod, subnet)) in service.families().into_iter().enumerate() {
            let (family, proto) = [("ip", "ipv4"), ("ip6", "ipv6")][at];
            let (svc, node_port) = (format!("svc-{}-{family}", service.node_port), service.node_port);
            let _ = write!(
                chains,
                "chain {svc} {{ {family} saddr {pod} jump mark-for-masquerade
                    meta l4proto tcp dnat {family} to {to}; }}\n",
                to = SocketAddr::new(pod, PORT)
            );
            let _ = write!(
                jumps,
                "{family} daddr {ip} tcp dport {PORT} {family} saddr != {subnet} jump mark-for-masquerade
                 {family} daddr {ip} tcp dport {PORT} goto {svc}\n"
            );
            let _ = write!(
                ports,
                "meta nfproto {proto} tcp dport {node_port} jump mark-for-masquerade
                 meta nfproto {proto} tcp dport {node_port} goto {svc}\n"
            );
        }
    }
    format!(
        "nft -f - <<'END'
table inet kube-proxy {{
    chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
    {chains}
    chain node-ports {{ {ports} }}
    chain services {{
        {jumps}
        fib daddr type local jump node-ports
    }}
    chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
    chain nat-output {{ type nat hook output priority -100; jump services; }}
    chain nat-postrouting {{
        type nat hook postrouting priority 100
        meta mark & 0x4000 == 0 return
        meta mark set meta mark xor 0x4000
        masquerade fully-random
    }}
}}
END
"
    )
}

/// Whether the Service's container answers.
#[track_caller]
fn assert_answers(from: &Path, who: &str, to: SocketAddr, service: &Service, form: &str) {
    let said = answers_at(from, to, PATIENCE).unwrap_or_default();
    let name = &service.pod.name;
    assert!(said.starts_with(&format!("{name} ")), "{form}: {name} at {to} from {who}: {said:?}");
}

/// Two networks, one with direct routing, and a Service of each; every way to them.
#[track_caller]
fn reached_from_everywhere(form: &str, rules: fn(&[Service]) -> String) {
    let lab = Cluster::bare(3);
    lab.network("--subnet 10.42.0.0/16 --subnet fd42::/48 ov");
    lab.network("--subnet 10.43.0.0/16 --subnet fd43::/48 --opt encap=direct dir");
    let ov = Service::new(lab.server("host2", "ov-pod", "--network ov"), 1, ["10.42.0.0/16", "fd42::/48"]);
    let dir = Service::new(lab.server("host3", "dir-pod", "--network dir"), 2, ["10.43.0.0/16", "fd43::/48"]);
    let services = [ov, dir];
    let clients: Vec<[Member; 2]> = HOSTS
        .iter()
        .map(|on| ["ov", "dir"].map(|net| lab.run(on, &format!("{net}-{on}"), &format!("--network {net}"))))
        .collect();
    for host in HOSTS {
        lab.sh(host, "ip route add 10.96.0.0/16 dev eth0; ip -6 route add fd96::/112 dev eth0").ok();
        lab.sh(host, &rules(&services)).ok();
    }
    let nodes: Vec<(&str, PathBuf)> = HOSTS.iter().map(|host| (*host, lab.netns(host))).collect();
    for (at, service) in services.iter().enumerate() {
        let cluster_ips = service.cluster_ips.map(|ip| SocketAddr::new(ip, PORT));
        // The node's own programs, containers of the network on every node, and the container itself.
        let mut inside = nodes.clone();
        inside.extend(clients.iter().map(|pair| (pair[at].name.as_str(), lab.netns_of(&pair[at]))));
        inside.push((service.pod.name.as_str(), lab.netns_of(&service.pod)));
        for (who, netns) in &inside {
            cluster_ips.iter().for_each(|to| assert_answers(netns, who, *to, service, form));
        }
        let mut everyone = inside;
        everyone.push(("outside", lab.netns("etcd1")));
        for (number, host) in (11..).zip(HOSTS) {
            for ip in [format!("10.99.0.{number}"), format!("fd99::{number}")] {
                let to = SocketAddr::new(parsed(&ip), service.node_port);
                for (who, netns) in &everyone {
                    assert_answers(netns, &format!("{who}, by {host}"), to, service, form);
                }
            }
        }
    }
    lab.down();
}

#[test]
fn services_of_iptables_chains_are_reached_from_everywhere() {
    reached_from_everywhere("iptables", iptables);
}

#[test]
fn services_of_nftables_chains_are_reached_from_everywhere() {
    reached_from_everywhere("nftables", nftables);
}
