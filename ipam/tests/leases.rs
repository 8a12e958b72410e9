//! What the store promises about leases, one handle at a time.
#![allow(clippy::unwrap_used)] // a failed unwrap is the report of the failed test
use std::net::IpAddr;

use ipam::{Allocated, Ask, Attachment, Error, Lease, Range, RangeSet, Store};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn set(subnet: &str, start: Option<&str>, end: Option<&str>) -> RangeSet {
    let range = Range::new(subnet.parse().unwrap(), start.map(ip), end.map(ip), None).unwrap();
    RangeSet::new(vec![range]).unwrap()
}

fn holder(name: &str) -> Attachment {
    Attachment::new(name, "eth0")
}

/// A store of its own in a directory of its own, with one network's ranges.
struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
    sets: Vec<RangeSet>,
    reserved: Vec<IpAddr>,
}

impl Bench {
    fn new(sets: Vec<RangeSet>) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let opened = Store::open(&dir.path().join("ipam"), "boot-1").unwrap();
        assert_eq!(opened.notes, Vec::<String>::new());
        Bench { _dir: dir, store: opened.store, sets, reserved: Vec::new() }
    }

    fn ask(&self, who: &str, requested: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
        self.ask_when(who, requested, &|_| true)
    }

    fn ask_when(
        &self,
        who: &str,
        requested: &[IpAddr],
        alive: &dyn Fn(&Lease) -> bool,
    ) -> Result<Vec<IpAddr>, Error> {
        Ok(self.allocate(who, requested, alive)?.into_iter().map(|given| given.address).collect())
    }

    fn allocate(
        &self,
        who: &str,
        requested: &[IpAddr],
        alive: &dyn Fn(&Lease) -> bool,
    ) -> Result<Vec<Allocated>, Error> {
        let attachment = holder(who);
        let ask = Ask {
            network: "web",
            attachment: &attachment,
            sets: &self.sets,
            requested,
            reserved: &self.reserved,
            netns: Some("/run/netns/x"),
        };
        let given = self.store.allocate(&ask, alive)?;
        self.store.check().unwrap();
        Ok(given)
    }

    /// Whether the address that is given is one that was never given before.
    fn is_new(&self, who: &str, requested: &[IpAddr]) -> bool {
        self.allocate(who, requested, &|_| true).unwrap()[0].is_new
    }

    fn release(&self, who: &str) -> usize {
        let count = self.store.release("web", &holder(who)).unwrap().len();
        self.store.check().unwrap();
        count
    }
}

