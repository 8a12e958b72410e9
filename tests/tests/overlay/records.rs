//! Records in etcd that no agent of this release writes, and keys that someone deletes: what runs goes on, nothing of them
//! reaches the kernel, and `status` says what is held back.

use crate::cluster::Cluster;
use crate::flow::Flow;
use serde_json::Value;

const HOSTS: [&str; 2] = ["host1", "host2"];

fn etcdctl(lab: &Cluster, line: &str) -> String {
    let command = format!("ETCDCTL_API=3 etcdctl --endpoints http://10.99.0.2:2379 {line}");
    lab.sh("etcd1", &command).ok().stdout
}

fn put(lab: &Cluster, key: &str, value: &str) {
    etcdctl(lab, &format!("put {key} '{value}'"));
}

fn get(lab: &Cluster, key: &str) -> String {
    etcdctl(lab, &format!("get --print-value-only {key}")).trim_end().to_owned()
}

/// The records that a node holds back.
fn held(lab: &Cluster, on: &str) -> Vec<String> {
    let status: Value = lab.exec(on, "ovl-agent status --format json").ok().json();
    let records = status["heldRecords"].as_array().cloned().unwrap_or_default();
    records.iter().filter_map(|record| record["key"].as_str()).map(str::to_owned).collect()
}

