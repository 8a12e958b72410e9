//! The client against a server thread that says what it is told to.

use super::*;
use crate::wire::ProblemKind;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

/// A server that takes one connection, reads one request and answers with these bytes. Its thread gives the request.
fn server(answer: &'static [u8]) -> (tempfile::TempDir, Client, JoinHandle<String>) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut chunk = [0; 4096];
        while !is_whole(&request) {
            let count = stream.read(&mut chunk).unwrap();
            assert!(count > 0, "the request ends early");
            request.extend_from_slice(&chunk[..count]);
        }
        stream.write_all(answer).unwrap();
        String::from_utf8(request).unwrap()
    });
    (dir, Client::new(socket), thread)
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    body.len() >= length.parse::<usize>().unwrap()
}

#[test]
fn attach_sends_the_wire_type_and_reads_the_answer() {
    let (_dir, client, thread) = server(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 242\r\n\r\n\
        {\"network\":{\"id\":\"0123456789ab\",\"name\":\"ov\",\"vni\":7,\"subnets\":[{\"subnet\":\"10.42.0.0/16\",\
        \"gateway\":\"10.42.0.1\",\"block\":26}],\"created\":\"2026-01-01T00:00:00Z\"},\"addresses\":[\"10.42.0.3/16\"],\
        \"mac\":\"02:00:00:00:00:01\",\"mtu\":1450,\"group\":1459617799}EXTRA",
    );
    let ask =
        Attach { network: "ov".into(), container: "c".into(), ifname: "eth0".into(), ..Attach::default() };
    let attached = client.attach(&ask).unwrap();
    assert_eq!(attached.mtu, 1450);
    assert_eq!(attached.addresses, vec!["10.42.0.3/16".parse().unwrap()]);
    let request = thread.join().unwrap();
    assert!(request.starts_with("POST /v1/attach HTTP/1.1\r\n"), "{request}");
    let body = request.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(serde_json::from_str::<Attach>(body).unwrap(), ask);
}

#[test]
fn a_body_without_a_length_goes_to_the_end_of_the_connection() {
    let (_dir, client, _thread) = server(b"HTTP/1.1 200 OK\r\n\r\n[]");
    assert_eq!(client.networks().unwrap(), vec![]);
}

#[test]
fn an_empty_answer_of_204_is_good() {
    let (_dir, client, thread) = server(b"HTTP/1.1 204 No Content\r\n\r\n");
    client.remove_node("host 1/..?x", true).unwrap();
    let request = thread.join().unwrap();
    assert!(request.starts_with("DELETE /v1/nodes/host%201%2F..%3Fx?force=true HTTP/1.1\r\n"), "{request}");
}

#[test]
fn an_error_of_the_agent_is_its_problem() {
    let (_dir, client, _thread) = server(
        b"HTTP/1.1 409 Conflict\r\ncontent-length: 65\r\n\r\n\
        {\"kind\":\"taken\",\"field\":\"--subnet\",\"message\":\"--subnet: it overlaps\"}",
    );
    let error = client.create_network(&NetworkCreate::default()).unwrap_err();
    // The length that is told is short by some bytes: what is there is not JSON, and nothing is made up.
    assert!(matches!(error, ClientError::Garbled { .. }), "{error:?}");
    let (_dir, client, _thread) = server(
        b"HTTP/1.1 409 Conflict\r\n\r\n\
        {\"kind\":\"taken\",\"field\":\"--subnet\",\"message\":\"--subnet: it overlaps\"}",
    );
    let error = client.create_network(&NetworkCreate::default()).unwrap_err();
    let problem = error.problem().unwrap();
    assert_eq!((problem.kind, problem.field.as_deref()), (ProblemKind::Taken, Some("--subnet")));
    assert_eq!(error.to_string(), "--subnet: it overlaps");
    assert!(!error.is_absent());
}

#[test]
fn no_socket_and_a_stale_one_are_no_agent() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    for stale in [false, true] {
        if stale {
            drop(UnixListener::bind(&socket).unwrap());
            assert!(socket.exists());
        }
        let error = Client::new(&socket).status(None).unwrap_err();
        assert!(matches!(error, ClientError::NoAgent { .. }) && error.is_absent(), "{error:?}");
        assert!(error.to_string().contains("start it with `ovl-agent run`"), "{error}");
    }
}

#[test]
fn an_agent_that_dies_in_the_middle_is_no_agent() {
    for answer in [&b""[..], b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n[]"] {
        let (_dir, client, _thread) = server(answer);
        let error = client.networks().unwrap_err();
        assert!(matches!(error, ClientError::NoAgent { .. }), "{error:?}");
    }
}

#[test]
fn an_agent_that_hangs_times_out_in_connect_and_in_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let client = Client::new(&socket).with_timeout(Duration::from_millis(50));
    // Nobody accepts: first the answers time out, then, with the backlog full, the connects.
    let mut pending = Vec::new();
    for _ in 0..3 {
        let error = client.healthz().unwrap_err();
        assert!(matches!(error, ClientError::TimedOut { .. }) && error.is_absent(), "{error:?}");
    }
    loop {
        let stream = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        stream.set_nonblocking(true).unwrap();
        match stream.connect(&socket2::SockAddr::unix(&socket).unwrap()) {
            Ok(()) => pending.push(stream),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                break;
            }
        }
        assert!(pending.len() < 10_000, "the backlog does not fill");
    }
    let error = client.healthz().unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
    assert!(error.to_string().contains("GET /healthz"), "{error}");
    drop(listener);
}

#[test]
fn what_is_no_answer_is_refused_by_what_is_wrong() {
    let cases: [(&[u8], &str); 5] = [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "chunked"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", "Content-Length \"many\""),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", "99999999999 bytes"),
        (b"HTTP/1.1 502 Bad\r\ncontent-length: 2\r\n\r\nno", "status 502 to GET /v1/networks"),
    ];
    for (answer, expected) in cases {
        let (_dir, client, _thread) = server(answer);
        let error = client.networks().unwrap_err();
        assert!(matches!(error, ClientError::Garbled { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn an_answer_without_end_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        let zeros = vec![b'0'; 1 << 20];
        let mut sent = 0_u64;
        while stream.write_all(&zeros).is_ok() {
            sent += 1;
        }
        sent
    });
    let error = Client::new(&socket).networks().unwrap_err();
    assert!(error.to_string().contains("more than 67108864 bytes"), "{error}");
    assert!((63..70).contains(&thread.join().unwrap()));
}

#[test]
fn the_agent_is_told_until_when_the_client_waits() {
    let (_dir, client, thread) = server(b"HTTP/1.1 204 No Content\r\n\r\n");
    let before = crate::wire::monotonic();
    client.with_timeout(Duration::from_secs(7)).accept().unwrap();
    let request = thread.join().unwrap();
    let field = format!("{}: ", crate::wire::DEADLINE);
    let until = request.lines().find_map(|line| line.strip_prefix(&field)).unwrap();
    let until = Duration::from_millis(until.parse().unwrap());
    let least = before + Duration::from_millis(6999);
    assert!((least..least + Duration::from_secs(60)).contains(&until), "{before:?} {until:?}");
}
