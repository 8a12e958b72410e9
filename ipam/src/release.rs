//! Giving addresses back, one by one or a network's at once, and putting leases in that others know of.
use std::net::IpAddr;

use crate::error::{Error, Result};
use crate::keys::{self, Net};
use crate::lease::{Attachment, Lease};
use crate::lmdb::Tx;
use crate::open;
use crate::query::leases;
use crate::record::Held;
use crate::store::{Store, check_attachment, check_network};

impl Store {
    /// Ends the leases of an attachment and returns them; none is no error. Leases of the container that name no
    /// interface are ended too.
    ///
    /// # Errors
    /// Only what befalls the store itself.
    pub fn release(&self, network: &str, attachment: &Attachment) -> Result<Vec<Lease>> {
        // Not looked up by reading first: LMDB shows a reader the commit of a writer that was killed just behind it only
        // after the next writer has come. A transaction that changes nothing writes nothing.
        self.end(network, |tx, net| tx.view().held_by(net, network, attachment))
    }

    /// Ends the lease of an address, whoever holds it.
    ///
    /// # Errors
    /// Only what befalls the store itself.
    pub fn release_address(&self, network: &str, address: IpAddr) -> Result<Option<Lease>> {
        let address = address.to_canonical();
        let held =
            |tx: &mut Tx<'_, '_>, net| Ok(tx.view().held(net, network, address)?.into_iter().collect());
        Ok(self.end(network, held)?.pop())
    }

    /// Ends the leases of a network whose attachment is not `valid` and returns them. `valid` runs while this process
    /// keeps all others from changing the store: it must be quick, and not use it.
    ///
    /// # Errors
    /// Only what befalls the store itself.
    pub fn retain(&self, network: &str, valid: &dyn Fn(&Attachment) -> bool) -> Result<Vec<Lease>> {
        self.end(network, |tx, net| {
            let mut all = tx.view().all_held(net, network)?;
            all.retain(|h| !valid(&h.lease.attachment));
            Ok(all)
        })
    }

    fn end(
        &self,
        network: &str,
        mut which: impl FnMut(&mut Tx<'_, '_>, Net) -> Result<Vec<Held>>,
    ) -> Result<Vec<Lease>> {
        self.write(|tx| {
            let Some(net) = tx.view().net(network)? else { return Ok(Vec::new()) };
            let ended = which(tx, net)?;
            for held in &ended {
                tx.give_back(net, held)?;
            }
            Ok(leases(ended))
        })
    }

    /// Forgets all of a network: its leases, which are returned, and which addresses come next.
    ///
    /// # Errors
    /// Only what befalls the store itself.
    pub fn forget_network(&self, network: &str) -> Result<Vec<Lease>> {
        self.write(|tx| {
            let Some(net) = tx.view().net(network)? else { return Ok(Vec::new()) };
            let ended = tx.view().all_held(net, network)?;
            for kind in keys::OF_NETWORK {
                let records = tx.view().scan(&keys::prefix(kind, net))?;
                let gone: Vec<Vec<u8>> =
                    records.map(|r| r.map(|(key, _)| key.to_vec())).collect::<Result<_>>()?;
                for key in gone {
                    tx.delete(&key)?;
                }
            }
            tx.delete(&keys::name(network))?;
            Ok(leases(ended))
        })
    }

    /// Puts leases into the store that are known from elsewhere, as after damage from the kernel and the container
    /// runtime. An address that is held already stays with its holder. Returns how many were put in.
    ///
    /// # Errors
    /// A name that cannot be stored, or what befalls the store itself; then none is put in.
    pub fn rebuild(&self, leases: impl IntoIterator<Item = Lease>) -> Result<usize> {
        let leases: Vec<Lease> = leases.into_iter().collect();
        for lease in &leases {
            check_network(&lease.network)?;
            check_attachment(&lease.attachment)?;
        }
        let count = self.write(|tx| {
            let mut count = 0;
            for lease in &leases {
                let net = tx.net_of(&lease.network)?;
                count += usize::from(tx.adopt(net, lease)?);
            }
            Ok(count)
        })?;
        open::rebuilt(self.dir())?;
        Ok(count)
    }
}

impl Tx<'_, '_> {
    /// Notes a lease that was not given by this store; false when the address is held.
    pub(crate) fn adopt(&mut self, net: Net, lease: &Lease) -> Result<bool> {
        let mut lease = lease.clone();
        lease.address = lease.address.to_canonical();
        if lease.boot.len() > 255 || lease.netns.as_ref().is_some_and(|n| n.len() > 4096) {
            return Err(Error::Name {
                what: "lease",
                value: lease.boot,
                why: "its boot ID or path is too long",
            });
        }
        if self.view().held(net, &lease.network, lease.address)?.is_some() {
            return Ok(false);
        }
        self.hold(net, &Held { lease, range: None })?;
        Ok(true)
    }
}
