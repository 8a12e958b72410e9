//! Which firewall a configuration means, and what every plugin that uses one does alike.

use crate::bridge::BridgeLock;
use crate::errors::{Coded, Failures, NO_KERNEL_SUPPORT};
use crate::rules;
use cni::Error;
use cni::request::Request;
use ipnetwork::IpNetwork;
use net::firewall::nft::{Kind, Nftables, Records};
use net::firewall::{Firewall, PortMapping, What, ipt, ipt::Iptables};
use net::names::clip_container;
use net::{Owner, dead, dead::Caller};
use ovl_api::model::parse_exceptions;
use std::time::Duration;

/// How long the child of a DEL, or a GC, waits for ADDs before it leaves unused bridges to the next one.
pub const LOCK_TIME: Duration = Duration::from_secs(2);

/// Who writes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// nftables, by netlink.
    Nftables,
    /// The iptables program.
    Iptables,
    /// nftables where the kernel has it, else iptables.
    Auto,
}

impl Backend {
    /// Opens the firewall of the thread's network namespace.
    ///
    /// # Errors
    /// When this host does not have it.
    pub fn open(self) -> Result<Box<dyn Firewall>, Error> {
        let nftables = || rules::nftables().map(|nft| Box::new(nft) as Box<dyn Firewall>);
        let iptables = || Iptables::new().map(|ipt| Box::new(ipt) as Box<dyn Firewall>);
        match self {
            Backend::Nftables => nftables(),
            Backend::Iptables => iptables(),
            Backend::Auto => match nftables() {
                Err(net::Error::Unsupported(_)) => iptables(),
                opened => opened,
            },
        }
        .coded()
    }
}

/// Who looks for what attachments left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// A DEL, which runs no program that it need not.
    Del,
    /// A GC, which looks also where only iptables itself can: in tables of its legacy variant.
    Gc,
}

/// The firewalls in which an attachment may have left something, whatever today's configuration says: nftables, and
/// iptables when it is configured or has chains of Weft's.
///
/// # Errors
/// When the configured one cannot be opened. A host without nftables has nothing in it.
pub fn all(configured: Option<Backend>, search: Search) -> Result<Vec<Box<dyn Firewall>>, Error> {
    let mut all: Vec<Box<dyn Firewall>> = Vec::new();
    let mut has_chains = search == Search::Gc && [false, true].into_iter().any(ipt::has_legacy);
    match Nftables::open() {
        Ok(mut nft) => {
            has_chains = nft.has_iptables_chains().coded()? || has_chains;
            all.push(Box::new(nft));
        }
        Err(net::Error::Unsupported(_)) => has_chains |= configured == Some(Backend::Auto),
        Err(error) => return Err(error).coded(),
    }
    if configured == Some(Backend::Iptables) {
        all.push(Backend::Iptables.open()?);
    } else if has_chains {
        match Backend::Iptables.open() {
            Ok(iptables) => all.push(iptables),
            Err(error) => eprintln!("cannot look for rules in iptables: {error}"),
        }
    }
    Ok(all)
}

/// Passes over an error that says that this kernel has no such firewall: nothing of Weft's is in it then.
pub fn supported<T: Default>(done: net::Result<T>) -> Result<T, Error> {
    match done {
        Err(net::Error::Unsupported(_)) => Ok(T::default()),
        done => done.coded(),
    }
}

/// What `ipMasqBackend` means.
///
/// # Errors
/// Code 7 for another word.
pub fn masquerade_backend(word: Option<&str>) -> Result<Backend, Error> {
    match word.unwrap_or_default() {
        "" | "nftables" => Ok(Backend::Nftables),
        "iptables" => Ok(Backend::Iptables),
        other => Err(Error::config("ipMasqBackend", format!("{other:?}"), "\"nftables\" or \"iptables\"")),
    }
}

/// What `nonMasqueradeCIDRs` means: destinations to which packets leave with the container's own address.
///
/// # Errors
/// Code 7 for what is no CIDR.
pub fn exceptions(cidrs: &[String]) -> Result<Vec<IpNetwork>, Error> {
    parse_exceptions(cidrs.iter().map(String::as_str))
        .map_err(|bad| Error::config("nonMasqueradeCIDRs", bad.value, bad.expected))
}

/// Undoes an ADD's masquerading, and what was made for it alone.
pub fn unmasquerade(backend: Backend, owner: &Owner) -> Result<(), Error> {
    let mut firewall = backend.open()?;
    firewall.unmasquerade(owner, &[]).and_then(|()| firewall.tidy()).coded()
}

/// Removes an attachment's masquerading from every firewall (DEL): the configuration may have changed since ADD, and the label
/// says what is the attachment's. What `prevResult` has is looked for first. The firewalls are for [`finish`].
pub fn unmasquerade_all(
    request: &Request,
    configured: Option<Backend>,
    failures: &mut Failures,
) -> Vec<Box<dyn Firewall>> {
    let mut firewalls = failures.value(all(configured, Search::Del)).unwrap_or_default();
    let ips = request.conf.prev_result.iter().flat_map(|result| &result.ips);
    let addresses: Vec<_> = ips.map(|ip| ip.address).collect();
    let owner = owner(request);
    for firewall in &mut firewalls {
        failures.note(supported(firewall.unmasquerade(&owner, &addresses)));
        failures.note(tidy_iptables(firewall.as_mut()));
    }
    firewalls
}

