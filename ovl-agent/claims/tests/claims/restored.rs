//! etcd restored from an older snapshot: no container loses its address, and no node a route.

use crate::agent::{Agent, EVENTUALLY, conf, dir, eventually, quick, retry};
use crate::etcd::Etcd;
use ovl_api::wire::NetworkCreate;
use ovl_store::Kv;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

async fn start(root: &Path, name: &str, kv: &Kv) -> (String, Agent) {
    (name.to_owned(), Agent::ready(conf(root, name, kv, quick())).await)
}

async fn create(agent: &Agent, name: &str, subnet: &str, block_size: u8) {
    retry(|| async {
        let subnets = vec![subnet.parse().unwrap()];
        let ask = NetworkCreate {
            name: name.to_owned(),
            subnets,
            block_size: Some(block_size),
            ..NetworkCreate::default()
        };
        agent.node.create_network(&ask, "2026-01-01T00:00:00Z".to_owned(), &[]).await
    })
    .await;
}

async fn attach(agent: &Agent, network: &str, containers: std::ops::Range<usize>) {
    for number in containers {
        let container = format!("{network}{number}");
        retry(|| agent.attach(network, &container)).await;
    }
}

/// Which node has each container's address, as the nodes with the containers know it.
fn addresses(agents: &[(String, Agent)]) -> BTreeMap<(String, IpAddr), String> {
    let mut found = BTreeMap::new();
    for (name, agent) in agents {
        agent.view(|view| {
            for endpoint in view.endpoints.values() {
                let network = view.networks[&endpoint.network].name.clone();
                found.extend(endpoint.addresses.iter().map(|at| ((network.clone(), *at), name.clone())));
            }
        });
    }
    found
}

/// The addresses to which a node has no route, or one to another node than it should.
fn wrong(agent: &Agent, right: &BTreeMap<(String, IpAddr), String>) -> Vec<String> {
    agent.view(|view| {
        let ids: BTreeMap<&str, &str> =
            view.networks.values().map(|network| (network.name.as_str(), network.id.as_str())).collect();
        let mut owners: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for ((id, block), owner) in &view.owners {
            owners.entry(id).or_default().push((*block, owner.as_str()));
        }
        let owner = |network: &str, address: IpAddr| {
            let of = owners.get(ids.get(network)?)?;
            let longest = of.iter().filter(|(block, _)| block.contains(address));
            longest.max_by_key(|(block, _)| block.prefix()).map(|(_, owner)| *owner)
        };
        let mut wrong = Vec::new();
        for ((network, address), name) in right {
            let is = owner(network, *address);
            let known = is.is_some_and(|is| view.hosts.contains_key(is));
            if is != Some(name.as_str()) || !known {
                wrong.push(format!("{network} {address}: {is:?} (known {known}), not {name}"));
            }
        }
        wrong
    })
}

async fn all_know(agents: &[(String, Agent)], right: &BTreeMap<(String, IpAddr), String>) {
    eventually("all nodes have all routes", || {
        agents.iter().all(|(_, agent)| wrong(agent, right).is_empty())
    })
    .await;
}

/// Keys and claimers: everything that agents follow, but for what is rewritten anyway.
async fn records(kv: &Kv) -> BTreeMap<String, Option<String>> {
    let Ok(snapshot) = kv.snapshot("c/").await else { return BTreeMap::new() };
    let claimer = |value: &[u8]| {
        let value: serde_json::Value = serde_json::from_slice(value).ok()?;
        value["host"].as_str().map(str::to_owned)
    };
    let entries = snapshot.entries.into_iter();
    let kept = entries.filter(|entry| !["c/back/", "c/history"].iter().any(|p| entry.key.starts_with(p)));
    kept.map(|entry| (entry.key.clone(), claimer(&entry.value))).collect()
}

