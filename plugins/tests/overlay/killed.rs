//! ADD and DEL killed at their system calls.

use super::common::agent::Agent;
use super::{gone, host};

/// Lets `verb` die at every `step`-th system call, then has a DEL clean up.
fn killed_everywhere(verb: &str, step: usize) {
    let (host, agent) = (host(), Agent::new());
    let conf = agent.conf("web");
    let before = host.picture();
    let (mut at, mut survived) = (1, false);
    while !survived {
        host.netns("c1");
        if verb == "DEL" {
            host.about("ADD", &conf, "c1").run().ok();
        }
        let inject = format!("inject=all:signal=KILL:when={at}");
        let wrapper = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject];
        survived = host.about(verb, &conf, "c1").under(&wrapper).run().success;
        agent.asked();
        // Half of them without the agent, which then finds a note.
        let alone = at % 2 == 0;
        if alone {
            agent.stop();
        }
        host.about("DEL", &conf, "c1").run().ok();
        gone(&host);
        assert_eq!(host.sh("ip -n c1 -o link | wc -l"), "1", "killed at {at}");
        host.sh("ip netns del c1");
        if alone {
            agent.start();
            host.sh("rm /var/lib/weft/ovl-agent/released/veth*.json");
        } else {
            assert_eq!(agent.asked()[0].0, "/v1/detach");
        }
        host.sh("rm -rf /var/lib/weft/ovl-agent");
        assert_eq!(host.picture(), before, "killed at {at}");
        at += step;
    }
    println!("{verb} killed at {} places", at / step);
    // How many there are depends on the libc and its files.
    assert!(at > 20);
}

#[test]
fn an_add_killed_anywhere_leaves_nothing_after_del() {
    killed_everywhere("ADD", 3);
}

#[test]
fn a_del_killed_anywhere_is_finished_by_the_next() {
    killed_everywhere("DEL", 3);
}
