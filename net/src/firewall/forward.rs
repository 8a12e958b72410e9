//! Accepting Weft's traffic where another program's forward chain has the policy drop (Docker, ufw, hardened images).
//!
//! Rules are appended to each base chain of nftables' forward hook whose policy is drop, iptables' among them, so that what
//! the host drops by a rule stays dropped and only the policy no longer applies. They have nothing but what iptables-nft
//! can read back (in the legacy variant's chain they are put by its program), and a comment `weft: forward NAME …`, by which
//! they are found again. Everything from a link is accepted, and to it answers and what was translated (published ports).
//! Everything from and to an overlay network's subnet is: the table `weft-overlay` comes first and has dropped the rest.

use super::forward_legacy;
use super::nft::expr::{Ct, Rule, Side, Verdict, Way};
use super::nft::socket::{Question, Socket, refused};
use super::nft::table::Table;
use super::nft::wire::{
    Batch, INET, IPV4, IPV6, attribute, comment_of, flag, msg, number, text, user_comment,
};
use crate::{Error, Result, names};
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// NF_INET_FORWARD
const FORWARD: u32 = 2;
/// NF_DROP, as a chain's policy.
const DROP: u32 = 0;
/// How often a change is tried when other programs change the ruleset at the same time.
const TRIES: usize = 20;

/// What is forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Traffic {
    /// All that comes in by the link of this name, and answers and translated packets that go out by it.
    Link(String),
    /// All from and to addresses of this subnet, of which a table of Weft's has already dropped what is not allowed.
    Subnet(IpNetwork),
}

/// What [`declare`] does with rules that are not declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undeclared {
    /// They stay, as what is declared may be out of date.
    Stay,
    /// They are removed.
    Go,
}

/// A base chain of another program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    family: u8,
    table: String,
    name: String,
}

impl Chain {
    /// Is it one that iptables-nft made, and reads?
    fn is_of_iptables(&self) -> bool {
        matches!(self.family, IPV4 | IPV6) && self.table == "filter" && self.name == "FORWARD"
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            IPV4 => "ip",
            IPV6 => "ip6",
            _ => "inet",
        };
        write!(f, "{family} {} {}", self.table, self.name)
    }
}

/// Returns the forward chains of this network namespace whose policy is drop, as `ip filter FORWARD`. A kernel without
/// nftables has none.
///
/// # Errors
/// The kernel's refusal.
pub fn dropping() -> Result<Vec<Chain>> {
    with_socket(dropping_chains)
}

/// Returns the forward chains whose policy is drop, iptables' legacy ones among them, and in which no rule of Weft's accepts
/// packets to this address, or from one of these: as `ip filter FORWARD`.
///
/// # Errors
/// The kernel's refusal; iptables' failure.
pub fn refusing(from: &[IpAddr], to: IpAddr) -> Result<Vec<String>> {
    let mut names = with_socket(|socket| {
        let mut names = Vec::new();
        for chain in dropping_chains(socket)? {
            let is_of_family = chain.family == INET || chain.family == if to.is_ipv6() { IPV6 } else { IPV4 };
            if is_of_family && !rules(socket, &chain)?.iter().any(|(rule, _)| accepts(rule, from, to)) {
                names.push(chain.to_string());
            }
        }
        Ok(names)
    })?;
    names.extend(forward_legacy::refusing(from, to)?);
    Ok(names)
}

/// Whether the rule with this comment is for such packets. Which link they come by is not asked.
pub(super) fn accepts(comment: &str, from: &[IpAddr], to: IpAddr) -> bool {
    let mut words = comment.rsplit(' ');
    let (end, way) = (words.next().unwrap_or_default(), words.next());
    match (end.parse::<IpNetwork>(), way) {
        (Ok(net), Some("to")) => net.contains(to),
        (Ok(net), Some("from")) => from.iter().any(|ip| net.contains(*ip)),
        (Ok(_), _) => false,
        (Err(_), _) => true,
    }
}

/// As [`crate::firewall::nft::Nftables::iptables_drops`].
pub(super) fn iptables_drops(socket: &mut Socket) -> Result<bool> {
    let chain = |family| Question::Foreign { family, table: "filter", chain: "FORWARD" };
    let mut drops = false;
    socket.ask(&[chain(IPV4), chain(IPV6)], |_, answer| {
        let policy = answer.ok().and_then(|m| attribute(m.attrs(), 5)).and_then(number);
        drops |= policy == Some(DROP);
    })?;
    Ok(drops)
}

