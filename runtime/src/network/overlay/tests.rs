//! Overlay networks against a fake agent: creating, resolving, refreshing, showing and removing them.

use super::fake::{Fake, network, paths};
use crate::network::{self as networks, Request};
use crate::paths::Paths;
use crate::spec::{NetAttach, NetMode, Spec};
use ovl_api::wire::EndpointDetail;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn request(name: &str, subnets: &[&str]) -> Request {
    let subnets = subnets.iter().map(|text| (*text).into()).collect();
    Request { name: name.into(), driver: "overlay".into(), subnets, ..Request::default() }
}

fn file(paths: &Paths, name: &str) -> Option<Value> {
    let text = fs::read(paths.config_dir.join(format!("{name}.conflist"))).ok()?;
    Some(serde_json::from_slice(&text).unwrap())
}

/// A network of another kind, with no route yet.
fn bridge(paths: &Paths, name: &str, subnet: &str) {
    fs::create_dir_all(&paths.config_dir).unwrap();
    let list = json!({"cniVersion": "1.1.0", "name": name, "plugins": [
        {"type": "bridge", "ipam": {"type": "host-local", "subnet": subnet}}]});
    fs::write(paths.config_dir.join(format!("{name}.conflist")), list.to_string()).unwrap();
}

fn names(all: &[networks::Network]) -> Vec<&str> {
    all.iter().map(networks::Network::name).collect()
}

fn endpoint(host: &str) -> EndpointDetail {
    EndpointDetail {
        host: host.into(),
        container: "c1".into(),
        ifname: "eth0".into(),
        mac: "02:00:00:00:00:01".into(),
        addresses: vec!["10.42.1.2".parse().unwrap()],
        fenced: false,
    }
}

#[test]
fn create_asks_the_agent_and_writes_a_conflist_that_plugins_can_use() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    let agent = Fake::start(&paths, Vec::new());
    let asked = Request {
        options: [("vni".into(), "77".into()), ("encap".into(), "direct".into())].into(),
        ..request("ov", &["10.42.0.0/16"])
    };
    let made = networks::create(&paths, &asked).unwrap();
    assert_eq!((made.id(), made.driver(), made.scope()), ("0123456789ab", "overlay", "global"));
    assert_eq!(agent.changes(), ["POST /v1/networks"]);
    let list = file(&paths, "ov").unwrap();
    let kinds: Vec<&str> =
        list["plugins"].as_array().unwrap().iter().filter_map(|plugin| plugin["type"].as_str()).collect();
    assert_eq!(kinds, ["overlay", "portmap"]);
    assert_eq!(list["plugins"][0]["capabilities"], json!({"mac": true, "ips": true}));
    assert_eq!(list["weft"]["overlay"], json!({"vni": 77, "encap": "direct"}));
    assert_eq!(list["weft"]["subnets"][0]["subnet"], "10.42.0.0/16");
    let error = networks::create(&paths, &asked).unwrap_err().to_string();
    assert!(error.contains("ov already exists"), "{error}");
    assert!(agent.changes().is_empty(), "a name of this host is refused before the agent is asked");
}

#[test]
fn an_internal_overlay_network_has_no_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    let _agent = Fake::start(&paths, Vec::new());
    let made = networks::create(&paths, &Request { internal: true, ..request("ov", &[]) }).unwrap();
    assert!(made.internal() && !made.takes("portMappings"));
    assert_eq!(made.list.plugins[0]["isDefaultGateway"], false);
    assert_eq!(made.list.plugins[0]["ipMasq"], false);
}

#[test]
fn the_agents_problem_is_the_error_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    let agent = Fake::start(&paths, Vec::new());
    let wrong = Request { options: [("vni".into(), "666".into())].into(), ..request("ov", &[]) };
    let error = networks::create(&paths, &wrong).unwrap_err();
    assert_eq!(format!("{error:#}"), "--opt vni=666: it is network evil's");
    assert!(!paths.config_dir.exists());
    drop(agent);
    let error = networks::create(&paths, &request("ov", &[])).unwrap_err().to_string();
    assert!(error.contains("ovl-agent run"), "without an agent the error says what to start: {error}");
    assert!(!paths.config_dir.exists());
}

