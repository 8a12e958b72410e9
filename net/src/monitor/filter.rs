//! Socket filters in the kernel's classic BPF (Documentation/networking/filter.rst): which notifications are worth waking up
//! for. A notification is one message; the filter sees it from its netlink header on, and reads numbers as big-endian, where
//! netlink has the host's order.

use std::io;
use std::os::fd::AsFd;

use libc::{
    BPF_ABS, BPF_ADD, BPF_ALU, BPF_B, BPF_H, BPF_JA, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LEN,
    BPF_LSH, BPF_MISC, BPF_RET, BPF_TAX, BPF_W, BPF_X,
};
use netlink_packet_core::NLM_F_REPLACE;
use socket2::{SockFilter, SockRef};

use crate::route::MAIN_TABLE;

/// NUD_PERMANENT: entered for good.
pub const PERMANENT: u16 = libc::NUD_PERMANENT;
/// In one of these states is what was there for good when it goes: when it is deleted it fails (NUD_FAILED) first.
pub const GONE: u16 = libc::NUD_PERMANENT | libc::NUD_FAILED;

/// RTM_NEWNETCONF of linux/rtnetlink.h.
pub const NEW_CONF: u16 = 80;
/// NFT_MSG_NEWGEN of NFNL_SUBSYS_NFTABLES.
pub const NEW_GENERATION: u16 = 10 << 8 | 15;

/// The first attribute of a message of nftables is its table's name: these are bytes 4 to 7 of it.
const TABLE_NAME: u32 = 16 + 4 + 4 + 4;

/// Where in a message: nlmsg_type, nlmsg_flags, nlmsg_pid; rtm_table, rtm_protocol, rtm_type; ndm_family, ndm_state, ndm_flags.
const TYPE: u32 = 4;
const FLAGS: u32 = 6;
const PORT: u32 = 12;
const TABLE: u32 = 16 + 4;
const PROTOCOL: u32 = 16 + 5;
const KIND: u32 = 16 + 7;
const STATE: u32 = 16 + 8;
const NEIGH_FAMILY: u32 = 16;
const NEIGH_FLAGS: u32 = 16 + 10;

/// One instruction.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    code: u32,
    value: u32,
    /// Numbers of the instructions that follow, when it is so and when not.
    next: (usize, usize),
}

fn load16(at: u32) -> Step {
    Step { code: BPF_LD | BPF_H | BPF_ABS, value: at, next: (0, 0) }
}

fn load32(at: u32) -> Step {
    Step { code: BPF_LD | BPF_W | BPF_ABS, value: at, next: (0, 0) }
}

fn load8(at: u32) -> Step {
    Step { code: BPF_LD | BPF_B | BPF_ABS, value: at, next: (0, 0) }
}

fn is(value: u32, yes: usize, no: usize) -> Step {
    Step { code: BPF_JMP | BPF_JEQ | BPF_K, value, next: (yes, no) }
}

fn has(value: u32, yes: usize, no: usize) -> Step {
    Step { code: BPF_JMP | BPF_JSET | BPF_K, value, next: (yes, no) }
}

fn goto(next: usize) -> Step {
    Step { code: BPF_JMP | BPF_JA, value: 0, next: (next, next) }
}

fn ret(accept: bool) -> Step {
    Step { code: BPF_RET | BPF_K, value: if accept { u32::MAX } else { 0 }, next: (0, 0) }
}

/// A 16-bit number of a message as the filter reads it.
fn host(value: u16) -> u32 {
    value.to_be().into()
}

