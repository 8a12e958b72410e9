//! The packet filter's rules when another program removes them (`nft flush ruleset`): each ADD records in memory what it puts into
//! nftables, and whichever call comes next restores what is gone. iptables' rules are not recorded.

use crate::firewall::owner;
use crate::place;
use cni::Error;
use cni::Version;
use cni::plugin::Plugin;
use cni::request::Request;
use cni::types::AddResult;
use net::Netlink;
use net::firewall::nft::{self, Content, Kind, NetnsMark, Nftables, Published, Record, Records, Restored};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;

static RECORDS: OnceLock<Option<Records>> = OnceLock::new();

fn find(cookie: Option<u64>) -> Option<Records> {
    let records = Records::of_cookie(&place::run().join("rules"), cookie);
    records.inspect_err(|error| eprintln!("rules are not kept for another program's flush: {error}")).ok()
}

/// The records of the host's network namespace; `None`, after a message, when it cannot be identified.
pub fn records() -> Option<&'static Records> {
    RECORDS.get_or_init(|| find(net::ns::cookie())).as_ref()
}

/// Identifies the host's network namespace by a socket that is open in it, which saves [`records`] one.
pub fn identify(host: &Netlink) {
    RECORDS.get_or_init(|| find(host.cookie()));
}

/// Opens nftables: what another program removed is restored with the first addition.
///
/// # Errors
/// The kernel has none, or refuses.
pub fn nftables() -> net::Result<Nftables> {
    let nft = Nftables::open()?;
    RECORDS.get_or_init(|| find(nft.cookie()));
    Ok(match records() {
        Some(records) => nft.with_records(records.clone()),
        None => nft,
    })
}

/// Records what an attachment is about to have in nftables. An ADD without a record works, so that it cannot be written is
/// a message only. `localnet` is a link whose `route_localnet` is about to be set.
pub fn record(request: &Request, content: Content, localnet: Option<&str>) {
    let Some(records) = records() else { return };
    let mark = |path: &PathBuf| {
        let found = fs::metadata(path).ok()?;
        Some(NetnsMark { path: path.clone(), id: (found.dev(), found.ino()) })
    };
    let owner = owner(request);
    // What has a link of Weft's is there as long as that is; the container behind published ports may have another's.
    let veth = owner.host_veth();
    let interfaces = request.conf.prev_result.iter().flat_map(|result| &result.interfaces);
    let is_of_link =
        content.kind() != Kind::Ports || interfaces.into_iter().any(|interface| interface.name == veth);
    let netns = request.netns.as_ref().filter(|_| !is_of_link).and_then(mark);
    let record = Record { owner, netns, content };
    let put = records.put(&record);
    let noted = localnet.map_or(Ok(()), |link| records.note_localnet(link));
    if let Err(error) = put.and(noted) {
        eprintln!("rules are not kept for another program's flush: {error}");
    }
}

/// Notes that an attachment is made without published ports, so that its DEL need not look for any. That it cannot be noted is a
/// message only.
pub fn note_portless(request: &Request) {
    if let Some(records) = records()
        && let Err(error) = records.note_portless(&owner(request))
    {
        eprintln!("DEL will look through all published ports: {error}");
    }
}

/// Removes an attachment's published ports by `unpublish`, which gets what the ADD put into nftables, as far as that is known for
/// certain.
///
/// # Errors
/// Those of `unpublish`. The next DEL looks through everything then.
pub fn unpublish<T>(
    request: &Request,
    unpublish: impl FnOnce(Option<&Published>) -> Result<T, Error>,
) -> Result<T, Error> {
    let owner = owner(request);
    let known = records().and_then(|records| records.begin_unpublishing(&owner));
    let done = unpublish(known.as_ref())?;
    if let Some(records) = records() {
        records.end_unpublishing(&owner);
    }
    Ok(done)
}

/// Removes an attachment's records, before what they are about.
pub fn forget(request: &Request, kinds: &[Kind]) {
    if let Some(records) = records() {
        kinds.iter().for_each(|kind| records.remove(&owner(request), *kind));
    }
}

/// Restores what another program removed; for calls that add nothing. That it fails is a message only.
pub fn restore() {
    let Some(records) = records() else { return };
    report(nft::restore_if_lost(records));
}

fn report(restored: net::Result<Restored>) {
    match restored {
        Ok(restored) => {
            restored.refused.iter().for_each(|file| eprintln!("no record of rules: {file}"));
            if restored.is_any() {
                let count = restored.elements;
                eprintln!("another program removed rules of the packet filter: {count} elements restored");
            }
        }
        Err(error) => eprintln!("cannot restore the packet filter: {error}"),
    }
}

/// A plugin, each call of which restores what another program removed.
pub struct Restoring(pub &'static dyn Plugin);

impl Restoring {
    /// Whether the plugin's own ADD and DEL see to it: the one with what it adds, the other in the child that it leaves.
    fn restores(&self) -> bool {
        matches!(self.0.name(), "bridge" | "portmap" | "overlay")
    }
}

impl Plugin for Restoring {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn about(&self) -> String {
        self.0.about()
    }

    fn versions(&self) -> &'static [Version] {
        self.0.versions()
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        if !self.restores() {
            restore();
        }
        let added = self.0.add(request);
        if added.is_err() && self.restores() {
            restore();
        }
        added
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let deleted = self.0.del(request);
        if !self.restores() {
            restore();
        }
        deleted
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        restore();
        self.0.check(request)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let collected = self.0.gc(request);
        restore();
        collected
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        restore();
        self.0.status(request)
    }
}
