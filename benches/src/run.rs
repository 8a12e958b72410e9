//! `runtime run -d -p` on a bridge, from its spawn to the container's process running.

use crate::Plan;
use crate::report::{Budget, Report, Unit, median};
use crate::space::Machine;
use anyhow::{Context, Result};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn runtime(plan: &Plan, machine: &Machine, words: &[&str]) -> Command {
    let mut command = Command::new(&plan.runtime);
    command.env("CNI_PATH", &plan.weft);
    for (flag, dir) in [("--root", "root"), ("--run", "run"), ("--config-dir", "net.d")] {
        command.arg(flag).arg(machine.dir.join(dir));
    }
    command.args(words).stdin(Stdio::null());
    command
}

fn must(mut command: Command) -> Result<String> {
    let out = command.output().with_context(|| format!("start {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    anyhow::ensure!(out.status.success(), "{command:?}: {}: {said}", out.status);
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// The container's process notes when it runs, in a file of a volume.
fn stamped(file: &std::path::Path) -> Result<Duration> {
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

/// The last budget of one host.
pub fn to_running(plan: &Plan, report: &mut Report) -> Result<()> {
    let machine = Machine::new("run")?;
    machine.enter()?;
    must(runtime(plan, &machine, &["network", "create", "--subnet", "10.101.0.0/16", "bench"]))?;
    let stamps = machine.dir.join("stamps");
    std::fs::create_dir_all(&stamps)?;
    let volume = format!("{}:/stamps", stamps.display());
    let (mut running, mut returned, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..=plan.rounds.div_ceil(2) {
        let name = format!("run-{n}");
        let script = format!("date +%s%N > /stamps/{name}; exec sleep 1000");
        let words = [
            "run",
            "-d",
            "--name",
            &name,
            "--network",
            "bench",
            "-p",
            "8080:80",
            "-v",
            &volume,
            "sh",
            "-c",
            &script,
        ];
        let (start, clock) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
        must(runtime(plan, &machine, &words))?;
        let back = start.elapsed();
        let ran = stamped(&stamps.join(&name))?.saturating_sub(clock);
        let start = Instant::now();
        must(runtime(plan, &machine, &["rm", "-f", &name]))?;
        if n > 0 {
            running.push(ran);
            returned.push(back);
            removed.push(start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(40));
    }
    must(runtime(plan, &machine, &["network", "rm", "bench"]))?;
    let what = "runtime run -d -p: to the container's process running (its shell started `date`)";
    report.row(what, None, median(&running), Unit::Ms, Budget::AtMost(25.0));
    report.row("runtime run -d -p: to its return", None, median(&returned), Unit::Ms, Budget::None);
    report.row("runtime rm -f of it", None, median(&removed), Unit::Ms, Budget::None);
    Ok(())
}
