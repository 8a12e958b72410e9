//! The chains of our own, and the jumps to them from the built-in chains.

use super::command::{Command, Listing};
use crate::Result;

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

    /// Guards come before what others accept; everything else behind what others have to say.
    fn is_first(self) -> bool {
        matches!(self, Guard | Loopback)
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

/// Removes the chains that have no rule, and the jumps to them. The loopback's goes with that of the ports.
pub fn remove_unused(command: &Command) -> Result<()> {
    let mut published = false;
    for table in ["nat", "filter", "raw"] {
        if table == "raw" && (published || command.v6()) {
            continue;
        }
        let listing = command.list(table)?;
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
