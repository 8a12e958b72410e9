//! What a lab is at this moment: its machines, processes and containers; as text, as JSON, and for those who try it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use net::{Family, Netns};
use serde_json::{Value, json};

use super::dirs::{self, Lab};
use super::plan::Machine;
use super::{daemons, underlay};
use crate::format::Row;
use crate::format::table::Table;
use crate::paths::Paths;
use crate::state::{self, Status};

/// A container of a lab.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its host.
    pub host: String,
    /// Its ID; empty when it does not exist.
    pub id: String,
    /// Its state: `running`, `exited` … or `missing`.
    pub status: String,
    /// The PID of its first process; 0 when it does not run.
    pub pid: i32,
    /// Its network namespace.
    pub netns: Option<PathBuf>,
    /// Its attachments.
    pub ends: Vec<End>,
}

/// An attachment of a container.
#[derive(Debug, Clone)]
pub struct End {
    /// The network's name.
    pub network: String,
    /// The interface's name in the container.
    pub ifname: String,
    /// Its addresses, with the subnets' lengths.
    pub addresses: Vec<IpNetwork>,
    /// The name of the host's end.
    pub veth: String,
}

impl Container {
    /// Whether it runs.
    pub fn runs(&self) -> bool {
        self.netns.is_some()
    }

    /// Its first address of a family, in one of these networks.
    pub fn address(&self, family: Family, networks: &BTreeSet<String>) -> Option<IpAddr> {
        let ends = self.ends.iter().filter(|end| networks.contains(&end.network));
        let mut all = ends.flat_map(|end| &end.addresses).map(IpNetwork::ip);
        all.find(|ip| Family::of(*ip) == family)
    }

    /// The names of its networks.
    pub fn networks(&self) -> BTreeSet<String> {
        self.ends.iter().map(|end| end.network.clone()).collect()
    }
}

/// The containers of a lab: those of the plan in its order, also when they are gone, then others by host and name.
///
/// # Errors
/// A host's state cannot be read.
pub fn containers(lab: &Lab) -> Result<Vec<Container>> {
    let mut found = Vec::new();
    for host in &lab.plan.hosts {
        let here = state::Container::every(&lab.host(&host.name))?;
        // As it is written: what a crash left is not corrected.
        for one in here.into_iter().filter(|one| !one.is_removed()) {
            found.push(of_state(&host.name, &one));
        }
    }
    found.sort_by(|a, b| (&a.host, &a.name).cmp(&(&b.host, &b.name)));
    let mut all = Vec::new();
    for planned in &lab.plan.containers {
        let at = found.iter().position(|one| one.name == planned.name && one.host == planned.host);
        all.push(match at {
            Some(at) => found.remove(at),
            None => Container {
                name: planned.name.clone(),
                host: planned.host.clone(),
                id: String::new(),
                status: "missing".into(),
                pid: 0,
                netns: None,
                ends: Vec::new(),
            },
        });
    }
    all.extend(found);
    // What does not run has no addresses; its networks are those that it was planned with.
    for one in all.iter_mut().filter(|one| one.ends.is_empty()) {
        let planned = lab.plan.containers.iter().find(|planned| planned.name == one.name);
        let networks = planned.map(|planned| planned.networks.clone()).unwrap_or_default();
        let end =
            |network| End { network, ifname: String::new(), addresses: Vec::new(), veth: String::new() };
        one.ends = networks.into_iter().map(end).collect();
    }
    Ok(all)
}

/// Those that nobody planned and that do not run: whether they should is not known.
pub fn absent<'c>(lab: &Lab, containers: &'c [Container]) -> impl Iterator<Item = &'c Container> {
    let planned: BTreeSet<(String, String)> =
        lab.plan.containers.iter().map(|one| (one.name.clone(), one.host.clone())).collect();
    let by_hand = move |one: &&Container| !planned.contains(&(one.name.clone(), one.host.clone()));
    containers.iter().filter(|one| !one.runs()).filter(by_hand)
}

fn of_state(host: &str, one: &state::Container) -> Container {
    let found = crate::engine::process::find(&one.state).is_some() && super::procs::is_alive(one.state.pid);
    let runs = one.state.status == Status::Running && found;
    let status =
        if one.state.status == Status::Running && !runs { "killed" } else { one.state.status.as_str() };
    let end = |attachment: &state::AttachState| End {
        network: attachment.network.clone(),
        ifname: attachment.ifname.clone(),
        addresses: addresses(&attachment.result),
        veth: net::Owner::new(&*attachment.network, one.id(), &*attachment.ifname).host_veth(),
    };
    Container {
        name: one.spec.name.clone(),
        host: host.to_owned(),
        id: one.id().to_owned(),
        status: status.to_owned(),
        pid: if runs { one.state.pid } else { 0 },
        netns: one.state.netns.clone().filter(|_| runs),
        ends: match runs {
            true => one.state.attachments.iter().map(end).filter(|end| !end.addresses.is_empty()).collect(),
            false => Vec::new(),
        },
    }
}

