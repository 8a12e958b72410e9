//! Which store is meant, and how it is reached.

use std::path::PathBuf;

/// The store that an agent uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Embedded, in this directory.
    Local(PathBuf),
    /// etcd.
    Etcd(EtcdConf),
}

/// How etcd is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdConf {
    /// `http://HOST:PORT` or `https://HOST:PORT`, one or more; checked by [`EtcdConf::check`].
    pub endpoints: Vec<String>,
    /// What keys begin with: `/weft/`.
    pub prefix: String,
    /// Authority of the server's certificate (PEM); None: only for http.
    pub ca: Option<PathBuf>,
    /// Client certificate (PEM).
    pub cert: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
    /// The name in the server's certificate, when it is not the endpoint's host.
    pub server_name: Option<String>,
    /// User and password.
    pub user: Option<(String, String)>,
}

impl std::fmt::Debug for EtcdConf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the password.
        let user = self.user.as_ref().map(|(user, _)| user);
        f.debug_struct("EtcdConf")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("user", &user)
            .finish_non_exhaustive()
    }
}
