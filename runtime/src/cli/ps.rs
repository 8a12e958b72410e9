//! `ps`.

use super::args::PsArgs;
use super::text::{Filters, joined};
use crate::format::{self, Row, age};
use crate::network::Endpoint;
use crate::paths::Paths;
use crate::ports::form;
use crate::spec::{NetMode, PortMapping, Protocol};
use crate::state::{Container, Status};
use anyhow::Result;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const COLUMNS: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("Command", "COMMAND"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
];
const FILTERS: &[&str] = &["id", "name", "status", "network", "label", "exited"];
/// Characters of a command that the table shows.
const SHORT_COMMAND: usize = 20;

/// `ps`.
///
/// # Errors
/// A filter or template that is not understood; state that cannot be read.
pub fn ps(paths: &Paths, args: &PsArgs) -> Result<()> {
    let filters = Filters::parse(&args.filter, FILTERS)?;
    // As with Docker, to ask for a status is to ask for those that do not run too.
    let all = args.all || filters.has("status") || filters.has("exited");
    let mut containers = Container::all(paths)?;
    containers.retain(|each| (all || each.state.status == Status::Running) && passes(each, &filters));
    if args.quiet {
        let ids: String =
            containers.iter().map(|each| format::short(each.id(), args.no_trunc) + "\n").collect();
        return Ok(format::print(&ids)?);
    }
    let rows: Vec<Row> = containers.iter().map(|each| row(each, args.no_trunc)).collect();
    Ok(format::print(&format::listing(COLUMNS, &rows, args.format.as_deref())?)?)
}

fn passes(container: &Container, filters: &Filters) -> bool {
    let (spec, state) = (&container.spec, &container.state);
    filters.pass("id", |id| spec.id.starts_with(id))
        && filters.pass("name", |name| spec.name.contains(name))
        && filters.pass("status", |status| state.status.as_str() == status)
        && filters.pass("network", |name| networks(container).iter().any(|each| each == name))
        && filters
            .pass("exited", |code| state.status == Status::Exited && code.parse() == Ok(state.exit_code))
        && filters.labels(&spec.labels)
}

/// The networks that a container names; a mode without networks is one by its own name.
pub fn networks(container: &Container) -> Vec<String> {
    match &container.spec.network {
        NetMode::None => vec!["none".into()],
        NetMode::Host => vec!["host".into()],
        NetMode::Container(id) => vec![format!("container:{id}")],
        NetMode::Networks(all) => all.iter().map(|each| each.network.clone()).collect(),
    }
}

fn row(container: &Container, no_trunc: bool) -> Row {
    let (spec, state) = (&container.spec, &container.state);
    let mounts: Vec<&str> = spec.volumes.iter().map(|volume| volume.source.as_str()).collect();
    vec![
        ("ID", format::short(&spec.id, no_trunc)),
        ("Command", command(&spec.command, no_trunc)),
        ("CreatedAt", spec.created.clone()),
        ("RunningFor", format!("{} ago", since(&spec.created))),
        ("State", state.status.as_str().into()),
        ("Status", status(container)),
        ("Ports", published(container)),
        ("Names", spec.name.clone()),
        ("Labels", joined(&spec.labels)),
        ("Networks", networks(container).join(",")),
        ("Mounts", mounts.join(",")),
    ]
}

fn since(time: &str) -> String {
    let span = OffsetDateTime::parse(time, &Rfc3339).map(|time| OffsetDateTime::now_utc() - time);
    age::human(span.ok().and_then(|span| Duration::try_from(span).ok()).unwrap_or_default())
}

fn command(words: &[String], no_trunc: bool) -> String {
    let line = words.join(" ");
    if no_trunc || line.chars().count() <= SHORT_COMMAND {
        return format!("\"{line}\"");
    }
    format!("\"{}…\"", line.chars().take(SHORT_COMMAND - 1).collect::<String>())
}

fn status(container: &Container) -> String {
    let state = &container.state;
    let since = |time: &Option<String>| since(time.as_deref().unwrap_or_default());
    match state.status {
        Status::Created => "Created".into(),
        Status::Running => format!("Up {}", since(&state.started)),
        Status::Exited => format!("Exited ({}) {} ago", state.exit_code, since(&state.finished)),
        Status::Dead => "Dead".into(),
    }
}

/// Where a published port answers, as `0.0.0.0:8080`. The proxy passes IPv6 on to a container that has IPv4 alone, but no SCTP.
pub fn published_at(container: &Container, port: &PortMapping) -> Vec<String> {
    let state = &container.state;
    let has_ipv6 =
        || state.attachments.iter().any(|each| Endpoint::of(each).ips.iter().any(|(net, _)| net.is_ipv6()));
    let answers = state.ports_ipv6 && port.protocol != Protocol::Sctp;
    form::shown(port, answers || has_ipv6())
}

/// Ports as the table shows them: `0.0.0.0:8080->80/tcp`.
fn published(container: &Container) -> String {
    if container.state.status != Status::Running {
        return String::new();
    }
    let one = |mapping: &PortMapping| {
        let to = format!("{}/{}", mapping.container_port, mapping.protocol);
        published_at(container, mapping).into_iter().map(move |host| format!("{host}->{to}"))
    };
    container.state.ports.iter().flat_map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_quoted_and_cut() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(command(&words("sleep 10"), false), "\"sleep 10\"");
        assert_eq!(command(&words("python3 -m http.server 80"), false), "\"python3 -m http.ser…\"");
        assert_eq!(command(&words("python3 -m http.server 80"), true), "\"python3 -m http.server 80\"");
    }
}
