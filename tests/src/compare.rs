//! The reference plugins and Weft with the same configuration on two machines that are alike.
//!
//! The only things taken out before results are compared are those that are random in the reference: the name and MAC
//! of the host's veth, the bridge's MAC, and the container's MAC where the configuration does not give it; and an empty
//! `dns`; and the reference's settings about router advertisements are compared as Weft gives them. Whatever else differs on
//! purpose is a test of its own in `tests/reference/differences.rs`.

use crate::cni::{Chain, Failure};
use crate::host::Host;
use serde_json::{Value, json};
use std::path::Path;

/// One configuration and what is done with it.
#[derive(Debug, Clone)]
pub struct Case {
    plugins: Vec<Value>,
    version: Option<String>,
    args: String,
    runtime: Value,
    containers: usize,
    keep_mac: bool,
    prepare: String,
    reference_check_fails: bool,
    but: Option<&'static str>,
    probe: Vec<Probe>,
}

/// A line of shell that both sides run once the containers are there.
#[derive(Debug, Clone)]
struct Probe {
    netns: Option<&'static str>,
    line: String,
    succeeds: bool,
}

/// What one side did: everything here must be equal on both sides.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    what: String,
    value: Value,
}

impl Case {
    /// A chain of plugins, version 1.0.0, one container `c1` in the namespace `pod1`.
    pub fn chain(plugins: &[Value]) -> Case {
        Case {
            plugins: plugins.to_vec(),
            version: Some("1.0.0".into()),
            args: String::new(),
            runtime: json!({}),
            containers: 1,
            keep_mac: false,
            prepare: String::new(),
            reference_check_fails: false,
            but: None,
            probe: Vec::new(),
        }
    }

    /// A single plugin.
    pub fn of(plugin: Value) -> Case {
        Case::chain(&[plugin])
    }

    /// An IPAM plugin alone, driven as a bridge would.
    pub fn ipam(kind: &str, ipam: Value) -> Case {
        Case::of(json!({"type": "bridge", "exec": kind, "ipam": ipam}))
    }

    /// Another `cniVersion`.
    pub fn version(mut self, version: &str) -> Case {
        self.version = Some(version.into());
        self
    }

    /// No `cniVersion` at all.
    pub fn no_version(mut self) -> Case {
        self.version = None;
        self
    }

    /// `CNI_ARGS`.
    pub fn args(mut self, args: &str) -> Case {
        self.args = args.into();
        self
    }

    /// What the runtime can do (becomes `runtimeConfig` where declared).
    pub fn runtime(mut self, runtime: Value) -> Case {
        self.runtime = runtime;
        self
    }

    /// So many containers, `c1` in `pod1`, `c2` in `pod2` …; each one's result is compared.
    pub fn containers(mut self, containers: usize) -> Case {
        self.containers = containers;
        self
    }

    /// The configuration gives the container's MAC: it must be equal too.
    pub fn keep_mac(mut self) -> Case {
        self.keep_mac = true;
        self
    }

    /// A line of shell on the machine before anything else.
    pub fn prepare(mut self, line: &str) -> Case {
        self.prepare = line.into();
        self
    }

    /// The reference's CHECK fails on the reference's own result; that of Weft must succeed. Say why where it is used.
    pub fn reference_check_fails(mut self) -> Case {
        self.reference_check_fails = true;
        self
    }

    /// The container's sysctls whose name contains this differ on purpose. Say why where it is used.
    pub fn but(mut self, sysctl: &'static str) -> Case {
        self.but = Some(sysctl);
        self
    }

    /// A line of shell whose exit code and output must be the same: on the machine (`None`) or in a namespace of it.
    /// `TRAFFIC` stands for the traffic helper. It must succeed.
    pub fn probe(mut self, netns: Option<&'static str>, line: &str) -> Case {
        self.probe.push(Probe { netns, line: line.into(), succeeds: true });
        self
    }

    /// Like [`Case::probe`], but it must fail.
    pub fn probe_fails(mut self, netns: Option<&'static str>, line: &str) -> Case {
        self.probe.push(Probe { netns, line: line.into(), succeeds: false });
        self
    }

    /// Runs both sides and compares what they did.
    ///
    /// # Panics
    /// Where they differ.
    #[track_caller]
    pub fn same(&self) {
        let (reference, weft) = (self.see(Path::new(crate::REFERENCE)), self.see(&crate::weft_cni()));
        let mut differences = String::new();
        for (theirs, ours) in reference.iter().zip(&weft) {
            assert_eq!(theirs.what, ours.what, "both sides take the same steps");
            if theirs != ours {
                differences +=
                    &format!("\n{}:\n  reference {}\n  weft      {}", ours.what, theirs.value, ours.value);
            }
        }
        assert!(differences.is_empty(), "the results differ{differences}");
        let adds = reference.iter().filter(|seen| seen.what.starts_with("ADD"));
        assert!(
            adds.clone().all(|seen| seen.value.get("failed").is_none()),
            "the reference fails too: {reference:#?}"
        );
    }

