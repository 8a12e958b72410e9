//! The NETLINK_NETFILTER socket: batches, questions and dumps.

use super::wire::{Batch, Message, Sealed, Writer, flag, messages, msg};
use crate::{Error, Refusal, Result};
use netlink_sys::{Socket as Raw, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use std::io;

/// Netlink's own message types.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The kernel fills a dump's datagram up to the size of the buffer that is waiting, 32 KiB at most.
const BUFFER: usize = 32 * 1024;
/// A socket takes messages up to about its send buffer (net.core.wmem_default, 208 KiB); above this it is enlarged.
const SMALL: usize = 128 * 1024;
/// A dump that was disturbed by a change is asked for again, this often; then what was seen is taken.
const DUMPS: usize = 16;

/// How a batch ended: `Err` has the errno of each refused message and what that was to do.
pub type Verdict = std::result::Result<(), Vec<(i32, &'static str)>>;

/// A question to the kernel: the message's type, and what fills it.
pub type Question<'a> = (u16, &'a dyn Fn(&mut Writer));

/// A socket of the network namespace in which it was opened.
pub struct Socket {
    raw: Raw,
    seq: u32,
    buf: Vec<u8>,
    /// Messages and bytes sent so far (asserted on by tests: the cost of an attachment).
    pub sent: Sent,
}

/// What was sent on a socket.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// sendmsg calls
    pub calls: usize,
    /// netlink messages, without batch begin and end
    pub messages: usize,
    /// bytes
    pub bytes: usize,
}

/// How the kernel's lack of nf_tables is reported.
fn none() -> Error {
    Error::Unsupported("nftables (CONFIG_NF_TABLES)".into())
}

/// The kernel's refusal of an operation.
pub fn refused(what: &str, errno: i32) -> Error {
    Error::Kernel { what: what.into(), refusal: Refusal { errno, text: None } }
}

impl Socket {
    /// Opens it in the thread's current network namespace.
    pub fn open() -> Result<Self> {
        let open = || -> io::Result<Raw> {
            let mut raw = Raw::new(NETLINK_NETFILTER)?;
            raw.bind_auto()?;
            // Errors without a copy of the message they are about, which may have 60 KiB.
            raw.set_cap_ack(true)?;
            Ok(raw)
        };
        let raw = open().map_err(|e| match e.raw_os_error() {
            Some(libc::EPROTONOSUPPORT) => none(),
            _ => Error::io("open a netlink socket for nftables", e),
        })?;
        Ok(Socket { raw, seq: 1, buf: Vec::with_capacity(BUFFER), sent: Sent::default() })
    }

    /// Starts a batch (see [`Batch::new`]).
    pub fn batch(&mut self, generation: Option<u32>) -> Batch {
        Batch::new(self.seq, generation)
    }

    fn send(&mut self, bytes: &[u8], messages: usize) -> Result<()> {
        if bytes.len() > SMALL && setsockopt(&self.raw, sockopt::SndBufForce, &bytes.len()).is_err() {
            setsockopt(&self.raw, sockopt::SndBuf, &bytes.len())
                .map_err(|e| Error::io("enlarge the netlink socket's buffer", e))?;
        }
        let kernel = netlink_sys::SocketAddr::new(0, 0);
        self.raw.send_to(bytes, &kernel, 0).map_err(|e| Error::io("send to nftables", e))?;
        self.sent.calls += 1;
        self.sent.messages += messages;
        self.sent.bytes += bytes.len();
        Ok(())
    }

    /// One datagram into the buffer. The kernel answers before sendmsg returns, so nothing is ever waited for.
    fn receive(&mut self) -> Result<bool> {
        loop {
            self.buf.clear();
            match self.raw.recv(&mut self.buf, libc::MSG_DONTWAIT) {
                Ok(_) => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(Error::io("read the answer of nftables", e)),
            }
        }
    }

