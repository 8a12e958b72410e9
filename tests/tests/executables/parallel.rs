//! Many ADDs and DELs at once, on bridges that do not exist yet.

use crate::{chain, tolerate_bridge_and_store};
use serde_json::json;
use std::collections::BTreeSet;
use tests::Host;

const MANY: usize = 24;

#[test]
fn many_adds_at_once_on_a_new_bridge() {
    let host = crate::host_with(MANY);
    let base = chain(&host, "/var/run/netns/pod1");
    for _ in 0..2 {
        let addresses: BTreeSet<String> = std::thread::scope(|scope| {
            let adds: Vec<_> = (1..=MANY)
                .map(|n| {
                    let mut one = base.of(&format!("c{n}"), &format!("/var/run/netns/pod{n}"));
                    one.runtime = json!({"portMappings":
                        [{"hostPort": 8000 + n, "containerPort": 80, "protocol": "tcp"}]});
                    scope.spawn(move || {
                        let result = one.add_ok();
                        result["ips"][0]["address"].as_str().unwrap_or_default().to_owned()
                    })
                })
                .collect();
            adds.into_iter().map(|add| add.join().unwrap()).collect()
        });
        assert_eq!(addresses.len(), MANY, "{addresses:?}");
        all_reach_the_gateway(&host);
        std::thread::scope(|scope| {
            for n in 1..=MANY {
                // As a runtime that has lost what it knew of the attachment: without ports, without the result.
                let mut one = base.of(&format!("c{n}"), &format!("/var/run/netns/pod{n}"));
                one.runtime = json!({});
                scope.spawn(move || one.del_ok(None));
            }
        });
    }
    tolerate_bridge_and_store(&host);
}

fn all_reach_the_gateway(host: &Host) {
    let line = format!(
        "for n in $(seq {MANY}); do ip netns exec pod$n ping -c1 -W3 10.1.2.1 >/dev/null || exit 1; done"
    );
    host.run(&line).ok();
}
