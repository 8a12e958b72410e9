//! Frames with a false source address: a container that is watched may send only from the hardware address that it was
//! given (the reference bridge's `macspoofchk`).
//!
//! One table, `bridge weft`, with one rule and two sets; a container is an element in each, which carries its owner's tag
//! as comment. The table is made with the first one and removed with the last.

use crate::error::{Error, Refusal, Result};
use crate::names::{Owner, clip_network};
use crate::socket::{Answers, Channel, Outgoing};
use crate::wire::{find, nest, put, put_str, str_of};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};

const TABLE: &str = "weft";
const CHAIN: &str = "prerouting";
/// The host's ends of the veths that are watched.
const PORTS: &str = "watched";
/// Such an end . the hardware address that may send through it.
const SOURCES: &str = "sources";

/// NFPROTO_BRIDGE
const BRIDGE: u8 = 7;
/// NFNL_SUBSYS_NFTABLES in the upper byte of a message's type.
const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// enum nf_tables_msg_types
mod msg {
    pub const NEWTABLE: u16 = 0;
    pub const GETTABLE: u16 = 1;
    pub const DELTABLE: u16 = 2;
    pub const NEWCHAIN: u16 = 3;
    pub const NEWRULE: u16 = 6;
    pub const NEWSET: u16 = 9;
    pub const NEWSETELEM: u16 = 12;
    pub const GETSETELEM: u16 = 13;
    pub const DELSETELEM: u16 = 14;
    pub const GETGEN: u16 = 16;
}
/// NFT_REG32_00; the 16 bytes of an interface's name fill four registers.
const REG: u32 = 8;
/// libnftables' datatypes `ifname` and `ether_addr`.
const IFNAME: u32 = 41;
const ETHER_ADDR: u32 = 9;
/// How often a transaction is tried again that another one came before.
const TRIES: usize = 50;

/// A container that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Set, and key in it.
    set: &'static str,
    key: Vec<u8>,
    tag: String,
}

fn u32_be(out: &mut Vec<u8>, kind: u16, value: u32) {
    put(out, kind, &value.to_be_bytes());
}

fn header(out: &mut Vec<u8>, family: u8, resource: u16) {
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
}

/// A port's key: its name, filled up to 16 bytes.
fn port_key(owner: &Owner) -> Vec<u8> {
    let mut key = owner.host_veth().into_bytes();
    key.resize(16, 0);
    key
}

/// A source's key: the port's and the address, filled up to a register.
fn source_key(owner: &Owner, mac: [u8; 6]) -> Vec<u8> {
    let mut key = port_key(owner);
    key.extend_from_slice(&mac);
    key.resize(24, 0);
    key
}

fn entries(owner: &Owner, mac: [u8; 6]) -> [Entry; 2] {
    let entry = |set, key| Entry { set, key, tag: owner.tag() };
    [entry(SOURCES, source_key(owner, mac)), entry(PORTS, port_key(owner))]
}

/// A transaction.
struct Batch(Outgoing);

impl Batch {
    fn new(generation: Option<u32>) -> Batch {
        let mut out = Outgoing::new();
        out.control(BATCH_BEGIN, 0, |out| {
            header(out, 0, SUBSYSTEM >> 8);
            // NFNL_BATCH_GENID
            generation.into_iter().for_each(|generation| u32_be(out, 1, generation));
        });
        Batch(out)
    }

    fn push(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        self.0.change(SUBSYSTEM | kind, flags, |out| {
            header(out, BRIDGE, 0);
            put_str(out, 1, TABLE);
            fill(out);
        });
    }

    fn element(&mut self, kind: u16, flags: u16, entry: &Entry) {
        self.push(kind, flags, |out| {
            put_str(out, 2, entry.set);
            nest(out, 3, |out| {
                nest(out, 1, |out| {
                    nest(out, 1, |out| put(out, 1, &entry.key));
                    if kind == msg::NEWSETELEM {
                        // A comment: type 0, length with the NUL.
                        let mut user = vec![0, (entry.tag.len() + 1) as u8];
                        user.extend_from_slice(entry.tag.as_bytes());
                        user.push(0);
                        put(out, 6, &user);
                    }
                });
            });
        });
    }

