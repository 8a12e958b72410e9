//! `bench`: Weft and Debian's containernetworking-plugins side by side, in one run, and whether the budgets hold.
//!
//! Peer and Weft take turns, each on a machine of its own (a network namespace), with a fresh container namespace for
//! every ADD. A chain is timed from the spawn of its first plugin to the exit of its last, results passed on. Absolute
//! times depend on the machine and on what else it does; the ratios are what counts.
#![forbid(unsafe_code)]

mod chain;
mod footprint;
mod hot;
mod latency;
mod overlay;
mod packets;
mod report;
mod run;
mod scale;
mod space;

use anyhow::{Context, Result};
use report::{Budget, Report};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
usage: bench [--quick] [--json] [--only WORD] [--before DIST]
  --quick      fewer rounds: the figures are rough
  --json       one JSON document instead of the table
  --only WORD  only the measurements whose name has WORD: latency, parallel, scale, footprint, run, packets, overlay;
               or rules, which is measured so alone: the cost of each rule of the packet filter, about three minutes
  --before DIST  instead of the peer, the dist/ of a previous build: latency, parallel and run, each within 10 %, and packets
usage: bench hot MAP DIR
  prints the sections of text that calls of the plugins in DIR run, by the link map MAP; scripts/hot-functions uses it
The executables under test are those in $WEFT_DIST (default: dist/ of the workspace); runs as root.";

/// What is measured, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The directory of the peer's executables.
    pub peer: PathBuf,
    /// The directory of Weft's executables.
    pub weft: PathBuf,
    /// The runtime.
    pub runtime: PathBuf,
    /// The runtime of a previous build, when Weft is compared with one; `peer` has its plugins then.
    pub before: Option<PathBuf>,
    /// Rounds of the latency rows.
    pub rounds: usize,
    only: Option<String>,
}

impl Plan {
    /// This budget, or as good as before (within 10 %) when the other side is a previous build.
    fn budget(&self, of_peer: Budget) -> Budget {
        match (&self.before, of_peer) {
            (None, _) => of_peer,
            (Some(_), Budget::RatioAtLeast(_)) => Budget::RatioAtLeast(0.9),
            (Some(_), _) => Budget::RatioAtMost(1.1),
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }
}

fn plan(quick: bool, only: Option<String>, before: Option<PathBuf>) -> Result<Plan> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist");
    let dist = std::env::var_os("WEFT_DIST").map_or(default, PathBuf::from);
    let dist = dist.canonicalize().with_context(|| format!("{}: run `make build` first", dist.display()))?;
    let peer = before.as_ref().map_or(PathBuf::from("/usr/lib/cni"), |dist| dist.join("cni"));
    anyhow::ensure!(
        peer.join("bridge").exists(),
        "no {}/bridge: `apt-get install containernetworking-plugins iptables` brings the peer, `make build` a dist/",
        peer.display()
    );
    let before = before.map(|dist| dist.join("bin/runtime"));
    let rounds = if quick { 20 } else { 120 };
    Ok(Plan { peer, weft: dist.join("cni"), runtime: dist.join("bin/runtime"), before, rounds, only })
}

fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    space::enter().context("namespaces of the bench's own (are you root?)")?;
    if plan.wants("latency") {
        latency::floor(plan, report)?;
        latency::bridge_and_host_local(plan, report)?;
        latency::whole_chain(plan, report)?;
    }
    if plan.wants("parallel") {
        latency::in_parallel(plan, report)?;
    }
    if plan.wants("footprint") && plan.before.is_none() {
        footprint::processes(plan, report)?;
        footprint::memory(plan, report)?;
        footprint::size(plan, report)?;
    }
    if plan.wants("scale") && plan.before.is_none() {
        scale::leases(plan, report)?;
        scale::ports(plan, report)?;
        scale::all_ports(plan, report)?;
    }
    if plan.wants("run") {
        run::to_running(plan, report)?;
    }
    if plan.wants("packets") {
        packets::on_their_way(plan, report)?;
        if plan.before.is_none() {
            packets::between_hosts(plan, report)?;
        }
    }
    if plan.only.as_deref() == Some("rules") {
        packets::of_each_rule(plan, report)?;
    }
    if plan.wants("overlay") && plan.before.is_none() {
        overlay::between_hosts(plan, report)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let own = match args.first().map(String::as_str) {
        Some("rss") => return footprint::rss_of_child(&args[1..]),
        Some("hot") if args.len() == 3 => {
            Some(hot::list(Path::new(&args[1]), Path::new(&args[2])).map(|list| print!("{list}")).map(|()| 0))
        }
        Some("step") => Some(hot::step(&args[1..])),
        Some("traced") => Some(hot::traced(&args[1..])),
        _ => None,
    };
    if let Some(done) = own {
        return done.map(ExitCode::from).unwrap_or_else(|e| {
            eprintln!("bench: {e:#}");
            ExitCode::from(2)
        });
    }
    let (mut quick, mut json, mut only, mut before) = (false, false, None, None);
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => quick = true,
            "--json" => json = true,
            "--only" => only = words.next().cloned(),
            "--before" if words.len() > 0 => before = words.next().map(PathBuf::from),
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    let mut report = Report::new(!json);
    let measured = plan(quick, only, before).and_then(|plan| measure(&plan, &mut report));
    report.print();
    match measured {
        Ok(()) if report.passed() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::from(1),
        Err(e) => {
            eprintln!("bench: {e:#}");
            ExitCode::from(2)
        }
    }
}
