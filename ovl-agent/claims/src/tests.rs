//! Nodes whose view stands still: nothing runs in the background, so what is behind the store stays behind it.
//!
//! The end-to-end tests meet these moments by chance only; here each is made on purpose.

use crate::inner::Inner;
use crate::snapshot::Whole;
use crate::{Node, NodeConf, Timing, keys};
use ipnetwork::IpNetwork;
use ovl_api::model::Network;
use ovl_api::wire::{Attach, Detach, NetworkCreate, Problem, ProblemKind};
use ovl_store::{Change, Kv, Op, Target, Txn, Watch};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

mod attachments;
mod records;

async fn store() -> (TempDir, Kv) {
    let dir = tempfile::tempdir().unwrap();
    let kv = Kv::open(&Target::Local(dir.path().join("store"))).await.unwrap();
    (dir, kv)
}

fn open(root: &Path, name: &str, kv: &Kv) -> Inner {
    crate::open::open(conf(root, name, kv)).unwrap()
}

fn conf(root: &Path, name: &str, kv: &Kv) -> NodeConf {
    NodeConf {
        root: root.join(name),
        name: name.to_owned(),
        boot_id: "boot".to_owned(),
        machine: None,
        take_over: crate::TakeOver::Identity,
        links: None,
        vtep: IpAddr::from([192, 0, 2, name.bytes().fold(0, u8::wrapping_add)]),
        segment: None,
        port: 4789,
        kv: kv.clone(),
        liveness: NodeConf::LIVENESS,
        timing: Timing { consent: Duration::from_millis(200), ..Timing::default() },
    }
}

async fn registered(inner: Inner) -> Inner {
    assert!(inner.join().await.is_ok());
    inner
}

async fn read(inner: &Inner) {
    let snapshot = inner.conf.kv.snapshot(keys::FOLLOWED).await.unwrap();
    inner.update(|state| {
        state.replace(Whole::of(&snapshot));
        inner.take_over_links(state);
        state.following = true;
    });
}

async fn frozen(root: &Path, name: &str, kv: &Kv) -> Inner {
    let inner = registered(open(root, name, kv)).await;
    read(&inner).await;
    inner
}

/// A network of two blocks of 16 addresses.
async fn network(inner: &Inner) -> Network {
    let subnets = vec!["10.42.0.0/27".parse().unwrap()];
    let ask = NetworkCreate { name: "web".into(), subnets, block_size: Some(28), ..NetworkCreate::default() };
    inner.create(&ask, String::new(), &[]).await.unwrap()
}

async fn attach(inner: &Inner, container: &str, ip: Option<&str>) -> Result<IpAddr, Problem> {
    let ask = Attach {
        network: "web".into(),
        container: container.into(),
        ifname: "eth0".into(),
        veth: format!("v{container}"),
        ips: ip.map(|ip| ip.parse().unwrap()).into_iter().collect(),
        ..Attach::default()
    };
    Ok(inner.attach(&ask).await?.addresses[0].ip())
}

fn detach(inner: &Inner, container: &str) {
    let ask = Detach { network: "web".into(), container: container.into(), ifname: "eth0".into() };
    assert!(inner.detach(&ask).unwrap());
}

async fn keys_below(kv: &Kv, prefix: &str) -> Vec<String> {
    kv.snapshot(prefix).await.unwrap().entries.into_iter().map(|entry| entry.key).collect()
}

/// The changes from a revision on, up to the last.
async fn changes(kv: &Kv, from: i64) -> Vec<Change> {
    let last = kv.commit(Txn::default()).await.unwrap().revision;
    let mut watch: Watch = kv.watch(keys::FOLLOWED, from).await.unwrap();
    let mut all: Vec<Change> = Vec::new();
    while all.last().is_none_or(|change| change.revision < last) {
        if let ovl_store::Event::Changes(some) = watch.next().await.unwrap() {
            all.extend(some);
        }
    }
    all
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

#[tokio::test]
async fn who_was_declared_gone_and_does_not_know_claims_nothing() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    let two = frozen(dir.path(), "two", &kv).await;
    two.remove_node("one", true).await.unwrap();
    for ip in [None, Some("10.42.0.20")] {
        let problem = attach(&one, "c1", ip).await.unwrap_err();
        assert_eq!(problem.kind, ProblemKind::NotReady, "{problem}");
    }
    let ask = NetworkCreate { name: "other".into(), ..NetworkCreate::default() };
    let problem = one.create(&ask, String::new(), &[]).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::NotReady, "{problem}");
    assert_eq!(keys_below(&kv, "c/blocks/").await, Vec::<String>::new());
    assert_eq!(keys_below(&kv, "c/singles/").await, Vec::<String>::new());
    assert_eq!(keys_below(&kv, "c/networks/").await, ["c/networks/web"]);
    drop(web);
}

