//! How long ADD and DEL take, one at a time and eight at once.

use crate::Plan;
use crate::chain::{Attachment, Chain, finish};
use crate::report::{Budget, Report, Unit, median, quantile};
use crate::space::{Machine, delete, fresh};
use anyhow::Result;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A pause after each DEL, longer than what either side leaves to the background, so that nobody pays for the other's
/// deletions (the kernel's lock for links is one for all namespaces).
const PAUSE: Duration = Duration::from_millis(60);

/// ADD and DEL times of one side.
#[derive(Debug, Default)]
struct Times {
    add: Vec<Duration>,
    del: Vec<Duration>,
}

/// One side: its machine, its chain, and its containers.
struct Side {
    machine: Machine,
    chain: Chain,
    attachments: Vec<Attachment>,
    times: Times,
}

impl Side {
    fn chain_of(&self, n: usize) -> Chain {
        self.chain.clone().with_ports(&[10_000 + n as u16])
    }
}

/// Both sides in turn: ADDs into fresh namespaces until the machines are full, then the DELs. The first ADD (it makes
/// bridge and tables) and the last DEL (it may remove them) are not counted.
fn both(plan: &Plan, name: &str, chain: impl Fn(&Path, &Machine) -> Chain) -> Result<(Times, Times)> {
    let mut sides = Vec::new();
    for (side, dir) in [("peer", &plan.peer), ("weft", &plan.weft)] {
        let machine = Machine::new(&format!("{name}-{side}"))?;
        let mut attachments = Vec::new();
        for n in 0..=plan.rounds {
            let id = format!("{name}-{side}-{n}");
            attachments.push(Attachment::new(&id, &fresh(&id)?));
        }
        sides.push(Side { chain: chain(dir, &machine), machine, attachments, times: Times::default() });
    }
    std::thread::sleep(Duration::from_millis(500));
    for n in 0..=plan.rounds {
        for side in &mut sides {
            side.machine.enter()?;
            let time = side.chain_of(n).add(&mut side.attachments[n])?;
            if n > 0 {
                side.times.add.push(time);
            }
        }
    }
    for n in (0..=plan.rounds).rev() {
        for side in &mut sides {
            side.machine.enter()?;
            let time = side.chain_of(n).del(&side.attachments[n])?;
            if n > 0 {
                side.times.del.push(time);
            }
            std::thread::sleep(PAUSE);
        }
    }
    for attachment in sides.iter().flat_map(|side| &side.attachments) {
        delete(&attachment.netns)?;
    }
    std::thread::sleep(Duration::from_millis(500));
    let mut all = sides.into_iter().map(|side| side.times);
    Ok((all.next().unwrap_or_default(), all.next().unwrap_or_default()))
}

