//! The commands that ask the agent of this host, through its socket.

use crate::args::{Command, Format, NetworkCommand, NodeCommand, Output};
use crate::table::{plain, table};
use anyhow::Result;
use ovl_api::Client;
use ovl_api::model::{Encap, Network};
use ovl_api::wire::{Node, Repairs, Status};
use serde::Serialize;
use std::io::Write;
use std::path::Path;

/// So many held back records are in a status for people.
const SHOWN: usize = 20;

/// Does a command with the agent whose socket is in this directory.
///
/// # Errors
/// There is no agent, or it refuses.
pub fn ask(run: &Path, command: &Command) -> Result<()> {
    let client = Client::new(ovl_api::names::socket(run));
    match command {
        Command::Status { output } => show(output, &client.status(None)?, status),
        Command::Sync { output } => show(output, &client.sync()?, status),
        Command::Accept => Ok(client.accept()?),
        Command::Node(NodeCommand::Ls { output }) => {
            show(output, &client.nodes()?, |nodes| self::nodes(nodes))?;
            warn_of(client.status(None).ok(), "the hosts are");
            Ok(())
        }
        Command::Node(NodeCommand::Rm { name, force }) => {
            client.remove_node(name, *force)?;
            print(&format!("{name}\n"))
        }
        Command::Network(NetworkCommand::Ls { output }) => {
            show(output, &client.networks()?, |networks| self::networks(networks))?;
            warn_of(client.status(None).ok(), "the networks are");
            Ok(())
        }
        Command::Run(_) | Command::Completion { .. } => Ok(()),
    }
}

/// Says on stderr that what was shown may be old, when it may.
fn warn_of(status: Option<Status>, what: &str) {
    if let Some(Status { connected: false, store_error: Some(why), .. }) = status {
        eprintln!("ovl-agent: warning: {what} as this host last saw them: {why}");
    }
}

fn show<T: Serialize>(output: &Output, value: &T, table: impl Fn(&T) -> String) -> Result<()> {
    match output.format {
        Format::Table => print(&table(value)),
        Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(value)?)),
    }
}

/// To stdout; that nobody reads it (`| head`) is no error.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn status(status: &Status) -> String {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let ready = match (status.ready, &status.held_back, status.held_records.len()) {
        (true, Some(_), _) => "yes, but changes are held back".to_owned(),
        (true, None, count @ 1..) => format!("yes, but {count} records of the store are held back"),
        (ready, ..) => yes_no(ready),
    };
    let mut rows = vec![
        ["Host".to_owned(), status.host.clone()],
        ["Version".to_owned(), status.version.clone()],
        ["VTEP".to_owned(), status.vtep.map_or_else(|| "-".to_owned(), |vtep| vtep.to_string())],
        ["Store".to_owned(), status.store.clone()],
        ["Connected".to_owned(), yes_no(status.connected)],
        ["Ready".to_owned(), ready],
        ["Revision".to_owned(), status.revision.to_string()],
    ];
    for (name, value) in [("Store error", &status.store_error), ("Held back", &status.held_back)] {
        rows.extend(value.iter().map(|value| [name.to_owned(), value.clone()]));
    }
    rows.extend(status.problems.iter().map(|problem| ["Problem".to_owned(), problem.clone()]));
    rows.extend(repairs(&status.repairs));
    let records =
        status.held_records.iter().take(SHOWN).map(|record| format!("{}: {}", record.key, record.why));
    rows.extend(records.map(|record| ["Held record".to_owned(), record]));
    let more = status.held_records.len().saturating_sub(SHOWN);
    rows.extend((more > 0).then(|| ["Held record".to_owned(), format!("and {more} more")]));
    rows.extend(status.notice.iter().map(|notice| ["Notice".to_owned(), notice.clone()]));
    rows.iter().map(|[name, value]| format!("{:<14}{}\n", format!("{name}:"), plain(value))).collect()
}

/// What other programs changed in the kernel, in rows.
fn repairs(repairs: &Repairs) -> Vec<[String; 2]> {
    let last = repairs.last.as_ref().map(|last| {
        let more = last.objects.saturating_sub(1);
        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
        [
            "Last repair".to_owned(),
            format!("{}: {}{more}, after {} ms; {} so far", last.at, last.what, last.took_ms, repairs.count),
        ]
    });
    let fight = |what: &String| {
        [
            "Fight".to_owned(),
            format!("another program changes {what} again and again; it is restored later each time"),
        ]
    };
    last.into_iter().chain(repairs.fights.iter().map(fight)).collect()
}

