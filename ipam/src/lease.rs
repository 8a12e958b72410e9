//! What is asked of the store and what it answers.
use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use crate::range::RangeSet;

/// One interface of one container: who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attachment {
    /// The container's ID, as the container runtime gave it.
    pub container: String,
    /// The interface's name in the container. Empty in leases taken over from host-local's oldest files, which do not
    /// name it: such a lease belongs to the container whatever the interface.
    pub ifname: String,
}

impl Attachment {
    /// Joins the two names.
    pub fn new(container: impl Into<String>, ifname: impl Into<String>) -> Attachment {
        Attachment { container: container.into(), ifname: ifname.into() }
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ifname.as_str() {
            "" => write!(f, "container {}", self.container),
            ifname => write!(f, "container {} ({ifname})", self.container),
        }
    }
}

/// An address that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The network's name.
    pub network: String,
    /// The address.
    pub address: IpAddr,
    /// Who holds it.
    pub attachment: Attachment,
    /// The boot ID of the host when it was given; empty when that is not known.
    pub boot: String,
    /// When it was given.
    pub time: SystemTime,
    /// The network namespace's path as the container runtime named it, when it did.
    pub netns: Option<String>,
}

/// A request for one address of every set.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The network's name, at most 255 bytes.
    pub network: &'a str,
    /// Who asks.
    pub attachment: &'a Attachment,
    /// The network's ranges as configured now; each set gives one address.
    pub sets: &'a [RangeSet],
    /// Addresses that must be given: at most one of each set.
    pub requested: &'a [IpAddr],
    /// Addresses that are given only when requested.
    pub reserved: &'a [IpAddr],
    /// The container's network namespace, kept with the lease.
    pub netns: Option<&'a str>,
}

/// An address given to an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The address.
    pub address: IpAddr,
    /// The length of its subnet's prefix, in bits.
    pub prefix: u8,
    /// The gateway of its range.
    pub gateway: IpAddr,
    /// Whether this store has never given it before.
    pub is_new: bool,
}
