//! A watch of etcd: whole revisions in order, and a connection that went silent is noticed.
//!
//! Fragments are not asked for, so every answer has whole revisions. A watch that is quiet is asked for its progress; an
//! answer shows that it lives. Only etcd from 3.4.31, 3.5.13 and 3.6 on answers that in order with the changes, so of older
//! ones just the notices that it sends by itself (every ten minutes) are passed on as [`Event::Progress`].

use std::fmt;
use std::sync::Arc;

use etcd_client::{EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};
use tokio::time::{Instant, timeout_at};

use super::link::Link;
use super::seen::Mark;
use super::trouble::{Kind, Trouble};
use super::{Etcd, MAX_ANSWER, header};
use crate::{Change, Error, Event, PATIENCE, Result, Revision, range_end};

/// The watch of an answer to a request for progress: none.
const NO_WATCH: i64 = -1;

/// A watch of etcd.
pub struct Watch {
    etcd: Etcd,
    link: Arc<Link>,
    stream: WatchStream,
    cluster: u64,
    /// The first revision that was not told yet.
    next: Revision,
    /// When it said something last.
    heard: Instant,
    /// When it was asked for a word.
    asked: Option<Instant>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("endpoint", &self.link.endpoint).field("next", &self.next).finish()
    }
}

/// Why a watch was not made.
enum Refusal {
    Trouble(Trouble),
    Other(Error),
}

impl Etcd {
    /// The changes below a prefix from this revision on; 0: from now on.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Tls`], [`Error::Denied`]; [`Error::OtherCluster`]: the data is not what it was, or
    /// the revision is yet to come.
    pub async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        let (key, end) = (self.key(prefix), self.key(&range_end(prefix)));
        let made = self.inner.links.call(true, |link| {
            let (key, end) = (key.clone(), end.clone());
            async move {
                match self.begin(&link, key, end, from).await {
                    Ok(begun) => Ok(Ok(begun)),
                    Err(Refusal::Trouble(trouble)) => Err(trouble),
                    Err(Refusal::Other(error)) => Ok(Err(error)),
                }
            }
        });
        let (begun, link) = made.await.map_err(|trouble| self.error(trouble, from))?;
        let (stream, cluster, next) = begun?;
        Ok(Watch { etcd: self.clone(), link, stream, cluster, next, heard: Instant::now(), asked: None })
    }

    async fn begin(
        &self,
        link: &Link,
        key: Vec<u8>,
        end: Vec<u8>,
        from: Revision,
    ) -> std::result::Result<(WatchStream, u64, Revision), Refusal> {
        // A watch from a revision that is yet to come is silent: whether the data was set back has to be asked for.
        let before = self.inner.seen.mark();
        let options = GetOptions::new().with_keys_only();
        let answer = link.client.kv_client().get(key.clone(), Some(options)).await?;
        let mark = header(answer.header())?;
        self.admit(before, mark)?;
        if from > mark.revision() + 1 {
            return Err(self.other().into());
        }
        let next = if from > 0 { from } else { mark.revision() + 1 };
        let options = WatchOptions::new().with_range(end).with_start_revision(next).with_progress_notify();
        let mut client = link.client.watch_client().max_decoding_message_size(MAX_ANSWER);
        let mut stream = client.watch(key, Some(options)).await?;
        match stream.message().await? {
            Some(made) if made.canceled() => {
                if made.compact_revision() > 0 {
                    return Err(Error::Compacted(next).into());
                }
                // The library renews the tokens of calls, not of watches.
                let kind =
                    if self.inner.links.conf().user.is_some() { Kind::StaleToken } else { Kind::Denied };
                Err(Trouble::new(kind, reason(&made)).into())
            }
            Some(_) => Ok((stream, mark.cluster(), next)),
            None => Err(Trouble::new(Kind::Lost { sent: true }, "it ended the watch").into()),
        }
    }
}

