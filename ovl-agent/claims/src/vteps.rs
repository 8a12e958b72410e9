//! VTEPs that several nodes have in their records: a wrong `--advertise`, a cloned machine, two nodes behind one address.
//!
//! Of living nodes with the same VTEP the record of the one that has had it longest is in force, so that routes to the others
//! do not replace its own. The others' are held back until they say another VTEP, or the first one does, is gone, or is not
//! alive. A dead node does not keep an address: another one may have it now.

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
    /// A node's VTEP, and at which revision its record said so first.
    said: HashMap<String, (IpAddr, Revision)>,
}

impl Vteps {
    /// Takes what a node's record says now. Returns whether another node's record may become valid by that.
    fn note(&mut self, name: &str, vtep: Option<IpAddr>, changed: Revision) -> bool {
        let before = self.said.get(name).copied();
        if before.map(|(vtep, _)| vtep) == vtep {
            return false;
        }
        let mut is_shared = false;
        if let Some((before, since)) = before
            && let Some(nodes) = self.nodes.get_mut(&before)
        {
            nodes.remove(&(since, name.to_owned()));
            is_shared = !nodes.is_empty();
            if !is_shared {
                self.nodes.remove(&before);
            }
        }
        match vtep {
            Some(vtep) => {
                self.nodes.entry(vtep).or_default().insert((changed, name.to_owned()));
                self.said.insert(name.to_owned(), (vtep, changed));
            }
            None => drop(self.said.remove(name)),
        }
        is_shared
    }

    /// The nodes that share the VTEP of this one; none when it is alone.
    fn sharing(&self, name: &str) -> impl Iterator<Item = &str> {
        let nodes = self.said.get(name).and_then(|(vtep, _)| self.nodes.get(vtep));
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
            let vtep = host.as_ref().filter(|host| !host.removed).map(|host| host.vtep);
            self.recheck_held |= self.vteps.note(name, vtep, changed);
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
            let Some((vtep, since)) = self.vteps.said.get(&name).copied() else { continue };
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
                self.held.entry(key).or_insert_with(|| Held::host(why, host, since));
            }
        }
    }
}
