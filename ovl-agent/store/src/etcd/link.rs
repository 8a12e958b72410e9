//! Connections to etcd: one at a time, to whichever endpoint answers first; another one when it is lost.
//!
//! The endpoints are tried one after the other, each before the one before has given up, so that one that swallows all
//! packets costs a fraction of [`PATIENCE`] and a working one is not loaded for nothing.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::tls::{self, Files};
use super::trouble::{Kind, Trouble};
use crate::target::{EtcdConf, FLAG_CA, FLAG_CERT, FLAG_KEY, FLAG_USER};
use crate::{Error, PATIENCE};

/// After this time without an answer the next endpoint is tried too.
const STAGGER: Duration = Duration::from_millis(250);
/// A connection that was silent for longer has to prove that it lives before a commit is sent on it.
const FRESH: Duration = Duration::from_millis(500);
/// How often a connection in use is asked for a sign of life. etcd closes those that ask more often than every 5 s.
const KEEPALIVE: Duration = Duration::from_secs(6);
/// Why a call was not finished on a connection that was given up by [`Links::renew`].
const RENEWED: &str = "the connection was given up, for this node's address changed";

/// A connection that has answered once.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) endpoint: String,
    /// Its answers to requests for progress come in order with the changes.
    pub(super) orderly: bool,
    at: usize,
    heard: Mutex<Instant>,
}

impl Link {
    /// Notes that it has said something.
    pub(super) fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Asks it for a word when it has been silent. A commit that is sent on a connection that ended meanwhile may not be
    /// repeated, so that has to be noticed before.
    async fn prove(&self) -> Result<(), Trouble> {
        let silent = self.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        if silent > FRESH {
            let asked = self.client.maintenance_client().status().await;
            asked.map_err(|e| match Trouble::from(e) {
                Trouble { kind: Kind::Lost { .. }, why } => Trouble::new(Kind::Lost { sent: false }, why),
                other => other,
            })?;
            self.hear();
        }
        Ok(())
    }
}

/// The connections of one store.
pub(super) struct Links {
    conf: EtcdConf,
    state: Mutex<State>,
    /// Held by who connects; the others wait for what comes of it.
    connecting: tokio::sync::Mutex<()>,
    /// How often the connection was given up by [`Links::renew`].
    renewed: watch::Sender<u64>,
}

struct State {
    current: Option<Arc<Link>>,
    /// The endpoint to begin with.
    first: usize,
    /// When connecting failed last, and how.
    failed: Option<(Instant, Trouble)>,
}

impl Links {
    /// Reads the files once, to refuse what cannot be used.
    pub(super) fn new(conf: &EtcdConf) -> Result<Links, Error> {
        conf.check()?;
        // Hosts shall not all begin with the same endpoint.
        let first = std::process::id() as usize % conf.endpoints.len();
        let links = Links {
            conf: conf.clone(),
            state: Mutex::new(State { current: None, first, failed: None }),
            connecting: tokio::sync::Mutex::new(()),
            renewed: watch::Sender::new(0),
        };
        links.options().map_err(|trouble| links.error(trouble))?;
        Ok(links)
    }

    pub(super) fn conf(&self) -> &EtcdConf {
        &self.conf
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All endpoints, for people.
    pub(super) fn endpoints(&self) -> String {
        self.conf.endpoints.join(", ")
    }

    /// The connection, made now if there is none.
    pub(super) async fn get(&self, deadline: Instant) -> Result<Arc<Link>, Trouble> {
        let since = Instant::now();
        if let Some(link) = self.state().current.clone() {
            return Ok(link);
        }
        let Ok(_connecting) = timeout_at(deadline, self.connecting.lock()).await else {
            return Err(Trouble::new(Kind::Lost { sent: false }, "no endpoint answered in time"));
        };
        {
            let state = self.state();
            if let Some(link) = &state.current {
                return Ok(link.clone());
            }
            match &state.failed {
                Some((at, trouble)) if *at >= since => return Err(trouble.clone()),
                _ => {}
            }
        }
        let mut renewed = self.renewed.subscribe();
        let (made, mut state) = loop {
            let made = tokio::select! {
                biased;
                _ = renewed.changed() => continue,
                made = self.connect(deadline) => made,
            };
            let state = self.state();
            // It counts up while it has the state.
            if !renewed.has_changed().unwrap_or(false) {
                break (made, state);
            }
        };
        match made {
            Ok(link) => {
                tracing::info!(endpoint = link.endpoint, "connected to etcd");
                let link = Arc::new(link);
                state.current = Some(link.clone());
                state.first = link.at;
                Ok(link)
            }
            Err(trouble) => {
                state.failed = Some((Instant::now(), trouble.clone()));
                Err(trouble)
            }
        }
    }

    /// Gives a connection up; the next one begins with the endpoint after it.
    pub(super) fn lost(&self, link: &Arc<Link>) {
        let mut state = self.state();
        if state.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            state.current = None;
            state.first = (link.at + 1) % self.conf.endpoints.len();
        }
    }

