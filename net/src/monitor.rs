//! What the kernel tells by itself: links that go up, down or away, addresses that come or go, routes and entries that
//! somebody takes away or replaces, tables of nftables that are deleted or changed, forwarding that is switched off. For whoever keeps something in the kernel that others
//! can take away.
//!
//! A busy host tells of thousands of neighbours and routes a second. Those that cannot matter are dropped by a filter in the
//! kernel ([`filter`]), before this process wakes; what is let through is looked at again, for the filter may be missing.

mod filter;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_packet_core::NLM_F_REPLACE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::error::{Error, Result};
use crate::firewall::forward;
use crate::neigh::{Fdb, Neigh};
use crate::route::{MAIN_TABLE, Route};
use crate::socket::{Message, messages};
use crate::wire;

/// The groups RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE,
/// RTNLGRP_IPV4_NETCONF and RTNLGRP_IPV6_NETCONF of linux/rtnetlink.h.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 9, 11, 24, 25];
/// NETCONFA_* of linux/netconf.h, and the indices that stand for all interfaces and for new ones.
const CONF_INDEX: u16 = 1;
const CONF_FORWARDING: u16 = 2;
const CONF_ALL: u32 = u32::MAX;
const CONF_DEFAULT: u32 = u32::MAX - 1;
/// NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h.
const TABLES: [u32; 1] = [7];
/// NFT_MSG_DELTABLE of NFNL_SUBSYS_NFTABLES, and its attribute NFTA_TABLE_NAME.
const TABLE_GONE: u16 = 10 << 8 | 2;
const TABLE_NAME: u16 = 1;
/// Room for one datagram.
const RECEIVE: usize = 32 * 1024;
/// Room for what is not yet read, in bytes. The kernel counts about a kilobyte a message, and takes memory only as it is used.
const ROOM: usize = 4 << 20;
/// So many datagrams are taken at once, so that who is told never has to wait for an end.
const AT_ONCE: usize = 1024;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A link is new, or some setting of it changed.
    Link {
        /// Its index.
        index: u32,
        /// It is (administratively) up.
        up: bool,
        /// It is up and has a carrier (IFF_RUNNING).
        running: bool,
        /// It was not, or was: it is this that changed.
        turned: bool,
        /// Its device group.
        group: u32,
        /// Its hardware address, when that has the six bytes of Ethernet.
        mac: Option<[u8; 6]>,
        /// Its MTU in bytes.
        mtu: u32,
    },
    /// A link is gone.
    LinkGone {
        /// The index that it had.
        index: u32,
    },
    /// A link got an IPv4 address, or lost an address.
    Address {
        /// The link's index.
        index: u32,
    },
    /// A link got an IPv6 address, or the lifetime of one changed, as it does again and again while routers announce the prefix.
    AddressSet {
        /// The link's index.
        index: u32,
    },
    /// The route by which the host takes packets for an address of its own (table local) is gone. As with other routes, the
    /// kernel does not report those of IPv4 that go with their link or address.
    LocalGone {
        /// The index of the address's link.
        index: u32,
    },
    /// A route of the protocol is gone from the main table. That a route of IPv4 goes with its link, or with the address that
    /// is its source, the kernel does not tell.
    RouteGone(Box<Route>),
    /// A route of the protocol is new in the main table, or one of any protocol has taken another's place there.
    Route {
        /// The route.
        route: Box<Route>,
        /// It took another's place.
        replaced: bool,
    },
    /// A neighbour is gone that was entered for good, or was deleted by hand: of those the kernel does not tell what they were.
    NeighGone {
        /// The index of its link.
        index: u32,
        /// Its address.
        ip: IpAddr,
    },
    /// A neighbour was entered for good, or a program changed one.
    Neigh(Neigh),
    /// An entry is gone from a device's own forwarding database that was there for good.
    FdbGone(Fdb),
    /// An entry was made in a device's own forwarding database, or changed.
    Fdb(Fdb),
    /// A table of nftables is gone.
    TableGone(FilterTable),
    /// Something in a table of nftables changed: a rule, a set, an element of a set.
    TableChanged(FilterTable),
    /// Another program's chain in the forward hook of nftables is new or has another policy, or a rule of Weft's is gone from
    /// one (see [`crate::firewall::forward`]).
    ForwardChain,
    /// Forwarding was switched off: for all interfaces, or for one.
    ForwardingOff {
        /// The interface's index; None: all.
        index: Option<u32>,
    },
    /// More happened than the socket holds: anything may have.
    Missed,
}

