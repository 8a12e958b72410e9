//! Pings that never pause while something breaks: what of them was lost is known at the end.

use crate::cluster::{Cluster, Member};
use crate::echo::Pinger;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A ping that has no answer after so long is lost: far longer than one takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// From one round to the next.
const PAUSE: Duration = Duration::from_millis(20);

/// A thread for each container that pings others, each of them again as soon as all have answered.
pub struct Flow {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Flow {
    /// From each of these containers to all the others of them, by all their addresses.
    #[track_caller]
    pub fn among(lab: &Cluster, members: &[&Member]) -> Flow {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |from: &&Member| {
            let pinger = Pinger::new(&lab.netns_of(from));
            let others = members.iter().filter(|other| other.name != from.name);
            let to: Vec<IpAddr> = others.flat_map(|other| other.ips()).collect();
            let (stop, name, began) = (Arc::clone(&stop), from.name.clone(), Instant::now());
            std::thread::spawn(move || {
                let (mut sent, mut lost) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let at = began.elapsed();
                    let silent = pinger.silent(&to, PATIENCE);
                    lost.extend(silent.iter().map(|ip| format!("{name} to {ip} after {at:.1?}")));
                    sent += to.len();
                    std::thread::sleep(PAUSE);
                }
                (sent, lost)
            })
        };
        Flow { threads: members.iter().map(start).collect(), stop }
    }

    /// Ends it; how many pings there were.
    ///
    /// # Panics
    /// When one was lost.
    #[track_caller]
    pub fn none_lost(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().map(|thread| thread.join());
        let ended: Vec<_> = ended.map(|one| one.unwrap_or_else(|_| panic!("a pinger failed"))).collect();
        let sent: usize = ended.iter().map(|(sent, _)| sent).sum();
        let lost: Vec<_> = ended.into_iter().flat_map(|(_, lost)| lost).collect();
        assert!(sent > 0 && lost.is_empty(), "{} of {sent} pings lost: {lost:#?}", lost.len());
        sent
    }
}
