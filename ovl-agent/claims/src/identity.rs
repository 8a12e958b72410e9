//! Whether this node may use its name and its identity: what the decisions of [`Inner::join`] depend on, and what is said when
//! it may not.

use crate::conf::TakeOver;
use crate::inner::{Inner, lock};
use crate::token::Token;
use ovl_api::model::Host;
use ovl_api::wire::{Problem, ProblemKind};

impl Inner {
    /// Another installation has the name.
    pub(crate) fn name_is_taken(&self, other: &Host) -> Problem {
        let name = self.name();
        let message = format!(
            "another host is registered as {name} (VTEP {}): give this one another name with --node-name, or, when that one \
             is gone for good, start this agent with --take-over or run `ovl-agent node rm {name}` on another host",
            other.vtep
        );
        let problem = Problem { kind: ProblemKind::Taken, field: Some("--node-name".to_owned()), message };
        // What this installation claimed before, it lost when the other took the name.
        self.set_me(None);
        problem
    }

    /// An agent that runs elsewhere has this installation's identity. This node keeps what it has, and gives nothing.
    pub(crate) fn identity_is_used(&self, other: &Token) -> Problem {
        let name = self.name();
        let message = format!(
            "another running agent has the identity of node {name} (VTEP {}, boot {}): {} was copied from it, as with a cloned \
             machine; stop the agent there, and this one takes over within {} s; or make this one a node of its own: stop its \
             agent, remove {}, and start it with another name (--node-name)",
            other.vtep,
            other.place.boot,
            self.files.root().display(),
            self.conf.liveness.as_secs(),
            self.files.root().display(),
        );
        Problem { kind: ProblemKind::Taken, field: Some("--node-name".to_owned()), message }
    }

    /// The session of this node's lost state directory may go on.
    pub(crate) fn session_has_not_ended(&self, host: &Host) -> Problem {
        let message = format!(
            "this node's state directory {} is not that of the node {} (VTEP {}), whose containers are on this host: it takes over \
             when the session of its agent has ended, within {} s; if another agent runs as {}, stop it",
            self.files.root().display(),
            host.name,
            host.vtep,
            self.conf.liveness.as_secs(),
            host.name
        );
        Problem::new(ProblemKind::NotReady, message)
    }

    /// The state directory was last used on another machine, at another address.
    pub(crate) fn machine_differs(&self, host: &Host) -> Problem {
        let (name, root) = (&host.name, self.files.root().display());
        let message = format!(
            "{root} is the state of node {name} on another machine (VTEP {}), by its /etc/machine-id: when that machine is gone for \
             good and this one replaces it, start this agent with --take-over; else remove {root}, and start it with another \
             name (--node-name)",
            host.vtep
        );
        Problem::new(ProblemKind::NotReady, message)
    }

    /// Whether the name of another installation's node without a living session may be taken over.
    pub(crate) fn may_replace(&self, other: &Host) -> bool {
        match self.conf.take_over {
            TakeOver::Always => true,
            TakeOver::SameAddress => self.has_address(other),
            TakeOver::Identity => false,
        }
    }

    /// Whether the identity, which has no living session, may be used on this machine. A machine that got another ID has kept
    /// its address, which no second one can have.
    pub(crate) fn may_move(&self, host: &Host) -> bool {
        let before = lock(&self.identity).machine.clone();
        let same = before.is_none() || self.conf.machine.is_none() || before == self.conf.machine;
        same || self.conf.take_over == TakeOver::Always || self.has_address(host)
    }

    pub(crate) fn has_address(&self, host: &Host) -> bool {
        lock(&self.underlay).0 == host.vtep
    }

    /// Binds the identity to this machine and name.
    pub(crate) fn bind_identity(&self) -> Result<(), Problem> {
        let name = Some(self.name());
        let mut identity = lock(&self.identity);
        let machine = self.conf.machine.clone().or_else(|| identity.machine.clone());
        let place = Some(self.place.clone());
        if (&identity.machine, &identity.name, &identity.place) != (&machine, &name, &place) {
            (identity.machine, identity.name, identity.place) = (machine, name, place);
            self.files.save_identity(&identity)?;
        }
        Ok(())
    }
}
