//! Netlink messages of nf_tables as bytes: a writer of messages, of batches, and a reader.
//!
//! Written here instead of with `netlink-packet-netfilter`, because what this table is made of (nat, masq, fib, ct,
//! verdict maps, user data) would go through that crate's untyped escape hatches anyway, and because an attachment's
//! elements are put straight into the buffer that is sent. Layouts: `linux/netlink.h`, `linux/netfilter/nfnetlink.h`,
//! `linux/netfilter/nf_tables.h`; user data: libnftnl's `udata.h`.

use super::table::Table;
pub use crate::wire::{attributes, find as attribute};
use crate::wire::{nest, put, put_str};

/// The subsystem nf_tables in `nlmsg_type`'s upper byte (NFNL_SUBSYS_NFTABLES).
const SUBSYSTEM: u16 = 10 << 8;
/// NFNL_MSG_BATCH_BEGIN and NFNL_MSG_BATCH_END.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// NFNL_BATCH_GENID: the kernel refuses the batch (ERESTART) when its generation is another by now.
const BATCH_GENID: u16 = 1;
/// `nlmsghdr` and `nfgenmsg`.
pub const NLMSG_HEADER: usize = 16;
pub const HEADER: usize = NLMSG_HEADER + 4;

/// NFPROTO_INET and NFPROTO_BRIDGE: the families of Weft's tables.
pub const INET: u8 = 1;
pub const BRIDGE: u8 = 7;
/// NFPROTO_IPV4 and NFPROTO_IPV6: the families of iptables' tables and ip6tables'.
pub const IPV4: u8 = 2;
pub const IPV6: u8 = 10;

/// Flags of `nlmsghdr` (`linux/netlink.h`).
pub mod flag {
    pub const REQUEST: u16 = 0x1;
    pub const ACK: u16 = 0x4;
    pub const DUMP_INTR: u16 = 0x10;
    pub const EXCL: u16 = 0x200;
    pub const DUMP: u16 = 0x300;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;
}

/// Message types (enum nf_tables_msg_types).
pub mod msg {
    pub const NEWTABLE: u16 = 0;
    pub const GETTABLE: u16 = 1;
    pub const DELTABLE: u16 = 2;
    pub const NEWCHAIN: u16 = 3;
    pub const GETCHAIN: u16 = 4;
    pub const DELCHAIN: u16 = 5;
    pub const NEWRULE: u16 = 6;
    pub const GETRULE: u16 = 7;
    pub const DELRULE: u16 = 8;
    pub const NEWSET: u16 = 9;
    pub const GETSET: u16 = 10;
    pub const DELSET: u16 = 11;
    pub const NEWSETELEM: u16 = 12;
    pub const GETSETELEM: u16 = 13;
    pub const DELSETELEM: u16 = 14;
    pub const GETGEN: u16 = 16;
}

/// A buffer of netlink messages with nested attributes.
#[derive(Default, Clone)]
pub struct Writer {
    pub buf: Vec<u8>,
}

impl Writer {
    /// An attribute of bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        put(&mut self.buf, kind, value);
    }

    /// An attribute of 32 bits in network byte order, as all of nf_tables' numbers are.
    pub fn u32(&mut self, kind: u16, value: u32) {
        put(&mut self.buf, kind, &value.to_be_bytes());
    }

    /// A NUL-terminated string.
    pub fn str(&mut self, kind: u16, value: &str) {
        put_str(&mut self.buf, kind, value);
    }

    /// A nested attribute, filled by `fill`. The caller keeps it below 64 KiB.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        // The buffer is lent to a writer of its own for the time, so that what is nested is written in place.
        nest(&mut self.buf, kind, |out| {
            let mut inner = Writer { buf: std::mem::take(out) };
            fill(&mut inner);
            *out = inner.buf;
        });
    }

    /// One message about a table of this family (NFPROTO_…).
    pub fn message(&mut self, family: u8, kind: u16, flags: u16, seq: u32, fill: impl FnOnce(&mut Self)) {
        self.raw(SUBSYSTEM | kind, flags, seq, family, 0, fill);
    }

    fn raw(
        &mut self,
        kind: u16,
        flags: u16,
        seq: u32,
        family: u8,
        resource: u16,
        fill: impl FnOnce(&mut Self),
    ) {
        let at = self.buf.len();
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        self.buf.extend_from_slice(&seq.to_ne_bytes());
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&[family, 0]);
        self.buf.extend_from_slice(&resource.to_be_bytes());
        fill(self);
        let len = (self.buf.len() - at) as u32;
        self.buf[at..at + 4].copy_from_slice(&len.to_ne_bytes());
    }
}

/// A transaction on one of the tables: the kernel does all of its messages, or none.
pub struct Batch {
    table: Table,
    writer: Writer,
    /// The sequence number of the batch's begin; the messages count up from it.
    first: u32,
    /// What each message does to the table, for errors.
    what: Vec<&'static str>,
    /// Where the flags of the last message are: it is the one that asks for an acknowledgement.
    last: usize,
}

