//! Exit codes and formats of the command line, by the real binary.

mod front;

use front::machine;
use std::fs;

#[test]
fn usage_errors_are_125_for_run_and_create_and_1_elsewhere() {
    machine(|m| {
        for args in [
            &["run", "--bogus", "true"][..],
            &["create", "--bogus", "true"],
            &["run"],
            &["run", "--ip", "x", "true"],
            &["run", "--name", "a/b", "true"],
            &["run", "-p", "70000:80", "true"],
            &["run", "--network", "none-such", "true"],
            &["run", "--network", "host", "--ip", "10.0.0.1", "true"],
            &["run", "--network", "container:none-such", "true"],
            &["run", "--mac-address", "03:00:00:00:00:01", "true"],
            &["run", "--rootfs", "/nonexistent", "true"],
            &["run", "--stop-signal", "SIGNONE", "true"],
            &["run", "-v", "/a", "true"],
        ] {
            let (code, error) = m.fails(args);
            assert_eq!(code, 125, "{args:?}: {error}");
            assert!(error.starts_with("runtime: "), "{args:?}: {error}");
        }
        for args in [
            &["ps", "--bogus"][..],
            &["frob"],
            &["ps", "--filter", "nme=x"],
            &["stop", "none-such"],
            &["logs", "none-such"],
            &["port", "none-such"],
            &["wait", "none-such"],
            &["kill", "-s", "x", "none-such"],
            &["inspect", "none-such"],
            &["exec", "none-such", "true"],
            &["network", "inspect", "none-such"],
            &["ipam", "release", "web", "10.0.0.1"],
            &["ipam", "import", "web", "--dir", "/nonexistent"],
        ] {
            let (code, error) = m.fails(args);
            assert_eq!(code, 1, "{args:?}: {error}");
            assert!(error.starts_with("runtime: "), "{args:?}: {error}");
        }
    });
}

#[test]
fn a_bad_flag_leaves_nothing_but_the_default_network() {
    machine(|m| {
        m.fails(&["run", "--name", "a/b", "true"]);
        m.fails(&["run", "--network", "none-such", "true"]);
        assert_eq!(m.left(), [""; 0]);
    });
}

#[test]
fn empty_lists_have_headings_and_json_has_nothing() {
    machine(|m| {
        assert_eq!(m.ok(&["ps"]), "CONTAINER ID   COMMAND   CREATED   STATUS   PORTS   NAMES\n");
        assert_eq!(m.ok(&["network", "ls"]), "NETWORK ID   NAME   DRIVER   SCOPE\n");
        assert_eq!(m.ok(&["ipam", "ls"]), "NETWORK   ADDRESS   CONTAINER   INTERFACE   AGE   BOOT\n");
        assert_eq!(m.ok(&["ps", "--format", "json"]), "");
        assert_eq!(m.left(), [""; 0]);
    });
}

#[test]
fn create_makes_a_container_that_ps_and_inspect_show() {
    machine(|m| {
        let cidfile = m.path("cid");
        let args = [
            "create",
            "--name",
            "www",
            "--network",
            "none",
            "-l",
            "a=b",
            "-e",
            "X=1",
            "-w",
            "/tmp",
            "--cidfile",
        ];
        let id = m.ok(&[&args[..], &[cidfile.to_str().unwrap(), "sh", "-c", "echo $X"]].concat());
        assert_eq!(fs::read_to_string(&cidfile).unwrap(), id.trim());
        assert_eq!(m.ok(&["ps", "-q"]), "");
        let line =
            m.ok(&["ps", "-a", "--format", "{{.ID}} {{.Names}} {{.Command}} {{.Status}} {{.Networks}}"]);
        assert_eq!(line, format!("{} www \"sh -c echo $X\" Created none\n", &id[..12]));
        assert_eq!(m.ok(&["ps", "-aq", "--no-trunc", "-f", "label=a", "-f", "status=created"]), id);
        let found = &m.json(&["inspect", "www"])[0];
        assert_eq!(found["Id"], id.trim());
        assert_eq!(found["Config"]["Cmd"], serde_json::json!(["sh", "-c", "echo $X"]));
        assert_eq!((&found["Name"], &found["State"]["Running"]), (&"/www".into(), &false.into()));
        let (code, error) = m.fails(&[&args[..], &[cidfile.to_str().unwrap(), "true"]].concat());
        assert!(code == 125 && error.contains("--cidfile"), "{error}");
        assert_eq!(m.ok(&["rm", "www"]), "www\n");
        assert_eq!(m.ok(&["ps", "-aq"]), "");
    });
}

