//! No address is ever given twice: eight agents that attach, detach, die in the midst of it, are removed and return.
//!
//! The judge stands outside: it looks at the agents' views alone. A host holds what its view shows as endpoints; one that is
//! dead holds what its view showed last; one that was declared gone holds nothing until it has registered again, under a
//! later epoch.

use crate::agent::{Agent, attach, conf, dir, eventually, local_store, retry};
use crate::etcd::Etcd;
use crate::networks::futures_join;
use ovl_api::wire::{Attach, NetworkCreate, Problem, ProblemKind};
use ovl_claims::Timing;
use ovl_store::Kv;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

const AGENTS: usize = 8;
/// A host has at most this many containers: eight times that is more than the network has addresses.
const CONTAINERS: usize = 18;

/// Numbers by a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

#[derive(Default)]
struct Host {
    name: String,
    agent: Option<Agent>,
    /// The epoch and the addresses of a dead one.
    last: (u64, BTreeSet<IpAddr>),
    /// Declared gone up to this epoch.
    removed: AtomicU64,
    containers: Vec<String>,
}

/// How often things happened: a test in which they do not proves nothing.
#[derive(Default, Debug)]
struct Counts {
    granted: AtomicUsize,
    borrowed: AtomicUsize,
    full: AtomicUsize,
    killed: AtomicUsize,
    cut_short: AtomicUsize,
    removed: AtomicUsize,
    removed_alive: AtomicUsize,
    /// How often a host registered anew.
    returned: AtomicUsize,
}

fn count(of: &AtomicUsize) {
    of.fetch_add(1, Ordering::Relaxed);
}

/// The epoch a running agent is registered with, as its view has it, and the addresses it shows.
fn shows(agent: &Agent) -> (u64, BTreeSet<IpAddr>) {
    agent.view(|view| {
        let epoch = view.my_host().filter(|host| !host.removed).map_or(0, |host| host.epoch);
        (epoch, view.endpoints.values().flat_map(|endpoint| endpoint.addresses.clone()).collect())
    })
}

impl Host {
    fn holds(&self) -> (u64, BTreeSet<IpAddr>) {
        let (epoch, addresses) = self.agent.as_ref().map_or_else(|| self.last.clone(), shows);
        let gone = epoch <= self.removed.load(Ordering::SeqCst);
        (epoch, if gone { BTreeSet::new() } else { addresses })
    }

    async fn kill(&mut self) {
        let Some(agent) = self.agent.take() else { return };
        let node = agent.node.clone();
        agent.kill().await;
        self.last = node.with_view(|view, _| {
            let epoch = view.my_host().filter(|host| !host.removed).map_or(0, |host| host.epoch);
            (epoch, view.endpoints.values().flat_map(|endpoint| endpoint.addresses.clone()).collect())
        });
    }
}

/// What one host does in a round.
enum Act {
    Nothing,
    Attach(Attach),
    Detach(String),
    Remove(usize),
}

/// One act; an attachment that was granted is held against what everybody else holds.
async fn act(hosts: &[Host], me: usize, act: &Act, counts: &Counts, kv: &Kv) {
    let Some(agent) = &hosts[me].agent else { return };
    let before = shows(agent).0;
    match act {
        Act::Nothing => {}
        Act::Detach(container) => agent.detach("web", container).await,
        Act::Attach(ask) => match agent.node.attach(ask).await {
            Ok(grant) => {
                count(&counts.granted);
                let given: Vec<IpAddr> = grant.addresses.iter().map(|net| net.ip()).collect();
                let (epoch, held) = shows(agent);
                let here = epoch == before && epoch > hosts[me].removed.load(Ordering::SeqCst);
                assert!(
                    !here || given.iter().all(|ip| held.contains(ip)),
                    "{given:?} is given and not shown"
                );
                let singles = agent.view(|view| {
                    let single = |ip: &IpAddr| (grant.network.id.clone(), (*ip).into());
                    given.iter().filter(|ip| view.owners.contains_key(&single(ip))).count()
                });
                counts.borrowed.fetch_add(singles, Ordering::Relaxed);
                let others = hosts.iter().enumerate().filter(|(i, _)| *i != me);
                let clash = others.filter_map(|(_, host)| {
                    let held = host.holds().1;
                    given.iter().find(|ip| held.contains(ip)).map(|ip| (host.name.clone(), *ip))
                });
                for (other, ip) in clash.collect::<Vec<_>>() {
                    let (now, held) = hosts[me].holds();
                    let still = now == epoch && held.contains(&ip);
                    assert!(!still, "{ip} was given on {} while {other} holds it", hosts[me].name);
                }
            }
            Err(problem) => match problem.kind {
                ProblemKind::Full => count(&counts.full),
                ProblemKind::Taken | ProblemKind::NotReady | ProblemKind::Store | ProblemKind::NotFound => {}
                _ => panic!("{}: {problem}", hosts[me].name),
            },
        },
        Act::Remove(whom) => {
            let Some(epoch) = epoch_of(kv, &hosts[*whom].name).await else { return };
            // From here on it does not count, whatever comes of the removal.
            hosts[*whom].removed.fetch_max(epoch, Ordering::SeqCst);
            count(if hosts[*whom].agent.is_some() { &counts.removed_alive } else { &counts.removed });
            if let Err(problem) = agent.node.remove_node(&hosts[*whom].name, true).await {
                let expected = [ProblemKind::Store, ProblemKind::NotFound, ProblemKind::NotReady];
                assert!(expected.contains(&problem.kind), "{problem}");
            }
        }
    }
}

