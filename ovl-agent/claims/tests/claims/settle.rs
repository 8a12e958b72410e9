//! A new claim is settled when the other hosts have it in their kernels.

use crate::agent::{Agent, conf, dir, eventually, local_store, quick};
use ovl_claims::Timing;
use std::collections::BTreeSet;
use std::time::Duration;

/// Long enough that a settling that only ends by the clock fails the test.
fn patient() -> Timing {
    Timing { settle: Duration::from_secs(120), ..quick() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_settled_once_every_other_host_shows_it() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, patient())).await;
    let two = Agent::ready(conf(dir.path(), "two", &kv, patient())).await;
    one.create("web", &["10.42.0.0/16"]).await;
    let first = two.attach("web", "d1").await.unwrap();
    two.node.settle(&first).await;
    let grant = one.attach("web", "c1").await.unwrap();
    let claimed = grant.claimed.expect("a new block");
    let settled = tokio::spawn({
        let (node, grant) = (one.node.clone(), grant.clone());
        async move { node.settle(&grant).await }
    });
    eventually("two has it in its view", || two.node.revision() >= claimed).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!settled.is_finished(), "two's kernel does not show it yet");
    two.node.applied(claimed - 1, BTreeSet::new());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!settled.is_finished(), "two's kernel shows what was before it");
    two.node.applied(two.node.revision(), BTreeSet::new());
    tokio::time::timeout(crate::agent::EVENTUALLY, settled).await.unwrap().unwrap();
    // The next one of the block waits for nobody.
    let next = one.attach("web", "c2").await.unwrap();
    assert_eq!(next.claimed, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_not_alive_is_not_waited_for() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, patient())).await;
    let two = Agent::ready(conf(dir.path(), "two", &kv, patient())).await;
    one.create("web", &["10.42.0.0/16"]).await;
    two.attach("web", "d1").await.unwrap();
    two.node.stop().await;
    two.kill().await;
    one.node.sync().await.unwrap();
    let grant = one.attach("web", "c1").await.unwrap();
    let settled = one.node.settle(&grant);
    tokio::time::timeout(crate::agent::EVENTUALLY, settled).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_host_is_waited_for_only_so_long() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    let two = Agent::ready(conf(dir.path(), "two", &kv, quick())).await;
    one.create("web", &["10.42.0.0/16"]).await;
    two.attach("web", "d1").await.unwrap();
    let grant = one.attach("web", "c1").await.unwrap();
    tokio::time::timeout(crate::agent::EVENTUALLY, one.node.settle(&grant)).await.unwrap();
    assert_eq!(one.attach("web", "c2").await.unwrap().claimed, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_a_host_cannot_make_holds_up_claims_in_no_other() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, patient())).await;
    let two = Agent::ready(conf(dir.path(), "two", &kv, patient())).await;
    let web = one.create("web", &["10.42.0.0/16"]).await;
    one.create("db", &["10.43.0.0/16"]).await;
    for network in ["web", "db"] {
        two.attach(network, &format!("d-{network}")).await.unwrap();
    }
    one.node.sync().await.unwrap();
    let [web_grant, db_grant] =
        [one.attach("web", "c1").await.unwrap(), one.attach("db", "c2").await.unwrap()];
    let claimed = db_grant.claimed.max(web_grant.claimed).expect("new blocks");
    eventually("two has them in its view", || two.node.revision() >= claimed).await;
    two.node.applied(two.node.revision(), BTreeSet::from([web.id]));
    tokio::time::timeout(crate::agent::EVENTUALLY, one.node.settle(&db_grant)).await.unwrap();
    let settled = tokio::spawn({
        let node = one.node.clone();
        async move { node.settle(&web_grant).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!settled.is_finished(), "two's kernel does not show this one");
    // It is mended: what was not acknowledged is.
    two.node.applied(two.node.revision(), BTreeSet::new());
    tokio::time::timeout(crate::agent::EVENTUALLY, settled).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_block_is_settled_before_somebody_waits_for_it() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, patient())).await;
    let two = Agent::ready(conf(dir.path(), "two", &kv, patient())).await;
    one.create("web", &["10.42.0.0/16"]).await;
    two.attach("web", "d1").await.unwrap();
    // Nobody waits for this one.
    let claimed = one.attach("web", "c1").await.unwrap().claimed.expect("a new block");
    eventually("two has it in its view", || two.node.revision() >= claimed).await;
    two.node.applied(two.node.revision(), BTreeSet::new());
    let mut number = 1;
    let since = std::time::Instant::now();
    while one.attach("web", &format!("c{number}1")).await.unwrap().claimed.is_some() {
        assert!(since.elapsed() < crate::agent::EVENTUALLY);
        number += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