/// The least that any plugin can take: one that is started and only says which versions it knows.
pub fn floor(plan: &Plan, report: &mut Report) -> Result<()> {
    let machine = Machine::new("floor")?;
    let attachment = Attachment::new("floor", Path::new("/"));
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..plan.rounds {
        for (at, dir) in [&plan.peer, &plan.weft].into_iter().enumerate() {
            let chain = Chain::bridge(dir, &machine);
            let start = Instant::now();
            finish(chain.command(&[], "VERSION", 0, &attachment), br#"{"cniVersion": "1.0.0"}"#)?;
            times[at].push(start.elapsed());
        }
    }
    let row = (Some(median(&times[0])), median(&times[1]));
    report.row("bridge: VERSION p50 (starting a plugin at all)", row.0, row.1, Unit::Ms, Budget::None);
    Ok(())
}

/// The first budget: `bridge` with `host-local`.
pub fn bridge_and_host_local(plan: &Plan, report: &mut Report) -> Result<()> {
    let (peer, weft) = both(plan, "plain", Chain::bridge)?;
    let row = (Some(median(&peer.add)), median(&weft.add));
    report.row(
        "bridge + host-local: ADD p50",
        row.0,
        row.1,
        Unit::Ms,
        plan.budget(Budget::RatioAtMost(1.0 / 6.0)),
    );
    let p95 = (Some(quantile(&peer.add, 0.95)), quantile(&weft.add, 0.95));
    report.row("bridge + host-local: ADD p95", p95.0, p95.1, Unit::Ms, Budget::None);
    report.row(
        "bridge + host-local: DEL p50",
        Some(median(&peer.del)),
        median(&weft.del),
        Unit::Ms,
        Budget::None,
    );
    Ok(())
}

/// The second: with masquerade and a published port.
pub fn whole_chain(plan: &Plan, report: &mut Report) -> Result<()> {
    let (peer, weft) = both(plan, "whole", |dir, machine| Chain::published(dir, machine, &[]))?;
    let add = (Some(median(&peer.add)), median(&weft.add));
    report.row(
        "… + ipMasq + portmap: ADD p50",
        add.0,
        add.1,
        Unit::Ms,
        plan.budget(Budget::RatioAtMost(1.0 / 25.0)),
    );
    let del = (Some(median(&peer.del)), median(&weft.del));
    report.row(
        "… + ipMasq + portmap: DEL p50",
        del.0,
        del.1,
        Unit::Ms,
        plan.budget(Budget::RatioAtMost(1.0 / 30.0)),
    );
    let p95 = (Some(quantile(&peer.add, 0.95)), quantile(&weft.add, 0.95));
    report.row("… + ipMasq + portmap: ADD p95", p95.0, p95.1, Unit::Ms, Budget::None);
    Ok(())
}

/// So many at once.
const WORKERS: usize = 8;

/// Runs `work` on every attachment by eight threads that are on this machine; the time from the first to the last.
fn at_once(
    machine: &Machine,
    all: &mut [Attachment],
    work: impl Fn(usize, &mut Attachment) -> Result<Duration> + Sync,
) -> Result<Duration> {
    let next = AtomicUsize::new(0);
    let slots: Vec<_> = all.iter_mut().map(std::sync::Mutex::new).collect();
    let start = Instant::now();
    let done: Result<()> = std::thread::scope(|scope| {
        let worker = || -> Result<()> {
            machine.enter()?;
            while let Some(slot) = slots.get(next.fetch_add(1, Ordering::Relaxed)) {
                let at = next.load(Ordering::Relaxed);
                let mut attachment = slot.lock().map_err(|_| anyhow::anyhow!("a worker panicked"))?;
                work(at, &mut attachment)?;
            }
            Ok(())
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|w| w.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?)
    });
    done.map(|()| start.elapsed())
}

/// ADDs and DELs per second, eight at once; a DEL counts as done when its links are gone from the machine.
pub fn in_parallel(plan: &Plan, report: &mut Report) -> Result<()> {
    let many = if plan.rounds < 100 { 24 } else { 104 };
    let (mut adds, mut dels) = ([0.0; 2], [0.0; 2]);
    const TURNS: usize = 3;
    for turn in 0..TURNS {
        for (at, dir) in [&plan.peer, &plan.weft].into_iter().enumerate() {
            let machine = Machine::new(&format!("parallel-{at}-{turn}"))?;
            let chain = Chain::published(dir, &machine, &[]);
            let mut all = Vec::new();
            for n in 0..many {
                let name = format!("parallel-{at}-{turn}-{n}");
                all.push((
                    Attachment::new(&name, &fresh(&name)?),
                    chain.clone().with_ports(&[10_000 + n as u16]),
                ));
            }
            let (mut attachments, chains): (Vec<_>, Vec<_>) = all.into_iter().unzip();
            let chain_of = |attachment: &Attachment| {
                let n = attachment.id.rsplit('-').next().and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
                &chains[n]
            };
            // The bridge and the tables are made once, by an ADD that does not count.
            machine.enter()?;
            chains[0].add(&mut attachments[0])?;
            let time = at_once(&machine, &mut attachments[1..], |_, one| chain_of(one).add(one))?;
            adds[at] += (many - 1) as f64 / time.as_secs_f64() / TURNS as f64;
            let start = Instant::now();
            at_once(&machine, &mut attachments, |_, one| chain_of(one).del(one))?;
            while machine.links()? > 0 && start.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(1));
            }
            dels[at] += many as f64 / start.elapsed().as_secs_f64() / TURNS as f64;
            for attachment in &attachments {
                delete(&attachment.netns)?;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    let what = format!("… + ipMasq + portmap: ADDs at {WORKERS} in parallel");
    report.row(&what, Some(adds[0]), adds[1], Unit::PerSecond, plan.budget(Budget::RatioAtLeast(20.0)));
    let what = format!("… DELs at {WORKERS} in parallel, links gone from the kernel");
    report.row(&what, Some(dels[0]), dels[1], Unit::PerSecond, Budget::None);
    Ok(())
}
