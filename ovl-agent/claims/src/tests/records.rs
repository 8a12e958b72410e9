//! Records that are not what an agent of this release writes.

use super::*;

const TWO: &str = r#"{"name":"two","id":"aa","epoch":1,"vtep":"192.0.2.250","port":4789}"#;
const CLAIM: &str = r#"{"host":"two","id":"aa","epoch":1}"#;

async fn put(kv: &Kv, key: &str, value: &str) {
    let put = Op::Put(key.to_owned(), value.as_bytes().to_vec(), None);
    kv.commit(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
}

async fn delete(kv: &Kv, key: &str) {
    kv.commit(Txn { then: vec![Op::Delete(key.to_owned())], ..Txn::default() }).await.unwrap();
}

/// Applies what the store was told since, as the watch does.
async fn follow(inner: &Inner, kv: &Kv) {
    let from = inner.look(|state| state.revision) + 1;
    for change in changes(kv, from).await {
        inner.update(|state| {
            state.follow(&change);
            state.reached(change.revision);
        });
    }
}

fn held(inner: &Inner) -> Vec<String> {
    inner.look(|state| state.held.keys().cloned().collect())
}

fn why(inner: &Inner, key: &str) -> String {
    inner.look(|state| state.held.get(key).map(|held| held.why.clone()).unwrap_or_default())
}

#[tokio::test]
async fn invalid_record_keeps_the_last_valid_value() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    put(&kv, &keys::host("two"), TWO).await;
    read(&one).await;
    let before = one.look(|state| (state.view.networks.clone(), state.view.hosts.clone()));
    assert!(before.1.contains_key("two") && before.0.contains_key(&web.id));
    let mine = one.look(|state| state.me.as_ref().unwrap().host.vtep.to_string());
    for (from, to) in [
        ("4789", "\"4789\""),
        ("4789", "0"),
        ("192.0.2.250", "127.0.0.1"),
        ("192.0.2.250", "239.1.1.1"),
        ("192.0.2.250", "0.0.0.0"),
        ("192.0.2.250", "255.255.255.255"),
        ("192.0.2.250", "169.254.0.1"),
        ("192.0.2.250", "::"),
        ("192.0.2.250", "fe80::1"),
        ("192.0.2.250", "::ffff:192.0.2.2"),
        ("192.0.2.250", "192.0.2.255\",\"segment\":\"192.0.2.0/24"),
        ("192.0.2.250", "192.0.2.0\",\"segment\":\"192.0.2.0/24"),
        ("192.0.2.250", "10.42.0.9"),
        ("192.0.2.250", mine.as_str()),
        ("4789", "4789,\"segment\":\"0.0.0.0/0\""),
        ("4789", "4789,\"segment\":\"198.51.100.0/24\""),
        ("\"two\"", "\"three\""),
        ("{", ""),
    ] {
        let wrong = TWO.replace(from, to);
        assert_ne!(wrong, TWO);
        put(&kv, &keys::host("two"), &wrong).await;
        follow(&one, &kv).await;
        assert_eq!(one.look(|state| state.view.hosts.clone()), before.1, "{wrong}");
        assert_eq!(held(&one), [keys::host("two")], "{wrong}");
        read(&one).await;
        assert_eq!(one.look(|state| state.view.hosts.clone()), before.1, "{wrong}");
        assert_eq!(held(&one), [keys::host("two")], "{wrong}");
    }
    put(&kv, &keys::host("two"), TWO).await;
    follow(&one, &kv).await;
    assert_eq!(held(&one), Vec::<String>::new());
    let text = String::from_utf8(keys::json(&web)).unwrap();
    attach(&one, "c1", None).await.unwrap();
    read(&one).await;
    let vni = format!("\"vni\":{}", web.vni);
    let long = format!("\"labels\":{{\"x\":\"{}\"}},\"vni\"", "x".repeat(64 << 10));
    for (from, to) in [
        ("vxlan", "geneve"),
        (vni.as_str(), "\"vni\":0"),
        (vni.as_str(), "\"vni\":16777216"),
        (vni.as_str(), "\"vni\":77"),
        (web.id.as_str(), "../../../../"),
        (web.id.as_str(), "0123456789ab"),
        ("10.42.0.0/27", "10.42.0.1/27"),
        ("10.42.0.0/27", "10.42.0.0/28"),
        ("10.42.0.0/27", "127.0.0.0/27"),
        ("\"block\":28", "\"block\":27"),
        ("\"block\":28", "\"block\":200"),
        ("\"name\":\"web\"", "\"name\":\"other\""),
        ("\"vni\"", "\"mtu\":1,\"vni\""),
        ("\"vni\"", "\"options\":{\"com.docker.network.container_iface_prefix\":\"../x\"},\"vni\""),
        ("\"vni\"", long.as_str()),
    ] {
        let wrong = text.replacen(from, to, 1);
        assert_ne!(wrong, text);
        put(&kv, &keys::network("web"), &wrong).await;
        follow(&one, &kv).await;
        assert_eq!(one.look(|state| state.view.networks.clone()), before.0, "{wrong}");
        assert_eq!(held(&one), [keys::network("web")], "{wrong}");
        let listed = one.networks().await.unwrap();
        assert_eq!(listed.iter().map(|network| network.vni).collect::<Vec<_>>(), [web.vni], "{wrong}");
        read(&one).await;
        assert_eq!(one.look(|state| state.view.networks.clone()), before.0, "{wrong}");
    }
    assert_eq!(one.look(|state| state.view.endpoints.len()), 1);
}

