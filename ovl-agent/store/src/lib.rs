//! The key-value store under the overlay, with etcd's semantics: transactions that compare and then change, one revision
//! number for the whole store, watches from a revision. Either embedded in one agent ([`local`], LMDB, one host), or etcd
//! ([`etcd`], many hosts).
//!
//! Keys are text below the configured prefix, which is added and taken away here.

#![deny(unsafe_code)]

mod error;
pub mod etcd;
pub mod local;
pub mod target;
mod txn;

pub use error::{Error, Result};
pub use target::Target;

use std::time::Duration;

/// A revision of the store: it grows by one with every transaction that changes something.
pub type Revision = i64;

/// A key, its value, when it was made and when it was last changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, without the prefix.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The revision that made it. A key that was deleted and put again was made by the later one.
    pub created: Revision,
    /// The revision of its last change.
    pub changed: Revision,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// There is no such key.
    Absent(String),
    /// There is such a key.
    Present(String),
    /// The key was last changed at this revision.
    Unchanged(String, Revision),
    /// There is no key from the first (included) to the second (not included).
    Empty(String, String),
}

/// A step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets a key; with a lease the key goes when that ends.
    Put(String, Vec<u8>, Option<LeaseId>),
    /// Removes a key, if there is one.
    Delete(String),
    /// Removes the keys from the first (included) to the second (not included).
    DeleteRange(String, String),
    /// Reads the keys from the first (included) to the second (not included), as they are after the steps before it.
    Get(String, String),
}

/// A transaction: when all conditions hold, the steps `then`, else the steps `otherwise`. At most 100 of each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions.
    pub when: Vec<Compare>,
    /// What is done when they hold.
    pub then: Vec<Op>,
    /// What is done when they do not.
    pub otherwise: Vec<Op>,
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The conditions held.
    pub held: bool,
    /// The store's revision after it.
    pub revision: Revision,
    /// What its [`Op::Get`]s read, in their order.
    pub got: Vec<Vec<KeyValue>>,
}

/// Everything below a prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision.
    pub revision: Revision,
    /// Which cluster answered (etcd's cluster ID): another one has other data.
    pub cluster: u64,
    /// The keys in order.
    pub entries: Vec<KeyValue>,
}

/// A small part of a snapshot, and how many keys a whole one would have; all at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The revision.
    pub revision: Revision,
    /// How many keys there are below the prefix.
    pub count: usize,
    /// Some of them in order, and when each was last changed.
    pub keys: Vec<(String, Revision)>,
    /// There are more keys behind these.
    pub more: bool,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its new value; None: it was removed.
    pub value: Option<Vec<u8>>,
    /// The revision that made it; 0 of a removed one.
    pub created: Revision,
    /// The revision.
    pub revision: Revision,
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Changes in order, whole revisions only.
    Changes(Vec<Change>),
    /// Nothing more happened below the prefix up to this revision. Of etcd older than 3.4.31 and 3.5.13 this comes every ten
    /// minutes only, of newer ones at least every ten seconds; so do not wait for it.
    Progress(Revision),
}

/// A lease's number.
pub type LeaseId = i64;

/// The store.
#[derive(Debug, Clone)]
pub enum Kv {
    /// Embedded.
    Local(local::Local),
    /// etcd.
    Etcd(etcd::Etcd),
}

/// A watch; dropped, it ends.
#[derive(Debug)]
pub enum Watch {
    /// Of the embedded store.
    Local(local::Watch),
    /// Of etcd.
    Etcd(Box<etcd::Watch>),
}

/// How long one exchange with the store may take before it counts as unreachable.
pub const PATIENCE: Duration = Duration::from_millis(2000);

impl Kv {
    /// Opens the store. With etcd this does not wait for a connection: calls fail with [`Error::Unreachable`] until there
    /// is one.
    ///
    /// # Errors
    /// Files of the configuration that cannot be read, a damaged or busy embedded store.
    pub async fn open(target: &Target) -> Result<Kv> {
        Ok(match target {
            Target::Local(dir) => {
                let dir = dir.clone();
                Kv::Local(blocking(move || local::Local::open(&dir)).await?)
            }
            Target::Etcd(conf) => Kv::Etcd(etcd::Etcd::open(conf).await?),
        })
    }

    /// Gives up the connection to the store: this node's address changed, and what is sent from the old one gets no answer. The
    /// next call connects anew, as do those under way that may be carried out twice.
    pub fn renew(&self) {
        match self {
            Kv::Local(_) => {}
            Kv::Etcd(etcd) => etcd.renew(),
        }
    }

    /// For people: `local store DIR`, `etcd at URL, URL`; never a password.
    pub fn describe(&self) -> String {
        match self {
            Kv::Local(local) => local.describe(),
            Kv::Etcd(etcd) => etcd.describe(),
        }
    }

    /// What was repaired when the store was opened, in sentences for the log and for people; usually nothing.
    pub fn notes(&self) -> &[String] {
        match self {
            Kv::Local(local) => local.notes(),
            Kv::Etcd(_) => &[],
        }
    }

