//! Where the cluster's store is, as addresses and ports, for the packet filter, which closes them to containers: the endpoints of
//! `--etcd`, and what etcd's members list for their clients and for each other.

use ovl_store::Kv;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// How often names are resolved.
const EVERY: Duration = Duration::from_secs(30);
/// The same while one of them has never been.
const AGAIN: Duration = Duration::from_secs(1);
/// How often etcd is asked for its members.
const MEMBERS: Duration = Duration::from_secs(300);
/// For how long a name may be resolved.
const PATIENCE: Duration = Duration::from_secs(2);
/// A name can have more addresses than one answer has: for how long one counts that is in no answer any more.
const KEEP: Duration = Duration::from_secs(600);

/// Addresses and TCP ports.
pub type Addresses = BTreeSet<(IpAddr, u16)>;

struct Stores {
    kv: Kv,
    endpoints: Vec<(String, u16)>,
    members: Vec<(String, u16)>,
    asked: Option<Instant>,
    /// The addresses of each name, and when they were in an answer last.
    found: BTreeMap<(String, u16), BTreeMap<IpAddr, Instant>>,
}

/// Returns where these endpoints are, as far as they can be resolved now, and follows them and the members of the store until
/// `stop`. Without an endpoint there is nothing.
pub async fn follow(
    kv: Kv,
    endpoints: Vec<(String, u16)>,
    mut stop: watch::Receiver<bool>,
) -> watch::Receiver<Addresses> {
    let (sender, receiver) = watch::channel(Addresses::new());
    if endpoints.is_empty() {
        return receiver;
    }
    let mut stores = Stores { kv, endpoints, members: Vec::new(), asked: None, found: BTreeMap::new() };
    // Containers are closed out before the agent does anything else, if a resolver answers.
    let _ = timeout(PATIENCE, stores.resolve(&sender)).await;
    tokio::spawn(async move {
        let work = async {
            loop {
                stores.ask().await;
                stores.resolve(&sender).await;
                sleep(if stores.is_complete() { EVERY } else { AGAIN }).await;
            }
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = work => {}
        }
    });
    receiver
}

impl Stores {
    /// Asks for the members, if that is due. A user of etcd may not be allowed to, then the endpoints have to do.
    async fn ask(&mut self) {
        if self.asked.is_some_and(|asked| asked.elapsed() < MEMBERS) {
            return;
        }
        match self.kv.members().await {
            Ok(members) => {
                self.asked = Some(Instant::now());
                // A member that names these does not say where it is.
                let is_somewhere = |host: &str| match host.parse::<IpAddr>() {
                    Ok(ip) => !ip.is_loopback() && !ip.is_unspecified(),
                    Err(_) => host != "localhost",
                };
                self.members = members.into_iter().filter(|(host, _)| is_somewhere(host)).collect();
            }
            Err(error) => tracing::debug!("etcd does not list its members: {error}"),
        }
    }

    /// Resolves all names.
    async fn resolve(&mut self, sender: &watch::Sender<Addresses>) {
        for name in self.endpoints.iter().chain(&self.members) {
            let (host, port) = name;
            let answer = timeout(PATIENCE, lookup_host((host.as_str(), *port))).await;
            let addresses = match answer.unwrap_or_else(|late| Err(late.into())) {
                Ok(addresses) => addresses.map(|address| address.ip().to_canonical()),
                Err(error) => {
                    // Addresses that it had count on.
                    tracing::debug!("the store's address {host} cannot be resolved: {error}");
                    continue;
                }
            };
            let now = Instant::now();
            let known = self.found.entry(name.clone()).or_default();
            known.extend(addresses.map(|ip| (ip, now)));
            known.retain(|_, seen| now.duration_since(*seen) < KEEP);
            let all: Addresses = self.addresses().collect();
            sender.send_if_modified(|last| {
                let changed = *last != all;
                *last = all;
                changed
            });
        }
    }

    fn addresses(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        // Members may be others by now.
        let names = self.endpoints.iter().chain(&self.members);
        names.flat_map(|name| {
            self.found.get(name).into_iter().flat_map(|ips| ips.keys().map(|ip| (*ip, name.1)))
        })
    }

    /// Whether each endpoint has an address.
    fn is_complete(&self) -> bool {
        self.endpoints.iter().all(|name| self.found.get(name).is_some_and(|ips| !ips.is_empty()))
    }
}
