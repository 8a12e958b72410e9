//! Hosts: registering, names, epochs, removal, what comes back.

use crate::agent::{Agent, attach, conf, dir, eventually, local_store, quick, retry};
use ovl_api::model::Host;
use ovl_api::wire::{Attach, NetworkCreate, ProblemKind};
use ovl_store::{Compare, Kv, Op, Txn};
use std::net::IpAddr;

async fn record(kv: &Kv, name: &str) -> Option<Host> {
    let hosts = kv.snapshot("c/hosts/").await.unwrap().entries;
    let entry = hosts.into_iter().find(|entry| entry.key == format!("c/hosts/{name}"));
    entry.map(|entry| serde_json::from_slice(&entry.value).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_comes_back_keeps_its_blocks_and_tells_its_new_vtep() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    one.create("web", &["10.42.0.0/16"]).await;
    let grant = one.attach("web", "c1").await.unwrap();
    let before = record(&kv, "one").await.unwrap();
    assert_eq!(before.epoch, 1);
    one.kill().await;
    let mut moved = conf(dir.path(), "one", &kv, quick());
    moved.vtep = "198.51.100.7".parse().unwrap();
    let one = Agent::ready(moved).await;
    let after = record(&kv, "one").await.unwrap();
    let vtep_since = after.vtep_since;
    assert!(vtep_since > before.vtep_since, "{vtep_since}");
    assert_eq!(after, Host { vtep: "198.51.100.7".parse().unwrap(), vtep_since, ..before });
    assert_eq!(one.shown(), [grant.addresses[0].ip()]);
    one.attach("web", "c2").await.unwrap();
    assert_eq!(kv.snapshot("c/blocks/").await.unwrap().entries.len(), 1);
    // The address may change while it runs, too.
    let again: IpAddr = "198.51.100.8".parse().unwrap();
    one.node.set_vtep(again, None);
    eventually("the record is written anew", || one.view(|view| view.my_host().unwrap().vtep == again)).await;
    eventually("it is followed", || one.node.status().connected).await;
    retry(|| one.attach("web", "c3")).await;
    assert_eq!(record(&kv, "one").await.unwrap().vtep, again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_installation_of_the_same_name_is_told_how_to_mend_it() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    let elsewhere = crate::agent::dir();
    let other = Agent::start(conf(elsewhere.path(), "one", &kv, quick()));
    eventually("the other is refused", || other.node.status().error.is_some()).await;
    let error = other.node.status().error.unwrap();
    assert!(error.contains("as one (VTEP 192.0.2."), "{error}");
    assert!(error.contains("--node-name") && error.contains("ovl-agent node rm one"), "{error}");
    assert!(!other.node.synced());
    let refused = other.attach("web", "c1").await.unwrap_err();
    assert_eq!((refused.kind, &refused.message), (ProblemKind::NotReady, &error));
    let problem = other.try_create("web", &["10.42.0.0/16"]).await.unwrap_err();
    assert_eq!((problem.kind, problem.message), (ProblemKind::NotReady, error));
    // Once the first is gone and removed, the name is free.
    one.node.stop().await;
    one.kill().await;
    let helper = Agent::ready(conf(dir.path(), "helper", &kv, quick())).await;
    helper.node.remove_node("one", false).await.unwrap();
    other.wait_ready().await;
    assert_eq!(record(&kv, "one").await.unwrap().epoch, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_host_is_removed_only_by_force_and_comes_back_fenced() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    let two = Agent::ready(conf(dir.path(), "two", &kv, quick())).await;
    one.create("web", &["10.42.0.0/16"]).await;
    one.attach("web", "c1").await.unwrap();
    one.attach_at("web", "c2", "10.42.99.7").await.unwrap();
    let nodes = retry(|| async { two.node.nodes().await }).await;
    assert_eq!(nodes.len(), 2);
    let problem = two.node.remove_node("one", false).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::InUse);
    assert!(problem.message.contains("--force"), "{problem}");
    assert_eq!(two.node.remove_node("none", false).await.unwrap_err().kind, ProblemKind::NotFound);
    two.node.remove_node("one", true).await.unwrap();
    // It registers anew, and claims again what nobody took meanwhile.
    let registered = || async {
        let anew = record(&kv, "one").await.filter(|record| record.epoch == 2);
        anew.ok_or_else(|| ovl_api::wire::Problem::new(ProblemKind::NotReady, "one has not registered anew"))
    };
    retry(registered).await;
    eventually("it is back", || one.node.status().connected && one.shown().len() == 2).await;
    retry(|| one.attach("web", "c3")).await;
    retry(|| one.node.sync()).await;
    let alive = || async {
        let nodes = two.node.nodes().await?;
        let one = nodes.into_iter().find(|node| node.host.name == "one");
        one.filter(|one| one.alive && one.host.epoch == 2)
            .ok_or_else(|| ovl_api::wire::Problem::new(ProblemKind::NotReady, "one is not seen alive"))
    };
    assert_eq!(retry(alive).await.blocks, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_lost_its_block_withdraws_its_containers_and_can_still_detach_them() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    let two = Agent::ready(conf(dir.path(), "two", &kv, quick())).await;
    let subnets = vec!["10.42.0.0/29".parse().unwrap()];
    let ask = NetworkCreate { name: "web".into(), subnets, ..NetworkCreate::default() };
    one.node.create_network(&ask, String::new(), &[]).await.unwrap();
    let lost = one.attach_at("web", "c1", "10.42.0.3").await.unwrap().addresses[0].ip();
    one.kill().await;
    two.node.remove_node("one", true).await.unwrap();
    // Both blocks are two's, and so is the address.
    for i in 0..3 {
        retry(|| async { two.attach("web", &format!("d{i}")).await.map(drop) }).await;
    }
    assert!(two.shown().contains(&lost), "{:?}", two.shown());
    let one = Agent::start(conf(dir.path(), "one", &kv, quick()));
    eventually("one is back", || one.node.status().connected).await;
    assert_eq!(one.shown(), Vec::<IpAddr>::new());
    let fenced = |endpoints: &[ovl_api::wire::EndpointDetail]| {
        endpoints.iter().any(|e| e.host == "one" && e.container == "c1" && e.fenced)
    };
    assert!(fenced(&one.node.detail("web").await.unwrap().endpoints));
    let told = || async {
        let detail = two.node.detail("web").await?;
        let none = ovl_api::wire::Problem::new(ProblemKind::NotReady, "not told");
        fenced(&detail.endpoints).then_some(()).ok_or(none)
    };
    retry(told).await;
    one.detach("web", "c1").await;
    assert_eq!(one.node.detail("web").await.unwrap().endpoints.len(), 3);
    // What is free again may be had again, by anybody.
    two.detach("web", "d0").await;
    retry(|| one.attach("web", "c2")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_was_broken_off_is_ended_by_another_or_by_the_host_itself() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let helper = Agent::ready(conf(dir.path(), "helper", &kv, quick())).await;
    helper.create("web", &["10.42.0.0/16"]).await;
    for round in 0..2 {
        let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
        let epoch = record(&kv, "one").await.unwrap().epoch;
        retry(|| async { one.attach("web", &format!("c{round}")).await.map(drop) }).await;
        one.kill().await;
        // The mark alone, as a removal leaves it that is killed behind its first transaction.
        let marked = Host { removed: true, ..record(&kv, "one").await.unwrap() };
        let put = Op::Put("c/hosts/one".into(), serde_json::to_vec(&marked).unwrap(), None);
        let when = vec![Compare::Present("c/hosts/one".into())];
        assert!(kv.commit(Txn { when, then: vec![put], otherwise: vec![] }).await.unwrap().held);
        if round == 0 {
            // No force is needed: it was declared gone already.
            helper.node.remove_node("one", false).await.unwrap();
            assert_eq!(record(&kv, "one").await, None);
            assert_eq!(kv.snapshot("c/blocks/").await.unwrap().entries, []);
            assert_eq!(kv.snapshot("e/").await.unwrap().entries, []);
        } else {
            let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
            assert_eq!(record(&kv, "one").await.unwrap().epoch, epoch + 1);
            eventually("its containers are back", || one.shown().len() == 2).await;
            one.kill().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reboot_voids_leases_and_an_attach_that_was_broken_off_leaves_none() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    let network = one.create("web", &["10.42.0.0/16"]).await;
    one.attach("web", "c1").await.unwrap();
    one.kill().await;
    // A lease without an endpoint's file, as a kill between the two leaves it.
    let of = conf(dir.path(), "one", &kv, quick());
    let leases = ipam::Store::open(&of.root.join("leases"), &of.boot_id).unwrap().store;
    let lease = ipam::Lease {
        network: network.id.clone(),
        address: "10.42.0.9".parse().unwrap(),
        attachment: ipam::Attachment::new("half", "eth0"),
        boot: of.boot_id.clone(),
        time: std::time::SystemTime::now(),
        netns: None,
    };
    leases.rebuild([lease]).unwrap();
    drop(leases);
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    assert_eq!(one.shown().len(), 1);
    let leases = ipam::Store::open(&of.root.join("leases"), &of.boot_id).unwrap().store;
    assert_eq!(leases.leases(None).unwrap().len(), 1);
    drop(leases);
    let one_again = one.node.clone();
    one.kill().await;
    // A local store's leases end with its process, which goes on here.
    one_again.stop().await;
    let rebooted = ovl_claims::NodeConf { boot_id: "boot-2".into(), ..of.clone() };
    let one = Agent::ready(rebooted).await;
    assert_eq!(one.shown(), Vec::<IpAddr>::new());
    retry(|| one.attach("web", "c1")).await;
    // A host's name that could not be a key is refused at once.
    let wrong = ovl_claims::NodeConf { name: "a/b".into(), ..of };
    let problem = ovl_claims::Node::open(wrong).unwrap_err();
    assert_eq!((problem.kind, problem.field.as_deref()), (ProblemKind::Invalid, Some("--node-name")));
    for (container, ifname, veth) in
        [("", "eth0", "v1"), ("c/1", "eth0", "v1"), ("c1", "e/0", "v1"), ("c1", "eth0", "../v")]
    {
        let ask = Attach {
            container: container.into(),
            ifname: ifname.into(),
            veth: veth.into(),
            ..attach("web", "x")
        };
        assert_eq!(one.node.attach(&ask).await.unwrap_err().kind, ProblemKind::Invalid);
    }
}
