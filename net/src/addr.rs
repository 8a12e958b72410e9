//! Addresses of links.

use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressHeaderFlags, AddressMessage, AddressScope,
    CacheInfo,
};

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::netlink::Netlink;
use crate::route::LOCAL;
use crate::socket::emit;
use crate::wire;

/// IFA_* of linux/if_addr.h.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;

/// An address as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addr {
    /// The index of its link.
    pub index: u32,
    /// The address with the length of its subnet's prefix.
    pub net: IpNetwork,
    /// IFA_F_* of linux/if_addr.h.
    pub flags: u32,
    /// RT_SCOPE_*: 0 global, 253 link, 254 host.
    pub scope: u8,
}

impl Addr {
    /// IPv6's duplicate address detection is under way: the address cannot be used yet.
    pub fn is_tentative(&self) -> bool {
        self.flags & libc::IFA_F_TENTATIVE != 0
    }

    /// Another machine has the address.
    pub fn is_duplicate(&self) -> bool {
        self.flags & libc::IFA_F_DADFAILED != 0
    }

    /// The kernel may choose the address as a source. A link-local IPv6 address counts as one, on its link.
    pub fn may_be_source(&self) -> bool {
        match self.net {
            IpNetwork::V4(_) => self.scope == u8::from(AddressScope::Universe),
            IpNetwork::V6(_) => self.flags & libc::IFA_F_DEPRECATED == 0,
        }
    }

    /// Its lifetime does not end.
    pub fn is_permanent(&self) -> bool {
        self.flags & libc::IFA_F_PERMANENT != 0
    }

    fn parse(body: &[u8]) -> Option<Addr> {
        let header = AddressHeader::parse(body).ok()?;
        let attributes = body.get(header.buffer_len()..)?;
        // Of a point-to-point link IFA_ADDRESS is the other end; IPv6 has IFA_LOCAL only then.
        let bytes = wire::find(attributes, IFA_LOCAL).or_else(|| wire::find(attributes, IFA_ADDRESS))?;
        Some(Addr {
            index: header.index,
            net: IpNetwork::new(ip_of(bytes)?, header.prefix_len).ok()?,
            flags: wire::find(attributes, IFA_FLAGS)
                .and_then(wire::u32_of)
                .unwrap_or(header.flags.bits().into()),
            scope: header.scope.into(),
        })
    }
}

/// An address of 4 or 16 bytes.
pub(crate) fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The netlink family of an address.
pub(crate) fn family_of(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// An address to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewAddr {
    /// The address with the length of its subnet's prefix.
    pub net: IpNetwork,
    /// IPv6: usable at once, without duplicate address detection (IFA_F_NODAD).
    pub nodad: bool,
    /// No route to the subnet comes with it (IFA_F_NOPREFIXROUTE).
    pub noprefixroute: bool,
    /// The kernel never chooses the address as the source of the host's own packets, nor for masquerade: IPv4 scope link,
    /// IPv6 preferred lifetime 0. An IPv4 address keeps its scope in a replacement: remove it first to change this.
    pub never_source: bool,
}

impl NewAddr {
    /// An address that is usable at once: the address manager saw to it that it is nobody else's.
    pub fn new(net: IpNetwork) -> NewAddr {
        NewAddr { net, nodad: true, noprefixroute: false, never_source: false }
    }

