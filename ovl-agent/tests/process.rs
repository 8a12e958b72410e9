//! The agent as a process: its lock, its socket, its API's edges, its secrets, its signals. Needs root.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use ovl_api::wire::{Attach, Detach, Problem, ProblemKind};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use support::container::Container;
use support::{Host, curl, eventually};

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_socket_is_roots_alone_and_goes_with_the_agent() {
    let host = Host::alone("h1");
    let mut agent = host.ready(&[]);
    assert_eq!((mode(&host.socket()), mode(&host.run_dir())), (0o600, 0o700));
    assert!(agent.end("TERM").success());
    assert!(!host.socket().exists());
    assert!(agent.said().contains("containers and the kernel stay as they are"), "{}", agent.said());
}

#[test]
fn a_second_agent_is_refused_by_the_firsts_pid() {
    let host = Host::alone("h1");
    let agent = host.ready(&[]);
    let same_root = host.ovl_agent(&["run"]).output().unwrap();
    let other = host.dir.path().join("other");
    let same_run = host.ovl_agent(&["run", "--root", other.to_str().unwrap()]).output().unwrap();
    for (output, words) in [(same_root, "an agent runs with --root"), (same_run, "an agent answers at")] {
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(words) && error.contains(&format!("process {}", agent.pid())), "{error}");
    }
    host.client().healthz().unwrap();
}

#[test]
fn a_socket_that_a_dead_agent_left_is_replaced() {
    let host = Host::alone("h1");
    let mut agent = host.ready(&[]);
    agent.end("KILL");
    assert!(host.socket().exists());
    assert!(host.client().healthz().unwrap_err().is_absent());
    let _agent = host.ready(&[]);
}

#[test]
fn every_error_of_the_api_is_a_problem() {
    let host = Host::alone("h1");
    let _agent = host.ready(&[]);
    let large = host.dir.path().join("large");
    std::fs::write(&large, vec![b' '; (1 << 20) + 1]).unwrap();
    let large = format!("@{}", large.display());
    let cases: [(&[&str], u16, ProblemKind, &str); 9] = [
        (&["http://a/v1/nothing"], 404, ProblemKind::NotFound, "there is no GET /v1/nothing"),
        (&["-X", "PUT", "http://a/v1/attach"], 404, ProblemKind::NotFound, "there is no PUT /v1/attach"),
        (&["http://a/v1/networks/none"], 404, ProblemKind::NotFound, "none"),
        (&["-X", "DELETE", "http://a/v1/nodes/none"], 404, ProblemKind::NotFound, "none"),
        (&["-X", "DELETE", "http://a/v1/nodes/h1?force=yes"], 400, ProblemKind::Invalid, "force \"yes\""),
        (&["-d", "{", "http://a/v1/networks"], 400, ProblemKind::Invalid, "EOF"),
        (
            &["-d", "{\"name\":\"x\",\"vni\":\"7\"}", "http://a/v1/networks"],
            400,
            ProblemKind::Invalid,
            "vni: ",
        ),
        (&["-d", "{\"nam\":1}", "http://a/v1/attach"], 400, ProblemKind::Invalid, "unknown field `nam`"),
        (&["-d", &large, "http://a/v1/networks"], 400, ProblemKind::Invalid, "more than 1 MiB"),
    ];
    for (args, status, kind, words) in cases {
        let (code, body) = curl(&host.socket(), args);
        let problem: Problem =
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("{args:?}: {error}: {body}"));
        assert_eq!((code, problem.kind), (status, kind), "{args:?}: {body}");
        assert!(problem.message.contains(words), "{args:?}: {body}");
    }
}

#[test]
fn without_an_underlay_it_answers_waits_for_one_and_takes_what_ends() {
    let host = Host::bare("h1");
    let agent = host.start(&[]);
    eventually("it says what it waits for", || {
        agent.said().contains("waiting for the underlay: this host has no default")
    });
    let error = host.client().healthz().unwrap_err();
    assert!(error.to_string().contains("waiting for the underlay"), "{error}");
    assert_eq!(error.problem().unwrap().kind, ProblemKind::NotReady);
    let status = host.client().status(None).unwrap();
    assert_eq!((status.ready, status.vtep), (false, None));
    let attach =
        Attach { network: "ov".into(), container: "c".into(), ifname: "eth0".into(), ..Attach::default() };
    assert_eq!(host.client().attach(&attach).unwrap_err().problem().unwrap().kind, ProblemKind::NotReady);
    let detach = Detach { network: "ov".into(), container: "c".into(), ifname: "eth0".into() };
    host.client().detach(&detach).unwrap();
    let notes = ovl_api::names::release_notes(&ovl_api::names::agent_root(&host.root()));
    assert_eq!(std::fs::read_dir(&notes).unwrap().count(), 1);
    host.space.ok("ip link add eth0 type veth peer name far; ip link set far up");
    host.give_underlay("192.0.2.1/24");
    eventually("it is ready", || host.client().healthz().is_ok());
    assert_eq!(host.client().status(None).unwrap().vtep, Some("192.0.2.1".parse().unwrap()));
    eventually("it has read the note", || std::fs::read_dir(&notes).unwrap().count() == 0);
    assert_eq!(agent.said().matches("WARN waiting for the underlay").count(), 1, "{}", agent.said());
}

