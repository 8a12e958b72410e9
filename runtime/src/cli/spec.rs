//! From the flags of `run` and `create` to a container's spec.

use super::args::CreateArgs;
use super::{signal, text};
use crate::network::{self, Network, options::DEFAULT_PREFIX};
use crate::paths::Paths;
use crate::ports;
use crate::spec::{NetAttach, NetMode, Rootfs, Spec, Volume};
use crate::state::Container;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The longest host name (Linux: __NEW_UTS_LEN).
const LONGEST_HOSTNAME: usize = 64;

/// Builds the spec. The default network is made when it is needed and there is none.
///
/// # Errors
/// Anything that cannot be: names the flag, the value and what is allowed.
pub fn build(paths: &Paths, args: &CreateArgs, detach: bool) -> Result<Spec> {
    let command: Vec<String> =
        args.entrypoint.iter().filter(|it| !it.is_empty()).chain(&args.command).cloned().collect();
    if command.is_empty() {
        bail!("the command is missing: a container without an image has none of its own");
    }
    if let Some(name) = &args.name {
        text::check_name(name)?;
    }
    if let Some(hostname) = &args.hostname {
        check_hostname(hostname)?;
    }
    if let Some(workdir) = args.workdir.as_ref().filter(|dir| !dir.starts_with('/')) {
        bail!("--workdir {workdir:?}: allowed is an absolute path");
    }
    // Before the default network is made.
    args.publish.iter().try_for_each(|publish| ports::form::parse(publish).map(drop))?;
    let (network, networks) = network_of(paths, args)?;
    let default_ip = networks.iter().find_map(|network| network.options().host_binding);
    let mut ports = ports::form::mappings(&args.publish, default_ip)?;
    match &network {
        NetMode::Container(_) if !ports.is_empty() => {
            bail!(
                "--publish: ports are published where the namespace is made, not with --network container:…"
            )
        }
        NetMode::Host | NetMode::None if !ports.is_empty() => {
            eprintln!(
                "runtime: warning: published ports are discarded: the container has no network of its own"
            );
            ports.clear();
        }
        NetMode::Networks(_)
            if !ports.is_empty() && !networks.iter().any(|each| each.takes("portMappings")) =>
        {
            let names = networks.iter().map(Network::name).collect::<Vec<_>>().join(", ");
            bail!("--publish: network {names} publishes no ports (it is internal, or has no plugin for it)")
        }
        _ => {}
    }
    Ok(Spec {
        name: args.name.clone().unwrap_or_default(),
        hostname: args.hostname.clone().unwrap_or_default(),
        command,
        env: text::variables(&args.env_file, &args.env)?,
        workdir: args.workdir.clone().unwrap_or_default(),
        user: args.user.clone(),
        tty: args.tty,
        stdin_open: args.interactive,
        auto_remove: args.rm,
        detach,
        rootfs: args.rootfs.as_deref().map_or(Ok(Rootfs::Host), rootfs)?,
        shows_host_secrets: args.show_host_secrets,
        volumes: args.volume.iter().map(|text| volume(text)).collect::<Result<_>>()?,
        labels: text::pairs("--label", &args.label)?,
        network,
        ports,
        stop_signal: Some(signal::parse("--stop-signal", &args.stop_signal)?),
        stop_timeout: args.stop_timeout,
        extra_hosts: args.add_host.iter().map(|text| extra_host(text, &networks)).collect::<Result<_>>()?,
        dns: args.dns.clone(),
        dns_search: args.dns_search.clone(),
        dns_options: args.dns_option.clone(),
        ..Spec::default()
    })
}

fn check_hostname(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.is_empty()
        || name.len() > LONGEST_HOSTNAME
        || !name.chars().all(good)
        || name.starts_with(['-', '.'])
    {
        bail!("--hostname {name:?}: allowed are 1 to {LONGEST_HOSTNAME} letters, digits, '-', '.' and '_'");
    }
    Ok(())
}

/// The mode, and the networks that it names.
fn network_of(paths: &Paths, args: &CreateArgs) -> Result<(NetMode, Vec<Network>)> {
    let named: Vec<&str> = match args.network.as_slice() {
        [] => vec![network::DEFAULT],
        all => all.iter().map(|name| if name == "default" { network::DEFAULT } else { name }).collect(),
    };
    let alone = |name: &&str| matches!(*name, "host" | "none") || name.starts_with("container:");
    if named.len() > 1
        && let Some(name) = named.iter().find(|name| alone(name))
    {
        bail!("--network {name}: it cannot be joined with other networks");
    }
    let mac = args.mac_address.as_deref().map(text::mac).transpose()?;
    if alone(&named[0]) {
        let flags =
            [("--ip", args.ip.is_some()), ("--ip6", args.ip6.is_some()), ("--mac-address", mac.is_some())];
        if let Some((flag, _)) = flags.iter().find(|(_, given)| *given) {
            bail!("{flag}: a container with --network {} has no interface of its own", named[0]);
        }
    }
    match named[0] {
        "host" => return Ok((NetMode::Host, Vec::new())),
        "none" => return Ok((NetMode::None, Vec::new())),
        other => {
            if let Some(target) = other.strip_prefix("container:") {
                if args.hostname.is_some() {
                    bail!("--hostname: the name is that of the container that is joined");
                }
                let files = [
                    ("--add-host", !args.add_host.is_empty()),
                    ("--dns", !args.dns.is_empty()),
                    ("--dns-search", !args.dns_search.is_empty()),
                    ("--dns-option", !args.dns_option.is_empty()),
                ];
                if let Some((flag, _)) = files.iter().find(|(_, given)| *given) {
                    bail!(
                        "{flag}: /etc/hosts and /etc/resolv.conf are those of the container that is joined; give it \
                         {flag}"
                    );
                }
                let target = Container::load(paths, target)?;
                return Ok((NetMode::Container(target.spec.id), Vec::new()));
            }
        }
    }
    let mut networks: Vec<Network> = Vec::with_capacity(named.len());
    for name in named {
        let network = match network::lookup(paths, name)? {
            Some(network) => network,
            None if name == network::DEFAULT => network::ensure_default(paths)?,
            None => bail!("network {name} not found in {}", paths.config_dir.display()),
        };
        if networks.iter().any(|other| other.name() == network.name()) {
            bail!("--network {name} is given twice");
        }
        networks.push(network);
    }
    let mut attaches = Vec::with_capacity(networks.len());
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    for (at, network) in networks.iter().enumerate() {
        let prefix = network.options().prefix.unwrap_or_else(|| DEFAULT_PREFIX.into());
        let number = numbers.entry(prefix.clone()).or_default();
        let first = at == 0;
        attaches.push(NetAttach {
            network: network.name().to_owned(),
            ifname: format!("{prefix}{number}"),
            ip: args.ip.filter(|_| first),
            ip6: args.ip6.filter(|_| first),
            mac: mac.clone().filter(|_| first),
            aliases: Vec::new(),
        });
        *number += 1;
    }
    // What the networks cannot give is an error now, not when the container starts.
    network::check(&networks, &attaches)?;
    Ok((NetMode::Networks(attaches), networks))
}

