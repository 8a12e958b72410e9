//! An attachment works when ADD returns, and not a second later.

use crate::{chain, host_with, tolerate_bridge_and_store};
use tests::Machine;

#[test]
fn another_machine_reaches_the_first_container_of_a_new_bridge_at_once() {
    let host = host_with(1);
    let outside = host.link_machine("outside");
    let traffic = tests::traffic();
    let traffic = traffic.display();
    let mut server =
        host.spawn("ip", &["netns", "exec", "pod1", &traffic.to_string(), "tcp-serve", "[::]:80", "www"]);
    server.until("listening");

    let chain = chain(&host, "/var/run/netns/pod1");
    let result = chain.add_ok();
    for address in [format!("[{}]", Machine::HOST6), Machine::HOST.to_owned()] {
        // A lost first packet would be sent again after a second.
        let answer = outside.traffic(&format!("tcp {address}:8080 700")).ok();
        assert!(answer.text().starts_with("www"), "{answer}");
    }
    chain.del_ok(Some(&result));
    drop(server);
    tolerate_bridge_and_store(&host);
}