#[tokio::test]
async fn who_was_declared_gone_does_not_give_back_what_others_claimed_since() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    let two = frozen(dir.path(), "two", &kv).await;
    attach(&one, "c1", None).await.unwrap();
    detach(&one, "c1");
    let block = one.look(|state| *state.own[&web.id].keys().next().unwrap());
    two.remove_node("one", true).await.unwrap();
    read(&two).await;
    assert!(two.claim_this(&web.id, &web.subnets[0], block).await.unwrap());
    let before = kv.snapshot("c/blocks/").await.unwrap().entries;
    assert_eq!(one.give_back(&web.id, block).await.unwrap_err().kind, ProblemKind::NotReady);
    assert_eq!(kv.snapshot("c/blocks/").await.unwrap().entries, before);
}

#[tokio::test]
async fn what_was_lost_with_the_epoch_is_not_given_before_the_store_was_read() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    let two = frozen(dir.path(), "two", &kv).await;
    let lost = attach(&one, "c1", None).await.unwrap();
    let block = one.look(|state| *state.own[&web.id].keys().next().unwrap());
    two.remove_node("one", true).await.unwrap();
    read(&two).await;
    assert!(two.claim_this(&web.id, &web.subnets[0], block).await.unwrap());
    // It registers anew without having seen that it was removed.
    let one = registered(one).await;
    let problem = attach(&one, "c2", None).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::NotReady, "{problem}");
    read(&one).await;
    assert!(one.look(|state| state.view.endpoints.is_empty()));
    let other = attach(&one, "c2", None).await.unwrap();
    assert!(!block.contains(other), "{other} is in {block}, which is two's; {lost} was");
    // And once more, having seen it in the watch.
    two.remove_node("one", true).await.unwrap();
    let from = one.look(|state| state.revision) + 1;
    for change in changes(&kv, from).await {
        one.update(|state| state.follow(&change));
    }
    assert!(one.look(|state| state.me.is_none() && state.own.is_empty() && state.view.endpoints.is_empty()));
    assert_eq!(attach(&one, "c3", None).await.unwrap_err().kind, ProblemKind::NotReady);
    let one = registered(one).await;
    assert!(one.look(|state| state.own.is_empty() && state.me.as_ref().unwrap().host.epoch == 3));
}

#[tokio::test]
async fn a_late_watch_does_not_bring_back_what_was_given_back() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    read(&one).await;
    let from = one.look(|state| state.revision) + 1;
    attach(&one, "c1", None).await.unwrap();
    detach(&one, "c1");
    let block = one.look(|state| *state.own[&web.id].keys().next().unwrap());
    one.give_back(&web.id, block).await.unwrap();
    let told = changes(&kv, from).await;
    assert!(told.iter().any(|change| change.value.is_some()), "the claim is among them");
    for change in told {
        one.update(|state| state.follow(&change));
        assert!(one.look(|state| state.own_block(&web.id, block).is_none()), "after {change:?}");
    }
}

#[tokio::test]
async fn single_addresses_in_a_new_block_are_known_though_the_watch_is_behind() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    let two = frozen(dir.path(), "two", &kv).await;
    let three = frozen(dir.path(), "three", &kv).await;
    let from = one.look(|state| state.revision) + 1;
    // Had by two, given back, had by three.
    let single = "10.42.0.20";
    attach(&two, "d1", Some(single)).await.unwrap();
    detach(&two, "d1");
    two.give_back(&web.id, net("10.42.0.20/32")).await.unwrap();
    attach(&three, "e1", Some(single)).await.unwrap();
    // One takes both blocks, and fills them.
    for block in ["10.42.0.0/28", "10.42.0.16/28"] {
        assert!(one.claim_this(&web.id, &web.subnets[0], net(block)).await.unwrap());
    }
    let mut given = Vec::new();
    let known = || one.look(|state| state.single(&web.id, single.parse().unwrap()).is_some());
    assert!(known());
    for change in changes(&kv, from).await {
        one.update(|state| state.follow(&change));
        assert!(known(), "after {change:?}");
    }
    while let Ok(address) = attach(&one, &format!("c{}", given.len()), None).await {
        given.push(address);
    }
    assert_eq!(
        given.len(),
        26,
        "32 less the subnet's own, broadcast, gateway, two of the host's, and the lent one"
    );
    assert!(!given.contains(&single.parse().unwrap()));
    let shown = one.look(|state| state.view.endpoints.len());
    assert_eq!(shown, 26);
}