#[test]
fn a_wrong_setting_ends_it_with_code_2_before_anything_is_made() {
    let host = Host::alone("h1");
    for (flags, words) in [
        (&["run", "--port", "x"][..], "--port \"x\": must be a UDP port"),
        (&["run", "--etcd", "nonsense://x"], "--etcd"),
        (&["run", "--no-such-flag"], "--no-such-flag"),
        (&["status", "--format", "yaml"], "--format"),
        (&[], "Usage"),
    ] {
        let output = host.ovl_agent(flags).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {error}");
        assert!(error.contains(words), "{flags:?}: {error}");
    }
    assert!(!host.root().exists() && !host.run_dir().exists());
}

#[test]
fn a_command_without_an_agent_says_what_to_start() {
    let host = Host::bare("h1");
    for words in
        [&["status"][..], &["node", "ls"], &["node", "rm", "h2"], &["sync"], &["accept"], &["network", "ls"]]
    {
        let output = host.ovl_agent(words).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {error}");
        assert!(error.contains("start it with `ovl-agent run`"), "{words:?}: {error}");
    }
}

#[test]
fn the_commands_show_what_the_agent_answers() {
    let host = Host::alone("h1");
    let _agent = host.ready(&[]);
    host.create("ov", &["10.42.0.0/16"]);
    let ask = |words: &[&str]| {
        let output = host.ovl_agent(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(ask(&["status"]).contains("Ready:        yes"));
    assert!(ask(&["sync"]).contains("Connected:    yes"));
    let nodes = ask(&["node", "ls"]);
    let words: Vec<&str> = nodes.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(words[..4], ["h1", "alive", "192.0.2.1", "192.0.2.0/24"]);
    assert!(ask(&["network", "ls"]).contains("10.42.0.0/16"));
    let nodes: Vec<ovl_api::wire::Node> =
        serde_json::from_str(&ask(&["node", "ls", "--format", "json"])).unwrap();
    assert_eq!(nodes[0].host.name, "h1");
    let status: ovl_api::wire::Status = serde_json::from_str(&ask(&["status", "--format", "json"])).unwrap();
    assert!(status.ready && status.store.contains("local"), "{status:?}");
    assert!(ask(&["completion", "bash"]).contains("ovl-agent"));
}

#[test]
fn a_password_is_neither_in_ps_nor_in_the_log() {
    let secret = "s3cr3t-w0rd";
    let host = Host::alone("h1");
    let file = host.dir.path().join("password");
    std::fs::write(&file, secret).unwrap();
    // Nobody listens there: all that can be said about the connection is said.
    let flags =
        ["--etcd", "http://192.0.2.1:1", "--etcd-user", "weft", "--log", "debug", "--etcd-password-file"];
    let agent = host.start(&[&flags[..], &[file.to_str().unwrap()]].concat());
    eventually("it says that the store is away", || {
        host.client()
            .status(None)
            .is_ok_and(|status| status.store_error.is_some_and(|why| why.contains("192.0.2.1:1")))
    });
    let command_line = std::fs::read(format!("/proc/{}/cmdline", agent.pid())).unwrap();
    let (_, metrics) = curl(&host.socket(), &["http://a/metrics"]);
    let (_, status) = curl(&host.socket(), &["http://a/v1/status"]);
    for text in [String::from_utf8(command_line).unwrap(), agent.said(), metrics, status] {
        assert!(!text.is_empty() && !text.contains(secret), "{text}");
    }
    assert!(agent.said().contains("can be read by others"), "{}", agent.said());
}

#[test]
fn over_tcp_there_are_metrics_and_health_and_nothing_else() {
    let host = Host::alone("h1");
    let agent = host.ready(&["--metrics-listen", "127.0.0.1:9790"]);
    let metrics = host.space.ok("curl -sS http://127.0.0.1:9790/metrics");
    assert!(metrics.contains("weft_overlay_store_connected 1"), "{metrics}");
    assert!(metrics.contains("weft_overlay_hosts 1"), "{metrics}");
    host.space.ok("curl -sSf http://127.0.0.1:9790/healthz");
    let status = host.space.ok("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:9790/v1/status");
    assert_eq!(status, "404");
    let other = Host::alone("h2");
    let busy = other.space.command("nc").args(["-l", "127.0.0.1", "9790"]).spawn();
    let mut busy = busy.unwrap();
    eventually("it listens", || other.space.ok("ss -Hltn").contains(":9790"));
    let output = other.ovl_agent(&["run", "--metrics-listen", "127.0.0.1:9790"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("--metrics-listen 127.0.0.1:9790: Address already in use"), "{error}");
    let _ = busy.kill();
    let _ = busy.wait();
    drop(agent);
}

#[test]
fn systemd_is_told_when_it_is_ready_and_that_it_is_alive() {
    let host = Host::alone("h1");
    let path = host.dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let mut agent =
        host.start_with(&[], |command| command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000"));
    let mut buffer = [0; 4096];
    let mut told = String::new();
    let mut hear = |until: &dyn Fn(&str) -> bool| {
        while !until(&told) {
            let count =
                socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{error}; it was told:\n{told}"));
            told.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        told.clone()
    };
    let ready = hear(&|told| told.contains("READY=1") && told.matches("WATCHDOG=1").count() > 5);
    assert!(ready.contains("STATUS=ready"), "{ready}");
    host.client().healthz().unwrap();
    agent.signal("TERM");
    hear(&|told| told.contains("STOPPING=1"));
    assert!(agent.end("TERM").success());
}

#[test]
fn with_the_store_away_systemd_is_told_ready_and_why_not() {
    let host = Host::alone("h1");
    let path = host.dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let _agent =
        host.start_with(&["--etcd", "http://192.0.2.1:1"], |command| command.env("NOTIFY_SOCKET", &path));
    let mut told = String::new();
    let mut buffer = [0; 4096];
    while !told.contains("READY=1") {
        let count = socket.recv(&mut buffer).unwrap();
        told = String::from_utf8_lossy(&buffer[..count]).into_owned();
    }
    assert!(told.contains("STATUS=not ready: ") && told.contains("192.0.2.1:1"), "{told}");
    assert!(host.client().healthz().is_err());
}

#[test]
fn a_file_in_the_place_of_the_socket_that_answers_is_left_alone() {
    let host = Host::alone("h1");
    std::fs::create_dir_all(host.run_dir()).unwrap();
    let _other = UnixListener::bind(host.socket()).unwrap();
    let output = host.ovl_agent(&["run"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    assert!(host.socket().exists());
}

/// The words that run the agent with no other capabilities than these.
fn confined(host: &Host, capabilities: &str) -> std::process::Command {
    let mut command = host.space.command("setpriv");
    let agent = host.ovl_agent(&["run"]);
    command.args(["--no-new-privs", "--inh-caps", "-all", "--bounding-set", capabilities]);
    // The namespace is entered already.
    let words = agent.get_args().skip_while(|word| *word != "--").skip(1);
    command.args(words).envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

#[test]
fn without_the_right_to_change_the_network_it_does_not_start_and_makes_nothing() {
    let host = Host::alone("h1");
    let output = confined(&host, "-net_admin").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("no CAP_NET_ADMIN") && error.lines().count() == 1, "{error}");
    assert!(!host.root().exists() && !host.run_dir().exists());
}

#[test]
fn the_capabilities_of_the_systemd_unit_are_enough() {
    let unit =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/systemd/ovl-agent.service"));
    let unit = unit.unwrap();
    assert!(unit.lines().any(|line| line == "Before=kubelet.service"), "pods need the agent: {unit}");
    let set = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let set: Vec<String> =
        set.split(' ').map(|name| format!("+{}", name.trim_start_matches("CAP_").to_lowercase())).collect();
    let host = Host::alone("h1");
    let mut child = confined(&host, &format!("-all,{}", set.join(","))).spawn().unwrap();
    eventually("it is ready", || host.client().healthz().is_ok());
    host.create("ov", &["10.42.0.0/16", "fd42::/48"]);
    let (one, two) = (Container::new(&host, "ov", "one"), Container::new(&host, "ov", "two"));
    assert!(one.reaches(&two));
    let _ = child.kill();
    let _ = child.wait();
}
