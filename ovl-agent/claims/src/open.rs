//! Opening a node from its files, without the store.
//!
//! What is safe while the store is down: addresses may be given from the blocks in `own.json` when it was written during
//! this boot and under the present epoch. That is as safe as an agent that ran on through the outage, for the file never
//! names a block that was being given back, nor forgets an address that was lent. Should somebody have declared this host
//! gone meanwhile, that was to say that it has no containers; it finds out when the store is back, and withdraws. After a
//! reboot nothing is given before the store was read. The rest of the view comes from `view.json`; it may be old, so the
//! kernel is mended by it, but nothing is deleted ([`crate::Node::synced`]).

use crate::files::{Files, Local};
use crate::inner::{Inner, lease_problem};
use crate::record::{Read, is_part};
use crate::rename::name_before;
use crate::state::{Me, State};
use crate::{NodeConf, keys};
use ipam::{Attachment, Lease};
use ovl_api::wire::{Problem, ProblemKind};
use std::collections::{BTreeMap, HashMap};

/// Opens the files and builds the state that they tell of.
pub(crate) fn open(conf: NodeConf) -> Result<Inner, Problem> {
    crate::validate::host_name(&conf.name)?;
    let files = Files::open(&conf.root)?;
    let identity = files.identity()?;
    let place = files.place(&conf.boot_id)?;
    let leases = open_leases(&files, &conf)?;
    let mut state = State::default();
    let own = files.own(&place);
    state.view.me = name_before(&identity, own.as_ref(), &files).unwrap_or_else(|| conf.name.clone());
    state.addresses.insert(conf.vtep);
    load_view(&mut state, &files);
    load_locals(&mut state, &files, &leases, &conf)?;
    if let Some(own) = own
        && own.host.name == state.view.me
        && own.host.id == identity.id
        && own.host.epoch == identity.epoch
    {
        load_own(&mut state, own);
    }
    let links = conf.links.clone();
    (state.links, state.found) = (links.clone().unwrap_or_default(), links.clone().unwrap_or_default());
    let inner = Inner::new(conf, files, place, leases, identity, state)?;
    inner.read_notes()?;
    inner.update(|state| {
        if let Some(links) = &links {
            inner.end_copied(state, links)?;
        }
        inner.take_over_links(state);
        // Until the store was read, the files are as they were.
        (state.own_changed, state.view_changed) = (false, false);
        Ok::<_, Problem>(())
    })?;
    if let Some(notice) = inner.look(|state| state.rename_notice(&inner.conf.name)) {
        tracing::warn!("{notice}");
    }
    Ok(inner)
}

fn open_leases(files: &Files, conf: &NodeConf) -> Result<ipam::Store, Problem> {
    let opened = ipam::Store::open(&files.leases(), &conf.boot_id).map_err(|e| lease_problem(&e))?;
    opened.notes.iter().for_each(|note| tracing::warn!("{note}"));
    Ok(opened.store)
}

fn load_view(state: &mut State, files: &Files) {
    let Some(file) = files.view() else { return };
    (state.cluster, state.revision, state.subnets_changed) = (file.cluster, file.revision, file.subnets);
    state.past.history = file.history;
    for (network, changed) in file.networks {
        state.apply(&keys::network(&network.name), Some(&keys::json(&network)), changed);
    }
    for host in file.hosts {
        state.apply(&keys::host(&host.name), Some(&keys::json(&host)), 0);
    }
    for (network, block, host) in file.owners {
        let valid = state.view.networks.get(&network).is_none_or(|known| is_part(known, block));
        if valid {
            state.set_owner(&network, block, Some(&host), 0);
        }
    }
}

/// Takes what was owned over into the state, the way the store would tell it.
fn load_own(state: &mut State, own: crate::files::OwnFile) {
    let claim = keys::Claim { host: own.host.name.clone(), id: own.host.id.clone(), epoch: own.host.epoch };
    state.own_vtep = Some((own.host.vtep, own.host.vtep_since));
    state.me = Some(Me { host: own.host.clone(), changed: own.changed });
    state.view.hosts.insert(own.host.name.clone(), own.host);
    for (network, changed) in own.networks {
        state.apply(&keys::network(&network.name), Some(&keys::json(&network)), changed);
    }
    for (network, block, changed) in own.blocks {
        state.apply(&keys::block(&network, block), Some(&keys::json(&claim)), changed);
    }
    let granted = |claim| keys::SingleClaim { claim, state: keys::SingleState::Granted };
    for (network, address, changed) in own.singles {
        let single = granted(claim.clone());
        state.apply(&keys::single(&network, address), Some(&keys::json(&single)), changed);
    }
    for (network, address, host) in own.lent {
        let single = granted(keys::Claim { host, id: String::new(), epoch: 0 });
        // The file names the borrower alone.
        state.apply_valid(Read::Single(&network, address, Some(single)), 0);
    }
    state.acks.clear();
}

/// Reads the endpoints and makes the leases agree with them: an endpoint of this boot has its leases, and nothing else has.
/// A lease without an endpoint is of an attachment that was broken off before it was answered; one of an earlier boot went
/// with its container.
fn load_locals(
    state: &mut State,
    files: &Files,
    leases: &ipam::Store,
    conf: &NodeConf,
) -> Result<(), Problem> {
    let mut valid: HashMap<String, BTreeMap<Attachment, String>> = HashMap::new();
    for local in files.locals()? {
        let Local { endpoint, boot, .. } = &local;
        if *boot != conf.boot_id {
            files.remove_endpoint(&endpoint.veth)?;
            continue;
        }
        let attachment = Attachment::new(endpoint.container.as_str(), endpoint.ifname.as_str());
        valid.entry(endpoint.network.clone()).or_default().insert(attachment, endpoint.veth.clone());
        state.view.links.insert(endpoint.veth.clone());
        state.locals.insert(endpoint.veth.clone(), local);
    }
    let networks: Vec<String> = {
        let all = leases.leases(None).map_err(|e| lease_problem(&e))?;
        let mut networks: Vec<String> = all.into_iter().map(|lease| lease.network).collect();
        networks.dedup();
        networks
    };
    for network in networks {
        let of = valid.get(&network);
        let ended = leases.retain(&network, &|attachment| of.is_some_and(|of| of.contains_key(attachment)));
        let ended = ended.map_err(|e| lease_problem(&e))?;
        for lease in ended {
            tracing::info!(
                "{} was leased to {}, which is not there any more",
                lease.address,
                lease.attachment
            );
        }
    }
    // What a damaged lease store lost is put in again; what it has stays.
    let known = state.locals.values().flat_map(|local| leases_of(local, &conf.boot_id));
    leases.rebuild(known).map_err(|e| lease_problem(&e))?;
    for local in state.locals.values() {
        let of = state.used.entry(local.endpoint.network.clone()).or_default();
        of.extend(local.endpoint.addresses.iter().map(|address| (*address, local.endpoint.veth.clone())));
    }
    Ok(())
}

pub(crate) fn leases_of(local: &Local, boot: &str) -> Vec<Lease> {
    let lease = |address| Lease {
        network: local.endpoint.network.clone(),
        address,
        attachment: Attachment::new(local.endpoint.container.as_str(), local.endpoint.ifname.as_str()),
        boot: boot.to_owned(),
        time: std::time::SystemTime::now(),
        netns: local.netns.clone(),
    };
    local.endpoint.addresses.iter().map(|address| lease(*address)).collect()
}

/// A problem of the agent with itself.
pub(crate) fn internal(message: impl Into<String>) -> Problem {
    Problem::new(ProblemKind::Internal, message)
}