/// Undoes an ADD's published ports, and what was made for them alone.
pub fn unpublish(backend: Backend, request: &Request, ports: &[PortMapping]) -> Result<(), Error> {
    rules::unpublish(request, |known| {
        let mut firewall = backend.open()?;
        firewall.unpublish_known(&owner(request), ports, known).and_then(|()| firewall.tidy()).coded()
    })
}

/// Removes an attachment's published ports from every firewall (DEL), as [`unmasquerade_all`] its masquerading. Those of `ports` are
/// looked for in any case. The firewalls are for [`finish`].
pub fn unpublish_all(
    request: &Request,
    configured: Option<Backend>,
    ports: &[PortMapping],
    failures: &mut Failures,
) -> Vec<Box<dyn Firewall>> {
    let mut firewalls = Vec::new();
    let unpublished = rules::unpublish(request, |known| {
        firewalls = match all(configured, Search::Del) {
            // A host without this firewall has no ports in it either.
            Err(error) if error.code == NO_KERNEL_SUPPORT => Vec::new(),
            opened => opened?,
        };
        let mut of_each = Failures::default();
        for firewall in &mut firewalls {
            of_each.note(supported(firewall.unpublish_known(&owner(request), ports, known)));
            of_each.note(tidy_iptables(firewall.as_mut()));
        }
        of_each.outcome()
    });
    failures.note(unpublished);
    firewalls
}

/// Done with the firewall after an ADD. Its socket is closed where nobody waits for it.
pub fn release(firewall: &dyn Firewall) {
    if let Some(handle) = firewall.handle() {
        dead::close_by_reaper(&[handle]);
    }
}

/// Done with firewalls after a DEL, perhaps with dead links: a child process does what takes its time.
pub fn finish<'a>(
    firewalls: impl IntoIterator<Item = &'a dyn Firewall>,
    caller: Caller,
) -> Result<(), Error> {
    let handles = firewalls.into_iter().filter_map(Firewall::handle).collect();
    dead::reap_soon_and_close(handles, caller, tidy_quietly).coded().map(drop)
}

/// Drops the empty frame of iptables, which no child does: it takes programs. That of nftables is left to [`finish`].
pub fn tidy_iptables(firewall: &mut dyn Firewall) -> Result<(), Error> {
    if firewall.handle().is_some() { Ok(()) } else { firewall.tidy().coded() }
}

/// Who owns what a request puts into the kernel.
pub fn owner(request: &Request) -> Owner {
    Owner::new(&*request.conf.name, &*request.container_id, &*request.ifname)
}

/// Removes what the reference plugins made for an attachment that is now ours to detach, as after an upgrade of a node with
/// running pods. What Weft made is known by its link in `prevResult`, and nothing is looked for then.
pub fn forget_reference(request: &Request, what: What) -> Result<(), Error> {
    let veth = owner(request).host_veth();
    let interfaces = request.conf.prev_result.iter().flat_map(|result| &result.interfaces);
    if interfaces.into_iter().any(|interface| interface.name == veth) {
        return Ok(());
    }
    ipt::forget_reference(&request.conf.name, &request.container_id, what).coded().map(drop)
}

/// The test whether an attachment is still valid, for GC. Containers are asked about as they stand in tags, long IDs
/// clipped.
pub fn valid(request: &Request) -> impl Fn(&str, &str) -> bool {
    let listed = request.conf.valid_attachments.iter().flatten();
    let listed: Vec<_> =
        listed.map(|each| (clip_container(&each.container_id), each.ifname.clone())).collect();
    move |container, ifname| listed.iter().any(|(id, name)| id == container && name == ifname)
}

/// Removes what stale attachments of the network left in any firewall, and the base chains that nothing uses.
pub fn gc(request: &Request, configured: Option<Backend>, what: What) -> Result<(), Error> {
    let kinds: &[Kind] = if what == What::Ports { &[Kind::Ports] } else { &[Kind::Link, Kind::Watch] };
    for kind in kinds {
        rules::records().into_iter().for_each(|all| all.gc(&request.conf.name, *kind, &valid(request)));
    }
    for mut firewall in all(configured, Search::Gc)? {
        let removed = supported(firewall.gc(&request.conf.name, what, &valid(request)))?;
        if removed > 0 {
            eprintln!("network {}: {removed} stale entries removed from the firewall", request.conf.name);
        }
        supported(firewall.tidy())?;
    }
    forget_bridges()
}

/// Restores what another program removed, and drops the empty frame. For the child that outlives a DEL: no caller is left to hear
/// of an error.
pub fn tidy_quietly() {
    if let Some(records) = rules::records() {
        let _ = net::firewall::nft::restore_if_lost(records);
    }
    if let Ok(mut nft) = Nftables::open() {
        let _ = tidy(&mut nft);
    }
}

/// Removes the rules of bridges without attachments, then the empty frame.
pub fn tidy(nft: &mut Nftables) -> Result<(), Error> {
    // While ADDs are under way all the time, this is left to the DELs of theirs.
    if !supported(nft.unused_bridges())?.is_empty()
        && let Some(_lock) = BridgeLock::exclusive_within(LOCK_TIME)?
    {
        nft.forget_unused_bridges().coded()?;
    }
    rules::records().into_iter().for_each(Records::tidy);
    supported(nft.tidy())
}

/// As [`tidy`], whatever backend the configuration names: bridges have their rules in nftables.
pub fn forget_bridges() -> Result<(), Error> {
    match Nftables::open() {
        Err(net::Error::Unsupported(_)) => Ok(()),
        opened => tidy(&mut opened.coded()?),
    }
}