    /// Both sides must refuse this configuration with one error document, and leave no interface.
    ///
    /// # Panics
    /// When one of them does not.
    #[track_caller]
    pub fn both_refuse(&self) {
        for dir in [Path::new(crate::REFERENCE), &crate::weft_cni()] {
            let host = self.host();
            let Err(failure) = self.chain_on(&host, dir, 1).add() else {
                panic!("{} accepts {:?}", dir.display(), self.plugins);
            };
            let document = failure.output.json();
            assert!(document["code"].as_u64().is_some_and(|code| code > 0), "no code: {document}");
            assert!(document["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "no msg: {document}");
            let chain = self.chain_on(&host, dir, 1);
            if dir != Path::new(crate::REFERENCE) {
                let version = document["cniVersion"].as_str().unwrap_or_default();
                let known = self.version.as_deref().unwrap_or("0.1.0");
                assert!(version == known || document["code"] == 1, "the document's version is {version:?}");
                if failure.at > 0 {
                    chain.del(None); // what the plugins before it made
                }
                let link = host.run("ip -n pod1 link show eth0 2>/dev/null");
                assert!(link.code != 0, "a refused ADD left {link}");
            }
            chain.del(None);
            host.tolerate("");
        }
    }

    fn host(&self) -> Host {
        let host = Host::new();
        for n in 1..=self.containers {
            host.netns_add(&format!("pod{n}"));
        }
        if !self.prepare.is_empty() {
            host.run(&self.prepare).ok();
        }
        host.note_baseline();
        host
    }

    fn chain_on<'h>(&self, host: &'h Host, dir: &Path, n: usize) -> Chain<'h> {
        let mut chain = host.cni(dir, &format!("/var/run/netns/pod{n}"), self.plugins.clone());
        chain.container = format!("c{n}");
        (chain.version, chain.args, chain.runtime) =
            (self.version.clone(), self.args.clone(), self.runtime.clone());
        chain
    }

    /// Everything that one side does with the configuration.
    #[track_caller]
    fn see(&self, dir: &Path) -> Vec<Seen> {
        let host = self.host();
        let mut seen = Vec::new();
        let mut note = |what: String, value: Value| seen.push(Seen { what, value });
        let chains: Vec<_> = (1..=self.containers).map(|n| self.chain_on(&host, dir, n)).collect();
        let mut results = Vec::new();
        for chain in &chains {
            let result = chain.add();
            let shown = match &result {
                Ok(result) => self.normalised(result),
                Err(failure) => failed(failure),
            };
            note(format!("ADD of {}", chain.container), shown);
            results.push(result.ok());
        }
        until_addresses_are_settled(&host, self.containers);
        for n in 1..=self.containers {
            for (what, mut value) in container_look(&host, &format!("pod{n}"), self.keep_mac) {
                if what == "sysctls" && dir == Path::new(crate::REFERENCE) {
                    self.ignore_routers(&mut value, results[n - 1].as_ref());
                }
                if let (Some(but), Some(list)) = (self.but, value.as_array_mut()) {
                    list.retain(|line| !line.as_str().is_some_and(|line| line.contains(but)));
                }
                note(format!("{what} in pod{n}"), value);
            }
        }
        for (what, value) in host_look(&host) {
            note(format!("{what} on the machine"), value);
        }
        for Probe { netns, line, succeeds } in &self.probe {
            let shell = line.replace("TRAFFIC", &crate::traffic().display().to_string());
            let out = netns.map_or_else(|| host.run(&shell), |netns| host.run_in(netns, &shell));
            assert!((out.code == 0) == *succeeds, "with {} {out}", dir.display());
            let shown = if *succeeds { json!(out.text()) } else { json!("failed") };
            note(format!("`{line}` in {}", netns.unwrap_or("the machine")), shown);
        }
        let checked = self.version.as_deref().is_some_and(|version| version >= "0.4.0");
        for (chain, result) in chains.iter().zip(&results) {
            let Some(result) = result.as_ref().filter(|_| checked) else { continue };
            let failure = chain.check(result).err();
            let expected = self.reference_check_fails && dir == Path::new(crate::REFERENCE);
            assert!(!expected || failure.is_some(), "the reference's CHECK does not fail");
            let shown = failure.filter(|_| !expected).map(|failure| failed(&failure));
            note(format!("CHECK of {}", chain.container), json!(shown));
        }
        for (chain, result) in chains.iter().zip(&results) {
            let failures: Vec<_> = chain.del(result.as_ref()).iter().map(failed).collect();
            note(format!("DEL of {}", chain.container), json!(failures));
            let link = host.run(&format!("ip -n pod{} link show eth0 2>/dev/null", &chain.container[1..]));
            note(format!("after DEL of {}", chain.container), json!(link.code != 0));
            let again: Vec<_> = chain.del(result.as_ref()).iter().map(failed).collect();
            note(format!("second DEL of {}", chain.container), json!(again));
        }
        if dir == Path::new(crate::REFERENCE) {
            host.tolerate(""); // what the reference leaves (chains, sysctls, last_reserved_ip) is not our affair
        } else {
            self.tolerate_what_stays(&host);
        }
        seen
    }

