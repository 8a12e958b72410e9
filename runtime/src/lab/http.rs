//! A request of HTTP/1.1 and its answer: to etcd, and from containers and hosts to whatever the lab's file names.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// The longest answer that is read, in bytes.
const LONGEST: usize = 4 << 20;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// The parts of `http://HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// An address (IPv6 without brackets) or a name.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The path, with its `/`.
    pub path: String,
}

impl Url {
    /// Reads one; None when it is none.
    pub fn parse(text: &str) -> Option<Url> {
        let rest = text.strip_prefix("http://")?;
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, port)
            }
            None => authority.find(':').map_or((authority, ""), |at| authority.split_at(at)),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port > 0)?,
            None => port.is_empty().then_some(80)?,
        };
        let plain = |c: char| c.is_ascii_graphic();
        let name = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
        let valid = !host.is_empty() && host.chars().all(name) && path.chars().all(plain);
        valid.then(|| Url { host: host.to_owned(), port, path: path.to_owned() })
    }
}

/// Sends a GET to an address, in this thread's network namespace.
///
/// # Errors
/// Nobody answers in time.
pub fn get(ip: IpAddr, port: u16, host: &str, path: &str, patience: Duration) -> io::Result<Answer> {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(ip, port), patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    ask(stream, host, path, patience)
}

fn ask(mut stream: impl Read + Write, host: &str, path: &str, patience: Duration) -> io::Result<Answer> {
    let end = Instant::now() + patience;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 << 10];
    while !is_whole(&bytes) {
        if Instant::now() > end || bytes.len() > LONGEST {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A server that closes before it has read all: what it said is said.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !bytes.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    parse(&bytes).ok_or_else(|| io::Error::other("the answer is no HTTP"))
}

/// Head and body.
fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 4..]))
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
    lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}

/// Whether all of the answer is there, when its head says how long it is.
fn is_whole(bytes: &[u8]) -> bool {
    let Some((head, body)) = split(bytes) else { return false };
    if header(head, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return body.ends_with(b"0\r\n\r\n");
    }
    header(head, "content-length")
        .and_then(|length| length.parse().ok())
        .is_some_and(|length: usize| body.len() >= length)
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let (head, body) = split(bytes)?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.get(..3)?.parse().ok()?;
    let chunked =
        header(head, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    let body = if chunked { unchunked(body) } else { body.to_vec() };
    Some(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
}

/// The chunks of a body put together, as far as they are whole (RFC 9112, section 7.1).
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).unwrap_or_default();
        let size = size.split(';').next().and_then(|size| usize::from_str_radix(size.trim(), 16).ok());
        let Some((size, rest)) = size.filter(|size| *size > 0).zip(body.get(end + 2..)) else { break };
        let Some(chunk) = rest.get(..size) else { break };
        whole.extend_from_slice(chunk);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_or_refused() {
        let url = |host: &str, port, path: &str| Url { host: host.into(), port, path: path.into() };
        assert_eq!(Url::parse("http://c1"), Some(url("c1", 80, "/")));
        assert_eq!(Url::parse("http://10.0.0.1:8080/a?b=c"), Some(url("10.0.0.1", 8080, "/a?b=c")));
        assert_eq!(Url::parse("http://[fd99::11]:81/"), Some(url("fd99::11", 81, "/")));
        for text in [
            "https://c1",
            "c1",
            "http://",
            "http://:80",
            "http://c1:0",
            "http://c1:x",
            "http://[x]/",
            "http://a b/",
        ] {
            assert_eq!(Url::parse(text), None, "{text}");
        }
    }

    #[test]
    fn answers_are_read_with_a_length_in_chunks_or_to_the_end() {
        let answer = |body: &str| Some(Answer { status: 200, body: body.into() });
        let length = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        assert!(is_whole(length) && !is_whole(&length[..length.len() - 1]));
        assert_eq!(parse(length), answer("hi"));
        let chunks =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3;x=y\r\n yo\r\n0\r\n\r\n";
        assert!(is_whole(chunks) && !is_whole(&chunks[..chunks.len() - 5]));
        assert_eq!(parse(chunks), answer("hi yo"));
        assert_eq!(parse(b"HTTP/1.0 200 OK\r\n\r\nall"), answer("all"));
        assert_eq!(parse(b"SSH-2.0-x\r\n\r\n"), None);
        assert_eq!(parse(b""), None);
    }
}
