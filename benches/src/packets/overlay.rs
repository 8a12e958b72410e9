//! What a packet costs between containers of two hosts of an overlay network. Both hosts are on this machine, so the sender's
//! time is that of the whole way.

use super::rules::{self, nft};
use super::{PORT, ROW, Way};
use crate::Plan;
use crate::overlay::Lab;
use crate::report::{Budget, Report, Unit, median_of};
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};

const NAMES: [&str; 2] = ["by VXLAN", "by direct routing"];

/// The hosts' agents and the containers' supervisors, stopped for as long as this is there: they would repair the rules that
/// are taken away.
struct Stopped(Vec<Pid>);

impl Stopped {
    fn new() -> Result<Stopped> {
        let mut stopped = Stopped(Vec::new());
        for host in ["host1", "host2"] {
            let dir = Path::new("/run/weft/labs/lab/hosts").join(host);
            let text = std::fs::read_to_string(dir.join("agent/pid"))?;
            let mut pids = vec![text.split_whitespace().next().unwrap_or_default().parse()?];
            for container in std::fs::read_dir(dir.join("root/containers"))? {
                let state: Value =
                    serde_json::from_slice(&std::fs::read(container?.path().join("state.json"))?)?;
                let pid = state["supervisor_pid"].as_i64().context("a container without a supervisor")?;
                pids.push(i32::try_from(pid)?);
            }
            for pid in pids {
                kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
                stopped.0.push(Pid::from_raw(pid));
            }
        }
        Ok(stopped)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }
}

/// The network namespace that this thread was in: it goes back there. `lab down` ends no process in the namespace that it is
/// started in.
struct Home(File);

impl Home {
    fn new() -> Result<Home> {
        Ok(Home(File::open("/proc/thread-self/ns/net")?))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.0, CloneFlags::CLONE_NEWNET) {
            eprintln!("bench: cannot leave a host of the lab: {error}");
        }
    }
}

/// Two hosts, and a way from a container to another by each network. Nothing repairs their rules.
struct Between<'a> {
    // Dropped in this order.
    _home: Home,
    _stopped: Stopped,
    _lab: Lab<'a>,
    hosts: [PathBuf; 2],
    ways: [Way; 2],
}

impl<'a> Between<'a> {
    fn new(plan: &'a Plan) -> Result<Between<'a>> {
        let lab = Lab::up(plan)?;
        let home = Home::new()?;
        let hosts = ["host1", "host2"].map(|host| Path::new("/run/weft/labs/lab/netns").join(host));
        let way = |network: &str, from: &str, to: &str| {
            let address = lab.address("host2", to, network)?;
            let [from, to] = [lab.netns("host1", from)?, lab.netns("host2", to)?];
            Way::new(&from, &to, PORT, &format!("{address}:{PORT}"))
        };
        let ways = [way("vx", "v1", "v2")?, way("di", "d1", "d2")?];
        Ok(Between { _home: home, _stopped: Stopped::new()?, _lab: lab, hosts, ways })
    }
}

/// A packet with all rules of both hosts, and with none.
pub fn between_hosts(plan: &Plan, report: &mut Report) -> Result<()> {
    let mut between = Between::new(plan)?;
    let list = |host: &PathBuf| nft(host, &["list", "ruleset"], "");
    let rulesets: Vec<String> = between.hosts.iter().map(list).collect::<Result<_>>()?;
    let mut times = [(); 2].map(|()| NAMES.map(|_| Vec::new()));
    for _ in 0..plan.rounds.div_ceil(2) {
        for (with, times) in [true, false].into_iter().zip(&mut times) {
            for (host, rules) in between.hosts.iter().zip(&rulesets) {
                nft(host, &["-f", "-"], &format!("flush ruleset\n{}", if with { rules } else { "" }))?;
            }
            for (way, times) in between.ways.iter_mut().zip(times) {
                for _ in 0..ROW {
                    times.extend(way.measure()?);
                }
            }
        }
    }
    for (at, name) in NAMES.iter().enumerate() {
        let what = format!("a packet between containers of two hosts {name}, before: no packet filter");
        let [with, without] = [&times[0][at], &times[1][at]].map(|times| median_of(times));
        report.row(&what, Some(without), with, Unit::Ns, Budget::None);
    }
    Ok(())
}

/// What each rule of either host costs a packet.
pub fn of_each_rule(plan: &Plan, report: &mut Report) -> Result<()> {
    let mut between = Between::new(plan)?;
    for (host, name) in between.hosts.iter().zip(["sender", "receiver"]) {
        let names = format!("{}, on the {name}'s host", NAMES.join(", "));
        rules::each(plan, host, &names, &mut between.ways, report)?;
    }
    Ok(())
}
