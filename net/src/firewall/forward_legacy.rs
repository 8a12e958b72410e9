//! Forward chains of iptables' legacy variant, which nftables does not see. Its program is run only where the kernel has
//! such a table.

use super::forward::{Traffic, Undeclared, accepts, clip, name_in};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;

/// What `-S` says of a chain whose policy is drop.
const DROPS: &str = "-P FORWARD DROP";

/// The programs of a family; `None` where the kernel has no legacy filter table, or the host no program for it.
fn program(v6: bool) -> Option<&'static str> {
    let names = if v6 { "ip6_tables_names" } else { "ip_tables_names" };
    let names = std::fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
    if !names.lines().any(|name| name == "filter") {
        return None;
    }
    let candidates = if v6 { ["ip6tables-legacy", "ip6tables"] } else { ["iptables-legacy", "iptables"] };
    candidates.into_iter().find(|name| {
        let version = Command::new(name).arg("--version").output();
        version.is_ok_and(|output| !String::from_utf8_lossy(&output.stdout).contains("nf_tables"))
    })
}

fn run(program: &str, args: &[String]) -> Result<String> {
    let output = Command::new(program)
        .arg("-w")
        .args(args)
        .output()
        .map_err(|e| Error::io(format!("run {program}"), e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Error::Other(format!("`{program} {}` failed: {text}", args.join(" "))))
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(' ').map(str::to_owned)
}

/// The families whose forward chain has the policy drop, as (program, is it IPv6?, its rules).
fn dropping() -> Result<Vec<(&'static str, bool, String)>> {
    let mut found = Vec::new();
    for v6 in [false, true] {
        let Some(program) = program(v6) else { continue };
        let rules = run(program, &["-S".into(), "FORWARD".into()])?;
        if rules.lines().any(|line| line == DROPS) {
            found.push((program, v6, rules));
        }
    }
    Ok(found)
}

/// As [`super::forward::refusing`]: `iptables-legacy filter FORWARD`.
pub fn refusing(from: &[IpAddr], to: IpAddr) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (program, _, rules) in dropping()?.into_iter().filter(|(_, v6, _)| *v6 == to.is_ipv6()) {
        let mut comments = rules.lines().filter_map(rule).map(|(comment, _)| comment);
        if !comments.any(|comment| name_in(comment).is_some() && accepts(comment, from, to)) {
            names.push(format!("{program} filter FORWARD"));
        }
    }
    Ok(names)
}

/// The rules of a program's family: comment, and what is to match.
fn rules_for(v6: bool, name: &str, traffic: &[Traffic]) -> Vec<(String, String)> {
    let name = clip(name);
    let mut rules = Vec::new();
    let mut push = |what: String, matching: String| {
        rules.push((format!("weft: forward {name} {what}"), matching));
    };
    for each in traffic {
        match each {
            Traffic::Link(link) => {
                push(format!("from {link}"), format!("-i {link}"));
                let answers = format!("-o {link} -m conntrack --ctstate RELATED,ESTABLISHED,DNAT");
                push(format!("answers to {link}"), answers);
            }
            Traffic::Subnet(net) if net.is_ipv6() == v6 => {
                push(format!("from {net}"), format!("-s {net}"));
                push(format!("to {net}"), format!("-d {net}"));
            }
            Traffic::Subnet(_) => {}
        }
    }
    rules
}

fn add(program: &str, matching: &str, comment: String) -> Result<()> {
    let mut args: Vec<String> = words(&format!("-A FORWARD {matching} -m comment --comment")).collect();
    args.push(comment);
    args.extend(words("-j ACCEPT"));
    run(program, &args).map(drop)
}

/// As [`super::forward::accept`].
pub fn accept(name: &str, traffic: &[Traffic]) -> Result<bool> {
    let chains = dropping()?;
    for (program, v6, there) in &chains {
        for (comment, matching) in rules_for(*v6, name, traffic) {
            if !there.contains(&format!("\"{comment}\"")) {
                add(program, &matching, comment)?;
            }
        }
    }
    Ok(!chains.is_empty())
}

/// As [`super::forward::declare`].
pub fn declare(prefix: &str, declared: &[(String, Vec<Traffic>)], undeclared: Undeclared) -> Result<usize> {
    let mut changed = 0;
    for v6 in [false, true] {
        let Some(program) = program(v6) else { continue };
        let there = run(program, &["-S".into(), "FORWARD".into()])?;
        let declared = declared.iter().flat_map(|(name, traffic)| rules_for(v6, name, traffic));
        let mut declared: BTreeMap<String, String> = declared.collect();
        for (comment, rule) in there.lines().filter_map(rule) {
            let is_declared = declared.remove(comment).is_some();
            let is_ours = name_in(comment).is_some_and(|name| name.starts_with(prefix));
            if is_ours && !is_declared && undeclared == Undeclared::Go {
                run(program, &rule)?;
                changed += 1;
            }
        }
        if there.lines().any(|line| line == DROPS) {
            changed += declared.len();
            declared.into_iter().try_for_each(|(comment, matching)| add(program, &matching, comment))?;
        }
    }
    Ok(changed)
}

/// As [`super::forward::withdraw_where`].
pub fn withdraw_where(stale: &dyn Fn(&str) -> bool) -> Result<usize> {
    let mut removed = 0;
    for program in [false, true].into_iter().filter_map(program) {
        let rules = run(program, &["-S".into(), "FORWARD".into()])?;
        for (comment, rule) in rules.lines().filter_map(rule) {
            if name_in(comment).is_some_and(stale) {
                run(program, &rule)?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// The comment of a rule, by a line of `-S`, and the arguments that delete it.
fn rule(line: &str) -> Option<(&str, Vec<String>)> {
    let (start, rest) = line.split_once(" --comment \"")?;
    let (comment, end) = rest.split_once('"')?;
    let start = start.starts_with("-A FORWARD ").then(|| start.replacen("-A", "-D", 1))?;
    let mut args: Vec<String> = words(&start).collect();
    args.extend(["--comment".into(), comment.to_owned()]);
    args.extend(words(end.trim()));
    Some((comment, args))
}
