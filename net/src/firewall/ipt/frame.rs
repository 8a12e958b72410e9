//! The chains of our own, and the jumps to them from the built-in chains.

use super::command::{Command, Listing};
use super::rules::{tag_of, value_of};
use crate::Result;
use crate::firewall::{localnet, nft};

/// A chain of Weft's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    /// nat: published ports
    Dnat,
    /// nat: masquerading of published ports' traffic that was marked for it
    Hairpin,
    /// nat: masquerading of what containers send
    Masquerade,
    /// filter: what containers send and its answers, where FORWARD's policy is DROP
    Forward,
    /// filter: traffic of published ports, where FORWARD's policy is DROP
    Published,
    /// filter: bridges that only let in what is theirs
    Guard,
    /// raw: what comes from outside for 127.0.0.0/8, which route_localnet would let in
    Loopback,
}

use Chain::{Dnat, Forward, Guard, Hairpin, Loopback, Masquerade, Published};

const ALL: [Chain; 7] = [Dnat, Hairpin, Masquerade, Forward, Published, Guard, Loopback];

impl Chain {
    pub fn name(self) -> &'static str {
        match self {
            Dnat => "WEFT-DNAT",
            Hairpin => "WEFT-HAIRPIN",
            Masquerade => "WEFT-POSTROUTING",
            Forward => "WEFT-FORWARD",
            Published => "WEFT-PUBLISHED",
            Guard => "WEFT-GUARD",
            Loopback => "WEFT-LOOPBACK",
        }
    }

    pub fn table(self) -> &'static str {
        match self {
            Dnat | Hairpin | Masquerade => "nat",
            Forward | Published | Guard => "filter",
            Loopback => "raw",
        }
    }

    /// The built-in chains that jump to it, and on what condition. What comes from ::1 cannot leave by another link:
    /// that address is left to programs.
    fn callers(self, v6: bool) -> (&'static [&'static str], &'static str) {
        match self {
            Dnat if v6 => (&["PREROUTING", "OUTPUT"], "! -d ::1/128 -m addrtype --dst-type LOCAL "),
            Dnat => (&["PREROUTING", "OUTPUT"], "-m addrtype --dst-type LOCAL "),
            Hairpin | Masquerade => (&["POSTROUTING"], ""),
            Forward | Published | Guard => (&["FORWARD"], ""),
            Loopback => (&["PREROUTING"], ""),
        }
    }

    /// Guards come before what others accept, and the hairpin before a masquerade of others (the reference's ipMasq)
    /// that accepts the packet; everything else comes behind the rules of others.
    fn is_first(self) -> bool {
        matches!(self, Guard | Loopback | Hairpin)
    }
}

/// The tables of these chains, each once.
pub fn tables(chains: &[Chain]) -> Vec<&'static str> {
    let mut tables: Vec<_> = chains.iter().map(|chain| chain.table()).collect();
    tables.sort_unstable();
    tables.dedup();
    tables
}

/// Makes the chains and the jumps to them, where they are missing.
pub fn ensure(command: &Command, chains: &[Chain]) -> Result<()> {
    let mut chains = chains.to_vec();
    if chains.contains(&Dnat) && !command.v6() {
        chains.push(Loopback);
    }
    for table in tables(&chains) {
        let listing = command.list(table)?;
        for chain in chains.iter().filter(|chain| chain.table() == table) {
            make(command, &listing, *chain)?;
        }
    }
    Ok(())
}

/// The comment of the rules that record the links whose `route_localnet` was set for published ports.
const RECORD: &str = "weft-localnet";

/// Records that `route_localnet` is set for this link: as a rule in the chain that drops such packets from outside.
pub fn record_localnet(command: &Command, link: &str) -> Result<()> {
    let (name, table) = (Loopback.name(), Loopback.table());
    if recorded(&command.list(table)?).iter().any(|found| found == link) {
        return Ok(());
    }
    command.append(table, name, &format!("-i {link} -d 127.0.0.0/8 -m comment --comment {RECORD} -j DROP"))
}

/// The links that [`record_localnet`] recorded.
fn recorded(listing: &Listing) -> Vec<String> {
    let lines = listing.rules(Loopback.name()).filter(|line| tag_of(line) == Some(RECORD));
    lines.filter_map(|line| value_of(line, "-i").map(str::to_owned)).collect()
}

/// Clears `route_localnet` where Weft set it, unless the nftables backend publishes ports. Returns whether no link has it.
fn close_loopback(command: &Command, listing: &Listing) -> Result<bool> {
    if !nft::tidy_and_has_ports()? {
        localnet::close(&recorded(listing))?;
        localnet::close_own()?;
    }
    // The reference portmap never clears it: what is open where that has been at work is not Weft's to guard.
    Ok(!localnet::is_open() || command.list("nat")?.has_chain("CNI-HOSTPORT-DNAT"))
}

fn make(command: &Command, listing: &Listing, chain: Chain) -> Result<()> {
    let (name, table) = (chain.name(), chain.table());
    if !listing.has_chain(name) {
        command.new_chain(table, name)?;
    }
    if chain == Loopback && listing.rules(name).next().is_none() {
        command.append(table, name, "! -i lo -d 127.0.0.0/8 -j DROP")?;
    }
    let (callers, condition) = chain.callers(command.v6());
    for caller in callers {
        let start = format!("-A {caller} ");
        if listing.jumps(name).any(|line| line.starts_with(&start)) {
            continue;
        }
        let jump = format!("{condition}-j {name}");
        if chain.is_first() {
            command.insert(table, caller, &jump)?;
        } else {
            command.append(table, caller, &jump)?;
        }
    }
    Ok(())
}

/// Removes the chains that have no rule, and the jumps to them. The loopback's goes after that of the ports, once no link
/// has `route_localnet` any more.
pub fn remove_unused(command: &Command) -> Result<()> {
    let mut published = false;
    for table in ["nat", "filter", "raw"] {
        if table == "raw" && (published || command.v6()) {
            continue;
        }
        let listing = command.list(table)?;
        if table == "raw" && listing.has_chain(Loopback.name()) && !close_loopback(command, &listing)? {
            continue;
        }
        for chain in ALL.into_iter().filter(|chain| chain.table() == table) {
            let used = chain != Loopback && listing.rules(chain.name()).next().is_some();
            published |= used && chain == Dnat;
            if used || !listing.has_chain(chain.name()) {
                continue;
            }
            for jump in listing.jumps(chain.name()) {
                command.delete(table, jump)?;
            }
            command.delete_chain(table, chain.name())?;
        }
    }
    Ok(())
}