impl Batch {
    /// An empty batch; with a generation it fails with ERESTART when anything was changed since that one.
    pub fn new(table: Table, first: u32, generation: Option<u32>) -> Self {
        let mut writer = Writer::default();
        writer.raw(BATCH_BEGIN, 0, first, 0, SUBSYSTEM >> 8, |w| {
            if let Some(generation) = generation {
                w.u32(BATCH_GENID, generation);
            }
        });
        Batch { table, writer, first, what: Vec::new(), last: 0 }
    }

    /// The table that it is about.
    pub fn table(&self) -> Table {
        self.table
    }

    /// Adds a message; `what` says for an error what it does, and the table's name follows.
    /// What is filled in follows the table's name.
    pub fn push(&mut self, what: &'static str, kind: u16, flags: u16, fill: impl FnOnce(&mut Writer)) {
        let table = self.table;
        self.push_to((table.family(), table.name()), what, kind, flags, fill);
    }

    /// As [`Batch::push`], with the family and the name of another program's table.
    pub fn push_to(
        &mut self,
        (family, table): (u8, &str),
        what: &'static str,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Writer),
    ) {
        self.last = self.writer.buf.len();
        let seq = self.next_seq();
        self.what.push(what);
        self.writer.message(family, kind, flags, seq, |w| {
            w.str(1, table);
            fill(w);
        });
    }

    fn next_seq(&self) -> u32 {
        self.first.wrapping_add(1 + self.what.len() as u32)
    }

    /// How many messages lie between begin and end.
    pub fn len(&self) -> usize {
        self.what.len()
    }

    /// The bytes to send and the sequence number whose acknowledgement ends the answers.
    pub fn finish(mut self) -> Sealed {
        let seq = self.next_seq();
        if let Some(flags) = self.writer.buf.get_mut(self.last + 6..self.last + 8) {
            let asked = u16::from_ne_bytes([flags[0], flags[1]]) | flag::ACK;
            flags.copy_from_slice(&asked.to_ne_bytes());
        }
        self.writer.raw(BATCH_END, 0, seq, 0, SUBSYSTEM >> 8, |_| {});
        Sealed {
            table: self.table,
            buf: self.writer.buf,
            first: self.first,
            last: seq.wrapping_sub(1),
            what: self.what,
        }
    }
}

/// A batch that is ready to be sent.
pub struct Sealed {
    pub table: Table,
    pub buf: Vec<u8>,
    pub first: u32,
    pub last: u32,
    what: Vec<&'static str>,
}

impl Sealed {
    /// What the message with this sequence number does.
    pub fn what(&self, seq: u32) -> String {
        let index = seq.wrapping_sub(self.first.wrapping_add(1)) as usize;
        format!("{} {}", self.what.get(index).copied().unwrap_or("change"), self.table)
    }
}

/// A number in network byte order.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// A string, up to its NUL.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A comment in user data: one TLV, its length with the NUL, which libnftables wants at most 128. Its type is 0, but a
/// set's 7 (libnftnl's udata.h).
pub fn user_comment(kind: u8, comment: &str) -> Vec<u8> {
    let mut user = vec![kind, (comment.len() + 1) as u8];
    user.extend_from_slice(comment.as_bytes());
    user.push(0);
    user
}

/// The comment of that type in user data.
pub fn comment_of(kind: u8, mut user: &[u8]) -> Option<String> {
    while let [found, len, rest @ ..] = user {
        let (value, next) = rest.split_at((*len as usize).min(rest.len()));
        if *found == kind {
            return Some(text(value));
        }
        user = next;
    }
    None
}

/// One received message.
pub struct Message<'a> {
    /// `nlmsg_type`
    pub kind: u16,
    pub flags: u16,
    pub seq: u32,
    /// What follows `nlmsghdr`.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The family (NFPROTO_…) in `nfgenmsg`.
    pub fn family(&self) -> u8 {
        self.body.first().copied().unwrap_or_default()
    }

    /// The attributes behind `nfgenmsg`.
    pub fn attrs(&self) -> &'a [u8] {
        self.body.get(HEADER - NLMSG_HEADER..).unwrap_or_default()
    }

    /// The errno (positive; 0 for an acknowledgement) of an NLMSG_ERROR or a NLMSG_DONE.
    pub fn errno(&self) -> i32 {
        self.body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes).wrapping_neg()
    }
}

/// Iterates over the messages of one datagram.
pub fn messages(mut buf: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let head: &[u8; NLMSG_HEADER] = buf.get(..NLMSG_HEADER)?.try_into().ok()?;
        let len = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let body = buf.get(NLMSG_HEADER..len)?;
        buf = buf.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([head[4], head[5]]),
            flags: u16::from_ne_bytes([head[6], head[7]]),
            seq: u32::from_ne_bytes([head[8], head[9], head[10], head[11]]),
            body,
        })
    })
}