#[tokio::test]
async fn network_with_a_reserved_name_is_held_back() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    let text = String::from_utf8(keys::json(&web)).unwrap();
    for name in ["bridge", "default", "host", "none", "container", "loopback"] {
        let record = text.replace("\"web\"", &format!("\"{name}\"")).replace(&web.id, "0123456789ab");
        let record = record.replace(&web.vni.to_string(), "77").replace("10.42.", "10.43.");
        assert_ne!(record, text);
        put(&kv, &keys::network(name), &record).await;
        follow(&one, &kv).await;
        assert_eq!(held(&one), [keys::network(name)]);
        assert!(why(&one, &keys::network(name)).contains("a meaning of its own"));
        delete(&kv, &keys::network(name)).await;
        follow(&one, &kv).await;
        assert_eq!(held(&one), Vec::<String>::new());
    }
    let fine = text.replace("\"web\"", "\"fine\"").replace(&web.id, "0123456789ab");
    let fine = fine.replace(&web.vni.to_string(), "77").replace("10.42.", "10.43.");
    put(&kv, &keys::network("fine"), &fine).await;
    follow(&one, &kv).await;
    assert_eq!(held(&one), Vec::<String>::new(), "the record is good but for the name");
}

#[tokio::test]
async fn network_that_create_refuses_is_held_back_with_the_reason() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    let (key, option) = (keys::network("web"), ovl_api::names::PREFIX_OPTION);
    for (options, reason) in [
        ([(option, "../x".to_owned())], "allowed is 1 to 13 bytes"),
        ([(option, "x".repeat(100))], "allowed is 1 to 13 bytes"),
        ([("x", "x".repeat(64 << 10))], "expected at most 65536"),
    ] {
        let options = options.map(|(key, value)| (key.to_owned(), value)).into();
        let wrong = Network { options, ..web.clone() };
        put(&kv, &key, &String::from_utf8(keys::json(&wrong)).unwrap()).await;
        follow(&one, &kv).await;
        assert!(why(&one, &key).contains(reason), "{}", why(&one, &key));
        assert_eq!(one.look(|state| state.view.networks.get(&web.id).cloned()), Some(web.clone()));
    }
    let options = [(option.to_owned(), "net".to_owned())].into();
    let fine = Network { options, ..web.clone() };
    put(&kv, &key, &String::from_utf8(keys::json(&fine)).unwrap()).await;
    follow(&one, &kv).await;
    assert_eq!(held(&one), Vec::<String>::new());
}

#[tokio::test]
async fn block_that_is_none_of_its_network_is_held_back() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    put(&kv, &keys::host("two"), TWO).await;
    let me = one.look(|state| state.me.clone()).unwrap();
    let own = String::from_utf8(keys::json(&crate::claim::claim(&me))).unwrap();
    for claim in [CLAIM, own.as_str()] {
        let ranges = ["8.8.8.0/24", "0.0.0.0/0", "::/0", "10.42.0.0/27", "10.42.0.16/29", "10.42.0.1/28"];
        let wrong: Vec<String> =
            ranges.iter().map(|range| keys::block(&web.id, range.parse().unwrap())).collect();
        for key in &wrong {
            put(&kv, key, claim).await;
        }
        for single in ["10.42.0.1", "10.42.0.0", "10.42.0.31", "8.8.8.8"] {
            let granted = claim.replace('{', "{\"state\":\"granted\",");
            put(&kv, &keys::single(&web.id, single.parse().unwrap()), &granted).await;
        }
        follow(&one, &kv).await;
        let nothing = |state: &crate::state::State| {
            (state.view.owners.len(), state.own.len(), state.singles.len(), state.held.len())
        };
        assert_eq!(one.look(nothing), (0, 0, 0, 10));
        read(&one).await;
        assert_eq!(one.look(nothing), (0, 0, 0, 10));
    }
    for key in keys_below(&kv, "c/blocks/").await.into_iter().chain(keys_below(&kv, "c/singles/").await) {
        delete(&kv, &key).await;
    }
    follow(&one, &kv).await;
    assert_eq!(held(&one), Vec::<String>::new());
}

