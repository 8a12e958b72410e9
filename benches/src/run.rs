//! `runtime run -d -p` on a bridge, from its spawn to the container's process running.

use crate::Plan;
use crate::report::{Budget, Report, Unit, median};
use crate::space::Machine;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One side: its runtime, its plugins and its machine, and what was measured.
struct Side<'a> {
    runtime: &'a Path,
    plugins: &'a Path,
    machine: Machine,
    running: Vec<Duration>,
    returned: Vec<Duration>,
    removed: Vec<Duration>,
}

impl<'a> Side<'a> {
    /// On a machine of its own, with a network.
    fn new(name: &str, runtime: &'a Path, plugins: &'a Path) -> Result<Side<'a>> {
        let machine = Machine::new(name)?;
        let (running, returned, removed) = (Vec::new(), Vec::new(), Vec::new());
        let side = Side { runtime, plugins, machine, running, returned, removed };
        std::fs::create_dir_all(side.machine.dir.join("stamps"))?;
        side.must(&["network", "create", "--subnet", "10.101.0.0/16", "bench"])?;
        Ok(side)
    }

    fn must(&self, words: &[&str]) -> Result<String> {
        self.machine.enter()?;
        let mut command = Command::new(self.runtime);
        command.env("CNI_PATH", self.plugins);
        for (flag, dir) in [("--root", "root"), ("--run", "run"), ("--config-dir", "net.d")] {
            command.arg(flag).arg(self.machine.dir.join(dir));
        }
        must(command.args(words).stdin(Stdio::null()))
    }

    /// Starts a container and removes it. The first time does not count.
    fn round(&mut self, n: usize) -> Result<()> {
        let name = format!("run-{n}");
        let stamps = self.machine.dir.join("stamps");
        let volume = format!("{}:/stamps", stamps.display());
        let script = format!("date +%s%N > /stamps/{name}; exec sleep 1000");
        let image = ["-v", &volume, "sh", "-c", &script];
        let run = ["run", "-d", "--name", &name, "--network", "bench", "-p", "8080:80"];
        let words: Vec<&str> = run.into_iter().chain(image).collect();
        let (start, clock) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
        self.must(&words)?;
        let back = start.elapsed();
        let ran = stamped(&stamps.join(&name))?.saturating_sub(clock);
        let start = Instant::now();
        self.must(&["rm", "-f", &name])?;
        if n > 0 {
            self.running.push(ran);
            self.returned.push(back);
            self.removed.push(start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(40));
        Ok(())
    }
}

fn must(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("start {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    anyhow::ensure!(out.status.success(), "{command:?}: {}: {said}", out.status);
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// The container's process notes when it runs, in a file of a volume.
fn stamped(file: &Path) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if let Ok(nanoseconds) = text.trim().parse() {
            return Ok(Duration::from_nanos(nanoseconds));
        }
        anyhow::ensure!(start.elapsed() < Duration::from_secs(10), "the container never ran");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How long it takes to run a container with these published ports, and to remove it.
pub fn with_ports(plan: &Plan, ports: &str) -> Result<(Duration, Duration)> {
    let side = Side::new("run-ports", &plan.runtime, &plan.weft)?;
    let start = Instant::now();
    side.must(&["run", "-d", "--name", "ports", "--network", "bench", "-p", ports, "sleep", "1000"])?;
    let run = start.elapsed();
    let start = Instant::now();
    side.must(&["rm", "-f", "ports"])?;
    let removed = start.elapsed();
    side.must(&["network", "rm", "bench"])?;
    Ok((run, removed))
}

/// The last budget of one host; with a previous build, both in turn.
pub fn to_running(plan: &Plan, report: &mut Report) -> Result<()> {
    let mut sides = vec![Side::new("run", &plan.runtime, &plan.weft)?];
    if let Some(before) = &plan.before {
        sides.push(Side::new("run-before", before, &plan.peer)?);
    }
    for n in 0..=plan.rounds.div_ceil(2) {
        for side in &mut sides {
            side.round(n)?;
        }
    }
    for side in &sides {
        side.must(&["network", "rm", "bench"])?;
    }
    let mut row = |what: &str, times: fn(&Side<'_>) -> f64, budget: Budget| {
        let before = sides.get(1).map(times);
        report.row(what, before, times(&sides[0]), Unit::Ms, budget);
    };
    let what = "runtime run -d -p: to the container's process running (its shell started `date`)";
    row(what, |side| median(&side.running), plan.budget(Budget::AtMost(25.0)));
    row("runtime run -d -p: to its return", |side| median(&side.returned), plan.budget(Budget::None));
    row("runtime rm -f of it", |side| median(&side.removed), plan.budget(Budget::None));
    Ok(())
}
