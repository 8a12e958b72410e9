//! The overlay between two hosts of a lab: what TCP gets through it, beside what it gets from host to host and through the
//! usual bridge and VXLAN device made by hand, and whether a new container answers the first ping.

use crate::Plan;
use crate::report::{Budget, Report, Unit, median_of};
use crate::space::fresh;
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PORT: &str = "5300";
/// One measurement takes so long.
const SECONDS: &str = "1.5";

const LAB: &str = "\
hosts: 2
networks:
  - {name: vx, subnet: 10.42.0.0/16}
  - {name: di, subnet: 10.43.0.0/16, opt: {encap: direct}}
containers:
  - {name: v1, host: host1, network: [vx]}
  - {name: v2, host: host2, network: [vx]}
  - {name: d1, host: host1, network: [di]}
  - {name: d2, host: host2, network: [di]}
";

/// What many overlays are made of: a bridge for the containers, a VXLAN device that knows the other host, routes; no packet
/// filter.
const BY_HAND: &str = "set -e
ip -n plain-u link add name br type bridge; ip -n plain-u link set dev br up
for n in 1 2; do
  ip -n plain-u link add name h$n type veth peer name eth0 netns plain-h$n; ip -n plain-u link set h$n master br up
  h=\"ip -n plain-h$n\"; c=\"ip -n plain-c$n\"; o=$((3-n))
  $h addr add 10.98.0.$n/24 dev eth0; $h link set eth0 up
  $h link add name cni0 mtu 1450 type bridge; $h addr add 10.244.$n.1/24 dev cni0; $h link set cni0 up
  $h link add name vx address 02:00:00:00:98:0$n type vxlan id 1 local 10.98.0.$n dev eth0 dstport 8472 nolearning
  $h addr add 10.244.$n.0/32 dev vx; $h link set vx up
  $h link add name pod mtu 1450 type veth peer name eth0 mtu 1450 netns plain-c$n; $h link set pod master cni0 up
  $c addr add 10.244.$n.2/24 dev eth0; $c link set eth0 up; $c route add default via 10.244.$n.1
  nsenter --net=/run/netns/plain-h$n sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
  $h route add 10.244.$o.0/24 via 10.244.$o.0 dev vx onlink
  $h neigh add 10.244.$o.0 lladdr 02:00:00:00:98:0$o dev vx nud permanent
  nsenter --net=/run/netns/plain-h$n bridge fdb add 02:00:00:00:98:0$o dev vx dst 10.98.0.$o
done";

/// From one network namespace to an address in another.
struct Way {
    from: PathBuf,
    to: String,
    server: Child,
    rates: Vec<f64>,
}

impl Way {
    fn new(from: PathBuf, at: PathBuf, to: &str) -> Result<Way> {
        let mut server = Command::new("nsenter");
        server.arg(format!("--net={}", at.display())).args(["iperf3", "-s", "-p", PORT]);
        let server = server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Way { from, to: to.to_owned(), server, rates: Vec::new() })
    }

    /// TCP for a moment, one connection, sender and receiver each on a processor of its own.
    fn measure(&mut self) -> Result<()> {
        let mut client = Command::new("nsenter");
        client.arg(format!("--net={}", self.from.display()));
        client.args(["iperf3", "-c", &self.to, "-p", PORT, "-t", SECONDS, "-A", "0,1", "-J"]);
        let started = Instant::now();
        let received = loop {
            let out = client.output().context("iperf3")?;
            let said: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
            match said["end"]["sum_received"]["bits_per_second"].as_f64() {
                Some(rate) => break rate,
                // The server may not listen yet.
                None if started.elapsed() < Duration::from_secs(10) => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                None => anyhow::bail!("iperf3 to {}: {}", self.to, said["error"]),
            }
        };
        self.rates.push(received / 1e9);
        Ok(())
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A lab, taken down at the end.
pub struct Lab<'a>(&'a Plan);