#[tokio::test]
async fn block_of_another_node_identity_or_epoch_is_held_back() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    put(&kv, &keys::host("two"), TWO).await;
    let key = keys::block(&web.id, net("10.42.0.0/28"));
    for wrong in
        [("two", "three"), ("aa", "bb"), ("\"epoch\":1", "\"epoch\":0"), ("\"epoch\":1", "\"epoch\":2")]
    {
        put(&kv, &key, &CLAIM.replace(wrong.0, wrong.1)).await;
        follow(&one, &kv).await;
        assert_eq!(
            (held(&one), one.look(|state| state.view.owners.len())),
            (vec![key.clone()], 0),
            "{wrong:?}"
        );
    }
    assert!(why(&one, &key).contains("epoch 2: node two is aa, epoch 1"), "{}", why(&one, &key));
    // As soon as the node has the epoch, it is right.
    put(&kv, &keys::host("two"), &TWO.replace("\"epoch\":1", "\"epoch\":2")).await;
    follow(&one, &kv).await;
    assert_eq!((held(&one).len(), one.look(|state| state.view.owners.len())), (0, 1));
}

#[tokio::test]
async fn block_is_checked_when_its_network_or_node_arrives_later() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let two = frozen(dir.path(), "two", &kv).await;
    let web = network(&two).await;
    let record = kv.snapshot("c/networks/").await.unwrap().entries.remove(0);
    delete(&kv, &keys::network("web")).await;
    let (right, wrong) = (keys::block(&web.id, net("10.42.0.0/28")), keys::block(&web.id, net("8.8.8.0/24")));
    for key in [&right, &wrong] {
        put(&kv, key, &CLAIM.replace("two", "three")).await;
    }
    follow(&one, &kv).await;
    assert_eq!(one.look(|state| (state.view.owners.len(), state.held.len())), (0, 2));
    put(&kv, &keys::network("web"), std::str::from_utf8(&record.value).unwrap()).await;
    follow(&one, &kv).await;
    assert_eq!(one.look(|state| (state.view.owners.len(), state.held.len())), (0, 2));
    put(&kv, &keys::host("three"), &TWO.replace("two", "three")).await;
    follow(&one, &kv).await;
    assert_eq!(one.look(|state| state.view.owners.len()), 1);
    assert_eq!(held(&one), [wrong]);
}

#[tokio::test]
async fn second_record_of_an_id_that_comes_and_goes_leaves_the_first() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    attach(&one, "c1", None).await.unwrap();
    read(&one).await;
    let before = one.look(|state| state.view.networks.clone());
    let text = String::from_utf8(keys::json(&web)).unwrap();
    for second in [
        text.replace("\"web\"", "\"copy\""),
        text.replace("\"web\"", "\"copy\"").replace(&web.id, "0123456789ab"),
        text.replace("\"web\"", "\"copy\"").replace(&web.id, "0123456789ab").replace("\"vni\":", "\"vni\":1"),
    ] {
        put(&kv, &keys::network("copy"), &second).await;
        follow(&one, &kv).await;
        assert_eq!(held(&one), [keys::network("copy")], "{second}");
        delete(&kv, &keys::network("copy")).await;
        follow(&one, &kv).await;
        assert_eq!(one.look(|state| state.view.networks.clone()), before, "{second}");
        assert_eq!(held(&one), Vec::<String>::new());
    }
    assert_eq!(one.look(|state| state.view.endpoints.len()), 1);
}

#[tokio::test]
async fn deleted_record_of_what_is_in_use_stays_in_force() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    put(&kv, &keys::host("two"), TWO).await;
    put(&kv, &keys::block(&web.id, net("10.42.0.16/28")), CLAIM).await;
    read(&one).await;
    let before = one.look(|state| state.view.clone());
    for key in [keys::host("two"), keys::network("web")] {
        delete(&kv, &key).await;
    }
    follow(&one, &kv).await;
    assert_eq!(one.look(|state| state.view.clone()), before);
    assert_eq!(held(&one), [keys::host("two"), keys::network("web")]);
    read(&one).await;
    assert_eq!(one.look(|state| state.view.clone()), before);
    // With the last block there is no reason to keep them.
    delete(&kv, &keys::block(&web.id, net("10.42.0.16/28"))).await;
    follow(&one, &kv).await;
    read(&one).await;
    assert_eq!(one.look(|state| (state.view.networks.len(), state.view.hosts.len())), (0, 1));
    assert_eq!(held(&one), Vec::<String>::new());
}

