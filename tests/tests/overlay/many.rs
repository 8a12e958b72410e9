//! Hundreds of attachments on many hosts at once, by the CNI executables alone.

use crate::cluster::{Cluster, SOON};
use crate::echo::Pinger;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

const HOSTS: usize = 8;
/// So many on each: more than a block of 64 addresses has.
const EACH: usize = 63;
/// So many executables run at the same time.
const PARALLEL: usize = 16;

/// An attachment: its host's number and its own.
type At = (usize, usize);

fn host(number: usize) -> String {
    format!("host{}", number + 1)
}

/// The namespace of a container, by name; it is below /run/netns.
fn netns((on, number): At) -> String {
    format!("m{on}-{number}")
}

/// Makes or deletes the namespaces of containers.
#[track_caller]
fn each_netns(lab: &Cluster, verb: &str, all: &[At]) {
    let lines: Vec<String> = all.iter().map(|at| format!("netns {verb} {}", netns(*at))).collect();
    lab.host.write("/run/batch", lines.join("\n"));
    lab.host.run("ip -batch /run/batch; code=$?; rm /run/batch; exit $code").ok();
}

/// One CNI command for each attachment: their answers, and how many of them there were a second.
#[track_caller]
fn execute(lab: &Cluster, verb: &str, conf: &Value, all: &[At], parallel: usize) -> (Vec<Value>, f64) {
    let cni = tests::weft_cni();
    let job = |at: &At| {
        let dir = format!("/run/weft/labs/lab/hosts/{}", host(at.0));
        json!({
            "host": format!("/run/weft/labs/lab/netns/{}", host(at.0)),
            "program": cni.join(conf["type"].as_str().unwrap_or_default()).display().to_string(),
            "env": {
                "CNI_COMMAND": verb, "CNI_CONTAINERID": netns(*at), "CNI_IFNAME": "eth0", "CNI_PATH": cni.display().to_string(),
                "CNI_NETNS": format!("/run/netns/{}", netns(*at)),
                "WEFT_ROOT": format!("{dir}/root"), "WEFT_RUN": format!("{dir}/run"),
            },
            "stdin": conf,
        })
    };
    let plan = json!({"parallel": parallel, "jobs": all.iter().map(job).collect::<Vec<_>>()});
    let mut command = lab.host.command(tests::traffic(), &["attach"]);
    let began = Instant::now();
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("{e}"));
    let stdin = child.stdin.take();
    std::thread::spawn(move || serde_json::to_writer(stdin.unwrap_or_else(|| panic!("piped")), &plan));
    let output = child.wait_with_output().unwrap_or_else(|e| panic!("{e}"));
    let rate = all.len() as f64 / began.elapsed().as_secs_f64();
    let answers: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert_eq!(answers.len(), all.len(), "{verb}: {}", String::from_utf8_lossy(&output.stdout));
    for (at, answer) in all.iter().zip(&answers) {
        assert_eq!(answer["code"], 0, "{verb} of {} on {}: {answer}", netns(*at), host(at.0));
    }
    (answers, rate)
}

/// The addresses that an ADD gave.
fn addresses(answer: &Value) -> Vec<IpAddr> {
    let result: Value =
        serde_json::from_str(answer["stdout"].as_str().unwrap_or_default()).unwrap_or_default();
    let ips = result["ips"].as_array().cloned().unwrap_or_default();
    let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
    ips.iter().filter_map(address).collect()
}

/// All attachments, a host's and the next one's by turns.
fn all(each: usize) -> Vec<At> {
    (0..each).flat_map(|number| (0..HOSTS).map(move |on| (on, number))).collect()
}

