//! The store against a model: a map of who holds what, and the released addresses by age.
#![allow(clippy::unwrap_used)] // a failed unwrap is the report of the failed test
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use ipam::{Ask, Attachment, Error, Range, RangeSet, Store};
use proptest::prelude::*;

const FIRST: u8 = 4;
const LAST: u8 = 20;
const GATEWAY: u8 = 9;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 1, 0, last])
}

#[derive(Clone, Debug)]
enum Step {
    Any(u8),
    Requested(u8, u8),
    Release(u8),
    ReleaseAddress(u8),
    Retain(BTreeSet<u8>),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..24_u8;
    prop_oneof![
        6 => who.clone().prop_map(Step::Any),
        2 => (who.clone(), FIRST - 1..LAST + 2).prop_map(|(w, a)| Step::Requested(w, a)),
        4 => who.clone().prop_map(Step::Release),
        1 => (FIRST..=LAST).prop_map(Step::ReleaseAddress),
        1 => prop::collection::btree_set(who, 0..24).prop_map(Step::Retain),
        1 => Just(Step::Reopen),
    ]
}

/// What the store should do, said as simply as possible.
struct Model {
    held: BTreeMap<u8, u8>,
    unused: VecDeque<u8>,
    released: VecDeque<u8>,
    reserved: BTreeSet<u8>,
}

impl Model {
    fn new(reserved: BTreeSet<u8>) -> Model {
        let unused = (FIRST..=LAST).filter(|a| *a != GATEWAY).collect();
        Model { held: BTreeMap::new(), unused, released: VecDeque::new(), reserved }
    }

    fn any(&mut self, who: u8) -> Option<u8> {
        if self.held.contains_key(&who) {
            return None;
        }
        let reserved = &self.reserved;
        let pick = |list: &VecDeque<u8>| list.iter().position(|a| !reserved.contains(a));
        let address = match pick(&self.unused) {
            Some(at) => self.unused.remove(at),
            None => pick(&self.released).and_then(|at| self.released.remove(at)),
        }?;
        self.held.insert(who, address);
        Some(address)
    }

    fn requested(&mut self, who: u8, address: u8) -> Option<u8> {
        let taken = self.held.values().any(|a| *a == address);
        let outside = !(FIRST..=LAST).contains(&address) || address == GATEWAY;
        if self.held.contains_key(&who) || taken || outside {
            return None;
        }
        self.unused.retain(|a| *a != address);
        self.released.retain(|a| *a != address);
        self.held.insert(who, address);
        Some(address)
    }

    fn release(&mut self, who: u8) -> Option<u8> {
        let address = self.held.remove(&who)?;
        self.released.push_back(address);
        Some(address)
    }
}

fn holder(who: u8) -> Attachment {
    Attachment::new(format!("c{who}"), "eth0")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_model_does(
        steps in prop::collection::vec(step(), 1..120),
        reserved in prop::collection::btree_set(FIRST..=LAST, 0..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let range =
            Range::new("10.1.0.0/24".parse().unwrap(), Some(ip(FIRST)), Some(ip(LAST)), Some(ip(GATEWAY))).unwrap();
        let sets = [RangeSet::new(vec![range]).unwrap()];
        let reserved_ips: Vec<IpAddr> = reserved.iter().map(|a| ip(*a)).collect();
        let mut model = Model::new(reserved);
        let mut store = Store::open(dir.path(), "boot").unwrap().store;
        let give = |store: &Store, who: u8, requested: &[IpAddr]| -> Result<IpAddr, Error> {
            let attachment = holder(who);
            let ask = Ask {
                network: "web",
                attachment: &attachment,
                sets: &sets,
                requested,
                reserved: &reserved_ips,
                netns: None,
            };
            Ok(store.allocate(&ask, &|_| true)?[0].address)
        };
        for step in steps {
            match step {
                Step::Any(who) => prop_assert_eq!(give(&store, who, &[]).ok(), model.any(who).map(ip)),
                Step::Requested(who, address) => {
                    let given = give(&store, who, &[ip(address)]).ok();
                    prop_assert_eq!(given, model.requested(who, address).map(ip));
                }
                Step::Release(who) => {
                    let ended = store.release("web", &holder(who)).unwrap();
                    let ended: Vec<IpAddr> = ended.into_iter().map(|l| l.address).collect();
                    prop_assert_eq!(ended, model.release(who).map(ip).into_iter().collect::<Vec<_>>());
                }
                Step::ReleaseAddress(address) => {
                    let ended = store.release_address("web", ip(address)).unwrap();
                    let who = model.held.iter().find(|(_, a)| **a == address).map(|(w, _)| *w);
                    prop_assert_eq!(ended.map(|l| l.attachment), who.map(holder));
                    who.and_then(|w| model.release(w));
                }
                Step::Retain(valid) => {
                    let valid_names: BTreeSet<String> = valid.iter().map(|w| holder(*w).container).collect();
                    let ended = store.retain("web", &|a| valid_names.contains(&a.container)).unwrap();
                    let mut stale: Vec<(u8, u8)> =
                        model.held.iter().filter(|(w, _)| !valid.contains(w)).map(|(w, a)| (*a, *w)).collect();
                    stale.sort_unstable();
                    prop_assert_eq!(ended.len(), stale.len());
                    for (_, who) in stale {
                        model.release(who);
                    }
                }
                Step::Reopen => {
                    drop(store);
                    store = Store::open(dir.path(), "boot").unwrap().store;
                }
            }
            store.check().unwrap();
            let held: BTreeSet<IpAddr> = store.leases(None).unwrap().into_iter().map(|l| l.address).collect();
            prop_assert_eq!(&held, &model.held.values().map(|a| ip(*a)).collect());
            let free = model.unused.len() + model.released.len() > 0;
            prop_assert_eq!(store.available("web", &sets).unwrap(), free);
        }
    }
}
