//! The firewall: masquerading, published ports and guarded bridges, by nftables ([`nft::Nftables`]) or by iptables
//! ([`ipt::Iptables`]).
//!
//! Both find what they made by the owner's tag ([`Owner::tag`]), which every element and rule carries as its comment; no
//! state is kept elsewhere. Both work in the network namespace that the calling thread is in: open and use them there.

pub mod forward;
mod forward_legacy;
pub mod ipt;
mod localnet;
pub mod nft;
pub mod overlay;
mod service;
#[cfg(test)]
mod tests;

pub use service::{SERVICE_MARK, mark_service};

use crate::{Error, Result, names, names::Owner};
use ipnetwork::IpNetwork;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::{fmt, str::FromStr};

/// A transport protocol that can be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// The number in an IP header (IANA's protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The protocol of that number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

impl FromStr for Protocol {
    type Err = Error;

    /// Reads `tcp`, `udp` or `sctp`, in lower or upper case.
    fn from_str(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            "sctp" => Ok(Protocol::Sctp),
            _ => Err(Error::Invalid {
                what: "protocol",
                value: text.into(),
                why: "must be tcp, udp or sctp".into(),
            }),
        }
    }
}

/// A port of the host that leads to a port of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// The address of the host: None for all of them, of both families; unspecified (`0.0.0.0`, `::`) for all of its
    /// family. A mapping for a family in which the container has no address is passed over, as the reference plugins do.
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// How ports are published; the fields are those of the reference portmap's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishOptions {
    /// Masquerade what comes from the container's own subnet and from the host's loopback: without it, those cannot use the
    /// port (the answer would not come back through the host).
    pub snat: bool,
    /// Masquerade everything that comes through the published ports (wants `snat`).
    pub masq_all: bool,
    /// The bit (0 to 31) of the packet mark that means "masquerade" (iptables).
    pub mark_bit: u32,
    /// A foreign chain of iptables' nat table that sets the mark, and whose owner masquerades by it (iptables).
    pub external_set_mark_chain: Option<String>,
    /// Further conditions for IPv4's ports, in iptables' words, one of them an argument (iptables).
    pub conditions_v4: Vec<String>,
    /// The same for IPv6.
    pub conditions_v6: Vec<String>,
    /// The link for which the caller sets `route_localnet` because of these ports. It is recorded with the rules, and
    /// [`Firewall::tidy`] clears the setting when no port is published any more.
    pub localnet: Option<String>,
}

impl Default for PublishOptions {
    fn default() -> Self {
        PublishOptions {
            snat: true,
            masq_all: false,
            mark_bit: 13,
            external_set_mark_chain: None,
            conditions_v4: Vec::new(),
            conditions_v6: Vec::new(),
            localnet: None,
        }
    }
}

/// What a garbage collection is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Masquerading of containers' addresses.
    Masquerade,
    /// Published ports and what belongs to them.
    Ports,
}

/// A firewall of one network namespace: the calling thread's.
///
/// Every operation can be repeated. The removing ones succeed when there is nothing (any more), and leave what belongs to
/// another owner. Errors name the operation; where the kernel has no such firewall, they say so.
pub trait Firewall {
    /// Masquerades what leaves these container addresses, except for their own subnets and multicast groups. The networks'
    /// prefixes are the subnets.
    fn masquerade(&mut self, owner: &Owner, addrs: &[IpNetwork]) -> Result<()> {
        self.masquerade_except(owner, addrs, &[])
    }

    /// As [`Firewall::masquerade`], but what goes to these destinations leaves with the container's own address.
    fn masquerade_except(&mut self, owner: &Owner, addrs: &[IpNetwork], except: &[IpNetwork]) -> Result<()>;

    /// Takes that back. With `addrs` it is one look-up for each; without, everything is searched for the owner's tag.
    fn unmasquerade(&mut self, owner: &Owner, addrs: &[IpNetwork]) -> Result<()>;

    /// Fails, saying what, when something of [`Firewall::masquerade`] is missing or differs. There may be exceptions.
    fn check_masquerade(&mut self, owner: &Owner, addrs: &[IpNetwork]) -> Result<()> {
        self.check_masquerade_except(owner, addrs, &[])
    }

    /// The same of [`Firewall::masquerade_except`]. There may be more exceptions than these.
    fn check_masquerade_except(
        &mut self,
        owner: &Owner,
        addrs: &[IpNetwork],
        except: &[IpNetwork],
    ) -> Result<()>;

    /// Publishes ports of the container: they lead to the first IPv4 and the first IPv6 address of `addrs`. Reachable from
    /// other hosts, on the host's own addresses, on 127.0.0.1 (when the caller has set route_localnet on the bridge), from
    /// containers of the same subnet and from the container itself (where the host runs br_netfilter, its bridge port must
    /// be a hairpin for that). [::1] is left to programs of the host: the kernel does not route it. All are published, or
    /// none.
    ///
    /// A port that another owner holds is an error ([`Error::PortTaken`]) when that is alive, that is when its host link
    /// ([`Owner::host_veth`]) exists in this namespace; what a dead one left is replaced.
    fn publish(
        &mut self,
        owner: &Owner,
        addrs: &[IpNetwork],
        ports: &[PortMapping],
        options: &PublishOptions,
    ) -> Result<()>;

    /// Takes that back. With `ports` it is one look-up for each; without, everything is searched for the owner's tag.
    fn unpublish(&mut self, owner: &Owner, ports: &[PortMapping]) -> Result<()>;

