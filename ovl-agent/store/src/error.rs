//! What can go wrong with the store. No message holds a password.

/// The result of this library's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No endpoint answered in time.
    #[error("the store cannot be reached ({endpoints}): {why}")]
    Unreachable {
        /// The endpoints that were tried.
        endpoints: String,
        /// What the last one said.
        why: String,
    },
    /// TLS failed: a wrong authority, client certificate or name.
    #[error("TLS with {endpoints} failed: {why}")]
    Tls {
        /// The endpoints.
        endpoints: String,
        /// What is wrong.
        why: String,
    },
    /// The user or password is wrong, or may not do this.
    #[error("{endpoints} refuses {user}: {why}")]
    Denied {
        /// The endpoints.
        endpoints: String,
        /// Who was refused, in words: never a password.
        user: String,
        /// What is wrong.
        why: String,
    },
    /// What the watch or page asks for has been compacted away.
    #[error("revision {0} has been compacted")]
    Compacted(crate::Revision),
    /// Another cluster answers at these endpoints than before, or its revision went back.
    #[error("another cluster answers at {endpoints}, or its data was set back")]
    OtherCluster {
        /// The endpoints.
        endpoints: String,
    },
    /// A setting is wrong.
    #[error("{field} {value:?}: {why}")]
    Setting {
        /// The flag or key.
        field: &'static str,
        /// Its value, without passwords.
        value: String,
        /// What is allowed.
        why: String,
    },
    /// The embedded store.
    #[error("the local store in {dir}: {why}")]
    Local {
        /// Its directory.
        dir: String,
        /// What is wrong.
        why: String,
    },
    /// The store refused for another reason.
    #[error("the store refused: {0}")]
    Refused(String),
}

impl Error {
    /// Trying again later may help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::Compacted(_) | Error::OtherCluster { .. })
    }
}