    /// A bridge outlives its last container, as the reference's does, until a GC; so do the empty lease store, and
    /// `ip_forward`. Nothing else may stay.
    fn tolerate_what_stays(&self, host: &Host) {
        for plugin in &self.plugins {
            let name = plugin["bridge"].as_str().unwrap_or("cni0").to_owned();
            if plugin.get("conditionsV4").is_some() {
                // These take iptables, whose program makes the kernel's own chains on first use and never removes them.
                let chains =
                    ["chain PREROUTING {", "chain OUTPUT {", "chain POSTROUTING {", "policy accept;"];
                chains.iter().chain(&["nft  table ip"]).for_each(|what| host.tolerate(what));
            }
            for line in [format!("link {name} "), format!("address {name} "), format!("dev {name}")] {
                host.tolerate(&line);
            }
        }
        for store in ["/var/lib/weft/", "/var/lib/cni/networks", "/var/lib/cni/elsewhere"] {
            host.tolerate(&format!("file {store}"));
        }
    }

    /// Changes the reference's sysctls of a container's eth0 to those that Weft gives on purpose where it gives the addresses:
    /// router advertisements are ignored, and without IPv6 addresses and routes IPv6 is off (docs/differences.md).
    fn ignore_routers(&self, sysctls: &mut Value, result: Option<&Value>) {
        let (Some(result), Some(plugin)) = (result, self.plugins.first()) else { return };
        if plugin["type"] != "bridge" || plugin["ipam"]["type"].is_null() {
            return;
        }
        let is_ipv6 = |list: &str, key: &str| {
            let list = result[list].as_array().into_iter().flatten();
            list.filter_map(|each| each[key].as_str()).any(|text| text.contains(':'))
        };
        // Below 0.3.0 a result has `ip6` instead of `ips`.
        let has_ipv6 = !result["ip6"].is_null() || is_ipv6("ips", "address") || is_ipv6("routes", "dst");
        let (theirs, ours) = match has_ipv6 {
            true => ("ipv6/conf/eth0/accept_ra 1", "ipv6/conf/eth0/accept_ra 0"),
            false => ("ipv6/conf/eth0/disable_ipv6 0", "ipv6/conf/eth0/disable_ipv6 1"),
        };
        for line in sysctls.as_array_mut().into_iter().flatten().filter(|line| **line == theirs) {
            *line = ours.into();
        }
    }

    /// A result without what is random in it.
    fn normalised(&self, result: &Value) -> Value {
        let mut result = result.clone();
        // Upstream's newer reference leaves an empty `dns` out of results from 1.0.0 on, and so does Weft; Debian 12's does not.
        if self.version.as_deref() == Some("1.0.0") && result["dns"] == json!({}) {
            result.as_object_mut().map(|result| result.remove("dns"));
        }
        let interfaces = result.get_mut("interfaces").and_then(Value::as_array_mut);
        for interface in interfaces.into_iter().flatten() {
            let inside =
                interface.get("sandbox").and_then(Value::as_str).is_some_and(|path| !path.is_empty());
            if !(inside && self.keep_mac)
                && interface.get("mac").is_some_and(|mac| mac != "00:00:00:00:00:00")
            {
                interface["mac"] = json!("random");
            }
            if interface["name"].as_str().is_some_and(|name| name.starts_with("veth")) {
                interface["name"] = json!("veth random");
            }
        }
        result
    }
}

fn failed(failure: &Failure) -> Value {
    json!({"failed": failure.at, "output": failure.output.stdout.trim()})
}

