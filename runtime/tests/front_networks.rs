//! `network create|ls|inspect|rm|prune`, by the real binary.

mod front;

use front::machine;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

#[test]
fn the_host_bits_of_a_subnet_are_the_gateway() {
    machine(|m| {
        let id = m.ok(&["network", "create", "--driver", "bridge", "--subnet", "192.168.10.1/24", "web"]);
        assert_eq!(id.trim().len(), 64);
        let list = m.conflist("web");
        assert_eq!(list["weft"]["id"], id.trim());
        assert_eq!(list["plugins"][0]["bridge"], format!("br-{}", &id[..12]));
        let range = &list["plugins"][0]["ipam"]["ranges"][0][0];
        assert_eq!(*range, json!({"subnet": "192.168.10.0/24", "gateway": "192.168.10.1"}));
    });
}

#[test]
fn a_network_without_a_subnet_gets_the_first_pool_that_the_host_does_not_use() {
    machine(|m| {
        m.ip("link add up0 type veth peer name up1");
        m.ip("link set up0 up");
        m.ip("addr add 172.17.3.1/24 dev up0");
        m.ip("link set up1 up");
        m.ip("route add 172.18.0.0/15 dev up0");
        m.ok(&["network", "create", "a"]);
        m.ok(&["network", "create", "b"]);
        let subnet = |name| m.ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", name]);
        assert_eq!(subnet("a"), "172.20.0.0/16\n");
        assert_eq!(subnet("b"), "172.21.0.0/16\n");
    });
}

#[test]
fn an_overlapping_subnet_is_an_error_that_names_what_it_overlaps() {
    machine(|m| {
        m.ip("link add up0 type veth peer name up1");
        m.ip("link set up0 up");
        m.ip("addr add 10.1.2.3/24 dev up0");
        let (code, error) = m.fails(&["network", "create", "--subnet", "10.1.0.0/16", "web"]);
        assert_eq!(code, 1);
        assert!(error.contains("10.1.0.0/16 overlaps") && error.contains("up0"), "{error}");
        m.ok(&["network", "create", "--subnet", "10.2.0.0/16", "first"]);
        let (_, error) = m.fails(&["network", "create", "--subnet", "10.2.5.0/24", "web"]);
        assert!(error.contains("network first (10.2.0.0/16)"), "{error}");
        assert_eq!(m.ok(&["network", "ls", "--format", "{{.Name}}"]), "first\n");
    });
}