fn rootfs(path: &Path) -> Result<Rootfs> {
    let named = || format!("--rootfs {}", path.display());
    let path = path.canonicalize().with_context(named)?;
    let kind = path.metadata().with_context(named)?;
    if kind.is_dir() {
        Ok(Rootfs::Dir(path))
    } else if kind.is_file() {
        Ok(Rootfs::Tar(path))
    } else {
        bail!("--rootfs {}: allowed is a directory or a tar archive", path.display())
    }
}

/// `SOURCE:TARGET[:ro|rw]`: a source with a `/` is a path, relative to here, any other the name of a volume.
fn volume(text: &str) -> Result<Volume> {
    const ALLOWED: &str = "SOURCE:TARGET[:ro|rw], SOURCE a path or a volume's name, TARGET an absolute path";
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, read_only) = match parts.as_slice() {
        [source, target] | [source, target, "rw"] => (*source, *target, false),
        [source, target, "ro"] => (*source, *target, true),
        _ => bail!("--volume {text:?}: allowed is {ALLOWED}"),
    };
    let target = PathBuf::from(target);
    if source.is_empty() || !target.is_absolute() || target == Path::new("/") {
        bail!("--volume {text:?}: allowed is {ALLOWED}");
    }
    let source = if source.contains('/') || source.starts_with('.') {
        let path = text::absolute(Path::new(source))?;
        path.to_str().with_context(|| format!("--volume {text:?}: the path is not UTF-8"))?.to_owned()
    } else {
        text::check_name(source).with_context(|| format!("--volume {text:?}: the volume's name"))?;
        source.to_owned()
    };
    Ok(Volume { source, target, read_only })
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`; `host-gateway` is the first network's gateway.
fn extra_host(text: &str, networks: &[Network]) -> Result<String> {
    let (name, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .filter(|(name, _)| !name.is_empty() && !name.contains(char::is_whitespace))
        .with_context(|| format!("--add-host {text:?}: allowed is NAME:ADDRESS"))?;
    if address == "host-gateway" {
        let metas = networks.iter().filter_map(|network| network.meta.as_ref());
        let gateway = metas.flat_map(|meta| &meta.subnets).map(|subnet| subnet.gateway).next();
        let gateway =
            gateway.with_context(|| format!("--add-host {text:?}: no network of it has a known gateway"))?;
        return Ok(format!("{name}:{gateway}"));
    }
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    let address: IpAddr = bare
        .parse()
        .ok()
        .with_context(|| format!("--add-host {text:?}: {bare:?} is no IP address, nor host-gateway"))?;
    Ok(format!("{name}:{address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_paths_or_names() {
        let read = |text| volume(text).unwrap();
        assert_eq!(read("/a:/b").source, "/a");
        assert!(read("/a:/b:ro").read_only);
        assert_eq!(read("data:/b").source, "data");
        assert!(read("./x:/b").source.starts_with('/'));
        for text in ["/a", "/a:b", "/a:/b:z", ":/b", "/a:/", "a b:/c", "/a:/b:ro:x"] {
            assert!(volume(text).unwrap_err().to_string().contains("--volume"), "{text}");
        }
    }

    #[test]
    fn more_hosts_have_names_and_addresses() {
        assert_eq!(extra_host("db:10.0.0.1", &[]).unwrap(), "db:10.0.0.1");
        assert_eq!(extra_host("db=[fd00::1]", &[]).unwrap(), "db:fd00::1");
        assert_eq!(extra_host("db:fd00::1", &[]).unwrap(), "db:fd00::1");
        for text in ["db", ":10.0.0.1", "db:x", "db:host-gateway"] {
            assert!(extra_host(text, &[]).unwrap_err().to_string().contains(text), "{text}");
        }
    }

    #[test]
    fn host_names_fit_the_kernel() {
        assert!(check_hostname("web-1.example").is_ok());
        for name in ["", "-a", "a b", &"a".repeat(65)] {
            assert!(check_hostname(name).is_err(), "{name}");
        }
    }
}