#[tokio::test]
async fn a_block_whose_host_address_somebody_has_is_not_claimed() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    let two = frozen(dir.path(), "two", &kv).await;
    // The first of the second block would be its owner's own.
    attach(&two, "d1", Some("10.42.0.16")).await.unwrap();
    assert!(!one.claim_this(&web.id, &web.subnets[0], net("10.42.0.16/28")).await.unwrap());
    assert!(one.claim_this(&web.id, &web.subnets[0], net("10.42.0.0/28")).await.unwrap());
    // Its other addresses can be had one by one.
    let mut given = Vec::new();
    while let Ok(address) = attach(&one, &format!("c{}", given.len()), None).await {
        given.push(address);
    }
    assert_eq!(
        given.len(),
        13 + 14,
        "all of the first block, and of the second less the broadcast and what two has"
    );
}

#[tokio::test]
async fn a_block_that_is_being_given_back_is_not_used() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    attach(&one, "c1", None).await.unwrap();
    detach(&one, "c1");
    let block = one.look(|state| *state.own[&web.id].keys().next().unwrap());
    // As when the store's answer to the giving back is missing.
    one.update(|state| {
        state.returning.insert((web.id.clone(), block));
        state.own_changed = true;
    });
    let other = attach(&one, "c2", None).await.unwrap();
    assert!(!block.contains(other));
    // Nor after a restart that finds no store.
    drop(one);
    let one = open(dir.path(), "one", &kv);
    let own: Vec<IpNetwork> = one.look(|state| state.own[&web.id].keys().copied().collect());
    assert!(!own.contains(&block) && own.len() == 1, "{own:?}");
    // The giving back is repeated, and then known.
    read(&one).await;
    one.update(|state| state.returning.insert((web.id.clone(), block)));
    one.give_back(&web.id, block).await.unwrap();
    assert!(one.look(|state| state.returning.is_empty() && state.own_block(&web.id, block).is_none()));
    assert_eq!(keys_below(&kv, "c/blocks/").await.len(), 1);
}

#[tokio::test]
async fn a_lent_address_is_known_after_a_restart_without_the_store() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    let two = frozen(dir.path(), "two", &kv).await;
    assert!(one.claim_this(&web.id, &web.subnets[0], net("10.42.0.16/28")).await.unwrap());
    read(&two).await;
    two.update(|state| state.live.insert("one".into()));
    let ip: IpAddr = "10.42.0.20".parse().unwrap();
    // Nobody answers in time: it is withdrawn, and nothing is left of it.
    let problem = attach(&two, "d1", Some("10.42.0.20")).await.unwrap_err();
    assert!(problem.message.contains("did not answer in time"), "{problem}");
    assert_eq!(keys_below(&kv, "c/singles/").await, Vec::<String>::new());
    let asking = attach(&two, "d1", Some("10.42.0.20"));
    let answering = async {
        while !one.look(|state| state.single(&web.id, ip).is_some()) {
            read(&one).await;
        }
        one.answer(&web.id, ip).await.unwrap();
        read(&two).await;
    };
    let (had, ()) = tokio::join!(asking, answering);
    assert_eq!(had.unwrap(), ip);
    drop(one);
    let one = open(dir.path(), "one", &kv);
    assert!(!one.look(|state| state.owns(&web.id, ip)));
    let problem = attach(&one, "c1", Some("10.42.0.20")).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Taken, "{problem}");
}

#[tokio::test]
async fn an_agent_that_ends_between_the_mark_and_the_record_is_taken_up_by_its_own_host() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    attach(&one, "c1", None).await.unwrap();
    let marked = one.look(|state| {
        let mut host = state.me.as_ref().unwrap().host.clone();
        host.removed = true;
        host
    });
    let put = Op::Put(keys::host("one"), keys::json(&marked), None);
    kv.commit(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
    let one = registered(one).await;
    assert_eq!(keys_below(&kv, "c/blocks/").await, Vec::<String>::new());
    assert!(one.look(|state| state.view.endpoints.is_empty() && !state.own.contains_key(&web.id)));
}

#[test]
fn nodes_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + Clone + 'static>() {}
    shared::<Node>();
}

#[tokio::test]
async fn what_the_process_before_sent_last_is_not_done_after_a_restart() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    attach(&one, "c1", None).await.unwrap();
    detach(&one, "c1");
    let (me, block, changed) = one.look(|state| {
        let (block, own) = state.own[&web.id].first_key_value().unwrap();
        (state.me.clone().unwrap(), *block, own.changed)
    });
    drop(one);
    let one = frozen(dir.path(), "one", &kv).await;
    attach(&one, "c2", None).await.unwrap();
    // The giving back of before reaches the store only now.
    let key = keys::block(&web.id, block);
    let late = Txn {
        when: vec![
            ovl_store::Compare::Unchanged(key.clone(), changed),
            ovl_store::Compare::Unchanged(keys::host("one"), me.changed),
        ],
        then: vec![Op::Delete(key)],
        otherwise: Vec::new(),
    };
    assert!(!kv.commit(late).await.unwrap().held);
    assert_eq!(keys_below(&kv, "c/blocks/").await.len(), 1);
}

