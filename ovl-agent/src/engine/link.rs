//! The underlay's link, as the kernel tells of it: when it goes down the kernel takes the direct routes by it away, and what
//! address it has is what the other hosts are told.

use net::{Monitor, Told};
use tokio::sync::mpsc;

/// How much is kept while the worker works. Beyond that the kernel keeps it, or says that it was too much.
const KEPT: usize = 64;

/// Waits for something to happen to the underlay. Without it (no socket, or one that fails) the regular passes are all there
/// is.
pub struct Watcher {
    told: mpsc::Receiver<Vec<Told>>,
    /// The link's index, and whether it was up when that was told last.
    last: (u32, Option<bool>),
}

impl Watcher {
    /// To be made in the agent's network namespace.
    pub fn new() -> Watcher {
        let (tell, told) = mpsc::channel(KEPT);
        let begun = Monitor::open().map_err(|error| error.to_string()).and_then(|monitor| {
            // It ends with the process, or with the first word that nobody wants.
            let thread = std::thread::Builder::new().name("links".to_owned());
            thread.spawn(move || listen(monitor, &tell)).map_err(|error| error.to_string())
        });
        if let Err(error) = begun {
            late(&error);
        }
        Watcher { told, last: (0, None) }
    }

    /// Returns when the kernel has to be looked at. `link` is the underlay's index; `gone`: it, or its address, was not found,
    /// so that whatever happens may be its return. Dropped, it loses nothing.
    pub async fn changed(&mut self, link: u32, gone: bool) {
        while let Some(told) = self.told.recv().await {
            let mut due = false;
            for told in told {
                due |= self.concerns(told, link, gone);
            }
            if due {
                return;
            }
        }
        std::future::pending().await
    }

    fn concerns(&mut self, told: Told, link: u32, gone: bool) -> bool {
        match told {
            Told::Link { index, up } if index == link => {
                // Most of what is told of a link changes nothing for the routes by it.
                std::mem::replace(&mut self.last, (index, Some(up))) != (index, Some(up))
            }
            Told::LinkGone { index } | Told::Address { index } => index == link || gone,
            Told::Link { .. } => gone,
            Told::Missed => true,
        }
    }
}

fn listen(mut monitor: Monitor, tell: &mpsc::Sender<Vec<Told>>) {
    loop {
        match monitor.wait() {
            Ok(told) => {
                if tell.blocking_send(told).is_err() {
                    return;
                }
            }
            Err(error) => return late(&error.to_string()),
        }
    }
}

fn late(why: &str) {
    tracing::warn!("changes of the underlay are noticed within a minute only: {why}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happens_to_the_underlay_matters() {
        let mut watcher = Watcher { told: mpsc::channel(1).1, last: (0, None) };
        let mut concerns = |told, gone| watcher.concerns(told, 2, gone);
        let link = |index, up| Told::Link { index, up };
        assert!(concerns(link(2, true), false), "nothing was known of it");
        assert!(!concerns(link(2, true), false), "as it was");
        assert!(concerns(link(2, false), false) && concerns(link(2, true), false));
        assert!(!concerns(link(7, false), false), "a container's");
        assert!(concerns(link(7, true), true), "it may be the underlay's new one");
        assert!(concerns(Told::Address { index: 2 }, false) && concerns(Told::LinkGone { index: 2 }, false));
        assert!(
            !concerns(Told::Address { index: 7 }, false) && !concerns(Told::LinkGone { index: 7 }, false)
        );
        assert!(concerns(Told::Missed, false));
    }
}
