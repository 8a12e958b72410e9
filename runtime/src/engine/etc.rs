//! The files that the runtime writes for a container: /etc/hosts, /etc/resolv.conf, /etc/hostname.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::spec::{NetMode, Spec};
use crate::state::{AttachState, Container};

/// The container's files, in its lasting directory, and where they go. It may write to them, as much as there is room: the run
/// directory, which is in memory, is not for that.
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

/// Makes the files, empty; gives each with its place in the container.
pub fn make(container: &Container) -> Result<Vec<(PathBuf, &'static str)>> {
    let dir = container.dir();
    let make = |(name, place)| {
        let path = dir.join(name);
        File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok((path, place))
    };
    FILES.into_iter().map(make).collect()
}

/// Writes the files that [`make`] made, each the same file as before: the container may have mounted it already.
pub fn write(container: &Container, hostname: &str) -> Result<()> {
    let dir = container.dir();
    let host = |file: &str| base::file::read_text(Path::new(file)).unwrap_or_default();
    let texts = match &container.spec.network {
        NetMode::Container(id) => {
            let other = container.paths.container(id);
            // That container may have written to them.
            FILES.map(|(name, _)| base::file::read_text(&other.join(name)).unwrap_or_default())
        }
        mode => {
            let is_host = *mode == NetMode::Host;
            let hosts = match is_host {
                true => format!("{}{}", host("/etc/hosts"), extra_hosts(&container.spec)),
                false => hosts(&container.spec, hostname, &addresses(&container.state.attachments)),
            };
            let resolv = match is_host {
                true => host("/etc/resolv.conf"),
                false => uplink(host("/etc/resolv.conf"), || host(UPLINK)),
            };
            let resolv = resolv_conf(&container.spec, &container.state.attachments, &resolv, is_host);
            [hosts, resolv, format!("{hostname}\n")]
        }
    };
    for ((name, _), text) in FILES.into_iter().zip(texts) {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Where systemd-resolved has the servers that it asks itself (systemd-resolved.service(8)).
const UPLINK: &str = "/run/systemd/resolve/resolv.conf";
/// The addresses at which systemd-resolved answers on the host's loopback.
const STUBS: [&str; 2] = ["127.0.0.53", "127.0.0.54"];

/// The host's resolver configuration, or that of systemd-resolved's own servers where the host asks that and nothing else:
/// a container does not reach the host's loopback.
fn uplink(host: String, of_resolved: impl Fn() -> String) -> String {
    let mut servers = values(&host, "nameserver").into_iter().peekable();
    if servers.peek().is_none() || !servers.all(|server| STUBS.contains(&server.as_str())) {
        return host;
    }
    let resolved = of_resolved();
    if values(&resolved, "nameserver").is_empty() { host } else { resolved }
}

/// The words behind a key of a resolver configuration (resolv.conf(5)).
fn values(text: &str, key: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix([' ', '\t']));
    lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
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
/// left out, since a container with its own network does not reach them, and so are those with a zone (fe80::1%eth0), which
/// names a link of the host.
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
    let of_host = |key: &str| values(host, key);
    let first = |choices: [Vec<String>; 3]| choices.into_iter().find(|c| !c.is_empty()).unwrap_or_default();
    let reachable = |server: &String| {
        is_host || (!server.contains('%') && server.parse().is_ok_and(|ip: IpAddr| !is_loopback(ip)))
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

/// Whether an address is the host's own loopback, also in the form of IPv6.
fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback() || ip.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stub_resolver_is_replaced_by_its_own_servers() {
        let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n";
        let own = "nameserver 192.0.2.7\nnameserver fe80::1%eth0\nsearch lan\n";
        let used = |host: &str, own: &str| uplink(host.to_owned(), || own.to_owned());
        assert_eq!(used(stub, own), own);
        assert_eq!(used(stub, ""), stub);
        for other in ["nameserver 127.0.0.1\n", "nameserver 192.0.2.1\nnameserver 127.0.0.53\n", ""] {
            assert_eq!(used(other, own), other);
        }
        let text = resolv_conf(&Spec::default(), &[], own, false);
        assert_eq!(text, "nameserver 192.0.2.7\nsearch lan\n", "a zone names a link of the host");
        assert!(resolv_conf(&Spec::default(), &[], own, true).contains("fe80::1%eth0"));
    }

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
