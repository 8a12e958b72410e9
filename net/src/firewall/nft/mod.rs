//! The nftables backend: a table for IP, `inet weft`, and one for frames, `bridge weft`, by netlink; no program is run.
//!
//! The frame of a table ([`base`]) is made with the first attachment and removed with the last ([`Firewall::tidy`]).
//! An attachment is a handful of elements in sets and maps, added in one transaction: a hash insertion each, whatever is in
//! the table already. Before that, one question tells what stands in its way (no frame yet, no chain for its subnet, a port
//! that is taken; see [`plan`]); a transaction that fails is avoided, as the kernel waits 4 to 20 ms to undo it.
//!
//! The kernel also waits so long where a socket is closed soon after a deletion was made, by whomever: a process that is
//! to end quickly hands its socket on ([`Firewall::handle`]).

pub(super) mod base;
mod bridge;
pub(super) mod element;
pub(super) mod expr;
mod keeper;
mod map;
pub(super) mod plan;
mod rebuild;
mod record;
mod records;
mod remove;
mod restore;
pub(super) mod socket;
mod spoof;
pub(super) mod table;
pub(super) mod wire;

pub(super) use base::Services;
pub use bridge::BridgeRules;
pub use keeper::{keep, keep_forever};
pub use record::{Bound, Content, Kind, NetnsMark, Record};
pub use records::{Published, Records};
pub use restore::{Restored, restore_if_lost};
pub use socket::Sent;
pub use spoof::Sources;

use super::{
    Firewall, PortMapping, PublishOptions, What, distinct, first_of_each_family, is_alive, is_sibling,
    is_stale, targets,
};
use crate::{Error, Result, names, names::Owner};
use element::{Element, Key, Map, Scope, Value, is_hosts, subnet};
use ipnetwork::IpNetwork;
use socket::{Question, Socket};
use std::os::fd::OwnedFd;
use table::Table;

/// Whether there is such a chain in a table of iptables' (of ip6tables' when `v6`), as its nftables variant makes them.
pub(super) fn has_chain(v6: bool, table: &str, chain: &str) -> Result<bool> {
    let family = if v6 { wire::IPV6 } else { wire::IPV4 };
    let mut found = false;
    let asked = Socket::open().and_then(|mut socket| {
        let asked =
            socket.ask(&[Question::Foreign { family, table, chain }], |_, answer| found = answer.is_ok());
        // Asked in DELs, shortly after something was deleted: closing it would wait for that.
        crate::dead::close_by_reaper(&socket.handle().into_iter().collect::<Vec<_>>());
        asked
    });
    match asked {
        Err(Error::Unsupported(_)) => Ok(false),
        asked => asked.map(|()| found),
    }
}

/// Tidies the table of attachments, and returns whether ports are published in it. A kernel without nftables has none.
pub(super) fn tidy_and_has_ports() -> Result<bool> {
    let asked = Nftables::open().and_then(|mut nft| {
        let asked = nft.tidy().and_then(|()| nft.has_ports());
        crate::dead::close_by_reaper(&nft.handle().into_iter().collect::<Vec<_>>());
        asked
    });
    match asked {
        Err(Error::Unsupported(_)) => Ok(false),
        asked => asked,
    }
}

/// nftables in the network namespace in which it was opened. It must be used by a thread that is in that namespace.
pub struct Nftables {
    socket: Socket,
    /// How a table that is made knows the host's services of Weft.
    pub(super) services: Services,
    /// By which tables that are missing are restored before something is added.
    records: Option<Records>,
}

/// What a caller wants to be in the table: elements, and the scopes whose sets and chains they need.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
struct Wanted {
    elements: Vec<Element>,
    scopes: Vec<Scope>,
}

impl Wanted {
    /// The table of the elements, which are all of one.
    fn table(&self) -> Table {
        self.elements.first().map_or(Table::Inet, |e| e.key.map.table())
    }

    fn element(&mut self, key: Key, value: Value, tag: &str) {
        self.elements.push(Element { key, value, tag: tag.to_owned() });
    }

    fn masquerade(&mut self, owner: &Owner, addrs: &[IpNetwork], except: &[IpNetwork]) {
        for net in addrs {
            let excepted = excepted(*net, except);
            if excepted.is_empty() {
                self.element(Key::address(Map::masq(*net), net.ip()), Value::None, &owner.tag());
                self.scopes.push(Scope::Subnet(subnet(*net)));
                continue;
            }
            self.element(Key::address(Map::masq_except(*net), net.ip()), Value::None, &owner.tag());
            for to in excepted {
                self.element(Key::exception(*net, to), Value::None, &owner.tag());
            }
            self.scopes.push(Scope::Excepting(subnet(*net)));
        }
    }

