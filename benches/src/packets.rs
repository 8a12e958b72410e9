//! What a packet costs on its way through a host: the processor time of its sender for a small UDP datagram, which the kernel
//! brings to the receiver's socket before the system call returns. The packet filter is what differs between two builds.

mod overlay;
mod rules;

pub use overlay::between_hosts;

use crate::Plan;
use crate::chain::{Attachment, Chain};
use crate::report::{Budget, Report, Unit, median_of};
use crate::space::{Machine, delete, fresh};
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::time::{ClockId, clock_gettime};
use rules::nft;
use serde_json::json;
use std::fs::File;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Datagrams of a known flow in one measurement.
const PACKETS: usize = 200;
/// New flows in one measurement.
const FLOWS: usize = 50;
/// Measurements in a row of one side.
const ROW: usize = 5;
/// Where containers and the outside listen.
const PORT: u16 = 5300;
const PUBLISHED: u16 = 5353;

const WAYS: [&str; 4] = [
    "from the host to a container",
    "between containers of a bridge",
    "from a container to the outside, masqueraded",
    "from the outside to a published port",
];

/// What of a machine's packet filter is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filter {
    /// What the plugins make.
    Weft,
    /// Nothing, so no conntrack either. A published port is the container's own then.
    None,
}

/// A sender in one namespace, a receiver in another.
struct Way {
    from: PathBuf,
    to: String,
    sender: UdpSocket,
    receiver: UdpSocket,
    known: Vec<f64>,
    new: Vec<f64>,
}

/// The processor time of this thread, in nanoseconds: what others do meanwhile does not count.
fn used() -> Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}

fn enter(netns: &Path) -> Result<()> {
    setns(File::open(netns)?, CloneFlags::CLONE_NEWNET).with_context(|| netns.display().to_string())
}

impl Way {
    /// With a flow that has had a reply.
    fn new(from: &Path, at: &Path, port: u16, to: &str) -> Result<Way> {
        enter(at)?;
        let receiver = UdpSocket::bind(("0.0.0.0", port))?;
        receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
        enter(from)?;
        let sender = UdpSocket::bind("0.0.0.0:0")?;
        sender.connect(to)?;
        sender.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut byte = [0];
        sender.send(&byte)?;
        let (_, back) = receiver.recv_from(&mut byte).with_context(|| format!("nothing comes to {to}"))?;
        receiver.send_to(&byte, back)?;
        sender.recv(&mut byte).with_context(|| format!("no reply from {to}"))?;
        receiver.set_nonblocking(true)?;
        let (from, to) = (from.to_owned(), to.to_owned());
        Ok(Way { from, to, sender, receiver, known: Vec::new(), new: Vec::new() })
    }

    /// Nanoseconds for a packet of the known flow; none when no packet comes.
    fn measure(&mut self) -> Result<Option<f64>> {
        let start = used()?;
        for _ in 0..PACKETS {
            self.sender.send(&[0])?;
        }
        let time = used()? - start;
        Ok((self.drain()? > 0).then_some(time / PACKETS as f64))
    }

    /// Nanoseconds for the first packet of a flow.
    fn measure_new(&self) -> Result<f64> {
        enter(&self.from)?;
        let sender = || -> Result<UdpSocket> {
            let sender = UdpSocket::bind("0.0.0.0:0")?;
            sender.connect(&self.to)?;
            Ok(sender)
        };
        let senders = (0..FLOWS).map(|_| sender()).collect::<Result<Vec<_>>>()?;
        let start = used()?;
        for sender in &senders {
            sender.send(&[0])?;
        }
        let time = used()? - start;
        anyhow::ensure!(self.drain()? > 0, "no packet came to {}", self.to);
        Ok(time / FLOWS as f64)
    }