#[test]
fn a_subnet_of_another_network_of_this_host_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    bridge(&paths, "web", "10.42.7.0/24");
    let agent = Fake::start(&paths, Vec::new());
    let error = networks::create(&paths, &request("ov", &["10.42.0.1/16"])).unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "--subnet 10.42.0.0/16 overlaps network web (10.42.7.0/24) of this host"
    );
    assert!(agent.changes().is_empty());
    // One that the agent chose, which does not know of it.
    agent.state().chosen = network("x", "x", "10.42.0.0/16").subnets.first().copied();
    let error = format!("{:#}", networks::create(&paths, &request("ov", &[])).unwrap_err());
    assert!(error.contains("network web") && error.contains("--subnet"), "{error}");
    assert_eq!(agent.changes(), ["POST /v1/networks", "DELETE /v1/networks/ov"]);
    assert!(agent.state().networks.is_empty() && file(&paths, "ov").is_none());
}

#[test]
fn a_network_whose_file_cannot_be_written_is_removed_again() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    let agent = Fake::start(&paths, Vec::new());
    // A file where the directory is to be.
    fs::write(&paths.config_dir, "").unwrap();
    let error = format!("{:#}", networks::create(&paths, &request("ov", &[])).unwrap_err());
    assert!(error.contains(&paths.config_dir.display().to_string()), "{error}");
    assert_eq!(agent.changes(), ["POST /v1/networks", "DELETE /v1/networks/ov"]);
    assert!(agent.state().networks.is_empty());
}

#[test]
fn a_network_that_was_made_on_another_host_is_found_by_name_and_by_id() {
    for what in ["ov", "abcdef012345", "abcd"] {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let _agent = Fake::start(&paths, vec![network("abcdef012345", "ov", "10.42.0.0/16")]);
        let found = networks::lookup(&paths, what).unwrap().unwrap();
        assert_eq!((found.name(), found.id()), ("ov", "abcdef012345"));
        assert!(file(&paths, "ov").is_some());
        assert!(networks::lookup(&paths, "other").unwrap().is_none());
    }
}

#[test]
fn files_follow_what_the_agent_has() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    let agent =
        Fake::start(&paths, vec![network("a1", "one", "10.1.0.0/16"), network("a2", "two", "10.2.0.0/16")]);
    bridge(&paths, "web", "10.9.0.0/16");
    assert_eq!(names(&networks::current(&paths)), ["one", "two", "web"]);
    // Made anew elsewhere, under the same name; and one that is gone.
    agent.state().networks = vec![network("b1", "one", "10.3.0.0/16")];
    let current = networks::current(&paths);
    assert_eq!(names(&current), ["one", "web"]);
    assert_eq!((current[0].id(), current[0].subnets()[0].to_string().as_str()), ("b1", "10.3.0.0/16"));
    assert!(networks::lookup(&paths, "two").unwrap().is_none());
    // One whose removal was cut off can be removed again.
    agent.state().networks[0].removing = true;
    fs::remove_file(paths.config_dir.join("one.conflist")).unwrap();
    assert_eq!(names(&networks::current(&paths)), ["one", "web"]);
}

#[test]
fn a_conflist_written_by_hand_for_an_overlay_network_stays() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    fs::create_dir_all(&paths.config_dir).unwrap();
    let text = json!({"cniVersion": "1.0.0", "name": "ov", "plugins": [{"type": "overlay"}]}).to_string();
    fs::write(paths.config_dir.join("mine.conflist"), &text).unwrap();
    let _agent = Fake::start(&paths, vec![network("a1", "ov", "10.1.0.0/16")]);
    assert_eq!(names(&networks::current(&paths)), ["ov"]);
    assert_eq!(fs::read_to_string(paths.config_dir.join("mine.conflist")).unwrap(), text);
    assert_eq!(fs::read_dir(&paths.config_dir).unwrap().count(), 1);
}