/// The names of all keys.
#[track_caller]
fn key_names(lab: &Cluster) -> Vec<String> {
    lab.keys().iter().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

/// How many of the lines about what is not reached are about these addresses.
fn count(silent: &[String], ips: &[IpAddr]) -> usize {
    let is_about = |line: &&String| ips.iter().any(|ip| line.starts_with(&format!("{ip} ")));
    silent.iter().filter(is_about).count()
}

/// What the kernel has of an attachment, inside and outside.
fn state(lab: &Cluster, at: At, ips: &[IpAddr]) -> String {
    let inside = format!("-n {}", netns(at));
    let words = ["-d link", "-6 addr", "-6 neigh", "-6 route show table all"];
    let within = words.map(|word| {
        lab.host
            .exec(
                "ip",
                &[&inside.split(' ').collect::<Vec<_>>()[..], &word.split(' ').collect::<Vec<_>>()[..]]
                    .concat(),
            )
            .stdout
    });
    let ips: Vec<_> = ips
        .iter()
        .map(|ip| format!("ip route get {ip}; ip -6 neigh | grep {ip}; ip -6 route | grep {ip}"))
        .collect();
    let outside = lab.sh(&host(at.0), &format!("{}; ip -s -6 route show cache; cat /proc/net/snmp6 | grep -E 'Discards|NoRoutes|InAddrErrors'", ips.join("; "))).stdout;
    format!("{} on {}: inside\n{}\noutside\n{outside}", netns(at), host(at.0), within.join("\n"))
}

#[test]
fn five_hundred_attachments_on_eight_hosts_at_once() {
    let lab = Cluster::bare(HOSTS);
    let names: Vec<String> = (0..HOSTS).map(host).collect();
    let hosts: Vec<&str> = names.iter().map(String::as_str).collect();
    let conf = json!({"cniVersion": "1.0.0", "name": "many", "type": "overlay"});
    let all = all(EACH);
    // Hosts that have had a container forward packets, and go on to.
    lab.network("--subnet 10.42.0.0/16 --subnet fd42::/48 other");
    let first: Vec<At> = (0..HOSTS).map(|on| (on, 0)).collect();
    each_netns(&lab, "add", &first);
    for verb in ["ADD", "DEL"] {
        execute(
            &lab,
            verb,
            &json!({"cniVersion": "1.0.0", "name": "other", "type": "overlay"}),
            &first,
            PARALLEL,
        );
    }
    each_netns(&lab, "delete", &first);
    lab.soon("the last device is gone", || !lab.kernel_of(&hosts).iter().any(|line| line.contains("vx-")));
    let mut keys = key_names(&lab);
    lab.network("--subnet 10.43.0.0/16 --subnet fd43::/48 many");
    // Every node's packet filter has the subnets of all networks, whether it has a part in them or not.
    let filters =
        |host: &&str| lab.sh(host, "nft list set inet weft-overlay nets6").stdout.contains("fd43::/48");
    lab.soon("every node knows of the network", || hosts.iter().all(filters));
    let clean = lab.kernel_of(&hosts);
    each_netns(&lab, "add", &all);

    let (answers, _) = execute(&lab, "ADD", &conf, &all, PARALLEL);
    let given: Vec<(At, Vec<IpAddr>)> = all.iter().copied().zip(answers.iter().map(addresses)).collect();
    let distinct: BTreeSet<IpAddr> = given.iter().flat_map(|(_, ips)| ips.clone()).collect();
    assert_eq!(distinct.len(), 2 * all.len(), "an address was given twice");

    // Each from a container of each other host, and from one beside it; all at once, by threads.
    let by: BTreeMap<At, &Vec<IpAddr>> = given.iter().map(|(at, ips)| (*at, ips)).collect();
    let look = &|(on, number): At| {
        let others =
            (0..HOSTS).map(|other| (other, (number + other) % EACH)).filter(|at| *at != (on, number));
        let ips: Vec<IpAddr> = others.flat_map(|at| by[&at].iter().copied()).collect();
        let netns = lab.host.path(format!("/run/netns/{}", netns((on, number))));
        let silent = Pinger::new(&netns).silent(&ips, SOON);
        silent.into_iter().map(move |ip| format!("{ip} from {}", host(on))).collect::<Vec<_>>()
    };
    let silent: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = all
            .chunks(all.len().div_ceil(4))
            .map(|some| scope.spawn(move || some.iter().flat_map(|at| look(*at)).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|_| panic!("a thread"))).collect()
    });
    if let Some((at, ips)) =
        given.iter().max_by_key(|(_, ips)| count(&silent, ips)).filter(|_| !silent.is_empty())
    {
        let some = &silent[..silent.len().min(20)];
        panic!("{} are not reached: {some:?}\n{}", silent.len(), state(&lab, *at, ips));
    }
    let inspect = || {
        let about = lab.runtime("host5", "network inspect many").ok().json()[0].clone();
        about["Weft"]["Endpoints"].as_array().map(Vec::len)
    };
    lab.soon("every endpoint is told to the store", || inspect() == Some(all.len()));

    execute(&lab, "DEL", &conf, &all, PARALLEL);
    lab.soon("no endpoint is left in the store", || inspect() == Some(0));
    assert!(!key_names(&lab).iter().any(|key| key.starts_with("/weft/e/")), "{:?}", key_names(&lab));
    let files = lab.host.run(
        "cd /run/weft/labs/lab/hosts; find */root/ovl-agent/endpoints */root/ovl-agent/leases */root/ovl-agent/released -type f \
         -name '*m[0-9]-*' -o -path '*/endpoints/*' -type f 2>/dev/null",
    );
    assert_eq!(files.text(), "", "no lease and no endpoint is left");
    assert_same("after the last DEL", &clean, || lab.kernel_of(&hosts));
    // The blocks go back with the network, and with them the last of its keys.
    lab.runtime("host8", "network rm many").ok();
    keys.retain(|key| key != "/weft/c/subnets");
    assert_same("after the network", &keys, || {
        let mut now = key_names(&lab);
        now.retain(|key| key != "/weft/c/subnets");
        now
    });
    each_netns(&lab, "delete", &all);
    lab.down();
}

