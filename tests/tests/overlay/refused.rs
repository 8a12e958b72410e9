//! What cannot be is refused by an error that names the field, its value and what is allowed, and changes nothing: neither
//! in etcd, nor in the kernel, nor in the files of any host.

use crate::cluster::Cluster;
use tests::Output;

const HOSTS: [&str; 3] = ["host1", "host2", "host3"];

/// What is missing: the exit code, one line by the program, all of this in it.
fn lacks(out: &Output, code: i32, program: &str, named: &[&str]) -> Option<String> {
    let mut lacks: Vec<String> =
        named.iter().filter(|part| !out.stderr.contains(**part)).map(|part| format!("{part:?}")).collect();
    if out.code != code {
        lacks.push(format!("exit code {code}"));
    }
    // What is no address at all is answered with where to read on.
    let lines =
        out.stderr.lines().filter(|line| !line.is_empty() && !line.starts_with("For more information"));
    if lines.filter(|line| !line.starts_with("Usage: ")).count() != 1
        || !out.stderr.starts_with(&format!("{program}: "))
    {
        lacks.push(format!("one line that begins with {program}:"));
    }
    (!lacks.is_empty()).then(|| format!("lacks {}: {out}", lacks.join(", ")))
}

#[track_caller]
fn assert_none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn networks_that_cannot_be_are_refused_by_field_and_change_nothing() {
    let lab = Cluster::bare(3);
    lab.network("--subnet 10.42.0.0/16 --subnet fd42::/48 --opt vni=4242 ov");
    // host2 has a part in it, a bridge of its own, and a way to somewhere.
    lab.run("host2", "c2", "--network ov");
    lab.runtime("host2", "network create --subnet 192.168.10.0/24 web").ok();
    lab.sh("host2", "ip route add 172.30.0.0/16 via 10.99.0.1").ok();
    lab.soon("its endpoint is told to the store", || {
        lab.keys().iter().any(|key| key.starts_with("/weft/e/") && key.contains("/host2/"))
    });
    let before = lab.state(&HOSTS);
    let long = "n".repeat(129);
    let cases: &[(&str, &[&str])] = &[
        // Subnets that overlap: an overlay network's, a bridge network's, a route's, an address's.
        ("--subnet 10.42.7.0/24 next", &["--subnet", "10.42.7.0/24", "network ov", "10.42.0.0/16"]),
        ("--subnet 10.0.0.0/8 next", &["--subnet", "10.0.0.0/8"]),
        (
            "--subnet 10.60.0.0/16 --subnet fd42:0:0:7::/64 next",
            &["--subnet", "fd42:0:0:7::/64", "network ov"],
        ),
        ("--subnet 192.168.0.0/16 next", &["--subnet", "192.168.0.0/16", "network web", "192.168.10.0/24"]),
        ("--subnet 172.30.5.0/24 next", &["--subnet", "172.30.5.0/24", "route 172.30.0.0/16 on eth0"]),
        ("--subnet 10.99.0.0/25 next", &["--subnet", "10.99.0.0/25", "address 10.99.0.12/24 of eth0"]),
        // Subnets that are none, or none for this.
        ("--subnet 10.60.0.0/33 next", &["--subnet", "10.60.0.0/33"]),
        ("--subnet 10.60.0.0 next", &["--subnet", "10.60.0.0"]),
        ("--subnet 224.1.0.0/16 next", &["--subnet", "224.1.0.0/16", "multicast"]),
        ("--subnet 10.60.0.0/16 --subnet 10.61.0.0/16 next", &["--subnet", "10.61.0.0/16"]),
        ("--subnet 10.60.0.0/30 next", &["--subnet", "10.60.0.0/30", "/29"]),
        // Too small for its blocks.
        ("--subnet 10.60.0.0/24 --opt block-size=24 next", &["block-size=24", "10.60.0.0/24"]),
        ("--subnet 10.60.0.0/24 --opt block-size=20 next", &["block-size=20", "10.60.0.0/24"]),
        ("--subnet 10.60.0.0/24 --opt block-size=31 next", &["block-size=31", "20 to 30"]),
        ("--opt block-size=x next", &["block-size=x"]),
        // VNIs.
        ("--opt vni=4242 next", &["vni", "4242", "network ov"]),
        ("--opt vni=0 next", &["vni=0", "1 to 16777215"]),
        ("--opt vni=16777216 next", &["vni=16777216", "1 to 16777215"]),
        ("--opt vni=four next", &["vni=four", "1 to 16777215"]),
        // MTU, encapsulation, gateways, options that there are not.
        ("--opt mtu=100 next", &["mtu=100", "576 to 65485"]),
        ("--opt mtu=65486 next", &["mtu=65486", "576 to 65485"]),
        ("--opt mtu=1279 --ipv6 next", &["mtu=1279", "1280"]),
        ("--opt mtu=1e3 next", &["mtu=1e3"]),
        ("--opt encap=gre next", &["encap=gre", "vxlan", "direct"]),
        ("--opt encap= next", &["encap=", "vxlan", "direct"]),
        ("--opt colour=red next", &["colour", "vni", "mtu", "block-size", "encap"]),
        ("--opt com.docker.network.bridge.name=br7 next", &["com.docker.network.bridge.name"]),
        ("--subnet 10.60.0.0/16 --gateway 10.61.0.1 next", &["--gateway", "10.61.0.1", "10.60.0.0/16"]),
        ("--subnet 10.60.0.0/16 --gateway 10.60.0.0 next", &["--gateway", "10.60.0.0"]),
        ("--subnet 10.60.0.0/16 --gateway x next", &["--gateway", "x"]),
        ("--subnet 10.60.0.0/16 --ip-range 10.60.1.0/24 next", &["--ip-range"]),
        ("--label =x next", &["--label"]),
        // Names.
        ("ov", &["ov"]),
        ("web", &["web"]),
        ("host", &["host"]),
        ("bridge", &["bridge"]),
        ("a/b", &["a/b"]),
        ("..", &[".."]),
        (".a", &[".a"]),
        ("'a b'", &["a b"]),
        ("''", &["name"]),
        (&long, &[&long, "128"]),
    ];
    let mut wrong = Vec::new();
    for (flags, named) in cases {
        let out = lab.runtime("host2", &format!("network create --driver overlay {flags}"));
        wrong.extend(lacks(&out, 1, "runtime", named));
    }
    // A bridge in the place of an overlay; containers that ask for what there is not.
    let bridge = lab.runtime("host2", "network create --subnet 10.42.9.0/24 br9");
    wrong.extend(lacks(&bridge, 1, "runtime", &["--subnet", "10.42.9.0/24", "network ov"]));
    for (flags, named) in [
        ("--network next", &["next"] as &[&str]),
        ("--network ov --ip 10.43.0.7", &["10.43.0.7", "10.42.0.0/16"]),
        ("--network ov --ip 10.42.0.1", &["10.42.0.1", "gateway"]),
        ("--network ov --ip 10.42.255.255", &["10.42.255.255"]),
        ("--network ov --ip6 fd43::7", &["fd43::7", "fd42::/48"]),
        ("--network ov --ip 10.42.0.x", &["--ip", "10.42.0.x"]),
        ("--network ov --mac-address 01:00:00:00:00:07", &["01:00:00:00:00:07"]),
    ] {
        let out = lab.runtime("host2", &format!("run --rm {flags} true"));
        wrong.extend(lacks(&out, 125, "runtime", named));
    }
    assert_none(wrong);
    lab.assert_still(&HOSTS, &before, "what was refused");

    // A subnet that is free where it is chosen, and not on another host: there, by name, and nothing changes there.
    lab.network("--subnet 172.30.0.0/17 far");
    let one = lab.run("host1", "one", "--network far");
    let networks = lab.runtime("host2", "network ls --format '{{.Name}}'").ok().stdout;
    assert!(networks.contains("far"), "{networks}");
    let before = lab.state(&["host2"]);
    let out = lab.runtime("host2", "run --rm --network far true");
    assert_none(
        lacks(&out, 125, "runtime", &["network far", "172.30.0.0/17", "172.30.0.0/16"]).into_iter().collect(),
    );
    lab.assert_still(&["host2"], &before, "an attachment that was refused");
    let three = lab.run("host3", "three", "--network far");
    let silent = crate::echo::Pinger::new(&lab.netns_of(&one)).silent(&three.ips(), crate::cluster::SOON);
    assert!(silent.is_empty(), "other hosts do not mind");
    lab.down();
}