    /// Gives up the connection, or the one that is being made: when the address that it is made from is gone, it neither answers
    /// nor fails. Calls that may be carried out twice begin anew at once.
    pub(super) fn renew(&self) {
        let mut state = self.state();
        state.current = None;
        self.renewed.send_modify(|times| *times += 1);
    }

    /// The first endpoint that answers.
    async fn connect(&self, deadline: Instant) -> Result<Link, Trouble> {
        let count = self.conf.endpoints.len();
        let first = self.state().first;
        let mut order = (0..count).map(|i| (first + i) % count);
        // With many endpoints the last one shall have half of the time left.
        let stagger = STAGGER.min(PATIENCE / 2 / count as u32);
        let mut running = FuturesUnordered::new();
        let mut failed: Vec<(usize, Trouble)> = Vec::new();
        let mut next = Instant::now();
        let mut more = true;
        while more || !running.is_empty() {
            tokio::select! {
                () = sleep_until(next), if more => match order.next() {
                    Some(at) => {
                        running.push(async move { (at, self.connect_one(at).await) });
                        next = Instant::now() + stagger;
                    }
                    None => more = false,
                },
                Some((at, made)) = running.next() => match made {
                    Ok(link) => return Ok(link),
                    // It is the same everywhere.
                    Err(trouble) if matches!(trouble.kind, Kind::Denied | Kind::Setting(_)) => return Err(trouble),
                    Err(trouble) => {
                        failed.push((at, trouble));
                        next = Instant::now();
                    }
                },
                () = sleep_until(deadline) => break,
            }
        }
        Err(self.summary(&failed))
    }

    /// What came of trying all endpoints; those that did not say anything were silent.
    fn summary(&self, failed: &[(usize, Trouble)]) -> Trouble {
        let mut said = Vec::new();
        for (at, endpoint) in self.conf.endpoints.iter().enumerate() {
            let why = failed.iter().find(|(i, _)| *i == at).map_or("no answer in time", |(_, t)| &t.why);
            said.push(format!("{endpoint}: {why}"));
        }
        // One endpoint is named in the message already.
        let why = match (said.len(), failed.first()) {
            (1, Some((_, trouble))) => trouble.why.clone(),
            (1, None) => "no answer in time".to_owned(),
            _ => said.join("; "),
        };
        let kinds = || failed.iter().map(|(_, trouble)| trouble.kind);
        let telling = kinds().find(|k| *k == Kind::Tls).or_else(|| kinds().find(|k| *k == Kind::StaleToken));
        let telling = telling.or_else(|| kinds().find(|k| *k == Kind::Refused));
        Trouble::new(telling.unwrap_or(Kind::Lost { sent: false }), why)
    }

    async fn connect_one(&self, at: usize) -> Result<Link, Trouble> {
        let endpoint = &self.conf.endpoints[at];
        let options = self.options()?;
        // The connection is made by the first request only, which can be the one for a token.
        let probe = async {
            let client = Client::connect([endpoint], Some(options)).await?;
            let status = client.maintenance_client().status().await?;
            Ok((client, status))
        };
        let (client, status) = match probe.await.map_err(|e: etcd_client::Error| Trouble::from(e)) {
            Ok(both) => both,
            Err(mut trouble) if matches!(trouble.kind, Kind::Lost { .. }) => {
                // What the connection itself says depends on what is under way when it ends. Etcd answers to TLS at once.
                if tls::is_spoken(endpoint).await {
                    trouble.why += "; it speaks TLS, is it https?";
                }
                return Err(tls::diagnose(&self.conf, endpoint).await.unwrap_or(trouble));
            }
            Err(trouble) => return Err(trouble),
        };
        if status.leader() == 0 {
            return Err(Trouble::new(Kind::Lost { sent: false }, "it has no leader"));
        }
        if status.is_learner() {
            return Err(Trouble::new(Kind::Lost { sent: false }, "it is still learning"));
        }
        let orderly = is_orderly(status.version());
        Ok(Link { client, endpoint: endpoint.clone(), orderly, at, heard: Mutex::new(Instant::now()) })
    }

    /// Read anew for each connection, so that renewed certificates are taken up.
    fn options(&self) -> Result<ConnectOptions, Trouble> {
        let conf = &self.conf;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(PATIENCE)
            .with_keep_alive(KEEPALIVE, PATIENCE)
            // etcd closes connections that do so.
            .with_keep_alive_while_idle(false)
            .with_require_leader(true);
        if let Some(files) = Files::read(conf)? {
            options = options.with_tls(files.options(conf));
        }
        if let Some((user, password)) = &conf.user {
            options = options.with_user(user, password).with_auto_token_refresh(true);
        }
        Ok(options)
    }