#[test]
fn the_last_file_takes_the_directory_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    let agent = Fake::start(&paths, vec![network("a1", "one", "10.1.0.0/16")]);
    assert_eq!(networks::current(&paths).len(), 1);
    agent.state().networks.clear();
    assert!(networks::current(&paths).is_empty() && !paths.config_dir.exists());
}

#[test]
fn nothing_is_written_when_nothing_differs() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    let _agent = Fake::start(&paths, vec![network("a1", "one", "10.1.0.0/16")]);
    networks::current(&paths);
    let written = || fs::metadata(paths.config_dir.join("one.conflist")).unwrap().modified().unwrap();
    let before = written();
    networks::current(&paths);
    assert_eq!(written(), before);
    assert_eq!(fs::read_dir(&paths.config_dir).unwrap().count(), 1);
}

#[test]
fn with_the_agent_down_what_is_known_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    let agent = Fake::start(&paths, vec![network("a1", "ov", "10.1.0.0/16")]);
    networks::current(&paths);
    agent.kill();
    assert_eq!(networks::lookup(&paths, "ov").unwrap().unwrap().id(), "a1");
    assert_eq!(names(&networks::current(&paths)), ["ov"]);
    let shown = networks::inspect(&paths, &networks::find(&paths, "ov").unwrap()).unwrap();
    assert_eq!((&shown["Peers"], &shown["Options"]["vni"]), (&json!([]), &json!("4097")));
    // One that is not known might be there.
    let error = format!("{:#}", networks::lookup(&paths, "other").unwrap_err());
    assert!(error.contains("network other not found") && error.contains("ovl-agent run"), "{error}");
    // The default network of this host has nothing to do with it, nor have other networks of it.
    assert!(networks::lookup(&paths, networks::DEFAULT).unwrap().is_none());
    bridge(&paths, "web", "10.9.0.0/16");
    assert_eq!(networks::lookup(&paths, "web").unwrap().unwrap().name(), "web");
    fs::remove_file(ovl_api::names::socket(&paths.run)).unwrap();
    assert!(networks::lookup(&paths, "other").unwrap().is_none());
}

#[test]
fn a_network_of_this_host_is_not_overwritten_by_one_of_the_overlay() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    bridge(&paths, "web", "10.9.0.0/16");
    let before = file(&paths, "web");
    let agent = Fake::start(&paths, vec![network("a1", "web", "10.1.0.0/16")]);
    assert_eq!(networks::current(&paths)[0].driver(), "bridge");
    assert_eq!(networks::lookup(&paths, "web").unwrap().unwrap().driver(), "bridge");
    assert_eq!(file(&paths, "web"), before);
    agent.state().networks = vec![network("a2", "ov", "10.2.0.0/16")];
    fs::write(paths.config_dir.join("ov.conflist"), "no conflist").unwrap();
    networks::current(&paths);
    assert_eq!(fs::read_to_string(paths.config_dir.join("ov.conflist")).unwrap(), "no conflist");
}

