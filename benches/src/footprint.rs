//! What a chain costs besides time: processes, memory, files.

use crate::Plan;
use crate::chain::{Attachment, Chain, finish};
use crate::report::{Budget, Report, Unit};
use crate::space::{Machine, delete, fresh};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// What strace saw of a chain: programs executed beyond its plugins, and processes forked (threads are none).
#[derive(Debug, Default, Clone, Copy)]
struct Spawned {
    executed: usize,
    forked: usize,
}

fn spawned(chain: &Chain, machine: &Machine, verb: &str, attachment: &mut Attachment) -> Result<Spawned> {
    machine.enter()?;
    let mut count = Spawned::default();
    let mut order: Vec<usize> = (0..chain.plugins.len()).collect();
    if verb == "DEL" {
        order.reverse();
    }
    for at in order {
        let log = tempfile::NamedTempFile::new_in("/run")?;
        let file = log.path().to_string_lossy().into_owned();
        let calls = "trace=execve,execveat,fork,vfork,clone,clone3";
        let strace = ["strace", "-f", "-qq", "-e", calls, "-e", "signal=none", "-o", &file];
        let command = chain.command(&strace, verb, at, attachment);
        let out = finish(command, &chain.input(at, attachment.result.as_ref()))
            .with_context(|| format!("{verb} of {} under strace", chain.plugins[at]["type"]))?;
        if verb == "ADD" {
            attachment.result = Some(serde_json::from_slice(&out)?);
        }
        let text = std::fs::read_to_string(&file)?;
        let done = |line: &&str| line.ends_with(" = 0") || line.contains(" resumed>");
        let execs = text.lines().filter(|line| line.contains("execve(") || line.contains("execve resumed"));
        count.executed += execs.filter(done).filter(|line| line.ends_with("= 0")).count().saturating_sub(1);
        // A thread shares memory and signal handlers and is no process; an unfinished call appears twice.
        let forks = text
            .lines()
            .filter(|line| line.contains("fork(") || line.contains("clone(") || line.contains("clone3("));
        count.forked += forks.filter(|line| !line.contains("CLONE_THREAD")).count();
    }
    Ok(count)
}

fn spawned_by(dir: &Path, name: &str) -> Result<[Spawned; 2]> {
    let machine = Machine::new(&format!("processes-{name}"))?;
    let chain = Chain::published(dir, &machine, &[8080]);
    // The first ADD makes bridge and tables; the second is what happens every day.
    let mut counted = [Spawned::default(); 2];
    for n in 0..2 {
        let netns = fresh(&format!("processes-{name}-{n}"))?;
        let mut attachment = Attachment::new(&format!("processes-{name}-{n}"), &netns);
        counted[0] = spawned(&chain, &machine, "ADD", &mut attachment)?;
        counted[1] = spawned(&chain, &machine, "DEL", &mut attachment)?;
        delete(&netns)?;
    }
    Ok(counted)
}

/// Processes beyond the plugins of the chain with masquerade and port mapping.
pub fn processes(plan: &Plan, report: &mut Report) -> Result<()> {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        report.note("no strace: processes were not counted (apt-get install strace)");
        return Ok(());
    }
    let (peer, weft) = (spawned_by(&plan.peer, "peer")?, spawned_by(&plan.weft, "weft")?);
    for (verb, peer, weft) in [("ADD", peer[0], weft[0]), ("DEL", peer[1], weft[1])] {
        let what = format!("{verb}: programs executed beyond the chain's two plugins");
        report.row(&what, Some(peer.executed as f64), weft.executed as f64, Unit::Count, Budget::AtMost(0.0));
    }
    let what = "ADD: processes forked beyond the chain's two plugins";
    report.row(what, Some(peer[0].forked as f64), weft[0].forked as f64, Unit::Count, Budget::AtMost(0.0));
    let what = "DEL: processes forked (Weft: the reaper of dead links)";
    report.row(what, Some(peer[1].forked as f64), weft[1].forked as f64, Unit::Count, Budget::None);
    report.note(
        "A DEL of Weft may fork one child that executes nothing, holds nothing open, deletes the links taken out of use \
         and ends; its row has no budget.",
    );
    Ok(())
}

/// `bench rss COMMAND…`: runs it with the standard streams of its own and prints the peak RSS of it on standard error.
pub fn rss_of_child(words: &[String]) -> ExitCode {
    use nix::sys::resource::{UsageWho, getrusage};
    let Some((first, rest)) = words.split_first() else { return ExitCode::from(2) };
    let status = Command::new(first).args(rest).status();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN);
    let kibibytes = usage.map(|usage| usage.max_rss()).unwrap_or(0);
    let written = std::env::var("BENCH_RSS_FILE").map(|file| std::fs::write(file, kibibytes.to_string()));
    match (status, written) {
        (Ok(status), Ok(Ok(()))) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    }
}

/// The highest RSS of any plugin of the chain, in MiB. What the kernel counts includes this program's own small size
/// before it executes the plugin, so the figure is an upper bound.
fn rss(dir: &Path, name: &str) -> Result<f64> {
    let machine = Machine::new(&format!("rss-{name}"))?;
    let chain = Chain::published(dir, &machine, &[8080]);
    let own = std::env::current_exe()?.to_string_lossy().into_owned();
    let mut most: f64 = 0.0;
    for n in 0..5 {
        let netns = fresh(&format!("rss-{name}-{n}"))?;
        machine.enter()?;
        let mut attachment = Attachment::new(&format!("rss-{name}-{n}"), &netns);
        for (verb, at) in [("ADD", 0), ("ADD", 1), ("DEL", 1), ("DEL", 0)] {
            let file = machine.dir.join("rss");
            let mut command = chain.command(&[&own, "rss"], verb, at, &attachment);
            command.env("BENCH_RSS_FILE", &file);
            let out = finish(command, &chain.input(at, attachment.result.as_ref()))?;
            if verb == "ADD" {
                attachment.result = Some(serde_json::from_slice(&out)?);
            }
            let kibibytes: f64 = std::fs::read_to_string(&file)?.trim().parse()?;
            most = most.max(kibibytes / 1024.0);
        }
        delete(&netns)?;
    }
    Ok(most)
}

/// Peak memory of a plugin.
pub fn memory(plan: &Plan, report: &mut Report) -> Result<()> {
    let (peer, weft) = (rss(&plan.peer, "peer")?, rss(&plan.weft, "weft")?);
    report.row("peak RSS of a plugin", Some(peer), weft, Unit::MiB, Budget::AtMost(6.0));
    Ok(())
}

/// The size of the executables.
pub fn size(plan: &Plan, report: &mut Report) -> Result<()> {
    let of = |dir: &Path, file: &str| {
        std::fs::metadata(dir.join(file)).map(|data| data.len() as f64 / f64::from(1 << 20))
    };
    let mut peer = 0.0;
    for file in ["bridge", "host-local", "static", "portmap", "loopback"] {
        peer += of(&plan.peer, file)?;
    }
    let what = "size of the executable (peer: bridge, host-local, static, portmap, loopback)";
    report.row(what, Some(peer), of(&plan.weft, "bridge")?, Unit::MiB, Budget::AtMost(6.0));
    Ok(())
}
