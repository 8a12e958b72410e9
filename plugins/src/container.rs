//! container: the container joins the network namespace of another one, which must not go away as long as it is there.
//!
//! The other is found by the result that its runtime keeps of its ADD. Who joins is counted; DEL gives the count back and
//! touches nothing else, for all that is in the namespace is the other container's.

use crate::errors::{NO_TARGET, mismatch};
use crate::{netns, place};
use cni::cache::CacheEntry;
use cni::config::ValidAttachment;
use cni::plugin::Plugin;
use cni::request::Request;
use cni::share::Share;
use cni::types::AddResult;
use cni::{Error, code};
use net::Netns;

/// The plugin.
pub struct Container;

fn share() -> Share {
    Share::new(place::root().join("shared")).with_notes(place::run().join("left"))
}

/// Whom to join: the runtime's word goes before the configuration's.
fn target(request: &Request) -> Result<String, Error> {
    let from_runtime = request.conf.capability::<String>("container")?;
    let id = from_runtime.or(request.conf.get("container")?).filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| Error::config("container", "missing", "the ID of the container to join"))?;
    cni::validate::container_id(&id).map_err(|error| Error { code: code::INVALID_CONFIG, ..error })?;
    if id == request.container_id {
        return Err(Error::config(
            "container",
            format!("{id:?}"),
            "another container than the one that joins",
        ));
    }
    Ok(id)
}

/// What runtimes keep of the target, its own interfaces first: it may itself have joined others.
fn entries(id: &str) -> Result<Vec<CacheEntry>, Error> {
    let mut entries = Vec::new();
    for cache in place::caches() {
        entries.extend(cache.find_container(id)?);
    }
    if entries.is_empty() {
        let msg = format!("container {id} is not known: no result of an ADD for it is kept");
        return Err(Error::new(NO_TARGET, msg));
    }
    Ok(entries)
}

/// The target's entries whose namespace is the one that the request names.
fn joined(request: &Request, id: &str) -> Result<Vec<CacheEntry>, Error> {
    let netns = netns::open(request)?;
    let is_this = |entry: &CacheEntry| {
        let theirs = entry.netns.as_ref().and_then(|path| Netns::open(path).ok());
        theirs.is_some_and(|theirs| theirs.same(&netns))
    };
    let mut found = entries(id)?;
    found.retain(is_this);
    if found.is_empty() {
        let path = request.netns.as_deref().unwrap_or("".as_ref()).display();
        let why = format!("{path} is not the network namespace of container {id}");
        return Err(Error::environment(&["CNI_NETNS"], why));
    }
    Ok(found)
}

/// One result of all the target's interfaces.
fn merged(entries: &[CacheEntry]) -> Result<AddResult, Error> {
    let mut all = AddResult::default();
    for entry in entries {
        let Some(result) = entry.result()? else { continue };
        let before = all.interfaces.len();
        all.interfaces.extend(result.interfaces);
        all.ips.extend(result.ips.into_iter().map(|mut ip| {
            ip.interface = ip.interface.map(|at| at + before);
            ip
        }));
        all.routes.extend(result.routes);
        if all.dns.is_empty() {
            all.dns = result.dns;
        }
    }
    Ok(all)
}

impl Plugin for Container {
    fn name(&self) -> &'static str {
        "container"
    }

    fn about(&self) -> String {
        crate::about("container")
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let id = target(request)?;
        let result = merged(&joined(request, &id)?)?;
        result.check_version(request.conf.version)?;
        share().join(&id, &request.container_id, &request.ifname)?;
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        share().leave(&request.container_id, &request.ifname)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let id = target(request)?;
        joined(request, &id)?;
        if share().target(&request.container_id, &request.ifname)?.as_deref() == Some(id.as_str()) {
            return Ok(());
        }
        let (who, ifname) = (&request.container_id, &request.ifname);
        Err(mismatch(format!("container {who} ({ifname}) is not counted as one that joined {id}")))
    }

    /// Counts of containers that are no more are given back. A count does not say by which network it came; one that a
    /// runtime keeps a result of in another network is that one's.
    fn gc(&self, request: &Request) -> Result<(), Error> {
        let mut valid: Vec<ValidAttachment> = request.conf.valid_attachments.clone().unwrap_or_default();
        for cache in place::caches() {
            let mut others = cache.entries()?;
            others.retain(|entry| entry.network != request.conf.name);
            let attachment = |entry: CacheEntry| ValidAttachment {
                container_id: entry.container_id,
                ifname: entry.ifname,
            };
            valid.extend(others.into_iter().map(attachment));
        }
        let share = share();
        for id in share.targets()? {
            for (joiner, ifname) in share.joiners(&id)? {
                if !valid.iter().any(|each| each.container_id == joiner && each.ifname == ifname) {
                    share.leave(&joiner, &ifname)?;
                }
            }
        }
        Ok(())
    }

    fn status(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }
}