/// Appends the rules that accept this traffic to each forward chain whose policy is drop; those that are there stay as they
/// are. Returns whether there is such a chain. `name` (a network or a bridge) is what [`withdraw`] finds the rules by.
///
/// # Errors
/// The kernel's refusal.
pub fn accept(name: &str, traffic: &[Traffic]) -> Result<bool> {
    let legacy = forward_legacy::accept(name, traffic)?;
    let accepted = with_socket(|socket| {
        for _ in 0..TRIES {
            let generation = socket.generation()?;
            let chains = dropping_chains(socket)?;
            let mut batch = socket.batch(Table::Inet, Some(generation));
            for chain in &chains {
                let there = rules(socket, chain)?;
                for (comment, rule) in rules_for(chain, name, traffic) {
                    if !there.iter().any(|(found, _)| *found == comment) {
                        push_rule(&mut batch, chain, &comment, &rule);
                    }
                }
            }
            match socket.commit(batch)? {
                Ok(()) => return Ok(!chains.is_empty()),
                Err(errors) => retry(errors, "add rules to a forward chain whose policy is drop")?,
            }
        }
        Err(refused("add rules to a forward chain, which others change all the time", libc::EBUSY))
    })?;
    Ok(accepted || legacy)
}

/// Makes the rules of all names that begin with `prefix` those of `declared`: missing ones are appended where the policy is
/// drop, and others are removed from every chain. Returns how many rules were added or removed.
///
/// # Errors
/// The kernel's refusal; iptables' failure.
pub fn declare(prefix: &str, declared: &[(String, Vec<Traffic>)], undeclared: Undeclared) -> Result<usize> {
    let legacy = forward_legacy::declare(prefix, declared, undeclared)?;
    let changed = with_socket(|socket| {
        for _ in 0..TRIES {
            let generation = socket.generation()?;
            let mut batch = socket.batch(Table::Inet, Some(generation));
            for (chain, drops) in chains(socket)? {
                let there = rules(socket, &chain)?;
                let declared = declared.iter().flat_map(|(name, traffic)| rules_for(&chain, name, traffic));
                let mut declared: BTreeMap<String, Rule> = declared.collect();
                for (comment, handle) in &there {
                    let is_declared = declared.remove(comment).is_some();
                    let is_ours = name_in(comment).is_some_and(|name| name.starts_with(prefix));
                    if is_ours && !is_declared && undeclared == Undeclared::Go {
                        push_removal(&mut batch, &chain, handle);
                    }
                }
                if drops {
                    declared.iter().for_each(|(comment, rule)| push_rule(&mut batch, &chain, comment, rule));
                }
            }
            let count = batch.len();
            match socket.commit(batch)? {
                Ok(()) => return Ok(count),
                Err(errors) => retry(errors, "change rules in a forward chain whose policy is drop")?,
            }
        }
        Err(refused("change rules in a forward chain, which others change all the time", libc::EBUSY))
    })?;
    Ok(changed + legacy)
}

/// Returns whether a notification of nftables is about a base chain of another program in the forward hook, which is new or
/// has another policy, or about a rule of [`accept`] or [`declare`] that is gone.
pub(crate) fn is_concerned(kind: u16, table: &str, attrs: &[u8]) -> bool {
    match kind & 0xff {
        msg::NEWCHAIN if !is_own(table) => hook(attrs) == Some(FORWARD),
        msg::DELRULE => {
            let comment = attribute(attrs, 7).and_then(|user| comment_of(0, user));
            comment.is_some_and(|comment| name_in(&comment).is_some())
        }
        _ => false,
    }
}

/// Removes the rules that [`accept`] made under this name, whatever the chains' policy is by now. Returns how many.
///
/// # Errors
/// The kernel's refusal.
pub fn withdraw(name: &str) -> Result<usize> {
    let name = clip(name);
    withdraw_where(&|found| found == name)
}

/// Removes the rules of each name (long ones clipped as [`names::clip_network`] does) for which `stale` is true. Returns
/// how many.
///
/// # Errors
/// The kernel's refusal.
pub fn withdraw_where(stale: &dyn Fn(&str) -> bool) -> Result<usize> {
    let legacy = forward_legacy::withdraw_where(stale)?;
    let withdrawn = with_socket(|socket| {
        for _ in 0..TRIES {
            let generation = socket.generation()?;
            let mut batch = socket.batch(Table::Inet, Some(generation));
            for (chain, _) in chains(socket)? {
                for (comment, handle) in rules(socket, &chain)? {
                    if name_in(&comment).is_some_and(stale) {
                        push_removal(&mut batch, &chain, &handle);
                    }
                }
            }
            let count = batch.len();
            match socket.commit(batch)? {
                Ok(()) => return Ok(count),
                Err(errors) => retry(errors, "delete rules from a forward chain")?,
            }
        }
        Err(refused("delete rules from a forward chain, which others change all the time", libc::EBUSY))
    })?;
    Ok(withdrawn + legacy)
}

/// Works on a socket whose closing is left to the reaper, as it may wait for the kernel.
fn with_socket<T: Default>(work: impl FnOnce(&mut Socket) -> Result<T>) -> Result<T> {
    let done = Socket::open().and_then(|mut socket| {
        let done = work(&mut socket);
        crate::dead::close_by_reaper(&socket.handle().into_iter().collect::<Vec<_>>());
        done
    });
    match done {
        Err(Error::Unsupported(_)) => Ok(T::default()),
        done => done,
    }
}

