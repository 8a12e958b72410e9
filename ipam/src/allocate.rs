//! Giving addresses: one of every set in one transaction, or none.
use std::collections::HashSet;
use std::net::IpAddr;
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::keys::{Net, RangeId};
use crate::lease::{Allocated, Ask, Lease};
use crate::lmdb::Tx;
use crate::range::{Range, RangeSet, list};
use crate::record::Held;
use crate::store::{Store, check_attachment, check_network};

impl Store {
    /// Gives the attachment one address of every set, in the order of the sets.
    ///
    /// What the attachment held since an earlier boot is given back first. When a requested address is held, or a set
    /// has nothing left, leases of earlier boots for which `alive` is false are ended, and it is tried once more.
    /// `alive` runs while this process keeps all others from changing the store: it must be quick, and not use it.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when the attachment holds an address of this boot; [`Error::Taken`],
    /// [`Error::NotInRange`], [`Error::IsGateway`] and [`Error::Surplus`] for requested addresses; [`Error::Full`];
    /// and what befalls the store itself. Nothing is given then.
    pub fn allocate(&self, ask: &Ask<'_>, alive: &dyn Fn(&Lease) -> bool) -> Result<Vec<Allocated>> {
        check_network(ask.network)?;
        check_attachment(ask.attachment)?;
        let wanted = assign(ask)?;
        let reserved: HashSet<IpAddr> = ask.reserved.iter().map(IpAddr::to_canonical).collect();
        let now = SystemTime::now();
        self.write(|tx| {
            let net = tx.net_of(ask.network)?;
            let before = tx.view().held_by(net, ask.network, ask.attachment)?;
            if let Some(held) = before.iter().find(|h| h.lease.boot == self.boot) {
                return Err(Error::Duplicate {
                    network: ask.network.to_owned(),
                    attachment: ask.attachment.clone(),
                    address: held.lease.address,
                });
            }
            for held in &before {
                tx.give_back(net, held)?;
            }
            let mut given = Vec::with_capacity(ask.sets.len());
            for (set, wanted) in ask.sets.iter().zip(&wanted) {
                let (range, address, is_new) = match *wanted {
                    Some(address) => (self.requested(tx, net, ask, set, address, alive)?, address, false),
                    None => self.any(tx, net, ask, set, &reserved, alive)?,
                };
                let lease = Lease {
                    network: ask.network.to_owned(),
                    address,
                    attachment: ask.attachment.clone(),
                    boot: self.boot.clone(),
                    time: now,
                    netns: ask.netns.filter(|n| n.len() <= 4096).map(str::to_owned),
                };
                tx.hold(net, &Held { lease, range: Some(RangeId::of(range)) })?;
                let (prefix, gateway) = (range.subnet.prefix(), range.gateway);
                given.push(Allocated { address, prefix, gateway, is_new });
            }
            Ok(given)
        })
    }

    /// Makes sure that a requested address is free.
    fn requested<'s>(
        &self,
        tx: &mut Tx<'_, '_>,
        net: Net,
        ask: &Ask<'_>,
        set: &'s RangeSet,
        address: IpAddr,
        alive: &dyn Fn(&Lease) -> bool,
    ) -> Result<&'s Range> {
        if let Some(held) = tx.view().held(net, ask.network, address)? {
            if held.lease.boot == self.boot || alive(&held.lease) {
                return Err(Error::Taken {
                    network: ask.network.to_owned(),
                    address,
                    holder: held.lease.attachment,
                });
            }
            tx.give_back(net, &held)?;
        }
        set.range_of(address).ok_or_else(|| not_in_range(ask, address))
    }

    /// Finds the next free address of a set, and whether it was never given before.
    fn any<'s>(
        &self,
        tx: &mut Tx<'_, '_>,
        net: Net,
        ask: &Ask<'_>,
        set: &'s RangeSet,
        reserved: &HashSet<IpAddr>,
        alive: &dyn Fn(&Lease) -> bool,
    ) -> Result<(&'s Range, IpAddr, bool)> {
        if let Some(found) = tx.next_free(net, set, reserved)? {
            return Ok(found);
        }
        for held in tx.view().all_held(net, ask.network)? {
            if held.lease.boot != self.boot && set.contains(held.lease.address) && !alive(&held.lease) {
                tx.give_back(net, &held)?;
            }
        }
        let found = tx.next_free(net, set, reserved)?;
        found.ok_or_else(|| Error::Full { network: ask.network.to_owned(), ranges: set.to_string() })
    }
}

/// For each set the requested address that lies in it.
fn assign(ask: &Ask<'_>) -> Result<Vec<Option<IpAddr>>> {
    let mut wanted = vec![None; ask.sets.len()];
    for address in ask.requested.iter().map(IpAddr::to_canonical) {
        let network = || ask.network.to_owned();
        let mut places = ask.sets.iter().zip(&mut wanted);
        let Some((set, range, place)) = places.find_map(|(s, w)| Some((s, s.range_of(address)?, w))) else {
            return Err(not_in_range(ask, address));
        };
        if address == range.gateway {
            return Err(Error::IsGateway { network: network(), address, subnet: range.subnet });
        }
        match place {
            Some(first) if *first != address => {
                return Err(Error::Surplus { network: network(), address, ranges: set.to_string() });
            }
            _ => *place = Some(address),
        }
    }
    Ok(wanted)
}

fn not_in_range(ask: &Ask<'_>, address: IpAddr) -> Error {
    Error::NotInRange { network: ask.network.to_owned(), address, ranges: list(ask.sets) }
}