#[tokio::test]
async fn what_is_owned_is_not_read_from_a_file_that_could_not_be_written() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    attach(&one, "c1", None).await.unwrap();
    detach(&one, "c1");
    let block = one.look(|state| *state.own[&web.id].keys().next().unwrap());
    // Such as a full disk.
    std::fs::create_dir(dir.path().join("one/own.new")).unwrap();
    one.give_back(&web.id, block).await.unwrap();
    drop(one);
    let one = open(dir.path(), "one", &kv);
    assert!(one.look(|state| state.own.is_empty()), "it would give addresses of {block}, which is anybody's");
}

#[tokio::test]
async fn while_the_store_is_away_nothing_is_gathered_for_it_and_all_is_told_afterwards() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    network(&one).await;
    attach(&one, "c1", None).await.unwrap();
    one.publish_some().await.unwrap();
    one.update(|state| state.following = false);
    for number in 0..3 {
        attach(&one, &format!("d{number}"), None).await.unwrap();
    }
    detach(&one, "c1");
    detach(&one, "d2");
    assert_eq!(one.look(|state| state.publish.len()), 0);
    read(&one).await;
    one.mend_published().await.unwrap();
    while one.look(|state| !state.publish.is_empty()) {
        one.publish_some().await.unwrap();
    }
    let told = keys_below(&kv, "e/").await;
    let names: Vec<&str> = told.iter().map(|key| key.rsplit('/').nth(1).unwrap()).collect();
    assert_eq!(names, ["d0", "d1"]);
}

#[tokio::test]
async fn of_a_network_that_is_gone_nothing_is_kept() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    attach(&one, "c1", None).await.unwrap();
    detach(&one, "c1");
    let block = one.look(|state| *state.own[&web.id].keys().next().unwrap());
    one.give_back(&web.id, block).await.unwrap();
    one.remove_network("web").await.unwrap();
    one.forget_gone();
    assert!(crate::inner::lock(&one.claiming).is_empty());
    assert!(one.look(|state| {
        state.own.is_empty()
            && state.ids.is_empty()
            && state.network_changed.is_empty()
            && state.parts.is_empty()
    }));
}

#[tokio::test]
async fn while_the_store_is_away_nobody_is_woken_to_answer_for_single_addresses() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    let woken = || tokio::time::timeout(Duration::from_millis(20), one.wake.consent.notified());
    one.update(|state| {
        state.following = false;
        state.asked.insert((web.id.clone(), "10.42.0.20".parse().unwrap()));
    });
    assert!(woken().await.is_err(), "who answers looks whether it can, and would wake itself without end");
    one.update(|state| state.following = true);
    assert!(woken().await.is_ok());
}

/// How long the state is locked while everything is read again:
/// `cargo test --release -p ovl-claims --lib -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "measures, proves nothing"]
async fn time_of_a_snapshot_that_is_applied() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let network = network(&one).await;
    let mut puts = Vec::new();
    for host in 0..5000u32 {
        let id = format!("{host:032x}");
        let record = serde_json::json!({
            "name": format!("host{host:04}"), "id": id, "epoch": 1, "vtep": "172.16.0.1", "segment": "172.16.0.0/12", "port": 4789
        });
        puts.push(Op::Put(format!("c/hosts/host{host:04}"), serde_json::to_vec(&record).unwrap(), None));
        puts.push(Op::Put(format!("c/live/host{host:04}"), Vec::new(), None));
        let claim = keys::Claim { host: format!("host{host:04}"), id, epoch: 1 };
        for block in 0..4 {
            let key = format!("c/blocks/{}/4-{:08x}-26", network.id, (10 << 24) + ((host * 4 + block) << 6));
            puts.push(Op::Put(key, keys::json(&claim), None));
        }
    }
    for some in puts.chunks(100) {
        kv.commit(Txn { then: some.to_vec(), ..Txn::default() }).await.unwrap();
    }
    for round in ["first", "again", "again", "again", "again"] {
        let snapshot = kv.snapshot(keys::FOLLOWED).await.unwrap();
        let started = std::time::Instant::now();
        let whole = Whole::of(&snapshot);
        let read = started.elapsed();
        one.update(|state| state.replace(whole));
        let locked = started.elapsed() - read;
        eprintln!("{} keys, {round}: read in {read:.1?}, locked for {locked:.1?}", snapshot.entries.len());
    }
}