impl<'a> Lab<'a> {
    /// Two hosts with a container of each network on each.
    pub fn up(plan: &'a Plan) -> Result<Lab<'a>> {
        std::fs::write("/run/lab.yaml", LAB)?;
        let lab = Lab(plan);
        lab.runtime(&["lab", "up", "-q", "--name", "lab", "/run/lab.yaml"])?;
        Ok(lab)
    }

    fn runtime(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.0.runtime);
        let out = command.env("CNI_PATH", &self.0.weft).args(words).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        anyhow::ensure!(out.status.success(), "runtime {}: {}: {said}", words.join(" "), out.status);
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    fn on(&self, host: &str, words: &[&str]) -> Result<String> {
        self.runtime(&[&["lab", "exec", host, "--", "runtime"], words].concat())
    }

    /// The network namespace of a container.
    pub fn netns(&self, host: &str, container: &str) -> Result<PathBuf> {
        let pid = self.on(host, &["inspect", "--format", "{{.State.Pid}}", container])?;
        Ok(PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// A container's address in a network.
    pub fn address(&self, host: &str, container: &str, network: &str) -> Result<String> {
        let format = format!("{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}");
        self.on(host, &["inspect", "--format", &format, container])
    }
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.runtime(&["lab", "down"]) {
            eprintln!("bench: {error:#}");
        }
    }
}

/// Throughput, and the first ping.
pub fn between_hosts(plan: &Plan, report: &mut Report) -> Result<()> {
    let lab = Lab::up(plan)?;
    throughput(plan, &lab, report)?;
    first_pings(plan, &lab, report)
}

fn throughput(plan: &Plan, lab: &Lab<'_>, report: &mut Report) -> Result<()> {
    let names = ["u", "h1", "h2", "c1", "c2"];
    let plain: Vec<PathBuf> =
        names.iter().map(|name| fresh(&format!("plain-{name}"))).collect::<Result<_>>()?;
    let made = Command::new("sh").args(["-c", BY_HAND]).output()?;
    anyhow::ensure!(made.status.success(), "by hand: {}", String::from_utf8_lossy(&made.stderr));
    let machine = |name: &str| PathBuf::from(format!("/run/weft/labs/lab/netns/{name}"));
    let container = |network: &str, from: &str, to: &str| {
        let to_address = lab.address("host2", to, network)?;
        Way::new(lab.netns("host1", from)?, lab.netns("host2", to)?, &to_address)
    };
    let mut ways = [
        Way::new(machine("host1"), machine("host2"), "10.99.0.12")?,
        container("vx", "v1", "v2")?,
        container("di", "d1", "d2")?,
        Way::new(plain[3].clone(), plain[4].clone(), "10.244.2.2")?,
    ];
    for round in 0..=plan.rounds.div_ceil(8) {
        for way in &mut ways {
            way.measure()?;
            if round == 0 {
                way.rates.clear();
            }
        }
    }
    let [host, vxlan, direct, by_hand] = ways.each_ref().map(|way| median_of(&way.rates));
    let mut row =
        |what: &str, other, weft, budget| report.row(what, Some(other), weft, Unit::GBitPerSecond, budget);
    row(
        "overlay: TCP between containers of two hosts, against host to host",
        host,
        vxlan,
        Budget::RatioAtLeast(0.9),
    );
    row("… with direct routing", host, direct, Budget::RatioAtLeast(0.98));
    row(
        "… VXLAN, against a bridge and a VXLAN device by hand, no packet filter",
        by_hand,
        vxlan,
        Budget::None,
    );
    let control = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    report.note(&format!(
        "TCP: one connection, {}, sender and receiver on a processor each; all hosts are on this machine.",
        control.trim()
    ));
    Ok(())
}

fn first_pings(plan: &Plan, lab: &Lab<'_>, report: &mut Report) -> Result<()> {
    let from = format!("--net={}", lab.netns("host1", "v1")?.display());
    let (mut lost, mut times) = (0.0, Vec::new());
    for _ in 0..plan.rounds.div_ceil(6) {
        let start = Instant::now();
        lab.on("host2", &["run", "-d", "--name", "late", "--network", "vx", "sleep", "100"])?;
        times.push(start.elapsed());
        let to = lab.address("host2", "late", "vx")?;
        let ping = Command::new("nsenter").args([&from, "ping", "-c", "1", "-W", "2", &to]).output()?;
        lost += f64::from(u8::from(!ping.status.success()));
        lab.on("host2", &["rm", "-f", "late"])?;
    }
    let what = format!("overlay: first pings lost, of {} to new containers of another host", times.len());
    report.row(&what, None, lost, Unit::Count, Budget::AtMost(0.0));
    let what = "runtime run -d on an overlay network: to its return";
    report.row(what, None, crate::report::median(&times), Unit::Ms, Budget::None);
    Ok(())
}
