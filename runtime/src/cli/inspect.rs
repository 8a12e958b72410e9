//! `inspect` and `port`.

use super::args::InspectArgs;
use super::ps::published_at;
use super::signal;
use crate::format;
use crate::network::{self, Endpoint};
use crate::paths::Paths;
use crate::spec::{NetMode, PortMapping, Protocol};
use crate::state::{Container, Status};
use anyhow::{Result, anyhow, bail};
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// Docker's time of what has not happened.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// `inspect`: containers, and networks where no container has the name.
///
/// # Errors
/// A template that cannot be filled.
pub fn inspect(paths: &Paths, args: &InspectArgs) -> Result<ExitCode> {
    let mut found = Vec::new();
    let mut failed = false;
    for name in &args.names {
        match one(paths, name, args.kind.as_deref()) {
            Ok(value) => found.push(value),
            Err(error) => {
                eprintln!("runtime: {error:#}");
                failed = true;
            }
        }
    }
    format::print(&format::inspection(&found, args.format.as_deref())?)?;
    Ok(ExitCode::from(u8::from(failed)))
}

fn one(paths: &Paths, name: &str, kind: Option<&str>) -> Result<Value> {
    let network = |name| network::find(paths, name).and_then(|found| network::inspect(paths, &found));
    match kind {
        Some("network") => network(name),
        Some(_) => Ok(container(&Container::load(paths, name)?)),
        None => match Container::load(paths, name) {
            Ok(found) => Ok(container(&found)),
            Err(error) => match network::lookup(paths, name)? {
                Some(found) => network::inspect(paths, &found),
                None if error.to_string().starts_with("No such") => Err(anyhow!("No such object: {name}")),
                None => Err(error),
            },
        },
    }
}

/// A container in Docker's fields.
fn container(container: &Container) -> Value {
    let (spec, state) = (&container.spec, &container.state);
    let time = |time: &Option<String>| time.clone().unwrap_or_else(|| NEVER.into());
    let binds: Vec<String> = spec
        .volumes
        .iter()
        .map(|v| format!("{}:{}:{}", v.source, v.target.display(), if v.read_only { "ro" } else { "rw" }))
        .collect();
    let exposed: Map<String, Value> = spec.ports.iter().map(|port| (key(port), json!({}))).collect();
    let mut value = json!({
        "Id": spec.id,
        "Created": spec.created,
        "Path": spec.command.first(),
        "Args": spec.command.get(1..).unwrap_or_default(),
        "State": {
            "Status": state.status.as_str(),
            "Running": state.status == Status::Running,
            "Paused": false,
            "Dead": state.status == Status::Dead,
            "Pid": state.pid,
            "ExitCode": state.exit_code,
            "Error": state.error,
            "StartedAt": time(&state.started),
            "FinishedAt": time(&state.finished),
        },
        "Name": format!("/{}", spec.name),
        "HostConfig": {
            "Binds": binds,
            "NetworkMode": mode(&spec.network),
            "PortBindings": bindings(&spec.ports, &|port| {
                let port_text = match (port.host_port, port.host_port_last) {
                    (0, _) => String::new(),
                    (only, 0) => only.to_string(),
                    (first, last) => format!("{first}-{last}"),
                };
                vec![(port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(), port_text)]
            }),
            "AutoRemove": spec.auto_remove,
            "ExtraHosts": spec.extra_hosts,
            "Dns": spec.dns,
            "DnsSearch": spec.dns_search,
            "DnsOptions": spec.dns_options,
        },
        "Mounts": spec.volumes.iter().map(|v| json!({
            "Type": if v.source.starts_with('/') { "bind" } else { "volume" },
            "Source": v.source,
            "Destination": v.target,
            "RW": !v.read_only,
        })).collect::<Vec<_>>(),
        "Config": {
            "Hostname": if spec.hostname.is_empty() { spec.short_id() } else { &spec.hostname },
            "User": spec.user.clone().unwrap_or_default(),
            "Tty": spec.tty,
            "OpenStdin": spec.stdin_open,
            "ExposedPorts": exposed,
            "Env": spec.env,
            "Cmd": spec.command,
            "WorkingDir": spec.workdir,
            "Labels": spec.labels,
            "StopSignal": spec.stop_signal.map_or_else(|| "SIGTERM".into(), signal::name),
        },
        "NetworkSettings": settings(container),
    });
    if let Some(timeout) = spec.stop_timeout {
        value["Config"]["StopTimeout"] = timeout.into();
    }
    value
}