    fn publish(
        &mut self,
        owner: &Owner,
        addrs: &[IpNetwork],
        ports: &[PortMapping],
        options: &PublishOptions,
    ) -> Result<()> {
        refuse_iptables_options(options)?;
        distinct(ports)?;
        let tag = owner.tag();
        let before = self.elements.len();
        for mapping in ports {
            for (net, at) in targets(addrs, mapping) {
                let key = Key::port(at, net.is_ipv6(), mapping.protocol, mapping.host_port);
                self.element(key, Value::target(net.ip(), mapping.container_port), &tag);
            }
        }
        let published: Vec<_> = first_of_each_family(addrs)
            .filter(|net| self.elements[before..].iter().any(|e| e.value.address() == Some(net.ip())))
            .collect();
        let with_ports = published.iter().any(IpNetwork::is_ipv4);
        for link in options.localnet.iter().filter(|_| with_ports) {
            self.element(Key::link(Map::Localnet, link), Value::None, "");
        }
        for net in published.into_iter().filter(|_| options.snat) {
            self.element(Key::address(Map::hairpin(net), net.ip()), Value::None, &tag);
            if is_hosts(subnet(net)) {
                let pairs = Map::hairpin_self(net.is_ipv6());
                self.element(Key::address(pairs, net.ip()), Value::None, &tag);
            }
            self.scopes.push(Scope::Subnet(subnet(net)));
            if options.masq_all {
                self.element(Key::address(Map::hairpin_all(net.is_ipv6()), net.ip()), Value::None, &tag);
                self.scopes.push(Scope::All);
            }
        }
        Ok(())
    }

    /// Sorted by map, so that each map's elements go into one message, and each key once.
    fn sorted(mut self) -> Self {
        self.scopes
            .extend(self.elements.iter().any(|e| e.key.map.scope().is_some()).then_some(Scope::Tracked));
        self.elements.sort_by(|a, b| a.key.cmp(&b.key));
        self.elements.dedup_by(|a, b| a.key == b.key);
        self.scopes.sort();
        self.scopes.dedup();
        self
    }
}

/// The exceptions of an address's family that lie in no other, as the kernel refuses ranges that overlap.
fn excepted(net: IpNetwork, except: &[IpNetwork]) -> Vec<IpNetwork> {
    let mut all: Vec<IpNetwork> = except
        .iter()
        .filter(|to| to.is_ipv4() == net.is_ipv4())
        .map(|to| element::without_host_bits(*to))
        .collect();
    all.sort();
    let mut outermost: Vec<IpNetwork> = Vec::new();
    for to in all {
        if !outermost.last().is_some_and(|outer| outer.contains(to.network())) {
            outermost.push(to);
        }
    }
    outermost
}

/// What is written in iptables' language has no meaning here; to ignore it would open or shut what was not meant.
fn refuse_iptables_options(options: &PublishOptions) -> Result<()> {
    let words = |list: &[String]| (!list.is_empty()).then(|| list.join(" "));
    let given = [
        ("conditionsV4", words(&options.conditions_v4)),
        ("conditionsV6", words(&options.conditions_v6)),
        ("externalSetMarkChain", options.external_set_mark_chain.clone()),
    ];
    match given.into_iter().find_map(|(what, value)| Some((what, value?))) {
        None => Ok(()),
        Some((what, value)) => Err(Error::Invalid {
            what,
            value,
            why: "is in iptables' language, which nftables does not take: use the iptables backend".into(),
        }),
    }
}

