//! bridge: the container's interface is one end of a veth pair whose other end is a port of a bridge of the host.

mod add;
mod check;
mod conf;
mod link;
mod lock;
mod result;
mod sources;
mod vlan;

use crate::attach;
use crate::errors::{Coded, Failures};
use crate::firewall::{self, owner};
use crate::ipam_client::{self, Ipam};
use crate::netns;
use crate::rules;
use cni::Error;
use cni::plugin::Plugin;
use cni::request::Request;
use cni::types::AddResult;
use conf::Conf;
pub use lock::BridgeLock;
use net::firewall::nft::{Kind, Nftables};
use net::firewall::{Firewall, What};
use net::names::ALIAS_PREFIX;
use net::{Netlink, Netns, Owner, dead, dead::Caller};

/// The plugin.
pub struct Bridge;

impl Plugin for Bridge {
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn about(&self) -> String {
        crate::about("bridge")
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        add::add(request)
    }

    /// Every step is taken, whatever becomes of the others, and none needs what ADD returned.
    fn del(&self, request: &Request) -> Result<(), Error> {
        let mut failures = Failures::default();
        let host = failures.value(Netlink::open().coded());
        host.iter().for_each(rules::identify);
        rules::forget(request, &[Kind::Link, Kind::Watch]);
        let owner = owner(request);
        let netns = netns::open_for_del(request);
        let detached = host.and_then(|mut host| failures.value(detach(&mut host, &owner, netns.as_ref())));
        failures.note(ipam_client::del(request));
        let conf = Conf::of(request)
            .inspect_err(|error| {
                eprintln!("bridge: DEL goes on without reading the whole configuration: {error}");
            })
            .ok();
        let backend = conf.and_then(|conf| conf.masquerade);
        failures.note(firewall::forget_reference(request, What::Masquerade));
        let firewalls = firewall::unmasquerade_all(request, backend, &mut failures);
        let watch = failures.value(unwatch(&owner));
        let opened = firewalls.iter().map(AsRef::as_ref);
        let opened = opened.chain(watch.iter().flatten().map(|nft| nft as &dyn Firewall));
        failures.note(firewall::finish(opened, detached.unwrap_or(Caller::Unknown)));
        failures.outcome()
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        check::check(request)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        gc(request)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        let unusable = |error: Error| Error { code: cni::code::NOT_AVAILABLE, ..error };
        link::inspect(&mut Netlink::open().coded()?, &conf).map_err(unusable)?;
        if let Some(backend) = conf.masquerade {
            backend.open().map_err(unusable)?;
        }
        Ipam::of(request)?.status(request)
    }
}

/// Takes the container's link out of service.
fn detach(host: &mut Netlink, owner: &Owner, netns: Option<&Netns>) -> Result<Caller, Error> {
    if dead::detach(host, &owner.host_veth(), &owner.alias(), netns, &owner.ifname).coded()? {
        return Ok(Caller::ChangesLinks);
    }
    // The reference plugins give the host's end a random name. What they made is found from its other end.
    let Some(netns) = netns else { return Ok(Caller::Unknown) };
    let mut container = Netlink::open_in(netns).coded()?;
    match container.link(&owner.ifname).coded()? {
        Some(link) if link.kind.as_deref() == Some("veth") => {
            // An interface of another attachment, as after an ADD that failed because of it, stays.
            let far = link.peer_index.map(|index| host.link_at(index)).transpose().coded()?.flatten();
            let far = far.filter(|far| far.peer_index == Some(link.index));
            let labelled =
                |far: &net::Link| far.alias.as_deref().is_some_and(|a| a.starts_with(ALIAS_PREFIX));
            if !far.as_ref().is_some_and(labelled) {
                container.delete(link.index).coded()?;
            }
            Ok(Caller::Unknown)
        }
        _ => Ok(Caller::Unknown),
    }
}

/// Removes what stale attachments of the network left: links, addresses, masquerading; and with no valid attachment at
/// all the bridge that Weft made, when nobody else has a port in it.
fn gc(request: &Request) -> Result<(), Error> {
    // Labels say what is stale, so a configuration that cannot be read is an error only afterwards.
    let conf = Conf::of(request);
    let mut failures = Failures::default();
    let mut host = Netlink::open().coded()?;
    if let Some(links) = failures.value(host.links().coded()) {
        attach::sweep(&mut host, &links, request, &mut failures);
    }
    failures.note(dead::reap(&mut host).coded());
    failures.note(ipam_client::gc(request));
    let backend = conf.as_ref().ok().and_then(|conf| conf.masquerade);
    failures.note(firewall::gc(request, backend, What::Masquerade));
    failures.note(sweep_watches(request));
    let Some(conf) = failures.value(conf) else { return failures.outcome() };
    if request.conf.valid_attachments.as_ref().is_some_and(Vec::is_empty) {
        let removed = failures.value(link::remove_if_unused(&mut host, &conf, firewall::LOCK_TIME));
        if removed == Some(true) {
            eprintln!("network {}: bridge {} removed, nobody uses it", request.conf.name, conf.bridge);
            if conf.same_bridge {
                let unguarded = Nftables::open().and_then(|mut nft| nft.unguard(&conf.bridge)).coded();
                failures.note(unguarded);
            }
        }
        if let Ok(mut nft) = Nftables::open() {
            failures.note(firewall::tidy(&mut nft));
        }
    }
    failures.outcome()
}

/// No longer looks at the container's frames. The firewall is returned for [`firewall::finish`]; a kernel without one never
/// looked.
fn unwatch(owner: &Owner) -> Result<Option<Nftables>, Error> {
    match Nftables::open().and_then(|mut nft| nft.unwatch(owner).map(|()| nft)) {
        Err(net::Error::Unsupported(_)) => Ok(None),
        unwatched => unwatched.coded().map(Some),
    }
}

fn sweep_watches(request: &Request) -> Result<(), Error> {
    let mut nft = match Nftables::open() {
        Err(net::Error::Unsupported(_)) => return Ok(()),
        opened => opened.coded()?,
    };
    let removed = firewall::supported(nft.gc_watched(&request.conf.name, &firewall::valid(request)))?;
    if removed > 0 {
        eprintln!("network {}: {removed} stale entries removed from table bridge weft", request.conf.name);
    }
    firewall::tidy(&mut nft)
}