#[test]
fn inspect_shows_hosts_blocks_and_endpoints() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    let agent = Fake::start(&paths, vec![network("abcdef012345", "ov", "10.42.0.0/16")]);
    agent.state().endpoints = vec![endpoint("host1")];
    let shown = networks::inspect(&paths, &networks::find(&paths, "ov").unwrap()).unwrap();
    assert_eq!((&shown["Scope"], &shown["Driver"]), (&json!("global"), &json!("overlay")));
    assert_eq!(shown["Options"], json!({"vni": "4097", "encap": "vxlan", "mtu": "auto", "block-size": "26"}));
    assert_eq!(shown["IPAM"]["Config"], json!([{"Subnet": "10.42.0.0/16", "Gateway": "10.42.0.1"}]));
    assert_eq!(
        shown["Peers"],
        json!([
            {"Name": "host1", "IP": "192.0.2.7", "Alive": true, "Blocks": 0, "Endpoints": 1},
            {"Name": "host2", "IP": "192.0.2.7", "Alive": false, "Blocks": 1, "Endpoints": 0},
        ])
    );
    assert_eq!(shown["Weft"]["Device"], "vx-abcdef012345");
    assert_eq!(shown["Weft"]["Blocks"], json!([{"Block": "10.42.1.0/26", "Host": "host2"}]));
    assert_eq!(
        shown["Weft"]["Endpoints"],
        json!([{"Host": "host1", "Container": "c1", "Interface": "eth0", "MacAddress": "02:00:00:00:00:01",
            "Addresses": ["10.42.1.2"], "Fenced": false}])
    );
}

#[test]
fn with_the_store_away_inspect_shows_what_is_not_known_of_other_hosts_as_null() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    let agent = Fake::start(&paths, vec![network("abcdef012345", "ov", "10.42.0.0/16")]);
    agent.state().endpoints = vec![endpoint("host1")];
    agent.state().away = Some(ovl_api::wire::Away { seconds: 42, why: "no answer in time".into() });
    let shown = networks::inspect(&paths, &networks::find(&paths, "ov").unwrap()).unwrap();
    assert_eq!(
        shown["Peers"],
        json!([
            {"Name": "host1", "IP": "192.0.2.7", "Alive": true, "Blocks": 0, "Endpoints": 1},
            {"Name": "host2", "IP": "192.0.2.7", "Alive": null, "Blocks": 1, "Endpoints": null},
        ])
    );
    assert_eq!(shown["Weft"]["Endpoints"].as_array().unwrap().len(), 1);
}

/// Plugins that do nothing but note what they are called for.
fn plugins(dir: &Path, paths: &mut Paths) {
    paths.cni_bin = vec![dir.join("cni")];
    fs::create_dir_all(dir.join("cni")).unwrap();
    for kind in ["overlay", "portmap", "loopback", "bridge"] {
        let script = format!(
            "#!/bin/sh\necho \"$CNI_COMMAND {kind}\" >> {}\n[ $CNI_COMMAND = ADD ] || exit 0\n\
             echo '{{\"cniVersion\": \"1.1.0\", \"ips\": []}}'\n",
            dir.join("calls").display()
        );
        let path = dir.join("cni").join(kind);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn calls(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join("calls")).unwrap_or_default();
    let _ = fs::remove_file(dir.join("calls"));
    text.lines().map(str::to_owned).collect()
}

#[test]
fn rm_asks_the_agent_first_and_a_container_on_another_host_keeps_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = paths(dir.path());
    plugins(dir.path(), &mut paths);
    let agent = Fake::start(&paths, vec![network("abcdef012345", "ov", "10.42.0.0/16")]);
    agent.state().endpoints = vec![endpoint("host2")];
    let error = networks::remove(&paths, "ov", false).unwrap_err().to_string();
    assert!(error.contains("host2"), "{error}");
    assert!(file(&paths, "ov").is_some() && calls(dir.path()).is_empty());
    agent.state().endpoints.clear();
    agent.changes();
    networks::remove(&paths, "ov", false).unwrap();
    assert_eq!(agent.changes(), ["DELETE /v1/networks/ov"]);
    assert_eq!(calls(dir.path()), ["GC overlay", "GC portmap"]);
    assert!(!paths.config_dir.exists());
    let error = networks::remove(&paths, "ov", false).unwrap_err().to_string();
    assert!(error.contains("network ov not found"), "{error}");
}

