//! Attachments that end, are undone or come again while something of them is under way.

use super::*;

fn leave_note(inner: &Inner, container: &str) {
    let ask = Detach { network: "web".into(), container: container.into(), ifname: "eth0".into() };
    std::fs::create_dir_all(inner.files.notes()).unwrap();
    std::fs::write(inner.files.notes().join(format!("{container}.json")), keys::json(&ask)).unwrap();
}

#[tokio::test]
async fn a_note_of_an_earlier_attachment_does_not_end_the_next_one_of_its_name() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    network(&one).await;
    attach(&one, "c1", None).await.unwrap();
    // A DEL that the agent did not answer in time left it.
    leave_note(&one, "c1");
    attach(&one, "c1", None).await.unwrap();
    one.read_notes().unwrap();
    assert_eq!(one.look(|state| state.locals.len()), 1);
    // One that comes later is meant.
    leave_note(&one, "c1");
    one.read_notes().unwrap();
    assert_eq!(one.look(|state| state.locals.len()), 0);
}

#[tokio::test]
async fn a_note_that_came_while_the_node_was_opened_is_read_when_it_begins_to_run() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    network(&one).await;
    attach(&one, "c1", None).await.unwrap();
    leave_note(&one, "c1");
    tokio::select! {
        biased;
        () = one.notes() => {}
        () = std::future::ready(()) => {}
    }
    assert_eq!(one.look(|state| state.locals.len()), 0);
}

/// The link of a container that has this address in network web.
fn link(network: &Network, container: &str, address: &str) -> crate::FoundLink {
    crate::FoundLink {
        veth: format!("v{container}"),
        vni: network.vni,
        container: container.to_owned(),
        ifname: "eth0".to_owned(),
        mac: None,
        addresses: [address.parse().unwrap()].into(),
    }
}

#[tokio::test]
async fn a_link_whose_container_went_while_the_node_started_is_not_taken_over() {
    let (dir, kv) = store().await;
    let two = frozen(dir.path(), "two", &kv).await;
    let network = network(&two).await;
    // All three were there when the links were read. One's DEL found no agent; another's comes before the store was read.
    let one = registered(open(dir.path(), "one", &kv)).await;
    leave_note(&one, "c1");
    drop(one);
    let links = [("c1", "10.42.0.2"), ("c2", "10.42.0.3"), ("c3", "10.42.0.4")];
    let links = links.map(|(container, address)| link(&network, container, address)).to_vec();
    let one = crate::open::open(NodeConf { links: Some(links), ..conf(dir.path(), "one", &kv) }).unwrap();
    let one = registered(one).await;
    let ask = Detach { network: "web".into(), container: "c2".into(), ifname: "eth0".into() };
    assert!(!one.detach(&ask).unwrap());
    read(&one).await;
    let taken = one.look(|state| state.locals.keys().cloned().collect::<Vec<_>>());
    assert_eq!(taken, ["vc3"]);
}

#[tokio::test]
async fn a_note_that_is_taken_back_while_they_are_read_is_no_error() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    network(&one).await;
    attach(&one, "c1", None).await.unwrap();
    leave_note(&one, "c1");
    std::os::unix::fs::symlink("nowhere", one.files.notes().join("a.json")).unwrap();
    std::fs::create_dir(one.files.notes().join("b.json")).unwrap();
    one.read_notes().unwrap();
    assert_eq!(one.look(|state| state.locals.len()), 0);
}

#[tokio::test]
async fn an_attachment_that_is_ended_while_it_claims_gets_nothing() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    let web = network(&one).await;
    // It waits behind another claim.
    let queue = std::sync::Arc::default();
    crate::inner::lock(&one.claiming).insert((web.id.clone(), false), std::sync::Arc::clone(&queue));
    let held = queue.lock().await;
    let ending = async {
        while std::sync::Arc::strong_count(&queue) < 3 {
            tokio::task::yield_now().await;
        }
        let ask = Detach { network: "web".into(), container: "c1".into(), ifname: "eth0".into() };
        assert!(!one.detach(&ask).unwrap());
        drop(held);
    };
    let (attached, ()) = tokio::join!(attach(&one, "c1", None), ending);
    let problem = attached.unwrap_err();
    assert!(problem.message.contains("was detached meanwhile"), "{problem}");
    assert!(one.look(|state| state.locals.is_empty() && state.used.is_empty() && state.attaching.is_empty()));
    attach(&one, "c1", None).await.unwrap();
}

#[tokio::test]
async fn undoing_an_attachment_does_not_end_the_next_one_of_its_name() {
    let (dir, kv) = store().await;
    let one = frozen(dir.path(), "one", &kv).await;
    network(&one).await;
    let ask = Attach {
        network: "web".into(),
        container: "c1".into(),
        ifname: "eth0".into(),
        veth: "vc1".into(),
        ..Attach::default()
    };
    let first = one.attach(&ask).await.unwrap();
    detach(&one, "c1");
    let second = one.attach(&ask).await.unwrap();
    one.undo(&first).unwrap();
    assert_eq!(one.look(|state| state.locals.len()), 1);
    one.undo(&second).unwrap();
    assert_eq!(one.look(|state| state.locals.len()), 0);
}
