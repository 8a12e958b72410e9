//! A batch: several changes to links, addresses, routes and neighbours of one namespace, sent to the kernel in one
//! system call. The kernel applies them in order, and goes on after one that it refuses; [`Netlink::run`] then reports the
//! first, by its description. What to undo is for the caller to know.

use crate::error::{Error, Refusal, Result};
use crate::link::{self, Link};
use crate::netlink::Netlink;
use crate::route::Family;
use crate::socket::{Answers, Outgoing, emit};
use crate::wire;

/// Changes to be sent together.
#[derive(Debug, Default)]
pub struct Batch {
    out: Outgoing,
    ops: Vec<Op>,
    /// What errors call the links that are told by index.
    names: Vec<(u32, String)>,
}

#[derive(Debug)]
struct Op {
    /// What it does, for the error: "add address 10.1.0.5/16 to eth0".
    what: String,
    /// A kernel feature that EOPNOTSUPP means is missing.
    needs: Option<&'static str>,
    /// The kind of link that it creates.
    creates: Option<String>,
    /// Error numbers that are as good as success.
    passes: &'static [i32],
}

/// A lookup in a batch, to be redeemed at its [`Outcome`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(usize);

/// What the lookups of a batch found.
#[derive(Debug)]
pub struct Outcome {
    answers: Answers,
}

impl Outcome {
    /// The link that [`Batch::lookup`] asked for; None when there is none.
    pub fn link(&self, ticket: Ticket) -> Option<Link> {
        self.answers.reply(ticket.0).and_then(Link::parse)
    }

    /// Whether packets of the family are forwarded, as [`Batch::forwarding`] asked; `None` when the kernel did not say.
    pub fn forwarding(&self, ticket: Ticket) -> Option<bool> {
        let attributes = self.answers.reply(ticket.0)?.get(netconf::HEADER..)?;
        wire::find(attributes, netconf::FORWARDING).and_then(wire::u32_of).map(|value| value != 0)
    }

    /// The number of the error with which something was refused.
    pub(crate) fn errno(&self, ticket: Ticket) -> Option<i32> {
        self.answers.refusal(ticket.0).map(|refusal| refusal.errno)
    }

    /// Whether the kernel said that it does not have what was asked for.
    pub fn is_unknown(&self, ticket: Ticket) -> bool {
        self.errno(ticket) == Some(libc::ENOENT)
    }
}

/// What a deletion may find: the object gone.
const GONE: &[i32] = &[libc::ENOENT, libc::ENODEV, libc::ESRCH, libc::EADDRNOTAVAIL];

/// What a lookup may find: nothing; or that the kernel cannot look for one such thing, as for neighbours before Linux 5.0.
const LOOKED_FOR: &[i32] =
    &[libc::ENOENT, libc::ENODEV, libc::ESRCH, libc::EADDRNOTAVAIL, libc::EOPNOTSUPP, libc::EINVAL];

/// RTM_GETNETCONF and its answer (linux/rtnetlink.h, linux/netconf.h).
mod netconf {
    pub const GET: u16 = 82;
    /// struct netconfmsg, padded.
    pub const HEADER: usize = 4;
    pub const IFINDEX: u16 = 1;
    pub const FORWARDING: u16 = 2;
    /// NETCONFA_IFINDEX_ALL
    pub const ALL: u32 = u32::MAX;
}

impl Batch {
    /// No change yet.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Has errors of later changes call the link with that index by its name.
    pub fn call(&mut self, index: u32, name: &str) -> &mut Batch {
        self.names.push((index, name.to_owned()));
        self
    }

    /// What errors call the link with that index.
    pub(crate) fn name_of(&self, index: u32) -> String {
        match self.names.iter().rev().find(|(known, _)| *known == index) {
            Some((_, name)) => name.clone(),
            None => format!("interface number {index}"),
        }
    }

