//! Creating, showing and removing networks.

use crate::agent::{Agent, conf, dir, eventually, local_store, quick, retry};
use ovl_api::wire::{NetworkCreate, ProblemKind};
use ovl_claims::Timing;
use std::collections::BTreeSet;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_is_known_on_every_host_and_goes_when_nobody_is_in_it() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    let two = Agent::ready(conf(dir.path(), "two", &kv, quick())).await;
    let made = one.create("web", &["10.42.0.0/16"]).await;
    assert_eq!((made.subnets[0].block, made.subnets[0].gateway.to_string()), (26, "10.42.0.1".to_owned()));
    // Host two may not have been told yet: it looks the network up.
    let grant = two.attach("web", "c1").await.unwrap();
    assert_eq!(grant.network, made);
    one.attach("web", "c2").await.unwrap();
    let problem = one.node.remove_network("web").await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::InUse);
    assert!(problem.message.contains("one (1)"), "{problem}");
    one.detach("web", "c2").await;
    let problem = one.node.remove_network("web").await.unwrap_err();
    assert!(problem.message.contains("two (1)"), "{problem}");
    assert_eq!(one.node.networks().await.unwrap(), std::slice::from_ref(&made), "no mark is left behind");
    two.attach("web", "c3").await.unwrap();
    two.detach("web", "c1").await;
    two.detach("web", "c3").await;
    retry(|| one.node.remove_network("web")).await;
    assert_eq!(kv.snapshot("c/blocks/").await.unwrap().entries, []);
    assert_eq!(kv.snapshot("c/vnis/").await.unwrap().entries, []);
    assert_eq!(kv.snapshot("e/").await.unwrap().entries, []);
    eventually("two sees that the network is gone", || two.view(|view| view.networks.is_empty())).await;
    assert_eq!(one.node.remove_network("web").await.unwrap_err().kind, ProblemKind::NotFound);
    assert_eq!(two.attach("web", "c4").await.unwrap_err().kind, ProblemKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_can_be_removed_right_after_its_last_container_on_another_host() {
    let dir = dir();
    let kv = local_store(&dir).await;
    // What is told late, and looked over seldom, must not matter.
    let slow = || Timing {
        publish: Duration::from_millis(100),
        keep: Duration::from_secs(60),
        idle: Duration::from_secs(60),
        ..quick()
    };
    let one = Agent::ready(conf(dir.path(), "one", &kv, slow())).await;
    let two = Agent::ready(conf(dir.path(), "two", &kv, slow())).await;
    one.create("web", &["10.42.0.0/16"]).await;
    retry(|| two.attach("web", "c1")).await;
    let published = async || !kv.snapshot("e/").await.unwrap().entries.is_empty();
    while !published().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    two.detach("web", "c1").await;
    assert!(published().await, "the store still shows it: this is what is tested");
    one.node.remove_network("web").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_waits_for_a_host_that_is_down_and_takes_its_mark_back() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    let two = Agent::ready(conf(dir.path(), "two", &kv, quick())).await;
    one.create("web", &["10.42.0.0/16"]).await;
    two.attach("web", "c1").await.unwrap();
    two.detach("web", "c1").await;
    two.node.stop().await;
    two.kill().await;
    // What it has told of its containers is not what decides.
    let problem = one.node.remove_network("web").await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::InUse);
    assert!(problem.message.contains("two") && problem.message.contains("ovl-agent node rm"), "{problem}");
    assert!(!one.node.networks().await.unwrap()[0].removing);
    one.attach("web", "c2").await.unwrap();
    one.detach("web", "c2").await;
    one.node.remove_node("two", false).await.unwrap();
    retry(|| one.node.remove_network("web")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_is_refused_by_name_and_changes_nothing() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    let two = Agent::ready(conf(dir.path(), "two", &kv, quick())).await;
    let ask = NetworkCreate {
        name: "web".to_owned(),
        subnets: vec!["10.42.0.0/16".parse().unwrap()],
        vni: Some(77),
        ..NetworkCreate::default()
    };
    one.node.create_network(&ask, String::new(), &[]).await.unwrap();
    let before = kv.snapshot("c/networks/").await.unwrap().entries;
    let refused = |ask: NetworkCreate| {
        let two = &two;
        async move {
            let taken = [("10.77.0.0/16".parse().unwrap(), "route 10.77.0.0/16 on eth9".to_owned())];
            let problem = two.node.create_network(&ask, String::new(), &taken).await.unwrap_err();
            (problem.kind, problem.field.unwrap(), problem.message)
        }
    };
    let other = NetworkCreate { name: "other".into(), vni: None, ..ask.clone() };
    let (kind, field, message) = refused(other.clone()).await;
    assert_eq!((kind, field.as_str()), (ProblemKind::Taken, "--subnet"));
    assert!(message.contains("10.42.0.0/16 of the network web"), "{message}");
    let (_, field, message) =
        refused(NetworkCreate { subnets: vec!["10.77.4.0/24".parse().unwrap()], ..other.clone() }).await;
    assert_eq!(field, "--subnet");
    assert!(message.ends_with("overlaps route 10.77.0.0/16 on eth9"), "{message}");
    let elsewhere = vec!["10.43.0.0/16".parse().unwrap()];
    let (_, field, message) =
        refused(NetworkCreate { subnets: elsewhere.clone(), vni: Some(77), ..other }).await;
    assert_eq!(field, "--opt vni");
    assert!(message.contains("--opt vni=77 is taken by the network web"), "{message}");
    let (kind, field, _) = refused(NetworkCreate { subnets: elsewhere, ..ask }).await;
    assert_eq!((kind, field.as_str()), (ProblemKind::Taken, "name"));
    assert_eq!(kv.snapshot("c/networks/").await.unwrap().entries, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_creations_at_once_that_overlap_one_succeeds() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let mut agents = Vec::new();
    for name in ["one", "two", "three", "four"] {
        agents.push(Agent::ready(conf(dir.path(), name, &kv, quick())).await);
    }
    for round in 0..10 {
        let subnets =
            [format!("10.{round}.0.0/16"), format!("10.{round}.4.0/24"), format!("10.{round}.4.0/26")];
        let creations = agents.iter().enumerate().map(|(i, agent)| {
            let subnet = subnets[i % subnets.len()].clone();
            async move { agent.try_create(&format!("n{round}-{i}"), &[&subnet]).await }
        });
        let outcomes = futures_join(creations).await;
        let made: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
        assert_eq!(made.len(), 1, "{outcomes:?}");
        assert!(outcomes.iter().flat_map(|o| o.as_ref().err()).all(|p| p.kind == ProblemKind::Taken));
    }
    // Chosen ones keep apart by themselves.
    let creations = agents.iter().enumerate().map(|(i, agent)| async move {
        let name = format!("chosen{i}");
        let ask = NetworkCreate { name, ipv6: true, ..NetworkCreate::default() };
        agent.node.create_network(&ask, String::new(), &[]).await.unwrap()
    });
    let made = futures_join(creations).await;
    let subnets: BTreeSet<_> = made.iter().flat_map(|n| n.subnets.iter().map(|s| s.subnet)).collect();
    let vnis: BTreeSet<_> = made.iter().map(|network| network.vni).collect();
    assert_eq!((subnets.len(), vnis.len()), (8, 4), "{made:?}");
}

/// All futures at once, in the order of their outcomes' places.
pub async fn futures_join<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        let mut waiting = false;
        for (future, outcome) in &mut pending {
            if outcome.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(done) => *outcome = Some(done),
                    std::task::Poll::Pending => waiting = true,
                }
            }
        }
        if waiting { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    pending.into_iter().filter_map(|(_, outcome)| outcome).collect()
}
