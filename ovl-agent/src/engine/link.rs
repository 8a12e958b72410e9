//! What the kernel tells of: of the underlay's link, when it goes down the kernel takes the direct routes by it away, and what
//! address it has is what the other hosts are told; and of what somebody takes away of the overlay ([`Drift`]).

use super::drift::Drift;
use net::{Monitor, Told};
use ovl_api::names::ROUTE_PROTOCOL;
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;
use tokio::sync::Notify;

/// So much is kept of links while the worker works.
const KEPT: usize = 65_536;

/// Waits for something to happen in the kernel. Without it (no socket, or one that fails) the regular passes are all there is.
pub struct Watcher {
    shared: Arc<Shared>,
    /// The underlay's index, and whether it carried packets and its MTU by the last notification.
    last: (u32, Option<(bool, u32)>),
}

/// What the listening threads and the worker share.
#[derive(Default)]
struct Shared {
    heard: Mutex<Heard>,
    news: Notify,
}

/// What was told, and has not been looked at.
#[derive(Default)]
struct Heard {
    /// Of links and addresses, and that something was missed: what it means depends on what the worker knows by then.
    links: Vec<Told>,
    drift: Drift,
    /// Something is due that was not.
    due: bool,
}

impl Watcher {
    /// To be made in the agent's network namespace.
    pub fn new() -> Watcher {
        let shared = Arc::<Shared>::default();
        let listen = |name: &str, monitor: net::Result<Monitor>| {
            let begun = monitor.map_err(|error| error.to_string()).and_then(|monitor| {
                // It ends with the process, or with the first word that nobody wants.
                let (thread, to) =
                    (std::thread::Builder::new().name(name.to_owned()), Arc::downgrade(&shared));
                thread.spawn(move || listen(monitor, &to)).map_err(|error| error.to_string())
            });
            begun.err()
        };
        if let Some(error) = listen("links", Monitor::open(ROUTE_PROTOCOL)) {
            late(&error);
        }
        if let Some(error) = listen("tables", Monitor::tables()) {
            // A kernel without nftables has nothing to tell.
            tracing::debug!("changes of the packet filter are noticed within a minute only: {error}");
        }
        Watcher { shared, last: (0, None) }
    }

    /// Returns when something happened that matters: true when all has to be looked at now, because of the underlay; false
    /// when something else is due, now or later. `link` is the underlay's index; `gone`: it, or its address, was not found, so
    /// that whatever happens may be its return. Dropped, it loses nothing.
    pub async fn changed(&mut self, link: u32, gone: bool) -> bool {
        loop {
            if let Some(underlay) = self.look(link, gone) {
                return underlay;
            }
            self.shared.news.notified().await;
        }
    }

    /// What was told of others' changes.
    pub fn drift<T>(&self, with: impl FnOnce(&mut Drift) -> T) -> T {
        with(&mut self.shared.heard().drift)
    }

    fn look(&mut self, link: u32, gone: bool) -> Option<bool> {
        let shared = self.shared.clone();
        let mut heard = shared.heard();
        let (mut due, now, mut underlay) = (take(&mut heard.due), Instant::now(), false);
        for told in take(&mut heard.links) {
            underlay |= self.concerns(&told, link, gone);
            due |= heard.link(told, now);
        }
        (due || underlay).then_some(underlay)
    }

    /// True when it is about the underlay.
    fn concerns(&mut self, told: &Told, link: u32, gone: bool) -> bool {
        match *told {
            Told::Link { index, running, mtu, .. } if index == link => {
                // Most of what is told of a link changes nothing for the routes by it.
                let now = (index, Some((running, mtu)));
                std::mem::replace(&mut self.last, now) != now
            }
            Told::LinkGone { index } | Told::Address { index } => index == link || gone,
            Told::Link { .. } | Told::AddressSet { .. } => gone,
            _ => false,
        }
    }
}

