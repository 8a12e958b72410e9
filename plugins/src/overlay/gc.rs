//! GC: what stale attachments of the network left goes: links, masquerading, addresses, notes.

use super::conf::Conf;
use super::{give_back, in_service, notes};
use crate::attach;
use crate::errors::{Coded, Failures};
use crate::firewall;
use cni::Error;
use cni::request::Request;
use net::firewall::What;
use net::names::clip_network;
use net::{DEAD_GROUP, Link, Netlink, Owner, dead};
use ovl_api::names::vni_of_group;
use ovl_api::wire::{Detach, Gc};

/// Serves a GC.
pub fn gc(request: &Request) -> Result<(), Error> {
    // Labels say what is stale in the kernel, so a configuration that cannot be read is an error only afterwards. The agent is
    // asked for what is said of one network, which only the configuration names.
    let conf = Conf::of(request);
    let mut failures = Failures::default();
    let mut host = Netlink::open().coded()?;
    let links = failures.value(host.links().coded()).unwrap_or_default();
    let swept = attach::sweep(&mut host, &links, request, &mut failures);
    failures.note(dead::reap(&mut host).coded());
    let backend = conf.as_ref().ok().filter(|conf| conf.masquerade != Some(false)).map(|conf| conf.backend);
    failures.note(firewall::gc(request, backend, What::Masquerade));
    let Some(conf) = failures.value(conf) else { return failures.outcome() };
    if let Some(kept) = failures.value(in_service(&mut host, &swept)) {
        failures.note(give_back_stale(request, &conf, &links, &swept, &kept));
    }
    failures.note(apply_notes(request, &conf));
    failures.outcome()
}

/// Has the agent end what is not valid. Another configuration may use the same network under its own name, of whose
/// attachments this GC's list says nothing: they are spared where they have a link, and where only such a configuration asks,
/// nothing ends but what had a link of its own. What has its link yet, for it could not be removed (`kept`), is spared too.
fn give_back_stale(
    request: &Request,
    conf: &Conf,
    links: &[Link],
    swept: &[Owner],
    kept: &[Owner],
) -> Result<(), Error> {
    if conf.network != request.conf.name {
        let mut failures = Failures::default();
        for owner in swept.iter().filter(|owner| !kept.contains(owner)) {
            failures.note(give_back(conf, &detach(conf, owner.clone())));
        }
        return failures.outcome();
    }
    let listed = request.conf.valid_attachments.iter().flatten();
    let mut valid: Vec<_> = listed.map(|each| (each.container_id.clone(), each.ifname.clone())).collect();
    let kept = kept.iter().map(|owner| (owner.container.clone(), owner.ifname.clone()));
    for (container, ifname) in links.iter().filter_map(|link| of_another(request, link)).chain(kept) {
        if container.contains('~') {
            // Clipped, so the agent would not know it by that.
            eprintln!(
                "network {}: nothing is given back while {container} has no name that is known",
                conf.network
            );
            return Ok(());
        }
        valid.push((container, ifname));
    }
    let removed = conf.client().gc(&Gc { network: conf.network.clone(), valid }).coded()?.removed;
    if removed > 0 {
        eprintln!("network {}: addresses of {removed} stale attachments given back", conf.network);
    }
    Ok(())
}

/// The living attachment of another configuration to an overlay network.
fn of_another(request: &Request, link: &Link) -> Option<(String, String)> {
    let owner = link.alias.as_deref().and_then(Owner::parse_alias)?;
    let living = link.group != DEAD_GROUP && vni_of_group(link.group).is_some();
    (living && owner.network != clip_network(&request.conf.name)).then_some((owner.container, owner.ifname))
}

fn detach(conf: &Conf, owner: Owner) -> Detach {
    Detach { network: conf.network.clone(), container: owner.container, ifname: owner.ifname }
}

/// Tells the agent what DELs could not. A note about an attachment that is valid is of an earlier one of the same name.
fn apply_notes(request: &Request, conf: &Conf) -> Result<(), Error> {
    let listed = request.conf.valid_attachments.as_deref().unwrap_or_default();
    let mut failures = Failures::default();
    for note in notes::all(conf)?.into_iter().filter(|note| note.network == conf.network) {
        let valid =
            listed.iter().any(|each| each.container_id == note.container && each.ifname == note.ifname);
        let told = if valid { Ok(()) } else { conf.client().detach(&note).coded() };
        failures.note(told.and_then(|()| notes::forget(conf, &note)));
    }
    failures.outcome()
}
