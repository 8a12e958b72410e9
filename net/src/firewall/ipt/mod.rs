//! The iptables backend, for hosts whose administrators or other tools want to see everything in iptables.
//!
//! Rules stand in chains of our own (`WEFT-…`, see [`frame`]) that the built-in chains jump to. iptables has no
//! transactions: each change is a run of `iptables` or `ip6tables`; a lock per network namespace keeps those of different
//! processes apart, and what fails half-way is taken back. Every rule has its owner's tag as its comment.

mod command;
mod frame;
mod reference;
mod rules;

pub use reference::{forget_reference, has_legacy};

use super::{Firewall, PortMapping, PublishOptions, What, distinct, is_alive, is_sibling, is_stale, taken};
use crate::{Error, Result, names, names::Owner};
use command::{Command, Lock};
use frame::Chain;
use ipnetwork::IpNetwork;
use rules::Rule;

/// The chains of the nat table without which none of the others is there.
pub(super) const OF_NAT: [&str; 2] = ["WEFT-DNAT", "WEFT-POSTROUTING"];

/// iptables in the network namespace of the thread that uses it.
pub struct Iptables {
    v4: Command,
    /// Absent on hosts without IPv6: needed only when IPv6 addresses are asked for.
    v6: Option<Command>,
}

/// The chains with the rules of an owner's masquerading, and of its ports.
const MASQUERADE: [Chain; 2] = [Chain::Masquerade, Chain::Forward];
const PORTS: [Chain; 3] = [Chain::Dnat, Chain::Hairpin, Chain::Published];

impl Iptables {
    /// Looks for the commands `iptables` and `ip6tables` in PATH; fails when the first is missing.
    pub fn new() -> Result<Self> {
        Ok(Iptables { v4: Command::new(false)?, v6: Command::new(true).ok() })
    }

    fn command(&self, v6: bool) -> Result<&Command> {
        match v6 {
            false => Ok(&self.v4),
            true => self.v6.as_ref().ok_or_else(|| command::missing("ip6tables")),
        }
    }

    fn commands(&self) -> impl Iterator<Item = &Command> {
        std::iter::once(&self.v4).chain(&self.v6)
    }

    /// Removes the rules in these chains whose tag is `whose`; returns how many.
    fn remove(&self, chains: &[Chain], whose: &dyn Fn(&str) -> bool) -> Result<usize> {
        let mut removed = 0;
        for command in self.commands() {
            for table in frame::tables(chains) {
                let listing = command.list(table)?;
                for chain in chains.iter().filter(|chain| chain.table() == table) {
                    for line in listing.rules(chain.name()) {
                        if rules::tag_of(line).is_some_and(whose) {
                            command.delete(table, line)?;
                            removed += 1;
                        }
                    }
                }
            }
        }
        Ok(removed)
    }

    /// Adds rules, the frame around them first; on a failure takes all of the owner's in these chains away again.
    fn add(&self, owner: &Owner, chains: &[Chain], rules: &[Rule]) -> Result<()> {
        let add = || {
            for v6 in [false, true] {
                let of_family: Vec<&Rule> = rules.iter().filter(|rule| rule.v6 == v6).collect();
                if of_family.is_empty() {
                    continue;
                }
                let command = self.command(v6)?;
                let mut used: Vec<Chain> = of_family.iter().map(|rule| rule.chain).collect();
                used.sort();
                used.dedup();
                frame::ensure(command, &used)?;
                // Before the others go those for a certain address of the host; inserted, so in reverse.
                for rule in of_family.iter().rev().filter(|rule| rule.first) {
                    command.insert(rule.chain.table(), rule.chain.name(), &rule.text)?;
                }
                for rule in of_family.iter().filter(|rule| !rule.first) {
                    command.append(rule.chain.table(), rule.chain.name(), &rule.text)?;
                }
            }
            Ok(())
        };
        add().inspect_err(|_| {
            let _ = self.remove(chains, &|tag| owner.same(tag));
            let _ = self.commands().try_for_each(frame::remove_unused);
        })
    }

    fn check(&self, rules: &[Rule]) -> Result<()> {
        for rule in rules {
            let command = self.command(rule.v6)?;
            if !command.has(rule.chain.table(), rule.chain.name(), &rule.text)? {
                return Err(Error::Mismatch(format!(
                    "{} has no rule `{}` in chain {} of table {}",
                    command.name(),
                    rule.text,
                    rule.chain.name(),
                    rule.chain.table()
                )));
            }
        }
        Ok(())
    }

    /// Is what another tool lets through not forwarded as long as no rule accepts it?
    fn forwards(&self, v6: bool) -> Result<bool> {
        Ok(self.command(v6)?.list("filter")?.policy("FORWARD") != Some("DROP"))
    }

    /// The families of these addresses in which rules that accept forwarding are needed.
    fn shut(&self, addrs: &[IpNetwork]) -> Result<[bool; 2]> {
        let mut shut = [false; 2];
        for v6 in [false, true] {
            shut[usize::from(v6)] = addrs.iter().any(|net| net.is_ipv6() == v6) && !self.forwards(v6)?;
        }
        Ok(shut)
    }