    /// Sends a batch and collects its answers. A batch of nothing is not sent.
    pub fn commit(&mut self, batch: Batch) -> Result<Verdict> {
        let count = batch.len();
        if count == 0 {
            return Ok(Ok(()));
        }
        let sealed: Sealed = batch.finish();
        self.seq = sealed.last.wrapping_add(2);
        self.send(&sealed.buf, count)?;
        let mut errors = Vec::new();
        // Only the last message is acknowledged; a refused batch as a whole answers with the begin's number alone.
        'answers: while self.receive()? {
            for m in messages(&self.buf) {
                if m.kind != NLMSG_ERROR || m.seq.wrapping_sub(sealed.first) > count as u32 {
                    continue;
                }
                match m.errno() {
                    0 if m.seq == sealed.last => break 'answers,
                    0 => {}
                    errno => errors.push((errno, sealed.what(m.seq))),
                }
            }
        }
        match errors.iter().find(|(errno, _)| matches!(*errno, libc::EPERM | libc::EOPNOTSUPP)) {
            Some((libc::EPERM, what)) => Err(refused(what, libc::EPERM)),
            Some((_, what)) if *what == "change nftables" => Err(none()),
            _ if errors.is_empty() => Ok(Ok(())),
            _ => Ok(Err(errors)),
        }
    }

    /// Asks several questions in one sendmsg; `answer` gets the index of the question and its answer, an Err being the
    /// errno. At most 16 questions: the receive buffer holds no more answers for certain.
    pub fn ask(
        &mut self,
        questions: &[Question<'_>],
        mut answer: impl FnMut(usize, std::result::Result<&Message<'_>, i32>),
    ) -> Result<()> {
        let first = self.seq;
        let mut writer = Writer::default();
        for (index, (kind, fill)) in questions.iter().enumerate() {
            writer.message(*kind, 0, first.wrapping_add(index as u32), |w| fill(w));
        }
        self.seq = first.wrapping_add(questions.len() as u32);
        self.send(&writer.buf, questions.len())?;
        let mut open = questions.len();
        while open > 0 && self.receive()? {
            for m in messages(&self.buf) {
                let index = m.seq.wrapping_sub(first) as usize;
                if index >= questions.len() {
                    continue;
                }
                open -= 1;
                match m.kind {
                    NLMSG_ERROR => answer(index, Err(m.errno())),
                    _ => answer(index, Ok(&m)),
                }
            }
        }
        Ok(())
    }

    /// Dumps; `each` gets every message and says whether to go on. False means: enough, the rest is not read.
    /// A thing that does not exist (ENOENT) is an empty dump.
    pub fn dump(
        &mut self,
        kind: u16,
        fill: impl Fn(&mut Writer),
        mut each: impl FnMut(&Message<'_>) -> bool,
    ) -> Result<()> {
        for _ in 0..DUMPS {
            let seq = self.seq;
            self.seq = seq.wrapping_add(1);
            let mut writer = Writer::default();
            writer.message(kind, flag::DUMP, seq, &fill);
            self.send(&writer.buf, 1)?;
            let (mut disturbed, mut enough) = (false, false);
            'dump: while self.receive()? {
                for m in messages(&self.buf) {
                    if m.seq != seq {
                        continue;
                    }
                    disturbed |= m.flags & flag::DUMP_INTR != 0;
                    match m.kind {
                        NLMSG_DONE | NLMSG_ERROR => match m.errno() {
                            0 | libc::ENOENT => break 'dump,
                            errno => return Err(refused("list what nftables has", errno)),
                        },
                        _ if each(&m) => {}
                        _ => {
                            enough = true;
                            break 'dump;
                        }
                    }
                }
            }
            if enough {
                // A dump under way cannot be called off, but left behind with its socket.
                let sent = self.sent;
                *self = Socket::open()?;
                self.sent = sent;
            }
            if enough || !disturbed {
                break;
            }
        }
        Ok(())
    }

    /// The generation of the namespace's rules: it counts every change.
    pub fn generation(&mut self) -> Result<u32> {
        let mut generation = 0;
        self.ask(&[(msg::GETGEN, &|_: &mut Writer| {})], |_, m| generation = generation_of(m))?;
        Ok(generation)
    }
}

/// The generation in the answer to a GETGEN.
pub fn generation_of(answer: std::result::Result<&Message<'_>, i32>) -> u32 {
    answer.ok().and_then(|m| super::wire::attribute(m.attrs(), 1)).and_then(super::wire::number).unwrap_or(0)
}
