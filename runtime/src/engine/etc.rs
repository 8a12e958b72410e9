//! The files that the runtime writes for a container: /etc/hosts, /etc/resolv.conf, /etc/hostname.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::spec::{NetMode, Spec};
use crate::state::{AttachState, Container};

/// The container's files, in the run directory, and where they go.
const FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname")];

/// The name a container has: what was asked for, else its short id; with another's namespaces, theirs.
pub fn hostname(container: &Container) -> Result<String> {
    if !container.spec.hostname.is_empty() {
        return Ok(container.spec.hostname.clone());
    }
    match &container.spec.network {
        NetMode::Host => {
            Ok(nix::unistd::gethostname().context("gethostname")?.to_string_lossy().into_owned())
        }
        NetMode::Container(id) => match Container::by_id(&container.paths, id)? {
            Some(other) if other.id() != container.id() => hostname(&other),
            _ => Ok(container.spec.short_id().to_owned()),
        },
        _ => Ok(container.spec.short_id().to_owned()),
    }
}

/// Writes the files; gives each with its place in the container.
pub fn write(container: &Container, hostname: &str) -> Result<Vec<(PathBuf, &'static str)>> {
    let dir = container.run_dir();
    let host = |file: &str| base::file::read_text(Path::new(file)).unwrap_or_default();
    let texts = match &container.spec.network {
        NetMode::Container(id) => {
            let other = container.paths.container_run(id);
            // That container may have written to them.
            FILES.map(|(name, _)| base::file::read_text(&other.join(name)).unwrap_or_default())
        }
        mode => {
            let is_host = *mode == NetMode::Host;
            let hosts = match is_host {
                true => format!("{}{}", host("/etc/hosts"), extra_hosts(&container.spec)),
                false => hosts(&container.spec, hostname, &addresses(&container.state.attachments)),
            };
            let resolv = resolv_conf(
                &container.spec,
                &container.state.attachments,
                &host("/etc/resolv.conf"),
                is_host,
            );
            [hosts, resolv, format!("{hostname}\n")]
        }
    };
    let mut files = Vec::new();
    for ((name, place), text) in FILES.into_iter().zip(texts) {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        files.push((path, place));
    }
    Ok(files)
}

/// The container's own addresses, from the CNI results.
pub fn addresses(attachments: &[AttachState]) -> Vec<IpAddr> {
    let ips = attachments.iter().filter_map(|a| a.result.get("ips")?.as_array());
    let texts = ips.flatten().filter_map(|ip| ip.get("address")?.as_str());
    texts.filter_map(|text| text.split('/').next()?.parse().ok()).collect()
}

fn hosts(spec: &Spec, hostname: &str, addresses: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    text += &extra_hosts(spec);
    // `name.domain` is also found as `name`.
    let short = hostname.split('.').next().filter(|short| *short != hostname);
    let names = short.map_or(hostname.to_owned(), |short| format!("{hostname} {short}"));
    for address in addresses {
        text += &format!("{address}\t{names}\n");
    }
    if addresses.is_empty() {
        text += &format!("127.0.0.1\t{names}\n");
    }
    text
}

fn extra_hosts(spec: &Spec) -> String {
    let lines = spec.extra_hosts.iter().filter_map(|line| line.split_once([':', '=']));
    lines.map(|(name, address)| format!("{}\t{name}\n", address.trim_matches(['[', ']']))).collect()
}

/// What was asked for, else what the networks say, else the host's; of the host's name servers those on its loopback are
/// left out, since a container with its own network does not reach them.
fn resolv_conf(spec: &Spec, attachments: &[AttachState], host: &str, is_host: bool) -> String {
    let dns = |key: &str| -> Vec<String> {
        let lists = attachments.iter().filter_map(|a| a.result.get("dns")?.get(key)?.as_array());
        let mut all: Vec<String> = lists.flatten().filter_map(|v| Some(v.as_str()?.to_owned())).collect();
        if key == "search" && all.is_empty() {
            all.extend(
                attachments.iter().filter_map(|a| Some(a.result.get("dns")?.get("domain")?.as_str()?.into())),
            );
        }
        all
    };
    let of_host = |key: &str| -> Vec<String> {
        let lines = host.lines().filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix([' ', '\t']));
        lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
    };
    let first = |choices: [Vec<String>; 3]| choices.into_iter().find(|c| !c.is_empty()).unwrap_or_default();
    let reachable = |server: &String| {
        is_host
            || server
                .split('%')
                .next()
                .and_then(|ip| ip.parse().ok())
                .is_none_or(|ip: IpAddr| !ip.is_loopback())
    };
    let servers = first([
        spec.dns.iter().map(ToString::to_string).collect(),
        dns("nameservers"),
        of_host("nameserver").into_iter().filter(reachable).collect(),
    ]);
    let search = first([spec.dns_search.clone(), dns("search"), of_host("search")]);
    let options = first([spec.dns_options.clone(), dns("options"), of_host("options")]);
    let mut text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !search.is_empty() && search != ["."] {
        text += &format!("search {}\n", search.join(" "));
    }
    if !options.is_empty() {
        text += &format!("options {}\n", options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn attached() -> Vec<AttachState> {
        let result = json!({"ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64"}],
                            "dns": {"nameservers": ["10.0.0.1"], "domain": "lan"}});
        vec![AttachState { network: "n".into(), ifname: "eth0".into(), result }]
    }

    #[test]
    fn hosts_has_localhost_the_containers_name_and_what_was_added() {
        let spec =
            Spec { extra_hosts: vec!["db:10.9.9.9".into(), "six:[fd00::9]".into()], ..Default::default() };
        let text = hosts(&spec, "web.lan", &addresses(&attached()));
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        for line in ["10.0.0.2\tweb.lan web\n", "fd00::2\tweb.lan web\n", "10.9.9.9\tdb\n", "fd00::9\tsix\n"]
        {
            assert!(text.contains(line), "{line:?} in {text}");
        }
    }

    #[test]
    fn name_servers_are_the_users_then_the_networks_then_the_hosts_that_can_be_reached() {
        let host = "nameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch example.org\noptions edns0\n";
        let mut spec = Spec::default();
        assert_eq!(
            resolv_conf(&spec, &[], host, false),
            "nameserver 192.0.2.1\nsearch example.org\noptions edns0\n"
        );
        assert!(resolv_conf(&spec, &[], host, true).contains("127.0.0.53"));
        assert_eq!(
            resolv_conf(&spec, &attached(), host, false),
            "nameserver 10.0.0.1\nsearch lan\noptions edns0\n"
        );
        spec.dns = vec!["9.9.9.9".parse().unwrap()];
        spec.dns_search = vec![".".into()];
        assert_eq!(resolv_conf(&spec, &attached(), host, false), "nameserver 9.9.9.9\noptions edns0\n");
    }
}
