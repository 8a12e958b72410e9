//! The store's handle, and the pieces its operations share: networks by number, leases, the head record.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::keys::{self, Net};
use crate::lease::Attachment;
use crate::lmdb::{Lmdb, Tx, View};
use crate::open::{self, DirLock};
use crate::record::{Held, Meta};

/// The leases of a host.
///
/// Cheap to open and meant to be held only as long as it is needed: a store that is open somewhere can be neither
/// repaired nor removed. Opened twice in one process it is the same environment. It must not be carried over a `fork`.
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    /// The boot that new leases belong to.
    pub(crate) boot: String,
}

/// What handles of one process share. The environment closes before the lock is given back: fields drop in order.
pub(crate) struct Inner {
    lmdb: Lmdb,
    pub(crate) dir: PathBuf,
    /// Set when damage was seen, so that this process does not use it again.
    broken: AtomicBool,
    _lock: DirLock,
}

impl Inner {
    pub(crate) fn new(lmdb: Lmdb, dir: &Path, lock: DirLock) -> Inner {
        Inner { lmdb, dir: dir.to_owned(), broken: AtomicBool::new(false), _lock: lock }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Damage makes the next opener, in whatever process, examine the whole file.
    fn noticing<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::Damaged { .. }) = &result {
            self.broken.store(true, Ordering::Relaxed);
            open::distrust(&self.dir);
        }
        result
    }
}

impl Store {
    pub(crate) fn read<T>(&self, f: impl FnMut(View<'_>) -> Result<T>) -> Result<T> {
        self.inner.noticing(self.inner.lmdb.read(f))
    }

    pub(crate) fn write<T>(&self, f: impl FnMut(&mut Tx<'_, '_>) -> Result<T>) -> Result<T> {
        self.inner.noticing(self.inner.lmdb.write(f))
    }

    /// Leaves the store open to the end of this process, which comes soon: the kernel takes the maps apart then anyhow.
    /// Until then it stays locked against repair and removal, and opening it again gives the same environment.
    pub fn keep_open(self) {
        std::mem::forget(self.inner);
    }

    /// The directory it was opened in.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("dir", &self.inner.dir).field("boot", &self.boot).finish()
    }
}

