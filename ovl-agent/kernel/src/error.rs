//! What can go wrong.

/// The result of an operation of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused, or could not be asked.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// A setting of the agent does not fit this host.
    #[error("{field} {value}: {why}")]
    Setting {
        /// The setting, as users write it: `--interface`, `--advertise`.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// This process may not change the network.
    #[error(
        "this process may not change the network of this host, it has no CAP_NET_ADMIN here; run it as root, or give it that \
         capability"
    )]
    Forbidden,
    /// No underlay was given and none could be found.
    #[error("{0}")]
    NoUnderlay(String),
}
