//! What one allocation costs in a fresh process: opening the store, one transaction, closing it.
//!
//! `cargo run --release --example one_allocation` prints the medians for stores of several sizes. Process start-up is
//! not counted: each child measures itself; peak memory is the child's whole.
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Instant, SystemTime};

use ipam::{Ask, Attachment, Lease, Range, RangeSet, Store};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const NETWORK: &str = "bench";
const CHILDREN: usize = 400;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1..) {
        Some([dir, who, what]) => child(Path::new(dir), who, what),
        _ => parent(),
    }
}

fn sets() -> Result<Vec<RangeSet>> {
    Ok(vec![RangeSet::new(vec![Range::new("10.0.0.0/8".parse()?, None, None, None)?])?])
}

fn child(dir: &Path, who: &str, what: &str) -> Result<()> {
    let attachment = Attachment::new(who, "eth0");
    let sets = sets()?;
    let start = Instant::now();
    let store = Store::open(dir, "boot")?.store;
    if what == "release" {
        store.release(NETWORK, &attachment)?;
    } else {
        let netns = Some("/run/netns/cni-00000000-0000-0000-0000-000000000000");
        let ask = Ask {
            network: NETWORK,
            attachment: &attachment,
            sets: &sets,
            requested: &[],
            reserved: &[],
            netns,
        };
        store.allocate(&ask, &|_| true)?;
    }
    drop(store);
    let took = start.elapsed();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let rss = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    println!("{} {}", took.as_nanos(), rss.trim().trim_end_matches(" kB"));
    Ok(())
}

fn parent() -> Result<()> {
    for leases in [0, 100, 1_000, 10_000, 100_000] {
        let dir = tempfile::tempdir()?;
        let store = Store::open(dir.path(), "boot")?.store;
        fill(&store, leases)?;
        drop(store);
        let size = std::fs::metadata(dir.path().join("data.mdb"))?.len() / 1024;
        let (mut took, mut rss) = ([Vec::new(), Vec::new()], 0);
        for i in 0..CHILDREN {
            for (what, took) in ["allocate", "release"].iter().zip(&mut took) {
                let who = format!("{i:064}");
                let out =
                    Command::new(std::env::current_exe()?).arg(dir.path()).args([&who, *what]).output()?;
                let text = String::from_utf8(out.stdout)?;
                let (nanos, kib) = text.trim().split_once(' ').ok_or("the child failed")?;
                took.push(nanos.parse::<u64>()? / 1000);
                rss = rss.max(kib.parse::<u64>()?);
            }
        }
        took.iter_mut().for_each(|t| t.sort_unstable());
        let at = |t: &[u64], percent: usize| t[t.len() * percent / 100];
        println!(
            "{leases:>6} leases: allocate p50 {} µs p95 {} µs, release p50 {} µs p95 {} µs, peak RSS {rss} KiB, file {size} KiB",
            at(&took[0], 50),
            at(&took[0], 95),
            at(&took[1], 50),
            at(&took[1], 95)
        );
    }
    Ok(())
}

fn fill(store: &Store, count: u32) -> Result<()> {
    let lease = |i: u32| Lease {
        network: NETWORK.to_owned(),
        address: IpAddr::from((0x0a00_0002 + i).to_be_bytes()),
        attachment: Attachment::new(format!("f{i:063}"), "eth0"),
        boot: "boot".to_owned(),
        time: SystemTime::now(),
        netns: Some("/run/netns/cni-00000000-0000-0000-0000-000000000000".to_owned()),
    };
    store.rebuild((0..count).map(lease))?;
    // The cursor passes what is held once.
    let attachment = Attachment::new("first", "eth0");
    let sets = sets()?;
    let ask = Ask {
        network: NETWORK,
        attachment: &attachment,
        sets: &sets,
        requested: &[],
        reserved: &[],
        netns: None,
    };
    store.allocate(&ask, &|_| true)?;
    Ok(())
}
