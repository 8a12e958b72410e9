//! Killed at any system call, a DEL leaves nothing.

use crate::{chain, tolerate_bridge_and_store};
use std::path::Path;
use tests::Host;

/// The system calls by which a plugin changes the world outside its memory, or learns that it did.
const CALLS: [&str; 10] =
    ["sendto", "sendmsg", "recvmsg", "recvfrom", "write", "pwrite64", "pwritev", "openat", "setns", "fcntl"];

/// A directory of executables that are killed at the `n`th `call`.
fn killers(host: &Host, call: &str, n: usize) {
    for kind in ["bridge", "portmap"] {
        let file = format!("/run/killers/{kind}");
        let real = tests::weft_cni().join(kind);
        let line = format!(
            "#!/bin/sh\nexec strace -qq -f -o /dev/null -e trace={call} -e inject={call}:signal=SIGKILL:when={n} {}\n",
            real.display()
        );
        host.write(&file, line);
        host.run(&format!("chmod 755 {file}")).ok();
    }
}

/// Kills `verb` at every `n`th call of each kind, from 1 until it survives.
fn killed_at_every_call(verb: &str) {
    let host = crate::host_with(1);
    let good = chain(&host, "/var/run/netns/pod1");
    tolerate_bridge_and_store(&host);
    host.tolerate("file /run/killers");
    host.tolerate("file /var/lib/cni");
    let mut killed = 0;
    for call in CALLS {
        for n in 1..60 {
            killers(&host, call, n);
            let mut bad = good.clone();
            bad.dir = Path::new("/run/killers").to_owned();
            let survived = if verb == "ADD" {
                bad.add().is_ok()
            } else {
                let result = good.add_ok();
                bad.del(Some(&result)).is_empty()
            };
            good.del_ok(None);
            if let Some(leak) = host.leak() {
                panic!("{verb} killed at {call} number {n}, then DEL: {leak}");
            }
            if survived {
                break;
            }
            killed += 1;
        }
    }
    assert!(killed > 10, "only {killed} kills: strace does not work here");
    let result = good.add_ok();
    host.run_in("pod1", "ping -c1 -W2 10.1.2.1").ok();
    good.del_ok(Some(&result));
    assert!(good.gc(&[]).is_empty());
}

#[test]
fn an_add_killed_at_any_system_call_leaves_nothing_after_del() {
    killed_at_every_call("ADD");
}

#[test]
fn a_del_killed_at_any_system_call_leaves_nothing_after_the_next() {
    killed_at_every_call("DEL");
}