#[test]
fn settings_of_the_agent_that_cannot_be_are_refused_and_no_password_is_told() {
    let lab = Cluster::bare(2);
    // The first command on a host makes the places that it is mounted at.
    lab.exec("host2", "true").ok();
    let before = lab.state(&HOSTS[..2]);
    let secret = "s3cr3t-of-etcd";
    let with_secret = format!("--etcd http://root:{secret}@10.99.0.2:2379");
    let cases: &[(&str, &[&str])] = &[
        ("--etcd foo://10.99.0.2:2379", &["etcd", "foo://10.99.0.2:2379", "http://", "https://"]),
        ("--etcd 10.99.0.2:2379", &["etcd", "10.99.0.2:2379", "http://"]),
        ("--etcd http://", &["etcd", "http://"]),
        ("--etcd http://10.99.0.2:99999", &["etcd", "99999"]),
        ("--etcd http://10.99.0.2:2379,,http://x", &["etcd"]),
        (&with_secret, &["etcd", "10.99.0.2:2379", "etcd-user"]),
        ("--etcd http://10.99.0.2:2379 --etcd-user root", &["etcd-user"]),
        ("--etcd http://10.99.0.2:2379 --etcd-ca /none.pem", &["etcd-ca"]),
        ("--etcd https://10.99.0.2:2379 --etcd-ca /none.pem", &["etcd-ca", "/none.pem"]),
        (
            "--etcd http://10.99.0.2:2379 --etcd-user root --etcd-password-file /none",
            &["etcd-password-file", "/none"],
        ),
        ("--etcd-prefix x", &["etcd-prefix"]),
        ("--port 0", &["port", "0"]),
        ("--port 65536", &["port", "65536"]),
        ("--advertise here", &["advertise", "here"]),
        ("--advertise 127.0.0.1", &["advertise", "127.0.0.1"]),
        ("--node-name a/b", &["node-name", "a/b"]),
        ("--log loud", &["log", "loud", "debug"]),
        ("--metrics-listen 80", &["metrics-listen", "80"]),
        ("--no-such-flag", &["--no-such-flag"]),
    ];
    let mut wrong = Vec::new();
    for (flags, named) in cases {
        // Directories of its own, so that the agent that runs is not in the way.
        let line = format!("host2 -- ovl-agent run --root /run/other --run /run/other {flags}");
        let out = lab.host.weft().run(&format!("lab exec {line}"));
        wrong.extend(lacks(&out, 2, "ovl-agent", named));
        assert!(!out.stderr.contains(secret) && !out.stdout.contains(secret), "{flags}: {out}");
    }
    assert_none(wrong);
    // By variable and by file alike, and by name.
    let by_variable = "host2 -- env WEFT_ETCD=foo://x ovl-agent run --root /run/other --run /run/other";
    let out = lab.host.weft().run(&format!("lab exec {by_variable}")).code(2);
    assert!(out.stderr.contains("WEFT_ETCD") && out.stderr.contains("foo://x"), "{out}");
    lab.host.write("/run/agent.toml", format!("etcd = \"http://root:{secret}@x\"\n"));
    let by_file = "host2 -- ovl-agent run --config /run/agent.toml --root /run/other --run /run/other";
    let out = lab.host.weft().run(&format!("lab exec {by_file}")).code(2);
    assert!(out.stderr.contains("/run/agent.toml") && !out.stderr.contains(secret), "{out}");
    lab.host.write("/run/agent.toml", "colour = \"red\"\n");
    let out = lab.host.weft().run(&format!("lab exec {by_file}")).code(2);
    assert!(out.stderr.contains("colour") && out.stderr.contains("/run/agent.toml"), "{out}");
    lab.host.run("rm /run/agent.toml; ! test -e /run/other").ok();
    lab.assert_still(&HOSTS[..2], &before, "what was refused");
    lab.down();
}