#[test]
fn the_default_network_is_made_on_first_use() {
    machine(|m| {
        m.ok(&["create", "--name", "www", "true"]);
        assert_eq!(m.ok(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"]), "bridge bridge\n");
        assert_eq!(m.ok(&["inspect", "-f", "{{.HostConfig.NetworkMode}}", "www"]), "bridge\n");
    });
}

#[test]
fn host_locals_leases_are_imported_listed_and_released() {
    machine(|m| {
        let dir = m.path("networks/web");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("10.3.0.7"), "abcdef0123456789\r\neth0").unwrap();
        fs::write(dir.join("last_reserved_ip.0"), "10.3.0.7").unwrap();
        let networks = m.path("networks");
        let text = m.ok(&["ipam", "import", "--dir", networks.to_str().unwrap(), "web"]);
        assert!(text.contains("10.3.0.7") && text.contains("1 leases imported"), "{text}");
        assert!(!dir.exists());
        assert_eq!(m.ok(&["ipam", "ls", "-q"]), "10.3.0.7\n");
        let row = m.ok(&[
            "ipam",
            "ls",
            "--network",
            "web",
            "--format",
            "{{.Address}} {{.Container}} {{.Interface}}",
        ]);
        assert_eq!(row, "10.3.0.7 abcdef012345 eth0\n");
        assert_eq!(m.ok(&["ipam", "ls", "--network", "other", "-q"]), "");
        m.ok(&["ipam", "release", "web", "10.3.0.7"]);
        assert_eq!(m.ok(&["ipam", "ls", "-q"]), "");
    });
}

#[test]
fn completion_scripts_know_the_commands() {
    machine(|m| {
        for shell in ["bash", "zsh", "fish"] {
            let script = m.ok(&["completion", shell]);
            assert!(script.contains("network") && script.contains("runtime"), "{shell}");
        }
    });
}

#[test]
fn another_user_than_root_is_told_that_it_needs_root() {
    machine(|m| {
        // Where that user may execute it.
        let exe = m.path("runtime");
        fs::copy(env!("CARGO_BIN_EXE_runtime"), &exe).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(exe.parent().unwrap(), open).unwrap();
        for (command, code) in [("inspect", 1), ("run", 125)] {
            let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
            // A process that another test is just starting may have the new file open for writing.
            let (output, error) = loop {
                let line = std::process::Command::new("setpriv")
                    .args(user)
                    .arg(&exe)
                    .args([command, "true"])
                    .output();
                let output = line.unwrap();
                let error = String::from_utf8(output.stderr.clone()).unwrap();
                if !error.contains("Text file busy") {
                    break (output, error);
                }
            };
            assert_eq!(error, "runtime: it needs root: run it as root, or by sudo\n");
            assert_eq!(output.status.code(), Some(code), "{error}");
        }
    });
}

#[test]
fn runtime_alone_and_help_print_the_commands() {
    machine(|m| {
        let alone = m.ok(&[]);
        assert!(alone.contains("Usage: runtime") && alone.contains("  network "), "{alone}");
        assert!(!alone.contains("supervise"), "{alone}");
        assert_eq!(m.ok(&["help"]), alone);
        assert_eq!(m.ok(&["help", "supervise"]), alone);
        let run = m.ok(&["help", "run"]);
        assert!(run.contains("Usage: runtime run") && run.contains("--publish"), "{run}");
        assert!(m.ok(&["help", "network", "create"]).contains("--subnet"));
        assert!(m.ok(&["network"]).contains("prune"));
        assert_eq!(m.left(), [""; 0]);
    });
}

#[test]
fn words_that_only_docker_has_are_named() {
    machine(|m| {
        for (args, named) in [
            (&["run", "--memory", "1g", "true"][..], "run --memory"),
            (&["run", "--memory=1g", "true"], "run --memory"),
            (&["run", "-m", "1g", "true"], "run -m"),
            (&["create", "--privileged", "true"], "create --privileged"),
            (&["rm", "-v", "x"], "rm -v"),
            (&["network", "create", "--ipam-driver", "x", "n"], "network create --ipam-driver"),
            (&["network", "connect", "a", "b"], "network connect"),
            (&["images"], "images"),
            (&["pull", "alpine"], "pull"),
        ] {
            let (code, error) = m.fails(args);
            assert!(error.starts_with(&format!("runtime: {named}: Docker has this")), "{args:?}: {error}");
            assert!(!error.contains("similar") && error.lines().count() == 1, "{args:?}: {error}");
            assert_eq!(code, if matches!(args[0], "run" | "create") { 125 } else { 1 }, "{args:?}");
        }
        // What neither has keeps its hint.
        assert!(m.fails(&["run", "--mac-addres", "x", "true"]).1.contains("--mac-address"));
    });
}

#[test]
fn one_that_joins_cannot_have_name_servers_or_hosts_of_its_own() {
    machine(|m| {
        m.ok(&["create", "--name", "one", "--network", "none", "true"]);
        for flag in [
            ["--dns", "192.0.2.1"],
            ["--dns-search", "lan"],
            ["--dns-option", "x"],
            ["--add-host", "a:10.0.0.1"],
        ] {
            let (code, error) = m.fails(&["create", "--network", "container:one", flag[0], flag[1], "true"]);
            assert_eq!(code, 125);
            assert!(error.contains(flag[0]), "{error}");
        }
        m.ok(&["rm", "one"]);
    });
}
