//! Published UDP ports: flows that were there before, and those that outlive a container.

use crate::{HOST, Site};
use std::time::{Duration, Instant};
use tests::Running;

fn tick(site: &Site) -> Running {
    let traffic = tests::traffic().display().to_string();
    site.host
        .spawn("ip", &["netns", "exec", "outside", &traffic, "udp-tick", &format!("{HOST}:5353"), "40000"])
}

fn until_answers(flow: &Running, name: &str) {
    let start = Instant::now();
    let (answer, from) = (format!("{name} 192.0.2.2\n"), flow.so_far().len());
    while !flow.so_far()[from..].contains(&answer) {
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "no answer of {name}; answers so far: {}",
            flow.so_far()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_udp_port_answers_from_everywhere() {
    let site = Site::set_up();
    let c = site.host.weft().traffic_container(
        "box",
        "--network testbridge -p 5353:53/udp",
        "udp-serve 0.0.0.0:53 c",
    );
    c.until_listening(53);
    let ask = format!("{} udp {HOST}:5353", tests::traffic().display());
    assert_eq!(site.outside(&ask).ok().text(), "c 192.0.2.2");
    assert!(site.host.run(&ask).ok().text().starts_with("c "));
    let local = format!("{} udp 127.0.0.1:5353", tests::traffic().display());
    assert!(site.host.run(&local).ok().text().starts_with("c "));
    assert!(c.sh(&format!("/traffic/weft-traffic udp {HOST}:5353")).ok().text().starts_with("c "));
    assert_eq!(site.host.weft().run("port box").ok().text().lines().next(), Some("53/udp -> 0.0.0.0:5353"));
    c.remove();
    site.finish();
}

#[test]
fn a_flow_that_was_there_before_the_port_is_published_reaches_it() {
    let site = Site::set_up();
    let flow = tick(&site);
    std::thread::sleep(Duration::from_millis(500)); // the kernel tracks it now
    let c = site.host.weft().traffic_container(
        "box",
        "--network testbridge -p 5353:53/udp",
        "udp-serve 0.0.0.0:53 c",
    );
    until_answers(&flow, "c");
    c.remove();
    drop(flow);
    site.finish();
}

#[test]
fn a_flow_follows_the_port_to_the_next_container() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let flow = tick(&site);
    let first =
        weft.traffic_container("first", "--network testbridge -p 5353:53/udp", "udp-serve 0.0.0.0:53 first");
    until_answers(&flow, "first");
    first.remove();
    let next =
        weft.traffic_container("next", "--network testbridge -p 5353:53/udp", "udp-serve 0.0.0.0:53 next");
    until_answers(&flow, "next");
    next.remove();
    drop(flow);
    site.finish();
}
