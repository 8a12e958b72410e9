//! `runtime lab`: several hosts on a machine that has to look as before when the lab is down.

use serde_json::Value;
use std::time::{Duration, Instant};
use tests::{Host, Output};

/// Runs a command of `lab`.
#[track_caller]
fn lab(host: &Host, line: &str) -> Output {
    host.weft().run(&format!("lab {line}"))
}

#[track_caller]
fn ok(host: &Host, line: &str) -> String {
    lab(host, line).ok().stdout
}

/// It fails, and says this.
#[track_caller]
fn fails(host: &Host, line: &str, said: &[&str]) {
    let out = lab(host, line);
    assert!(out.code != 0, "{line}: {out}");
    for part in said {
        assert!(out.stderr.contains(part) || out.stdout.contains(part), "{line}: {part:?} is not in {out}");
    }
}

fn example(name: &str) -> String {
    format!("{}/../examples/{name}.yaml", env!("CARGO_MANIFEST_DIR"))
}

/// Everything of the lab goes, and a second time there is nothing to do.
#[track_caller]
fn down(host: &Host, name: &str) {
    ok(host, &format!("down {name}"));
    ok(host, &format!("down {name}"));
    host.assert_as_before();
}

#[test]
fn a_lab_comes_up_by_one_command_and_goes_by_another() {
    let host = Host::new();
    let said = ok(&host, "up --hosts 3");
    assert!(said.contains("lab lab is up"), "{said}");
    let matrix = ok(&host, "ping --count 2");
    assert!(matrix.contains("no holes: 12 of 12 reached"), "{matrix}");
    assert!(
        matrix.contains("IPv4 ms") && matrix.contains("IPv6 ms") && matrix.contains("c3 (host3)"),
        "{matrix}"
    );
    let json: Value = lab(&host, "ping --format json").ok().json();
    assert_eq!((json["Holes"].as_u64(), json["Pairs"].as_array().map(Vec::len)), (Some(0), Some(12)));
    assert!(ok(&host, "check").starts_with("ok"), "every container reaches every other");

    let listed = ok(&host, "ls");
    assert!(listed.lines().count() == 2 && listed.contains("3/3"), "{listed}");
    let about = lab(&host, "inspect --format json").ok().json();
    assert_eq!(about[0]["Hosts"][2]["Vtep"], "10.99.0.13");
    assert_eq!(about[0]["Containers"].as_array().map(Vec::len), Some(3));
    assert!(ok(&host, "inspect").contains("ovl-agent: pid"));
    assert!(ok(&host, "graph").contains("c2  ov: 10.42."));
    assert!(ok(&host, "graph --format dot").starts_with("graph \"lab\" {"));
    // The machine's own namespace got nothing of it.
    let links = host.run("ip -br link; nft list ruleset").ok().stdout;
    assert!(links.lines().count() == 1, "{links}");

    fails(&host, "up --hosts 2", &["a lab lab exists already", "runtime lab down lab"]);
    ok(&host, "up -q --hosts 1 --etcd 0 --name other");
    fails(&host, "ping --name other", &["nothing to ping: only one container"]);
    fails(&host, "check --name other -W 0.1", &["nothing to ping: only one container"]);
    assert!(
        lab(&host, "down third")
            .ok()
            .stderr
            .contains("there is no lab third: nothing to do; there are lab, other")
    );
    assert_eq!(ok(&host, "ls").lines().count(), 3);
    ok(&host, "down --name other");
    down(&host, "lab");
}

