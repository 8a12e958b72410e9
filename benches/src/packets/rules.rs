//! What each rule of a packet filter costs a packet.

use super::{ROW, Way, enter};
use crate::Plan;
use crate::report::{Report, median_of};
use anyhow::{Context, Result};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs nft in a network namespace, with this input: its output.
pub fn nft(netns: &Path, words: &[&str], input: &str) -> Result<String> {
    enter(netns)?;
    let mut child = Command::new("nft").args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("no input")?.write_all(input.as_bytes())?;
    let out = child.wait_with_output()?;
    anyhow::ensure!(out.status.success(), "nft {words:?}: {}", out.status);
    Ok(String::from_utf8(out.stdout)?)
}

/// Measures with all rules of a namespace and with all but one, in turns, for each rule. `names` are those of the ways.
pub fn each(plan: &Plan, netns: &Path, names: &str, ways: &mut [Way], report: &mut Report) -> Result<()> {
    let all = nft(netns, &["list", "ruleset"], "")?;
    let lines: Vec<&str> = all.lines().collect();
    let load = |lines: &[&str]| {
        nft(netns, &["-f", "-"], &format!("flush ruleset\n{}\n", lines.join("\n"))).map(drop)
    };
    report.note(&format!(
        "Nanoseconds that a rule costs a packet ({names}), by taking it away; -: then no packet comes:"
    ));
    for at in rules(&lines) {
        let without = [&lines[..at], &lines[at + 1..]].concat();
        let mut times = [(); 2].map(|()| vec![Vec::new(); ways.len()]);
        for _ in 0..plan.rounds.div_ceil(40) {
            for (lines, times) in [&lines, &without].into_iter().zip(&mut times) {
                load(lines)?;
                for (way, times) in ways.iter_mut().zip(times) {
                    for _ in 0..2 * ROW {
                        times.extend(way.measure()?);
                    }
                }
            }
        }
        let costs = times[0].iter().zip(&times[1]);
        let costs = costs.map(|(with, without)| match without.is_empty() {
            true => "    -".to_owned(),
            false => format!("{:5.0}", median_of(with) - median_of(without)),
        });
        let line = format!("{}  {}", costs.collect::<String>(), lines[at].trim());
        eprintln!("{line}");
        report.note(&line);
    }
    load(&lines)
}

/// The lines of a ruleset that are rules.
fn rules(lines: &[&str]) -> Vec<usize> {
    let mut is_chain = false;
    let mut found = Vec::new();
    for (at, line) in lines.iter().map(|line| line.trim()).enumerate() {
        if line.ends_with('{') && !line.contains("elements") {
            is_chain = line.starts_with("chain ");
        } else if is_chain && !["}", ""].contains(&line) && !line.starts_with("type ") {
            found.push(at);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #[test]
    fn rules_of_chains_alone_are_found() {
        let text = "table inet t {\n set s {\n type ifname\n elements = { \"a\",\n \"b\" }\n }\n\n chain c {\n \
                    type filter hook input priority 0; policy accept;\n iif \"lo\" accept\n drop\n }\n}\n";
        let lines: Vec<&str> = text.lines().collect();
        let found: Vec<&str> = super::rules(&lines).into_iter().map(|at| lines[at].trim()).collect();
        assert_eq!(found, ["iif \"lo\" accept", "drop"]);
    }
}