    /// The table with its sets, its chain and its rule, none of which may be there yet.
    fn frame(&mut self) {
        let new = NLM_F_CREATE | NLM_F_EXCL;
        self.push(msg::NEWTABLE, new, |_| {});
        let set = |out: &mut Vec<u8>, name, id, kind, length, order: u8| {
            put_str(out, 2, name);
            u32_be(out, 3, 0);
            u32_be(out, 4, kind);
            u32_be(out, 5, length);
            u32_be(out, 10, id);
            // The key's byte order, for nft's printing: of a concatenation none, of a name the host's.
            put(out, 13, &[0, 4, order, 0, 0, 0]);
        };
        self.push(msg::NEWSET, new, |out| set(out, PORTS, 1, IFNAME, 16, 1));
        self.push(msg::NEWSET, new, |out| set(out, SOURCES, 2, IFNAME << 6 | ETHER_ADDR, 24, 0));
        self.push(msg::NEWCHAIN, new, |out| {
            put_str(out, 3, CHAIN);
            nest(out, 4, |out| {
                u32_be(out, 1, 0);
                u32_be(out, 2, -300_i32 as u32);
            });
            u32_be(out, 5, 1);
            put_str(out, 7, "filter");
        });
        self.push(msg::NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |out| {
            put_str(out, 2, CHAIN);
            nest(out, 4, rule);
        });
    }

    fn send(self, channel: &mut Channel) -> Result<Answers> {
        let mut out = self.0;
        out.control(BATCH_END, 0, |out| header(out, 0, SUBSYSTEM >> 8));
        channel.exchange(out)
    }
}

/// `iifname @watched iifname . ether saddr != @sources drop`
fn rule(out: &mut Vec<u8>) {
    let expression = |out: &mut Vec<u8>, name, fill: &dyn Fn(&mut Vec<u8>)| {
        nest(out, 1, |out| {
            put_str(out, 1, name);
            nest(out, 2, |out| fill(out));
        });
    };
    // NFT_META_IIFNAME
    let name = |out: &mut Vec<u8>| {
        u32_be(out, 1, REG);
        u32_be(out, 2, 6);
    };
    let lookup = |out: &mut Vec<u8>, set, inverted| {
        put_str(out, 1, set);
        u32_be(out, 2, REG);
        u32_be(out, 5, inverted);
    };
    expression(out, "meta", &name);
    expression(out, "lookup", &|out| lookup(out, PORTS, 0));
    expression(out, "meta", &name);
    expression(out, "payload", &|out| {
        u32_be(out, 1, REG + 4);
        // The link layer's header, the source address.
        u32_be(out, 2, 0);
        u32_be(out, 3, 6);
        u32_be(out, 4, 6);
    });
    expression(out, "lookup", &|out| lookup(out, SOURCES, 1));
    expression(out, "immediate", &|out| {
        u32_be(out, 1, 0);
        nest(out, 2, |out| nest(out, 2, |out| u32_be(out, 1, 0)));
    });
}

fn refused(what: &str, refusal: &Refusal) -> Error {
    match refusal.errno {
        libc::EOPNOTSUPP | libc::EAFNOSUPPORT => {
            Error::Unsupported("nftables for bridges (CONFIG_NF_TABLES_BRIDGE)".into())
        }
        _ => Error::Kernel { what: what.to_owned(), refusal: refusal.clone() },
    }
}

/// The sets of this namespace.
struct Spoofing(Channel);

impl Spoofing {
    fn open() -> Result<Spoofing> {
        Channel::open(libc::NETLINK_NETFILTER).map(Spoofing)
    }

    /// The generation of the namespace's rules, and whether the table is there.
    fn state(&mut self) -> Result<(u32, bool)> {
        let mut out = Outgoing::new();
        let generation = out.lookup(SUBSYSTEM | msg::GETGEN, 0, |out| header(out, 0, 0));
        let table = out.lookup(SUBSYSTEM | msg::GETTABLE, 0, |out| {
            header(out, BRIDGE, 0);
            put_str(out, 1, TABLE);
        });
        let answers = self.0.exchange(out)?;
        let number = answers.reply(generation).and_then(|body| find(body.get(4..)?, 1)?.try_into().ok());
        Ok((number.map_or(0, u32::from_be_bytes), answers.reply(table).is_some()))
    }

