//! Steps in words, for logs.

use std::collections::BTreeSet;

use net::mac_text;

use crate::objects::{Forward, Target};
use crate::plan::{DeviceChange, LinkChange, Op, Setting, Step};

/// So many steps of a pass are told one by one; the others are counted.
const TOLD: usize = 20;

/// What a step was about, and what became of it.
pub fn line(step: &Step, drift: bool) -> String {
    let verb = match (&step.op, step.replaces, drift) {
        (Op::DeleteDevice(_), true, _) => "taken down, to be made anew",
        (Op::DeleteDevice(_), ..)
        | (Op::DelRoute(..) | Op::DelForward(..) | Op::DelNeigh(..) | Op::DelAddr(..), _, false) => "removed",
        (Op::DelRoute(..) | Op::DelForward(..) | Op::DelNeigh(..) | Op::DelAddr(..), _, true) => {
            "was there unasked: removed"
        }
        (_, false, false) => "added",
        (_, true, false) => "changed",
        (_, false, true) => "was missing: restored",
        (_, true, true) => "was changed: restored",
    };
    format!("{} {verb}", object(&step.op))
}

fn object(op: &Op) -> String {
    match op {
        Op::DeleteDevice(dev) => format!("VXLAN device {dev}"),
        Op::CreateDevice(dev, device) => {
            format!("VXLAN device {dev} (VNI {}, {}, MTU {})", device.vni, device.alias, device.mtu)
        }
        Op::ChangeDevice(dev, device, change) => {
            let DeviceChange { mac, mtu, group, alias, learning, up, master } = *change;
            let parts = [
                up.then(|| "up".to_owned()),
                mtu.then(|| format!("MTU {}", device.mtu)),
                mac.then(|| format!("address {}", mac_text(device.mac))),
                group.then(|| format!("group {:#x}", device.group)),
                alias.then(|| format!("alias {}", device.alias)),
                learning.then(|| "learning off".to_owned()),
                master.then(|| "no port of a bridge".to_owned()),
            ];
            let parts: Vec<String> = parts.into_iter().flatten().collect();
            format!("VXLAN device {dev} ({})", parts.join(", "))
        }
        Op::ChangeLink(dev, LinkChange { group, mac, mtu, alias, up, master }) => {
            let parts = [
                up.then(|| "up".to_owned()),
                mtu.map(|mtu| format!("MTU {mtu}")),
                mac.map(|mac| format!("address {}", mac_text(mac))),
                group.map(|group| format!("group {group:#x}")),
                alias.as_ref().map(|alias| format!("alias {alias}")),
                master.then(|| "no port of a bridge".to_owned()),
            ];
            let parts: Vec<String> = parts.into_iter().flatten().collect();
            format!("container's link {dev} ({})", parts.join(", "))
        }
        Op::Set(dev, Setting::Forward4) => format!("forwarding of IPv4 by {dev}"),
        Op::Set(dev, Setting::IgnoreRouters) => format!("ignoring of router advertisements by {dev}"),
        Op::Set(dev, Setting::Ipv6On) => format!("IPv6 of {dev}"),
        Op::SetAddr(dev, net, _) | Op::DelAddr(dev, net) => format!("address {net} of {dev}"),
        Op::SetNeigh(dev, ip, mac) => format!("neighbour {ip} ({}) on {dev}", mac_text(*mac)),
        Op::DelNeigh(dev, ip) => format!("neighbour {ip} on {dev}"),
        Op::SetForward(dev, mac, forward) | Op::DelForward(dev, mac, forward) => {
            let Forward { ip, port, permanent, is_diverted } = forward;
            let ip = ip.map(|ip| format!(" to {ip}")).unwrap_or_default();
            let port = port.map(|port| format!(" port {port}")).unwrap_or_default();
            let learned = if *permanent { "" } else { " (learned)" };
            let diverted = if *is_diverted { " (by another VNI or link)" } else { "" };
            format!("forwarding of {}{ip}{port} on {dev}{learned}{diverted}", mac_text(*mac))
        }
        Op::SetRoute(key, target) | Op::DelRoute(key, target) => match target {
            Target::Unreachable => format!("route {} unreachable", key.dst),
            Target::Other(kind) => format!("route {} of kind {kind}", key.dst),
            Target::Dev { dev, gw: Some(gw), .. } => format!("route {} via {gw} on {dev}", key.dst),
            Target::Dev { dev, .. } => format!("route {} on {dev}", key.dst),
        },
    }
}

/// The lines of a pass: devices all, of the others the first few. `drift` says whether a step mends what nobody asked to be
/// changed.
pub fn lines<'a>(steps: impl Iterator<Item = (&'a Step, bool)>) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut told, mut untold) =
        (0, [("routes", 0), ("forwarding entries", 0), ("neighbours", 0), ("others", 0)]);
    for (step, drift) in steps {
        let kind = match step.op {
            Op::DeleteDevice(_)
            | Op::CreateDevice(..)
            | Op::ChangeDevice(..)
            | Op::ChangeLink(..)
            | Op::Set(..) => {
                lines.push(line(step, drift));
                continue;
            }
            Op::SetRoute(..) | Op::DelRoute(..) => 0,
            Op::SetForward(..) | Op::DelForward(..) => 1,
            Op::SetNeigh(..) | Op::DelNeigh(..) => 2,
            Op::SetAddr(..) | Op::DelAddr(..) => 3,
        };
        if told < TOLD {
            told += 1;
            lines.push(line(step, drift));
        } else {
            untold[kind].1 += 1;
        }
    }
    let untold = untold.iter().filter(|(_, count)| *count > 0);
    let untold: Vec<String> = untold.map(|(kind, count)| format!("{count} {kind}")).collect();
    if !untold.is_empty() {
        lines.push(format!("and so were {} more", untold.join(", ")));
    }
    lines
}

/// The members of `now` that `before` has not.
pub fn new_ones(now: &BTreeSet<String>, before: &BTreeSet<String>) -> Vec<String> {
    now.difference(before).cloned().collect()
}
