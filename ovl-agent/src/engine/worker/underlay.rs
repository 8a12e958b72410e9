//! Where the underlay is, and which of its addresses is the VTEP.

use super::super::successor::{SETTLES, Successor, TIED};
use super::Worker;
use net::route::Family;
use ovl_kernel::{Found, carries, find_underlay, find_underlay_in, own_addresses};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How often the underlay is looked for while it, or its address, is not there.
const LOOK: Duration = Duration::from_millis(250);

impl Worker {
    /// Looks whether the underlay is as it was: its interface may have been made anew, its address may have changed. True
    /// when it is another one, or back.
    pub(super) fn look_at_underlay(&mut self) -> bool {
        let address = self.parts.shown.borrow().address;
        // Without them the VTEP alone is known to be this node's.
        if let Ok(addresses) = own_addresses() {
            self.parts.node.set_addresses(addresses);
        }
        let found = self.find_underlay(address);
        let mut changed = false;
        let missing = match found {
            Ok((underlay, vtep, segment)) => {
                let known = self.reconciler.underlay();
                if (underlay.link, &underlay.name) != (known.link, &known.name) {
                    changed = true;
                    tracing::info!(
                        "the underlay is interface {} now, number {}",
                        underlay.name,
                        underlay.link
                    );
                    match self.parts.settings.reconciler(underlay.clone()) {
                        Ok(reconciler) => self.reconciler = reconciler,
                        Err(error) => tracing::error!("the kernel cannot be asked: {error}"),
                    }
                }
                if vtep != address {
                    changed = true;
                    tracing::warn!(
                        "the underlay's address {address} is gone, it is {vtep} now: the node's record gets that"
                    );
                }
                self.reconnect(vtep == address);
                self.parts.node.set_vtep(vtep, segment);
                self.parts.shown.send_modify(|shown| (shown.underlay, shown.address) = (underlay, vtep));
                None
            }
            Err(why) => Some(why),
        };
        changed |= self.times.underlay.is_some() && missing.is_none();
        if missing != self.times.underlay {
            match &missing {
                Some(why) => tracing::warn!("the underlay with {address} is gone ({why}); waiting for it"),
                None => tracing::info!("the underlay is back"),
            }
            self.times.underlay = missing;
        }
        // No route that changes is reported here: while something is amiss it is looked at again and again.
        let (address, others) = {
            let shown = self.parts.shown.borrow();
            (shown.address, shown.family)
        };
        let astray = others.is_some_and(|family| family != Family::of(address));
        if self.times.underlay.is_some() || self.times.underlay_down {
            self.times.away.get_or_insert_with(Instant::now);
        }
        let amiss = self.times.underlay.is_some()
            || self.times.underlay_down
            || self.times.successor.waits()
            || astray;
        self.times.look = amiss.then(|| Instant::now() + LOOK);
        changed
    }

    /// Has the store connected to anew when the underlay's address, or its carrier, was away for so long that the connection may
    /// only seem to live. Another address brings that with it.
    fn reconnect(&mut self, is_same: bool) {
        let since = self.times.away.filter(|_| !self.times.underlay_down);
        if since.is_some_and(|since| is_same && since.elapsed() >= SETTLES) {
            self.parts.node.reconnect();
        }
        self.times.away = self.times.away.filter(|_| since.is_none());
    }

    /// The underlay, or why there is none.
    ///
    /// As long as the address is there, on an interface that is up, nothing else is looked for: a default route may come and
    /// go. Another address takes its place when it has been there for a while, and never one of a family that the other nodes
    /// do not use.
    fn find_underlay(&mut self, address: IpAddr) -> Result<Found, String> {
        let settings = &self.parts.settings;
        let find = |family| find_underlay_in(settings.interface.as_deref(), settings.advertise, family);
        let (others, of_most) = {
            let shown = self.parts.shown.borrow();
            (shown.family, shown.family_of_most)
        };
        let present = find_underlay(None, Some(address)).ok();
        let is_right = others.is_none_or(|family| family == Family::of(address));
        self.times.underlay_down = present.as_ref().is_some_and(|(underlay, ..)| !carries(underlay.link));
        if let Some(found) = present.clone().filter(|_| is_right && !self.times.underlay_down) {
            self.times.successor = Successor::default();
            return Ok(found);
        }
        let other = match others {
            Some(family) => find(Some(family)),
            None => find(Some(Family::of(address))).or_else(|_| find(None)),
        };
        match (other, present) {
            (Ok(found), present) if found.1 != address => {
                let tied = present.is_some() && found.1.is_ipv6() && !of_most;
                let after = if tied { TIED } else { SETTLES };
                if self.times.successor.settles(found.1, Instant::now(), after) {
                    self.times.successor = Successor::default();
                    return Ok(found);
                }
                present.ok_or_else(|| format!("{} may take its place", found.1))
            }
            (Ok(found), _) | (Err(_), Some(found)) => {
                self.times.successor = Successor::default();
                Ok(found)
            }
            (Err(error), None) => {
                self.times.successor = Successor::default();
                Err(error.to_string())
            }
        }
    }
}