/// The addresses of a CNI result, but for those of a loopback interface alone.
fn addresses(result: &Value) -> Vec<IpNetwork> {
    let ips = result["ips"].as_array().into_iter().flatten();
    let all = ips.filter_map(|ip| ip["address"].as_str()?.parse().ok());
    all.filter(|net: &IpNetwork| !net.ip().is_loopback()).collect()
}

/// The networks that span hosts: those of the plan, and those that the agents know.
pub fn overlays(lab: &Lab) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = lab.plan.networks.iter().map(|network| network.name.clone()).collect();
    for host in &lab.plan.hosts {
        let client = daemons::client(lab, &host.name).with_timeout(std::time::Duration::from_secs(2));
        if let Ok(networks) = client.networks() {
            all.extend(networks.into_iter().map(|network| network.name));
            // They all know the same.
            break;
        }
    }
    all
}

/// The networks that a host's agent knows now, those of the plan first; when none answers at once, those of the plan.
fn networks(lab: &Lab) -> Vec<String> {
    let planned: Vec<String> = lab.plan.networks.iter().map(|network| network.name.clone()).collect();
    let Some(host) = lab.plan.hosts.iter().find(|host| daemons::agent_of(lab, host).pid().is_some()) else {
        return planned;
    };
    let client = daemons::client(lab, &host.name).with_timeout(std::time::Duration::from_millis(500));
    let Ok(known) = client.networks() else { return planned };
    let mut known: Vec<String> = known.into_iter().map(|network| network.name).collect();
    // Stable: the others stay in the agent's order.
    known.sort_by_key(|name| planned.iter().position(|other| other == name).unwrap_or(usize::MAX));
    known
}

/// The network namespace of a container or host of the lab.
///
/// # Errors
/// There is none of that name, or it does not run.
pub fn netns_of(lab: &Lab, containers: &[Container], name: &str) -> Result<Netns> {
    if let Some(one) = containers.iter().find(|one| one.name == name) {
        let netns =
            one.netns.as_ref().with_context(|| format!("container {name} does not run ({})", one.status))?;
        return Ok(Netns::open(netns)?);
    }
    Ok(Netns::open(lab.netns(&lab.plan.host(name)?.name))?)
}

/// A line for each lab.
pub fn overview(paths: &Paths) -> Vec<Row> {
    let row = |name: String| -> Row {
        let Ok(lab) = Lab::open(paths, &name) else {
            return vec![
                ("Name", name),
                ("Status", "incomplete".into()),
                ("Hosts", String::new()),
                ("Etcd", String::new()),
                ("Networks", String::new()),
                ("Containers", String::new()),
                ("CreatedAt", String::new()),
            ];
        };
        let containers = containers(&lab).unwrap_or_default();
        let running = containers.iter().filter(|one| one.runs()).count();
        let networks = networks(&lab);
        let status = if lab.is_ready() { "up" } else { "incomplete" };
        vec![
            ("Name", name),
            ("Status", status.into()),
            ("Hosts", lab.plan.hosts.len().to_string()),
            ("Etcd", lab.plan.etcd.len().to_string()),
            ("Networks", networks.join(",")),
            ("Containers", format!("{running}/{}", containers.len())),
            ("CreatedAt", lab.plan.created.clone()),
        ]
    };
    dirs::names(paths).into_iter().map(row).collect()
}