#[tokio::test]
async fn addresses_of_this_node_are_no_other_nodes_vtep() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    put(&kv, &keys::host("two"), TWO).await;
    one.update(|state| state.set_addresses(["192.0.2.250".parse().unwrap()].into()));
    read(&one).await;
    assert_eq!(held(&one), [keys::host("two")]);
    one.update(|state| state.set_addresses(["192.0.2.251".parse().unwrap()].into()));
    assert!(one.look(|state| state.held.is_empty() && state.view.hosts.contains_key("two")));
}

/// A node's record with this last byte of its VTEP.
async fn put_node(kv: &Kv, name: &str, vtep: u8) {
    let record =
        TWO.replace("two", name).replace("aa", &format!("{name}-id")).replace("250", &vtep.to_string());
    put(kv, &keys::host(name), &record).await;
}

/// The nodes in force but the readers, with the last byte of their VTEPs.
fn vteps(inner: &Inner) -> Vec<(String, u8)> {
    let last = |ip: IpAddr| ip.to_string().rsplit('.').next().and_then(|byte| byte.parse().ok()).unwrap_or(0);
    let others = |state: &mut crate::state::State| {
        let mut others: Vec<_> = state
            .view
            .hosts
            .values()
            .filter(|host| !["one", "late"].contains(&host.name.as_str()))
            .cloned()
            .collect();
        others.sort_by(|a, b| a.name.cmp(&b.name));
        others.into_iter().map(|host| (host.name, last(host.vtep))).collect()
    };
    inner.update(|state| others(state))
}

fn nodes(expected: &[(&str, u8)]) -> Vec<(String, u8)> {
    expected.iter().map(|(name, vtep)| ((*name).to_owned(), *vtep)).collect()
}

#[tokio::test]
async fn vtep_of_living_node_is_no_other_nodes() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    // The last of the store's keys was there first.
    put_node(&kv, "zoe", 250).await;
    put(&kv, &keys::live("zoe"), "").await;
    put_node(&kv, "abe", 250).await;
    put(&kv, &keys::live("abe"), "").await;
    read(&one).await;
    assert_eq!((held(&one), vteps(&one)), (vec![keys::host("abe")], nodes(&[("zoe", 250)])));
    assert!(why(&one, &keys::host("abe")).contains("zoe"), "{}", why(&one, &keys::host("abe")));
    // What the watch shows does the same; who writes a record anew is not the younger one for it.
    put_node(&kv, "bob", 250).await;
    put_node(&kv, "zoe", 250).await;
    follow(&one, &kv).await;
    read(&one).await;
    assert_eq!(
        (held(&one), vteps(&one)),
        (vec![keys::host("abe"), keys::host("bob")], nodes(&[("zoe", 250)]))
    );
    // A reader that starts later ranks them alike.
    let late = frozen(dir.path(), "late", &kv).await;
    read(&late).await;
    assert_eq!(held(&late), held(&one));
    delete(&kv, &keys::host("bob")).await;
    // A dead node keeps no address, and has it again when it returns.
    delete(&kv, &keys::live("zoe")).await;
    follow(&one, &kv).await;
    assert_eq!((held(&one), vteps(&one)), (vec![], nodes(&[("abe", 250), ("zoe", 250)])));
    put(&kv, &keys::live("zoe"), "").await;
    follow(&one, &kv).await;
    assert_eq!((held(&one), vteps(&one)), (vec![keys::host("abe")], nodes(&[("zoe", 250)])));
    // It is in force as soon as it has another one.
    put_node(&kv, "abe", 251).await;
    follow(&one, &kv).await;
    assert_eq!((held(&one), vteps(&one)), (vec![], nodes(&[("abe", 251), ("zoe", 250)])));
}

