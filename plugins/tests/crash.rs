//! SIGKILL at any system call of an ADD, then a DEL or a GC: nothing is left.
//!
//! strace records a run and then lets the process die at each of the system calls that change something; each time the host
//! must read as before.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, bridge, with};
use serde_json::{Value, json};

fn chain() -> (Value, Value) {
    let mut web = with(&bridge("web", "10.5.0.0/24"), json!({"ipMasq": true}));
    web["ipam"]["ranges"] = json!([[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd00:5::/64"}]]);
    let ports = json!({"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
    ]});
    (web, json!({"cniVersion": "1.1.0", "name": "web", "type": "portmap", "runtimeConfig": ports}))
}

/// What a DEL must leave: no link but the bridge, no lease, no element; the short-lived child has done its work.
fn settled(host: &Host, before: &str, how: &str) {
    for _ in 0..200 {
        if host.picture() == before {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(host.picture(), before, "{how}");
}

fn clean(host: &Host, conf: &Value) {
    host.call("GC", &with(conf, json!({"cni.dev/valid-attachments": []}))).run().ok();
}

/// Lets an ADD die at every place (every `step`-th), and calls `mend` after each. Returns how often it died.
fn die_everywhere(host: &Host, conf: &Value, step: usize, mut mend: impl FnMut(&str)) -> usize {
    host.netns("c1");
    let places = host.recorded(host.about("ADD", conf, "c1"));
    mend("nowhere");
    host.sh("ip netns del c1");
    let mut died = 0;
    for place in places.iter().step_by(step) {
        host.netns("c1");
        died += usize::from(!host.about("ADD", conf, "c1").killed_at(place));
        mend(&format!("{} {}", place.0, place.1));
        host.sh("ip netns del c1");
    }
    died
}

#[test]
fn bridge_killed_anywhere_then_del_then_gc() {
    let host = Host::new();
    let (web, _) = chain();
    let empty = host.picture();
    let died = die_everywhere(&host, &web, 1, |at| {
        host.about("DEL", &web, "c1").run().ok();
        host.eventually("test $(ip -o link | grep -vc br0) = 1 && test -z \"$(nft list ruleset)\"");
        assert_eq!(host.sh("ip -n c1 -o link | wc -l"), "1", "killed at {at}");
        clean(&host, &web);
        settled(&host, &empty, &format!("killed at {at}"));
    });
    assert!(died > 20, "killed at {died} places");
}

#[test]
fn bridge_killed_anywhere_then_gc_alone() {
    let host = Host::new();
    let (web, _) = chain();
    let empty = host.picture();
    die_everywhere(&host, &web, 3, |at| {
        clean(&host, &web);
        settled(&host, &empty, &format!("killed at {at}"));
    });
}

#[test]
fn bridge_killed_anywhere_can_be_added_again_after_del() {
    let host = Host::new();
    let (web, _) = chain();
    host.netns("c0");
    host.about("ADD", &web, "c0").run().ok();
    let with_one = host.picture();
    die_everywhere(&host, &web, 7, |at| {
        host.about("DEL", &web, "c1").run().ok();
        host.about("ADD", &web, "c1").run().ok();
        host.about("DEL", &web, "c1").run().ok();
        settled(&host, &with_one, &format!("killed at {at}"));
    });
}

#[test]
fn portmap_killed_anywhere_then_del() {
    let host = Host::new();
    let (web, map) = chain();
    host.netns("c1");
    host.about("ADD", &web, "c1").run().ok();
    let before = host.sh("nft list ruleset");
    host.about("DEL", &web, "c1").run().ok();
    host.sh("ip netns del c1");
    clean(&host, &web);
    let empty = host.picture();
    host.netns("c1");
    let result = host.about("ADD", &web, "c1").run().ok();
    let add = with(&map, json!({"prevResult": result}));
    let places = host.recorded(host.about("ADD", &add, "c1"));
    host.about("DEL", &map, "c1").run().ok();
    host.about("DEL", &web, "c1").run().ok();
    host.sh("ip netns del c1");
    clean(&host, &web);
    for (number, place) in places.iter().enumerate() {
        let at = format!("{} {}", place.0, place.1);
        host.netns("c1");
        let result = host.about("ADD", &web, "c1").run().ok();
        let add = with(&map, json!({"prevResult": result}));
        host.about("ADD", &add, "c1").killed_at(place);
        // Neither the result nor the ports are known to this DEL.
        let del = if number % 2 == 0 { with(&map, json!({"runtimeConfig": {}})) } else { map.clone() };
        host.about("DEL", &del, "c1").run().ok();
        let left = host.sh("nft list ruleset");
        assert!(!left.contains("8080"), "killed at {at}: {left}");
        assert_eq!(
            left.matches("web/c1").count(),
            before.matches("web/c1").count(),
            "killed at {at}: {left}"
        );
        host.about("DEL", &web, "c1").run().ok();
        host.sh("ip netns del c1");
        clean(&host, &web);
        settled(&host, &empty, &format!("killed at {at}"));
    }
}

#[test]
fn del_killed_anywhere_is_finished_by_the_next() {
    let host = Host::new();
    let (web, _) = chain();
    let empty = host.picture();
    host.netns("c1");
    host.about("ADD", &web, "c1").run().ok();
    let places = host.recorded(host.about("DEL", &web, "c1"));
    host.sh("ip netns del c1");
    clean(&host, &web);
    for place in &places {
        let at = format!("{} {}", place.0, place.1);
        host.netns("c1");
        host.about("ADD", &web, "c1").run().ok();
        host.about("DEL", &web, "c1").killed_at(place);
        host.about("DEL", &web, "c1").run().ok();
        host.eventually("test $(ip -o link | grep -vc br0) = 1 && test -z \"$(nft list ruleset)\"");
        host.sh("ip netns del c1");
        clean(&host, &web);
        settled(&host, &empty, &format!("killed at {at}"));
    }
}

#[test]
fn what_a_killed_reaper_left_goes_with_the_next_add() {
    let host = Host::new();
    let (web, _) = chain();
    host.netns("c1");
    host.netns("c2");
    host.about("ADD", &web, "c1").run().ok();
    // The child's first steps; the DEL itself has ended by then.
    let wrapper = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=setsid:signal=KILL"];
    host.about("DEL", &web, "c1").under(&wrapper).run();
    host.eventually("ip -o link | grep -q dead");
    host.about("ADD", &web, "c2").run().ok();
    host.eventually("! ip -o link | grep -q dead");
}