#[test]
fn a_command_runs_as_on_a_host() {
    let host = Host::new();
    ok(&host, "up -q --hosts 2");
    let exec = |line: &str| lab(&host, &format!("exec {line}"));
    assert_eq!(exec("host2 -- hostname").ok().text(), "host2");
    assert_eq!(exec("host2 -- sh -c 'exit 7'").code, 7);
    assert_eq!(exec("host2 -- no-such-program").code, 127);
    assert_eq!(host.weft().run_with("lab exec host2 -- cat", b"through").ok().text(), "through");
    fails(&host, "exec host3 -- true", &["no host \"host3\"", "host1, host2"]);
    let names = exec("host2 -- runtime ps --format '{{.Names}}'").ok();
    assert_eq!(names.text(), "c2", "runtime means that host's");
    let nodes = exec("host1 -- ovl-agent node ls").ok().stdout;
    assert!(nodes.contains("host1") && nodes.contains("host2"), "ovl-agent means that host's: {nodes}");
    // Defaults are that host's too: the same without what is in the environment.
    let plain = "env -u WEFT_ROOT -u WEFT_RUN -u WEFT_CONFIG_DIR";
    assert_eq!(exec(&format!("host1 -- {plain} runtime ps --format '{{{{.Names}}}}'")).ok().text(), "c1");
    let status = exec("host2 -- curl -s --unix-socket /run/weft/ovl-agent.sock http://agent/v1/status").ok();
    assert_eq!(status.json()["host"], "host2");

    // The kernel's files show the host's links, and named namespaces are the host's.
    let links = exec("host2 -- sh -c 'ls /sys/class/net; ip -br link | wc -l'").ok().stdout;
    let (listed, count) = links.trim().rsplit_once('\n').unwrap_or_default();
    assert!(listed.contains("vx-") && listed.lines().count().to_string() == count, "{links}");
    assert!(exec("host2 -- ls /sys/fs/cgroup").ok().stdout == host.run("ls /sys/fs/cgroup").ok().stdout);
    exec("host2 -- ip netns add extra").ok();
    assert!(exec("host2 -- ip netns exec extra ip -br link").ok().stdout.starts_with("lo "));
    exec("host2 -- sh -c 'ip netns exec extra sleep 300 >/dev/null 2>&1 &'").ok();
    assert_eq!(exec("host1 -- ip netns").ok().stdout, "");
    assert_eq!(host.run("ls -A /run/netns").stdout, "");

    // What one command makes is there for the next, and for the lab.
    exec("host1 -- runtime run -d --name late --network ov sleep 300").ok();
    let address = "{{.NetworkSettings.Networks.ov.IPAddress}}";
    let late = exec(&format!("host1 -- runtime inspect --format {address} late")).ok().text().to_owned();
    exec(&format!("host2 -- runtime exec c2 ping -c 1 -W 2 {late}")).ok();
    exec("host1 -- runtime run --rm --network container:late true").ok();
    assert!(ok(&host, "ping").contains("no holes: 12 of 12"), "it is in the matrix");
    // A container sees nothing of the host's state, also where it lies in the usual place.
    let seen = exec("host1 -- runtime exec late ls -A /var/lib/weft /run").ok().stdout;
    assert!(!seen.contains("containers") && !seen.contains("weft-agent"), "{seen}");
    down(&host, "lab");
}

#[test]
fn lab_exec_without_its_mounts_runs_nothing() {
    let host = Host::new();
    ok(&host, "up -q --hosts 1");
    // `ip netns` needs a directory there, and finds a file.
    host.run("umount -i -l /run/netns && rmdir /run/netns && touch /run/netns").ok();
    fails(&host, "exec host1 -- touch /run/executed", &["directories of host1", "/run/netns"]);
    assert!(!host.path("/run/executed").exists(), "the command ran in the machine's own directories");
    host.run("rm -rf /run/netns /run/mount && ip netns add again && ip netns delete again").ok();
    down(&host, "lab");
}

