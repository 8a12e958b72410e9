//! `network create|ls|inspect|rm|prune`.

use super::args::{NetworkCommand, NetworkCreateArgs, NetworkLsArgs};
use super::each;
use super::text::{Filters, joined, pairs};
use crate::format::{self, Row};
use crate::network::{self, Network, Request};
use crate::paths::Paths;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::net::IpAddr;
use std::process::ExitCode;

const COLUMNS: &[(&str, &str)] =
    &[("ID", "NETWORK ID"), ("Name", "NAME"), ("Driver", "DRIVER"), ("Scope", "SCOPE")];

/// Does a network command.
///
/// # Errors
/// What befalls it.
pub fn network(paths: &Paths, command: NetworkCommand) -> Result<ExitCode> {
    match command {
        NetworkCommand::Create(args) => create(paths, *args).map(|()| ExitCode::SUCCESS),
        NetworkCommand::Ls(args) => ls(paths, &args).map(|()| ExitCode::SUCCESS),
        NetworkCommand::Inspect { format, networks } => inspect(paths, &networks, format.as_deref()),
        NetworkCommand::Rm { force, networks } => each_removed(paths, &networks, force),
        NetworkCommand::Prune { force, filter } => prune(paths, force, &filter).map(|()| ExitCode::SUCCESS),
    }
}

fn create(paths: &Paths, args: NetworkCreateArgs) -> Result<()> {
    let request = Request {
        driver: args.driver,
        subnets: args.subnet,
        gateways: args.gateway,
        ip_ranges: args.ip_range,
        aux_addresses: args.aux_address.iter().map(|text| aux_address(text)).collect::<Result<_>>()?,
        ipv6: args.ipv6,
        internal: args.internal,
        labels: pairs("--label", &args.label)?,
        options: pairs("--opt", &args.opt)?,
        name: args.name,
    };
    let made = network::create(paths, &request)?;
    Ok(format::print(&format!("{}\n", made.id()))?)
}

fn aux_address(text: &str) -> Result<(String, IpAddr)> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.and_then(|(name, ip)| Some((name.to_owned(), ip.parse().ok()?)))
        .with_context(|| format!("--aux-address {text:?}: allowed is NAME=ADDRESS"))
}

fn labels(network: &Network) -> BTreeMap<String, String> {
    network.meta.as_ref().map(|meta| meta.labels.clone()).unwrap_or_default()
}

fn ls(paths: &Paths, args: &NetworkLsArgs) -> Result<()> {
    let filters = Filters::parse(&args.filter, &["id", "name", "driver", "scope", "label"])?;
    let mut networks = network::current(paths);
    networks.retain(|each| {
        filters.pass("id", |id| each.id().starts_with(id))
            && filters.pass("name", |name| each.name().contains(name))
            && filters.pass("driver", |driver| each.driver() == driver)
            && filters.pass("scope", |scope| each.scope() == scope)
            && filters.labels(&labels(each))
    });
    if args.quiet {
        let ids: String =
            networks.iter().map(|each| format::short(each.id(), args.no_trunc) + "\n").collect();
        return Ok(format::print(&ids)?);
    }
    let rows: Vec<Row> = networks.iter().map(|each| row(each, args.no_trunc)).collect();
    Ok(format::print(&format::listing(COLUMNS, &rows, args.format.as_deref())?)?)
}

fn row(network: &Network, no_trunc: bool) -> Row {
    let subnets = network.subnets();
    let created = network.meta.as_ref().map(|meta| meta.created.clone()).unwrap_or_default();
    vec![
        ("CreatedAt", created),
        ("Driver", network.driver().into()),
        ("ID", format::short(network.id(), no_trunc)),
        ("IPv4", subnets.iter().any(|subnet| subnet.is_ipv4()).to_string()),
        ("IPv6", subnets.iter().any(|subnet| subnet.is_ipv6()).to_string()),
        ("Internal", network.internal().to_string()),
        ("Labels", joined(&labels(network))),
        ("Name", network.name().into()),
        ("Scope", network.scope().into()),
    ]
}

fn inspect(paths: &Paths, names: &[String], format: Option<&str>) -> Result<ExitCode> {
    let mut found = Vec::new();
    let mut failed = false;
    for name in names {
        match network::find(paths, name).and_then(|one| network::inspect(paths, &one)) {
            Ok(value) => found.push(value),
            Err(error) => {
                eprintln!("runtime: {error:#}");
                failed = true;
            }
        }
    }
    format::print(&format::inspection(&found, format)?)?;
    Ok(ExitCode::from(u8::from(failed)))
}

fn each_removed(paths: &Paths, names: &[String], force: bool) -> Result<ExitCode> {
    let mut names = names.to_vec();
    if force {
        names.retain(|name| !matches!(network::lookup(paths, name), Ok(None)));
    }
    each(&names, |name| network::remove(paths, name, force).map(|_| name.to_owned()))
}

fn prune(paths: &Paths, force: bool, filter: &[String]) -> Result<()> {
    let filters = Filters::parse(filter, &["label"])?;
    if !force {
        let mut out = io::stdout().lock();
        writeln!(out, "WARNING! This will remove all networks that no container names.")?;
        write!(out, "Are you sure you want to continue? [y/N] ")?;
        out.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            bail!("nothing is removed: not confirmed (--force does not ask)");
        }
    }
    let mut removed: Vec<String> = Vec::new();
    let done = network::prune(
        paths,
        |each| filters.labels(&labels(each)),
        |each| {
            removed.push(each.name().to_owned());
        },
    );
    if !removed.is_empty() {
        format::print(&format!("Deleted Networks:\n{}\n", removed.join("\n")))?;
    }
    done
}
