//! Running `iptables` and `ip6tables` (through the crate of that name), reading their listings, and the lock.

use crate::{Error, Result};
use iptables::IPTables;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// A name in the abstract Unix namespace, which belongs to the network namespace: who is bound to it may change rules.
/// The kernel frees it when its holder dies.
const LOCK: &str = "weft-iptables";
/// How long others may take before this is an error.
const PATIENCE: Duration = Duration::from_secs(30);

/// The right to change this network namespace's iptables rules, among Weft's processes.
pub struct Lock(#[allow(dead_code, reason = "held for what its being open means")] UnixDatagram);

impl Lock {
    /// Waits for the right.
    pub fn take() -> Result<Self> {
        let fail = |e| Error::io("lock Weft's iptables rules", e);
        let name = SocketAddr::from_abstract_name(LOCK).map_err(fail)?;
        let start = Instant::now();
        loop {
            match UnixDatagram::bind_addr(&name) {
                Ok(socket) => return Ok(Lock(socket)),
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(e) => return Err(fail(e)),
            }
        }
    }
}

/// One of the two commands.
pub struct Command(IPTables);

/// The error for a command that this host has not.
pub fn missing(name: &str) -> Error {
    Error::Other(format!("this host has no {name}: install it, or use the nftables backend"))
}

impl Command {
    /// Runs it once, for its version.
    pub fn new(v6: bool) -> Result<Self> {
        let name = if v6 { "ip6tables" } else { "iptables" };
        match iptables::new(v6) {
            Ok(mut command) => {
                command.set_numeric(true);
                Ok(Command(command))
            }
            Err(e) => match e.downcast_ref::<std::io::Error>() {
                Some(io) if io.kind() == std::io::ErrorKind::NotFound => Err(missing(name)),
                _ => Err(Error::Other(format!("`{name} --version` failed: {e}"))),
            },
        }
    }

    pub fn name(&self) -> &'static str {
        self.0.cmd
    }

    pub fn v6(&self) -> bool {
        self.0.cmd == "ip6tables"
    }

    fn failed(&self, what: &str, e: &(dyn std::error::Error + 'static)) -> Error {
        let text = match e.downcast_ref::<iptables::error::IptablesError>() {
            Some(e) => e.msg.trim().replace('\n', "; "),
            None => e.to_string(),
        };
        Error::Other(format!("`{} {what}` failed: {text}", self.0.cmd))
    }

    /// All rules of a table.
    pub fn list(&self, table: &str) -> Result<Listing> {
        // Not the crate's list_table: that takes a failed run's empty output for an empty table.
        let output =
            self.0.execute(table, "-S").map_err(|e| self.failed(&format!("-t {table} -S"), e.as_ref()))?;
        if !output.status.success() {
            let e = iptables::error::IptablesError::from(output);
            return Err(self.failed(&format!("-t {table} -S"), &e));
        }
        Ok(Listing(String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    pub fn append(&self, table: &str, chain: &str, rule: &str) -> Result<()> {
        let fail =
            |e: Box<dyn std::error::Error>| self.failed(&format!("-t {table} -A {chain} {rule}"), e.as_ref());
        self.0.append(table, chain, rule).map_err(fail)
    }

    /// Puts a rule before all others.
    pub fn insert(&self, table: &str, chain: &str, rule: &str) -> Result<()> {
        let fail =
            |e: Box<dyn std::error::Error>| self.failed(&format!("-t {table} -I {chain} {rule}"), e.as_ref());
        self.0.insert(table, chain, rule, 1).map_err(fail)
    }

    pub fn has(&self, table: &str, chain: &str, rule: &str) -> Result<bool> {
        self.0.exists(table, chain, rule).map_err(|e| self.failed("-C", e.as_ref()))
    }

    /// Deletes the rule of a line of a listing; one that is gone already does not matter.
    pub fn delete(&self, table: &str, line: &str) -> Result<()> {
        let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) else {
            return Ok(());
        };
        match self.0.delete(table, chain, rule) {
            Err(e) if self.has(table, chain, rule)? => {
                Err(self.failed(&format!("-t {table} -D {chain} {rule}"), e.as_ref()))
            }
            _ => Ok(()),
        }
    }

    pub fn new_chain(&self, table: &str, chain: &str) -> Result<()> {
        self.0.new_chain(table, chain).map_err(|e| self.failed(&format!("-t {table} -N {chain}"), e.as_ref()))
    }

    /// Empties and deletes a chain that nothing jumps to.
    pub fn delete_chain(&self, table: &str, chain: &str) -> Result<()> {
        self.0
            .flush_chain(table, chain)
            .and_then(|()| self.0.delete_chain(table, chain))
            .map_err(|e| self.failed(&format!("-t {table} -X {chain}"), e.as_ref()))
    }
}

/// What `iptables -S` printed of a table.
pub struct Listing(String);

impl Listing {
    /// The policy of a built-in chain.
    pub fn policy(&self, chain: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix("-P ")?.strip_prefix(chain)?.strip_prefix(' '))
    }

    pub fn has_chain(&self, chain: &str) -> bool {
        self.0.lines().any(|line| line.strip_prefix("-N ") == Some(chain))
    }

    /// The lines of a chain's rules, with the `-A` and its name in front.
    pub fn rules<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.lines().filter(move |line| {
            line.strip_prefix("-A ")
                .and_then(|rest| rest.strip_prefix(chain))
                .is_some_and(|rest| rest.starts_with(' '))
        })
    }

    /// The lines of the rules of any chain that jump to this one.
    pub fn jumps<'a>(&'a self, to: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.lines().filter(move |line| {
            line.starts_with("-A ") && line.strip_suffix(to).is_some_and(|rest| rest.ends_with(" -j "))
        })
    }
}
