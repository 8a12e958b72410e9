//! `lab ping`: from every container to every other, as a matrix.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use net::{Family, Netns};
use serde_json::{Value, json};

use super::dirs::Lab;
use super::expect::family_name;
use super::icmp::{self, Echo, Manner};
use super::live::{self, Container};
use super::parallel;
use crate::format::table::Table;

/// What came of one pair and family.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// A container and itself.
    Same,
    /// They have no network, or no address family, in common: not tried.
    Apart,
    /// One of them does not run.
    Down,
    /// Tried.
    Tried(Echo),
}

impl Cell {
    /// Whether it is as it should be.
    fn holds(&self, related: bool) -> bool {
        match self {
            Cell::Same | Cell::Apart => true,
            Cell::Down => false,
            // What is not in a network with it was only tried because somebody asked.
            Cell::Tried(echo) => echo.whole() || !related,
        }
    }

    fn text(&self) -> String {
        match self {
            Cell::Same => "·".into(),
            Cell::Apart => "-".into(),
            Cell::Down => "down".into(),
            Cell::Tried(echo) => match echo.mean() {
                None => "LOST".into(),
                Some(mean) if echo.whole() => milliseconds(mean),
                Some(mean) => {
                    format!(
                        "{} ({} of {} lost)",
                        milliseconds(mean),
                        usize::from(echo.sent) - echo.times.len(),
                        echo.sent
                    )
                }
            },
        }
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64() * 1000.0)
}

/// Who reaches whom.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// Name and host of each container.
    pub names: Vec<(String, String)>,
    /// For each family that is there: the rows, from; in them the columns, to.
    pub tables: Vec<(Family, Vec<Vec<Cell>>)>,
    /// Pairs of containers that have a network in common.
    related: BTreeSet<(usize, usize)>,
}

/// Sends echo requests from all containers of overlay networks to all others, all at the same time. With `across` also to
/// those that they have no network in common with.
///
/// # Errors
/// The lab's state cannot be read.
pub fn ping(lab: &Lab, manner: Manner, across: bool) -> Result<Matrix> {
    let overlays = live::overlays(lab);
    let mut containers = live::containers(lab)?;
    for one in &mut containers {
        one.ends.retain(|end| overlays.contains(&end.network));
    }
    containers.retain(|one| !one.ends.is_empty());
    Ok(matrix(&containers, manner, across))
}

/// The addresses of a container, by network and family.
type Addresses = BTreeMap<(String, Family), IpAddr>;

fn addresses(one: &Container) -> Addresses {
    let mut all = Addresses::new();
    for end in &one.ends {
        for net in &end.addresses {
            all.entry((end.network.clone(), Family::of(net.ip()))).or_insert(net.ip());
        }
    }
    all
}