/// It comes to be as it was.
#[track_caller]
fn assert_same(what: &str, before: &[String], now: impl Fn() -> Vec<String>) {
    let start = Instant::now();
    loop {
        let now = now();
        if now == before {
            return;
        }
        let left: Vec<&String> = now.iter().filter(|line| !before.contains(line)).collect();
        let lost: Vec<&String> = before.iter().filter(|line| !now.contains(line)).collect();
        assert!(start.elapsed() < SOON, "{what}: left {left:#?}\nlost {lost:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Prints what an ADD costs, on the overlay and on a bridge: `cargo test --test overlay -- --ignored --nocapture costs`.
#[test]
#[ignore = "measures, and says so"]
fn what_an_attachment_costs() {
    let lab = Cluster::bare(HOSTS);
    lab.network("--subnet 10.43.0.0/16 many");
    let overlay = json!({"cniVersion": "1.0.0", "name": "many", "type": "overlay"});
    let bridge = json!({"cniVersion": "1.0.0", "name": "near", "type": "bridge", "bridge": "br-near", "isGateway": true,
        "ipMasq": true, "ipam": {"type": "host-local", "subnet": "10.70.0.0/16"}});
    let one_host: Vec<At> = (0..120).map(|number| (0, number)).collect();
    let (eight, one_at_a_time) = (all(EACH), 1);
    // A first attachment of each kind beforehand: the network's device, the bridge, a block.
    for (of, some, parallel) in [
        ("one host, one at a time", &one_host, one_at_a_time),
        ("eight hosts, 16 at a time", &eight, PARALLEL),
    ] {
        for round in 0..2 {
            for (kind, conf) in [("overlay", &overlay), ("bridge", &bridge)] {
                each_netns(&lab, "add", some);
                let first: Vec<At> = (0..HOSTS).map(|on| (on, 1000)).collect();
                each_netns(&lab, "add", &first);
                execute(&lab, "ADD", conf, &first, 1);
                for (verb, (answers, rate)) in
                    ["ADD", "DEL"].map(|verb| (verb, execute(&lab, verb, conf, some, parallel)))
                {
                    let mut ms: Vec<f64> =
                        answers.iter().filter_map(|answer| answer["ms"].as_f64()).collect();
                    ms.sort_by(f64::total_cmp);
                    let at = |share: f64| ms[((ms.len() - 1) as f64 * share) as usize];
                    let (p50, p99) = (at(0.5), at(0.99));
                    println!(
                        "{of}, round {round}: {kind} {verb}: p50 {p50:.2} ms, p99 {p99:.2} ms, {rate:.0}/s"
                    );
                }
                execute(&lab, "DEL", conf, &first, 1);
                each_netns(&lab, "delete", some);
                each_netns(&lab, "delete", &first);
            }
        }
    }
    lab.host.run("for host in 1 2 3 4 5 6 7 8; do nsenter --net=/run/weft/labs/lab/netns/host$host ip link del br-near; done");
    lab.down();
}