/// All there is to know of a lab.
///
/// # Errors
/// It cannot be read.
pub fn inspect(lab: &Lab) -> Result<Value> {
    let containers = containers(lab)?;
    let machine = |machine: &Machine, pid: Option<i32>| {
        json!({
            "Name": machine.name,
            "Addresses": machine.addresses,
            "Netns": lab.netns(&machine.name),
            "Link": link_word(lab, &machine.name),
            "Pid": pid.unwrap_or(0),
        })
    };
    let hosts = lab.plan.hosts.iter().map(|host| {
        let daemon = daemons::agent_of(lab, host);
        let mut value = machine(host, daemon.pid());
        let status = agent_status(lab, host);
        let paths = lab.host(&host.name);
        value["Agent"] = json!({
            "Pid": daemon.pid().unwrap_or(0),
            "Log": daemon.log(),
            "Ready": status.as_ref().is_some_and(|status| status.ready),
            "StoreConnected": status.as_ref().is_some_and(|status| status.connected),
        });
        value["Vtep"] = json!(status.and_then(|status| status.vtep));
        value["Root"] = json!(paths.root);
        value["Run"] = json!(paths.run);
        value["ConfigDir"] = json!(paths.config_dir);
        if let Some(map) = value.as_object_mut() {
            map.remove("Pid");
        }
        value
    });
    let etcd = lab.plan.etcd.iter().map(|member| {
        let daemon = daemons::member(lab, member);
        let mut value = machine(member, daemon.pid());
        value["Log"] = json!(daemon.log());
        value["Url"] = json!(member.ip().map(super::plan::client_url));
        value
    });
    let containers = containers.iter().map(|one| {
        let ends = one.ends.iter().map(|end| {
            json!({
                "Network": end.network,
                "Interface": end.ifname,
                "Addresses": end.addresses,
                "HostInterface": end.veth,
            })
        });
        json!({
            "Name": one.name,
            "Host": one.host,
            "ID": one.id,
            "Status": one.status,
            "Pid": one.pid,
            "Netns": one.netns,
            "Networks": ends.collect::<Vec<_>>(),
        })
    });
    let (ipv4, ipv6) = (lab.plan.underlay.ipv4, lab.plan.underlay.ipv6);
    Ok(json!({
        "Name": lab.plan.name,
        "Status": if lab.is_ready() { "up" } else { "incomplete" },
        "Created": lab.plan.created,
        "Directory": lab.dir,
        "Underlay": { "IPv4": ipv4, "IPv6": ipv6, "MTU": lab.plan.underlay.mtu },
        "Etcd": etcd.collect::<Vec<_>>(),
        "Hosts": hosts.collect::<Vec<_>>(),
        "Networks": lab.plan.networks,
        "Containers": containers.collect::<Vec<_>>(),
    }))
}

fn agent_status(lab: &Lab, host: &Machine) -> Option<ovl_api::wire::Status> {
    let client = daemons::client(lab, &host.name).with_timeout(std::time::Duration::from_secs(2));
    client.status(None).ok()
}

/// A machine's link in a word.
pub fn link_word(lab: &Lab, machine: &str) -> &'static str {
    match underlay::link_is_up(lab, machine) {
        Ok(true) => "up",
        Ok(false) => "down",
        Err(_) => "missing",
    }
}

/// What [`inspect`] says, as text for people.
///
/// # Errors
/// It cannot be read.
pub fn report(lab: &Lab) -> Result<String> {
    let list = |all: &[IpNetwork]| all.iter().map(|net| net.ip().to_string()).collect::<Vec<_>>().join(", ");
    let pid = |pid: Option<i32>| pid.map_or("not running".to_owned(), |pid| format!("pid {pid}"));
    let mut machines = Table::new(["MACHINE", "ADDRESSES", "LINK", "PROCESS", "VTEP"].map(str::to_owned));
    for member in &lab.plan.etcd {
        let process = format!("etcd: {}", pid(daemons::member(lab, member).pid()));
        let link = link_word(lab, &member.name).to_owned();
        machines.row([member.name.clone(), list(&member.addresses), link, process, String::new()]);
    }
    for host in &lab.plan.hosts {
        let status = agent_status(lab, host);
        let ready = match (&status, daemons::agent_of(lab, host).pid()) {
            (_, None) => "",
            (Some(status), _) if status.ready && status.connected => ", ready",
            (Some(status), _) if status.ready => ", ready, its store does not answer",
            _ => ", not ready",
        };
        let process = format!("ovl-agent: {}{ready}", pid(daemons::agent_of(lab, host).pid()));
        let vtep = status.and_then(|status| status.vtep).map(|ip| ip.to_string()).unwrap_or_default();
        let link = link_word(lab, &host.name).to_owned();
        machines.row([host.name.clone(), list(&host.addresses), link, process, vtep]);
    }
    let mut table = Table::new(["CONTAINER", "HOST", "STATUS", "NETWORK", "ADDRESSES"].map(str::to_owned));
    for one in containers(lab)? {
        for (at, end) in one.ends.iter().enumerate() {
            let first = |text: &str| if at == 0 { text.to_owned() } else { String::new() };
            let cells = [first(&one.name), first(&one.host), first(&one.status)];
            table.row(cells.into_iter().chain([end.network.clone(), list(&end.addresses)]));
        }
        if one.ends.is_empty() {
            table.row([one.name, one.host, one.status, String::new(), String::new()]);
        }
    }
    Ok(format!("{}\n{}", machines.render(), table.render()))
}