/// A table of nftables in a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterTable {
    /// Its family (NFPROTO_*: 1 is inet).
    pub family: u8,
    /// Its name.
    pub name: String,
    /// The port of the netlink socket that made the change.
    pub port: u32,
}

/// A socket at which the kernel tells what happens in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
    protocol: u8,
}

impl Monitor {
    /// Listens from now on to links, addresses, neighbours and the main table's routes; `protocol` (RTPROT_*) are those routes
    /// of which it is told when they go.
    ///
    /// # Errors
    /// No netlink socket can be opened.
    pub fn open(protocol: u8) -> Result<Monitor> {
        Monitor::listen(libc::NETLINK_ROUTE, &GROUPS, &filter::routes(protocol), protocol, ROOM)
    }

    /// Listens from now on to tables of nftables that are deleted or changed. A transaction
    /// that changes a single element of a set is reported for the table `weft-overlay` alone.
    ///
    /// # Errors
    /// No netlink socket can be opened; the kernel has no nftables.
    pub fn tables() -> Result<Monitor> {
        Monitor::listen(libc::NETLINK_NETFILTER, &TABLES, &filter::tables(), 0, ROOM)
    }

    fn listen(
        family: i32,
        groups: &[u32],
        filter: &[filter::Step],
        protocol: u8,
        room: usize,
    ) -> Result<Monitor> {
        let open = || {
            let mut socket = Socket::new(family as isize)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            // Without the room more is missed; without the filter more is read. Both work.
            let _ = setsockopt(&socket, sockopt::RcvBufForce, &room);
            let _ = filter::attach(&socket, filter);
            groups.iter().try_for_each(|group| socket.add_membership(*group))?;
            Ok(socket)
        };
        let socket =
            open().map_err(|error: io::Error| Error::io("listen to the kernel by netlink", error))?;
        Ok(Monitor { socket, buffer: Vec::with_capacity(RECEIVE), protocol })
    }

    /// Takes what was told since the last call; does not wait. It may leave some for the next call.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub fn read(&mut self) -> Result<Vec<Told>> {
        let mut told = Vec::new();
        self.rest(&mut told)?;
        Ok(told)
    }

    /// Waits until something happens, and takes what has. That may be nothing that is worth telling.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub fn wait(&mut self) -> Result<Vec<Told>> {
        let mut told = Vec::new();
        self.receive(&mut told, 0)?;
        self.rest(&mut told)?;
        Ok(told)
    }

    /// As [`Monitor::wait`], for at most this long.
    ///
    /// # Errors
    /// As [`Monitor::wait`].
    pub fn wait_for(&mut self, time: Option<Duration>) -> Result<Vec<Told>> {
        let Some(time) = time else { return self.wait() };
        let timeout = PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => self.read(),
            Err(error) => Err(Error::io("listen to the kernel by netlink", error)),
        }
    }

    fn rest(&mut self, told: &mut Vec<Told>) -> Result<()> {
        for _ in 0..AT_ONCE {
            if !self.receive(told, libc::MSG_DONTWAIT)? {
                break;
            }
        }
        Ok(())
    }

    /// Takes one datagram; false: there is none.
    fn receive(&mut self, told: &mut Vec<Told>, flags: i32) -> Result<bool> {
        self.buffer.clear();
        let protocol = self.protocol;
        match self.socket.recv_from(&mut self.buffer, flags) {
            // Other processes may send to this socket as well; the kernel is port 0.
            Ok((_, from)) if from.port_number() != 0 => {}
            Ok(_) => told.extend(messages(&self.buffer).filter_map(|message| read(&message, protocol))),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => told.push(Told::Missed),
            Err(error) => return Err(Error::io("listen to the kernel by netlink", error)),
        }
        Ok(true)
    }
}

/// A notification; None when it is of no interest.
fn read(message: &Message<'_>, protocol: u8) -> Option<Told> {
    let body = message.body;
    let family = *body.first()?;
    match message.kind {
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => route(message, protocol),
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => neighbour(message),
        filter::NEW_CONF => forwarding(body),
        filter::NEW_GENERATION => None,
        kind if kind >> 8 == TABLE_GONE >> 8 => {
            // Each message of nftables has its table's name as its first attribute.
            let name = wire::find(body.get(4..)?, TABLE_NAME).map(wire::str_of)?;
            if forward::is_concerned(kind, &name, body.get(4..)?) {
                return Some(Told::ForwardChain);
            }
            let table = FilterTable { family, name, port: message.port };
            Some(if kind == TABLE_GONE { Told::TableGone(table) } else { Told::TableChanged(table) })
        }
        kind => link(kind, i32::from(family), body),
    }
}

