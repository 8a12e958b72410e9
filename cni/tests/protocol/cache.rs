//! The cache of results, and libcni's files in it.

use cni::cache::{Cache, CacheEntry};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn entry(container: &str, ifname: &str) -> CacheEntry {
    CacheEntry {
        network: "net".into(),
        container_id: container.into(),
        ifname: ifname.into(),
        netns: Some("/run/netns/x".into()),
        args: vec![("K".into(), "V".into())],
        capability_args: json!({"portMappings": []}).as_object().unwrap().clone(),
        config: br#"{"name":"net"}"#.to_vec(),
        result: Some(json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24"}]})),
    }
}

#[test]
fn an_entry_reads_back_as_it_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path().join("results"));
    assert_eq!(cache.get("net", "c1", "eth0").unwrap(), None);
    assert_eq!(cache.entries().unwrap(), []);
    cache.put(&entry("c1", "eth0")).unwrap();
    cache.put(&entry("c1", "eth0")).unwrap();
    assert_eq!(cache.get("net", "c1", "eth0").unwrap(), Some(entry("c1", "eth0")));
    cache.remove("net", "c1", "eth0").unwrap();
    cache.remove("net", "c1", "eth0").unwrap();
    assert_eq!(fs::read_dir(&cache.dir).unwrap().count(), 0);
}

#[test]
fn files_are_laid_out_as_libcni_does() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path().join("results"));
    cache.put(&entry("c1", "eth0")).unwrap();
    let path = cache.dir.join("net-c1-eth0");
    let document: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(
        document,
        json!({
            "kind": "cniCacheV1", "containerId": "c1", "config": "eyJuYW1lIjoibmV0In0=", "ifName": "eth0",
            "networkName": "net", "netns": "/run/netns/x", "cniArgs": [["K", "V"]], "capabilityArgs": {"portMappings": []},
            "result": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24"}]},
        })
    );
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&cache.dir).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn containers_are_found_by_their_id_not_by_the_file_name() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    for (container, ifname) in [("c1", "eth1"), ("c1", "eth0"), ("c1-eth0", "x"), ("c2", "eth0")] {
        cache.put(&entry(container, ifname)).unwrap();
    }
    let found: Vec<String> =
        cache.find_container("c1").unwrap().into_iter().map(|entry| entry.ifname).collect();
    assert_eq!(found, ["eth0", "eth1"]);
    assert_eq!(cache.entries().unwrap().len(), 4);
}

#[test]
fn damaged_and_foreign_files_do_not_hide_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    cache.put(&entry("c1", "eth0")).unwrap();
    for (name, text) in [("net-c2-eth0", ""), ("net-c3-eth0", "[]"), ("net-c4-eth0", r#"{"kind":"other"}"#)] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    fs::create_dir(dir.path().join("sub")).unwrap();
    assert_eq!(cache.entries().unwrap(), [entry("c1", "eth0")]);
    assert_eq!(cache.get("net", "c2", "eth0").unwrap_err().code, 6);
}

#[test]
fn a_file_with_the_bare_result_of_old_libcni_is_read() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("net-c1-eth0"),
        r#"{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.5/24"}]}"#,
    )
    .unwrap();
    let found = Cache::new(dir.path()).get("net", "c1", "eth0").unwrap().unwrap();
    assert_eq!((found.network.as_str(), found.result().unwrap().unwrap().ips.len()), ("net", 1));
}