fn matrix(containers: &[Container], manner: Manner, across: bool) -> Matrix {
    let names = containers.iter().map(|one| (one.name.clone(), one.host.clone())).collect();
    let networks: Vec<BTreeSet<String>> = containers.iter().map(Container::networks).collect();
    let all: Vec<Addresses> = containers.iter().map(addresses).collect();
    let count = containers.len();
    let mut related = BTreeSet::new();
    for from in 0..count {
        related
            .extend((0..count).filter(|to| !networks[from].is_disjoint(&networks[*to])).map(|to| (from, to)));
    }
    // The address to try, in a network that both have if there is one.
    let target = |from: usize, to: usize, family: Family| {
        let mut there = all[to].iter().filter(|((_, of), _)| *of == family);
        let common =
            there.clone().find(|((network, _), _)| all[from].contains_key(&(network.clone(), family)));
        common.or_else(|| there.next().filter(|_| across)).map(|(_, ip)| *ip)
    };
    let mut tables = Vec::new();
    for family in [Family::V4, Family::V6] {
        let has = |at: usize| all[at].keys().any(|(_, of)| *of == family);
        let any = (0..count).any(has);
        let none_runs = count > 0 && !containers.iter().any(Container::runs);
        if !(any || none_runs && family == Family::V4) {
            continue;
        }
        let indices: Vec<usize> = (0..count).collect();
        let row = |from: usize| -> Vec<Cell> {
            let mut cells = vec![Cell::Apart; count];
            let mut wanted: Vec<(usize, IpAddr)> = Vec::new();
            for (to, cell) in cells.iter_mut().enumerate() {
                let both_run = containers[from].runs() && containers[to].runs();
                *cell = match (from == to, both_run, target(from, to, family)) {
                    (true, ..) => Cell::Same,
                    (_, false, _) if across || related.contains(&(from, to)) => Cell::Down,
                    (_, true, Some(ip)) if has(from) => {
                        wanted.push((to, ip));
                        continue;
                    }
                    _ => Cell::Apart,
                };
            }
            let ips: Vec<IpAddr> = wanted.iter().map(|(_, ip)| *ip).collect();
            let echoes = match &containers[from].netns {
                Some(netns) => Netns::open(netns)
                    .map_err(|error| error.to_string())
                    .and_then(|netns| icmp::echo(&netns, &ips, manner).map_err(|error| error.to_string())),
                None => Err("it does not run".into()),
            };
            let failed =
                |why: &String| Echo { refused: Some(why.clone()), sent: manner.count, times: Vec::new() };
            for (at, (to, _)) in wanted.iter().enumerate() {
                cells[*to] = Cell::Tried(match &echoes {
                    Ok(echoes) => echoes[at].clone(),
                    Err(why) => failed(why),
                });
            }
            cells
        };
        tables.push((family, parallel::map(&indices, |from| row(*from))));
    }
    Matrix { names, tables, related }
}

impl Matrix {
    /// How many pairs that should reach each other do not.
    pub fn holes(&self) -> usize {
        self.hole_names().len()
    }

    /// The pairs that should reach each other and do not: from, to, and the family.
    pub fn hole_names(&self) -> Vec<(&str, &str, Family)> {
        let mut holes = Vec::new();
        for (family, rows) in &self.tables {
            for (from, row) in rows.iter().enumerate() {
                let bad = |(to, cell): &(usize, &Cell)| !cell.holds(self.related.contains(&(from, *to)));
                let names = row
                    .iter()
                    .enumerate()
                    .filter(bad)
                    .map(|(to, _)| (&*self.names[from].0, &*self.names[to].0, *family));
                holes.extend(names);
            }
        }
        holes
    }

