//! etcd: several endpoints, TLS, user and password; every call is bounded by [`crate::PATIENCE`].

mod link;
mod seen;
mod tls;
mod trouble;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{
    Compare as EtcdCompare, CompareOp, DeleteOptions, GetOptions, PutOptions, ResponseHeader, Txn as EtcdTxn,
    TxnOp, TxnOpResponse, TxnResponse,
};

use crate::target::{EtcdConf, host_and_port};
use crate::{Compare, Done, Error, KeyValue, LeaseId, Op, Part, Result, Revision, Snapshot, Txn, range_end};
use link::Links;
use seen::{Mark, Seen};
use trouble::{Kind, Trouble};
pub use watch::Watch;

/// How often a snapshot begins anew when its revision is compacted away while it is read.
const RESTARTS: u32 = 3;
/// The longest answer that is taken, in bytes. etcd's transactions are bounded to 1.5 MiB, a page of them is not.
const MAX_ANSWER: usize = 64 << 20;

/// What tests set otherwise.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Keys in one page of a snapshot.
    pub page: i64,
    /// After so long without a word a watch is asked for one.
    pub quiet: Duration,
    /// Changes of such keys (whole, with the prefix) are lost by watches.
    pub lose: fn(&[u8]) -> bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning { page: 1000, quiet: Duration::from_secs(10), lose: |_| false }
    }
}

/// etcd; clones share the connection.
#[derive(Clone)]
pub struct Etcd {
    inner: Arc<Inner>,
}

struct Inner {
    links: Links,
    seen: Seen,
    tuning: Tuning,
    /// Pages of snapshots, and parts, that were read; for tests.
    pages: AtomicU64,
    parts: AtomicU64,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("conf", self.inner.links.conf()).finish_non_exhaustive()
    }
}

