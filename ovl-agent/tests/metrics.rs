//! `--metrics-listen` under connections that ask nothing. Needs root.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use ovl_api::wire::{Attach, Detach};
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use support::{Host, PATIENCE};

const LISTEN: &str = "127.0.0.1:9790";

/// So many connections from the host's own namespace.
fn connect(host: &Host, count: usize) -> Vec<TcpStream> {
    let netns = File::open(host.space.path()).unwrap();
    let connect = || {
        nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        (0..count).map(|_| TcpStream::connect(LISTEN).unwrap()).collect::<Vec<_>>()
    };
    let streams = std::thread::scope(|scope| scope.spawn(connect).join().unwrap());
    streams.iter().for_each(|stream| stream.set_read_timeout(Some(PATIENCE)).unwrap());
    streams
}

fn one(host: &Host) -> TcpStream {
    connect(host, 1).pop().unwrap()
}

/// What comes on a connection until its end.
fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

fn get(host: &Host, path: &str) -> String {
    let mut stream = one(host);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: metrics\r\n\r\n").unwrap();
    rest(stream)
}

#[test]
fn idle_metrics_connections_take_nothing_from_the_api() {
    let host = Host::alone("h1");
    let agent = host.ready(&["--metrics-listen", LISTEN]);
    let pid = agent.pid().to_string();
    let limited = Command::new("prlimit").args(["--nofile=256:256", "--pid", &pid]).status();
    assert!(limited.unwrap().success());
    let idle = connect(&host, 300);
    // The API works as without them, for every kind of request.
    host.create("ov", &["10.42.0.0/16"]);
    for round in 0..5 {
        host.client().healthz().unwrap();
        let (network, container) = ("ov".to_owned(), format!("c{round}"));
        let (ifname, veth) = ("eth0".to_owned(), format!("veth{round}"));
        let detach = Detach { network, container, ifname };
        let Detach { network, container, ifname } = detach.clone();
        host.client().attach(&Attach { network, container, ifname, veth, ..Attach::default() }).unwrap();
        host.client().detach(&detach).unwrap();
    }
    // So does a scraper's, which comes late.
    let answer = get(&host, "/metrics");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("weft_"), "{answer}");
    drop(idle);
}

#[test]
fn metrics_connections_without_a_whole_head_are_closed() {
    let host = Host::alone("h1");
    let _agent = host.ready(&["--metrics-listen", LISTEN]);
    let silent = one(&host);
    let mut slow = one(&host);
    write!(slow, "GET /metrics HTTP/1.1\r\nHost: met").unwrap();
    // Reading them fails when they are still open after PATIENCE.
    assert_eq!(rest(silent), "");
    assert!(!rest(slow).starts_with("HTTP/1.1 200"));
    // A whole one is answered, and closed, so that its place is free at once.
    assert!(get(&host, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(get(&host, "/v1/status").starts_with("HTTP/1.1 404"), "nothing else is served over TCP");
}
