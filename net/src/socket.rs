//! One netlink socket, and the two ways to use it: an *exchange*, many messages in one sendmsg with all their answers, and
//! a *dump*. It serves rtnetlink and netfilter alike.
//!
//! The kernel works through an exchange before sendmsg returns, every message in order, also after one has failed, and
//! says nothing about a success unless asked. So only the last message asks for an acknowledgement: when all goes well an
//! attachment costs one send and one receive, however many messages it has. Refusals come unasked, with the kernel's text
//! (NETLINK_EXT_ACK), and are told apart by sequence number.

use std::io;
use std::os::fd::AsFd;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR,
};
use netlink_sys::Socket;
use nix::sys::socket::{setsockopt, sockopt};

use crate::error::{Error, Refusal, Result};
use crate::wire;

/// Length of a netlink message's header (struct nlmsghdr).
const HEADER: usize = 16;
/// What one receive takes: the kernel fills up to 32 KiB per datagram of a dump when the reader offers as much.
const RECEIVE: usize = 32 * 1024;
/// A dump that the kernel flags as interrupted is taken again, this often.
const DUMP_TRIES: usize = 50;
/// NLMSGERR_ATTR_MSG of linux/netlink.h.
const ERROR_TEXT: u16 = 1;

/// What is expected of the kernel for one message of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// Nothing but a refusal: a change.
    Change,
    /// One message in reply: a lookup.
    Reply,
    /// Nothing (NFNL_MSG_BATCH_BEGIN and _END).
    Nothing,
}

/// Netlink messages for one exchange, back to back as they are sent.
#[derive(Debug, Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
    starts: Vec<(usize, Expect)>,
}

impl Outgoing {
    /// No message yet.
    pub fn new() -> Outgoing {
        Outgoing::default()
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Adds a change: `kind` is the message type, `flags` NLM_F_* beside REQUEST and ACK, `body` appends what follows the
    /// netlink header. Returns the message's number in this exchange, by which a [`Refusal`] is told.
    pub fn change(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Vec<u8>)) -> usize {
        self.add(kind, flags, Expect::Change, body)
    }

    /// Adds a lookup, which the kernel answers with one message (or refuses).
    pub fn lookup(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Vec<u8>)) -> usize {
        self.add(kind, flags, Expect::Reply, body)
    }

    /// Adds a message that the kernel never answers unless it refuses the whole: the begin and the end of an nftables batch.
    pub fn control(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Vec<u8>)) -> usize {
        self.add(kind, flags, Expect::Nothing, body)
    }

    fn add(&mut self, kind: u16, flags: u16, expect: Expect, body: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.bytes.len();
        self.bytes.resize(start + HEADER, 0);
        body(&mut self.bytes);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 4..start + 6].copy_from_slice(&kind.to_ne_bytes());
        self.bytes[start + 6..start + 8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.resize(start + (length as usize).next_multiple_of(4), 0);
        self.starts.push((start, expect));
        self.starts.len() - 1
    }

    /// Numbers the messages from `first` on, makes the last change ask for an acknowledgement, and says which message it
    /// is whose answer ends the exchange.
    fn seal(&mut self, first: u32) -> usize {
        for (number, (start, _)) in self.starts.iter().enumerate() {
            let sequence = first.wrapping_add(number as u32);
            self.bytes[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
        }
        let last = self.starts.iter().rposition(|(_, expect)| *expect != Expect::Nothing).unwrap_or(0);
        let (start, expect) = self.starts[last];
        if expect == Expect::Change {
            let at = start + 6;
            let flags = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]) | NLM_F_ACK;
            self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
        last
    }
}

/// Appends what a packet type emits: `out.change(kind, flags, |b| emit(b, &message))`.
pub fn emit(out: &mut Vec<u8>, packet: &impl Emitable) {
    let start = out.len();
    out.resize(start + packet.buffer_len(), 0);
    packet.emit(&mut out[start..]);
}

/// The kernel's answers to one exchange.
#[derive(Debug, Default)]
pub struct Answers {
    /// Messages in reply: (number in the exchange, message type, body).
    pub replies: Vec<(usize, u16, Vec<u8>)>,
    /// The messages that were refused, in order: (number in the exchange, why). The others took effect, unless it was an
    /// nftables batch, which is all or nothing.
    pub refusals: Vec<(usize, Refusal)>,
}

impl Answers {
    /// The reply to message `number`.
    pub fn reply(&self, number: usize) -> Option<&[u8]> {
        self.replies.iter().find(|(found, ..)| *found == number).map(|(_, _, body)| &body[..])
    }