#[test]
fn ranges_reserved_addresses_ipv6_labels_and_options_reach_the_conflist() {
    machine(|m| {
        m.ok(&[
            "network",
            "create",
            "--subnet",
            "10.3.0.0/16",
            "--subnet",
            "fd03::/64",
            "--gateway",
            "10.3.0.254",
            "--ip-range",
            "10.3.7.0/24",
            "--aux-address",
            "router=10.3.7.9",
            "--label",
            "team=a",
            "--opt",
            "com.docker.network.driver.mtu=1400",
            "-o",
            "com.docker.network.bridge.enable_icc=false",
            "-o",
            "com.docker.network.bridge.name=web0",
            "--attachable",
            "web",
        ]);
        let mode = fs::metadata(m.path("net.d/web.conflist")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let bridge = &m.conflist("web")["plugins"][0];
        assert_eq!(bridge["bridge"], "web0");
        assert_eq!((&bridge["mtu"], &bridge["portIsolation"]), (&json!(1400), &json!(true)));
        assert_eq!(
            bridge["ipam"],
            json!({
                "type": "host-local",
                "ranges": [
                    [{"subnet": "10.3.0.0/16", "gateway": "10.3.0.254", "rangeStart": "10.3.7.0", "rangeEnd": "10.3.7.255"}],
                    [{"subnet": "fd03::/64", "gateway": "fd03::1"}],
                ],
                "reserved": ["10.3.7.9"],
            })
        );
        let found = &m.json(&["network", "inspect", "web"])[0];
        assert_eq!(found["Labels"], json!({"team": "a"}));
        assert_eq!(found["EnableIPv6"], true);
        assert_eq!(found["IPAM"]["Config"][0]["AuxiliaryAddresses"], json!({"router": "10.3.7.9"}));
        assert_eq!(m.ok(&["network", "ls", "-q", "--filter", "label=team=a"]).lines().count(), 1);
        assert_eq!(m.ok(&["network", "ls", "-q", "--filter", "label=team=b"]), "");
    });
}

#[test]
fn a_network_with_ipv6_gets_a_unique_local_subnet_of_its_id() {
    machine(|m| {
        let id = m.ok(&["network", "create", "--ipv6", "web"]);
        let subnet = m.conflist("web")["plugins"][0]["ipam"]["ranges"][1][0]["subnet"].clone();
        let subnet: ipnetwork::Ipv6Network = subnet.as_str().unwrap().parse().unwrap();
        let digits: String = subnet.ip().octets()[..6].iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!((digits, subnet.prefix()), (format!("fd{}", &id[..10]), 64));
    });
}

#[test]
fn an_internal_network_has_no_default_route_and_no_masquerade() {
    machine(|m| {
        m.ok(&["network", "create", "--internal", "inside"]);
        let list = m.conflist("inside");
        let bridge = &list["plugins"][0];
        assert_eq!((&bridge["isDefaultGateway"], &bridge["ipMasq"]), (&json!(false), &json!(false)));
        assert_eq!(bridge["ingressPolicy"], "same-bridge");
        let (code, error) = m.fails(&["run", "--network", "inside", "-p", "80", "true"]);
        assert!(code == 125 && error.contains("inside"), "{error}");
    });
}

#[test]
fn bad_input_is_an_error_that_names_it_and_leaves_nothing() {
    machine(|m| {
        for (args, named) in [
            (&["a/b"][..], "a/b"),
            (&["host"], "host"),
            (&["-d", "overlay", "x"], "overlay"),
            (&["-d", "macvlan", "x"], "macvlan"),
            (&["--subnet", "10.0.0.0/33", "x"], "10.0.0.0/33"),
            (&["--subnet", "10.0.0.0/31", "x"], "10.0.0.0/31"),
            (&["--subnet", "10.0.0.0/24", "--gateway", "10.1.0.1", "x"], "10.1.0.1"),
            (&["--subnet", "10.0.0.0/24", "--ip-range", "10.0.0.0/8", "x"], "--ip-range"),
            (&["--aux-address", "x", "x"], "--aux-address"),
            (&["-o", "com.docker.network.bridge.name=sixteen-bytes-xx", "x"], "sixteen-bytes-xx"),
            (&["-o", "mtu=1400", "x"], "com.docker.network.driver.mtu"),
        ] {
            let (code, error) = m.fails(&[&["network", "create"], args].concat());
            assert_eq!(code, 1, "{args:?}");
            assert!(error.starts_with("runtime: ") && error.contains(named), "{args:?}: {error}");
            assert_eq!(m.left(), [""; 0], "{args:?}");
        }
    });
}

#[test]
fn creates_at_once_do_not_meet() {
    machine(|m| {
        let create = |name: &str| m.run(&["network", "create", name]).status.success();
        std::thread::scope(|scope| {
            let same: Vec<_> = (0..8).map(|_| scope.spawn(|| create("same"))).collect();
            let won = same.into_iter().filter_map(|each| each.join().ok()).filter(|won| *won).count();
            assert_eq!(won, 1);
            let names: Vec<String> = (0..8).map(|n| format!("n{n}")).collect();
            let create = &create;
            let each: Vec<_> = names.into_iter().map(|name| scope.spawn(move || create(&name))).collect();
            assert!(each.into_iter().all(|each| each.join().unwrap()));
        });
        let subnets = m.ok(&[
            "network",
            "inspect",
            "-f",
            "{{range .IPAM.Config}}{{.Subnet}}{{end}}",
            "same",
            "n0",
            "n1",
            "n2",
            "n3",
            "n4",
            "n5",
            "n6",
            "n7",
        ]);
        assert_eq!(subnets.lines().collect::<BTreeSet<_>>().len(), 9);
    });
}

#[test]
fn rm_has_the_plugins_clean_up_and_leaves_nothing() {
    machine(|m| {
        m.ok(&["network", "create", "--subnet", "10.3.0.0/16", "web"]);
        m.plugins(&["bridge", "portmap"]);
        assert_eq!(m.ok(&["network", "rm", "web"]), "web\n");
        let calls = m.calls();
        assert_eq!(calls.len(), 2);
        assert!(calls[0].starts_with(&format!("bridge GC {} ", m.path("root").display())), "{}", calls[0]);
        assert!(calls.iter().all(|call| call.contains(r#""cni.dev/valid-attachments":[]"#)), "{calls:?}");
        assert_eq!(m.left(), ["calls", "cni"]);
    });
}

#[test]
fn a_network_that_cannot_be_cleaned_up_stays_unless_forced() {
    machine(|m| {
        m.ok(&["network", "create", "web"]);
        let (code, error) = m.fails(&["network", "rm", "web"]);
        assert!(code == 1 && error.contains("--force") && error.contains("bridge"), "{error}");
        assert_eq!(m.ok(&["network", "ls", "--format", "{{.Name}}"]), "web\n");
        assert_eq!(m.ok(&["network", "rm", "-f", "web", "none-such"]), "web\n");
        assert_eq!(m.left(), [""; 0]);
        let (code, error) = m.fails(&["network", "rm", "web"]);
        assert!(code == 1 && error.contains("network web not found"), "{error}");
    });
}

#[test]
fn networks_of_others_are_listed_and_never_pruned() {
    machine(|m| {
        m.plugins(&["bridge", "portmap"]);
        m.ok(&["network", "create", "mine"]);
        m.ok(&["network", "create", "--label", "keep", "kept"]);
        let foreign = json!({"cniVersion": "1.0.0", "name": "theirs", "plugins": [
            {"type": "macvlan", "ipam": {"type": "host-local", "subnet": "10.9.0.0/16"}}]});
        fs::write(m.path("net.d/10-theirs.conflist"), foreign.to_string()).unwrap();
        fs::write(m.path("net.d/broken.conflist"), "{").unwrap();
        let listed = m.run(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"]);
        assert_eq!(String::from_utf8(listed.stdout).unwrap(), "kept bridge\nmine bridge\ntheirs macvlan\n");
        assert!(String::from_utf8(listed.stderr).unwrap().contains("broken.conflist"));
        let (_, error) = m.fails(&["network", "create", "--subnet", "10.9.1.0/24", "x"]);
        assert!(error.contains("network theirs (10.9.0.0/16)"), "{error}");
        let pruned = m.ok(&["network", "prune", "--force", "--filter", "label=none"]);
        assert_eq!(pruned, "");
        let pruned = m.ok(&["network", "prune", "--force"]);
        assert_eq!(pruned, "Deleted Networks:\nkept\nmine\n");
        assert_eq!(m.ok(&["network", "ls", "--format", "{{.Name}}"]), "theirs\n");
    });
}

#[test]
fn a_network_is_found_by_name_id_and_the_beginning_of_its_id() {
    machine(|m| {
        let id = m.ok(&["network", "create", "web"]);
        for what in ["web", id.trim(), &id[..5]] {
            assert_eq!(m.ok(&["network", "inspect", "-f", "{{.Name}}", what]), "web\n");
        }
        assert_eq!(m.ok(&["inspect", "--type", "network", "-f", "{{.Name}}", "web"]), "web\n");
    });
}

#[test]
fn a_file_that_is_no_network_is_told_of_once() {
    machine(|m| {
        fs::create_dir_all(m.path("net.d")).unwrap();
        fs::write(m.path("net.d/broken.conflist"), "{").unwrap();
        let output = m.run(&["run", "--network", "none-such", "true"]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error.matches("broken.conflist").count(), 1, "{error}");
    });
}

#[test]
fn killed_network_create_leaves_no_file_after_any_command() {
    machine(|m| {
        // Killed where the file gets its name.
        let status = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=link,linkat:signal=KILL"])
            .arg(env!("CARGO_BIN_EXE_runtime"))
            .args(["--root".into(), m.path("root"), "--run".into(), m.path("run")])
            .args(["--config-dir".into(), m.path("net.d"), "--cni-bin".into(), m.path("cni")])
            .args(["network", "create", "web"])
            .status()
            .unwrap();
        assert!(!status.success());
        assert_eq!(fs::read_dir(m.path("net.d")).unwrap().count(), 1, "a part of a file");
        m.ok(&["network", "ls"]);
        assert_eq!(m.left(), Vec::<String>::new());
    });
}

#[test]
fn routes_that_are_less_specific_are_no_conflict() {
    machine(|m| {
        m.ip("link set lo up");
        m.ip("link add eth9 type veth peer name eth8");
        m.ip("link set eth8 up");
        m.ip("addr add 192.0.2.1/24 dev eth9");
        m.ip("link set eth9 up");
        for route in ["0.0.0.0/1", "128.0.0.0/1", "172.16.0.0/12", "10.0.0.0/8"] {
            m.ip(&format!("route add {route} via 192.0.2.9"));
        }
        m.ok(&["network", "create", "any"]);
        assert_eq!(m.conflist("any")["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "172.17.0.0/16");
        m.ip("route add 10.1.2.0/24 via 192.0.2.9");
        m.ok(&["network", "create", "--subnet", "10.1.0.0/16", "asked"]);
        for subnet in ["192.0.2.128/25", "192.0.0.0/16", "192.0.2.0/24"] {
            let (_, error) = m.fails(&["network", "create", "--subnet", subnet, "bad"]);
            assert!(error.contains("eth9"), "{error}");
        }
    });
}

#[test]
fn own_bridge_with_an_address_is_the_networks() {
    machine(|m| {
        m.plugins(&["bridge", "portmap"]);
        m.ip("link add own0 type bridge");
        m.ip("addr add 10.9.0.7/24 dev own0");
        m.ip("link set own0 up");
        let name = "com.docker.network.bridge.name=own0";
        m.ok(&["network", "create", "--subnet", "10.9.0.0/24", "--gateway", "10.9.0.7", "-o", name, "asked"]);
        m.ok(&["network", "rm", "asked"]);
        m.ok(&["network", "create", "-o", name, "any"]);
        let range = &m.conflist("any")["plugins"][0]["ipam"]["ranges"][0][0];
        assert_eq!(*range, json!({"subnet": "10.9.0.0/24", "gateway": "10.9.0.7"}));
        let (_, error) = m.fails(&["network", "create", "--subnet", "10.9.0.0/24", "other"]);
        assert!(error.contains("network any"), "{error}");
    });
}

#[test]
fn what_no_network_can_have_is_refused_at_create() {
    machine(|m| {
        m.ip("link add dummy9 type veth peer name dummy8");
        for (args, named) in [
            (&["--subnet", "10.3.0.0/24", "--ip-range", "10.3.0.9/32"][..], "--ip-range 10.3.0.9/32"),
            (&["--subnet", "fd03::/64", "--ip-range", "fd03::9/128"], "--ip-range fd03::9/128"),
            (&["--subnet", "10.3.0.0/24", "--ip-range", "10.3.0.0/31"], "--ip-range 10.3.0.0/31"),
            (&["-o", "com.docker.network.bridge.name=lo"], "bridge.name=lo"),
            (&["-o", "com.docker.network.bridge.name=dummy9"], "bridge.name=dummy9"),
            (&["--subnet", "::ffff:10.0.0.0/120"], "::ffff:10.0.0.0/120"),
            (&["--subnet", "10.3.0.0/24", "--gateway", "::ffff:10.3.0.1"], "::ffff:10.3.0.1"),
            (&["--subnet", "10.3.0.0/24", "--aux-address", "a=::ffff:10.3.0.9"], "::ffff:10.3.0.9"),
        ] {
            let (_, error) = m.fails(&[&["network", "create"], args, &["bad"]].concat());
            assert!(error.contains(named), "{args:?}: {error}");
        }
        m.ok(&["network", "create", "--subnet", "10.3.0.0/24", "--ip-range", "10.3.0.8/31", "good"]);
    });
}
