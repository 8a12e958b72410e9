//! The NETLINK_NETFILTER socket: batches, questions and dumps.

use super::base::chain_of;
use super::element::{Element, Key, Map, Scope, head, list_of_key};
use super::table::Table;
use super::wire::{Batch, INET, Message, Sealed, Writer, attribute, flag, messages, msg, number, text};
use crate::{Error, Refusal, Result};
use netlink_sys::{Socket as Raw, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Netlink's own message types.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Attributes of chains (enum nft_chain_attributes).
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
/// Attributes of rules (enum nft_rule_attributes).
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
/// The kernel fills a dump's datagram up to the size of the buffer that is waiting, 32 KiB at most.
const BUFFER: usize = 32 * 1024;
/// A socket takes messages up to about its send buffer (net.core.wmem_default, 208 KiB); above this it is enlarged.
const SMALL: usize = 128 * 1024;
/// A dump that was disturbed by a change is asked for again, this often; then what was seen is taken.
const DUMPS: usize = 16;
/// So many more datagrams of a dump are read when no more is wanted of it (of a short one, its end); then its socket is put
/// aside, as the kernel starts from the front again for each.
const REST: usize = 1;
/// Questions in one sendmsg; the receive buffer (net.core.rmem_default, 208 KiB) holds the answers of so many for certain.
pub const QUESTIONS: usize = 16;

/// How a batch ended: `Err` has the errno of each refused message and what that was to do.
pub type Verdict = std::result::Result<(), Vec<(i32, String)>>;

/// A socket of the network namespace in which it was opened.
pub struct Socket {
    raw: Raw,
    seq: u32,
    buf: Vec<u8>,
    /// Sockets with dumps that were not read to their end. They stay open: it is closing that may wait.
    left: Vec<Raw>,
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

/// A question to the kernel about one thing.
pub enum Question<'a> {
    /// The generation of the namespace's rules.
    Generation,
    /// Is this table there?
    Table(Table),
    /// Is the chain of this scope there?
    Scope(Scope),
    /// The element of this key.
    Element(&'a Key),
    /// Is this chain of another's table there?
    Foreign { family: u8, table: &'a str, chain: &'a str },
}

impl Question<'_> {
    fn kind(&self) -> u16 {
        match self {
            Question::Generation => msg::GETGEN,
            Question::Table(_) => msg::GETTABLE,
            Question::Scope(_) | Question::Foreign { .. } => msg::GETCHAIN,
            Question::Element(_) => msg::GETSETELEM,
        }
    }

    fn family(&self) -> u8 {
        match self {
            Question::Foreign { family, .. } => *family,
            Question::Table(table) => table.family(),
            Question::Element(key) => key.map.table().family(),
            Question::Generation | Question::Scope(_) => INET,
        }
    }

    fn write(&self, w: &mut Writer) {
        match self {
            Question::Foreign { table, chain, .. } => {
                w.str(NFTA_CHAIN_TABLE, table);
                w.str(NFTA_CHAIN_NAME, chain);
            }
            Question::Generation => {}
            Question::Table(table) => w.str(1, table.name()),
            Question::Scope(scope) => {
                w.str(NFTA_CHAIN_TABLE, Table::Inet.name());
                w.str(NFTA_CHAIN_NAME, &chain_of(*scope));
            }
            Question::Element(key) => {
                w.str(1, key.map.table().name());
                list_of_key(w, key);
            }
        }
    }
}

/// How the kernel's lack of nf_tables is reported.
fn none() -> Error {
    Error::Unsupported("nftables (CONFIG_NF_TABLES)".into())
}

/// The kernel's refusal of an operation.
pub fn refused(what: &str, errno: i32) -> Error {
    Error::Kernel { what: what.into(), refusal: Refusal { errno, text: None } }
}

fn open() -> Result<Raw> {
    let open = || {
        let mut raw = Raw::new(NETLINK_NETFILTER)?;
        raw.bind_auto()?;
        // Errors without a copy of the message they are about, which may have 60 KiB.
        raw.set_cap_ack(true)?;
        Ok(raw)
    };
    open().map_err(|e: io::Error| match e.raw_os_error() {
        Some(libc::EPROTONOSUPPORT) => none(),
        _ => Error::io("open a netlink socket for nftables", e),
    })
}

impl Socket {
    /// Opens it in the thread's current network namespace.
    pub fn open() -> Result<Self> {
        let buf = Vec::with_capacity(BUFFER);
        Ok(Socket { raw: open()?, seq: 1, buf, left: Vec::new(), sent: Sent::default() })
    }

    /// The port by which notifications name this socket; 0 when it is not known.
    pub fn port(&self) -> u32 {
        let mut address = SocketAddr::new(0, 0);
        self.raw.get_address(&mut address).map_or(0, |()| address.port_number())
    }

    /// Starts a batch (see [`Batch::new`]).
    pub fn batch(&mut self, table: Table, generation: Option<u32>) -> Batch {
        Batch::new(table, self.seq, generation)
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
        let (mut errors, mut acknowledged) = (Vec::new(), false);
        // Only the last message is acknowledged; a refused batch as a whole answers with the begin's number alone.
        'answers: while self.receive()? {
            for m in messages(&self.buf) {
                if m.kind != NLMSG_ERROR || m.seq.wrapping_sub(sealed.first) > count as u32 {
                    continue;
                }
                match m.errno() {
                    0 if m.seq == sealed.last => {
                        acknowledged = true;
                        break 'answers;
                    }
                    0 => {}
                    errno => errors.push((errno, m.seq)),
                }
            }
        }
        match errors.first() {
            None if acknowledged => Ok(Ok(())),
            None => Err(Error::Decode {
                what: format!("change {}", sealed.table),
                why: "the transaction was not acknowledged".into(),
            }),
            Some((libc::EPERM, seq)) => Err(refused(&sealed.what(*seq), libc::EPERM)),
            Some((libc::EOPNOTSUPP, seq)) if *seq == sealed.first => Err(none()),
            Some(_) => Ok(Err(errors.into_iter().map(|(errno, seq)| (errno, sealed.what(seq))).collect())),
        }
    }

    /// Asks questions, 16 in a sendmsg; `answer` gets the index of the question and its answer, an Err being the errno.
    pub fn ask(
        &mut self,
        questions: &[Question<'_>],
        mut answer: impl FnMut(usize, std::result::Result<&Message<'_>, i32>),
    ) -> Result<()> {
        for (part, questions) in questions.chunks(QUESTIONS).enumerate() {
            let first = self.seq;
            let mut writer = Writer::default();
            for (index, question) in questions.iter().enumerate() {
                let seq = first.wrapping_add(index as u32);
                writer.message(question.family(), question.kind(), 0, seq, |w| question.write(w));
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
                        NLMSG_ERROR => answer(part * QUESTIONS + index, Err(m.errno())),
                        _ => answer(part * QUESTIONS + index, Ok(&m)),
                    }
                }
            }
        }
        Ok(())
    }

    /// Dumps what a table has of a kind; `each` gets every message and says whether it wants more.
    /// A thing that does not exist (ENOENT) is an empty dump.
    pub fn dump(
        &mut self,
        table: Table,
        kind: u16,
        fill: impl Fn(&mut Writer),
        each: impl FnMut(&Message<'_>) -> bool,
    ) -> Result<()> {
        let fill = |w: &mut Writer| {
            w.str(1, table.name());
            fill(w);
        };
        self.dump_family(table.family(), kind, fill, each)
    }

    /// As [`Socket::dump`], of any table of a family (0: of all families); `fill` writes the table's name, if it is to be one.
    pub fn dump_family(
        &mut self,
        family: u8,
        kind: u16,
        fill: impl Fn(&mut Writer),
        mut each: impl FnMut(&Message<'_>) -> bool,
    ) -> Result<()> {
        for _ in 0..DUMPS {
            let seq = self.seq;
            self.seq = seq.wrapping_add(1);
            let mut writer = Writer::default();
            writer.message(family, kind, flag::DUMP, seq, &fill);
            self.send(&writer.buf, 1)?;
            let (mut disturbed, mut enough, mut rest) = (false, false, REST);
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
                        _ => enough = enough || !each(&m),
                    }
                }
                if enough && rest == 0 {
                    // A dump under way cannot be called off, but left behind with its socket.
                    self.left.push(std::mem::replace(&mut self.raw, open()?));
                    break;
                }
                rest -= usize::from(enough);
            }
            if enough || !disturbed {
                break;
            }
        }
        Ok(())
    }

    /// The elements of these keys, where they exist, in the keys' order.
    pub fn find(&mut self, keys: &[&Key]) -> Result<Vec<Option<Element>>> {
        let mut found = vec![None; keys.len()];
        let questions: Vec<_> = keys.iter().map(|key| Question::Element(key)).collect();
        self.ask(&questions, |index, answer| {
            if let Ok(m) = answer {
                found[index] = Element::parse_all(keys[index].map, m.attrs()).pop();
            }
        })?;
        Ok(found)
    }

    /// Goes through a set or map. One that has just grown or shrunk much, which the kernel rearranges in the background, may
    /// show some elements twice and others not at all (nft_rhash_walk of net/netfilter/nft_set_hash.c).
    pub fn elements(&mut self, map: Map, mut each: impl FnMut(Element)) -> Result<()> {
        self.dump(
            map.table(),
            msg::GETSETELEM,
            |w| head(w, map),
            |m| {
                Element::parse_all(map, m.attrs()).into_iter().for_each(&mut each);
                true
            },
        )
    }

    /// The sets and maps that a table has and we know.
    pub fn maps(&mut self, table: Table) -> Result<Vec<Map>> {
        let mut maps = Vec::new();
        self.dump(
            table,
            msg::GETSET,
            |_| {},
            |m| {
                let ours = attribute(m.attrs(), 1).map(text).as_deref() == Some(table.name());
                let name = attribute(m.attrs(), 2).map(text).filter(|_| ours);
                maps.extend(name.and_then(|name| Map::named(table, &name)));
                true
            },
        )?;
        Ok(maps)
    }

    /// Returns how many rules each chain of the table has; chains without one are left out.
    pub fn rule_counts(&mut self, table: Table) -> Result<BTreeMap<String, usize>> {
        let mut counts = BTreeMap::new();
        self.dump(
            table,
            msg::GETRULE,
            |_| {},
            |m| {
                // Kernels before 4.16 do not look at the table here and dump those of all.
                if attribute(m.attrs(), NFTA_RULE_TABLE).map(text).as_deref() == Some(table.name())
                    && let Some(chain) = attribute(m.attrs(), NFTA_RULE_CHAIN)
                {
                    *counts.entry(text(chain)).or_default() += 1;
                }
                true
            },
        )?;
        Ok(counts)
    }

    /// The generation of the namespace's rules: it counts every change.
    pub fn generation(&mut self) -> Result<u32> {
        let mut generation = 0;
        self.ask(&[Question::Generation], |_, m| generation = generation_of(m))?;
        Ok(generation)
    }

    /// See [`crate::ns::cookie`].
    pub fn cookie(&self) -> Option<u64> {
        crate::ns::cookie_of(&self.raw)
    }

    /// See [`crate::firewall::Firewall::handle`].
    pub fn handle(&self) -> Option<OwnedFd> {
        self.raw.as_fd().try_clone_to_owned().ok()
    }
}

/// The generation in the answer to a GETGEN.
pub fn generation_of(answer: std::result::Result<&Message<'_>, i32>) -> u32 {
    answer.ok().and_then(|m| attribute(m.attrs(), 1)).and_then(number).unwrap_or(0)
}