fn mode(network: &NetMode) -> String {
    match network {
        NetMode::None => "none".into(),
        NetMode::Host => "host".into(),
        NetMode::Container(id) => format!("container:{id}"),
        NetMode::Networks(all) => all.first().map(|each| each.network.clone()).unwrap_or_default(),
    }
}

fn key(port: &PortMapping) -> String {
    format!("{}/{}", port.container_port, port.protocol)
}

/// `{"80/tcp": [{"HostIp", "HostPort"}]}`
fn bindings(
    ports: &[PortMapping],
    hosts: &dyn Fn(&PortMapping) -> Vec<(String, String)>,
) -> Map<String, Value> {
    let mut all: Map<String, Value> = Map::new();
    for port in ports {
        let list = all.entry(key(port)).or_insert_with(|| json!([]));
        if let Value::Array(list) = list {
            list.extend(hosts(port).into_iter().map(|(ip, port)| json!({"HostIp": ip, "HostPort": port})));
        }
    }
    all
}

fn settings(container: &Container) -> Value {
    let state = &container.state;
    let ids: Vec<(String, String)> = network::all(&container.paths)
        .iter()
        .map(|each| (each.name().to_owned(), each.id().to_owned()))
        .collect();
    let mut networks = Map::new();
    for attached in &state.attachments {
        let endpoint = Endpoint::of(attached);
        // With --network none there is loopback's alone, which is no address of the container's.
        let of = |is_ipv4: bool| {
            endpoint.ips.iter().find(|(net, _)| net.is_ipv4() == is_ipv4 && !net.ip().is_loopback())
        };
        let ip = |is_ipv4| of(is_ipv4).map(|(net, _)| net.ip().to_string()).unwrap_or_default();
        let prefix = |is_ipv4| of(is_ipv4).map_or(0, |(net, _)| net.prefix());
        let gateway =
            |is_ipv4| of(is_ipv4).and_then(|(_, ip)| ip.map(|ip| ip.to_string())).unwrap_or_default();
        let id = ids.iter().find(|(name, _)| *name == attached.network).map(|(_, id)| id.as_str());
        networks.insert(
            attached.network.clone(),
            json!({
                "NetworkID": id.unwrap_or_default(),
                "Interface": attached.ifname,
                "MacAddress": endpoint.mac,
                "Gateway": gateway(true),
                "IPAddress": ip(true),
                "IPPrefixLen": prefix(true),
                "IPv6Gateway": gateway(false),
                "GlobalIPv6Address": ip(false),
                "GlobalIPv6PrefixLen": prefix(false),
            }),
        );
    }
    // A stopped container keeps its networks, without addresses.
    if let (NetMode::Networks(all), true) = (&container.spec.network, state.attachments.is_empty()) {
        for each in all {
            let id = ids.iter().find(|(name, _)| *name == each.network).map(|(_, id)| id.as_str());
            networks.insert(
                each.network.clone(),
                json!({
                    "NetworkID": id.unwrap_or_default(),
                    "Interface": each.ifname,
                    "MacAddress": "",
                    "Gateway": "",
                    "IPAddress": "",
                    "IPPrefixLen": 0,
                    "IPv6Gateway": "",
                    "GlobalIPv6Address": "",
                    "GlobalIPv6PrefixLen": 0,
                }),
            );
        }
    }
    let ports = bindings(&state.ports, &|port| {
        let hosts = published_at(container, port).into_iter();
        let parted = hosts.filter_map(|host| {
            let (ip, port) = host.rsplit_once(':')?;
            Some((ip.trim_matches(['[', ']']).to_owned(), port.to_owned()))
        });
        parted.collect()
    });
    // The first network's, under Docker's older names.
    let first = networks.values().next().cloned().unwrap_or_default();
    let old = |name: &str, none: Value| first.get(name).cloned().unwrap_or(none);
    json!({
        "SandboxKey": state.netns,
        "Ports": ports,
        "IPAddress": old("IPAddress", "".into()),
        "IPPrefixLen": old("IPPrefixLen", 0.into()),
        "Gateway": old("Gateway", "".into()),
        "MacAddress": old("MacAddress", "".into()),
        "GlobalIPv6Address": old("GlobalIPv6Address", "".into()),
        "GlobalIPv6PrefixLen": old("GlobalIPv6PrefixLen", 0.into()),
        "IPv6Gateway": old("IPv6Gateway", "".into()),
        "Networks": networks,
    })
}