async fn epoch_of(kv: &Kv, name: &str) -> Option<u64> {
    let hosts = kv.snapshot("c/hosts/").await.ok()?.entries;
    let entry = hosts.into_iter().find(|entry| entry.key == format!("c/hosts/{name}"))?;
    Some(serde_json::from_slice::<ovl_api::model::Host>(&entry.value).unwrap().epoch)
}

/// Nobody acts: what the hosts hold must differ.
fn judge(hosts: &[Host], round: usize) {
    let mut holders: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for host in hosts {
        for address in host.holds().1 {
            if let Some(other) = holders.insert(address, &host.name) {
                panic!("round {round}: {address} is held by {other} and by {}", host.name);
            }
        }
    }
}

async fn rounds(root: &Path, kvs: &[Kv], seed: u64, rounds: usize, timing: &Timing) -> Counts {
    eprintln!("seed {seed} (WEFT_SEED={seed} repeats the dice)");
    let mut dice = Dice(seed);
    let counts = Counts::default();
    let start = |host: &str, i: usize| Agent::start(conf(root, host, &kvs[i], timing.clone()));
    let mut hosts: Vec<Host> = (0..AGENTS)
        .map(|i| {
            let name = format!("host{i}");
            Host { agent: Some(start(&name, i)), name, ..Host::default() }
        })
        .collect();
    let ask = NetworkCreate {
        name: "web".into(),
        subnets: vec!["10.42.0.0/25".parse().unwrap(), "fd00:42::/120".parse().unwrap()],
        block_size: Some(28),
        ..NetworkCreate::default()
    };
    let first = hosts[0].agent.as_ref().unwrap();
    retry(|| first.node.create_network(&ask, String::new(), &[])).await;
    let mut serial = 0;
    for round in 0..rounds {
        for (i, host) in hosts.iter_mut().enumerate() {
            if host.agent.is_none() && dice.one_in(4) {
                host.agent = Some(start(&host.name, i));
            }
        }
        let mut acts: Vec<(Act, Option<Duration>)> = Vec::new();
        for host in &mut hosts {
            let full = host.containers.len() >= CONTAINERS;
            let next = match dice.below(10) {
                die if !host.containers.is_empty() && (die < 3 || full) => {
                    Act::Detach(host.containers.swap_remove(dice.below(host.containers.len())))
                }
                3..=9 if !full && host.agent.is_some() => {
                    serial += 1;
                    let container = format!("c{serial}");
                    host.containers.push(container.clone());
                    let mut ask = attach("web", &container);
                    if dice.one_in(4) {
                        let third = 2 + dice.below(124);
                        ask.ips.push(IpAddr::from([10, 42, 0, third as u8]));
                    }
                    Act::Attach(ask)
                }
                _ => Act::Nothing,
            };
            // A detach that nobody hears is asked for again later, as a container's end is.
            let next = match next {
                Act::Detach(container) if host.agent.is_none() => {
                    host.containers.push(container);
                    Act::Nothing
                }
                other => other,
            };
            acts.push((next, None));
        }
        let alive: Vec<usize> = (0..AGENTS).filter(|i| hosts[*i].agent.is_some()).collect();
        let dead: Vec<usize> = (0..AGENTS).filter(|i| hosts[*i].agent.is_none()).collect();
        if alive.len() > 1 && !dead.is_empty() && dice.one_in(4) {
            let by = alive[dice.below(alive.len())];
            let cut = dice.one_in(3).then(|| Duration::from_micros(dice.below(5000) as u64));
            undo(&mut hosts[by], &acts[by].0);
            acts[by] = (Act::Remove(dead[dice.below(dead.len())]), cut);
        } else if alive.len() > 1 && dice.one_in(25) {
            let (by, whom) = (alive[dice.below(alive.len())], alive[dice.below(alive.len())]);
            let connected = hosts[whom].agent.as_ref().is_some_and(|agent| agent.node.status().connected);
            if by != whom && connected {
                undo(&mut hosts[by], &acts[by].0);
                acts[by] = (Act::Remove(whom), None);
            }
        }
        let victim = (alive.len() > 2 && dice.one_in(3)).then(|| alive[dice.below(alive.len())]);
        if let Some(victim) = victim {
            acts[victim].1 = Some(Duration::from_micros(dice.below(4000) as u64));
        }
        futures_join(acts.iter().enumerate().map(|(i, (next, cut))| {
            let (hosts, counts, kv) = (&hosts, &counts, &kvs[i]);
            async move {
                let acting = act(hosts, i, next, counts, kv);
                match cut {
                    Some(time) => {
                        if tokio::time::timeout(*time, acting).await.is_err() {
                            count(&counts.cut_short);
                        }
                    }
                    None => acting.await,
                }
            }
        }))
        .await;
        if let Some(victim) = victim {
            if dice.one_in(2) {
                // As if its liveness had ended by itself.
                let node = hosts[victim].agent.as_ref().map(|agent| agent.node.clone());
                hosts[victim].kill().await;
                node.unwrap().stop().await;
            } else {
                hosts[victim].kill().await;
            }
            count(&counts.killed);
        }
        judge(&hosts, round);
    }
    end(&mut hosts, &counts, start, &kvs[0]).await;
    counts
}