#[test]
fn what_breaks_is_named_by_its_hop_and_heals() {
    let host = Host::new();
    ok(&host, "up -q --hosts 3");
    let address = |name: &str| -> String {
        let about = lab(&host, "inspect --format json").ok().json();
        let all = about[0]["Containers"].as_array().cloned().unwrap_or_default();
        let one = all.iter().find(|one| one["Name"] == name).cloned().unwrap_or_default();
        let first = one["Networks"][0]["Addresses"][0].as_str().unwrap_or_default().to_owned();
        first.split('/').next().unwrap_or_default().to_owned()
    };
    let whole = || assert!(ok(&host, "check -W 30").starts_with("ok"));

    ok(&host, "fail link host2");
    fails(&host, "ping", &["8 holes in 12", "LOST"]);
    fails(&host, "check -W 0.1", &["c1 → c2", "stops at host2: its link to the underlay is down"]);
    ok(&host, "heal link host2");
    whole();

    // A dead agent is no hole; what it would have to mend is.
    ok(&host, "fail agent host3");
    assert!(ok(&host, "ping").contains("no holes"));
    let c3 = address("c3");
    ok(&host, &format!("exec host3 -- ip route del {c3}"));
    let stop = format!("c1 → c3 ({c3}): stops at host3: no route to {c3} (its agent does not run)");
    fails(&host, "check -W 0.1", &[&stop]);
    ok(&host, "heal agent host3");
    whole();

    ok(&host, "fail agent host1");
    let vx = ok(&host, "exec host1 -- sh -c 'ip -br link show type vxlan'");
    let vx = vx.split([' ', '@']).next().unwrap_or_default().to_owned();
    ok(
        &host,
        &format!(
            "exec host1 -- sh -c 'bridge fdb show dev {vx} | while read m d ip r; do bridge fdb del $m dev {vx} dst $ip; done'"
        ),
    );
    fails(
        &host,
        "check -W 0.1",
        &["c1 → c2", "stops at host1: ", "no forwarding entry", "(its agent does not run)"],
    );
    ok(&host, &format!("exec host1 -- ip link del {vx}"));
    fails(&host, "check -W 0.1", &["c2 → c1", &format!("stops at host1: it has no {vx}")]);
    ok(&host, "heal agent host1");
    whole();

    ok(&host, "fail agent host2");
    ok(&host, "exec host2 -- sh -c 'nft flush set inet weft-overlay vteps4'");
    fails(
        &host,
        "check -W 0.1",
        &["c1 → c2", "stops at host2: its packet filter does not know host1 (10.99.0.11)"],
    );
    ok(&host, "heal agent host2");
    whole();

    let about = lab(&host, "inspect --format json").ok().json();
    let netns = about[0]["Containers"][0]["Netns"].as_str().unwrap_or_default().to_owned();
    host.run(&format!("nsenter --net={netns} ip link set eth0 down")).ok();
    fails(
        &host,
        "check -W 0.1",
        &["c2 → c1", "stops at c1: eth0 is down", "c1 → c2", "stops at c1: no route to"],
    );
    ok(&host, "exec host1 -- runtime restart -t 0 c1");
    whole();

    ok(&host, "exec host2 -- runtime run -d --name late --network ov sleep 300");
    ok(&host, "exec host2 -- runtime run -d --rm --name gone --network ov sleep 300");
    ok(&host, "fail host host2");
    let graph = ok(&host, "graph");
    assert!(graph.contains("[link down, no agent]") && graph.contains("[killed]"), "{graph}");
    fails(&host, "ping -W 0.2", &["down"]);
    fails(&host, "check -W 0.1", &["stops at host2: container c2 does not run"]);
    // As after a crash: the lab's own containers run again, those made by hand have ended, and both are said.
    let healed = ok(&host, "heal host host2");
    assert!(healed.contains("running: c2;") && healed.ends_with("not running: late\n"), "{healed}");
    assert!(
        ok(&host, "ping")
            .contains("no holes: 12 of 12 reached\nmade by hand, not running, not tried: late (host2)")
    );
    assert!(ok(&host, "check -W 30").contains("(but for those made by hand that do not run: late)"));
    ok(&host, "exec host2 -- runtime start late");
    assert!(ok(&host, "ping").contains("no holes: 24 of 24 reached"));
    whole();
    down(&host, "lab");
}

#[test]
fn forward_policy_drop_is_named_as_hop() {
    let host = Host::new();
    host.write(
        "/run/lab.yaml",
        "hosts: [host1, {name: host2, agent: --no-forward-accept}]\n\
         networks: [{name: ov, ipv6: true}]\n\
         containers: [{name: c1, host: host1}, {name: c2, host: host2}]\n",
    );
    host.note_baseline();
    ok(&host, "up -q /run/lab.yaml");
    let whole = || assert!(ok(&host, "check -W 30").starts_with("ok"));
    whole();
    let chain = |on: &str, family: &str, policy: &str| {
        let hook = format!("type filter hook forward priority 0; policy {policy};");
        let line = format!("add table {family} filter; add chain {family} filter FORWARD {{ {hook} }}");
        ok(&host, &format!("exec {on} -- nft '{line}'"));
    };
    // host1's agent accepts what is its own.
    chain("host1", "ip", "drop");
    whole();
    for family in ["ip", "ip6", "inet"] {
        chain("host2", family, "drop");
        let hop = format!("stops at host2: the forward chain `{family} filter FORWARD` has the policy drop");
        fails(&host, "check -W 0.1", &["c1 → c2", "c2 → c1", &hop]);
        chain("host2", family, "accept");
        whole();
    }
    down(&host, "lab");
    host.run("rm /run/lab.yaml").ok();
    host.note_baseline();
}

