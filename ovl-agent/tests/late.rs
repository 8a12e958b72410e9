//! Requests whose senders have given up before the agent comes to them. Needs root.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use ovl_api::ClientError;
use ovl_api::wire::{Attach, DEADLINE, Detach, monotonic};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use support::container::Container;
use support::lan::{ETCD, Lan};
use support::{Agent, Host, eventually};

fn ask(container: &str) -> Attach {
    Attach {
        network: "ov".into(),
        container: container.into(),
        ifname: "eth0".into(),
        veth: format!("v{container}"),
        ips: vec!["10.42.50.5".parse().unwrap()],
        ..Attach::default()
    }
}

fn end(container: &str) -> Detach {
    Detach { network: "ov".into(), container: container.into(), ifname: "eth0".into() }
}

/// Sends a request and leaves the connection open. `until` is when its sender gives up.
fn send(host: &Host, path: &str, body: &str, until: Option<Duration>) -> UnixStream {
    let mut stream = UnixStream::connect(host.socket()).unwrap();
    let until = until.map(|until| format!("{DEADLINE}: {}\r\n", until.as_millis())).unwrap_or_default();
    let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{until}");
    // In one piece: a bad head is answered before the body is read.
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn attach(host: &Host, container: &str, until: Option<Duration>) -> UnixStream {
    send(host, "/v1/attach", &serde_json::to_string(&ask(container)).unwrap(), until)
}

fn answer(mut stream: UnixStream) -> String {
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Waits until the agent has come to what lay in its socket. It need not say so: a connection that it finds closed before it
/// has begun anything, it just drops.
fn goes_on(host: &Host) {
    host.sync();
    std::thread::sleep(Duration::from_millis(500));
    host.sync();
}

/// Nobody has an address, and another container gets the one that was asked for.
#[track_caller]
fn nothing_is_held(host: &Host, agent: &Agent) {
    let detail = host.client().network_detail("ov").unwrap();
    assert_eq!(detail.endpoints, vec![], "{}", agent.said());
    host.client().attach(&ask("other")).unwrap_or_else(|error| panic!("{error}\n{}", agent.said()));
    host.client().detach(&end("other")).unwrap();
}

#[test]
fn an_attachment_whose_sender_gave_up_while_the_agent_hung_is_not_made() {
    let host = Host::alone("h1");
    let agent = host.ready(&[]);
    host.create("ov", &["10.42.0.0/16"]);
    agent.signal("STOP");
    let client = host.client().with_timeout(Duration::from_millis(100));
    // As the plugin does: the ADD fails, the DEL too, and leaves a note.
    assert!(matches!(client.attach(&ask("c")), Err(ClientError::TimedOut { .. })));
    assert!(matches!(client.detach(&end("c")), Err(ClientError::TimedOut { .. })));
    let root = ovl_api::names::agent_root(&host.root());
    ovl_api::notes::leave(&root, "vc.json", &end("c")).unwrap();
    agent.signal("CONT");
    goes_on(&host);
    nothing_is_held(&host, &agent);
}

#[test]
fn a_request_whose_deadline_is_over_is_refused_also_on_an_open_connection() {
    let host = Host::alone("h1");
    let agent = host.ready(&[]);
    host.create("ov", &["10.42.0.0/16"]);
    let past = Some(monotonic().saturating_sub(Duration::from_millis(1)));
    let said = answer(attach(&host, "c", past));
    assert!(said.starts_with("HTTP/1.1 503") && said.contains("its sender waited until"), "{said}");
    nothing_is_held(&host, &agent);
    let name = r#"{"name":"more"}"#;
    let said = answer(send(&host, "/v1/networks", name, past));
    assert!(said.starts_with("HTTP/1.1 503"), "{said}");
    assert_eq!(host.client().networks().unwrap().len(), 1);
    // A new attachment of the same name is not ended by what was to end the one before it.
    host.client().attach(&ask("c")).unwrap();
    let said = answer(send(&host, "/v1/detach", &serde_json::to_string(&end("c")).unwrap(), past));
    assert!(said.starts_with("HTTP/1.1 503"), "{said}");
    assert_eq!(host.client().network_detail("ov").unwrap().endpoints.len(), 1);
    let wrong = answer(send(&host, "/v1/detach", "{}", Some(Duration::MAX)));
    assert!(wrong.starts_with("HTTP/1.1 400") && wrong.contains(DEADLINE), "{wrong}");
}

#[test]
fn an_attachment_whose_sender_hung_up_while_the_agent_hung_is_not_made() {
    let host = Host::alone("h1");
    let agent = host.ready(&[]);
    host.create("ov", &["10.42.0.0/16"]);
    agent.signal("STOP");
    // Whoever sent this was killed: it has not told until when it waits.
    drop(attach(&host, "c", None));
    agent.signal("CONT");
    goes_on(&host);
    nothing_is_held(&host, &agent);
}

#[test]
fn an_attachment_is_taken_back_when_its_sender_hangs_up_while_it_is_made() {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    let flags = ["--etcd", ETCD];
    let (agent, other) = (h1.ready(&flags), h2.ready(&flags));
    h1.create("ov", &["10.42.0.0/16"]);
    h2.sync();
    let _container = Container::new(h2, "ov", "two");
    h1.sync();
    // The first block of a host is told to the others, and one of these hangs: that takes a second.
    other.signal("STOP");
    let stream = attach(h1, "c", None);
    let has = |count| {
        h1.client()
            .network_detail("ov")
            .is_ok_and(|d| d.endpoints.iter().filter(|endpoint| endpoint.host == "h1").count() == count)
    };
    eventually("it is being made", || has(1));
    drop(stream);
    eventually("it is taken back", || agent.said().contains("c eth0 not attached: nobody waits"));
    eventually("nothing is left of it", || has(0));
    assert!(!agent.said().contains("c eth0 attached"), "{}", agent.said());
    other.signal("CONT");
}
