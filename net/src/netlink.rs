//! The rtnetlink socket.

use crate::change::LinkSet;
use crate::error::Result;
use crate::ns::Netns;
use crate::socket::Channel;

/// One NETLINK_ROUTE socket. It belongs to the namespace in which it was opened, and keeps working there wherever its
/// thread goes.
#[derive(Debug)]
pub struct Netlink {
    pub(crate) channel: Channel,
}

impl Netlink {
    /// Opens a socket in this thread's network namespace.
    pub fn open() -> Result<Netlink> {
        Ok(Netlink { channel: Channel::open(libc::NETLINK_ROUTE)? })
    }

    /// Opens a socket in `netns`.
    pub fn open_in(netns: &Netns) -> Result<Netlink> {
        netns.run(Netlink::open)?
    }

    /// As [`crate::ns::cookie`], of the socket's namespace.
    pub fn cookie(&self) -> Option<u64> {
        self.channel.cookie()
    }

    /// Brings the loopback interface up.
    pub fn loopback_up(&mut self) -> Result<()> {
        self.set("lo", &LinkSet { up: Some(true), ..LinkSet::default() })
    }
}