#[test]
fn who_is_kept_apart_is_told_from_who_is_lost() {
    let host = Host::new();
    host.write(
        "/run/lab.yaml",
        "hosts: 1\netcd: 0\n\
         networks: [{name: four, subnet: 10.42.0.0/16}, {name: six, subnet: 'fd42::/64'}, {name: more, subnet: 10.43.0.0/16}]\n\
         containers:\n  - {name: ca, host: host1, network: four}\n  - {name: cb, host: host1, network: four}\n  \
         - {name: cc, host: host1, network: six}\n  - {name: cd, host: host1, network: more}\n\
         expect:\n  - no_ping: ca, cb -> cc, cd\n  - no_ping: {from: cc, to: ca, family: ipv6}\n  - ping: ca -> cb\n",
    );
    host.note_baseline();
    ok(&host, "up -q /run/lab.yaml");
    // Without an address family in common nobody is reached, as is expected.
    let checked = ok(&host, "check");
    assert!(!checked.contains("FAILED") && checked.lines().count() == 3, "{checked}");
    let sum = |line: &str| ok(&host, line).lines().last().unwrap_or_default().to_owned();
    assert_eq!(sum("ping"), "no holes: 2 of 2 reached");
    assert_eq!(
        sum("ping --across -W 0.3"),
        "no holes: 2 of 2 reached; between networks 0 of 4 reached, 4 kept apart"
    );
    assert!(!ok(&host, "ping --across -W 0.3").contains("LOST"));
    ok(&host, "exec host1 -- runtime stop -t 0 cb");
    fails(&host, "ping --across -W 0.3", &["down", " holes in "]);
    down(&host, "lab");
    host.run("rm /run/lab.yaml").ok();
    host.note_baseline();
}

#[test]
fn etcd_fails_by_member_or_whole_and_comes_back() {
    let host = Host::new();
    ok(&host, &format!("up -q {}", example("ipv6-underlay")));
    let on_lab = |line: &str| lab(&host, &line.replacen(' ', " --name ipv6-underlay ", 1));
    on_lab("ping -c 1").ok();
    let create =
        |name: &str| on_lab(&format!("exec host2 -- runtime network create --driver overlay {name}"));
    lab(&host, "fail etcd etcd2 --name ipv6-underlay").ok();
    // The one that fails may be the leader: the others need a moment to choose another.
    let began = Instant::now();
    let made = (1..).map(|number| format!("two-of-three-{number}")).find(|name| create(name).code == 0);
    assert!(began.elapsed() < Duration::from_secs(120), "two of three go on: {:?}", began.elapsed());
    let made = made.unwrap_or_default();
    lab(&host, "fail etcd --name ipv6-underlay").ok();
    let refused = create("none-of-three");
    assert!(refused.code != 0 && refused.stderr.contains("[fd99::"), "the endpoint is named: {refused}");
    on_lab("ping -c 1").ok();
    lab(&host, "heal etcd --name ipv6-underlay").ok();
    create("all-again").ok();
    let networks = on_lab("exec host3 -- runtime network ls --format '{{.Name}}'").ok().stdout;
    for name in [&made, "all-again"] {
        assert!(networks.lines().any(|line| line == name), "{name}: {networks}");
    }
    on_lab("check -W 30").ok();
    down(&host, "ipv6-underlay");
}

#[test]
fn the_examples_are_as_they_expect() {
    let host = Host::new();
    for name in ["three-hosts", "two-networks", "direct", "demo"] {
        ok(&host, &format!("up -q --name here {}", example(name)));
        let checked = lab(&host, "check --name here -W 20");
        assert!(checked.code == 0 && !checked.stdout.contains("FAILED"), "{name}: {checked}");
        lab(&host, "ping --name here").ok();
        down(&host, "here");
    }
}