    fn list(&mut self) -> Result<Vec<Entry>> {
        let mut all = Vec::new();
        for set in [PORTS, SOURCES] {
            let mut body = Vec::new();
            header(&mut body, BRIDGE, 0);
            put_str(&mut body, 1, TABLE);
            put_str(&mut body, 2, set);
            let found = self.0.dump("list watched ports", SUBSYSTEM | msg::GETSETELEM, &body, |_, body| {
                let elements = find(body.get(4..)?, 3)?;
                Some(
                    crate::wire::attributes(elements)
                        .filter_map(|(_, each)| read(set, each))
                        .collect::<Vec<_>>(),
                )
            });
            match found {
                Ok(found) => all.extend(found.into_iter().flatten()),
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Removes the entries that `unwanted` picks, and the table with the last. Returns how many those were.
    fn remove(&mut self, unwanted: &dyn Fn(&Entry) -> bool) -> Result<usize> {
        for _ in 0..TRIES {
            let (generation, there) = self.state()?;
            if !there {
                return Ok(0);
            }
            let (gone, kept): (Vec<Entry>, Vec<Entry>) = self.list()?.into_iter().partition(unwanted);
            let mut batch = Batch::new(Some(generation));
            if kept.is_empty() {
                batch.push(msg::DELTABLE, 0, |_| {});
            } else if gone.is_empty() {
                return Ok(0);
            } else {
                gone.iter().for_each(|entry| batch.element(msg::DELSETELEM, 0, entry));
            }
            match batch.send(&mut self.0)?.refusals.first() {
                None => return Ok(gone.len()),
                Some((_, refusal)) if matches!(refusal.errno, libc::ERESTART | libc::ENOENT) => {}
                Some((_, refusal)) => return Err(refused("stop watching a bridge's ports", refusal)),
            }
        }
        Err(Error::Other("nftables changes faster than its sets can be read".into()))
    }
}

fn read(set: &'static str, element: &[u8]) -> Option<Entry> {
    let key = find(find(element, 1)?, 1)?.to_vec();
    let user = find(element, 6).unwrap_or_default();
    Some(Entry { set, key, tag: user.get(2..).map(str_of).unwrap_or_default() })
}

/// Watches the port of this attachment, by its name: it need not exist yet.
///
/// # Errors
/// [`Error::Unsupported`] when the kernel has no nftables for bridges.
pub fn watch(owner: &Owner, mac: [u8; 6]) -> Result<()> {
    let mut sets = Spoofing::open()?;
    for _ in 0..TRIES {
        let (_, there) = sets.state()?;
        let mut batch = Batch::new(None);
        if !there {
            batch.frame();
        }
        for entry in entries(owner, mac) {
            batch.element(msg::NEWSETELEM, NLM_F_CREATE, &entry);
        }
        let answers = batch.send(&mut sets.0)?;
        match answers.refusals.first() {
            None => return Ok(()),
            // Somebody made the table meanwhile, or removed it.
            Some((_, refusal)) if matches!(refusal.errno, libc::EEXIST | libc::ENOENT) => {}
            Some((_, refusal)) => return Err(refused("watch a bridge's port", refusal)),
        }
    }
    Err(Error::Other("nftables changes faster than its sets can be written".into()))
}

/// No longer watches the port of this attachment, if it was.
pub fn unwatch(owner: &Owner) -> Result<()> {
    let key = port_key(owner);
    Spoofing::open()?.remove(&|entry| entry.key.starts_with(&key)).map(drop)
}

/// Fails when the port of this attachment is not watched as [`watch`] left it.
pub fn check_watched(owner: &Owner, mac: [u8; 6]) -> Result<()> {
    let has = Spoofing::open()?.list()?;
    if entries(owner, mac).iter().all(|entry| has.contains(entry)) {
        return Ok(());
    }
    let port = owner.host_veth();
    Err(Error::Mismatch(format!("false source addresses of frames from {port} are not dropped")))
}

/// No longer watches ports of attachments of the network that are not valid any more; see
/// [`crate::firewall::Firewall::gc`].
pub fn gc(network: &str, valid: &dyn Fn(&str, &str) -> bool) -> Result<usize> {
    let network = clip_network(network);
    Spoofing::open()?.remove(&|entry| super::is_stale(&entry.tag, &network, valid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testns;
    use std::process::Command;

    fn ruleset() -> String {
        let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn owner(id: &str) -> Owner {
        Owner::new("net", id, "eth0")
    }

    #[test]
    fn watched_ports_are_elements_and_the_table_goes_with_the_last() {
        testns::in_fresh(|| {
            let (a, b, mac) = (owner("a"), owner("b"), [2, 0, 0, 0, 0, 7]);
            watch(&a, mac).unwrap();
            watch(&a, mac).unwrap();
            watch(&b, mac).unwrap();
            let rules = ruleset();
            for part in [
                "table bridge weft",
                "iifname @watched iifname . ether saddr != @sources drop",
                &format!("\"{}\" . 02:00:00:00:00:07 comment \"net/a/eth0\"", a.host_veth()),
            ] {
                assert!(rules.contains(part), "{part}: {rules}");
            }
            check_watched(&a, mac).unwrap();
            assert!(check_watched(&a, [2, 0, 0, 0, 0, 8]).is_err());
            unwatch(&a).unwrap();
            unwatch(&a).unwrap();
            assert!(check_watched(&a, mac).is_err());
            check_watched(&b, mac).unwrap();
            assert_eq!(gc("other", &|_, _| false).unwrap(), 0);
            assert_eq!(gc("net", &|id, _| id == "b").unwrap(), 0);
            assert_eq!(gc("net", &|_, _| false).unwrap(), 2);
            assert_eq!(ruleset(), "");
            assert_eq!(gc("net", &|_, _| false).unwrap(), 0);
        });
    }
}