    /// Adds a change.
    pub(crate) fn push(
        &mut self,
        what: String,
        kind: u16,
        flags: u16,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> &mut Batch {
        self.out.change(kind, flags, body);
        self.ops.push(Op { what, needs: None, creates: None, passes: &[] });
        self
    }

    /// Has the last change succeed when the object exists already.
    pub fn or_existing(&mut self) -> &mut Batch {
        self.passing(&[libc::EEXIST])
    }

    /// Has the last change succeed when the object does not exist.
    pub fn or_missing(&mut self) -> &mut Batch {
        self.passing(GONE)
    }

    fn passing(&mut self, passes: &'static [i32]) -> &mut Batch {
        if let Some(op) = self.ops.last_mut() {
            op.passes = passes;
        }
        self
    }

    /// Says what the kernel lacks when it does not support the last change.
    pub(crate) fn needing(&mut self, feature: &'static str) -> &mut Batch {
        if let Some(op) = self.ops.last_mut() {
            op.needs = Some(feature);
        }
        self
    }

    /// Says which kind of link the last change creates.
    pub(crate) fn of_kind(&mut self, kind: &str) -> &mut Batch {
        if let Some(op) = self.ops.last_mut() {
            op.creates = Some(kind.to_owned());
        }
        self
    }

    /// Looks a link up, after the changes before it: the index and MAC of a link that the batch creates come back in the
    /// same exchange.
    pub fn lookup(&mut self, name: &str) -> Ticket {
        let message = link::request(0, Some(name));
        let what = format!("look up interface {name}");
        self.push_lookup(what, libc::RTM_GETLINK, |bytes| emit(bytes, &message))
    }

    /// Asks whether the namespace forwards packets of a family (net.ipv4.ip_forward, net.ipv6.conf.all.forwarding).
    pub fn forwarding(&mut self, family: Family) -> Ticket {
        let family = if family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
        self.push_lookup("look up what is forwarded".into(), netconf::GET, |bytes| {
            bytes.extend([family as u8, 0, 0, 0]);
            wire::put_u32(bytes, netconf::IFINDEX, netconf::ALL);
        })
    }

    /// Has the last change succeed whatever becomes of it, and returns where the outcome has it.
    pub(crate) fn probing(&mut self) -> Ticket {
        self.passing(&[libc::EINVAL, libc::EPERM, libc::ENODEV, libc::EOPNOTSUPP]);
        Ticket(self.ops.len().saturating_sub(1))
    }

    /// Adds a lookup; that there is no such thing is no error.
    pub(crate) fn push_lookup(&mut self, what: String, kind: u16, body: impl FnOnce(&mut Vec<u8>)) -> Ticket {
        let number = self.out.lookup(kind, 0, body);
        self.ops.push(Op { what, needs: None, creates: None, passes: LOOKED_FOR });
        Ticket(number)
    }
}

impl Op {
    fn error(self, refusal: Refusal) -> Error {
        if refusal.errno == libc::EOPNOTSUPP {
            // rtnl_newlink() of net/core/rtnetlink.c, which tells an unknown kind from one that refuses a setting.
            let unknown = refusal.text.as_deref() == Some("Unknown device type");
            match (self.creates, self.needs) {
                (Some(kind), _) if unknown => return Error::Unsupported(format!("{kind} devices")),
                (_, Some(feature)) => return Error::Unsupported(feature.to_owned()),
                _ => {}
            }
        }
        Error::Kernel { what: self.what, refusal }
    }
}

impl Netlink {
    /// Sends the batch in one system call. All its changes are tried; an error is the first that was refused.
    pub fn run(&mut self, batch: Batch) -> Result<Outcome> {
        let mut answers = self.channel.exchange(batch.out)?;
        let mut ops: Vec<Option<Op>> = batch.ops.into_iter().map(Some).collect();
        answers.refusals.sort_by_key(|(number, _)| *number);
        for (number, refusal) in &answers.refusals {
            let op = ops.get_mut(*number).and_then(Option::take);
            if let Some(op) = op.filter(|op| !op.passes.contains(&refusal.errno)) {
                return Err(op.error(refusal.clone()));
            }
        }
        Ok(Outcome { answers })
    }

    /// Sends the batch in one system call, and tells every refusal, with the number of the change in the batch (from 0): for
    /// changes that do not need each other. An error is returned when the batch as such could not be sent.
    pub fn run_each(&mut self, batch: Batch) -> Result<(Outcome, Vec<(usize, Error)>)> {
        let mut answers = self.channel.exchange(batch.out)?;
        answers.refusals.sort_by_key(|(number, _)| *number);
        let mut ops: Vec<Option<Op>> = batch.ops.into_iter().map(Some).collect();
        let refused = answers.refusals.iter().filter_map(|(number, refusal)| {
            let op = ops.get_mut(*number).and_then(Option::take);
            let op = op.filter(|op| !op.passes.contains(&refusal.errno))?;
            Some((*number, op.error(refusal.clone())))
        });
        let refused = refused.collect();
        Ok((Outcome { answers }, refused))
    }

    /// Runs a batch of what `fill` puts into it.
    pub fn run_one(&mut self, fill: impl FnOnce(&mut Batch) -> &mut Batch) -> Result<Outcome> {
        let mut batch = Batch::new();
        fill(&mut batch);
        self.run(batch)
    }
}
