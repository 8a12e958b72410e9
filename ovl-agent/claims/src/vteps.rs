//! VTEPs that several nodes have in their records: a wrong `--advertise`, a cloned machine, two nodes behind one address.
//!
//! Of living nodes with the same VTEP the record of the one that has had it longest is in force, so that routes to the others
//! do not replace its own. The others' are held back until they say another VTEP, or the first one does, is gone, or is not
//! alive. A dead node does not keep an address: another one may have it now.
//!
//! Since when a node has its VTEP its record says ([`Host::vtep_since`]), and never what a reader happened to see first: all
//! readers rank alike, whenever they started. A node notes the store's revision as it takes a VTEP and keeps that number as
//! long as it has the VTEP, also when it writes its record anew. A record without it ranks by the revision that made it.

use crate::held::Held;
use crate::keys;
use crate::record::Read;
use crate::state::State;
use ovl_api::model::Host;
use ovl_store::Revision;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// What the nodes' records say, in force or not.
#[derive(Debug, Default)]
pub(crate) struct Vteps {
    /// Nodes by their VTEP, the first of each the one that has had it longest.
    nodes: HashMap<IpAddr, BTreeSet<(Revision, String)>>,
    /// What a node's record says.
    said: HashMap<String, Said>,
}

/// What a node's record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Said {
    vtep: IpAddr,
    /// Since when the node has it.
    since: Revision,
    /// When the record was changed last.
    changed: Revision,
}

impl Vteps {
    /// Takes what a node's record says now. Returns whether another node's record may become valid by that.
    fn note(&mut self, name: &str, now: Option<Said>) -> bool {
        let before = match now {
            Some(said) => self.said.insert(name.to_owned(), said),
            None => self.said.remove(name),
        };
        let rank = |said: Said| (said.vtep, said.since);
        if before.map(rank) == now.map(rank) {
            return false;
        }
        let mut is_shared = false;
        if let Some(Said { vtep, since, .. }) = before
            && let Some(nodes) = self.nodes.get_mut(&vtep)
        {
            nodes.remove(&(since, name.to_owned()));
            is_shared = !nodes.is_empty();
            if !is_shared {
                self.nodes.remove(&vtep);
            }
        }
        if let Some(Said { vtep, since, .. }) = now {
            self.nodes.entry(vtep).or_default().insert((since, name.to_owned()));
        }
        is_shared
    }

    /// The nodes that share the VTEP of this one; none when it is alone.
    fn sharing(&self, name: &str) -> impl Iterator<Item = &str> {
        let nodes = self.said.get(name).and_then(|said| self.nodes.get(&said.vtep));
        nodes.filter(|nodes| nodes.len() > 1).into_iter().flatten().map(|(_, name)| name.as_str())
    }

    /// Forgets all: the store is another one.
    pub(crate) fn clear(&mut self) {
        *self = Vteps::default();
    }
}

impl State {
    /// Notes which VTEP a record names, be it valid or not.
    pub(crate) fn note_vtep(&mut self, read: &Read<'_>, changed: Revision) {
        if let Read::Host(name, host) = read {
            let host = host.as_ref().filter(|host| !host.removed);
            let said = host.map(|host| Said { vtep: host.vtep, since: host.vtep_since, changed });
            self.recheck_held |= self.vteps.note(name, said);
        }
    }

    /// Returns the living node that has had this one's VTEP for longer. This node itself counts on neither side: what is its
    /// address it knows without the store ([`State::set_addresses`]).
    fn first_with_vtep_of(&self, name: &str) -> Option<&str> {
        if name == self.view.me {
            return None;
        }
        let before = self.vteps.sharing(name).take_while(|other| *other != name);
        before.into_iter().find(|other| self.live.contains(*other) && *other != self.view.me)
    }

    /// Checks that a node's VTEP is no other living node's.
    ///
    /// # Errors
    /// Names the other one.
    pub(crate) fn check_vtep(&self, name: &str, host: &Host) -> Result<(), String> {
        match self.first_with_vtep_of(name) {
            Some(other) => Err(format!(
                "invalid vtep \"{}\": the node {other}, which is alive, has it too (--advertise of one of them, or a copied machine)",
                host.vtep
            )),
            None => Ok(()),
        }
    }

    /// Holds back what is in force of nodes that share the VTEP of this one, but for the first; and has the others checked
    /// again.
    pub(crate) fn check_sharers(&mut self, name: &str) {
        let sharing: Vec<String> = self.vteps.sharing(name).map(str::to_owned).collect();
        self.recheck_held |= !sharing.is_empty();
        for name in sharing {
            let Some(Said { vtep, changed, .. }) = self.vteps.said.get(&name).copied() else { continue };
            // The value in force may be an earlier one, with another VTEP.
            let in_force = self.view.hosts.get(&name).filter(|host| !host.removed && host.vtep == vtep);
            let Some(host) = in_force.cloned() else { continue };
            if let Err(why) = self.check_vtep(&name, &host) {
                self.view.hosts.remove(&name);
                self.dirty.delta.hosts.insert(name.clone());
                self.view_changed = true;
                let key = keys::host(&name);
                tracing::warn!(key, "store record held back: {why}");
                // A later value that waits already is what the node says now.
                self.held.entry(key).or_insert_with(|| Held::host(why, host, changed));
            }
        }
    }
}