    /// Why message `number` was refused.
    pub fn refusal(&self, number: usize) -> Option<&Refusal> {
        self.refusals.iter().find(|(found, _)| *found == number).map(|(_, refusal)| refusal)
    }
}

/// One netlink socket, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    /// Opens a socket of `protocol` (`libc::NETLINK_ROUTE`, `libc::NETLINK_NETFILTER`) in this thread's namespace.
    /// It is not bound: the kernel does that at the first send, and so saves a call.
    pub fn open(protocol: i32) -> Result<Channel> {
        let open = || {
            let socket = Socket::new(protocol as isize)?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|error: io::Error| Error::io("open a netlink socket", error))?;
        Ok(Channel { socket, sequence: 1, buffer: Vec::with_capacity(RECEIVE) })
    }

    /// See [`crate::ns::cookie`].
    pub fn cookie(&self) -> Option<u64> {
        crate::ns::cookie_of(&self.socket)
    }

    /// Has the kernel check and honour the filters of dump requests (NETLINK_GET_STRICT_CHK, Linux 4.20; older kernels
    /// ignore the filter, so the reader of a dump filters as well).
    pub fn strict(&self) {
        // A kernel without it dumps more than asked, nothing else.
        let _ = self.socket.set_netlink_get_strict_chk(true);
    }

    /// Sends all messages in one sendmsg and collects their answers. An error is returned when the exchange as such
    /// failed; refusals of single messages are in the answers.
    pub fn exchange(&mut self, mut out: Outgoing) -> Result<Answers> {
        let mut answers = Answers::default();
        if out.is_empty() {
            return Ok(answers);
        }
        let first = self.sequence;
        self.sequence = first.wrapping_add(out.len() as u32);
        let last = out.seal(first);
        self.make_room(&out);
        self.send(&out.bytes)?;
        loop {
            // The answers are in the queue when sendmsg returns: an empty queue is no reason to wait.
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !answers.refusals.is_empty() => {
                    break;
                }
                // More refusals than the socket holds: the kernel dropped the later ones, and says so once.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => continue,
                Err(error) => return Err(Error::io("read the kernel's answer", error)),
            }
            let mut done = false;
            for message in messages(&self.buffer) {
                let number = message.sequence.wrapping_sub(first) as usize;
                if number >= out.len() {
                    continue; // of an earlier exchange
                }
                if message.kind != NLMSG_ERROR {
                    answers.replies.push((number, message.kind, message.body.to_vec()));
                } else if let Some(refusal) = refusal(&message) {
                    answers.refusals.push((number, refusal));
                }
                done |= number == last;
            }
            if done {
                break;
            }
        }
        Ok(answers)
    }

    /// Asks for all objects of a kind: `kind` is the message type of the request, `body` what follows its header. `take`
    /// gets the type and body of every message and keeps what it wants. When the kernel says that the objects changed in
    /// mid-dump (NLM_F_DUMP_INTR) everything is thrown away and asked for again. `what` is for the error's text.
    pub fn dump<T>(
        &mut self,
        what: &str,
        kind: u16,
        body: &[u8],
        mut take: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            let mut found = Vec::new();
            if self.dump_once(what, kind, body, &mut |kind, body| found.extend(take(kind, body)))? {
                return Ok(found);
            }
        }
        Err(changing(what))
    }

    /// Tells whether an object of a kind is as asked for: a [`Channel::dump`] that ends with the first such object.
    pub fn any(
        mut self,
        what: &str,
        kind: u16,
        body: &[u8],
        mut is_asked_for: impl FnMut(u16, &[u8]) -> bool,
    ) -> Result<bool> {
        for _ in 0..DUMP_TRIES {
            let mut found = false;
            let take = &mut |kind, body: &[u8]| {
                found |= is_asked_for(kind, body);
                !found
            };
            let is_whole = self.dump_while(what, kind, body, take)?;
            if found || is_whole {
                return Ok(found);
            }
        }
        Err(changing(what))
    }

    /// One dump; false when it was interrupted.
    fn dump_once(
        &mut self,
        what: &str,
        kind: u16,
        body: &[u8],
        take: &mut dyn FnMut(u16, &[u8]),
    ) -> Result<bool> {
        self.dump_while(what, kind, body, &mut |kind, body| {
            take(kind, body);
            true
        })
    }

    /// As [`Channel::dump_once`], until `take` returns false, after which the channel must not be used any more.
    fn dump_while(
        &mut self,
        what: &str,
        kind: u16,
        body: &[u8],
        take: &mut dyn FnMut(u16, &[u8]) -> bool,
    ) -> Result<bool> {
        let mut out = Outgoing::new();
        out.control(kind, NLM_F_DUMP, |bytes| bytes.extend_from_slice(body));
        let first = self.sequence;
        self.sequence = first.wrapping_add(1);
        out.seal(first);
        self.send(&out.bytes)?;
        let mut whole = true;
        loop {
            self.receive(0).map_err(|error| Error::io(format!("{what}: read the kernel's answer"), error))?;
            for message in messages(&self.buffer).filter(|message| message.sequence == first) {
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match refusal(&message) {
                            // The kernel's own word for the same thing, from netfilter.
                            Some(Refusal { errno: libc::EINTR, .. }) => Ok(false),
                            Some(refusal) => Err(Error::Kernel { what: what.to_owned(), refusal }),
                            None => Ok(whole),
                        };
                    }
                    kind if take(kind, message.body) => {}
                    _ => return Ok(whole),
                }
            }
        }
    }

    /// Makes the socket's buffers large enough for an exchange beyond the ordinary.
    fn make_room(&self, out: &Outgoing) {
        let fd = self.socket.as_fd();
        // The kernel's default is 212,992 bytes. Where the FORCE options are not allowed the send fails, and says so.
        if out.bytes.len() > 100_000 {
            let _ = setsockopt(&fd, sockopt::SndBufForce, &(out.bytes.len() * 2));
        }
        let replies = out.starts.iter().filter(|(_, expect)| *expect == Expect::Reply).count();
        if replies > 32 {
            let _ = setsockopt(&fd, sockopt::RcvBufForce, &(replies * 8192));
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("send to the kernel by netlink", error)),
            }
        }
    }

    /// Fills the buffer with the next datagram of the kernel.
    fn receive(&mut self, flags: i32) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, flags) {
                // Other processes may send to this socket as well; the kernel is port 0.
                Ok((_, from)) if from.port_number() != 0 => {}
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The error for a dump of which each try was interrupted.
fn changing(what: &str) -> Error {
    let refusal =
        Refusal { errno: libc::EAGAIN, text: Some("they change faster than they can be read".into()) };
    Error::Kernel { what: what.to_owned(), refusal }
}

/// One received message.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    sequence: u32,
    /// nlmsg_pid: of a notification, the port of the socket that made the change.
    pub(crate) port: u32,
    pub(crate) body: &'a [u8],
}