impl From<etcd_client::Error> for Refusal {
    fn from(e: etcd_client::Error) -> Self {
        Refusal::Trouble(e.into())
    }
}

impl From<Trouble> for Refusal {
    fn from(trouble: Trouble) -> Self {
        Refusal::Trouble(trouble)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Other(error)
    }
}

/// Why etcd ended a watch, without its prefixes.
fn reason(answer: &WatchResponse) -> String {
    let reason = answer.cancel_reason().rsplit("etcdserver: ").next().unwrap_or_default();
    if reason.is_empty() { "it refused the watch".to_owned() } else { reason.to_owned() }
}

impl Watch {
    /// What happened next. A call that is dropped loses nothing.
    ///
    /// # Errors
    /// [`Error::Compacted`], [`Error::Unreachable`], [`Error::OtherCluster`], [`Error::Denied`]: the watch is over.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            let until =
                self.asked.map_or(self.heard + self.etcd.inner.tuning.quiet, |asked| asked + PATIENCE);
            let answer = match timeout_at(until, self.stream.message()).await {
                Ok(Ok(Some(answer))) => answer,
                Ok(Ok(None)) => return self.lost("it ended the watch"),
                Ok(Err(e)) => return self.over(e.into()),
                Err(_) if self.asked.is_some() => return self.lost("the watch is silent"),
                Err(_) => {
                    self.asked = Some(Instant::now());
                    if let Err(e) = self.stream.request_progress().await {
                        return self.over(e.into());
                    }
                    continue;
                }
            };
            self.heard = Instant::now();
            self.link.hear();
            self.asked = None;
            if let Some(event) = self.read(&answer)? {
                return Ok(event);
            }
        }
    }

    /// What an answer says; None: nothing new.
    fn read(&mut self, answer: &WatchResponse) -> Result<Option<Event>> {
        if answer.canceled() {
            if answer.compact_revision() > 0 {
                return Err(Error::Compacted(self.next));
            }
            return self.lost(&reason(answer)).map(Some);
        }
        let mark = header(answer.header())?;
        if mark.cluster() != self.cluster {
            self.etcd.inner.links.lost(&self.link);
            return Err(self.etcd.other());
        }
        if answer.events().is_empty() {
            let revision = mark.revision();
            let orderly = self.link.orderly || answer.watch_id() != NO_WATCH;
            // A member that lags behind tells less than is known.
            if !orderly || answer.created() || revision < self.next {
                return Ok(None);
            }
            self.next = revision + 1;
            return Ok(Some(Event::Progress(revision)));
        }
        let mut changes = Vec::with_capacity(answer.events().len());
        let mut newest = self.next - 1;
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            let revision = kv.mod_revision();
            // Some versions tell changes twice, or earlier ones than were asked for.
            if revision < self.next {
                continue;
            }
            newest = newest.max(revision);
            if (self.etcd.inner.tuning.lose)(kv.key()) {
                continue;
            }
            let Some(key) = self.etcd.name(kv.key()) else { continue };
            let value = (event.event_type() == EventType::Put).then(|| kv.value().to_vec());
            let created = if value.is_some() { kv.create_revision() } else { 0 };
            changes.push(Change { key, value, created, revision });
        }
        self.next = newest + 1;
        self.etcd.inner.seen.note(Mark::at(self.cluster, newest));
        Ok((!changes.is_empty()).then_some(Event::Changes(changes)))
    }

    fn lost(&self, why: &str) -> Result<Event> {
        self.over(Trouble::new(Kind::Lost { sent: true }, why))
    }

    fn over(&self, mut trouble: Trouble) -> Result<Event> {
        if trouble.kind != Kind::Compacted {
            self.etcd.inner.links.lost(&self.link);
            // One endpoint is named in the message already.
            if self.etcd.inner.links.conf().endpoints.len() > 1 {
                trouble.why = format!("{}: {}", self.link.endpoint, trouble.why);
            }
        }
        Err(self.etcd.error(trouble, self.next))
    }
}