    /// Empties the receiver's buffer, which holds a part of a measurement: the rest is dropped at the socket. How much it held.
    fn drain(&self) -> Result<usize> {
        let mut received = 0;
        loop {
            match self.receiver.recv(&mut [0]) {
                Ok(_) => received += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(received)
    }
}

/// A machine with two containers of a bridge, and the outside behind another link.
struct Side {
    machine: Machine,
    chain: Chain,
    containers: [Attachment; 2],
    host: PathBuf,
    outside: PathBuf,
    ways: Vec<Way>,
}

impl Side {
    fn new(name: &str, dir: &Path, filter: Filter) -> Result<Side> {
        let machine = Machine::new(name)?;
        let mut chain = Chain::published(dir, &machine, &[]);
        chain.plugins[0]["isDefaultGateway"] = json!(true);
        chain.plugins[0]["macspoofchk"] = json!(true);
        chain.plugins[0]["ingressPolicy"] = json!("same-bridge");
        chain.plugins[1]["runtimeConfig"] = json!({"portMappings": [
            {"hostPort": PUBLISHED, "containerPort": PORT, "protocol": "udp"}]});
        let outside = fresh(&format!("{name}-outside"))?;
        let link = format!(
            "ip link add up0 type veth peer name eth0 netns {name}-outside && ip addr add 192.0.2.1/24 dev up0 &&
             ip link set up0 up && ip -n {name}-outside addr add 192.0.2.2/24 dev eth0 &&
             ip -n {name}-outside link set eth0 up &&
             ip -n {name}-outside route add 10.100.0.0/16 via 192.0.2.1 && echo 1 > /proc/sys/net/ipv4/ip_forward"
        );
        anyhow::ensure!(Command::new("sh").args(["-c", &link]).status()?.success(), "no link to the outside");
        let add = |n: usize| -> Result<Attachment> {
            let id = format!("{name}-{n}");
            let mut attachment = Attachment::new(&id, &fresh(&id)?);
            let chain = if n == 0 { chain.clone() } else { chain.clone().with_ports(&[]) };
            chain.add(&mut attachment)?;
            Ok(attachment)
        };
        let containers = [add(0)?, add(1)?];
        let host = Path::new("/run/netns").join(format!("machine-{name}"));
        let mut side = Side { machine, chain, containers, host, outside, ways: Vec::new() };
        if filter == Filter::None {
            nft(&side.host, &["flush", "ruleset"], "")?;
        }
        side.ways = side.ways(filter)?;
        Ok(side)
    }

    /// As in [`WAYS`].
    fn ways(&self, filter: Filter) -> Result<Vec<Way>> {
        let [first, second] = &self.containers;
        let address = |attachment: &Attachment| -> Result<String> {
            let result = attachment.result.as_ref().context("no result")?;
            let address = result["ips"][0]["address"].as_str().context("no address")?;
            Ok(address.split('/').next().unwrap_or_default().to_owned())
        };
        let [one, two] = [address(first)?, address(second)?];
        let published = match filter {
            Filter::Weft => format!("192.0.2.1:{PUBLISHED}"),
            Filter::None => format!("{one}:{PORT}"),
        };
        Ok(vec![
            Way::new(&self.host, &second.netns, PORT, &format!("{two}:{PORT}"))?,
            Way::new(&second.netns, &first.netns, PORT + 1, &format!("{one}:{}", PORT + 1))?,
            Way::new(&second.netns, &self.outside, PORT, &format!("192.0.2.2:{PORT}"))?,
            Way::new(&self.outside, &first.netns, PORT, &published)?,
        ])
    }

    fn end(self) -> Result<()> {
        self.machine.enter()?;
        drop(self.ways);
        for attachment in self.containers.iter().rev() {
            self.chain.del(attachment)?;
            delete(&attachment.netns)?;
        }
        delete(&self.outside)
    }
}

/// The cost of a packet, beside that without any packet filter (a bridge and routes) and with a previous build.
pub fn on_their_way(plan: &Plan, report: &mut Report) -> Result<()> {
    let mut sides = vec![
        Side::new("packets", &plan.weft, Filter::Weft)?,
        Side::new("packets-none", &plan.weft, Filter::None)?,
    ];
    if plan.before.is_some() {
        sides.push(Side::new("packets-before", &plan.peer, Filter::Weft)?);
    }
    for round in 0..=plan.rounds {
        for way in 0..WAYS.len() {
            for side in &mut sides {
                let way = &mut side.ways[way];
                for _ in 0..ROW {
                    let known = way.measure()?;
                    way.known.push(known.with_context(|| format!("no packet came to {}", way.to))?);
                }
                let new = way.measure_new()?;
                way.new.push(new);
                if round == 0 {
                    way.known.clear();
                    way.new.clear();
                }
            }
        }
    }
    for kind in ["packet", "first packet"] {
        let times = |way: &Way| median_of(if kind == "packet" { &way.known } else { &way.new });
        for (way, name) in WAYS.iter().enumerate() {
            let time = |side: &Side| times(&side.ways[way]);
            let weft = time(&sides[0]);
            let what = format!("a {kind} {name}, before: no packet filter");
            report.row(&what, Some(time(&sides[1])), weft, Unit::Ns, Budget::None);
            if let Some(before) = sides.get(2) {
                let what = format!("a {kind} {name}, before: the previous build");
                report.row(&what, Some(time(before)), weft, Unit::Ns, Budget::None);
            }
        }
    }
    sides.into_iter().try_for_each(Side::end)
}

/// What each rule costs a packet, on one host and between two.
pub fn of_each_rule(plan: &Plan, report: &mut Report) -> Result<()> {
    let mut side = Side::new("rules", &plan.weft, Filter::Weft)?;
    rules::each(plan, &side.host, &WAYS.join(", "), &mut side.ways, report)?;
    side.end()?;
    overlay::of_each_rule(plan, report)
}
