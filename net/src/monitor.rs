//! What the kernel tells by itself: links that go up or down, addresses that come or go. For whoever keeps something on a
//! link that the kernel takes away with it, as the routes by a link that goes down.

use std::io::{self, ErrorKind};

use netlink_sys::{Socket, SocketAddr};

use crate::error::{Error, Result};
use crate::socket::messages;
use crate::wire;

/// The groups RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR and RTNLGRP_IPV6_IFADDR of linux/rtnetlink.h.
const GROUPS: [u32; 3] = [1, 5, 9];
/// Room for one datagram.
const RECEIVE: usize = 32 * 1024;

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A link is new, or some setting of it changed.
    Link {
        /// Its index.
        index: u32,
        /// It is (administratively) up.
        up: bool,
    },
    /// A link is gone.
    LinkGone {
        /// The index that it had.
        index: u32,
    },
    /// A link got an IPv4 address, or lost an address. IPv6 addresses are told again and again while routers announce their
    /// prefix, so new ones are not.
    Address {
        /// The link's index.
        index: u32,
    },
    /// More happened than the socket holds: anything may have.
    Missed,
}

/// A socket at which the kernel tells what happens in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Listens from now on.
    ///
    /// # Errors
    /// No netlink socket can be opened.
    pub fn open() -> Result<Monitor> {
        let open = || {
            let mut socket = Socket::new(libc::NETLINK_ROUTE as isize)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            GROUPS.iter().try_for_each(|group| socket.add_membership(*group))?;
            Ok(socket)
        };
        let socket =
            open().map_err(|error: io::Error| Error::io("listen to the kernel by netlink", error))?;
        Ok(Monitor { socket, buffer: Vec::with_capacity(RECEIVE) })
    }

    /// Takes all that was told since the last call; does not wait.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub fn read(&mut self) -> Result<Vec<Told>> {
        let mut told = Vec::new();
        while self.receive(&mut told, libc::MSG_DONTWAIT)? {}
        Ok(told)
    }

    /// Waits until something happens, and takes all that has.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub fn wait(&mut self) -> Result<Vec<Told>> {
        let mut told = Vec::new();
        self.receive(&mut told, 0)?;
        while self.receive(&mut told, libc::MSG_DONTWAIT)? {}
        Ok(told)
    }

    /// Takes one datagram; false: there is none.
    fn receive(&mut self, told: &mut Vec<Told>, flags: i32) -> Result<bool> {
        self.buffer.clear();
        match self.socket.recv_from(&mut self.buffer, flags) {
            // Other processes may send to this socket as well; the kernel is port 0.
            Ok((_, from)) if from.port_number() != 0 => {}
            Ok(_) => told.extend(messages(&self.buffer).filter_map(|m| read(m.kind, m.body))),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => told.push(Told::Missed),
            Err(error) => return Err(Error::io("listen to the kernel by netlink", error)),
        }
        Ok(true)
    }
}

/// A notification: struct ifinfomsg (family, type, index, flags) or ifaddrmsg (family, …, index).
fn read(kind: u16, body: &[u8]) -> Option<Told> {
    let index = wire::u32_of(body.get(4..)?)?;
    let family = i32::from(*body.first()?);
    match kind {
        // A bridge tells of its ports under its own family, with other flags.
        libc::RTM_NEWLINK if family == libc::AF_UNSPEC => {
            let flags = wire::u32_of(body.get(8..)?)?;
            Some(Told::Link { index, up: flags & libc::IFF_UP as u32 != 0 })
        }
        libc::RTM_DELLINK if family == libc::AF_UNSPEC => Some(Told::LinkGone { index }),
        libc::RTM_NEWADDR if family == libc::AF_INET => Some(Told::Address { index }),
        libc::RTM_DELADDR => Some(Told::Address { index }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, LinkSet, Netlink, NewAddr, Veth, testns};

    #[test]
    fn links_and_addresses_are_told() {
        testns::in_fresh(|| {
            let mut monitor = Monitor::open().unwrap();
            assert_eq!(monitor.read().unwrap(), []);
            let mut netlink = Netlink::open().unwrap();
            let peer = testns::another();
            let index = netlink.create_veth(&Veth::new("veth0", "eth0", &peer)).unwrap().index;
            monitor.read().unwrap();
            for up in [false, true] {
                netlink.set(index, &LinkSet { up: Some(up), ..LinkSet::default() }).unwrap();
                let told = monitor.read().unwrap();
                assert!(told.contains(&Told::Link { index, up }), "{told:?}");
                assert!(!told.contains(&Told::Link { index, up: !up }), "{told:?}");
            }
            for (address, new) in [("192.0.2.1/24", true), ("2001:db8::1/64", false)] {
                let net = address.parse().unwrap();
                let mut batch = Batch::new();
                batch.addr_add(index, &NewAddr { nodad: true, ..NewAddr::new(net) });
                netlink.run(batch).unwrap();
                assert_eq!(monitor.read().unwrap().contains(&Told::Address { index }), new, "{address}");
                let mut batch = Batch::new();
                batch.addr_del(index, net);
                netlink.run(batch).unwrap();
                assert!(monitor.read().unwrap().contains(&Told::Address { index }), "{address}");
            }
            let mut batch = Batch::new();
            batch.link_del("veth0");
            netlink.run(batch).unwrap();
            assert!(monitor.read().unwrap().contains(&Told::LinkGone { index }));
        });
    }

    #[test]
    fn what_was_missed_is_said() {
        testns::in_fresh(|| {
            let mut monitor = Monitor::open().unwrap();
            let mut netlink = Netlink::open().unwrap();
            for round in 0..400 {
                let up = round % 2 == 0;
                netlink.set("lo", &LinkSet { up: Some(up), ..LinkSet::default() }).unwrap();
            }
            assert!(monitor.read().unwrap().contains(&Told::Missed));
            assert_eq!(monitor.read().unwrap(), []);
        });
    }
}