/// The messages of one datagram.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = wire::u32_of(bytes)? as usize;
        let body = bytes.get(HEADER..length)?;
        let message = Message {
            kind: wire::u16_of(&bytes[4..])?,
            flags: wire::u16_of(&bytes[6..])?,
            sequence: wire::u32_of(&bytes[8..])?,
            port: wire::u32_of(&bytes[12..])?,
            body,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The refusal in an NLMSG_ERROR or NLMSG_DONE; None when it is an acknowledgement.
fn refusal(message: &Message<'_>) -> Option<Refusal> {
    let code = wire::u32_of(message.body).map_or(0, |code| code as i32);
    if code == 0 {
        return None;
    }
    let mut attributes = 4;
    if message.kind == NLMSG_ERROR {
        // The refused message's header follows, and its body too where the kernel did not cap it.
        let capped = message.flags & NLM_F_CAPPED != 0;
        let length = message.body.get(4..).and_then(wire::u32_of).unwrap_or(0) as usize;
        attributes += if capped { HEADER } else { length.next_multiple_of(4) };
    }
    let text = (message.flags & NLM_F_ACK_TLVS != 0)
        .then(|| wire::find(message.body.get(attributes..)?, ERROR_TEXT))
        .flatten()
        .map(wire::str_of)
        .filter(|text| !text.is_empty());
    Some(Refusal { errno: code.saturating_neg(), text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_change_alone_asks_for_an_acknowledgement() {
        let mut out = Outgoing::new();
        out.control(16, 0, |_| ());
        out.change(1, 0, |bytes| bytes.extend_from_slice(b"abcde"));
        out.change(2, NLM_F_DUMP, |_| ());
        out.control(17, 0, |_| ());
        assert_eq!(out.seal(7), 2);
        let sent: Vec<_> =
            messages(&out.bytes).map(|m| (m.kind, m.flags, m.sequence, m.body.len())).collect();
        let request = NLM_F_REQUEST;
        assert_eq!(
            sent,
            [
                (16, request, 7, 0),
                (1, request, 8, 5),
                (2, request | NLM_F_ACK | NLM_F_DUMP, 9, 0),
                (17, request, 10, 0)
            ]
        );
    }

    proptest! {
        #[test]
        fn any_answer_is_read_to_an_end(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 2u16..4, flags in any::<u16>()
        ) {
            prop_assert!(messages(&bytes).count() <= 200);
            let _ = refusal(&Message { kind, flags, sequence: 0, port: 0, body: &bytes });
        }
    }
}
