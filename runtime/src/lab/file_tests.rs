use super::*;

const WHOLE: &str = "
name: two
underlay:
  ipv4: 10.77.0.0/24
  ipv6: none
  mtu: 9000
etcd: 3
hosts:
  - left
  - name: right
    agent: [--vxlan-port, 4790]
networks:
  - name: red
    driver: overlay
    subnet: [10.1.0.0/16, 'fd01::/48']
    internal: true
    opt:
      mtu: 1400
  - {name: blue, ipv6: true}
containers:
  - {name: r1, host: left, network: red, ip: 10.1.9.9, command: python3 -m http.server 80}
  - {name: b1, host: right, network: [blue, red], publish: '8080:80', command: [sleep, '9']}
expect:
  - ping: r1, b1 -> left
  - no_ping: {from: r1, to: [b1], family: ipv4}
  - http: {from: left, url: 'http://right:8080/x', body: hello}
  - no_tcp: {from: r1, to: b1, port: 80}
";

#[test]
fn a_file_says_all_there_is_to_say() {
    let plan = parse("f", WHOLE).unwrap();
    assert_eq!((plan.name.as_str(), plan.underlay.mtu, plan.underlay.ipv6), ("two", 9000, None));
    assert_eq!(plan.endpoints()[2], "http://10.77.0.4:2379");
    assert_eq!(plan.hosts[1].addresses[0].to_string(), "10.77.0.12/24");
    assert_eq!(plan.hosts[1].agent, ["--vxlan-port", "4790"]);
    assert_eq!(plan.networks[0].subnets, ["10.1.0.0/16", "fd01::/48"]);
    assert!(plan.networks[0].internal && !plan.networks[0].ipv6 && plan.networks[1].ipv6);
    assert_eq!(plan.networks[0].options["mtu"], "1400");
    assert_eq!(plan.containers[0].words(), ["python3", "-m", "http.server", "80"]);
    assert_eq!(plan.containers[0].ips, ["10.1.9.9".parse::<IpAddr>().unwrap()]);
    assert_eq!(plan.containers[1].networks, ["blue", "red"]);
    assert_eq!(plan.containers[1].publish, ["8080:80"]);
    let told: Vec<String> = plan.expect.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "ping r1, b1 -> left",
            "no ping r1 -> b1 (IPv4)",
            "http left -> http://right:8080/x",
            "no tcp r1 -> b1 port 80"
        ]
    );
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
}

#[test]
fn a_file_may_say_little() {
    let text = "hosts: 2\nnetworks:\n  - name: ov\ncontainers:\n  - {name: c1, host: host1}\n";
    let plan = parse("f", text).unwrap();
    assert_eq!((plan.name.as_str(), plan.etcd.len(), plan.hosts.len()), ("lab", 1, 2));
    assert_eq!(plan.containers[0].networks, ["ov"]);
    assert_eq!(plan.containers[0].words(), ["sleep", "infinity"]);
}

#[test]
fn the_examples_are_valid() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "yaml") {
            read(&path).unwrap_or_else(|error| panic!("{error:#}"));
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen} examples");
}

/// The file with one line changed is refused, and this is said.
#[track_caller]
fn refused(from: &str, to: &str, said: &[&str]) {
    assert!(WHOLE.contains(from), "{from}");
    let error = parse("lab.yaml", &WHOLE.replacen(from, to, 1)).unwrap_err().to_string();
    for part in said {
        assert!(error.contains(part), "{to}: {error}");
    }
}