    /// Removes what the dead left of these ports; fails when one of them is a living one's.
    fn free_ports(&self, owner: &Owner, rules: &[Rule]) -> Result<()> {
        for command in self.commands() {
            let listing = command.list("nat")?;
            for line in listing.rules(Chain::Dnat.name()) {
                let Some((tag, port)) = rules::tag_of(line).zip(rules::port_of(line)) else { continue };
                // Of a container's attachments the first one's rule applies, and after its DEL the next one's.
                if owner.same(tag)
                    || is_sibling(owner, tag)
                    || !rules.iter().any(|rule| rule.port == Some(port))
                {
                    continue;
                }
                if rules.iter().any(|rule| rule.v6 == command.v6() && rule.port == Some(port)) {
                    if is_alive(tag) {
                        return Err(taken(port.protocol, port.port, tag));
                    }
                    let dead = tag.to_owned();
                    self.remove(&PORTS, &|tag| tag == dead)?;
                    return self.free_ports(owner, rules);
                }
            }
        }
        Ok(())
    }
}

impl Firewall for Iptables {
    fn masquerade_except(&mut self, owner: &Owner, addrs: &[IpNetwork], except: &[IpNetwork]) -> Result<()> {
        let _lock = Lock::take()?;
        let rules = rules::masquerade(owner, addrs, except, self.shut(addrs)?)?;
        self.remove(&MASQUERADE, &|tag| owner.same(tag))?;
        self.add(owner, &MASQUERADE, &rules)
    }

    fn unmasquerade(&mut self, owner: &Owner, _: &[IpNetwork]) -> Result<()> {
        let _lock = Lock::take()?;
        self.remove(&MASQUERADE, &|tag| owner.same(tag)).map(drop)
    }

    fn check_masquerade_except(
        &mut self,
        owner: &Owner,
        addrs: &[IpNetwork],
        except: &[IpNetwork],
    ) -> Result<()> {
        self.check(&rules::masquerade(owner, addrs, except, self.shut(addrs)?)?)
    }

    fn publish(
        &mut self,
        owner: &Owner,
        addrs: &[IpNetwork],
        ports: &[PortMapping],
        options: &PublishOptions,
    ) -> Result<()> {
        distinct(ports)?;
        let _lock = Lock::take()?;
        let rules = rules::publish(owner, addrs, ports, options, self.shut(addrs)?)?;
        self.free_ports(owner, &rules)?;
        self.remove(&PORTS, &|tag| owner.same(tag))?;
        self.add(owner, &PORTS, &rules)?;
        match options.localnet.as_deref().filter(|_| rules.iter().any(|rule| !rule.v6)) {
            Some(link) => frame::record_localnet(&self.v4, link),
            None => Ok(()),
        }
    }

    fn unpublish(&mut self, owner: &Owner, _: &[PortMapping]) -> Result<()> {
        let _lock = Lock::take()?;
        self.remove(&PORTS, &|tag| owner.same(tag)).map(drop)
    }

    fn check_publish(
        &mut self,
        owner: &Owner,
        addrs: &[IpNetwork],
        ports: &[PortMapping],
        options: &PublishOptions,
    ) -> Result<()> {
        self.check(&rules::publish(owner, addrs, ports, options, self.shut(addrs)?)?)
    }

    fn guard(&mut self, bridge: &str) -> Result<()> {
        let _lock = Lock::take()?;
        for command in self.commands() {
            frame::ensure(command, &[Chain::Guard])?;
            let listing = command.list(Chain::Guard.table())?;
            let there = |rule: &str| {
                listing.rules(Chain::Guard.name()).any(|line| rules::tag_of(line).is_some_and(|t| t == rule))
            };
            // Its last rule is the one that drops: with it, all are there.
            let (tag, last, rules) = rules::guard(bridge)?;
            if there(&last) {
                continue;
            }
            for line in listing.rules(Chain::Guard.name()).filter(|line| rules::tag_of(line) == Some(&tag)) {
                command.delete(Chain::Guard.table(), line)?;
            }
            for rule in &rules {
                command.append(Chain::Guard.table(), Chain::Guard.name(), rule)?;
            }
        }
        Ok(())
    }

    fn unguard(&mut self, bridge: &str) -> Result<()> {
        let _lock = Lock::take()?;
        let (tag, last, _) = rules::guard(bridge)?;
        // The dropping one first: what is half removed lets through, rather than shuts out.
        self.remove(&[Chain::Guard], &|t| t == last)?;
        self.remove(&[Chain::Guard], &|t| t == tag).map(drop)
    }

    fn gc(&mut self, network: &str, what: What, valid: &dyn Fn(&str, &str) -> bool) -> Result<usize> {
        let _lock = Lock::take()?;
        let network = names::clip_network(network);
        let chains: &[Chain] = match what {
            What::Masquerade => &MASQUERADE,
            What::Ports => &PORTS,
        };
        self.remove(chains, &|tag| is_stale(tag, &network, valid))
    }

    fn tidy(&mut self) -> Result<()> {
        let _lock = Lock::take()?;
        let gone = |tag: &str| {
            rules::guarded_bridge(tag).is_some_and(|bridge| nix::net::if_::if_nametoindex(bridge).is_err())
        };
        self.remove(&[Chain::Guard], &gone)?;
        self.commands().try_for_each(frame::remove_unused)
    }
}
