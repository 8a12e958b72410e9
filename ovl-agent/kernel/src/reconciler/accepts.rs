//! Other programs' forward chains whose policy is drop (Docker, ufw, hardened images): rules there accept the packets of the
//! networks in which this node has containers.

use net::firewall::forward::{self, Traffic, Undeclared};

use super::{Changes, Reconciler};
use crate::model::Model;

/// What the names of the agent's rules begin with. No link's name has a slash, so these are no bridge's.
const PREFIX: &str = "overlay/";

/// The rules in other programs' forward chains.
#[derive(Debug, Default)]
pub(super) struct Accepts {
    /// There are none, as the agent was started with `--no-forward-accept`.
    is_off: bool,
    /// Names and traffic, as of the last pass.
    declared: Vec<(String, Vec<Traffic>)>,
    /// Why the last pass could not change the chains.
    error: Option<String>,
}

impl Accepts {
    fn of(&self, model: &Model) -> Vec<(String, Vec<Traffic>)> {
        let networks = model.parts.values().map(|part| &part.network).filter(|_| !self.is_off);
        let traffic = networks.map(|network| {
            let subnets = network.subnets.iter().map(|subnet| Traffic::Subnet(subnet.subnet));
            (format!("{PREFIX}{}", network.name), subnets.collect())
        });
        traffic.collect()
    }

    /// Whether chains that appear are to be looked at.
    pub(super) fn is_needed(&self) -> bool {
        !self.declared.is_empty()
    }
}

impl Reconciler {
    /// Leaves other programs' forward chains alone from now on; the next full pass removes the agent's rules from them.
    pub fn leave_forward_chains(&mut self) {
        self.accepts.is_off = true;
    }

    /// Has other programs' forward chains whose policy is drop accept the networks' packets. A failure is logged once and
    /// tried again by the next full pass.
    pub(super) fn accept_forwarded(&mut self, model: &Model, repairs: bool, changes: &mut Changes) {
        let declared = self.accepts.of(model);
        let undeclared = if self.believed { Undeclared::Go } else { Undeclared::Stay };
        let (count, error) = match forward::declare(PREFIX, &declared, undeclared) {
            Ok(count) => (count, None),
            Err(error) => (0, Some(format!("the host's forward chain may drop overlay packets: {error}"))),
        };
        if count > 0 {
            let is_drift = repairs && declared == self.accepts.declared;
            let what = if is_drift { "were changed: restored" } else { "changed" };
            changes.lines.push(format!("rules in forward chains whose policy is drop {what} ({count})"));
            changes.changed += count;
            changes.mended += if is_drift { count } else { 0 };
        }
        if error != self.accepts.error {
            changes.warnings.extend(error.clone());
            self.accepts.error = error;
        }
        self.accepts.declared = declared;
    }

    /// As [`Self::accept_forwarded`], when the networks are others than those of the last pass.
    pub(super) fn accept_other_networks(&mut self, model: &Model, changes: &mut Changes) {
        if self.accepts.of(model) != self.accepts.declared {
            self.accept_forwarded(model, false, changes);
        }
    }
}