    /// Everything below a prefix (`""`: all), at one revision, read in pages.
    ///
    /// # Errors
    /// The store cannot be reached in [`PATIENCE`] for one page.
    pub async fn snapshot(&self, prefix: &str) -> Result<Snapshot> {
        match self {
            Kv::Local(local) => {
                let (local, prefix) = (local.clone(), prefix.to_owned());
                blocking(move || local.snapshot(&prefix)).await
            }
            Kv::Etcd(etcd) => etcd.snapshot(prefix).await,
        }
    }

    /// How many keys there are below a prefix, and the first `limit` of them from the key `from` on (`""`: from the first),
    /// without values. What is read and sent does not grow with the store.
    ///
    /// # Errors
    /// As [`Kv::snapshot`].
    pub async fn part(&self, prefix: &str, from: &str, limit: usize) -> Result<Part> {
        match self {
            Kv::Local(local) => {
                let (local, prefix, from) = (local.clone(), prefix.to_owned(), from.to_owned());
                blocking(move || local.part(&prefix, &from, limit)).await
            }
            Kv::Etcd(etcd) => etcd.part(prefix, from, limit).await,
        }
    }

    /// The changes below a prefix from this revision on (that one included); 0: from now on.
    ///
    /// # Errors
    /// The store cannot be reached. [`Error::OtherCluster`]: the data was set back, or the revision is beyond the next one,
    /// which means the same. What ends a watch later comes from [`Watch::next`].
    pub async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        Ok(match self {
            Kv::Local(local) => Watch::Local(local.watch(prefix, from)?),
            Kv::Etcd(etcd) => Watch::Etcd(Box::new(etcd.watch(prefix, from).await?)),
        })
    }

    /// Does a transaction.
    ///
    /// # Errors
    /// [`Error::Unreachable`] within [`PATIENCE`]; whether it was done is not known then. [`Error::Refused`]: more than 100
    /// steps or conditions, more than 1 MiB, a key that is changed twice or is not 1 to 500 printable ASCII characters, a
    /// range that ends before it begins, a lease that has ended; nothing was done.
    pub async fn commit(&self, txn: Txn) -> Result<Done> {
        match self {
            Kv::Local(local) => {
                // Synced to the disk, which can take a while.
                let local = local.clone();
                blocking(move || local.commit(&txn)).await
            }
            Kv::Etcd(etcd) => etcd.commit(txn).await,
        }
    }

    /// A lease that ends this long after it was last kept alive. Leases of the embedded store end with the process.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        match self {
            Kv::Local(local) => local.grant(),
            Kv::Etcd(etcd) => etcd.grant(ttl).await,
        }
    }

    /// Keeps a lease alive for another term; false when it has ended.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub async fn keep_alive(&self, lease: LeaseId) -> Result<bool> {
        match self {
            Kv::Local(local) => Ok(local.holds(lease)),
            Kv::Etcd(etcd) => etcd.keep_alive(lease).await,
        }
    }

    /// For how long a key will be there if nobody keeps its lease alive, in whole seconds. None: there is no such key, or it
    /// has no lease that ends by itself, as in the embedded store.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub async fn remaining(&self, key: &str) -> Result<Option<Duration>> {
        match self {
            Kv::Local(_) => Ok(None),
            Kv::Etcd(etcd) => etcd.remaining(key).await,
        }
    }

    /// Where the store's members take connections, of clients and of each other: names or addresses, and TCP ports. The
    /// embedded store takes none.
    ///
    /// # Errors
    /// The store cannot be reached, or does not say it to this user.
    pub async fn members(&self) -> Result<Vec<(String, u16)>> {
        match self {
            Kv::Local(_) => Ok(Vec::new()),
            Kv::Etcd(etcd) => etcd.members().await,
        }
    }

    /// Ends a lease, and removes its keys.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub async fn revoke(&self, lease: LeaseId) -> Result<()> {
        match self {
            Kv::Local(local) => {
                let local = local.clone();
                blocking(move || local.revoke(lease)).await
            }
            Kv::Etcd(etcd) => etcd.revoke(lease).await,
        }
    }
}

/// Runs what waits for the disk beside the runtime's threads. It runs to its end even when nobody waits for it any more.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(f).await {
        Ok(done) => done,
        Err(e) => Err(Error::Refused(format!("the runtime is stopping: {e}"))),
    }
}

impl Watch {
    /// What happened next. A silent connection is noticed within 12 s. A call that is dropped half-way loses nothing.
    ///
    /// # Errors
    /// [`Error::Compacted`], [`Error::OtherCluster`]: the watch is over; take a snapshot and watch from there.
    /// [`Error::Unreachable`] and others: the watch is over; watch again from the revision after the last one told.
    pub async fn next(&mut self) -> Result<Event> {
        match self {
            Watch::Local(watch) => watch.next().await,
            Watch::Etcd(watch) => watch.next().await,
        }
    }
}

/// The end of the range of keys that begin with `prefix`, for the ranges of [`Op`] and [`Compare`].
pub fn range_end(prefix: &str) -> String {
    // Keys are ASCII, and DEL (0x7f) is in none.
    format!("{prefix}\u{7f}")
}
