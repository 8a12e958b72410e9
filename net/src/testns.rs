//! For tests, here and in the crates above: a thread in a network namespace of its own, so that nothing that a test does
//! to links, addresses or rules is seen outside, and nothing is left when it ends.

use std::panic::resume_unwind;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::ns::{self, Netns};

/// Runs `f` on a new thread in a fresh network namespace, its loopback interface up. A panic of `f` is passed on.
///
/// # Panics
/// When the namespace cannot be made: it needs root.
pub fn in_fresh<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let run = || {
        crate::Netlink::open()
            .and_then(|mut netlink| netlink.loopback_up())
            .unwrap_or_else(|error| panic!("{error}"));
        f()
    };
    ns::in_scratch(run).unwrap_or_else(|error| panic!("{error}"))
}

/// A further namespace, empty, its loopback interface down; it is gone when the handle is dropped.
///
/// # Panics
/// When the namespace cannot be made: it needs root.
pub fn another() -> Netns {
    ns::in_scratch(Netns::current).and_then(|netns| netns).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs `f` on a new thread in a mount namespace of its own, from which no mount spreads.
///
/// # Panics
/// When the namespace cannot be made: it needs root.
pub fn private_mounts<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let run = || {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
            .unwrap_or_else(|error| panic!("make a mount namespace: {error}"));
        f()
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap_or_else(|panic| resume_unwind(panic)))
}