#[test]
fn what_is_not_allowed_is_refused_by_file_line_key_and_value() {
    refused("etcd: 3", "etcd: 2", &["lab.yaml:7: etcd is \"2\": allowed is 1 or 3"]);
    refused("etcd: 3", "etcd: 0", &["lab.yaml:7: etcd is \"0\"", "single host"]);
    refused("mtu: 9000", "mtu: 900", &["lab.yaml:6: underlay.mtu is \"900\"", "1280 to 65000"]);
    refused(
        "ipv4: 10.77.0.0/24",
        "ipv4: 10.77.0.1/24",
        &["lab.yaml:4: underlay.ipv4", "10.99.0.0/24, or none"],
    );
    refused("ipv4: 10.77.0.0/24", "ipv4: none", &["lab.yaml:4: underlay: one of ipv4 and ipv6"]);
    refused("ipv4: 10.77.0.0/24", "ipv4: 10.77.0.0/29", &["lab.yaml:9: hosts: ", "no address for left"]);
    refused("name: two", "nmae: two", &["lab.yaml:2: unknown key \"nmae\": allowed are name, underlay"]);
    refused("name: two", "name: a/b", &["lab.yaml:2: name: invalid lab name \"a/b\""]);
    refused("- left\n", "- Left\n", &["lab.yaml:9: hosts[1] is \"Left\""]);
    refused("- left\n", "- etcd7\n", &["lab.yaml:9: hosts[1] is \"etcd7\""]);
    refused("- left\n", "- right\n", &["lab.yaml:10: hosts[2].name: the name \"right\" is another host's"]);
    refused("driver: overlay", "driver: bridge", &["lab.yaml:14: networks[1].driver is \"bridge\""]);
    refused("10.1.0.0/16", "10.1.0.0", &["networks[1].subnet[1] is \"10.1.0.0\""]);
    refused(
        "internal: true",
        "internal: maybe",
        &["networks[1].internal is \"maybe\": allowed is true or false"],
    );
    refused("host: left, ", "host: middle, ", &["containers[1].host is \"middle\": allowed is left, right"]);
    refused("network: red, ip", "network: green, ip", &["is \"green\": allowed is red, blue"]);
    refused("ip: 10.1.9.9", "ip: 10.1.9.999", &["containers[1].ip is \"10.1.9.999\": allowed is an address"]);
    refused("name: b1", "name: r1", &["containers[2]: the name \"r1\" is another"]);
    refused("name: b1", "name: left", &["containers[2]: the name \"left\" is another"]);
    refused("r1, b1 -> left", "r1, x -> left", &["expect[1].ping: there is no \"x\"", "r1, b1, left, right"]);
    refused("r1, b1 -> left", "r1 left", &["expect[1].ping is \"r1 left\": allowed is FROM -> TO"]);
    refused("family: ipv4", "family: 4", &["expect[2].no_ping.family is \"4\": allowed is ipv4 or ipv6"]);
    refused("http://right", "https://right", &["expect[3].http.url is", "http://HOST"]);
    refused("- ping:", "- pong:", &["expect[1]: unknown key \"pong\": allowed are ping, no_ping"]);
    refused(
        "port: 80}",
        "port: 0}",
        &["expect[4].no_tcp.port is \"0\": allowed is a number from 1 to 65535"],
    );
}