/// `port NAME [PORT[/PROTOCOL]]`.
///
/// # Errors
/// The port is not published.
pub fn port(paths: &Paths, name: &str, wanted: Option<&str>) -> Result<()> {
    let container = Container::load(paths, name)?;
    let mut ports: Vec<PortMapping> =
        if container.state.status == Status::Running { container.state.ports.clone() } else { Vec::new() };
    ports.sort_by_key(|port| (port.container_port, port.protocol, port.host_port));
    let Some(wanted) = wanted else {
        let line = |port: &PortMapping| {
            published_at(&container, port)
                .into_iter()
                .map(|host| format!("{} -> {host}\n", key(port)))
                .collect::<String>()
        };
        return Ok(format::print(&ports.iter().map(line).collect::<String>())?);
    };
    let (number, protocol) = match wanted.split_once('/') {
        Some((number, protocol)) => (number, protocol.parse().map_err(|why: String| anyhow!("{why}"))?),
        None => (wanted, Protocol::Tcp),
    };
    let number: u16 =
        number.parse().map_err(|_| anyhow!("port {wanted:?}: allowed is 1 to 65535[/tcp|/udp|/sctp]"))?;
    ports.retain(|port| port.container_port == number && port.protocol == protocol);
    if ports.is_empty() {
        bail!("no public port '{number}/{protocol}' published for {name}");
    }
    let lines = ports.iter().flat_map(|port| published_at(&container, port));
    Ok(format::print(&lines.map(|host| host + "\n").collect::<String>())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Spec;
    use crate::state::{AttachState, State};

    fn running() -> Container {
        let none = std::path::PathBuf::from("/nonexistent");
        let result = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"}],
            "ips": [{"address": "10.1.0.2/16", "gateway": "10.1.0.1", "interface": 0}],
        });
        let port = PortMapping { host_port: 8080, container_port: 80, ..PortMapping::default() };
        Container {
            paths: crate::paths::Paths {
                root: none.clone(),
                run: none.clone(),
                config_dir: none,
                cni_bin: vec![],
            },
            spec: Spec {
                id: "ab".repeat(32),
                name: "www".into(),
                command: vec!["sh".into(), "-c".into()],
                ports: vec![port],
                ..Spec::default()
            },
            state: State {
                status: Status::Running,
                pid: 7,
                attachments: vec![AttachState { network: "web".into(), ifname: "eth0".into(), result }],
                ports: vec![port],
                ..State::default()
            },
        }
    }

    #[test]
    fn a_running_container_is_inspected_in_dockers_fields() {
        let value = container(&running());
        assert_eq!(value["State"]["Status"], "running");
        assert_eq!(value["NetworkSettings"]["Networks"]["web"]["IPAddress"], "10.1.0.2");
        assert_eq!(value["NetworkSettings"]["IPAddress"], "10.1.0.2");
        assert_eq!(
            value["NetworkSettings"]["Ports"],
            json!({"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]})
        );
        assert_eq!((value["Path"].as_str(), &value["Args"]), (Some("sh"), &json!(["-c"])));
    }
}