impl Etcd {
    /// Reads the files of the configuration; connects when it is used first.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub async fn open(conf: &EtcdConf) -> Result<Etcd> {
        Etcd::tuned(conf, Tuning::default())
    }

    /// As [`Etcd::open`], for tests.
    ///
    /// # Errors
    /// [`Error::Setting`].
    #[doc(hidden)]
    pub fn tuned(conf: &EtcdConf, tuning: Tuning) -> Result<Etcd> {
        let inner = Inner {
            links: Links::new(conf)?,
            seen: Seen::default(),
            tuning,
            pages: AtomicU64::new(0),
            parts: AtomicU64::new(0),
        };
        Ok(Etcd { inner: Arc::new(inner) })
    }

    /// How many pages of snapshots, and how many parts, were read; for tests.
    #[doc(hidden)]
    pub fn reads(&self) -> (u64, u64) {
        (self.inner.pages.load(Ordering::Relaxed), self.inner.parts.load(Ordering::Relaxed))
    }

    /// Connects anew with the next call.
    pub fn renew(&self) {
        self.inner.links.renew();
    }

    /// For people.
    pub fn describe(&self) -> String {
        format!("etcd at {}", self.inner.links.endpoints())
    }

    /// Everything below a prefix at one revision, read in pages.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Tls`], [`Error::Denied`]; [`Error::OtherCluster`], once; [`Error::Compacted`] when
    /// the store is compacted faster than it can be read.
    pub async fn snapshot(&self, prefix: &str) -> Result<Snapshot> {
        let mut restarts = 0;
        loop {
            match self.read_all(prefix).await {
                Err(Error::Compacted(_)) if restarts < RESTARTS => restarts += 1,
                done => return done,
            }
        }
    }

    async fn read_all(&self, prefix: &str) -> Result<Snapshot> {
        let end = self.key(&range_end(prefix));
        let mut from = self.key(prefix);
        let mut snapshot = Snapshot { revision: 0, cluster: 0, entries: Vec::new() };
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(self.inner.tuning.page)
                .with_revision(snapshot.revision);
            let before = self.inner.seen.mark();
            self.inner.pages.fetch_add(1, Ordering::Relaxed);
            let read = self.inner.links.call(true, |link| {
                let (from, options) = (from.clone(), options.clone());
                async move {
                    let mut kv = link.client.kv_client().max_decoding_message_size(MAX_ANSWER);
                    Ok(kv.get(from, Some(options)).await?)
                }
            });
            let (mut page, _) = read.await.map_err(|trouble| self.error(trouble, snapshot.revision))?;
            let mark = header(page.header())?;
            self.admit(before, mark)?;
            if snapshot.cluster == 0 {
                snapshot.revision = mark.revision();
                snapshot.cluster = mark.cluster();
            } else if snapshot.cluster != mark.cluster() {
                // Two pages of two clusters, and someone else was told.
                return Err(self.other());
            }
            let more = page.more();
            let kvs = page.take_kvs();
            if let Some(last) = kvs.last() {
                from = last.key().to_vec();
                from.push(0);
            }
            let more = more && !kvs.is_empty();
            snapshot.entries.extend(kvs.into_iter().filter_map(|kv| self.entry(kv)));
            if !more {
                return Ok(snapshot);
            }
        }
    }

    /// How many keys there are below a prefix, and some of them.
    ///
    /// A range that etcd sorts by revision would give the newest key as well, but for that it reads every key with its
    /// value, at a third of what a whole snapshot costs it. Both ranges here are counted in its index, and the second one
    /// reads no more than is sent.
    ///
    /// # Errors
    /// As [`Etcd::snapshot`].
    pub async fn part(&self, prefix: &str, from: &str, limit: usize) -> Result<Part> {
        let (first, end) = (self.key(prefix), self.key(&range_end(prefix)));
        let from = if from.is_empty() { first.clone() } else { self.key(from) };
        let count = GetOptions::new().with_range(end.clone()).with_count_only();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let some = GetOptions::new().with_range(end).with_limit(limit).with_keys_only();
        // A transaction: both are of one revision.
        let request = EtcdTxn::new().and_then([TxnOp::get(first, Some(count)), TxnOp::get(from, Some(some))]);
        let before = self.inner.seen.mark();
        self.inner.parts.fetch_add(1, Ordering::Relaxed);
        let answer = self.transact(request, true).await?;
        let mark = header(answer.header())?;
        self.admit(before, mark)?;
        let mut got = answer.op_responses().into_iter().filter_map(|op| match op {
            TxnOpResponse::Get(get) => Some(get),
            _ => None,
        });
        let (Some(count), Some(mut some)) = (got.next(), got.next()) else {
            return Err(Error::Refused("etcd answered half a transaction".to_owned()));
        };
        Ok(Part {
            revision: mark.revision(),
            count: usize::try_from(count.count()).unwrap_or_default(),
            more: some.more(),
            keys: some
                .take_kvs()
                .into_iter()
                .filter_map(|kv| self.entry(kv))
                .map(|entry| (entry.key, entry.changed))
                .collect(),
        })
    }

    /// Does a transaction.
    ///
    /// # Errors
    /// [`Error::Unreachable`]: whether it was done is not known; [`Error::Tls`], [`Error::Denied`], [`Error::Refused`].
    pub async fn commit(&self, txn: Txn) -> Result<Done> {
        txn.check()?;
        let answer = self.transact(self.request(&txn), false).await?;
        let mark = header(answer.header())?;
        self.inner.seen.note(mark);
        let mut got = Vec::new();
        for op in answer.op_responses() {
            if let TxnOpResponse::Get(mut get) = op {
                got.push(get.take_kvs().into_iter().filter_map(|kv| self.entry(kv)).collect());
            }
        }
        Ok(Done { held: answer.succeeded(), revision: mark.revision(), got })
    }

    /// Sends a transaction; `again`: it may be done twice, so it is sent once more when nobody knows what came of it.
    async fn transact(&self, request: EtcdTxn, again: bool) -> Result<TxnResponse> {
        let sent = self.inner.links.call(again, |link| {
            let request = request.clone();
            async move {
                let mut kv = link.client.kv_client().max_decoding_message_size(MAX_ANSWER);
                Ok(kv.txn(request).await?)
            }
        });
        sent.await.map(|(answer, _)| answer).map_err(|trouble| self.error(trouble, 0))
    }

    /// A lease; the term is rounded up to seconds.
    ///
    /// # Errors
    /// As [`Etcd::commit`].
    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
        // A second one of which nobody knows ends by itself.
        let sent = self.inner.links.call(true, |link| async move {
            Ok(link.client.lease_client().grant(seconds, None).await?.id())
        });
        sent.await.map(|(lease, _)| lease).map_err(|trouble| self.error(trouble, 0))
    }

    /// Keeps a lease alive for another term; false when it has ended.
    ///
    /// # Errors
    /// As [`Etcd::commit`].
    pub async fn keep_alive(&self, lease: LeaseId) -> Result<bool> {
        let sent = self.inner.links.call(true, |link| async move {
            // The stream ends when it is dropped; at one request in ten seconds that is cheaper than keeping it.
            Ok(link.client.lease_client().keep_alive(lease).await.map(drop)?)
        });
        match sent.await {
            Ok(_) => Ok(true),
            Err(Trouble { kind: Kind::NoLease, .. }) => Ok(false),
            Err(trouble) => Err(self.error(trouble, 0)),
        }
    }

    /// For how long a key will be there if nobody keeps its lease alive.
    ///
    /// # Errors
    /// As [`Etcd::commit`].
    pub async fn remaining(&self, key: &str) -> Result<Option<Duration>> {
        let key = self.key(key);
        let sent = self.inner.links.call(true, |link| {
            let key = key.clone();
            async move {
                let got = link.client.kv_client().get(key, None).await?;
                let lease = got.kvs().first().map_or(0, etcd_client::KeyValue::lease);
                if lease == 0 {
                    return Ok(None);
                }
                Ok(Some(link.client.lease_client().time_to_live(lease, None).await?.ttl()))
            }
        });
        let (ttl, _) = sent.await.map_err(|trouble| self.error(trouble, 0))?;
        // It is -1 when the lease has ended meanwhile.
        Ok(ttl.and_then(|ttl| u64::try_from(ttl).ok()).map(Duration::from_secs))
    }

    /// Ends a lease and removes its keys. Nothing happens when it has ended.
    ///
    /// # Errors
    /// As [`Etcd::commit`].
    pub async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let sent = self
            .inner
            .links
            .call(true, |link| async move { Ok(link.client.lease_client().revoke(lease).await.map(drop)?) });
        match sent.await {
            Ok(_) | Err(Trouble { kind: Kind::NoLease, .. }) => Ok(()),
            Err(trouble) => Err(self.error(trouble, 0)),
        }
    }

    /// The hosts and ports of the URLs that etcd's members have for clients and for each other.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Tls`], [`Error::Denied`].
    pub async fn members(&self) -> Result<Vec<(String, u16)>> {
        let ask = |link: Arc<link::Link>| async move {
            link.client.cluster_client().member_list().await.map_err(Trouble::from)
        };
        match self.inner.links.call(true, ask).await {
            Ok((answer, _)) => {
                let urls = answer
                    .members()
                    .iter()
                    .flat_map(|member| member.client_urls().iter().chain(member.peer_urls()));
                Ok(urls.filter_map(|url| host_and_port(url)).collect())
            }
            Err(trouble) => Err(self.error(trouble, 0)),
        }
    }

    fn key(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.inner.links.conf().prefix).into_bytes()
    }

    /// The key without the prefix. One that is not text is not ours, but counts: it is told in escaped form.
    fn name(&self, key: &[u8]) -> Option<String> {
        let name = key.strip_prefix(self.inner.links.conf().prefix.as_bytes())?;
        Some(std::str::from_utf8(name).map_or_else(|_| name.escape_ascii().to_string(), str::to_owned))
    }

    fn entry(&self, kv: etcd_client::KeyValue) -> Option<KeyValue> {
        let (created, changed) = (kv.create_revision(), kv.mod_revision());
        let (key, value) = kv.into_key_value();
        Some(KeyValue { key: self.name(&key)?, value, created, changed })
    }

    fn request(&self, txn: &Txn) -> EtcdTxn {
        let when = txn.when.iter().map(|compare| match compare {
            Compare::Absent(key) => EtcdCompare::create_revision(self.key(key), CompareOp::Equal, 0),
            Compare::Present(key) => EtcdCompare::create_revision(self.key(key), CompareOp::Greater, 0),
            Compare::Unchanged(key, revision) => {
                EtcdCompare::mod_revision(self.key(key), CompareOp::Equal, *revision)
            }
            // Of every key in the range, of which there is none.
            Compare::Empty(from, to) => {
                EtcdCompare::create_revision(self.key(from), CompareOp::Equal, 0).with_range(self.key(to))
            }
        });
        let steps = |ops: &[Op]| ops.iter().map(|op| self.step(op)).collect::<Vec<_>>();
        EtcdTxn::new()
            .when(when.collect::<Vec<_>>())
            .and_then(steps(&txn.then))
            .or_else(steps(&txn.otherwise))
    }

    fn step(&self, op: &Op) -> TxnOp {
        match op {
            Op::Put(key, value, lease) => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease));
                TxnOp::put(self.key(key), value.clone(), options)
            }
            Op::Delete(key) => TxnOp::delete(self.key(key), None),
            Op::DeleteRange(from, to) => {
                TxnOp::delete(self.key(from), Some(DeleteOptions::new().with_range(self.key(to))))
            }
            Op::Get(from, to) => TxnOp::get(self.key(from), Some(GetOptions::new().with_range(self.key(to)))),
        }
    }

    fn admit(&self, before: Mark, answer: Mark) -> Result<()> {
        if self.inner.seen.admit(before, answer) { Ok(()) } else { Err(self.other()) }
    }

    fn other(&self) -> Error {
        Error::OtherCluster { endpoints: self.inner.links.endpoints() }
    }

    fn error(&self, trouble: Trouble, revision: Revision) -> Error {
        match trouble.kind {
            Kind::Compacted => Error::Compacted(revision),
            _ => self.inner.links.error(trouble),
        }
    }
}

/// What the header of an answer says.
fn header(header: Option<&ResponseHeader>) -> Result<Mark> {
    header.map(Mark::of).ok_or_else(|| Error::Refused("etcd answered without a header".to_owned()))
}
