//! One exchange of HTTP/1.1 over a Unix socket: as much of it as the agent's answers need (RFC 9112: a status line, fields,
//! a body with a length or up to the end of the connection).

use super::{ClientError, Result};
use crate::wire::{DEADLINE, monotonic};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How many bytes an answer may have. A network with 100,000 containers has about 15 MB.
const MAX_ANSWER: usize = 64 << 20;
/// How many bytes its head may have, and how many fields.
const MAX_HEAD: usize = 16 << 10;
const MAX_FIELDS: usize = 32;

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

pub(super) fn garbled(socket: &Path, why: impl Into<String>) -> ClientError {
    ClientError::Garbled { socket: socket.to_owned(), why: why.into() }
}

/// Percent-encodes a segment of a path or a value of a query (RFC 3986 section 2).
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte));
            }
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

/// Sends a request and reads the answer, all of it within `time`, which the agent is told.
pub(super) fn exchange(
    path: &Path,
    method: &str,
    target: &str,
    body: &[u8],
    time: Duration,
) -> Result<Answer> {
    let until = monotonic() + time;
    let call = Call { path, method, target, time, deadline: Instant::now() + time };
    let mut stream = call.connect()?;
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: ovl-agent\r\nConnection: close\r\n{DEADLINE}: {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        until.as_millis(),
        body.len()
    );
    call.write(&mut stream, &[head.as_bytes(), body].concat())?;
    call.read(&mut stream)
}

struct Call<'a> {
    path: &'a Path,
    method: &'a str,
    target: &'a str,
    time: Duration,
    deadline: Instant,
}

impl Call<'_> {
    /// What is left of the time; never zero, which would mean forever.
    fn left(&self) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.timed_out()) } else { Ok(left) }
    }

    fn timed_out(&self) -> ClientError {
        let request = format!("{} {}", self.method, self.target);
        ClientError::TimedOut { socket: self.path.to_owned(), request, after: self.time }
    }

    fn failed(&self, error: &std::io::Error) -> ClientError {
        let (socket, why) = (self.path.to_owned(), error.to_string());
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => self.timed_out(),
            ErrorKind::PermissionDenied => ClientError::Denied { socket, why },
            _ => ClientError::NoAgent { socket, why },
        }
    }

    /// The send timeout also bounds a connect to an agent that hangs with a full backlog (socket(7), SO_SNDTIMEO).
    fn connect(&self) -> Result<Socket> {
        let connect = || -> std::io::Result<Socket> {
            let stream = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            stream.set_write_timeout(Some(self.time.max(Duration::from_millis(1))))?;
            stream.connect(&SockAddr::unix(self.path)?)?;
            Ok(stream)
        };
        connect().map_err(|error| self.failed(&error))
    }

    fn write(&self, stream: &mut Socket, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            stream.set_write_timeout(Some(self.left()?)).map_err(|error| self.failed(&error))?;
            match stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The agent may have answered (too large a body) and closed without reading to the end.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Ok(())
    }

    /// Reads until the answer is whole: by its length, or, when it has none, to the end of the connection.
    fn read(&self, stream: &mut Socket) -> Result<Answer> {
        let mut bytes = Vec::with_capacity(4096);
        let mut head: Option<Head> = None;
        let mut chunk = [0; 16 << 10];
        loop {
            if head.is_none() {
                head = parse_head(&bytes).map_err(|why| garbled(self.path, why))?;
            }
            if let Some(head) = &head
                && let Some(length) = head.length
                && bytes.len() - head.end >= length
            {
                bytes.truncate(head.end + length);
                break;
            }
            stream.set_read_timeout(Some(self.left()?)).map_err(|error| self.failed(&error))?;
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => bytes.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(&error)),
            }
            if bytes.len() > MAX_ANSWER {
                return Err(garbled(self.path, format!("it has more than {MAX_ANSWER} bytes")));
            }
        }
        let Some(head) = head else { return Err(self.cut_short(bytes.len())) };
        if head.length.is_some_and(|length| bytes.len() - head.end < length) {
            return Err(self.cut_short(bytes.len()));
        }
        Ok(Answer { status: head.status, body: bytes.split_off(head.end) })
    }

    /// The connection ended in the middle of the answer: the agent went away.
    fn cut_short(&self, after: usize) -> ClientError {
        let why = format!("the connection was closed after {after} bytes of an answer");
        ClientError::NoAgent { socket: self.path.to_owned(), why }
    }
}

/// The head of an answer.
struct Head {
    status: u16,
    /// Where the body begins.
    end: usize,
    /// The body's length, if it is told.
    length: Option<usize>,
}

/// The head, when all of it is there.
fn parse_head(bytes: &[u8]) -> std::result::Result<Option<Head>, String> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let end = match response.parse(bytes) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) if bytes.len() > MAX_HEAD => {
            return Err(format!("its head has more than {MAX_HEAD} bytes"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("it is not HTTP ({error})")),
    };
    let field = |name: &str| response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
    if field("transfer-encoding").is_some() {
        return Err("its body is chunked".to_owned());
    }
    let length = match field("content-length").map(|field| String::from_utf8_lossy(field.value)) {
        None => None,
        Some(text) => match text.parse::<usize>() {
            Ok(length) if length <= MAX_ANSWER => Some(length),
            Ok(length) => return Err(format!("it has {length} bytes, more than {MAX_ANSWER}")),
            Err(_) => return Err(format!("its Content-Length {text:?} is not a number")),
        },
    };
    let status = response.code.unwrap_or_default();
    // 204 has no body, whatever it says.
    let length = if status == 204 { Some(0) } else { length };
    Ok(Some(Head { status, end, length }))
}