/// For rtnetlink: of routes, those of the main table that replace another or are of the protocol, and those of the host's own
/// addresses that go; of neighbours and forwarding entries those that are or may have been permanent, and of the others the
/// neighbours that a program changed (the kernel's own changes have no port) and the entries of a device's own database; all else.
pub fn routes(protocol: u8) -> [Step; 37] {
    const ACCEPT: usize = 16;
    const DROP: usize = 17;
    [
        load16(TYPE),
        is(host(libc::RTM_NEWROUTE), 5, 2),
        is(host(libc::RTM_DELROUTE), 18, 3),
        is(host(libc::RTM_DELNEIGH), 12, 4),
        is(host(libc::RTM_NEWNEIGH), 14, ACCEPT),
        // 5: a new route
        load16(FLAGS),
        has(host(NLM_F_REPLACE), 7, 8),
        goto(10),
        // 8: of the protocol
        load8(PROTOCOL),
        is(protocol.into(), 10, DROP),
        // 10: in the main table
        load8(TABLE),
        is(MAIN_TABLE, ACCEPT, DROP),
        // 12: a neighbour that is gone
        load16(STATE),
        has(host(GONE), ACCEPT, DROP),
        // 14: a neighbour
        load16(STATE),
        has(host(PERMANENT), ACCEPT, 27),
        ret(true),
        ret(false),
        // 18: a route that is gone
        load8(TABLE),
        is(libc::RT_TABLE_LOCAL.into(), 20, 22),
        load8(KIND),
        is(libc::RTN_LOCAL.into(), 25, 26),
        // 22: of the protocol in the main table
        is(MAIN_TABLE, 23, 26),
        load8(PROTOCOL),
        is(protocol.into(), 25, 26),
        ret(true),
        ret(false),
        // 27: a neighbour that is not permanent
        load32(PORT),
        is(0, 31, 29),
        // It fails before it is deleted, which is reported by itself.
        load16(STATE),
        has(host(libc::NUD_FAILED), 36, 35),
        load8(NEIGH_FAMILY),
        is(libc::AF_BRIDGE as u32, 33, 36),
        load8(NEIGH_FLAGS),
        has(libc::NTF_SELF.into(), 35, 36),
        ret(true),
        ret(false),
    ]
}

/// For nftables: all but the numbers of transactions, and transactions of a single element of a set, of which there are many on
/// a busy host, unless that is in the table `weft-overlay`. Of a datagram with several messages the filter sees the first.
pub fn tables() -> [Step; 16] {
    // NFT_MSG_* of NFNL_SUBSYS_NFTABLES.
    const NEW_ELEMENT: u16 = 10 << 8 | 12;
    const DEL_ELEMENT: u16 = 10 << 8 | 14;
    const ACCEPT: usize = 14;
    const DROP: usize = 15;
    // The two bytes of nlmsg_len that matter.
    let (high, low) = if cfg!(target_endian = "big") { (2, 3) } else { (1, 0) };
    let then = |code, value| Step { code, value, next: (0, 0) };
    [
        load16(TYPE),
        is(host(NEW_ELEMENT), 4, 2),
        is(host(DEL_ELEMENT), 4, 3),
        is(host(NEW_GENERATION), DROP, ACCEPT),
        // 4: elements
        load32(TABLE_NAME),
        is(u32::from_be_bytes(*b"-ove"), ACCEPT, 6),
        // 6: is the first message all that there is?
        load8(high),
        then(BPF_ALU | BPF_LSH | BPF_K, 8),
        then(BPF_MISC | BPF_TAX, 0),
        load8(low),
        then(BPF_ALU | BPF_ADD | BPF_X, 0),
        then(BPF_MISC | BPF_TAX, 0),
        then(BPF_LD | BPF_W | BPF_LEN, 0),
        Step { code: BPF_JMP | BPF_JEQ | BPF_X, value: 0, next: (DROP, ACCEPT) },
        ret(true),
        ret(false),
    ]
}

/// Sets a socket's filter.
pub fn attach(socket: &impl AsFd, steps: &[Step]) -> io::Result<()> {
    let assembled = steps.iter().enumerate().map(|(number, step)| {
        let distance = |to: usize| to.saturating_sub(number + 1) as u8;
        let Step { code, value, next: (yes, no) } = *step;
        match code & 0x07 {
            BPF_JMP if code & 0xf0 == BPF_JA => SockFilter::new(code as u16, 0, 0, distance(yes).into()),
            BPF_JMP => SockFilter::new(code as u16, distance(yes), distance(no), value),
            _ => SockFilter::new(code as u16, 0, 0, value),
        }
    });
    SockRef::from(socket).attach_filter(&assembled.collect::<Vec<_>>())
}