/// Looks again and again, until the store and the nodes are as before, and asserts that no route was ever gone.
async fn comes_back(
    etcd: &Etcd,
    agents: &[(String, Agent)],
    right: &BTreeMap<(String, IpAddr), String>,
    before: &BTreeMap<String, Option<String>>,
) {
    let kv = etcd.kv().await;
    let since = Instant::now();
    loop {
        assert_eq!(addresses(agents), *right, "no container is cut off");
        for (name, agent) in agents {
            assert_eq!(
                wrong(agent, right),
                Vec::<String>::new(),
                "routes of {name} after {:?}",
                since.elapsed()
            );
        }
        let calm = |(_, agent): &(String, Agent)| {
            let status = agent.node.status();
            status.connected && status.held_back.is_none() && status.held_records.is_empty()
        };
        let now = records(&kv).await;
        if agents.iter().all(calm) && now == *before {
            break;
        }
        if since.elapsed() > EVENTUALLY {
            let held: Vec<_> = agents.iter().map(|(name, agent)| (name, agent.node.status())).collect();
            let (now, before): (BTreeSet<_>, BTreeSet<_>) = (now.iter().collect(), before.iter().collect());
            let (surplus, missing) = (now.difference(&before), before.difference(&now));
            panic!(
                "{held:#?}\nsurplus: {:#?}\nmissing: {:#?}",
                surplus.collect::<Vec<_>>(),
                missing.collect::<Vec<_>>()
            );
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_restored_from_older_snapshot_loses_no_container_or_route() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let dir = dir();
    let kv = etcd.kv().await;
    let mut agents = Vec::new();
    for name in ["one", "two", "three"] {
        agents.push(start(dir.path(), name, &kv).await);
    }
    let one = &agents[0].1;
    create(one, "web", "10.42.0.0/22", 28).await;
    create(one, "tiny", "10.43.0.0/29", 30).await;
    create(one, "gone", "10.45.0.0/24", 28).await;
    for (_, agent) in &agents {
        attach(agent, "web", 0..12).await;
    }
    attach(one, "tiny", 0..1).await;
    etcd.save();
    // All that the snapshot does not know: more blocks, nodes and networks; blocks that went to another node, single
    // addresses, a removed network.
    for (_, agent) in &agents {
        attach(agent, "web", 12..30).await;
    }
    one.detach("tiny", "tiny0").await;
    eventually("the block is given back", || {
        one.view(|view| !view.owners.keys().any(|(_, block)| block.prefix() == 30))
    })
    .await;
    attach(&agents[1].1, "tiny", 0..3).await;
    retry(|| one.node.remove_network("gone")).await;
    for name in ["four", "five"] {
        agents.push(start(dir.path(), name, &kv).await);
    }
    create(&agents[3].1, "late", "10.44.0.0/24", 28).await;
    for (_, agent) in &agents {
        attach(agent, "late", 0..2).await;
    }
    attach(&agents[4].1, "web", 0..20).await;
    for address in ["10.42.3.200", "10.42.3.201"] {
        let container = format!("at{address}");
        retry(|| agents[2].1.attach_at("web", &container, address)).await;
    }
    let right = addresses(&agents);
    assert_eq!(right.len(), 30 * 3 + 3 + 2 * 5 + 20 + 2);
    all_know(&agents, &right).await;
    for (_, agent) in &agents {
        retry(|| agent.node.sync()).await;
    }
    let mut before = records(&kv).await;
    etcd.restore().await;
    // It is in the snapshot; it has to be removed again.
    let now = records(&etcd.kv().await).await;
    before.extend(now.into_iter().filter(|(key, value)| {
        key.contains("gone") || key.starts_with("c/vnis/") || value.as_deref() == Some("gone")
    }));
    comes_back(&etcd, &agents, &right, &before).await;
    for (_, agent) in &agents {
        retry(|| agent.attach("web", "last")).await;
    }
    let all = addresses(&agents);
    assert_eq!(all.len(), right.len() + agents.len(), "no address was given twice");
}

/// Two nodes and a third that went down after the snapshot, with a container in a block that the snapshot does not know.
async fn with_one_down(
    etcd: &mut Etcd,
    root: &Path,
) -> (Vec<(String, Agent)>, BTreeMap<(String, IpAddr), String>) {
    let kv = etcd.kv().await;
    let mut agents = Vec::new();
    for name in ["one", "two"] {
        agents.push(start(root, name, &kv).await);
    }
    create(&agents[0].1, "web", "10.42.0.0/28", 30).await;
    attach(&agents[0].1, "web", 0..1).await;
    etcd.save();
    agents.push(start(root, "three", &kv).await);
    attach(&agents[2].1, "web", 0..1).await;
    let right = addresses(&agents);
    all_know(&agents, &right).await;
    let (_, three) = agents.pop().unwrap();
    retry(|| three.node.sync()).await;
    three.kill().await;
    etcd.restore().await;
    (agents, right)
}

fn held(agent: &Agent) -> Vec<String> {
    let records = agent.node.status().held_records;
    records.into_iter().map(|record| format!("{} {}", record.key, record.why)).collect()
}

fn names(agent: &Agent, words: &[&str]) -> bool {
    held(agent).iter().any(|record| words.iter().all(|word| record.contains(word)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_of_a_node_that_is_down_outlast_a_restored_snapshot() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let dir = dir();
    let (mut agents, right) = with_one_down(&mut etcd, dir.path()).await;
    let kv = etcd.kv().await;
    eventually("the status names the node", || {
        agents.iter().all(|(_, agent)| names(agent, &["c/blocks/", "three", "set back"]))
    })
    .await;
    // All that is left, but not what the third has, although the store does not know.
    let others = |(of, _): &(&(String, IpAddr), &String)| of.0 == "web";
    let used: BTreeSet<IpAddr> = right.iter().filter(others).map(|((_, address), _)| *address).collect();
    for number in 10..14 {
        let name = format!("more{number}");
        let Ok(grant) = agents[0].1.attach("web", &name).await else { break };
        assert!(!used.contains(&grant.addresses[0].ip()), "{grant:?}");
    }
    // A start from the files does not make a node forget it.
    let (_, two) = agents.pop().unwrap();
    eventually("the view is written", || {
        std::fs::read_to_string(dir.path().join("two/view.json")).is_ok_and(|view| view.contains("three"))
    })
    .await;
    two.kill().await;
    agents.push(start(dir.path(), "two", &kv).await);
    for (name, agent) in &agents {
        assert_eq!(wrong(agent, &right), Vec::<String>::new(), "{name}");
    }
    assert!(names(&agents[1].1, &["c/blocks/", "three", "set back"]), "{:?}", held(&agents[1].1));
    agents.push(start(dir.path(), "three", &kv).await);
    eventually("nothing is held back", || agents.iter().all(|(_, agent)| held(agent).is_empty())).await;
    for (name, agent) in &agents {
        assert_eq!(wrong(agent, &right), Vec::<String>::new(), "{name}");
    }
    assert_eq!(agents[2].1.shown().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn block_claimed_twice_since_a_restored_snapshot_is_named_with_both_nodes() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let dir = dir();
    let (agents, right) = with_one_down(&mut etcd, dir.path()).await;
    for (_, agent) in agents {
        agent.kill().await;
    }
    // A new node cannot know what the store does not.
    let kv = etcd.kv().await;
    let (_, new) = start(dir.path(), "new", &kv).await;
    let mut count = 0;
    while new.attach("web", &format!("c{count}")).await.is_ok() {
        count += 1;
    }
    let third = right.iter().find(|(_, node)| *node == "three").map(|((_, address), _)| *address).unwrap();
    assert!(new.shown().contains(&third), "{third} is not in {:?}", new.shown());
    let three = Agent::start(conf(dir.path(), "three", &kv, quick()));
    eventually("the status names both", || {
        names(&three, &["c/blocks/", "nodes three and new have containers in"])
    })
    .await;
    assert_eq!((three.shown().len(), new.shown().len()), (0, count));
    // What it says ends with the container.
    three.detach("web", "web0").await;
    eventually("nothing is held back", || held(&three).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restored_snapshot_lacks_goes_when_that_is_accepted() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let dir = dir();
    let (agents, _) = with_one_down(&mut etcd, dir.path()).await;
    for (_, agent) in &agents {
        eventually("the status names the node", || names(agent, &["c/blocks/", "three", "set back"])).await;
        agent.node.accept();
    }
    for (_, agent) in &agents {
        eventually("it is forgotten", || {
            held(agent).is_empty() && agent.view(|view| !view.owners.values().any(|owner| owner == "three"))
        })
        .await;
        retry(|| agent.node.sync()).await;
    }
}
