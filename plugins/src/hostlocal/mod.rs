//! host-local: an IPAM plugin that gives out addresses of ranges, one host's own, and keeps account of them.
//!
//! The plugins of Weft call its functions in process; as an executable it serves every other plugin.

mod conf;
mod leases;
mod pending;
mod resolv;
mod stores;

pub use conf::{Conf, Dirs};

use crate::errors::{Coded, Failures, mismatch};
use crate::ipam_client::Given;
use cni::config::ValidAttachment;
use cni::plugin::Plugin;
use cni::request::Request;
use cni::types::{AddResult, IpConfig};
use cni::{Error, code};
use ipam::{Ask, Attachment, Store};
use ipnetwork::IpNetwork;
use std::path::Path;

/// The plugin.
pub struct HostLocal;

fn attachment(request: &Request) -> Attachment {
    Attachment::new(&*request.container_id, &*request.ifname)
}

/// Gives an address of every range set, and the result that says so.
pub fn add(request: &Request, conf: &Conf) -> Result<Given, Error> {
    let dirs = Dirs::of(request)?;
    stores::remember(&dirs);
    pending::apply();
    let store = leases::open(&request.conf.name, &dirs)?;
    let netns = request.netns.as_ref().map(|path| path.to_string_lossy().into_owned());
    let attachment = attachment(request);
    let ask = Ask {
        network: &request.conf.name,
        attachment: &attachment,
        sets: &conf.sets,
        requested: &conf.requested,
        reserved: &conf.reserved,
        netns: netns.as_deref(),
    };
    let given = store.allocate(&ask, &leases::may_live).coded()?;
    store.keep_open();
    let is_new = given.iter().all(|each| each.is_new);
    let mut result = AddResult { routes: conf.routes.clone(), dns: conf.dns.clone(), ..AddResult::default() };
    for each in given {
        let address = IpNetwork::new(each.address, each.prefix)
            .map_err(|error| Error::new(code::PLUGIN, error.to_string()))?;
        result.ips.push(IpConfig { interface: None, address, gateway: Some(each.gateway) });
    }
    Ok(Given { result, is_new })
}

/// Releases the attachment's addresses: in the store that the configuration names, if it is one of host-local, and in all
/// others.
pub fn del(request: &Request) -> Result<(), Error> {
    let mut failures = Failures::default();
    let dirs = configured(request).unwrap_or_else(|error| {
        eprintln!("host-local: DEL goes on with the stores that are known: {error}");
        None
    });
    let (network, attachment) = (&*request.conf.name, attachment(request));
    pending::apply();
    if let Some(dirs) = &dirs {
        let released = leases::open_existing(network, dirs)
            .and_then(|store| store.map_or(Ok(()), |store| leases::release(&store, network, &attachment)));
        failures.note(pending::unless_noted(network, &attachment, &dirs.store, released));
    }
    for other in stores::others(dirs.as_ref()) {
        let released = leases::open_other(&other)
            .and_then(|store| store.map_or(Ok(()), |store| leases::release(&store, network, &attachment)));
        if let Err(error) = pending::unless_noted(network, &attachment, &other, released) {
            // The configuration does not need this store.
            eprintln!("host-local: DEL goes on without the store {}: {error}", other.display());
        }
    }
    failures.outcome()
}

/// Where the configuration says that the leases are; nowhere when its IPAM is not host-local.
fn configured(request: &Request) -> Result<Option<Dirs>, Error> {
    let is_ours = request.conf.ipam_kind() == Some("host-local");
    is_ours.then(|| Dirs::of(request)).transpose()
}

