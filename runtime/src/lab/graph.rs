//! `lab graph`: a drawing of a lab, as text or for Graphviz.

use std::fmt::Write;

use anyhow::Result;

use super::dirs::Lab;
use super::live::{self, Container};
use super::plan::Machine;
use super::{daemons, underlay};

/// How to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Drawing {
    /// A tree of lines
    Text,
    /// The language of Graphviz
    Dot,
}

/// Draws a lab: its machines on the underlay, the containers on their hosts, and the networks that they are in.
///
/// # Errors
/// Its state cannot be read.
pub fn draw(lab: &Lab, how: Drawing) -> Result<String> {
    let containers = live::containers(lab)?;
    match how {
        Drawing::Text => text(lab, &containers),
        Drawing::Dot => dot(lab, &containers),
    }
}

fn addresses(machine: &Machine) -> String {
    machine.addresses.iter().map(|net| net.ip().to_string()).collect::<Vec<_>>().join(" ")
}

/// What is wrong with a machine, in brackets.
fn trouble(lab: &Lab, machine: &Machine, runs: bool, process: &str) -> String {
    let mut all = Vec::new();
    if !underlay::link_is_up(lab, &machine.name).unwrap_or(false) {
        all.push("link down".to_owned());
    }
    if !runs {
        all.push(format!("no {process}"));
    }
    if all.is_empty() { String::new() } else { format!("  [{}]", all.join(", ")) }
}

fn text(lab: &Lab, containers: &[Container]) -> Result<String> {
    let mut out = String::new();
    let gateways: Vec<String> = lab.plan.underlay.gateways().iter().map(ToString::to_string).collect();
    writeln!(out, "underlay {} (MTU {})", gateways.join(" "), lab.plan.underlay.mtu)?;
    let count = lab.plan.machines().count();
    for (at, machine) in lab.plan.machines().enumerate() {
        let last = at + 1 == count;
        let (branch, below) = if last { ("└─", "   ") } else { ("├─", "│  ") };
        let is_etcd = at < lab.plan.etcd.len();
        let (daemon, process) = match is_etcd {
            true => (daemons::member(lab, machine), "etcd"),
            false => (daemons::agent_of(lab, machine), "agent"),
        };
        let trouble = trouble(lab, machine, daemon.pid().is_some(), process);
        writeln!(out, "{branch} {}  {}{trouble}", machine.name, addresses(machine))?;
        let own: Vec<&Container> = containers.iter().filter(|one| one.host == machine.name).collect();
        for (at, one) in own.iter().enumerate() {
            let branch = if at + 1 == own.len() { "└─" } else { "├─" };
            let ends = one.ends.iter().map(|end| {
                let all: Vec<String> = end.addresses.iter().map(|net| net.ip().to_string()).collect();
                format!("{}: {}", end.network, all.join(" ")).trim_end_matches([' ', ':']).to_owned()
            });
            let status = if one.runs() { String::new() } else { format!("  [{}]", one.status) };
            writeln!(out, "{below}{branch} {}  {}{status}", one.name, ends.collect::<Vec<_>>().join(", "))?;
        }
    }
    Ok(out)
}

fn dot(lab: &Lab, containers: &[Container]) -> Result<String> {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut out = String::new();
    writeln!(out, "graph {} {{", quoted(&lab.plan.name))?;
    writeln!(out, "  rankdir=LR; node [fontname=\"sans-serif\"];")?;
    let gateways: Vec<String> = lab.plan.underlay.gateways().iter().map(ToString::to_string).collect();
    writeln!(
        out,
        "  underlay [shape=box3d, label={}];",
        quoted(&format!("underlay\\n{}", gateways.join("\\n"))).replace("\\\\n", "\\n")
    )?;
    for network in &lab.plan.networks {
        writeln!(
            out,
            "  {} [shape=ellipse, label={}];",
            quoted(&format!("net/{}", network.name)),
            quoted(&network.name)
        )?;
    }
    for machine in lab.plan.machines() {
        let label = quoted(&format!("{}\\n{}", machine.name, addresses(machine))).replace("\\\\n", "\\n");
        writeln!(out, "  {} [shape=box, label={label}];", quoted(&machine.name))?;
        let style =
            if underlay::link_is_up(lab, &machine.name).unwrap_or(false) { "solid" } else { "dotted" };
        writeln!(out, "  underlay -- {} [style={style}];", quoted(&machine.name))?;
    }
    for one in containers {
        let node = quoted(&format!("{}/{}", one.host, one.name));
        let style = if one.runs() { "filled" } else { "dashed" };
        writeln!(out, "  {node} [shape=component, style={style}, label={}];", quoted(&one.name))?;
        writeln!(out, "  {} -- {node};", quoted(&one.host))?;
        for end in &one.ends {
            let label = end.addresses.iter().map(|net| net.ip().to_string()).collect::<Vec<_>>().join(" ");
            let network = quoted(&format!("net/{}", end.network));
            writeln!(out, "  {node} -- {network} [style=dashed, label={}];", quoted(&label))?;
        }
    }
    writeln!(out, "}}")?;
    Ok(out)
}