/// The kernel adds the local route of an IPv6 address when duplicate address detection is over.
fn until_addresses_are_settled(host: &Host, containers: usize) {
    let all = "ip -6 -o addr show tentative; for n in $(seq CONTAINERS); do ip -n pod$n -6 -o addr show tentative; done";
    let line = all.replace("CONTAINERS", &containers.to_string());
    for _ in 0..60 {
        if host.run(&line).text().is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[track_caller]
fn ip(host: &Host, netns: Option<&str>, args: &str) -> Vec<Value> {
    let netns = netns.map(|netns| format!("-n {netns} ")).unwrap_or_default();
    let out = host.run(&format!("ip -j -d {netns}{args}"));
    if out.code != 0 || out.text().is_empty() {
        return Vec::new();
    }
    out.json().as_array().cloned().unwrap_or_default()
}

fn pick(of: &Value, keys: &[&str]) -> Value {
    let picked = keys.iter().filter_map(|key| Some(((*key).to_owned(), of.get(*key)?.clone())));
    Value::Object(picked.collect())
}

/// Link-local addresses and what the kernel routes for them depend on random MACs.
fn is_link_local(of: &Value) -> bool {
    ["local", "dst"].iter().any(|key| of[*key].as_str().is_some_and(|text| text.starts_with("fe80:")))
}

fn addresses(links: &[Value], but: &str) -> Value {
    let mut all = Vec::new();
    for link in links.iter().filter(|link| !link["ifname"].as_str().unwrap_or("").starts_with(but)) {
        for address in link["addr_info"].as_array().into_iter().flatten().filter(|a| !is_link_local(a)) {
            let mut about = pick(address, &["local", "prefixlen", "scope", "broadcast"]);
            about["link"] = link["ifname"].clone();
            all.push(about);
        }
    }
    all.sort_by_key(Value::to_string);
    Value::Array(all)
}

fn routes(host: &Host, netns: Option<&str>) -> Value {
    let mut all = Vec::new();
    for family in ["-4", "-6"] {
        for route in ip(host, netns, &format!("{family} route show table all")) {
            let of_veth = route["dev"].as_str().is_some_and(|dev| dev.starts_with("veth"));
            if !is_link_local(&route) && !of_veth && route["dst"] != "ff00::/8" {
                let keys =
                    ["type", "dst", "gateway", "dev", "table", "metric", "prefsrc", "scope", "metrics"];
                all.push(pick(&route, &keys));
            }
        }
    }
    all.sort_by_key(Value::to_string);
    Value::Array(all)
}

fn container_look(host: &Host, netns: &str, keep_mac: bool) -> Vec<(&'static str, Value)> {
    let links = ip(host, Some(netns), "addr");
    let keys: &[&str] = if keep_mac { &["ifname", "mtu", "address"] } else { &["ifname", "mtu"] };
    let about = |link: &Value| {
        let mut about = pick(link, keys);
        let flags = link["flags"].as_array().cloned().unwrap_or_default();
        about["up"] = json!(flags.iter().any(|flag| flag == "UP"));
        about["kind"] = link["linkinfo"]["info_kind"].clone();
        about
    };
    let sysctls = host.run_in(
        netns,
        "cd /proc/sys/net; for f in ipv4/conf/*/arp_notify ipv6/conf/*/disable_ipv6 ipv6/conf/*/accept_ra; do \
         echo $f $(cat $f); done",
    );
    vec![
        ("links", links.iter().map(about).collect()),
        ("addresses", addresses(&links, "-")),
        ("routes", routes(host, Some(netns))),
        ("sysctls", sysctls.text().lines().collect()),
    ]
}

fn host_look(host: &Host) -> Vec<(&'static str, Value)> {
    let links = ip(host, None, "addr");
    let about = |link: &Value| {
        let mut about = pick(link, &["ifname", "mtu", "master", "promiscuity"]);
        if about["ifname"].as_str().is_some_and(|name| name.starts_with("veth")) {
            about["ifname"] = json!("veth random");
        }
        let keys = ["hairpin", "isolated", "vlan_filtering"];
        about["port"] = pick(&link["linkinfo"]["info_slave_data"], &keys);
        about["bridge"] = pick(&link["linkinfo"]["info_data"], &keys);
        about
    };
    let mut list: Vec<Value> = links.iter().map(about).collect();
    list.sort_by_key(Value::to_string);
    let forward = host.run("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding");
    vec![
        ("links", Value::Array(list)),
        ("addresses", addresses(&links, "veth")),
        ("routes", routes(host, None)),
        ("forwarding", forward.text().lines().collect()),
    ]
}
