//! What a machine looks like, and what a test left on it.

use crate::host::Host;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Everything of a machine that has to be as before: links, addresses, routes, nftables, mounts, files, processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Each line with how often it is there.
    lines: BTreeMap<String, usize>,
}

/// The directories whose content belongs to the machine's look.
const TREES: [&str; 6] =
    ["/run", "/var/lib/weft", "/var/lib/cni", "/etc/weft", "/etc/cni", "/var/lib/private"];

impl Snapshot {
    #[track_caller]
    pub(crate) fn take(host: &Host) -> Snapshot {
        let mut lines = Vec::new();
        links(host, &mut lines);
        routes(host, &mut lines);
        nftables(host, &mut lines);
        mounts(host, &mut lines);
        for tree in TREES {
            files(host, Path::new(tree), &mut lines);
        }
        processes(host, &mut lines);
        let mut counted = BTreeMap::new();
        for line in lines {
            *counted.entry(line).or_insert(0) += 1;
        }
        Snapshot { lines: counted }
    }

    /// The lines, each starting with what kind it is: `link`, `address`, `route`, `nft`, `mount`, `file`, `process`.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.keys().map(String::as_str)
    }

    /// What differs from `self` in `now`, save lines that contain one of `tolerated`.
    pub fn compare(&self, now: &Snapshot, tolerated: &[String]) -> Option<Leak> {
        let missing_in = |a: &Snapshot, b: &Snapshot| {
            let differ = a.lines.iter().filter(|(line, n)| b.lines.get(*line).unwrap_or(&0) < n);
            let lines = differ.map(|(line, _)| line.clone());
            lines.filter(|line| !tolerated.iter().any(|text| line.contains(text))).collect::<Vec<_>>()
        };
        let leak = Leak { left: missing_in(now, self), lost: missing_in(self, now) };
        (!leak.left.is_empty() || !leak.lost.is_empty()).then_some(leak)
    }
}

/// What a test left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// There now, and not at first.
    pub left: Vec<String>,
    /// There at first, and not now.
    pub lost: Vec<String>,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the machine is not as before:")?;
        for line in &self.left {
            write!(f, "\n  left: {line}")?;
        }
        for line in &self.lost {
            write!(f, "\n  lost: {line}")?;
        }
        Ok(())
    }
}

#[track_caller]
fn json(host: &Host, args: &[&str]) -> Vec<Value> {
    let out = host.exec("ip", args);
    if out.code != 0 || out.text().is_empty() {
        return Vec::new(); // `ip route` of an empty table says so with an error
    }
    out.json().as_array().cloned().unwrap_or_default()
}

/// One field of an `ip -j` object, as words.
fn field(of: &Value, key: &str) -> String {
    match of.get(key) {
        None => String::new(),
        Some(Value::String(text)) => format!(" {key} {text}"),
        Some(other) => format!(" {key} {other}"),
    }
}

#[track_caller]
fn links(host: &Host, lines: &mut Vec<String>) {
    for link in json(host, &["-j", "-d", "addr"]) {
        let name = link["ifname"].as_str().unwrap_or_default();
        let keys = ["mtu", "master", "group", "promiscuity", "ifalias"];
        let flags = link["flags"].as_array().cloned().unwrap_or_default();
        let up = if flags.iter().any(|flag| flag == "UP") { " up" } else { "" };
        let about: String = keys.iter().map(|key| field(&link, key)).collect();
        lines.push(format!("link {name}{about}{up}"));
        for address in link["addr_info"].as_array().into_iter().flatten() {
            let (local, prefix) = (address["local"].as_str().unwrap_or_default(), &address["prefixlen"]);
            if local.starts_with("fe80:") {
                continue; // the kernel's own, and there some time after the link
            }
            lines.push(format!("address {name} {local}/{prefix}"));
        }
    }
}

#[track_caller]
fn routes(host: &Host, lines: &mut Vec<String>) {
    for family in ["-4", "-6"] {
        for route in json(host, &["-j", family, "route", "show", "table", "all"]) {
            // The kernel adds these by itself: when the machine forwards IPv6, when a link has its carrier, and when
            // duplicate address detection of a link's own address is over.
            let dst = route["dst"].as_str().unwrap_or_default();
            if route["type"] == "anycast" || dst.starts_with("fe80:") || dst == "ff00::/8" {
                continue;
            }
            let keys = ["type", "dst", "gateway", "dev", "table", "metric", "prefsrc", "scope"];
            let about: String = keys.iter().map(|key| field(&route, key)).collect();
            lines.push(format!("route {family}{about}"));
        }
        for rule in json(host, &["-j", family, "rule"]) {
            lines.push(format!("rule {family} {rule}"));
        }
    }
}

#[track_caller]
fn nftables(host: &Host, lines: &mut Vec<String>) {
    let mut block = Vec::new();
    for line in host.exec("nft", &["-s", "list", "ruleset"]).stdout.lines() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if line == "}" {
            block.pop();
            continue;
        }
        lines.push(format!("nft {} {line}", block.join(" ")));
        if let Some(name) = line.strip_suffix('{') {
            block.push(name.trim().to_owned());
        }
    }
}

fn mounts(host: &Host, lines: &mut Vec<String>) {
    let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", host.pid())).unwrap_or_default();
    for line in table.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        // The rest is of the real machine, where others come and go.
        if !words.get(4).is_some_and(|at| TREES.iter().any(|tree| at.starts_with(tree))) {
            continue;
        }
        let kind = words.iter().position(|word| *word == "-").and_then(|at| words.get(at + 1));
        lines.push(format!("mount {} {}", words.get(4).unwrap_or(&""), kind.unwrap_or(&"")));
    }
}

fn files(host: &Host, dir: &Path, lines: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(host.path(dir)) else { return };
    for entry in entries.flatten() {
        let inside = dir.join(entry.file_name());
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // iptables makes its lock file on first use and never removes it.
        if inside == Path::new("/run/xtables.lock") {
            continue;
        }
        lines.push(format!("file {}{}", inside.display(), if is_dir { "/" } else { "" }));
        if is_dir {
            files(host, &inside, lines);
        }
    }
}

/// All processes in the machine's PID namespace, and in those below it, but its first.
fn processes(host: &Host, lines: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(host.path("/proc")) else { return };
    for entry in entries.flatten() {
        let pid: Option<u32> = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        if pid.is_none_or(|pid| pid == 1) || matches!(state, Some('Z' | 'X')) {
            continue;
        }
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        lines.push(format!("process {}", command.trim()));
    }
}
