//! Socket filters in the kernel's classic BPF (Documentation/networking/filter.rst): which notifications are worth waking up
//! for. A notification is one message; the filter sees it from its netlink header on, and reads numbers as big-endian, where
//! netlink has the host's order.

use std::io;
use std::os::fd::AsFd;

use libc::{BPF_ABS, BPF_B, BPF_H, BPF_JA, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET};
use netlink_packet_core::NLM_F_REPLACE;
use socket2::{SockFilter, SockRef};

use crate::route::MAIN_TABLE;

/// NUD_PERMANENT: entered for good.
pub const PERMANENT: u16 = libc::NUD_PERMANENT;
/// In one of these states is what was there for good when it goes: when it is deleted it fails (NUD_FAILED) first.
pub const GONE: u16 = libc::NUD_PERMANENT | libc::NUD_FAILED;

/// Where in a message: nlmsg_type, nlmsg_flags; rtm_table, rtm_protocol; ndm_state.
const TYPE: u32 = 4;
const FLAGS: u32 = 6;
const TABLE: u32 = 16 + 4;
const PROTOCOL: u32 = 16 + 5;
const STATE: u32 = 16 + 8;

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

/// For rtnetlink: of routes, those of the main table that replace another or are of the protocol; of neighbours and forwarding
/// entries those that are or may have been permanent; all else.
pub fn routes(protocol: u8) -> [Step; 18] {
    const ACCEPT: usize = 16;
    const DROP: usize = 17;
    [
        load16(TYPE),
        is(host(libc::RTM_NEWROUTE), 5, 2),
        is(host(libc::RTM_DELROUTE), 8, 3),
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
        has(host(PERMANENT), ACCEPT, DROP),
        ret(true),
        ret(false),
    ]
}

/// For nftables: all but the elements of sets, of which every attachment of a container changes some, and the numbers of
/// transactions. A transaction is told in one piece, of which the filter sees the beginning.
pub fn tables() -> [Step; 6] {
    // NFT_MSG_* of NFNL_SUBSYS_NFTABLES.
    const NEW_ELEMENT: u16 = 10 << 8 | 12;
    const DEL_ELEMENT: u16 = 10 << 8 | 14;
    const NEW_GENERATION: u16 = 10 << 8 | 15;
    [
        load16(TYPE),
        is(host(NEW_ELEMENT), 5, 2),
        is(host(DEL_ELEMENT), 5, 3),
        is(host(NEW_GENERATION), 5, 4),
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