/// An act that does not take place after all.
fn undo(host: &mut Host, act: &Act) {
    match act {
        Act::Attach(ask) => host.containers.retain(|container| *container != ask.container),
        Act::Detach(container) => host.containers.push(container.clone()),
        _ => {}
    }
}

/// Everybody returns and detaches everything: nothing is left in the store, and the network can go.
async fn end(hosts: &mut [Host], counts: &Counts, start: impl Fn(&str, usize) -> Agent, kv: &Kv) {
    for (i, host) in hosts.iter_mut().enumerate() {
        if host.agent.is_none() {
            host.agent = Some(start(&host.name, i));
        }
    }
    for host in hosts.iter() {
        let agent = host.agent.as_ref().unwrap();
        agent.wait_ready().await;
    }
    judge(hosts, usize::MAX);
    let again = hosts.iter().map(|host| host.holds().0 as usize - 1).sum();
    counts.returned.store(again, Ordering::Relaxed);
    for host in hosts.iter() {
        let agent = host.agent.as_ref().unwrap();
        for container in &host.containers {
            agent.detach("web", container).await;
        }
        assert_eq!(agent.shown(), Vec::<IpAddr>::new(), "{} has containers nobody knows of", host.name);
    }
    let empty = || async {
        let mut left = Vec::new();
        for prefix in ["c/blocks/", "c/singles/", "e/"] {
            let snapshot =
                kv.snapshot(prefix).await.map_err(|e| Problem::new(ProblemKind::Store, e.to_string()))?;
            left.extend(snapshot.entries.into_iter().map(|entry| entry.key));
        }
        let some = Problem::new(ProblemKind::InUse, format!("left in the store: {left:?}"));
        left.is_empty().then_some(()).ok_or(some)
    };
    retry(empty).await;
    let first = hosts[0].agent.as_ref().unwrap();
    retry(|| first.node.remove_network("web")).await;
    eventually("everybody sees that the network is gone", || {
        hosts.iter().all(|host| host.agent.as_ref().unwrap().view(|view| view.networks.is_empty()))
    })
    .await;
    eprintln!("{counts:?}");
}

fn seed() -> u64 {
    let given = std::env::var("WEFT_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
    })
}

fn fast() -> Timing {
    Timing {
        idle: Duration::from_millis(30),
        consent: Duration::from_millis(50),
        removal: Duration::from_millis(2000),
        held: Duration::from_millis(20),
        backoff: (Duration::from_millis(2), Duration::from_millis(20)),
        notes: Duration::from_secs(60),
        keep: Duration::from_millis(10),
        save: Duration::from_millis(5),
        publish: Duration::from_millis(1),
        ..Timing::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_address_is_given_twice_in_a_thousand_rounds_of_dying_and_returning() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let kvs = vec![kv; AGENTS];
    let counts = rounds(dir.path(), &kvs, seed(), 1000, &fast()).await;
    for (what, of) in [
        ("granted", &counts.granted),
        ("borrowed", &counts.borrowed),
        ("full", &counts.full),
        ("killed", &counts.killed),
        ("cut short", &counts.cut_short),
        ("removed", &counts.removed),
        ("removed alive", &counts.removed_alive),
        ("returned", &counts.returned),
    ] {
        assert!(of.load(Ordering::Relaxed) > 5, "{what} hardly ever: {counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_address_is_given_twice_over_a_real_etcd() {
    let Some(etcd) = Etcd::start().await else { return };
    let dir = dir();
    let mut kvs = Vec::new();
    for _ in 0..AGENTS {
        kvs.push(etcd.kv().await);
    }
    let counts = rounds(dir.path(), &kvs, seed(), 100, &fast()).await;
    assert!(counts.granted.load(Ordering::Relaxed) > 50, "{counts:?}");
}