impl Nftables {
    /// Returns whether iptables' own forward chain (of its nftables variant) has the policy drop: one question, however many
    /// chains there are.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn iptables_drops(&mut self) -> Result<bool> {
        super::forward::iptables_drops(&mut self.socket)
    }

    /// Opens a netlink socket in the thread's network namespace. Nothing is asked of the kernel yet.
    pub fn open() -> Result<Self> {
        Ok(Nftables { socket: Socket::open()?, services: Services::default(), records: None })
    }

    /// See [`crate::ns::cookie`].
    pub fn cookie(&self) -> Option<u64> {
        self.socket.cookie()
    }

    /// Fails when the kernel has no nftables, or the caller may not use them.
    pub fn probe(&mut self) -> Result<()> {
        self.socket.generation().and_then(|generation| match generation {
            0 => Err(Error::Unsupported("nftables (CONFIG_NF_TABLES)".into())),
            _ => Ok(()),
        })
    }

    /// Whether there is a chain of Weft's in tables of iptables' (and ip6tables'), as its nftables variant makes them: one
    /// question, and no program.
    ///
    /// # Errors
    /// When the kernel does not answer; one without nftables has none.
    pub fn has_iptables_chains(&mut self) -> Result<bool> {
        let mut questions = Vec::new();
        for family in [wire::IPV4, wire::IPV6] {
            for chain in super::ipt::OF_NAT {
                questions.push(Question::Foreign { family, table: "nat", chain });
            }
        }
        let mut found = false;
        match self.socket.ask(&questions, |_, answer| found |= answer.is_ok()) {
            Err(Error::Unsupported(_)) => Ok(false),
            asked => asked.map(|()| found),
        }
    }

    /// What an owner's ports need, without those that lead to its container already, through another of its networks.
    fn left_by_siblings(
        &mut self,
        owner: &Owner,
        addrs: &[IpNetwork],
        ports: &[PortMapping],
        options: &PublishOptions,
    ) -> Result<Wanted> {
        let mut wanted = Wanted::default();
        for net in first_of_each_family(addrs) {
            let mut open = Vec::new();
            for mapping in ports {
                let keys: Vec<Key> = targets(&[net], mapping)
                    .into_iter()
                    .map(|(net, at)| Key::port(at, net.is_ipv6(), mapping.protocol, mapping.host_port))
                    .collect();
                let found = self.find(&keys.iter().collect::<Vec<_>>())?;
                let leads_there = |e: &Element| is_sibling(owner, &e.tag) && is_alive(&e.tag);
                if !found.iter().flatten().any(leads_there) {
                    open.push(mapping.clone());
                }
            }
            wanted.publish(owner, &[net], &open, options)?;
        }
        Ok(wanted.sorted())
    }

    /// Removes what was left of other attachments with these addresses, where exceptions are wanted: an address that is
    /// masqueraded without them too has none, and ranges that overlap are refused.
    fn forget_others(&mut self, addrs: &[IpNetwork], wanted: &Wanted) -> Result<()> {
        let mut others = Vec::new();
        for scope in &wanted.scopes {
            let Scope::Excepting(subnet) = *scope else { continue };
            let of_scope = addrs.iter().filter(|net| element::subnet(**net) == subnet);
            let of_scope: Vec<_> = of_scope.map(IpNetwork::ip).collect();
            others.extend(of_scope.iter().map(|ip| Key::address(Map::Masq(subnet), *ip)));
            self.socket.elements(Map::Except(subnet), |element| {
                let is_of = of_scope.iter().any(|ip| element.key.is_exception_of(*ip));
                if is_of && !wanted.elements.contains(&element) {
                    others.push(element.key);
                }
            })?;
        }
        self.delete(others, &|_| true).map(drop)
    }

    /// What [`Firewall::check_masquerade_except`] asks for. An address that has exceptions, of which the caller does not know, is in
    /// the set of those.
    fn masquerade_to_check(
        &mut self,
        owner: &Owner,
        addrs: &[IpNetwork],
        except: &[IpNetwork],
    ) -> Result<Wanted> {
        let mut wanted = Wanted::default();
        wanted.masquerade(owner, addrs, except);
        let tag = owner.tag();
        let excepting: Vec<Key> =
            addrs.iter().map(|net| Key::address(Map::masq_except(*net), net.ip())).collect();
        let found = self.find(&excepting.iter().collect::<Vec<_>>())?;
        for (net, found) in addrs.iter().zip(found) {
            let plain = Key::address(Map::masq(*net), net.ip());
            let at = wanted.elements.iter().position(|element| element.key == plain);
            if let (Some(at), Some(found)) = (at, found.filter(|found| found.tag == tag)) {
                wanted.elements[at] = found;
                wanted.scopes.retain(|scope| *scope != Scope::Subnet(subnet(*net)));
                wanted.scopes.push(Scope::Excepting(subnet(*net)));
            }
        }
        Ok(wanted.sorted())
    }

    /// What was sent so far: what the operations cost.
    pub fn sent(&self) -> Sent {
        self.socket.sent
    }
}

impl Firewall for Nftables {
    fn masquerade_except(&mut self, owner: &Owner, addrs: &[IpNetwork], except: &[IpNetwork]) -> Result<()> {
        let mut wanted = Wanted::default();
        wanted.masquerade(owner, addrs, except);
        self.forget_others(addrs, &wanted)?;
        self.put(wanted.sorted()).map(drop)
    }

