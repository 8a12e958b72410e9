//! What an agent takes in a large cluster: 5,000 hosts with 20,000 blocks of one network, in etcd.
//! `cargo test -p ovl-agent --release --test scale -- --ignored --nocapture`
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use ovl_api::model::Network;
use ovl_store::target::EtcdConf;
use ovl_store::{Kv, Op, Target, Txn};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use support::container::Container;
use support::eventually;
use support::lan::{ETCD, Lan};

const HOSTS: u32 = 5_000;
const BLOCKS_EACH: u32 = 4;
/// The budget, in KiB.
const MEMORY: u64 = 64 << 10;

/// Does something with the store, in the network namespace of a host.
fn with_store(lan: &Lan, work: impl AsyncFnOnce(Kv)) {
    let netns = net::Netns::open(lan.hosts[0].space.path()).unwrap();
    // All of this runtime is this thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = || {
        runtime.block_on(async {
            work(Kv::open(&Target::Etcd(EtcdConf::new(ETCD).unwrap())).await.unwrap()).await;
        });
    };
    netns.run(all).unwrap();
}

fn host(number: u32) -> (String, Vec<u8>) {
    let name = format!("host{number}.example.org");
    let vtep = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 1)) + number);
    let value = format!(
        r#"{{"name":"{name}","id":"{number:032x}","epoch":0,"vtep":"{vtep}","segment":"172.16.0.0/12","port":4789}}"#
    );
    (name, value.into_bytes())
}

fn block(network: &Network, number: u32, host: u32) -> Op {
    let address = u32::from(Ipv4Addr::new(10, 64, 0, 0)) + 64 * number;
    let (name, _) = self::host(host);
    let value = format!(r#"{{"host":"{name}","id":"{host:032x}","epoch":0}}"#);
    Op::Put(format!("c/blocks/{}/4-{address:08x}-26", network.id), value.into_bytes(), None)
}

async fn fill(kv: &Kv, network: &Network) {
    let mut ops = Vec::new();
    for number in 0..HOSTS {
        let (name, value) = host(number);
        ops.push(Op::Put(format!("c/hosts/{name}"), value, None));
        // The first blocks are this host's own.
        ops.extend((0..BLOCKS_EACH).map(|piece| block(network, 64 + number * BLOCKS_EACH + piece, number)));
    }
    for chunk in ops.chunks(100) {
        kv.commit(Txn { then: chunk.to_vec(), ..Txn::default() }).await.unwrap();
    }
}

fn memory(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    (field("VmRSS:"), field("VmHWM:"))
}

fn say(what: &str, start: Instant) {
    println!("{what}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
}

#[test]
#[ignore = "takes long, and measures"]
fn an_agent_with_5000_hosts_and_20000_blocks_keeps_to_its_memory() {
    let mut lan = Lan::new(1);
    lan.start_etcd();
    let h1 = &lan.hosts[0];
    let flags = ["--etcd", ETCD];
    let mut agent = h1.ready(&flags);
    println!("idle, one host: RSS {} KiB, peak {} KiB", memory(agent.pid()).0, memory(agent.pid()).1);
    let network = h1.create("ov", &["10.64.0.0/10"]);
    let one = Container::new(h1, "ov", "one");
    h1.sync();
    println!("with a network and a container: RSS {} KiB", memory(agent.pid()).0);
    agent.end("TERM");
    let start = Instant::now();
    with_store(&lan, async |kv| fill(&kv, &network).await);
    say("filling etcd", start);

    let start = Instant::now();
    agent = h1.ready(&flags);
    say("start to ready: 20,000 routes made", start);
    println!("RSS {} KiB, peak {} KiB", memory(agent.pid()).0, memory(agent.pid()).1);
    let lines = |text: &str| h1.space.ok(text).lines().count();
    assert!(lines("ip route show proto 87") >= (HOSTS * BLOCKS_EACH) as usize);
    assert!(lines("bridge fdb show | grep 172") >= HOSTS as usize);
    agent.end("KILL");
    let start = Instant::now();
    agent = h1.ready(&flags);
    say("start to ready: all there already", start);
    let start = Instant::now();
    h1.sync();
    say("sync (a full pass)", start);

    for number in 0..5 {
        let route = format!("ip route show 10.127.{number}.0/26");
        let last =
            (u32::from(Ipv4Addr::new(10, 127, number, 0)) - u32::from(Ipv4Addr::new(10, 64, 0, 0))) / 64;
        with_store(&lan, async |kv| {
            let txn = Txn { then: vec![block(&network, last, 7)], ..Txn::default() };
            kv.commit(txn).await.unwrap();
        });
        let start = Instant::now();
        eventually("the route is there", || !h1.space.ok(&route).is_empty());
        say("a block changes, to its route seen by `ip`", start);
    }
    let start = Instant::now();
    for number in 0..50 {
        let ask = ovl_api::wire::Attach {
            network: "ov".into(),
            container: format!("c{number}"),
            ifname: "eth0".into(),
            veth: format!("v{number}"),
            ..ovl_api::wire::Attach::default()
        };
        h1.client().attach(&ask).unwrap();
    }
    say("50 attachments, one after the other", start);
    let metrics = support::curl(&h1.socket(), &["http://a/metrics"]).1;
    for line in metrics.lines().filter(|line| line.contains("seconds_sum") || line.contains("seconds_count"))
    {
        println!("{line}");
    }
    std::thread::sleep(Duration::from_secs(5));
    let (rss, peak) = memory(agent.pid());
    println!("at the end: RSS {rss} KiB, peak {peak} KiB");
    assert!(peak <= MEMORY, "the peak is {peak} KiB, the budget {MEMORY} KiB");
    drop(one);
}