    /// Who etcd is told that this is, for people.
    fn user(&self) -> String {
        match &self.conf.user {
            Some((user, _)) => format!("user {user:?}"),
            None => format!("this host, which gives no user ({FLAG_USER})"),
        }
    }

    /// The error that callers of this library get.
    pub(super) fn error(&self, trouble: Trouble) -> Error {
        let (endpoints, why) = (self.endpoints(), trouble.why);
        match trouble.kind {
            Kind::Lost { .. } => Error::Unreachable { endpoints, why },
            Kind::Tls => Error::Tls { endpoints, why },
            Kind::Denied | Kind::StaleToken => Error::Denied { endpoints, user: self.user(), why },
            Kind::Compacted => Error::Compacted(0),
            Kind::NoLease => Error::Refused("the lease has ended".to_owned()),
            Kind::Refused => Error::Refused(format!("{endpoints}: {why}")),
            Kind::Setting(field) => Error::Setting {
                field,
                value: [(FLAG_CA, &self.conf.ca), (FLAG_CERT, &self.conf.cert), (FLAG_KEY, &self.conf.key)]
                    .into_iter()
                    .find(|(flag, _)| *flag == field)
                    .and_then(|(_, file)| file.as_ref())
                    .map_or_else(String::new, |file| file.display().to_string()),
                why,
            },
        }
    }

    /// Half of the time left, when there is another endpoint to try then.
    fn half(&self, deadline: Instant, first: bool) -> Instant {
        let now = Instant::now();
        if first && self.conf.endpoints.len() > 1 { now + (deadline - now) / 2 } else { deadline }
    }

    /// Runs `f` on the connection, within [`PATIENCE`] altogether; when that is lost, once more on a new one, if `again` (it
    /// can be carried out twice) or if it surely was not carried out.
    pub(super) async fn call<T, F>(
        &self,
        again: bool,
        f: impl Fn(Arc<Link>) -> F,
    ) -> Result<(T, Arc<Link>), Trouble>
    where
        F: Future<Output = Result<T, Trouble>>,
    {
        let deadline = Instant::now() + PATIENCE;
        let mut first = true;
        loop {
            let mut renewed = self.renewed.subscribe();
            let link = self.get(deadline).await?;
            let attempt = async {
                let lost = |sent, why: &str| Err(Trouble::new(Kind::Lost { sent }, why));
                if !again {
                    // A connection can be dead without a sign: leave time for another endpoint.
                    tokio::select! {
                        proof = timeout_at(self.half(deadline, first), link.prove()) => {
                            proof.unwrap_or_else(|_| lost(false, "no answer in time"))?;
                        }
                        _ = renewed.changed() => lost(false, RENEWED)?,
                    }
                }
                let until = if again { self.half(deadline, first) } else { deadline };
                tokio::select! {
                    answer = timeout_at(until, f(link.clone())) => {
                        answer.unwrap_or_else(|_| Err(Trouble::silent()))
                    }
                    _ = renewed.changed(), if again => Err(Trouble::new(Kind::Lost { sent: true }, RENEWED)),
                }
            };
            let mut trouble = match attempt.await {
                Ok(answer) => {
                    link.hear();
                    return Ok((answer, link));
                }
                Err(trouble) => trouble,
            };
            let retry = match trouble.kind {
                Kind::Lost { sent } => again || !sent,
                Kind::StaleToken => true,
                _ => return Err(trouble),
            };
            self.lost(&link);
            if !(first && retry && Instant::now() < deadline) {
                if self.conf.endpoints.len() > 1 {
                    trouble.why = format!("{}: {}", link.endpoint, trouble.why);
                }
                return Err(trouble);
            }
            first = false;
        }
    }
}

/// Whether this version of etcd answers a request for progress in order with the changes: from 3.4.31, 3.5.13 and 3.6 on.
fn is_orderly(version: &str) -> bool {
    let mut parts = version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    match version {
        (3, 4, patch) => patch >= 31,
        (3, 5, patch) => patch >= 13,
        newer => newer >= (3, 6, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_orderly_progress() {
        for (version, orderly) in [
            ("3.4.23", false),
            ("3.4.31", true),
            ("3.5.12", false),
            ("3.5.13", true),
            ("3.6.0-rc.1", true),
            ("4.0.1", true),
            ("3.3.27", false),
            ("", false),
        ] {
            assert_eq!(is_orderly(version), orderly, "{version}");
        }
    }
}
