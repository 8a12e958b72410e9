//! The rtnetlink socket.

use crate::error::Result;
use crate::ns::Netns;
use crate::socket::{Channel, Outgoing};

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

    /// Brings the loopback interface up.
    pub fn loopback_up(&mut self) -> Result<()> {
        let mut out = Outgoing::new();
        out.change(libc::RTM_NEWLINK, 0, |bytes| {
            let up = (libc::IFF_UP as u32).to_ne_bytes();
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&1u32.to_ne_bytes());
            bytes.extend_from_slice(&up);
            bytes.extend_from_slice(&up);
        });
        self.channel.exchange(out).map(|_| ())
    }
}
