//! overlay: the container is attached to an overlay network, in which containers of many hosts reach each other. The overlay
//! agent of this host gives the addresses and sees to the way between the hosts; the container's own link is made here.
//!
//! It is routed, not bridged: one end of a veth pair is in the container, the other on the host with a route of its own to
//! the container's addresses. Neither end has to ask for the other's hardware address. The agent is needed for ADD and
//! STATUS alone: a DEL that does not find it leaves a note, from which the agent later learns what it may give to others.

mod add;
mod check;
mod conf;
mod gc;
mod notes;
mod plan;

use crate::errors::{Coded, Failures};
use crate::firewall::{self, owner};
use crate::netns;
use crate::rules;
use cni::plugin::Plugin;
use cni::request::Request;
use cni::types::AddResult;
use cni::{Error, code};
use conf::Conf;
use net::dead::Caller;
use net::firewall::nft::Kind;
use net::{DEAD_GROUP, Netlink, Netns, Owner, dead};
use ovl_api::ClientError;
use ovl_api::wire::Detach;

/// The plugin.
pub struct Overlay;

impl Plugin for Overlay {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn about(&self) -> String {
        crate::about("overlay")
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        add::add(request)
    }

    /// Every step is taken, whatever becomes of the others, and none needs what ADD returned. The address is given back
    /// last, and only when the link is gone: nothing leads to the container any more when somebody else gets it. What is
    /// kept for that reason, the next DEL or a GC gives back.
    fn del(&self, request: &Request) -> Result<(), Error> {
        rules::forget(request, &[Kind::Link]);
        let conf = Conf::lenient(request);
        let owner = owner(request);
        let netns = netns::open_for_del(request);
        let mut failures = Failures::default();
        let removed = remove_link(&owner, netns.as_ref());
        let free = removed.is_ok();
        failures.note(removed);
        let backend = conf.masquerades(request.conf.prev_result.as_ref()).then_some(conf.backend);
        let firewalls = firewall::unmasquerade_all(request, backend, &mut failures);
        if free {
            failures.note(give_back(&conf, &detach(&conf, request)));
        }
        failures.note(firewall::finish(firewalls.iter().map(AsRef::as_ref), Caller::Unknown));
        failures.outcome()
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        check::check(request)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        gc::gc(request)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        let unusable = |error: Error| Error { code: code::NOT_AVAILABLE, ..error };
        if conf.masquerade != Some(false) {
            conf.backend.open().map_err(unusable)?;
        }
        conf.client().status(Some(&conf.network)).coded().map(drop).map_err(unusable)
    }
}

/// What the agent is told of an attachment that ends.
fn detach(conf: &Conf, request: &Request) -> Detach {
    Detach {
        network: conf.network.clone(),
        container: request.container_id.clone(),
        ifname: request.ifname.clone(),
    }
}

fn remove_link(owner: &Owner, netns: Option<&Netns>) -> Result<(), Error> {
    let mut host = Netlink::open().coded()?;
    dead::detach(&mut host, &owner.host_veth(), &owner.alias(), netns, &owner.ifname).coded().map(drop)
}

/// The links of these attachments that are still in service: their addresses are not to be given to others.
fn in_service(host: &mut Netlink, owners: &[Owner]) -> Result<Vec<Owner>, Error> {
    let links = host.links().coded()?;
    let living = links.iter().filter(|link| link.group != DEAD_GROUP);
    let living = living.filter_map(|link| link.alias.as_deref().and_then(Owner::parse_alias));
    Ok(living.filter(|owner| owners.contains(owner)).collect())
}

/// Undoes what the agent granted to an ADD that failed, unless the link could not be undone.
fn undo_grant(conf: &Conf, owner: &Owner, detach: &Detach) -> Result<(), Error> {
    let link = Netlink::open().and_then(|mut host| host.link(&owner.host_veth())).coded()?;
    if link.is_some_and(|link| link.alias.as_deref() == Some(&owner.alias())) {
        let message = "the link is still there, and keeps its addresses until a DEL removes it";
        return Err(Error::new(code::IO, message));
    }
    give_back(conf, detach)
}

/// Gives an attachment's addresses back: by the agent, or by a note for it when it is not there or in trouble. An agent that
/// has started meanwhile may have read the notes before this one was there, so it is asked again.
fn give_back(conf: &Conf, detach: &Detach) -> Result<(), Error> {
    let Err(error) = conf.client().detach(detach) else { return notes::forget(conf, detach) };
    notes::leave(conf, detach)?;
    let is_stuck = matches!(error, ClientError::TimedOut { .. });
    if !is_stuck && conf.client().detach(detach).is_ok() {
        return notes::forget(conf, detach);
    }
    eprintln!("overlay: the addresses are given back later, by a note for the agent: {error}");
    Ok(())
}