    /// As [`Firewall::unpublish`] for what may have changed since it was published: `ports` is what is configured now, and `known`
    /// what was put into the table. Without `known`, or where it is wrong, everything is searched for the owner's tag.
    fn unpublish_known(
        &mut self,
        owner: &Owner,
        ports: &[PortMapping],
        known: Option<&nft::Published>,
    ) -> Result<()> {
        let _ = known;
        self.unpublish(owner, ports)
    }

    /// Fails, saying what, when something of [`Firewall::publish`] is missing or differs.
    fn check_publish(
        &mut self,
        owner: &Owner,
        addrs: &[IpNetwork],
        ports: &[PortMapping],
        options: &PublishOptions,
    ) -> Result<()>;

    /// [`Firewall::masquerade`] and [`Firewall::publish`] at once, for callers that do both; nothing is left when one fails.
    fn attach(
        &mut self,
        owner: &Owner,
        addrs: &[IpNetwork],
        ports: &[PortMapping],
        options: &PublishOptions,
    ) -> Result<()> {
        self.masquerade(owner, addrs)?;
        self.publish(owner, addrs, ports, options).inspect_err(|_| {
            let _ = self.unmasquerade(owner, addrs);
        })
    }

    /// Lets into this bridge only what belongs to a connection that its containers opened, what was published, and what
    /// comes from the bridge itself (the reference firewall's `same-bridge`). The bridge exists already.
    fn guard(&mut self, bridge: &str) -> Result<()>;

    /// Takes that back.
    fn unguard(&mut self, bridge: &str) -> Result<()>;

    /// Removes what attachments of the network left that are not valid any more, and returns how many things (elements or
    /// rules) that were. `valid` is asked with the container as it stands in a tag ([`crate::names::clip_container`]).
    fn gc(&mut self, network: &str, what: What, valid: &dyn Fn(&str, &str) -> bool) -> Result<usize>;

    /// Removes what nobody uses any more: chains of subnets, guards of bridges that are gone, and in the end the whole
    /// frame. Something that is added at the same time is never lost.
    fn tidy(&mut self) -> Result<()>;

    /// A second handle of the socket, where there is one. Closing the last one of a socket of nftables waits for what was
    /// deleted, by whomever, to be out of use (nft_rcv_nl_event of net/netfilter/nf_tables_api.c): who is in a hurry has
    /// [`crate::dead::reap_soon_and_close`] do it.
    fn handle(&self) -> Option<OwnedFd> {
        None
    }
}

/// The address that a mapping leads to, per family: (address with its subnet, the host's address when it is a certain one).
fn targets(addrs: &[IpNetwork], mapping: &PortMapping) -> Vec<(IpNetwork, Option<IpAddr>)> {
    let at = mapping.host_ip.filter(|ip| !ip.is_unspecified());
    first_of_each_family(addrs)
        .filter(|net| mapping.host_ip.is_none_or(|ip| ip.is_ipv4() == net.is_ipv4()))
        .map(|net| (net, at))
        .collect()
}

fn first_of_each_family(addrs: &[IpNetwork]) -> impl Iterator<Item = IpNetwork> {
    let v4 = addrs.iter().find(|net| net.is_ipv4());
    let v6 = addrs.iter().find(|net| net.is_ipv6());
    v4.into_iter().chain(v6).copied()
}

/// Is the attachment that a tag names alive? Its host link is looked for in the thread's namespace. Of a tag with a clipped
/// name the link's name is not known: it is taken for alive, as its port must not be taken away.
fn is_alive(tag: &str) -> bool {
    match Owner::parse_tag(tag) {
        Some(owner) if owner.network.contains('~') || owner.container.contains('~') => true,
        Some(owner) => nix::net::if_::if_nametoindex(owner.host_veth().as_str()).is_ok(),
        None => false,
    }
}

/// Is the tag one of another attachment of the same container? Runtimes publish a container's ports in each of its networks.
fn is_sibling(owner: &Owner, tag: &str) -> bool {
    let same = |other: Owner| other.container == names::clip_container(&owner.container);
    !owner.same(tag) && Owner::parse_tag(tag).is_some_and(same)
}

/// The error for a port that somebody else has.
fn taken(protocol: Protocol, port: u16, holder: &str) -> Error {
    Error::PortTaken { port, protocol: protocol.to_string(), holder: holder.to_owned() }
}

/// Is the tag one of this (clipped) network, whose attachment is not valid any more?
fn is_stale(tag: &str, network: &str, valid: &dyn Fn(&str, &str) -> bool) -> bool {
    Owner::parse_tag(tag).is_some_and(|o| o.network == network && !valid(&o.container, &o.ifname))
}

/// Refuses the same host port twice with different targets.
fn distinct(ports: &[PortMapping]) -> Result<()> {
    let key = |p: &PortMapping| (p.host_ip, p.host_port, p.protocol);
    let mut sorted: Vec<_> = ports.iter().collect();
    sorted.sort_by_key(|p| key(p));
    let clash = |pair: &&[&PortMapping]| {
        key(pair[0]) == key(pair[1]) && pair[0].container_port != pair[1].container_port
    };
    sorted.windows(2).find(clash).map_or(Ok(()), |pair| Err(twice(pair[0])))
}

fn twice(mapping: &PortMapping) -> Error {
    Error::Invalid {
        what: "host port",
        value: format!("{}/{}", mapping.host_port, mapping.protocol),
        why: "is given twice, with different ports of the container".into(),
    }
}