/// struct netconfmsg (family).
fn forwarding(body: &[u8]) -> Option<Told> {
    let value = |kind| wire::find(body.get(4..)?, kind).and_then(wire::u32_of);
    let index = value(CONF_INDEX).filter(|index| *index != CONF_DEFAULT)?;
    let off = value(CONF_FORWARDING) == Some(0);
    off.then_some(Told::ForwardingOff { index: Some(index).filter(|index| *index != CONF_ALL) })
}

/// struct ifinfomsg (family, type, index, flags, change) or ifaddrmsg (family, …, index).
fn link(kind: u16, family: i32, body: &[u8]) -> Option<Told> {
    let index = wire::u32_of(body.get(4..)?)?;
    match kind {
        // A bridge tells of its ports under its own family, with other flags.
        libc::RTM_NEWLINK if family == libc::AF_UNSPEC => {
            let (up, running) = (libc::IFF_UP as u32, libc::IFF_RUNNING as u32);
            let (flags, change) = (wire::u32_of(body.get(8..)?)?, wire::u32_of(body.get(12..)?)?);
            // Of a new link all bits are said to have changed.
            let turned = change & up != 0 && change != u32::MAX;
            let value = |kind| body.get(16..).and_then(|body| wire::find(body, kind));
            let number = |kind| value(kind).and_then(wire::u32_of).unwrap_or(0);
            let mac = value(libc::IFLA_ADDRESS).and_then(|mac| mac.try_into().ok());
            let (group, mtu) = (number(libc::IFLA_GROUP), number(libc::IFLA_MTU));
            let (up, running) = (flags & up != 0, flags & running != 0);
            Some(Told::Link { index, up, running, turned, group, mac, mtu })
        }
        libc::RTM_DELLINK if family == libc::AF_UNSPEC => Some(Told::LinkGone { index }),
        libc::RTM_NEWADDR if family == libc::AF_INET => Some(Told::Address { index }),
        libc::RTM_NEWADDR if family == libc::AF_INET6 => Some(Told::AddressSet { index }),
        libc::RTM_DELADDR => Some(Told::Address { index }),
        _ => None,
    }
}

/// struct rtmsg (family, lengths, …, table, protocol, scope, type, flags).
fn route(message: &Message<'_>, protocol: u8) -> Option<Told> {
    let (table, of) = (*message.body.get(4)?, *message.body.get(5)?);
    let gone = message.kind == libc::RTM_DELROUTE;
    if gone && table == libc::RT_TABLE_LOCAL && *message.body.get(7)? == libc::RTN_LOCAL {
        return Route::parse(message.body)?.oif.map(|index| Told::LocalGone { index });
    }
    let replaced = !gone && message.flags & NLM_F_REPLACE != 0;
    if u32::from(table) != MAIN_TABLE || (of != protocol && !replaced) {
        return None;
    }
    let route = Box::new(Route::parse(message.body)?);
    Some(if gone { Told::RouteGone(route) } else { Told::Route { route, replaced } })
}

/// struct ndmsg (family, …, index, state, flags, type).
fn neighbour(message: &Message<'_>) -> Option<Told> {
    let body = message.body;
    let (state, flags) = (wire::u16_of(body.get(8..)?)?, *body.get(10)?);
    let gone = message.kind == libc::RTM_DELNEIGH;
    let family = i32::from(*body.first()?);
    // The kernel's own changes of neighbours, of which there are many, have no port.
    let by_program =
        !gone && state & libc::NUD_FAILED == 0 && (message.port != 0 || family == libc::AF_BRIDGE);
    if state & if gone { filter::GONE } else { filter::PERMANENT } == 0 && !by_program {
        return None;
    }
    match (family, gone) {
        // A bridge's own database has other flags.
        (libc::AF_BRIDGE, _) if flags & libc::NTF_SELF == 0 => None,
        (libc::AF_BRIDGE, true) => Fdb::parse(body).map(Told::FdbGone),
        (libc::AF_BRIDGE, false) => Fdb::parse(body).map(Told::Fdb),
        (libc::AF_INET | libc::AF_INET6, true) => {
            Neigh::parse(body).map(|Neigh { index, ip, .. }| Told::NeighGone { index, ip })
        }
        (libc::AF_INET | libc::AF_INET6, false) => Neigh::parse(body).map(Told::Neigh),
        _ => None,
    }
}