fn retry(errors: Vec<(i32, String)>, what: &str) -> Result<()> {
    let transient = |errno: i32| matches!(errno, libc::ENOENT | libc::ERESTART | libc::EBUSY);
    match errors.into_iter().find(|(errno, _)| !transient(*errno)) {
        Some((errno, _)) => Err(refused(what, errno)),
        None => Ok(()),
    }
}

fn push_rule(batch: &mut Batch, chain: &Chain, comment: &str, rule: &Rule) {
    let flags = flag::CREATE | flag::APPEND;
    batch.push_to((chain.family, &chain.table), "", msg::NEWRULE, flags, |w| {
        w.str(2, &chain.name);
        w.bytes(4 | 0x8000, rule.bytes());
        w.bytes(7, &user_comment(0, comment));
    });
}

fn push_removal(batch: &mut Batch, chain: &Chain, handle: &[u8]) {
    batch.push_to((chain.family, &chain.table), "", msg::DELRULE, 0, |w| {
        w.str(2, &chain.name);
        w.bytes(3, handle);
    });
}

fn dropping_chains(socket: &mut Socket) -> Result<Vec<Chain>> {
    let chains = chains(socket)?.into_iter().filter(|(_, drops)| *drops);
    Ok(chains.map(|(chain, _)| chain).collect())
}

/// The base chains of others in the forward hook, of all families, and whether their policy is drop.
fn chains(socket: &mut Socket) -> Result<Vec<(Chain, bool)>> {
    let mut found = Vec::new();
    socket.dump_family(
        0,
        msg::GETCHAIN,
        |_| {},
        |m| {
            let attrs = m.attrs();
            let drops = attribute(attrs, 5).and_then(number) == Some(DROP);
            let of = |kind| attribute(attrs, kind).map(text).unwrap_or_default();
            let chain = Chain { family: m.family(), table: of(1), name: of(3) };
            let is_ip = matches!(chain.family, INET | IPV4 | IPV6);
            if hook(attrs) == Some(FORWARD) && is_ip && !is_own(&chain.table) {
                found.push((chain, drops));
            }
            true
        },
    )?;
    Ok(found)
}

fn is_own(table: &str) -> bool {
    [Table::Inet, Table::Overlay].iter().any(|own| own.name() == table)
}

/// The hook (NF_INET_…) that a base chain is in.
fn hook(attrs: &[u8]) -> Option<u32> {
    attribute(attrs, 4).and_then(|hook| attribute(hook, 1)).and_then(number)
}

/// The rules of Weft in a chain: comment and handle.
fn rules(socket: &mut Socket, chain: &Chain) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    socket.dump_family(
        chain.family,
        msg::GETRULE,
        |w| {
            w.str(1, &chain.table);
            w.str(2, &chain.name);
        },
        |m| {
            let is = |kind, name: &str| attribute(m.attrs(), kind).map(text).as_deref() == Some(name);
            if is(1, &chain.table) && is(2, &chain.name) {
                let comment = attribute(m.attrs(), 7).and_then(|user| comment_of(0, user));
                let comment = comment.filter(|comment| name_in(comment).is_some());
                found.extend(comment.zip(attribute(m.attrs(), 3).map(<[u8]>::to_vec)));
            }
            true
        },
    )?;
    Ok(found)
}

pub(super) fn clip(name: &str) -> String {
    names::clip_network(name).to_string()
}

/// The name in a rule's comment, when it is one of Weft's.
pub(super) fn name_in(comment: &str) -> Option<&str> {
    comment.strip_prefix("weft: forward ")?.split(' ').next()
}

/// The rules for a chain, with their comments.
fn rules_for(chain: &Chain, name: &str, traffic: &[Traffic]) -> Vec<(String, Rule)> {
    let name = clip(name);
    let start = || match chain.family {
        IPV4 => Rule::of_family(false),
        IPV6 => Rule::of_family(true),
        _ => Rule::new(),
    };
    let mut rules = Vec::new();
    let mut push = |what: String, rule: Rule| {
        let rule = rule.counter().then(Verdict::Accept);
        rules.push((format!("weft: forward {name} {what}"), rule));
    };
    for each in traffic {
        match each {
            Traffic::Link(link) => {
                let matching = |way| start().by_name(way, link);
                push(format!("from {link}"), matching(Way::In));
                if chain.is_of_iptables() {
                    push(format!("answers to {link}"), matching(Way::Out).iptables_known_or_dnat());
                } else {
                    push(format!("answers to {link}"), matching(Way::Out).ct(Ct::Known));
                    push(format!("translated to {link}"), matching(Way::Out).translated_by_us());
                }
            }
            Traffic::Subnet(net) if chain.family == if net.is_ipv4() { IPV6 } else { IPV4 } => {}
            Traffic::Subnet(net) => {
                push(format!("from {net}"), start().address(Side::Source, *net));
                push(format!("to {net}"), start().address(Side::Destination, *net));
            }
        }
    }
    rules
}
