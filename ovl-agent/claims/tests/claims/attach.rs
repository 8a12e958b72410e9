//! Addresses: from own blocks, asked for, borrowed, given back.

use crate::agent::{Agent, attach, conf, detach, dir, eventually, local_store, quick, retry, text};
use crate::networks::futures_join;
use ovl_api::wire::{Attach, Gc, NetworkCreate, ProblemKind};
use ovl_claims::Timing;
use std::collections::BTreeSet;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_gets_an_address_of_each_family_and_gives_them_back() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    one.create("web", &["10.42.0.0/16", "fd00:42::/64"]).await;
    let grant = one.attach("web", "c1").await.unwrap();
    assert_eq!(grant.addresses.len(), 2, "{:?}", text(&grant.addresses));
    assert_eq!((grant.addresses[0].prefix(), grant.addresses[1].prefix()), (16, 64));
    assert!(grant.mac.starts_with("02:") || u8::from_str_radix(&grant.mac[..2], 16).unwrap() & 3 == 2);
    assert_eq!(one.view(|view| view.endpoints["vc1"].mac.clone()), grant.mac);
    let problem = one.attach("web", "c1").await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Duplicate);
    one.node.settle(&grant).await;
    let mac = Some("02:00:00:00:00:AA".to_owned());
    let asked = one.node.attach(&Attach { mac, ..attach("web", "c2") }).await.unwrap();
    assert_eq!(asked.mac, "02:00:00:00:00:aa");
    assert_eq!(asked.claimed, None, "the block was settled, so nobody waits");
    one.detach("web", "c1").await;
    one.detach("web", "c1").await;
    assert_eq!(one.shown(), asked.addresses.iter().map(|net| net.ip()).collect::<Vec<_>>());
    let gc = Gc { network: "web".into(), valid: vec![("c9".into(), "eth0".into())] };
    assert_eq!(one.node.gc(&gc).await.unwrap().removed, 1);
    assert!(one.shown().is_empty());
    assert_eq!(one.node.detail("web").await.unwrap().endpoints, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_share_claims_and_the_oldest_released_comes_first() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    one.create("web", &["10.42.0.0/16"]).await;
    let names: Vec<String> = (0..100).map(|i| format!("c{i}")).collect();
    let grants = futures_join(names.iter().map(|name| one.attach("web", name))).await;
    let addresses: BTreeSet<_> = grants.into_iter().map(|grant| grant.unwrap().addresses[0].ip()).collect();
    assert_eq!(addresses.len(), 100);
    let blocks = kv.snapshot("c/blocks/").await.unwrap().entries.len();
    assert!((2..=3).contains(&blocks), "100 addresses are two blocks' worth, and one ahead: {blocks}");
    let gateway = "10.42.0.1".parse().unwrap();
    assert!(!addresses.contains(&gateway));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_released_longest_ago_is_given_first() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    let subnets = vec!["10.42.0.0/27".parse().unwrap()];
    let ask = NetworkCreate { name: "web".into(), subnets, block_size: Some(28), ..NetworkCreate::default() };
    one.node.create_network(&ask, String::new(), &[]).await.unwrap();
    let mut given = Vec::new();
    for i in 0..27 {
        given.push(one.attach("web", &format!("c{i}")).await.unwrap().addresses[0].ip());
    }
    for i in [7, 3, 20] {
        one.detach("web", &format!("c{i}")).await;
    }
    for i in [7, 3, 20] {
        let again = one.attach("web", &format!("again{i}")).await.unwrap();
        assert_eq!(again.addresses[0].ip(), given[i]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_asked_for_is_had_wherever_it_lies_unless_somebody_has_it() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    let two = Agent::ready(conf(dir.path(), "two", &kv, quick())).await;
    one.create("web", &["10.42.0.0/16"]).await;
    let first = one.attach("web", "c1").await.unwrap();
    let block = one.view(|view| *view.blocks(&first.network.id).next().unwrap().0);
    // In a block that nobody owns.
    two.attach_at("web", "d1", "10.42.200.9").await.unwrap();
    // In the other's block, with its consent.
    let in_block = block.iter().nth(40).unwrap().to_string();
    retry(|| async { two.attach_at("web", "d2", &in_block).await.map(drop) }).await;
    assert!(two.shown().contains(&in_block.parse().unwrap()));
    let problem = one.attach_at("web", "c2", &in_block).await.unwrap_err();
    assert_eq!((problem.kind, problem.field.as_deref()), (ProblemKind::Taken, Some("--ip")));
    assert!(problem.message.contains("host two"), "{problem}");
    // The owner does not give what it gave already, nor its own address.
    let taken = first.addresses[0].ip().to_string();
    let problem = two.attach_at("web", "d3", &taken).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Taken);
    assert!(problem.message.contains("host one"), "{problem}");
    let own =
        ovl_api::names::host_address("10.42.0.0/16".parse().unwrap(), "10.42.0.1".parse().unwrap(), block);
    let own = own.unwrap().to_string();
    let problem = two.attach_at("web", "d3", &own).await.unwrap_err();
    assert!(problem.message.contains("own address"), "{problem}");
    let problem = one.attach_at("web", "c2", &own).await.unwrap_err();
    assert!(problem.message.contains("host itself"), "{problem}");
    for (ip, why) in [
        ("10.42.0.1", "gateway"),
        ("10.42.0.0", "own address"),
        ("10.42.255.255", "broadcast"),
        ("10.43.0.1", "not in 10.42.0.0/16"),
        ("fd00::1", "no IPv6 subnet"),
    ] {
        let problem = two.attach_at("web", "d3", ip).await.unwrap_err();
        assert_eq!((problem.kind, problem.field.as_deref()), (ProblemKind::Invalid, Some("--ip")));
        assert!(
            problem.message.starts_with(&format!("--ip {ip}")) && problem.message.contains(why),
            "{problem}"
        );
    }
    // A detached one goes back to the block's owner, who can give it then.
    two.detach("web", "d2").await;
    retry(|| async { one.attach_at("web", "c2", &in_block).await.map(drop) }).await;
    // A dead owner cannot consent, and the error says who that is.
    one.node.stop().await;
    one.kill().await;
    let free = block.iter().nth(41).unwrap().to_string();
    eventually("two sees that one is gone", || two.view(|view| view.hosts.contains_key("one"))).await;
    let problem = retry(|| async {
        match two.attach_at("web", "d4", &free).await {
            Err(problem) if problem.message.contains("does not answer") => Ok(problem),
            other => Err(other.err().unwrap_or_else(|| panic!("the owner is dead"))),
        }
    })
    .await;
    assert!(problem.message.contains("host one") && problem.message.contains("node rm one"), "{problem}");
    two.node.sync().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_no_block_is_left_single_addresses_are_borrowed_until_none_is() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    let two = Agent::ready(conf(dir.path(), "two", &kv, quick())).await;
    let ask = NetworkCreate {
        name: "web".into(),
        subnets: vec!["10.42.0.0/27".parse().unwrap()],
        block_size: Some(28),
        ..NetworkCreate::default()
    };
    one.node.create_network(&ask, String::new(), &[]).await.unwrap();
    one.attach("web", "c0").await.unwrap();
    // Two blocks of 16, of which the subnet's own, the gateway, a host's own in each and the broadcast are not given.
    let mut own = 1;
    loop {
        let name = format!("c{own}");
        match one.attach("web", &name).await {
            Ok(_) => own += 1,
            Err(problem) => {
                assert_eq!(problem.kind, ProblemKind::Full, "{problem}");
                break;
            }
        }
    }
    assert_eq!(own, 27, "32 less 5");
    let problem = two.attach("web", "d0").await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Full, "{problem}");
    assert!(problem.message.contains("10.42.0.0/27"), "{problem}");
    for i in [3, 19, 8] {
        one.detach("web", &format!("c{i}")).await;
    }
    let mut borrowed = BTreeSet::new();
    for i in 0..3 {
        let name = format!("d{i}");
        let grant = retry(|| two.attach("web", &name)).await;
        borrowed.insert(grant.addresses[0].ip());
        assert!(two.shown().contains(&grant.addresses[0].ip()));
    }
    assert_eq!(borrowed.len(), 3);
    eventually("one sees who has them", || {
        one.view(|view| view.owners.iter().filter(|((_, b), h)| b.prefix() == 32 && *h == "two").count() == 3)
    })
    .await;
    assert_eq!(one.attach("web", "c3").await.unwrap_err().kind, ProblemKind::Full);
    two.detach("web", "d1").await;
    retry(|| one.attach("web", "c3")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_blocks_are_given_back_but_not_all_while_something_is_attached() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    let ask = NetworkCreate {
        name: "web".into(),
        subnets: vec!["10.42.0.0/24".parse().unwrap()],
        block_size: Some(28),
        ..NetworkCreate::default()
    };
    one.node.create_network(&ask, String::new(), &[]).await.unwrap();
    for i in 0..40 {
        one.attach("web", &format!("c{i}")).await.unwrap();
    }
    assert!(one.view(|view| view.owners.len()) >= 3);
    for i in 1..40 {
        one.detach("web", &format!("c{i}")).await;
    }
    eventually("one block is left", || one.view(|view| view.owners.len()) == 1).await;
    assert_eq!(one.shown().len(), 1);
    one.detach("web", "c0").await;
    eventually("no block is left", || one.view(|view| view.owners.is_empty())).await;
    assert_eq!(kv.snapshot("c/blocks/").await.unwrap().entries, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn release_notes_are_read_at_the_start_and_later() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let of = |name| conf(dir.path(), name, &kv, quick());
    let one = Agent::ready(of("one")).await;
    one.create("web", &["10.42.0.0/16"]).await;
    for name in ["c1", "c2", "c3"] {
        one.attach("web", name).await.unwrap();
    }
    let notes = ovl_api::names::release_notes(&of("one").root);
    std::fs::create_dir_all(&notes).unwrap();
    let note = |name: &str| {
        std::fs::write(notes.join(name), serde_json::to_vec(&detach("web", name)).unwrap()).unwrap();
    };
    one.kill().await;
    note("c1");
    note("unknown");
    let one = Agent::start(of("one"));
    assert_eq!(one.view(|view| view.endpoints.keys().cloned().collect::<Vec<_>>()), ["vc2", "vc3"]);
    note("c3");
    eventually("the note is read", || one.shown().len() == 1).await;
    eventually("the notes are gone", || std::fs::read_dir(&notes).unwrap().next().is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attachment_is_ended_when_its_link_was_missing_at_every_look_for_long() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let timing = Timing { missing: Duration::from_millis(150), ..quick() };
    let one = Agent::ready(conf(dir.path(), "one", &kv, timing)).await;
    one.create("web", &["10.42.0.0/16"]).await;
    for container in ["lost", "there", "again", "new"] {
        one.attach("web", container).await.unwrap();
    }
    let look = |has: &[&str]| one.node.missing(|veth| has.contains(&veth)).unwrap();
    let containers = || {
        let mut all = one.view(|view| view.endpoints.keys().cloned().collect::<Vec<_>>());
        all.sort();
        all
    };
    let pause = async || tokio::time::sleep(Duration::from_millis(100)).await;
    look(&["vthere", "vnew"]);
    assert_eq!(containers().len(), 4, "under way");
    pause().await;
    // One that was seen once is not missing since before that, and a new attachment not since the one before it.
    look(&["vthere", "vagain", "vnew"]);
    assert_eq!(containers().len(), 4, "not for long enough");
    one.detach("web", "new").await;
    one.attach("web", "new").await.unwrap();
    pause().await;
    look(&["vthere"]);
    assert_eq!(containers(), ["vagain", "vnew", "vthere"]);
    one.detach("web", "lost").await;
    for _ in 0..2 {
        pause().await;
        look(&["vthere"]);
    }
    assert_eq!(containers(), ["vthere"]);
    // Gone for good: a restart does not bring them back, and the address is free.
    one.kill().await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    assert_eq!(one.shown().len(), 1);
}
