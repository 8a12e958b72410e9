//! What the store promises about leases, one handle at a time.
use std::net::IpAddr;

use ipam::{Ask, Attachment, Error, Lease, Range, RangeSet, Store};

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
        Ok(given.into_iter().map(|a| a.address).collect())
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
