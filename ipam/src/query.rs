//! Questions to the store; none of them waits for a writer.
use std::net::IpAddr;

use crate::error::Result;
use crate::keys;
use crate::lease::{Attachment, Lease};
use crate::lmdb::View;
use crate::range::RangeSet;
use crate::record::Held;
use crate::store::Store;

impl Store {
    /// The leases of an attachment, IPv4 first.
    ///
    /// # Errors
    /// Only what befalls the store itself.
    pub fn find(&self, network: &str, attachment: &Attachment) -> Result<Vec<Lease>> {
        self.read(|view| match view.net(network)? {
            Some(net) => Ok(leases(view.held_by(net, network, attachment)?)),
            None => Ok(Vec::new()),
        })
    }

    /// All leases of a network, or of all networks; a network's in the order of their addresses.
    ///
    /// # Errors
    /// Only what befalls the store itself.
    pub fn leases(&self, network: Option<&str>) -> Result<Vec<Lease>> {
        self.read(|view| {
            let mut all = Vec::new();
            for (net, name) in view.nets(network)? {
                all.extend(leases(view.all_held(net, &name)?));
            }
            Ok(all)
        })
    }

    /// The lease of an address.
    ///
    /// # Errors
    /// Only what befalls the store itself.
    pub fn holder(&self, network: &str, address: IpAddr) -> Result<Option<Lease>> {
        self.read(|view| match view.net(network)? {
            Some(net) => Ok(view.held(net, network, address.to_canonical())?.map(|h| h.lease)),
            None => Ok(None),
        })
    }

    /// True when every set has an address to give, or holds leases of an earlier boot, whose containers are gone.
    /// Reserved addresses count: they can be requested.
    ///
    /// # Errors
    /// Only what befalls the store itself.
    pub fn available(&self, network: &str, sets: &[RangeSet]) -> Result<bool> {
        self.read(|view| {
            let Some(net) = view.net(network)? else { return Ok(true) };
            for set in sets {
                if !view.has_free(net, set)? && !self.has_earlier(view, net, network, set)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    fn has_earlier(&self, view: View<'_>, net: keys::Net, network: &str, set: &RangeSet) -> Result<bool> {
        let all = view.all_held(net, network)?;
        Ok(all.iter().any(|h| h.lease.boot != self.boot && set.contains(h.lease.address)))
    }

    /// True when there is nothing in the store: no lease, and no network that was not forgotten.
    ///
    /// # Errors
    /// Only what befalls the store itself.
    pub fn is_empty(&self) -> Result<bool> {
        self.read(|view| view.is_empty())
    }
}

impl View<'_> {
    pub(crate) fn is_empty(&self) -> Result<bool> {
        let head = u64::from(self.get(keys::META)?.is_some());
        Ok(self.len()? == head)
    }
}

pub(crate) fn leases(held: Vec<Held>) -> Vec<Lease> {
    held.into_iter().map(|h| h.lease).collect()
}