#[test]
fn addresses_come_in_order_and_never_the_gateway() {
    let bench = Bench::new(vec![set("10.1.0.0/29", None, None)]);
    let given: Vec<IpAddr> = (0..5).map(|i| bench.ask(&format!("c{i}"), &[]).unwrap()[0]).collect();
    assert_eq!(given, ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"].map(ip));
    let error = bench.ask("c6", &[]).unwrap_err();
    assert_eq!(error.to_string(), "network web: no free address in 10.1.0.1-10.1.0.6");
}

#[test]
fn the_oldest_released_address_comes_after_the_never_used_ones() {
    let bench = Bench::new(vec![set("10.1.0.0/29", None, None)]);
    for who in ["a", "b", "c"] {
        bench.ask(who, &[]).unwrap();
    }
    assert_eq!((bench.release("b"), bench.release("a"), bench.release("a")), (1, 1, 0));
    let given: Vec<IpAddr> = (0..4).map(|i| bench.ask(&format!("d{i}"), &[]).unwrap()[0]).collect();
    assert_eq!(given, ["10.1.0.5", "10.1.0.6", "10.1.0.3", "10.1.0.2"].map(ip));
}

#[test]
fn a_requested_address_is_given_or_the_error_says_why_not() {
    let bench = Bench::new(vec![set("10.1.0.0/24", None, None), set("fd00::/64", None, None)]);
    let both = [ip("fd00::77"), ip("10.1.0.9")];
    assert_eq!(bench.ask("a", &both).unwrap(), [ip("10.1.0.9"), ip("fd00::77")]);
    let message = |who: &str, requested: &[IpAddr]| bench.ask(who, requested).unwrap_err().to_string();
    assert_eq!(message("b", &[ip("10.1.0.9")]), "network web: 10.1.0.9 is held by container a (eth0)");
    assert_eq!(message("b", &[ip("10.1.0.1")]), "network web: 10.1.0.1 is the gateway of 10.1.0.0/24");
    assert_eq!(
        message("b", &[ip("10.2.0.1")]),
        "network web: 10.2.0.1 is not in any of its ranges (10.1.0.1-10.1.0.254, fd00::1-fd00::ffff:ffff:ffff:ffff)"
    );
    assert_eq!(
        message("b", &[ip("10.1.0.3"), ip("10.1.0.4")]),
        "network web: 10.1.0.4 cannot be given too: its ranges (10.1.0.1-10.1.0.254) give one address each time"
    );
    // Nothing of a failed request stays: the next one begins at the start.
    assert_eq!(bench.ask("b", &[]).unwrap(), [ip("10.1.0.2"), ip("fd00::2")]);
}

#[test]
fn a_second_request_of_the_same_attachment_is_refused() {
    let bench = Bench::new(vec![set("10.1.0.0/24", None, None)]);
    bench.ask("a", &[]).unwrap();
    let error = bench.ask("a", &[]).unwrap_err();
    assert_eq!(error.to_string(), "network web: container a (eth0) already holds 10.1.0.2; release it first");
    assert!(matches!(error, Error::Duplicate { .. }));
}

#[test]
fn reserved_addresses_are_given_only_on_request_and_again_when_no_longer_reserved() {
    let mut bench = Bench::new(vec![set("10.1.0.0/29", None, None)]);
    bench.reserved = vec![ip("10.1.0.2"), ip("10.1.0.4")];
    assert_eq!(bench.ask("a", &[]).unwrap(), [ip("10.1.0.3")]);
    assert_eq!(bench.ask("b", &[ip("10.1.0.4")]).unwrap(), [ip("10.1.0.4")]);
    assert_eq!(bench.ask("c", &[]).unwrap(), [ip("10.1.0.5")]);
    assert_eq!(bench.ask("d", &[]).unwrap(), [ip("10.1.0.6")]);
    assert!(matches!(bench.ask("e", &[]), Err(Error::Full { .. })));
    bench.reserved.clear();
    assert_eq!(bench.ask("e", &[]).unwrap(), [ip("10.1.0.2")]);
}

#[test]
fn edited_ranges_lose_no_address_and_give_none_outside() {
    let mut bench = Bench::new(vec![set("10.1.0.0/24", Some("10.1.0.10"), Some("10.1.0.13"))]);
    for who in ["a", "b", "c", "d"] {
        bench.ask(who, &[]).unwrap();
    }
    for who in ["d", "c", "b"] {
        bench.release(who);
    }
    // Wider: the new ones first, then those of the old range in the order of their release.
    bench.sets = vec![set("10.1.0.0/24", Some("10.1.0.10"), Some("10.1.0.15"))];
    let given: Vec<IpAddr> = (0..5).map(|i| bench.ask(&format!("w{i}"), &[]).unwrap()[0]).collect();
    assert_eq!(given, ["10.1.0.14", "10.1.0.15", "10.1.0.13", "10.1.0.12", "10.1.0.11"].map(ip));
    for i in 0..5 {
        bench.release(&format!("w{i}"));
    }
    // Narrower: only what it still spans, though the whole list was released to the wider range.
    bench.sets = vec![set("10.1.0.0/24", Some("10.1.0.14"), Some("10.1.0.15"))];
    assert_eq!(bench.ask("x", &[]).unwrap(), [ip("10.1.0.14")]);
    assert_eq!(bench.ask("y", &[]).unwrap(), [ip("10.1.0.15")]);
    assert!(matches!(bench.ask("z", &[]), Err(Error::Full { .. })));
    // Wide again: what was released to the narrow one in the meantime is found, too.
    bench.release("x");
    bench.sets = vec![set("10.1.0.0/24", Some("10.1.0.10"), Some("10.1.0.15"))];
    let mut given: Vec<IpAddr> = (0..4).map(|i| bench.ask(&format!("v{i}"), &[]).unwrap()[0]).collect();
    given.sort();
    assert_eq!(given, ["10.1.0.11", "10.1.0.12", "10.1.0.13", "10.1.0.14"].map(ip));
    assert!(matches!(bench.ask("u", &[]), Err(Error::Full { .. })));
}

#[test]
fn several_ranges_of_a_set_are_used_up_one_after_the_other() {
    let range = |start, end| {
        Range::new("10.1.0.0/24".parse().unwrap(), Some(ip(start)), Some(ip(end)), None).unwrap()
    };
    let set = RangeSet::new(vec![range("10.1.0.20", "10.1.0.21"), range("10.1.0.5", "10.1.0.6")]).unwrap();
    let bench = Bench::new(vec![set]);
    let given: Vec<IpAddr> = (0..4).map(|i| bench.ask(&format!("c{i}"), &[]).unwrap()[0]).collect();
    assert_eq!(given, ["10.1.0.20", "10.1.0.21", "10.1.0.5", "10.1.0.6"].map(ip));
    bench.release("c2");
    bench.release("c1");
    assert_eq!(bench.ask("d", &[]).unwrap(), [ip("10.1.0.5")]);
    assert_eq!(bench.ask("e", &[]).unwrap(), [ip("10.1.0.21")]);
}

#[test]
fn a_range_can_end_at_the_last_address_there_is() {
    let bench = Bench::new(vec![
        set("255.255.255.252/30", None, Some("255.255.255.255")),
        set("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126", None, None),
    ]);
    assert_eq!(bench.ask("a", &[]).unwrap()[0], ip("255.255.255.254"));
    assert_eq!(bench.ask("b", &[]).unwrap()[1], ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
    assert!(matches!(bench.ask("c", &[]), Err(Error::Full { .. })));
}

#[test]
fn leases_of_an_earlier_boot_are_replaced_or_reclaimed_when_nobody_lives_there() {
    let dir = tempfile::tempdir().unwrap();
    let sets = vec![set("10.1.0.0/29", Some("10.1.0.2"), Some("10.1.0.4"))];
    let open = |boot: &str| {
        let store = Store::open(dir.path(), boot).unwrap().store;
        Bench { _dir: tempfile::tempdir().unwrap(), store, sets: sets.clone(), reserved: Vec::new() }
    };
    let first = open("boot-1");
    for who in ["a", "b", "c"] {
        first.ask(who, &[]).unwrap();
    }
    drop(first);
    let second = open("boot-2");
    assert!(second.store.available("web", &sets).unwrap());
    // The same attachment again: what it had before the reboot is void.
    assert_eq!(second.ask("b", &[]).unwrap(), [ip("10.1.0.3")]);
    // Full, and all the others alive.
    assert!(matches!(second.ask("d", &[]), Err(Error::Full { .. })));
    assert!(matches!(second.ask("d", &[ip("10.1.0.2")]), Err(Error::Taken { .. })));
    let gone = |lease: &Lease| lease.attachment.container != "a";
    assert_eq!(second.ask_when("d", &[ip("10.1.0.2")], &gone).unwrap(), [ip("10.1.0.2")]);
    let dead = |lease: &Lease| lease.netns.as_deref() != Some("/run/netns/x");
    assert_eq!(second.ask_when("e", &[], &dead).unwrap(), [ip("10.1.0.4")]);
    assert!(matches!(second.ask_when("f", &[], &dead), Err(Error::Full { .. })));
    assert!(!second.store.available("web", &sets).unwrap());
}

#[test]
fn questions_find_what_was_given() {
    let bench = Bench::new(vec![set("10.1.0.0/24", None, None), set("fd00::/64", None, None)]);
    bench.ask("a", &[]).unwrap();
    bench.ask("b", &[]).unwrap();
    let store = &bench.store;
    let found = store.find("web", &holder("a")).unwrap();
    assert_eq!(found.iter().map(|l| l.address).collect::<Vec<_>>(), [ip("10.1.0.2"), ip("fd00::2")]);
    assert_eq!(found[0].boot, "boot-1");
    assert_eq!(found[0].netns.as_deref(), Some("/run/netns/x"));
    assert_eq!(store.leases(None).unwrap().len(), 4);
    assert_eq!(store.leases(Some("none")).unwrap(), []);
    assert_eq!(store.holder("web", ip("10.1.0.3")).unwrap().unwrap().attachment, holder("b"));
    assert_eq!(store.holder("web", ip("10.1.0.4")).unwrap(), None);
    assert_eq!(store.find("web", &Attachment::new("a", "eth1")).unwrap(), []);
    assert_eq!(store.find("other", &holder("a")).unwrap(), []);
    assert_eq!(store.release_address("web", ip("10.1.0.2")).unwrap().unwrap().attachment, holder("a"));
    assert_eq!(store.release_address("web", ip("10.1.0.2")).unwrap(), None);
    let ended = store.retain("web", &|a| a.container == "b").unwrap();
    assert_eq!(ended.iter().map(|l| l.address).collect::<Vec<_>>(), [ip("fd00::2")]);
    assert!(!store.is_empty().unwrap());
    assert_eq!(store.forget_network("web").unwrap().len(), 2);
    assert!(store.is_empty().unwrap());
    store.check().unwrap();
}

#[test]
fn long_names_are_kept_apart() {
    let bench = Bench::new(vec![set("10.1.0.0/24", None, None)]);
    let network = "n".repeat(255);
    let long = |end: &str| Attachment::new("c".repeat(600) + end, "eth0");
    let mut given = Vec::new();
    for attachment in [long("1"), long("2")] {
        let ask = Ask {
            network: &network,
            attachment: &attachment,
            sets: &bench.sets,
            requested: &[],
            reserved: &[],
            netns: None,
        };
        given.extend(bench.store.allocate(&ask, &|_| true).unwrap());
    }
    assert_ne!(given[0].address, given[1].address);
    assert_eq!(bench.store.find(&network, &long("2")).unwrap()[0].address, given[1].address);
    assert_eq!(bench.store.release(&network, &long("1")).unwrap().len(), 1);
    assert_eq!(bench.store.leases(Some(&network)).unwrap().len(), 1);
    bench.store.check().unwrap();
    let name = |n: &str| bench.store.import(n, "/nonexistent".as_ref()).unwrap_err().to_string();
    assert_eq!(name("../x"), "network \"../x\" cannot be used: it may not begin with . or contain / or NUL");
    assert!(name(&"n".repeat(256)).ends_with("it is longer than 255 bytes"));
}

#[test]
fn rebuilt_leases_are_held_and_never_given_twice() {
    let bench = Bench::new(vec![set("10.1.0.0/29", None, None)]);
    let lease = |address: &str, who: &str| Lease {
        network: "web".to_owned(),
        address: ip(address),
        attachment: holder(who),
        boot: "boot-1".to_owned(),
        time: std::time::SystemTime::now(),
        netns: None,
    };
    let known = [lease("10.1.0.2", "a"), lease("10.1.0.4", "b"), lease("10.1.0.4", "c")];
    assert_eq!(bench.store.rebuild(known).unwrap(), 2);
    bench.store.check().unwrap();
    assert_eq!(bench.ask("d", &[]).unwrap(), [ip("10.1.0.3")]);
    assert_eq!(bench.release("a"), 1);
    assert_eq!(bench.ask("e", &[]).unwrap(), [ip("10.1.0.5")]);
    assert_eq!(bench.ask("f", &[]).unwrap(), [ip("10.1.0.6")]);
    // Released to no range's list, and still not lost.
    assert_eq!(bench.ask("g", &[]).unwrap(), [ip("10.1.0.2")]);
}

#[test]
fn address_that_had_a_holder_is_not_new() {
    let store = Bench::new(vec![set("10.1.0.0/24", Some("10.1.0.5"), Some("10.1.0.7"))]);
    assert!(store.is_new("a", &[]));
    assert!(store.is_new("b", &[]));
    store.release("a");
    assert!(!store.is_new("c", &[ip("10.1.0.5")]));
    store.release("c");
    assert!(store.is_new("d", &[]));
    assert!(!store.is_new("e", &[]), "the range begins again");
    // Who asks for an address may know that it had a holder elsewhere.
    store.release("d");
    store.release("e");
    assert!(!store.is_new("f", &[ip("10.1.0.7")]));
}
