//! What can go wrong, in words for whoever wrote the configuration or runs the host.
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;

use crate::lease::Attachment;

/// The result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an address was not given, or the store could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A subnet leaves no room: the smallest are /30 and /126.
    #[error("subnet {subnet} is too small to give addresses from: the smallest is /{largest_prefix}")]
    TooSmall {
        /// The subnet as configured.
        subnet: IpNetwork,
        /// The longest prefix allowed for its family.
        largest_prefix: u8,
    },
    /// A subnet was written with host bits.
    #[error("subnet {subnet} has host bits set: the network address is {network}")]
    HostBits {
        /// The subnet as configured.
        subnet: IpNetwork,
        /// What was probably meant.
        network: IpNetwork,
    },
    /// A range's first or last address is not in its subnet, or of the other family.
    #[error("{what} {address} is not in subnet {subnet}")]
    Outside {
        /// `rangeStart`, `rangeEnd` or `gateway`.
        what: &'static str,
        /// The address as configured.
        address: IpAddr,
        /// The subnet of the range.
        subnet: IpNetwork,
    },
    /// A range ends before it starts.
    #[error("range of {subnet} ends at {end}, before its start {start}")]
    Reversed {
        /// The subnet of the range.
        subnet: IpNetwork,
        /// First address.
        start: IpAddr,
        /// Last address.
        end: IpAddr,
    },
    /// A range set without a range.
    #[error("a range set needs at least one range")]
    EmptySet,
    /// A range set of IPv4 and IPv6 ranges: a set gives one address, so it is of one family.
    #[error("ranges {0} and {1} of one set are of different families")]
    MixedFamilies(String, String),
    /// Two ranges share addresses.
    #[error("ranges {0} and {1} overlap")]
    Overlap(String, String),
    /// A name that cannot be stored.
    #[error("{what} {value:?} cannot be used: {why}")]
    Name {
        /// `network`, `container ID` or `interface`.
        what: &'static str,
        /// The name given.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The attachment already holds an address that was given since this boot.
    #[error("network {network}: {attachment} already holds {address}; release it first")]
    Duplicate {
        /// The network.
        network: String,
        /// Who asked.
        attachment: Attachment,
        /// The first address it holds.
        address: IpAddr,
    },
    /// A requested address is leased.
    #[error("network {network}: {address} is held by {holder}")]
    Taken {
        /// The network.
        network: String,
        /// The address asked for.
        address: IpAddr,
        /// Who holds it.
        holder: Attachment,
    },
    /// A requested address is in no range of the network.
    #[error("network {network}: {address} is not in any of its ranges ({ranges})")]
    NotInRange {
        /// The network.
        network: String,
        /// The address asked for.
        address: IpAddr,
        /// The ranges, as `start-end` joined by commas.
        ranges: String,
    },
    /// A requested address is the gateway of its range.
    #[error("network {network}: {address} is the gateway of {subnet}")]
    IsGateway {
        /// The network.
        network: String,
        /// The address asked for.
        address: IpAddr,
        /// The subnet of the range.
        subnet: IpNetwork,
    },
    /// More than one address was requested of a range set.
    #[error(
        "network {network}: {address} cannot be given too: its ranges ({ranges}) give one address each time"
    )]
    Surplus {
        /// The network.
        network: String,
        /// The address that is one too many.
        address: IpAddr,
        /// The ranges of the set.
        ranges: String,
    },
    /// Every address of a range set is leased, reserved or a gateway.
    #[error("network {network}: no free address in {ranges}")]
    Full {
        /// The network.
        network: String,
        /// The ranges of the set.
        ranges: String,
    },
    /// The store's content cannot be right. The next `Store::open` examines it, sets it aside and begins anew.
    #[error("the lease store in {dir} is damaged: {what}")]
    Damaged {
        /// The store's directory.
        dir: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// A store that needs repair is held open by other processes.
    #[error("the lease store in {dir} needs repair, but other processes keep it open; try again later")]
    Busy {
        /// The store's directory.
        dir: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// LMDB refused.
    #[error("lease store in {dir}: {source}")]
    Lmdb {
        /// The store's directory.
        dir: PathBuf,
        /// LMDB's reason.
        source: heed::Error,
    },
}

impl Error {
    /// True when the same call may succeed a little later without anyone changing the configuration.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Error::Damaged { .. } | Error::Busy { .. })
    }

    /// A record that does not decode; the directory is filled in where it is known.
    pub(crate) fn damaged(what: impl Into<String>) -> Error {
        Error::Damaged { dir: PathBuf::new(), what: what.into() }
    }

    pub(crate) fn io(
        what: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<std::io::Error>,
    ) -> Error {
        Error::Io { what, path: path.into(), source: source.into() }
    }
}

impl From<heed::Error> for Error {
    fn from(source: heed::Error) -> Error {
        Error::Lmdb { dir: PathBuf::new(), source }
    }
}