#[test]
fn invalid_store_records_are_held_back_and_traffic_goes_on() {
    let lab = Cluster::bare(2);
    lab.network("--subnet 10.42.0.0/16 ov");
    let members: Vec<_> = HOSTS.iter().map(|on| lab.run(on, &format!("c-{on}"), "--network ov")).collect();
    let members: Vec<_> = members.iter().collect();
    let flow = Flow::among(&lab, &members);
    let network = get(&lab, "/weft/c/networks/ov");
    let record: Value = serde_json::from_str(&network).unwrap_or_default();
    let id = record["id"].as_str().unwrap_or_default().to_owned();
    let host2 = get(&lab, "/weft/c/hosts/host2");
    let about: Value = serde_json::from_str(&host2).unwrap_or_default();
    let claim = format!(
        r#"{{"host":"host2","id":"{}","epoch":{}}}"#,
        about["id"].as_str().unwrap_or_default(),
        about["epoch"]
    );
    let before = lab.kernel_of(&HOSTS);

    let zero = format!("6-{:032x}-0", 0);
    let mut wrong: Vec<(String, String)> = ["4-08080800-24", "4-00000000-0", &zero, "4-0a2a0000-17"]
        .iter()
        .map(|range| (format!("blocks/{id}/{range}"), claim.clone()))
        .collect();
    for vtep in ["127.0.0.1", "239.1.1.1", "0.0.0.0", "10.99.0.11"] {
        let name = format!("vtep-{vtep}");
        let host = format!(r#"{{"name":"{name}","id":"{:032x}","epoch":1,"vtep":"{vtep}","port":4789}}"#, 7);
        wrong.push((format!("hosts/{name}"), host));
    }
    wrong.push(("hosts/host2".to_owned(), host2.replace("4789", "\"4789\"")));
    wrong.push(("networks/ov".to_owned(), network.replace("vxlan", "geneve")));
    let other = network.replace("\"ov\"", "\"zero\"").replace(&id, "0123456789ab");
    let other = other.replace("10.42.", "10.43.").replace(&format!("\"vni\":{}", record["vni"]), "\"vni\":0");
    wrong.push(("networks/zero".to_owned(), other));
    for (key, value) in &wrong {
        put(&lab, &format!("/weft/c/{key}"), value);
    }
    for on in HOSTS {
        // host2 writes its own record again.
        let lasting = || wrong.iter().filter(|(key, _)| key != "hosts/host2");
        lab.soon("they are held back", || {
            let held = held(&lab, on);
            lasting().all(|(key, _)| held.iter().any(|is| is.ends_with(key)))
        });
        let status = lab.exec(on, "ovl-agent status").ok().stdout;
        assert!(status.contains("records of the store are held back"), "{status}");
        assert!(status.contains("127.0.0.1") && status.contains("geneve"), "{status}");
    }
    lab.exec("host1", "ovl-agent sync").ok();
    assert_eq!(lab.kernel_of(&HOSTS), before, "nothing of it reaches a kernel");
    let log = lab.host.run("cat /run/weft/labs/lab/hosts/host1/agent/log").ok().stdout;
    assert_eq!(log.matches("4-08080800-24").count(), 1, "it is logged once: {log}");

    lab.soon("host2's record is put back", || get(&lab, "/weft/c/hosts/host2") == host2);
    put(&lab, "/weft/c/networks/ov", &network);
    for (key, _) in wrong.iter().filter(|(key, _)| !["hosts/host2", "networks/ov"].contains(&key.as_str())) {
        etcdctl(&lab, &format!("del /weft/c/{key}"));
    }
    for on in HOSTS {
        lab.soon("nothing is held back", || held(&lab, on).is_empty());
    }
    assert_eq!(lab.kernel_of(&HOSTS), before);
    flow.none_lost();
    lab.remove(&members);
    lab.down();
}

/// A node that was started with another's address: what was there first keeps its routes.
#[test]
fn second_node_with_a_vtep_is_held_back_while_the_first_is_alive() {
    let lab = Cluster::bare(2);
    lab.network("--subnet 10.42.0.0/16 ov");
    let members: Vec<_> = HOSTS.iter().map(|on| lab.run(on, &format!("c-{on}"), "--network ov")).collect();
    let members: Vec<_> = members.iter().collect();
    let flow = Flow::among(&lab, &members);
    let network: Value = serde_json::from_str(&get(&lab, "/weft/c/networks/ov")).unwrap_or_default();
    let host2: Value = serde_json::from_str(&get(&lab, "/weft/c/hosts/host2")).unwrap_or_default();
    let vtep = host2["vtep"].as_str().unwrap_or_default();
    let before = lab.kernel_of(&["host1"]);
    // The first of the store's keys is the younger record.
    let record =
        |vtep: &str| format!(r#"{{"name":"copy","id":"{:032x}","epoch":1,"vtep":"{vtep}","port":4789}}"#, 7);
    let claim = format!(r#"{{"host":"copy","id":"{:032x}","epoch":1}}"#, 7);
    let id = network["id"].as_str().unwrap_or_default();
    let block = format!("blocks/{id}/4-0a2af000-26");
    put(&lab, "/weft/c/hosts/copy", &record(vtep));
    put(&lab, "/weft/c/live/copy", "{}");
    put(&lab, &format!("/weft/c/{block}"), &claim);
    let both = [block.clone(), "hosts/copy".to_owned()];
    lab.soon("it is held back", || {
        both.iter().all(|key| held(&lab, "host1").iter().any(|is| is.ends_with(key)))
    });
    let status = lab.exec("host1", "ovl-agent status").ok().stdout;
    assert!(status.contains("the node host2, which is alive, has it too"), "{status}");
    lab.exec("host1", "ovl-agent sync").ok();
    assert_eq!(lab.kernel_of(&["host1"]), before, "nothing of it reaches the kernel");
    // It moves to an address of its own.
    put(&lab, "/weft/c/hosts/copy", &record("10.99.0.77"));
    lab.soon("it is in force", || held(&lab, "host1").is_empty());
    lab.soon("it has a route", || lab.kernel_of(&["host1"]) != before);
    for key in [&block, "live/copy", "hosts/copy"] {
        etcdctl(&lab, &format!("del /weft/c/{key}"));
    }
    lab.soon("nothing of it is left", || lab.kernel_of(&["host1"]) == before);
    flow.none_lost();
    lab.remove(&members);
    lab.down();
}

#[test]
fn deleted_store_records_are_put_back_and_no_ping_is_lost() {
    let lab = Cluster::bare(2);
    lab.network("--subnet 10.42.0.0/16 ov");
    let members: Vec<_> = HOSTS.iter().map(|on| lab.run(on, &format!("c-{on}"), "--network ov")).collect();
    let members: Vec<_> = members.iter().collect();
    let keys = |prefix: &str| {
        let mut keys: Vec<String> = etcdctl(&lab, &format!("get --prefix --keys-only /weft/c/{prefix}"))
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        keys.sort();
        keys
    };
    let flow = Flow::among(&lab, &members);
    for prefix in ["hosts/", "networks/", "hosts/host1", "hosts/", "networks/"] {
        let before = keys("");
        etcdctl(&lab, &format!("del --prefix /weft/c/{prefix}"));
        lab.soon("the records are back", || keys("") == before);
        for on in HOSTS {
            lab.soon("it follows, and nothing is held back", || {
                let status: Value = lab.exec(on, "ovl-agent status --format json").ok().json();
                status["connected"] == true && status["heldBack"].is_null() && held(&lab, on).is_empty()
            });
        }
    }
    flow.none_lost();
    // Both can still get addresses, and see what the other gets.
    let late: Vec<_> = HOSTS.iter().map(|on| lab.run(on, &format!("d-{on}"), "--network ov")).collect();
    let all: Vec<_> = members.iter().copied().chain(&late).collect();
    let flow = Flow::among(&lab, &all);
    std::thread::sleep(std::time::Duration::from_millis(500));
    flow.none_lost();
    lab.remove(&all);
    lab.down();
}
