//! Accepting Weft's traffic where another program's forward chain has the policy drop (Docker, ufw, hardened images).
//!
//! Rules are appended to each base chain of nftables' forward hook whose policy is drop, iptables' among them, so that what
//! the host drops by a rule stays dropped and only the policy no longer applies. They have nothing but what iptables-nft
//! can read back (in the legacy variant's chain they are put by its program), and a comment `weft: forward NAME …`, by which they are found again. Everything from a link or a subnet is
//! accepted, and to it answers and what was translated (published ports, Services).

use super::forward_legacy;
use super::nft::expr::{Ct, Rule, Side, Verdict, Way};
use super::nft::socket::{Question, Socket, refused};
use super::nft::table::Table;
use super::nft::wire::{INET, IPV4, IPV6, attribute, comment_of, flag, msg, number, text, user_comment};
use crate::{Error, Result, names};
use ipnetwork::IpNetwork;
use std::fmt;

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
    /// All from addresses of this subnet, and answers and translated packets to them.
    Subnet(IpNetwork),
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
    with_socket(|socket| chains(socket, true))
}

/// Returns the names of the chains of [`dropping`], and of those of iptables' legacy variant.
///
/// # Errors
/// The kernel's refusal; iptables' failure.
pub fn dropping_names() -> Result<Vec<String>> {
    let mut names: Vec<String> = dropping()?.iter().map(ToString::to_string).collect();
    names.extend(forward_legacy::dropping_names()?);
    Ok(names)
}

/// Returns whether iptables' own forward chain (of its nftables variant) has the policy drop: one question, however many chains
/// there are.
///
/// # Errors
/// The kernel's refusal.
pub fn iptables_drops() -> Result<bool> {
    with_socket(|socket| {
        let chain = |family| Question::Foreign { family, table: "filter", chain: "FORWARD" };
        let mut drops = false;
        socket.ask(&[chain(IPV4), chain(IPV6)], |_, answer| {
            let policy = answer.ok().and_then(|m| attribute(m.attrs(), 5)).and_then(number);
            drops |= policy == Some(DROP);
        })?;
        Ok(drops)
    })
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
            let chains = chains(socket, true)?;
            let mut batch = socket.batch(Table::Inet, Some(generation));
            for chain in &chains {
                let there = rules(socket, chain)?;
                for (comment, rule) in rules_for(chain, name, traffic) {
                    if there.iter().any(|(found, _)| *found == comment) {
                        continue;
                    }
                    let flags = flag::CREATE | flag::APPEND;
                    batch.push_to((chain.family, &chain.table), "", msg::NEWRULE, flags, |w| {
                        w.str(2, &chain.name);
                        w.bytes(4 | 0x8000, rule.bytes());
                        w.bytes(7, &user_comment(0, &comment));
                    });
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
            for chain in chains(socket, false)? {
                for (comment, handle) in rules(socket, &chain)? {
                    if !name_in(&comment).is_some_and(stale) {
                        continue;
                    }
                    batch.push_to((chain.family, &chain.table), "", msg::DELRULE, 0, |w| {
                        w.str(2, &chain.name);
                        w.bytes(3, &handle);
                    });
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

/// The base chains of others in the forward hook, of all families; only those whose policy is drop, if so asked.
fn chains(socket: &mut Socket, only_dropping: bool) -> Result<Vec<Chain>> {
    let mut found = Vec::new();
    socket.dump_family(
        0,
        msg::GETCHAIN,
        |_| {},
        |m| {
            let attrs = m.attrs();
            let hook = attribute(attrs, 4).and_then(|hook| attribute(hook, 1)).and_then(number);
            let drops = attribute(attrs, 5).and_then(number) == Some(DROP);
            let of = |kind| attribute(attrs, kind).map(text).unwrap_or_default();
            let chain = Chain { family: m.family(), table: of(1), name: of(3) };
            let ours = [Table::Inet, Table::Overlay].iter().any(|table| table.name() == chain.table);
            let is_ip = matches!(chain.family, INET | IPV4 | IPV6);
            if hook == Some(FORWARD) && is_ip && !ours && (drops || !only_dropping) {
                found.push(chain);
            }
            true
        },
    )?;
    Ok(found)
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
        let (end, matching): (String, Box<dyn Fn(Way) -> Rule>) = match each {
            Traffic::Link(link) => (link.clone(), Box::new(|way| start().by_name(way, link))),
            Traffic::Subnet(net) if chain.family == if net.is_ipv4() { IPV6 } else { IPV4 } => continue,
            Traffic::Subnet(net) => (net.to_string(), Box::new(|way| start().address(side(way), *net))),
        };
        push(format!("from {end}"), matching(Way::In));
        if chain.is_of_iptables() {
            push(format!("answers to {end}"), matching(Way::Out).iptables_known_or_dnat());
        } else {
            push(format!("answers to {end}"), matching(Way::Out).ct(Ct::Known));
            push(
                format!("translated to {end}"),
                match each {
                    Traffic::Link(_) => matching(Way::Out).translated_by_us(),
                    // A Service, which kube-proxy translates.
                    Traffic::Subnet(_) => matching(Way::Out).ct(Ct::Dnat),
                },
            );
        }
    }
    rules
}

/// What comes from containers has their address as its source.
fn side(way: Way) -> Side {
    if way == Way::In { Side::Source } else { Side::Destination }
}
