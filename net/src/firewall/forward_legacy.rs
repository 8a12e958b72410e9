//! Forward chains of iptables' legacy variant, which nftables does not see. Its program is run only where the kernel has
//! such a table.

use super::forward::{Traffic, clip, name_in};
use crate::{Error, Result};
use std::process::Command;

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
        if rules.lines().any(|line| line == "-P FORWARD DROP") {
            found.push((program, v6, rules));
        }
    }
    Ok(found)
}

/// The chains whose policy is drop, as `iptables-legacy filter FORWARD`.
pub fn dropping_names() -> Result<Vec<String>> {
    Ok(dropping()?.into_iter().map(|(program, ..)| format!("{program} filter FORWARD")).collect())
}

/// As [`super::forward::accept`].
pub fn accept(name: &str, traffic: &[Traffic]) -> Result<bool> {
    let name = clip(name);
    let chains = dropping()?;
    for (program, v6, there) in &chains {
        for each in traffic {
            let (end, from, to) = match each {
                Traffic::Link(link) => (link.clone(), format!("-i {link}"), format!("-o {link}")),
                Traffic::Subnet(net) if net.is_ipv6() != *v6 => continue,
                Traffic::Subnet(net) => (net.to_string(), format!("-s {net}"), format!("-d {net}")),
            };
            let answers = format!("{to} -m conntrack --ctstate RELATED,ESTABLISHED,DNAT");
            for (what, matching) in [("from", from), ("answers to", answers)] {
                let comment = format!("weft: forward {name} {what} {end}");
                if there.contains(&format!("\"{comment}\"")) {
                    continue;
                }
                let mut args: Vec<String> =
                    words(&format!("-A FORWARD {matching} -m comment --comment")).collect();
                args.push(comment);
                args.extend(words("-j ACCEPT"));
                run(program, &args)?;
            }
        }
    }
    Ok(!chains.is_empty())
}

/// As [`super::forward::withdraw_where`].
pub fn withdraw_where(stale: &dyn Fn(&str) -> bool) -> Result<usize> {
    let mut removed = 0;
    for program in [false, true].into_iter().filter_map(program) {
        let rules = run(program, &["-S".into(), "FORWARD".into()])?;
        for line in rules.lines() {
            let Some((start, rest)) = line.split_once(" --comment \"") else { continue };
            let Some((comment, end)) = rest.split_once('"') else { continue };
            if !name_in(comment).is_some_and(stale) || !start.starts_with("-A FORWARD ") {
                continue;
            }
            let mut args: Vec<String> = words(&start.replacen("-A", "-D", 1)).collect();
            args.extend(["--comment".into(), comment.to_owned()]);
            args.extend(words(end.trim()));
            run(program, &args)?;
            removed += 1;
        }
    }
    Ok(removed)
}