    /// As tables, one for each family, and a line that sums up.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut tried = 0;
        for (family, rows) in &self.tables {
            let head = format!("{} ms", family_name(*family));
            let mut table =
                Table::new([head].into_iter().chain(self.names.iter().map(|(name, _)| name.clone())));
            for ((name, host), row) in self.names.iter().zip(rows) {
                tried += row.iter().filter(|cell| matches!(cell, Cell::Tried(_) | Cell::Down)).count();
                table.row([format!("{name} ({host})")].into_iter().chain(row.iter().map(Cell::text)));
            }
            out.push_str(&table.render());
            out.push('\n');
        }
        let sum = match (self.tables.is_empty(), self.holes()) {
            (true, _) => "no container of an overlay network is in this lab".to_owned(),
            (_, 0) => format!("no holes: {tried} of {tried} reached"),
            (_, 1) => format!("1 hole in {tried}"),
            (_, holes) => format!("{holes} holes in {tried}"),
        };
        out + &sum + "\n"
    }

    /// As JSON: an object for each pair and family that was tried.
    pub fn json(&self) -> Value {
        let mut pairs = Vec::new();
        for (family, rows) in &self.tables {
            for (from, row) in rows.iter().enumerate() {
                for (to, cell) in row.iter().enumerate() {
                    let (state, echo) = match cell {
                        Cell::Same | Cell::Apart => continue,
                        Cell::Down => ("down", Echo::default()),
                        Cell::Tried(echo) if echo.whole() => ("reached", echo.clone()),
                        Cell::Tried(echo) => ("lost", echo.clone()),
                    };
                    pairs.push(json!({
                        "From": self.names[from].0,
                        "FromHost": self.names[from].1,
                        "To": self.names[to].0,
                        "ToHost": self.names[to].1,
                        "Family": if *family == Family::V4 { 4 } else { 6 },
                        "Related": self.related.contains(&(from, to)),
                        "State": state,
                        "Sent": echo.sent,
                        "Received": echo.times.len(),
                        "Milliseconds": echo.mean().map(|mean| (mean.as_secs_f64() * 1e6).round() / 1e3),
                    }));
                }
            }
        }
        json!({ "Holes": self.holes(), "Pairs": pairs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::live::End;
    use net::{Batch, Bridge, LinkSet, Netlink, NewAddr, Veth, testns};

    const MANNER: Manner = Manner { count: 2, timeout: Duration::from_secs(5) };
    const HASTE: Manner = Manner { count: 1, timeout: Duration::from_millis(100) };

    fn container(
        name: &str,
        network: &str,
        netns: Option<std::path::PathBuf>,
        addresses: &[&str],
    ) -> Container {
        let addresses = addresses.iter().map(|net| net.parse().unwrap()).collect();
        Container {
            name: name.into(),
            host: format!("h-{name}"),
            id: String::new(),
            status: "running".into(),
            pid: 0,
            netns,
            ends: vec![End {
                network: network.into(),
                ifname: "eth0".into(),
                addresses,
                veth: String::new(),
            }],
        }
    }

    #[test]
    fn a_matrix_over_a_plain_bridge_shows_who_is_reached_and_who_is_not() {
        testns::private_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            let middle = Netns::create(at("middle")).unwrap();
            let mut netlink = Netlink::open_in(&middle).unwrap();
            let bridge =
                netlink.create_bridge(&Bridge { name: "br", up: true, ..Bridge::default() }).unwrap();
            let member = |name: &str, network: &str, last: u8, netlink: &mut Netlink| {
                let netns = Netns::create(at(name)).unwrap();
                let mut inside = Netlink::open_in(&netns).unwrap();
                let veth = Veth { master: Some(bridge.index), ..Veth::new(name, "eth0", &netns) };
                let link = netlink.create_veth_towards(&veth, &mut inside).unwrap();
                let nets = [format!("10.7.0.{last}/24"), format!("fd07::{last}/64")];
                let mut batch = Batch::new();
                for net in &nets {
                    batch
                        .addr_add(link.index, &NewAddr { nodad: true, ..NewAddr::new(net.parse().unwrap()) });
                }
                batch.set(link.index, &LinkSet { up: Some(true), ..LinkSet::default() });
                inside.run(batch).unwrap();
                container(name, network, Some(at(name)), &[&nets[0], &nets[1]])
            };
            let mut all = vec![
                member("a", "red", 1, &mut netlink),
                member("b", "red", 2, &mut netlink),
                member("c", "blue", 3, &mut netlink),
            ];
            let matrix_ = matrix(&all, MANNER, false);
            assert_eq!(matrix_.holes(), 0, "{}", matrix_.text());
            assert_eq!(matrix_.tables.len(), 2);
            let text = matrix_.text();
            assert!(text.contains("no holes: 4 of 4 reached"), "{text}");
            assert!(text.lines().any(|line| line.starts_with("c (h-c)") && line.contains('-')), "{text}");
            assert_eq!(matrix_.json()["Pairs"].as_array().unwrap().len(), 4);
            // Across networks the bridge lets them; it is no hole either way.
            let across = matrix(&all, MANNER, true);
            assert_eq!((across.holes(), across.json()["Pairs"].as_array().unwrap().len()), (0, 12));

            netlink.set("b", &LinkSet { up: Some(false), ..LinkSet::default() }).unwrap();
            let cut = matrix(&all, HASTE, false);
            assert_eq!(cut.holes(), 4, "{}", cut.text());
            assert!(cut.text().contains("LOST") && cut.text().contains("4 holes in 4"));

            all[1].netns = None;
            all[1].ends[0].addresses.clear();
            let down = matrix(&all, HASTE, false);
            assert_eq!(down.holes(), 4, "one that does not run is a hole: {}", down.text());
            assert!(down.text().contains("down"));
            crate::lab::dirs::unmount_below(dir.path()).unwrap();
        });
    }

    #[test]
    fn nothing_to_ping_is_no_hole() {
        let matrix = matrix(&[], MANNER, false);
        assert_eq!(matrix.holes(), 0);
        assert!(matrix.text().contains("no container"));
    }
}