#[test]
fn what_the_commands_would_refuse_is_refused_by_file_line_and_key() {
    refused(
        "- {name: blue, ",
        "- {name: red, ",
        &["lab.yaml:19: networks[2].name: the name \"red\" is another network's"],
    );
    refused(
        "name: blue",
        "name: bridge",
        &["lab.yaml:19: networks[2].name: ", "\"bridge\"", "each host has a network"],
    );
    refused("name: blue", "name: a b", &["lab.yaml:19: networks[2].name: invalid network name \"a b\""]);
    refused(
        "{name: blue, ",
        "{name: blue, subnet: 10.1.128.0/17, ",
        &["lab.yaml:19: networks[2].subnet: 10.1.128.0/17 overlaps 10.1.0.0/16 of the network red"],
    );
    refused(
        "10.1.0.0/16, ",
        "10.77.0.128/25, ",
        &["lab.yaml:15: networks[1].subnet[1]: 10.77.0.128/25 overlaps the underlay, 10.77.0.0/24"],
    );
    refused(
        "'fd01::/48'",
        "10.2.0.0/16",
        &["lab.yaml:15: networks[1].subnet[2]: ", "one subnet of each family"],
    );
    refused("10.1.0.0/16", "10.1.0.0/31", &["lab.yaml:15: networks[1].subnet[1]: ", "too small"]);
    refused("mtu: 1400", "mut: 1400", &["lab.yaml:18: networks[1].opt.mut: --opt mut: unknown", "vni"]);
    refused(
        "mtu: 1400",
        "encap: direkt",
        &["lab.yaml:18: networks[1].opt.encap: ", "direkt", "vxlan or direct"],
    );
    refused("mtu: 1400", "mtu: 1279", &["lab.yaml:18: networks[1].opt.mtu: ", "1280 to 65485"]);
    refused(
        "mtu: 9000",
        "mtu: 1280",
        &["lab.yaml:6: underlay.mtu: 1280 is too small for the network blue", "1330 to 65000"],
    );
    let twice = WHOLE.replacen("mtu: 1400", "vni: 77", 1).replacen("ipv6: true}", "opt: {vni: 77}}", 1);
    let error = parse("lab.yaml", &twice).unwrap_err().to_string();
    assert_eq!(error, "lab.yaml:19: networks[2].opt.vni: the VNI is that of the network red already");
}

#[test]
fn what_a_container_cannot_have_is_refused_by_file_line_and_key() {
    refused(
        "ip: 10.1.9.9",
        "ip: 10.2.9.9",
        &["lab.yaml:21: containers[1].ip: 10.2.9.9 is not in 10.1.0.0/16"],
    );
    refused("ip: 10.1.9.9", "ip: 10.1.0.1", &["lab.yaml:21: containers[1].ip: 10.1.0.1 is the gateway"]);
    refused("red, ip", "[], ip", &["lab.yaml:21: containers[1].ip: 10.1.9.9: a container without a network"]);
    refused(
        "[blue, red], ",
        "red, ip: 10.1.9.9, ",
        &["lab.yaml:22: containers[2].ip: 10.1.9.9 is the address of r1"],
    );
    refused(
        "[blue, red]",
        "[red, red]",
        &["lab.yaml:22: containers[2].network[2]: the network red is given twice"],
    );
    refused(
        "8080:80",
        "8080:http",
        &["lab.yaml:22: containers[2].publish: invalid --publish \"8080:http\"", "the form is"],
    );
    refused(
        "'8080:80'",
        "[8080:80, 8080:81]",
        &["lab.yaml:22: containers[2].publish[2]: ", "host port 8080/tcp"],
    );
    refused("[blue, red], ", "red, ", &["lab.yaml:22: containers[2].publish: ", "not internal"]);
    let both = "containers:\n  - {name: b2, host: right, network: blue, publish: 8080}\n";
    parse("f", &WHOLE.replacen("containers:\n", both, 1)).unwrap();
    let both = both.replace("8080}", "8000-8080:8000-8080}");
    let error = parse("f", &WHOLE.replacen("containers:\n", &both, 1)).unwrap_err().to_string();
    assert_eq!(error, "f:23: containers[3].publish: port 8080 of right is published by b2");
}

#[test]
fn flags_of_an_agent_are_a_list_or_a_text_of_words() {
    let flags = |agent: &str| {
        let text = format!("hosts:\n  - {{name: a, agent: {agent}}}\n");
        parse("f", &text).unwrap().hosts[0].agent.clone()
    };
    assert_eq!(flags("'--log debug'"), ["--log", "debug"]);
    assert_eq!(flags("[--log, debug]"), ["--log", "debug"]);
}

#[test]
fn what_must_be_there_is_missed_by_name() {
    let error = parse("f", "name: x\n").unwrap_err().to_string();
    assert_eq!(error, "f:1: the key \"hosts\" is missing");
    let error = parse("f", "hosts: 1\ncontainers:\n  - host: host1\n").unwrap_err().to_string();
    assert_eq!(error, "f:3: containers[1]: the key \"name\" is missing");
    assert!(parse("f", "").is_err());
}