/// Refuses names that would not survive being part of a key or a file name.
pub(crate) fn check_network(network: &str) -> Result<()> {
    let name = |why| Error::Name { what: "network", value: network.to_owned(), why };
    match network {
        "" => Err(name("it is empty")),
        n if n.len() > 255 => Err(name("it is longer than 255 bytes")),
        n if n.starts_with('.') || n.contains(['/', '\0']) => {
            Err(name("it may not begin with . or contain / or NUL"))
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_attachment(attachment: &Attachment) -> Result<()> {
    let parts = [("container ID", &attachment.container, 4096), ("interface", &attachment.ifname, 255)];
    for (what, value, max) in parts {
        let name = |why| Error::Name { what, value: value.clone(), why };
        match value {
            v if v.is_empty() && what == "container ID" => return Err(name("it is empty")),
            v if v.len() > max => return Err(name("it is too long")),
            v if v.contains(['\0', '\x01']) => return Err(name("it may not contain control characters")),
            _ => {}
        }
    }
    Ok(())
}

/// Reading the records that several operations need.
impl View<'_> {
    pub(crate) fn meta(&self) -> Result<Meta> {
        self.get(keys::META)?.map_or(Ok(Meta::default()), Meta::decode)
    }

    /// The number of a network that has ever been used.
    pub(crate) fn net(&self, network: &str) -> Result<Option<Net>> {
        let number = |v: &[u8]| <[u8; 4]>::try_from(v).map(Net::from_be_bytes);
        match self.get(&keys::name(network))?.map(number) {
            None => Ok(None),
            Some(Ok(net)) => Ok(Some(net)),
            Some(Err(_)) => Err(Error::damaged(format!("the number of network {network} cannot be read"))),
        }
    }

    /// Number and name of one network, or of all.
    pub(crate) fn nets(&self, only: Option<&str>) -> Result<Vec<(Net, String)>> {
        if let Some(network) = only {
            return Ok(self.net(network)?.map(|net| (net, network.to_owned())).into_iter().collect());
        }
        let mut nets = Vec::new();
        for record in self.scan(&[keys::NETWORK])? {
            let (key, value) = record?;
            match (keys::split_net(key), std::str::from_utf8(value)) {
                (Some((net, [])), Ok(name)) => nets.push((net, name.to_owned())),
                _ => return Err(Error::damaged("the name of a network cannot be read")),
            }
        }
        Ok(nets)
    }

    /// The lease of an address.
    pub(crate) fn held(&self, net: Net, network: &str, address: std::net::IpAddr) -> Result<Option<Held>> {
        let key = keys::at(keys::LEASE, net, address);
        self.get(&key)?.map(|value| Held::decode(network, &key, value)).transpose()
    }

    /// All leases of a network, in the order of their addresses, IPv4 first.
    pub(crate) fn all_held(&self, net: Net, network: &str) -> Result<Vec<Held>> {
        let records = self.scan(&keys::prefix(keys::LEASE, net))?;
        records.map(|r| r.and_then(|(key, value)| Held::decode(network, key, value))).collect()
    }

    /// The leases of an attachment, and those of its container that name no interface.
    pub(crate) fn held_by(&self, net: Net, network: &str, attachment: &Attachment) -> Result<Vec<Held>> {
        let mut found = Vec::new();
        let unnamed = Attachment::new(attachment.container.as_str(), "");
        let both = [attachment, &unnamed];
        let holders = if attachment.ifname.is_empty() { &both[..1] } else { &both[..] };
        for holder in holders {
            let prefix = keys::attachment(net, holder);
            for record in self.scan(&prefix)? {
                let (key, _) = record?;
                let Some((address, [])) = keys::split_address(&key[prefix.len()..]) else {
                    return Err(Error::damaged("the address of an attachment cannot be read"));
                };
                let held = self.held(net, network, address)?;
                let held =
                    held.ok_or_else(|| Error::damaged(format!("{address} has a holder but no lease")))?;
                // Very long names can share a key.
                if held.lease.attachment == **holder {
                    found.push(held);
                }
            }
        }
        Ok(found)
    }
}

impl Tx<'_, '_> {
    /// The network's number, given to it now when it is new.
    pub(crate) fn net_of(&mut self, network: &str) -> Result<Net> {
        if let Some(net) = self.view().net(network)? {
            return Ok(net);
        }
        let mut meta = self.view().meta()?;
        let net = meta.next_net;
        let next = net.checked_add(1);
        meta.next_net = next.ok_or_else(|| Error::damaged("there are too many networks"))?;
        self.put(keys::META, &meta.encode())?;
        self.put(&keys::name(network), &net.to_be_bytes())?;
        self.put(&keys::prefix(keys::NETWORK, net), network.as_bytes())?;
        Ok(net)
    }

    /// Notes a lease; its address leaves the list of released ones.
    pub(crate) fn hold(&mut self, net: Net, held: &Held) -> Result<()> {
        let address = held.lease.address;
        self.unlist(net, address)?;
        let key = keys::at(keys::LEASE, net, address);
        self.put(&key, &held.encode(&key))?;
        let mut by_holder = keys::attachment(net, &held.lease.attachment);
        keys::push_address(&mut by_holder, address);
        self.put(&by_holder, &[])
    }

    /// Ends a lease; its address becomes the youngest of the released ones.
    pub(crate) fn give_back(&mut self, net: Net, held: &Held) -> Result<()> {
        let address = held.lease.address;
        self.delete(&keys::at(keys::LEASE, net, address))?;
        let mut by_holder = keys::attachment(net, &held.lease.attachment);
        keys::push_address(&mut by_holder, address);
        self.delete(&by_holder)?;
        self.list(net, held.range, address)
    }
}
