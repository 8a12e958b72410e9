//! ADD on a host that is full, against one that is empty.

use crate::Plan;
use crate::chain::{Attachment, Chain};
use crate::report::{Budget, Report, Unit, median};
use crate::space::{Machine, delete, fresh};
use anyhow::Result;
use std::path::Path;
use std::time::Duration;

const LEASES: u32 = 10_000;

/// Two machines in turn: the median ADD of each.
fn in_turn(plan: &Plan, name: &str, sides: &[(&Machine, Chain); 2]) -> Result<[f64; 2]> {
    let mut times = [Vec::new(), Vec::new()];
    for n in 0..=plan.rounds {
        for (side, (machine, chain)) in sides.iter().enumerate() {
            let id = format!("{name}-{side}-{n}");
            let netns = fresh(&id)?;
            machine.enter()?;
            let mut attachment = Attachment::new(&id, &netns);
            std::thread::sleep(Duration::from_millis(40));
            let time = chain.add(&mut attachment)?;
            if n > 0 {
                times[side].push(time);
            }
            chain.del(&attachment)?;
            delete(&netns)?;
        }
    }
    Ok([median(&times[0]), median(&times[1])])
}

/// Leases as host-local writes them; the reference reads them at every ADD, Weft takes them over at the first.
fn fill_leases(machine: &Machine) -> Result<()> {
    let dir = machine.dir.join("leases/bench");
    std::fs::create_dir_all(&dir)?;
    for n in 0..LEASES {
        // 10.100.0.0/16 from its second address on.
        let address = n + 2;
        let file = dir.join(format!("10.100.{}.{}", address / 256, address % 256));
        std::fs::write(file, format!("full-{n}\r\neth0"))?;
    }
    let last = LEASES + 1;
    std::fs::write(dir.join("last_reserved_ip.0"), format!("10.100.{}.{}", last / 256, last % 256))?;
    Ok(())
}

fn leases_of(plan: &Plan, dir: &Path, name: &str) -> Result<[f64; 2]> {
    let (empty, full) = (Machine::new(&format!("{name}-empty"))?, Machine::new(&format!("{name}-full"))?);
    fill_leases(&full)?;
    let sides = [(&empty, Chain::bridge(dir, &empty)), (&full, Chain::bridge(dir, &full))];
    in_turn(plan, name, &sides)
}

/// ADD with 10,000 leases.
pub fn leases(plan: &Plan, report: &mut Report) -> Result<()> {
    let weft = leases_of(plan, &plan.weft, "leases-weft")?;
    let what = "ADD p50 with 10,000 leases, before: with none";
    report.row(what, Some(weft[0]), weft[1], Unit::Ms, Budget::RatioAtMost(1.2));
    let peer = leases_of(&Plan { rounds: plan.rounds.min(30), ..plan.clone() }, &plan.peer, "leases-peer")?;
    report.row("the same, peer against Weft", Some(peer[1]), weft[1], Unit::Ms, Budget::None);
    Ok(())
}

/// ADD with 1,000 published ports: a hundred containers with ten each.
pub fn ports(plan: &Plan, report: &mut Report) -> Result<()> {
    let (empty, full) = (Machine::new("ports-empty")?, Machine::new("ports-full")?);
    let chain = |machine| Chain::published(&plan.weft, machine, &[8080]);
    full.enter()?;
    let mut spaces = Vec::new();
    for n in 0..100_u16 {
        let id = format!("ports-{n}");
        let ports: Vec<u16> = (0..10).map(|port| 20_000 + n * 10 + port).collect();
        let netns = fresh(&id)?;
        chain(&full).with_ports(&ports).add(&mut Attachment::new(&id, &netns))?;
        spaces.push(netns);
    }
    let times = in_turn(plan, "ports", &[(&empty, chain(&empty)), (&full, chain(&full))])?;
    let what = "ADD p50 with 1,000 published ports, before: with none";
    report.row(what, Some(times[0]), times[1], Unit::Ms, Budget::RatioAtMost(1.2));
    spaces.iter().try_for_each(|netns| delete(netns))
}

/// A container with every TCP port of the host, and one of the runtime's with as many as sockets may be open nearly anywhere.
pub fn all_ports(plan: &Plan, report: &mut Report) -> Result<()> {
    let machine = Machine::new("all-ports")?;
    let ports: Vec<u16> = (1..=u16::MAX).collect();
    let chain = Chain::published(&plan.weft, &machine, &ports);
    let netns = fresh("all-ports")?;
    machine.enter()?;
    let mut attachment = Attachment::new("all-ports", &netns);
    let (add, del) = (chain.add(&mut attachment)?, chain.del(&attachment)?);
    delete(&netns)?;
    let row = |report: &mut Report, what: &str, time: Duration| {
        report.row(what, None, median(&[time]), Unit::Ms, Budget::AtMost(5_000.0));
    };
    row(report, "ADD with 65,535 published ports", add);
    row(report, "DEL of it", del);
    let (run, removed) = crate::run::with_ports(plan, "1001-9000:1001-9000")?;
    row(report, "runtime run -d with 8,000 published ports", run);
    row(report, "runtime rm -f of it", removed);
    Ok(())
}