impl Shared {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what was told. Nobody is woken for what is of no concern.
    fn hear(&self, all: Vec<Told>, now: Instant) {
        let mut heard = self.heard();
        let mut news = false;
        for told in all {
            if matches!(told, Told::Link { .. } | Told::LinkGone { .. } | Told::Address { .. } | Told::Missed)
            {
                if heard.links.len() >= KEPT {
                    heard.links = vec![Told::Missed];
                }
                heard.links.push(told);
                news = true;
            } else if heard.drift.hear(told, now) {
                heard.due = true;
                news = true;
            }
        }
        drop(heard);
        if news {
            self.news.notify_one();
        }
    }
}

impl Heard {
    /// What befell a link; true when something is due because of it.
    fn link(&mut self, told: Told, now: Instant) -> bool {
        match told {
            Told::Missed => self.drift.all(now),
            told => self.drift.hear(told, now),
        }
    }
}

fn listen(mut monitor: Monitor, to: &Weak<Shared>) {
    loop {
        match monitor.wait() {
            Ok(told) => match to.upgrade() {
                Some(shared) => shared.hear(told, Instant::now()),
                None => return,
            },
            Err(error) => return late(&error.to_string()),
        }
    }
}

fn late(why: &str) {
    tracing::warn!("changes in the kernel are noticed within a minute only: {why}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ovl_kernel::drift::Watched;

    fn watcher() -> Watcher {
        Watcher { shared: Arc::default(), last: (0, None) }
    }

    fn link(index: u32, up: bool) -> Told {
        Told::Link { index, up, running: up, turned: true, group: 0, mac: None, mtu: 1500 }
    }

    #[test]
    fn only_what_happens_to_the_underlay_is_looked_at_at_once() {
        let mut watcher = watcher();
        let mut concerns = |told, gone| watcher.concerns(&told, 2, gone);
        assert!(concerns(link(2, true), false), "nothing was known of it");
        assert!(!concerns(link(2, true), false), "as it was");
        assert!(concerns(link(2, false), false) && concerns(link(2, true), false));
        let mtu =
            Told::Link { index: 2, up: true, running: true, turned: false, group: 0, mac: None, mtu: 1400 };
        assert!(concerns(mtu, false), "the MTU of the networks' devices follows from it");
        assert!(concerns(link(2, true), false));
        assert!(!concerns(link(7, false), false), "a container's");
        assert!(concerns(link(7, true), true), "it may be the underlay's new one");
        assert!(concerns(Told::Address { index: 2 }, false) && concerns(Told::LinkGone { index: 2 }, false));
        assert!(
            !concerns(Told::Address { index: 7 }, false) && !concerns(Told::LinkGone { index: 7 }, false)
        );
    }

    #[test]
    fn what_befalls_a_device_or_was_missed_is_due_what_befalls_others_not() {
        let mut watcher = watcher();
        let subnets = vec!["10.42.0.0/16".parse().unwrap()];
        let watched = Watched { devices: [7].into(), subnets, ..Watched::default() };
        watcher.drift(|drift| drift.watch(watched));
        let mut after = |told: Told| {
            let now = Instant::now();
            watcher.shared.hear(vec![told], now);
            let look = watcher.look(2, false);
            let all = watcher.drift(|drift| drift.take_all(Instant::now(), false).0);
            let pieces = watcher.drift(|drift| drift.take(now + std::time::Duration::from_secs(1)).len());
            (look, all, pieces)
        };
        assert_eq!(after(link(8, false)), (None, false, 0));
        assert_eq!(after(Told::LinkGone { index: 8 }), (None, false, 0));
        assert_eq!(after(link(2, true)), (Some(true), false, 0));
        assert_eq!(after(Told::LinkGone { index: 7 }), (Some(false), false, 1));
        assert_eq!(after(link(7, false)), (Some(false), false, 1));
        assert_eq!(after(Told::Missed), (Some(false), true, 0));
        let ip = "192.0.2.9".parse().unwrap();
        assert_eq!(after(Told::NeighGone { index: 9, ip }), (None, false, 0));
        assert_eq!(after(Told::NeighGone { index: 7, ip }), (Some(false), false, 1));
    }
}