#[tokio::test]
async fn vtep_that_changes_nodes_is_in_force_at_once() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    for (name, vtep) in [("abe", 250), ("bob", 251)] {
        put_node(&kv, name, vtep).await;
        put(&kv, &keys::live(name), "").await;
    }
    read(&one).await;
    // The new one's record comes before the old one's says where it is now.
    put_node(&kv, "bob", 250).await;
    follow(&one, &kv).await;
    assert_eq!((held(&one), vteps(&one)), (vec![keys::host("bob")], nodes(&[("abe", 250), ("bob", 251)])));
    put_node(&kv, "abe", 252).await;
    follow(&one, &kv).await;
    assert_eq!((held(&one), vteps(&one)), (vec![], nodes(&[("abe", 252), ("bob", 250)])));
    // Two that change places.
    put_node(&kv, "abe", 250).await;
    put_node(&kv, "bob", 252).await;
    follow(&one, &kv).await;
    assert_eq!((held(&one), vteps(&one)), (vec![], nodes(&[("abe", 250), ("bob", 252)])));
    // One that is removed has none.
    put(
        &kv,
        &keys::host("abe"),
        &TWO.replace("two", "abe").replace("aa", "abe-id").replace("}", r#","removed":true}"#),
    )
    .await;
    put_node(&kv, "bob", 250).await;
    follow(&one, &kv).await;
    assert_eq!((held(&one), vteps(&one)), (vec![], nodes(&[("abe", 250), ("bob", 250)])));
}

#[tokio::test]
async fn address_whose_record_cannot_be_understood_is_not_given() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    assert!(one.claim_this(&web.id, &web.subnets[0], net("10.42.0.0/28")).await.unwrap());
    let key = keys::single(&web.id, "10.42.0.5".parse().unwrap());
    put(&kv, &key, r#"{"host":"two","id":"aa","epoch":1,"state":"lent"}"#).await;
    follow(&one, &kv).await;
    assert_eq!(held(&one), [key]);
    let problem = attach(&one, "c1", Some("10.42.0.5")).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Taken, "{problem}");
}

/// The removal is known at once, by its own transaction; that the last block went before it, the watch shows later.
#[tokio::test]
async fn removed_network_is_gone_before_the_watch_shows_its_last_block_go() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    put(&kv, &keys::host("two"), TWO).await;
    let block = keys::block(&web.id, "10.42.0.16/28".parse().unwrap());
    put(&kv, &block, CLAIM).await;
    read(&one).await;
    assert!(one.look(|state| state.is_in_use(&web.id)));
    delete(&kv, &block).await;
    one.remove_network("web").await.unwrap();
    assert!(one.look(|state| state.network("web").is_none()), "{:?}", held(&one));
    follow(&one, &kv).await;
    assert!(one.look(|state| state.network("web").is_none()) && held(&one).is_empty(), "{:?}", held(&one));
}

#[tokio::test]
async fn nodes_that_were_removed_while_the_watch_lagged_are_no_fault() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    for (name, vtep) in [("abe", 250), ("bob", 251)] {
        put_node(&kv, name, vtep).await;
    }
    read(&one).await;
    let from = one.look(|state| state.revision) + 1;
    for name in ["abe", "bob"] {
        one.remove_node(name, false).await.unwrap();
    }
    let removed = changes(&kv, from).await;
    assert_eq!(one.look(|state| state.guard_changes(&removed)), None);
    // Of these the store says no more than that they are gone.
    let vanished: Vec<_> = removed.into_iter().filter(|change| change.value.is_none()).collect();
    assert!(one.look(|state| state.guard_changes(&vanished)).is_some());
}

#[tokio::test]
async fn vtep_of_node_whose_deleted_record_is_held_back_stays_its_own() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let network = network(&one).await;
    put_node(&kv, "zoe", 250).await;
    put(&kv, &keys::live("zoe"), "").await;
    let claim = r#"{"host":"zoe","id":"zoe-id","epoch":1}"#;
    put(&kv, &keys::block(&network.id, "10.42.0.16/28".parse().unwrap()), claim).await;
    read(&one).await;
    assert_eq!(vteps(&one), nodes(&[("zoe", 250)]));
    delete(&kv, &keys::host("zoe")).await;
    put_node(&kv, "abe", 250).await;
    put(&kv, &keys::live("abe"), "").await;
    follow(&one, &kv).await;
    assert_eq!(vteps(&one), nodes(&[("zoe", 250)]));
    // It registers again, and is still the first: its record says since when it has the address.
    let again = TWO.replace("two", "zoe").replace("aa", "zoe-id").replace('}', r#","vtepSince":1}"#);
    put(&kv, &keys::host("zoe"), &again).await;
    follow(&one, &kv).await;
    assert_eq!((held(&one), vteps(&one)), (vec![keys::host("abe")], nodes(&[("zoe", 250)])));
}
