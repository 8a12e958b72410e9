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

    fn text(&self, related: bool) -> String {
        match self {
            Cell::Same => "·".into(),
            Cell::Apart => "-".into(),
            Cell::Down => "down".into(),
            Cell::Tried(echo) => match echo.mean() {
                None if !related => "apart".into(),
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
    /// Name and host of containers that are not in the tables: they were made by hand, and do not run.
    absent: Vec<(String, String)>,
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
    let absent = live::absent(lab, &containers);
    let absent = absent.map(|one| (one.name.clone(), one.host.clone())).collect();
    containers.retain(|one| !one.ends.is_empty());
    Ok(Matrix { absent, ..matrix(&containers, manner, across) })
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
    Matrix { names, tables, related, absent: Vec::new() }
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
        for (family, rows) in &self.tables {
            let head = format!("{} ms", family_name(*family));
            let mut table =
                Table::new([head].into_iter().chain(self.names.iter().map(|(name, _)| name.clone())));
            for (from, ((name, host), row)) in self.names.iter().zip(rows).enumerate() {
                let related = |to: usize| self.related.contains(&(from, to));
                let cells = row.iter().enumerate().map(|(to, cell)| cell.text(related(to)));
                table.row([format!("{name} ({host})")].into_iter().chain(cells));
            }
            out.push_str(&table.render());
            out.push('\n');
        }
        let (tried, across) = (self.tried(), self.across());
        let mut sum = match (tried + across.0, self.holes()) {
            (0, _) => self.nothing().unwrap_or_default(),
            (_, 0) => format!("no holes: {tried} of {tried} reached"),
            (_, 1) => format!("1 hole in {tried}"),
            (_, holes) => format!("{holes} holes in {tried}"),
        };
        if across.0 > 0 {
            let (all, reached) = across;
            sum += &format!("; between networks {reached} of {all} reached, {} kept apart", all - reached);
        }
        out.push_str(&sum);
        out.push('\n');
        if !self.absent.is_empty() {
            let each = self.absent.iter().map(|(name, host)| format!("{name} ({host})"));
            let names = each.collect::<Vec<_>>().join(", ");
            out.push_str(&format!("made by hand, not running, not tried: {names}\n"));
        }
        out
    }

    /// The cells, and whether their two have a network in common.
    fn cells(&self) -> impl Iterator<Item = (&Cell, bool)> {
        self.tables.iter().flat_map(|(_, rows)| rows.iter().enumerate()).flat_map(move |(from, row)| {
            row.iter().enumerate().map(move |(to, cell)| (cell, self.related.contains(&(from, to))))
        })
    }

    /// How many should reach each other: one that does not run is among them.
    fn tried(&self) -> usize {
        let should = |(cell, related): &(&Cell, bool)| match cell {
            Cell::Tried(_) => *related,
            Cell::Down => true,
            Cell::Same | Cell::Apart => false,
        };
        self.cells().filter(should).count()
    }

    /// How many pairs without a network in common were tried, and how many of them were reached.
    fn across(&self) -> (usize, usize) {
        let echoes = self.cells().filter_map(|(cell, related)| match cell {
            Cell::Tried(echo) if !related => Some(echo),
            _ => None,
        });
        echoes.fold((0, 0), |(all, reached), echo| (all + 1, reached + usize::from(!echo.times.is_empty())))
    }

    /// Why there was nothing to ping, if that is so.
    pub fn nothing(&self) -> Option<String> {
        let tried = self.tried() + self.across().0;
        let why = match self.names.len() {
            _ if tried > 0 => return None,
            0 => "no container of an overlay network is in this lab",
            1 => "only one container of an overlay network is in this lab",
            _ => "no two containers of this lab have a network and an address family in common",
        };
        Some(format!("nothing to ping: {why}"))
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
            let text = across.text();
            assert!(text.contains("4 of 4 reached; between networks 8 of 8 reached, 0 kept apart"), "{text}");
            netlink.set("c", &LinkSet { up: Some(false), ..LinkSet::default() }).unwrap();
            let text = matrix(&all, HASTE, true).text();
            assert!(text.contains("4 of 4 reached; between networks 0 of 8 reached, 8 kept apart"), "{text}");
            assert!(text.contains("apart") && !text.contains("LOST"), "{text}");

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
    fn nothing_to_ping_is_told_from_no_holes() {
        let nothing = |all: &[Container]| {
            let matrix = matrix(all, MANNER, false);
            assert_eq!(matrix.holes(), 0);
            assert!(!matrix.text().contains("reached"), "{}", matrix.text());
            matrix.nothing().unwrap()
        };
        assert!(nothing(&[]).contains("no container"));
        let one = container("a", "red", None, &[]);
        assert!(nothing(std::slice::from_ref(&one)).contains("only one container"));
        assert!(nothing(&[one.clone(), container("b", "blue", None, &[])]).contains("in common"));
        let two = matrix(&[one, container("b", "red", None, &[])], MANNER, false);
        assert_eq!((two.nothing(), two.holes()), (None, 2));
    }

    #[test]
    fn who_does_not_run_and_was_made_by_hand_is_named() {
        let absent = vec![("late".to_owned(), "h1".to_owned())];
        let text = Matrix { absent, ..matrix(&[], MANNER, false) }.text();
        assert!(text.ends_with("made by hand, not running, not tried: late (h1)\n"), "{text}");
    }
}
