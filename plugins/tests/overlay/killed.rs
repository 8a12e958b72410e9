//! ADD and DEL killed at their system calls.

use super::common::agent::Agent;
use super::{gone, host};

/// Lets `verb` die at every place of its run (every `step`-th), then has a DEL clean up.
fn killed_everywhere(verb: &str, step: usize) {
    let (host, agent) = (host(), Agent::new());
    let conf = agent.conf("web");
    let before = host.picture();
    host.netns("c1");
    if verb == "DEL" {
        host.about("ADD", &conf, "c1").run().ok();
    }
    let places = host.recorded(host.about(verb, &conf, "c1"));
    host.about("DEL", &conf, "c1").run().ok();
    gone(&host);
    host.sh("ip netns del c1; rm -rf /var/lib/weft/ovl-agent");
    let mut died = 0;
    for (number, place) in places.iter().step_by(step).enumerate() {
        let at = format!("{} {}", place.0, place.1);
        host.netns("c1");
        if verb == "DEL" {
            host.about("ADD", &conf, "c1").run().ok();
        }
        died += usize::from(!host.about(verb, &conf, "c1").killed_at(place));
        agent.asked();
        // Half of them without the agent, which then finds a note.
        let alone = number % 2 == 0;
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
            // What the killed call had sent may have been read only now.
            assert!(agent.asked().iter().any(|(path, _)| path == "/v1/detach"), "killed at {at}");
        }
        host.sh("rm -rf /var/lib/weft/ovl-agent");
        assert_eq!(host.picture(), before, "killed at {at}");
    }
    // How many there are depends on the libc and its files.
    assert!(died * step > 20, "{verb} killed at {died} places");
}

#[test]
fn an_add_killed_anywhere_leaves_nothing_after_del() {
    killed_everywhere("ADD", 1);
}

#[test]
fn a_del_killed_anywhere_is_finished_by_the_next() {
    killed_everywhere("DEL", 1);
}
