//! What the reference plugins left in iptables: an attachment that they made may be given to us to detach.
//!
//! They keep a chain of the nat table for each attachment's masquerading and one for its ports, named by a hash of network
//! and container. Left behind, the second would lead a port to a container that is gone.

use super::command::{Command, Lock};
use crate::firewall::What;
use crate::firewall::nft::has_chain;
use crate::{Error, Result};
use sha2::{Digest, Sha512};
use std::path::Path;
use std::process::{self, Stdio};

/// iptables' own limit on the names of chains, as the reference plugins see it.
const LONGEST: usize = 28;

/// The chain of an attachment (`utils.FormatChainName` and portmap's `genDnatChain` of the reference plugins).
fn chain(network: &str, container: &str, what: What) -> String {
    let mut name = match what {
        What::Masquerade => "CNI-",
        What::Ports => "CNI-DN-",
    }
    .to_owned();
    let digest = Sha512::new().chain_update(network).chain_update(container).finalize();
    name.extend(
        digest.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(|n| char::from_digit(n.into(), 16)),
    );
    name.truncate(LONGEST);
    name
}

/// Whether this namespace has a nat table of the old iptables, which netlink does not show.
pub fn has_legacy(v6: bool) -> bool {
    let names = if v6 { "ip6_tables_names" } else { "ip_tables_names" };
    let names = std::fs::read_to_string(Path::new("/proc/thread-self/net").join(names)).unwrap_or_default();
    names.lines().any(|name| name == "nat")
}

/// Removes what the reference plugins made for an attachment; whether there was anything. Where there is nothing to look
/// at, it costs two questions to the kernel and runs no program.
///
/// # Errors
/// When iptables fails.
pub fn forget_reference(network: &str, container: &str, what: What) -> Result<bool> {
    let chain = chain(network, container, what);
    let mut found = false;
    for v6 in [false, true] {
        if !has_legacy(v6) && !has_chain(v6, "nat", &chain)? {
            continue;
        }
        // Without the program there is nothing to be done, which is no reason for a DEL to fail.
        let Ok(command) = Command::new(v6) else { continue };
        let _lock = Lock::take()?;
        let listing = command.list("nat")?;
        if !listing.has_chain(&chain) {
            continue;
        }
        for line in listing.jumps(&chain) {
            run(command.name(), &delete(line))?;
        }
        command.delete_chain("nat", &chain)?;
        found = true;
    }
    Ok(found)
}

/// The arguments that delete the rule of a listing's line.
fn delete(line: &str) -> Vec<String> {
    let mut words = vec!["-w".to_owned(), "-t".into(), "nat".into(), "-D".into()];
    words.extend(split(line.strip_prefix("-A ").unwrap_or(line)));
    words
}

/// A line's words, without the quotes and backslashes that iptables has put around what is not plain (xtables.c,
/// `xtables_save_string`).
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let (mut quoted, mut chars) = (false, line.chars());
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' => word.get_or_insert_default().extend(chars.next()),
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

fn run(program: &str, args: &[String]) -> Result<()> {
    let output = process::Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|e| Error::io(format!("run {program}"), e))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(Error::Other(format!("`{program} {}` failed: {}", args.join(" "), text.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testns;

    const ID: &str = "aa4e902285ea0eb5b548410f4c193e7f2e10330c891889ecd22c8e784baaf449";

    fn shell(line: &str) -> String {
        let output = process::Command::new("sh").args(["-ec", line]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn chains_are_named_as_the_reference_plugins_name_them() {
        assert_eq!(chain("pods", ID, What::Masquerade), "CNI-02c6af363d037ff1df27a23e");
        assert_eq!(chain("pods", ID, What::Ports), "CNI-DN-02c6af363d037ff1df27a");
    }

    #[test]
    fn words_of_a_listing_are_read_as_iptables_wrote_them() {
        let line = r#"A -m comment --comment "name: \"pods\" id: \"a\"" -j X"#;
        assert_eq!(split(line), ["A", "-m", "comment", "--comment", r#"name: "pods" id: "a""#, "-j", "X"]);
    }

    #[test]
    fn what_the_reference_plugins_left_for_an_attachment_goes_and_nothing_else() {
        let missing = |program| process::Command::new(program).arg("--version").output().is_err();
        if missing("iptables") || missing("ip6tables") {
            eprintln!("skipped: this host has no iptables");
            return;
        }
        testns::in_fresh(|| {
            assert!(!forget_reference("pods", ID, What::Ports).unwrap());
            for ipt in ["iptables", "ip6tables"] {
                for (id, port) in [(ID, 9000), ("other", 9001)] {
                    let (masquerade, ports) =
                        (chain("pods", id, What::Masquerade), chain("pods", id, What::Ports));
                    shell(&format!(
                        r#"t="{ipt} -w -t nat"; $t -N CNI-HOSTPORT-DNAT || true
                        $t -N {masquerade}; $t -A {masquerade} -j MASQUERADE
                        $t -A POSTROUTING -m comment --comment 'name: "pods" id: "{id}"' -j {masquerade}
                        $t -N {ports}; $t -A {ports} -p tcp --dport {port} -j DNAT --to-destination :80
                        $t -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment 'dnat name: "pods" id: "{id}"' \
                            -m multiport --dports {port} -j {ports}"#
                    ));
                }
            }
            assert!(forget_reference("pods", ID, What::Ports).unwrap());
            let nat = || shell("iptables-save -t nat; ip6tables-save -t nat");
            assert!(!nat().contains("CNI-DN-02c6af") && nat().contains("CNI-02c6af"), "{}", nat());
            assert!(forget_reference("pods", ID, What::Masquerade).unwrap());
            assert!(!nat().contains("02c6af") && !nat().contains(ID), "{}", nat());
            let others = nat().lines().filter(|line| line.contains("other")).count();
            assert_eq!(others, 4, "{}", nat());
            assert!(!forget_reference("pods", ID, What::Masquerade).unwrap());
        });
    }
}