/// Whether the attachment holds the addresses of `prevResult` that are of its ranges, and holds any.
pub fn check(request: &Request, conf: &Conf) -> Result<(), Error> {
    let held = match leases::open_existing(&request.conf.name, &Dirs::of(request)?)? {
        Some(store) => store.find(&request.conf.name, &attachment(request)).coded()?,
        None => Vec::new(),
    };
    if held.is_empty() {
        let who = attachment(request);
        return Err(mismatch(format!("network {}: {who} holds no address", request.conf.name)));
    }
    for ip in request.conf.prev_result.iter().flat_map(|result| &result.ips) {
        let address = ip.address.ip();
        let ours = conf.sets.iter().any(|set| set.contains(address));
        // Another interface of the same chain may have an address of the same ranges.
        let about_us = ip.interface.is_none_or(|at| {
            let interfaces = request.conf.prev_result.iter().flat_map(|result| &result.interfaces);
            interfaces.clone().nth(at).is_none_or(|interface| interface.name == request.ifname)
        });
        if ours && about_us && !held.iter().any(|lease| lease.address == address) {
            let who = attachment(request);
            return Err(mismatch(format!("network {}: {who} does not hold {address}", request.conf.name)));
        }
    }
    Ok(())
}

/// Releases what belongs to no valid attachment, in every store; with none valid, the network is forgotten altogether.
pub fn gc(request: &Request) -> Result<(), Error> {
    let network = &request.conf.name;
    let mut failures = Failures::default();
    pending::apply();
    let dirs = failures.value(configured(request)).flatten();
    if let Some(dirs) = &dirs {
        let store = failures.value(leases::open_existing(network, dirs)).flatten();
        sweep(request, store, &dirs.store, &mut failures);
        if request.conf.valid_attachments.as_ref().is_some_and(Vec::is_empty) {
            // The reference's directory of the network goes too, if nothing is left in it.
            let _ = std::fs::remove_dir(&dirs.reference);
        }
    }
    for other in stores::others(dirs.as_ref()) {
        let store = failures.value(leases::open_other(&other)).flatten();
        sweep(request, store, &other, &mut failures);
    }
    failures.outcome()
}

/// Releases what is stale of the network in one store, and removes that when it is empty and the network has no attachment.
fn sweep(request: &Request, store: Option<Store>, place: &Path, failures: &mut Failures) {
    let valid: &[ValidAttachment] = request.conf.valid_attachments.as_deref().unwrap_or_default();
    let network = &request.conf.name;
    let keep = |held: &Attachment| {
        let same_name = |ifname: &str| held.ifname.is_empty() || held.ifname == ifname;
        valid.iter().any(|each| each.container_id == held.container && same_name(&each.ifname))
    };
    if let Some(store) = store {
        let freed = failures.value(store.retain(network, &keep).coded()).unwrap_or_default();
        for lease in &freed {
            let (address, holder) = (lease.address, &lease.attachment);
            eprintln!("host-local: network {network}: {address} given back, {holder} is no more");
        }
        if valid.is_empty() {
            failures.note(store.forget_network(network).coded().map(drop));
        }
    }
    if valid.is_empty() {
        // Also of a store that somebody was killed over while making it.
        failures.note(Store::remove_if_empty(place).coded().map(drop));
        stores::forget(place);
    }
}

/// Whether every range set has a free address.
pub fn status(request: &Request, conf: &Conf) -> Result<(), Error> {
    let unusable = |error: Error| Error { code: code::NOT_AVAILABLE, ..error };
    let network = &request.conf.name;
    let Some(store) = leases::open_existing(network, &Dirs::of(request)?).map_err(unusable)? else {
        return Ok(());
    };
    if store.available(network, &conf.sets).coded().map_err(unusable)? {
        return Ok(());
    }
    let ranges: Vec<String> = conf.sets.iter().map(ToString::to_string).collect();
    Err(Error::not_available(format!("network {network}: no free address in {}", ranges.join("; "))))
}

impl Plugin for HostLocal {
    fn name(&self) -> &'static str {
        "host-local"
    }

    fn about(&self) -> String {
        crate::about("host-local")
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        request.args.only(&["IP", "GATEWAY", "MAC"])?;
        add(request, &Conf::of(request)?).map(|given| given.result)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        del(request)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        check(request, &Conf::of(request)?)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        gc(request)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        status(request, &Conf::of(request)?)
    }
}
