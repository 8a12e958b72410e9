//! Which functions of `weft-cni` a call runs: the list by which its link places them side by side.
//!
//! A plugin is single-stepped (`ptrace(2)`) by a process of the bench that stands between it and [`Chain`]:
//! `bench step FILE PLUGIN` starts `bench traced PLUGIN`, which asks to be traced and becomes the plugin.

use crate::chain::{Attachment, Chain, finish};
use crate::space::{self, Machine, fresh};
use anyhow::{Context, Result, bail};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// ADDs before the one that is traced: most ADDs find a bridge, tables and other containers' leases.
const BEFORE: usize = 40;

/// A function's section: its addresses, and the linker's pattern for it.
#[derive(Debug, PartialEq)]
struct Section {
    start: u64,
    end: u64,
    pattern: String,
}

/// The sections of text in a link map of GNU ld, by address.
fn sections(map: &str) -> Vec<Section> {
    let mut found = Vec::new();
    let mut pending = None;
    for line in map.lines() {
        let mut words = line.split_whitespace();
        // A long name has a line of its own.
        let name = match pending.take() {
            Some(name) => name,
            None if line.starts_with(" .text") => words.next().unwrap_or_default(),
            None => continue,
        };
        let number = |word: Option<&str>| u64::from_str_radix(word?.strip_prefix("0x")?, 16).ok();
        let Some(start) = number(words.next()) else {
            pending = line.starts_with(" .text").then_some(name);
            continue;
        };
        let (Some(size @ 1..), Some(file)) = (number(words.next()), words.last()) else { continue };
        let object = file.rsplit(['/', '(']).next().unwrap_or(file).trim_end_matches(')');
        let pattern = if name == ".text" { format!("*{object}(.text)") } else { format!("*({name})") };
        if start > 0 {
            found.push(Section { start, end: start + size, pattern });
        }
    }
    found.sort_by_key(|section| section.start);
    found
}

/// Traces a call of each plugin on machines of its own and returns the sections that ran, one pattern a line: those that
/// most calls run first, and of these those that run first in a call.
///
/// # Errors
/// Fails when `map` is not the link map of the executables in `dir`, and without root.
pub fn list(map: &Path, dir: &Path) -> Result<String> {
    let text = std::fs::read_to_string(map).with_context(|| format!("cannot read {}", map.display()))?;
    let sections = sections(&text);
    space::enter().context("namespaces of the bench's own (are you root?)")?;
    let mut calls: HashMap<usize, usize> = HashMap::new();
    let mut order = Vec::new();
    for addresses in traces(dir)? {
        let mut ran = HashSet::new();
        for address in addresses {
            let at = sections.partition_point(|section| section.end <= address);
            if sections.get(at).is_some_and(|section| section.start <= address) && ran.insert(at) {
                let count = calls.entry(at).or_default();
                *count += 1;
                if *count == 1 {
                    order.push(at);
                }
            }
        }
        anyhow::ensure!(ran.len() > 50, "{}: not the link map of {}", map.display(), dir.display());
    }
    order.sort_by_key(|at| std::cmp::Reverse(calls.get(at).copied()));
    let mut list = String::new();
    for at in order {
        writeln!(list, "{}", sections[at].pattern)?;
    }
    Ok(list)
}

/// The addresses that each call ran, in order of first use.
fn traces(dir: &Path) -> Result<Vec<Vec<u64>>> {
    let mut all = Vec::new();
    for name in ["plain", "whole", "alone", "loopback"] {
        let machine = Machine::new(&format!("hot-{name}"))?;
        let chain_of = |n: usize| {
            let mut chain = match name {
                "whole" => Chain::published(dir, &machine, &[10_000 + n as u16]),
                _ => Chain::bridge(dir, &machine),
            };
            match name {
                "alone" => chain.plugins[0]["type"] = json!("host-local"),
                "loopback" => {
                    chain.plugins[0] = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"})
                }
                _ => {}
            }
            chain
        };
        for n in 0..=BEFORE {
            let id = format!("hot-{name}-{n}");
            let mut attachment = Attachment::new(&id, &fresh(&id)?);
            machine.enter()?;
            match n {
                BEFORE => call_each(&chain_of(n), &mut attachment, &mut all)?,
                _ => chain_of(n).add(&mut attachment).map(drop)?,
            }
        }
    }
    Ok(all)
}