#[test]
fn an_up_that_is_killed_at_any_moment_leaves_nothing_behind_a_down() {
    let host = Host::new();
    let began = Instant::now();
    ok(&host, "up -q --hosts 2");
    let whole = began.elapsed();
    let about = lab(&host, "inspect --format json").ok().json();
    let mut ids: Vec<String> = Vec::new();
    let mut note = |about: &Value| {
        let all = about[0]["Containers"].as_array().cloned().unwrap_or_default();
        ids.extend(all.iter().filter_map(|one| one["ID"].as_str()).map(str::to_owned));
    };
    note(&about);
    down(&host, "lab");
    let runtime = tests::dist().join("bin/runtime");
    for tenth in 1..=12 {
        let seconds = whole.as_secs_f64() * f64::from(tenth) / 10.0;
        // SIGKILL to it alone, not to its children.
        let line = format!(
            "CNI_PATH={} timeout --foreground -s KILL {seconds:.3} {} lab up -q --hosts 2",
            tests::weft_cni().display(),
            runtime.display()
        );
        host.run(&line);
        let about = lab(&host, "inspect --format json");
        if about.code == 0 {
            note(&about.json());
        }
        down(&host, "lab");
    }
    let groups = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"];
    for (id, base) in ids.iter().flat_map(|id| groups.iter().map(move |base| (id, base))) {
        let group = std::path::Path::new(base).join("weft").join(id);
        assert!(id.is_empty() || !group.exists(), "{} is left", group.display());
    }
}

#[test]
fn what_does_not_come_up_is_taken_down_and_says_why() {
    let host = Host::new();
    let file = |text: &str| host.write("/run/lab.yaml", text);
    file("hosts:\n  - name: a\n  - {name: b, agent: [--no-such-flag]}\n");
    host.note_baseline();
    fails(&host, "up /run/lab.yaml", &["did not come up", "the agent of b has ended", "--no-such-flag"]);
    host.assert_as_before();
    file("hosts: 1\netcd: 0\nnetworks:\n  - {name: ov, subnet: 10.42.0.0/30}\n");
    fails(&host, "up /run/lab.yaml", &["did not come up", "cannot create network ov", "10.42.0.0/30"]);
    host.assert_as_before();
    file(
        "hosts: 1\netcd: 0\ncontainers:\n  - {name: c1, host: host1, network: [], command: no-such-program}\n",
    );
    fails(&host, "up /run/lab.yaml", &["did not come up", "cannot run container c1", "no-such-program"]);
    host.assert_as_before();
    file("hosts: 2\netcd: 2\n");
    fails(&host, "up /run/lab.yaml", &["/run/lab.yaml:2: etcd is \"2\": allowed is 1 or 3"]);
    fails(&host, "up /run/none.yaml", &["cannot read /run/none.yaml"]);
    fails(&host, "up --hosts 0", &["--hosts"]);
    fails(&host, "up --hosts 2 --mtu 1329", &["--mtu 1329", "allowed is 1330 to 65000"]);
    fails(&host, "up --hosts 2 --mtu 1329 --encap direct", &["--mtu 1329", "allowed is 1330 to 65000"]);
    fails(&host, "up --hosts 2 --etcd 0", &["--etcd 0"]);
    file("hosts: 2\nnetworks: [{name: a, subnet: 10.1.0.0/16}, {name: b, subnet: 10.1.2.0/24}]\n");
    fails(
        &host,
        "up /run/lab.yaml",
        &["/run/lab.yaml:2: networks[2].subnet: 10.1.2.0/24 overlaps 10.1.0.0/16"],
    );
    fails(&host, "up", &["--hosts"]);
    fails(&host, "ping", &["no lab is up", "runtime lab up"]);
    fails(&host, "up --hosts 1 --name a/b", &["invalid lab name"]);
    host.assert_as_before();

    // Interrupted, it takes down what it has begun.
    let line = format!(
        "CNI_PATH={} {} lab up -q --hosts 20 & while [ ! -e /run/weft/labs/lab/netns/host3 ]; do sleep 0.01; done
         kill -TERM $!; wait $!",
        tests::weft_cni().display(),
        tests::dist().join("bin/runtime").display()
    );
    let out = host.run(&line);
    assert!(out.code != 0 && out.stderr.contains("interrupted"), "{out}");
    host.assert_as_before();
    host.run("rm /run/lab.yaml").ok();
    host.note_baseline();
}