    fn message(&self, index: u32) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = family_of(self.net.ip());
        message.header.prefix_len = self.net.prefix();
        message.header.index = index;
        if self.net.ip().is_loopback() {
            message.header.scope = AddressScope::Host;
        } else if self.never_source && self.net.is_ipv4() {
            message.header.scope = AddressScope::Link;
        }
        message.attributes.push(AddressAttribute::Local(self.net.ip()));
        message.attributes.push(AddressAttribute::Address(self.net.ip()));
        if let IpNetwork::V4(net) = self.net
            && net.prefix() < 31
            && !net.ip().is_loopback()
        {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
        if self.never_source && self.net.is_ipv6() {
            // It is valid for ever, and deprecated at once (RFC 6724, section 5, rule 3).
            let mut lifetimes = CacheInfo::default();
            (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (0, u32::MAX);
            message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
        }
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Nodad, self.nodad && self.net.is_ipv6());
        flags.set(AddressFlags::Noprefixroute, self.noprefixroute);
        if !flags.is_empty() {
            // The header has eight bits of them, kept right for kernels that look there.
            message.header.flags = AddressHeaderFlags::from_bits_truncate(flags.bits() as u8);
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        message
    }
}

impl Batch {
    /// Gives a link an address; refused with EEXIST when it has it already.
    pub fn addr_add(&mut self, index: u32, addr: &NewAddr) -> &mut Batch {
        let what = format!("add address {} to {}", addr.net, self.name_of(index));
        let message = addr.message(index);
        self.push(what, libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, |bytes| emit(bytes, &message))
    }

    /// Gives a link an address, or changes the flags of the one that it has.
    pub fn addr_replace(&mut self, index: u32, addr: &NewAddr) -> &mut Batch {
        let what = format!("set address {} of {}", addr.net, self.name_of(index));
        let message = addr.message(index);
        self.push(what, libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, |bytes| emit(bytes, &message))
    }

    /// Takes an address from a link.
    pub fn addr_del(&mut self, index: u32, net: IpNetwork) -> &mut Batch {
        let what = format!("remove address {net} from {}", self.name_of(index));
        let mut message = NewAddr { nodad: false, ..NewAddr::new(net) }.message(index);
        message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        self.push(what, libc::RTM_DELADDR, 0, |bytes| emit(bytes, &message))
    }
}

impl Netlink {
    /// The addresses of the link with that index, or of all; the kernel picks them.
    pub fn addrs(&mut self, index: Option<u32>) -> Result<Vec<Addr>> {
        let mut message = AddressMessage::default();
        message.header.index = index.unwrap_or(0);
        let mut body = Vec::new();
        emit(&mut body, &message);
        self.channel.strict();
        self.channel.dump("list the addresses", libc::RTM_GETADDR, &body, |kind, body| {
            let addr = Addr::parse(body).filter(|_| kind == libc::RTM_NEWADDR)?;
            index.is_none_or(|index| index == addr.index).then_some(addr)
        })
    }

    /// Waits until no address of the link is tentative any more, that is until IPv6's duplicate address detection is
    /// through, which takes the kernel one to two seconds.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when another machine has one of the addresses, or the detection takes longer than `patience`.
    pub fn wait_for_dad(&mut self, index: u32, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        loop {
            let addrs = self.addrs(Some(index))?;
            if let Some(addr) = addrs.iter().find(|addr| addr.is_duplicate()) {
                let net = addr.net;
                return Err(Error::Mismatch(format!("another machine on the link has the address {net}")));
            }
            let Some(addr) = addrs.iter().find(|addr| addr.is_tentative()) else { return Ok(()) };
            if Instant::now() >= end {
                let (net, limit) = (addr.net, patience.as_secs_f32());
                return Err(Error::Mismatch(format!(
                    "duplicate address detection of {net} took more than {limit} s"
                )));
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Waits until packets to these addresses are taken here; false when they are not after `patience`. For IPv6 the kernel
    /// answers the request that adds an address at once, also without duplicate address detection, and puts its local route
    /// in place in the background (addrconf_dad_work), which has to wait for the lock that all changes of links take: some
    /// milliseconds while others make or delete links. Until then packets to the address are dropped.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn wait_until_local(
        &mut self,
        ips: impl IntoIterator<Item = IpAddr>,
        patience: Duration,
    ) -> Result<bool> {
        let end = Instant::now() + patience;
        let mut pause = Duration::from_micros(50);
        for ip in ips.into_iter().filter(IpAddr::is_ipv6) {
            while self.route_towards(ip)?.is_none_or(|route| route.kind != LOCAL) {
                if Instant::now() >= end {
                    return Ok(false);
                }
                sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(5));
            }
        }
        Ok(true)
    }
}