/// Traces each call of each plugin of this chain.
fn call_each(chain: &Chain, attachment: &mut Attachment, all: &mut Vec<Vec<u64>>) -> Result<()> {
    let bench = std::env::current_exe()?;
    let file = chain.state.join("trace");
    let wrapper = [bench.to_string_lossy(), "step".into(), file.to_string_lossy()];
    let wrapper: Vec<&str> = wrapper.iter().map(AsRef::as_ref).collect();
    for verb in ["VERSION", "ADD", "CHECK", "DEL"] {
        let mut plugins: Vec<usize> = (0..chain.plugins.len()).collect();
        if verb == "DEL" {
            plugins.reverse();
        }
        for at in plugins {
            let input = chain.input(at, attachment.result.as_ref());
            let out = finish(chain.command(&wrapper, verb, at, attachment), &input)
                .with_context(|| format!("{verb} of {}", chain.plugins[at]["type"]))?;
            if verb == "ADD" {
                attachment.result = Some(serde_json::from_slice(&out)?);
            }
            let trace = std::fs::read_to_string(&file)?;
            all.push(trace.lines().map(str::parse).collect::<Result<_, _>>()?);
        }
    }
    Ok(())
}

/// Becomes this program, traced by the parent. Returns only with an error.
pub fn traced(words: &[String]) -> Result<u8> {
    let [program, words @ ..] = words else { bail!("traced: no program") };
    ptrace::traceme()?;
    Err(Command::new(program).args(words).exec()).with_context(|| format!("cannot execute {program}"))
}

/// Runs a program one instruction at a time and writes each address that ran to a file, in order of first use.
/// Returns the program's exit code. Processes that it forks are not traced.
pub fn step(words: &[String]) -> Result<u8> {
    let [file, program @ ..] = words else { bail!("step: no file") };
    let child = Command::new(std::env::current_exe()?).arg("traced").args(program).spawn()?;
    let pid = Pid::from_raw(child.id().try_into()?);
    let (mut seen, mut trace) = (HashSet::new(), String::new());
    loop {
        match waitpid(pid, None)? {
            WaitStatus::Stopped(_, signal) => {
                let address = position(pid)?;
                if seen.insert(address) {
                    writeln!(trace, "{address}")?;
                }
                ptrace::step(pid, Some(signal).filter(|signal| *signal != Signal::SIGTRAP))?;
            }
            WaitStatus::Exited(_, code) => {
                std::fs::write(file, trace).with_context(|| format!("cannot write {file}"))?;
                return Ok(u8::try_from(code)?);
            }
            status => bail!("{program:?}: {status:?}"),
        }
    }
}

/// The address of a stopped process's next instruction.
fn position(pid: Pid) -> Result<u64> {
    #[cfg(target_arch = "x86_64")]
    return Ok(ptrace::getregs(pid)?.rip);
    #[cfg(target_arch = "aarch64")]
    return Ok(ptrace::getregs(pid)?.pc);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    bail!("process {pid}: its registers can be read on x86_64 and aarch64 only");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_of_a_map_have_addresses_and_patterns() {
        let map = "
 .text.gone     0x0000000000000000       0x12 /lib/libc.a(gone.lo)
.text           0x0000000000401010   0x222cf9
 *(.text.unlikely .text.*_unlikely .text.unlikely.*)
 .text._ZN4main17h7bce98480b0432f3E
                0x0000000000401020       0x10 /target/deps/weft.o
 .text          0x0000000000401030       0x32 /lib/libc.a(memcpy.lo)
                0x0000000000401030                memcpy
 .text.empty    0x0000000000401062        0x0 /lib/libc.a(empty.lo)
 .text.poll     0x0000000000401010       0x10 /lib/libc.a(poll.lo)
";
        let section = |start, end, pattern: &str| Section { start, end, pattern: pattern.to_owned() };
        let expected = [
            section(0x401010, 0x401020, "*(.text.poll)"),
            section(0x401020, 0x401030, "*(.text._ZN4main17h7bce98480b0432f3E)"),
            section(0x401030, 0x401062, "*memcpy.lo(.text)"),
        ];
        assert_eq!(sections(map), expected);
    }
}
