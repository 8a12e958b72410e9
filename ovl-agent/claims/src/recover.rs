//! What a state directory that is older than the host (restored from a backup, or lost) does not know: containers that run, and
//! whose node this is. Their links tell.

use crate::conf::TakeOver;
use crate::files::Local;
use crate::inner::{Inner, lease_problem, lock};
use crate::join::Trouble;
use crate::keys::Key;
use crate::open::leases_of;
use crate::state::State;
use crate::validate;
use ovl_api::model::{Endpoint, Host, Network};
use ovl_api::names;
use ovl_api::wire::Problem;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

/// A container's link on this host, as its label and the kernel's entries on it describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundLink {
    /// The link's name.
    pub veth: String,
    /// The VNI of its network.
    pub vni: u32,
    /// The container's ID.
    pub container: String,
    /// The interface's name in the container.
    pub ifname: String,
    /// The container's hardware address, if an entry on the link says it.
    pub mac: Option<[u8; 6]>,
    /// The addresses that are routed to it.
    pub addresses: BTreeSet<IpAddr>,
}

impl Inner {
    /// Takes containers over that have a link and no endpoint, as far as their networks are known. They keep their addresses,
    /// and nothing else gets these.
    pub(crate) fn take_over_links(&self, state: &mut State) {
        let found = std::mem::take(&mut state.found);
        let (known, unknown): (Vec<FoundLink>, Vec<FoundLink>) =
            found.into_iter().partition(|link| network_of(state, link).is_some());
        state.found = unknown;
        for link in known {
            if let Err(problem) = self.take_over_link(state, &link) {
                tracing::warn!("container {} ({}): {problem}", link.container, link.ifname);
            }
        }
    }

    fn take_over_link(&self, state: &mut State, link: &FoundLink) -> Result<(), Problem> {
        let Some(network) = network_of(state, link) else { return Ok(()) };
        let is_known = |local: &Local| {
            local.endpoint.network == network.id
                && (&local.endpoint.container, &local.endpoint.ifname) == (&link.container, &link.ifname)
        };
        if state.locals.contains_key(&link.veth) || state.locals.values().any(is_known) {
            return Ok(());
        }
        let inside =
            |address: &&IpAddr| network.subnets.iter().any(|subnet| subnet.subnet.contains(**address));
        let addresses: Vec<IpAddr> = link.addresses.iter().filter(inside).copied().collect();
        let used =
            |address: &IpAddr| state.used.get(&network.id).is_some_and(|used| used.contains_key(address));
        let (Some(first), false) = (addresses.first(), addresses.iter().any(used)) else { return Ok(()) };
        let mac = link.mac.unwrap_or_else(|| names::container_mac(&network.id, *first));
        let endpoint = Endpoint {
            network: network.id.clone(),
            container: link.container.clone(),
            ifname: link.ifname.clone(),
            veth: link.veth.clone(),
            mac: validate::mac_text(&mac),
            addresses: addresses.clone(),
        };
        let (boot, name) = (self.conf.boot_id.clone(), network.name.clone());
        let local = Local { endpoint, name, boot, netns: None, ticket: 0 };
        self.files.save_endpoint(&local)?;
        self.leases.rebuild(leases_of(&local, &self.conf.boot_id)).map_err(|e| lease_problem(&e))?;
        let of = state.used.entry(network.id.clone()).or_default();
        of.extend(addresses.iter().map(|address| (*address, link.veth.clone())));
        state.locals.insert(link.veth.clone(), local);
        state.view.links.insert(link.veth.clone());
        state.recheck(&link.veth);
        tracing::warn!(
            "container {} ({}) has {addresses:?} in network {}, which this node's files did not say: taken from its link",
            link.container,
            link.ifname,
            network.name
        );
        Ok(())
    }

    /// Ends the endpoints of a directory that is a copy which have no link on this host: their containers are elsewhere, or gone.
    pub(crate) fn end_copied(&self, state: &mut State, links: &[FoundLink]) -> Result<(), Problem> {
        let before = lock(&self.identity).place.clone();
        if before.is_none_or(|before| before == self.place) {
            return Ok(());
        }
        let has_link = |veth: &String| links.iter().any(|link| link.veth == *veth);
        let gone: Vec<Local> =
            state.locals.iter().filter(|(veth, _)| !has_link(veth)).map(|(_, local)| local.clone()).collect();
        gone.iter().try_for_each(|local| self.end(state, local))
    }

    /// Whether the node with this record is this one, whose state directory was lost or is older: containers that are linked
    /// to this host have addresses in its blocks. Only right after the start: later, another may have claimed the blocks.
    pub(crate) async fn is_this_node(&self, host: &Host) -> Result<bool, Trouble> {
        let is_here = self.has_address(host) || self.conf.take_over == TakeOver::Always;
        if !is_here || self.renewed.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let addresses: BTreeSet<IpAddr> = self.look(|state| {
            let of_links = state.links.iter().flat_map(|link| link.addresses.iter());
            of_links.copied().collect()
        });
        if addresses.is_empty() || host.removed {
            return Ok(false);
        }
        let claims = self.claims_of(&host.name).await?;
        Ok(claims.iter().any(|(key, _)| match Key::parse(key) {
            Key::Block(_, block) => addresses.iter().any(|address| block.contains(*address)),
            Key::Single(_, address) => addresses.contains(&address),
            _ => false,
        }))
    }

    /// Takes the identity of this node's record.
    pub(crate) fn take_identity(&self, host: &Host) -> Result<(), Problem> {
        tracing::warn!(
            "this node's identity is not in its state directory: taken from the record of {}",
            host.name
        );
        self.set_me(None);
        self.set_identity(|identity| {
            (identity.id, identity.epoch) = (host.id.clone(), host.epoch);
            identity.name = Some(host.name.clone());
        })
    }
}

/// The network of a link's label.
fn network_of(state: &State, link: &FoundLink) -> Option<Network> {
    state.view.networks.values().find(|network| network.vni == link.vni).cloned()
}