#[test]
fn rm_without_an_agent_keeps_the_network_unless_forced() {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = paths(dir.path());
    plugins(dir.path(), &mut paths);
    let agent = Fake::start(&paths, vec![network("abcdef012345", "ov", "10.42.0.0/16")]);
    networks::current(&paths);
    drop(agent);
    let error = networks::remove(&paths, "ov", false).unwrap_err().to_string();
    assert!(error.contains("ovl-agent run"), "{error}");
    assert!(file(&paths, "ov").is_some());
    networks::remove(&paths, "ov", true).unwrap();
    assert!(file(&paths, "ov").is_none());
}

#[test]
fn prune_leaves_networks_with_endpoints_on_any_host() {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = paths(dir.path());
    plugins(dir.path(), &mut paths);
    let agent = Fake::start(&paths, vec![network("abcdef012345", "ov", "10.42.0.0/16")]);
    let prune = |paths: &Paths| {
        let mut gone = Vec::new();
        networks::prune(paths, |_| true, |network| gone.push(network.name().to_owned())).unwrap();
        gone
    };
    agent.state().endpoints = vec![endpoint("host2")];
    assert!(prune(&paths).is_empty());
    assert!(agent.changes().is_empty() && file(&paths, "ov").is_some());
    agent.state().endpoints.clear();
    assert_eq!(prune(&paths), ["ov"]);
    assert!(agent.state().networks.is_empty() && file(&paths, "ov").is_none());
}

fn spec(all: &[&str]) -> Spec {
    let attach = |(at, name): (usize, &&str)| NetAttach {
        network: (*name).into(),
        ifname: format!("eth{at}"),
        ..NetAttach::default()
    };
    let network = NetMode::Networks(all.iter().enumerate().map(attach).collect());
    Spec { id: "c1".into(), network, ..Spec::default() }
}

#[test]
fn a_container_is_attached_by_a_fresh_file_and_detached_without_file_and_agent() {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = paths(dir.path());
    plugins(dir.path(), &mut paths);
    let agent = Fake::start(&paths, vec![network("abcdef012345", "ov", "10.42.0.0/16")]);
    let states = networks::attach(&paths, &spec(&["ov"]), Path::new("/proc/self/ns/net")).unwrap();
    assert_eq!(states[0].network, "ov");
    assert_eq!(calls(dir.path()), ["ADD loopback", "ADD overlay", "ADD portmap"]);
    agent.kill();
    fs::remove_dir_all(&paths.config_dir).unwrap();
    networks::detach(&paths, &spec(&["ov"]), None).unwrap();
    assert_eq!(calls(dir.path()), ["DEL portmap", "DEL overlay", "DEL loopback"]);
}

#[test]
fn a_host_whose_own_network_overlaps_attaches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = paths(dir.path());
    plugins(dir.path(), &mut paths);
    bridge(&paths, "web", "10.42.7.0/24");
    let _agent = Fake::start(&paths, vec![network("abcdef012345", "ov", "10.42.0.0/16")]);
    let netns = Path::new("/proc/self/ns/net");
    let error = format!("{:#}", networks::attach(&paths, &spec(&["ov"]), netns).unwrap_err());
    assert!(error.contains("network ov") && error.contains("network web (10.42.7.0/24)"), "{error}");
    assert!(calls(dir.path()).is_empty());
    networks::attach(&paths, &spec(&["web"]), netns).unwrap();
}

#[test]
fn a_host_without_an_agent_is_asked_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    super::refresh(&paths).unwrap();
    assert!(networks::current(&paths).is_empty() && networks::lookup(&paths, "ov").unwrap().is_none());
    assert!(!paths.config_dir.exists() && !paths.run.exists());
}

#[test]
fn a_name_that_another_host_has_freed_can_be_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let paths = paths(dir.path());
    let agent = Fake::start(&paths, vec![network("a1", "ov", "10.1.0.0/16")]);
    networks::current(&paths);
    agent.state().networks.clear();
    let made = networks::create(&paths, &request("ov", &["10.2.0.0/16"])).unwrap();
    assert_eq!(made.id(), "0123456789ab");
    assert_eq!(file(&paths, "ov").unwrap()["weft"]["id"], "0123456789ab");
}