    fn unmasquerade(&mut self, owner: &Owner, addrs: &[IpNetwork]) -> Result<()> {
        let whose = |tag: &str| owner.same(tag);
        let keys = |map: fn(IpNetwork) -> Map| {
            addrs.iter().map(|net| Key::address(map(*net), net.ip())).collect::<Vec<_>>()
        };
        let (plain, excepting) = (keys(Map::masq), keys(Map::masq_except));
        let known: Vec<&Key> = plain.iter().chain(&excepting).collect();
        let is_any = self.find(&known)?.iter().any(Option::is_some);
        let mut removed = if is_any { self.delete(plain, &whose)? } else { 0 };
        if is_any && removed < addrs.len() {
            let (excepting, seen) = self.with_companions(excepting)?;
            let excepted = self.delete(excepting, &whose)?;
            // Restored between the two looks, an address is found without its exceptions.
            let is_late = excepted > 0 && seen.is_some_and(|seen| seen.is_empty());
            removed = if is_late { 0 } else { removed + excepted };
        }
        // Without addresses, or with those of an earlier attachment, as a caller with an outdated result has them.
        if removed == 0 {
            self.take(What::Masquerade, Vec::new(), &whose)?;
        }
        Ok(())
    }

    fn check_masquerade_except(
        &mut self,
        owner: &Owner,
        addrs: &[IpNetwork],
        except: &[IpNetwork],
    ) -> Result<()> {
        let wanted = self.masquerade_to_check(owner, addrs, except)?;
        self.check(&wanted)
    }

    fn publish(
        &mut self,
        owner: &Owner,
        addrs: &[IpNetwork],
        ports: &[PortMapping],
        options: &PublishOptions,
    ) -> Result<()> {
        let mut wanted = Wanted::default();
        wanted.publish(owner, addrs, ports, options)?;
        match self.put(wanted.sorted()) {
            Err(Error::PortTaken { holder, .. }) if is_sibling(owner, &holder) => {
                let rest = self.left_by_siblings(owner, addrs, ports, options)?;
                self.put(rest)
            }
            put => put,
        }
        .map(drop)
    }

    fn unpublish(&mut self, owner: &Owner, ports: &[PortMapping]) -> Result<()> {
        let keys = ports.iter().flat_map(possible_keys).collect();
        self.take(What::Ports, keys, &|tag| owner.same(tag)).map(drop)
    }

    fn unpublish_known(
        &mut self,
        owner: &Owner,
        ports: &[PortMapping],
        known: Option<&Published>,
    ) -> Result<()> {
        let configured: Vec<Key> = ports.iter().flat_map(possible_keys).collect();
        self.take_known(owner, configured, known)
    }

    fn check_publish(
        &mut self,
        owner: &Owner,
        addrs: &[IpNetwork],
        ports: &[PortMapping],
        options: &PublishOptions,
    ) -> Result<()> {
        let mut wanted = Wanted::default();
        wanted.publish(owner, addrs, ports, options)?;
        let wanted = wanted.sorted();
        self.check(&wanted).or_else(|error| {
            let rest = self.left_by_siblings(owner, addrs, ports, options)?;
            if rest == wanted { Err(error) } else { self.check(&rest) }
        })
    }

    fn attach(
        &mut self,
        owner: &Owner,
        addrs: &[IpNetwork],
        ports: &[PortMapping],
        options: &PublishOptions,
    ) -> Result<()> {
        let mut wanted = Wanted::default();
        wanted.masquerade(owner, addrs, &[]);
        wanted.publish(owner, addrs, ports, options)?;
        match self.put(wanted.sorted()) {
            Err(Error::PortTaken { holder, .. }) if is_sibling(owner, &holder) => {
                let mut rest = self.left_by_siblings(owner, addrs, ports, options)?;
                rest.masquerade(owner, addrs, &[]);
                self.put(rest.sorted())
            }
            put => put,
        }
        .map(drop)
    }

    fn guard(&mut self, bridge: &str) -> Result<()> {
        let mut wanted = Wanted::default();
        for map in [Map::Guarded, Map::BridgePairs] {
            wanted.element(Key::bridge(map, bridge), Value::None, "");
        }
        self.put(wanted.sorted()).map(drop)
    }

    fn unguard(&mut self, bridge: &str) -> Result<()> {
        self.delete(bridge::keys_of(bridge), &|_| true).map(drop)
    }

    fn gc(&mut self, network: &str, what: What, valid: &dyn Fn(&str, &str) -> bool) -> Result<usize> {
        let network = names::clip_network(network);
        self.take(what, Vec::new(), &|tag| is_stale(tag, &network, valid))
    }

    fn tidy(&mut self) -> Result<()> {
        self.remove_unused()
    }

    fn handle(&self) -> Option<OwnedFd> {
        self.socket.handle()
    }
}

/// The keys under which a mapping may be found, when the container's addresses are not known.
fn possible_keys(mapping: &PortMapping) -> Vec<Key> {
    let at = mapping.host_ip.filter(|ip| !ip.is_unspecified());
    [false, true]
        .into_iter()
        .filter(|v6| mapping.host_ip.is_none_or(|ip| ip.is_ipv6() == *v6))
        .map(|v6| Key::port(at, v6, mapping.protocol, mapping.host_port))
        .collect()
}