fn nodes(nodes: &[Node]) -> String {
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            let status = match (node.host.removed, node.alive) {
                (true, _) => "removed",
                (false, true) => "alive",
                (false, false) => "suspect",
            };
            [
                node.host.name.clone(),
                status.to_owned(),
                node.host.vtep.to_string(),
                node.host.segment.map_or_else(|| "-".to_owned(), |segment| segment.to_string()),
                node.blocks.to_string(),
                node.host.epoch.to_string(),
            ]
        })
        .collect();
    table(["NAME", "STATUS", "VTEP", "SEGMENT", "BLOCKS", "EPOCH"], &rows)
}

fn networks(networks: &[Network]) -> String {
    let rows: Vec<_> = networks
        .iter()
        .map(|network| {
            let subnets: Vec<_> = network.subnets.iter().map(|subnet| subnet.subnet.to_string()).collect();
            let encap = match network.encap {
                Encap::Vxlan => "vxlan",
                Encap::Direct => "direct",
            };
            [
                network.id.clone(),
                network.name.clone(),
                network.vni.to_string(),
                subnets.join(","),
                encap.to_owned(),
                network.internal.to_string(),
            ]
        })
        .collect();
    table(["ID", "NAME", "VNI", "SUBNETS", "ENCAP", "INTERNAL"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovl_api::wire::HeldRecord;

    #[test]
    fn a_host_without_liveness_is_shown_as_suspect_and_a_removed_one_as_removed() {
        let host = ovl_api::model::Host {
            name: "h1".into(),
            id: "0".repeat(32),
            epoch: 2,
            vtep: "192.0.2.1".parse().unwrap(),
            vtep_since: 1,
            segment: Some("192.0.2.0/24".parse().unwrap()),
            port: 4789,
            removed: false,
        };
        let node = |alive, removed| Node {
            host: ovl_api::model::Host { removed, ..host.clone() },
            alive,
            blocks: 3,
        };
        let text = nodes(&[node(true, false), node(false, false), node(true, true)]);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[1], ["h1", "alive", "192.0.2.1", "192.0.2.0/24", "3", "2"]);
        assert_eq!((words[2][1], words[3][1]), ("suspect", "removed"));
    }

    #[test]
    fn a_status_says_why_the_store_is_away_and_what_is_held_back() {
        let record = HeldRecord { key: "c/hosts/h2\u{1b}[2J\n".into(), why: "invalid port 0".into() };
        let given = Status {
            host: "h1".into(),
            version: "0.1.0".into(),
            vtep: None,
            store: "etcd at http://192.0.2.9:2379".into(),
            connected: false,
            store_error: Some("connection refused".into()),
            ready: false,
            revision: 7,
            held_back: Some("3 of 8 hosts vanished".into()),
            held_records: vec![record],
            notice: Some("this node was renamed".into()),
            problems: vec!["net.ipv4.ip_forward is 0".into()],
            repairs: Repairs {
                count: 7,
                last: Some(ovl_api::wire::Repair {
                    at: "2026-01-01T00:00:00Z".into(),
                    what: "route 10.42.0.64/26 was missing: restored".into(),
                    objects: 3,
                    took_ms: 12,
                }),
                fights: vec!["route 10.42.0.64/26".into()],
            },
        };
        let text = status(&given);
        assert!(text.contains("Connected:    no\n"), "{text}");
        assert!(text.contains("Store error:  connection refused\n"), "{text}");
        assert!(text.contains("Held back:    3 of 8 hosts vanished\n"), "{text}");
        assert!(text.contains("Held record:  c/hosts/h2\\u{1b}[2J\\n: invalid port 0\n"), "{text}");
        assert!(text.contains("Notice:       this node was renamed\n"), "{text}");
        assert!(text.contains("Problem:      net.ipv4.ip_forward is 0\n"), "{text}");
        let repair = "Last repair:  2026-01-01T00:00:00Z: route 10.42.0.64/26 was missing: restored (and 2 more), after 12 ms; \
                      7 so far\n";
        assert!(text.contains(repair), "{text}");
        assert!(
            text.contains("Fight:        another program changes route 10.42.0.64/26 again and again"),
            "{text}"
        );
        let text = self::status(&Status { ready: true, ..given });
        assert!(text.contains("Ready:        yes, but changes are held back\n"), "{text}");
    }
}
