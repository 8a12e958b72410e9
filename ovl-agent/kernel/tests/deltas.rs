//! Deltas against the whole, with a model of the kernel.
#![allow(clippy::unwrap_used)] // a failed unwrap in a test's helper is the failure report, too

mod common;

use common::model::Kernel;
use common::*;
use ipnetwork::IpNetwork;
use ovl_api::model::{Delta, Encap, Network, Subnet, View};
use ovl_kernel::Underlay;
use ovl_kernel::model::Model;
use ovl_kernel::plan::*;
use ovl_kernel::wanted::Scene;
use proptest::prelude::*;
use proptest::sample::select;

/// Hosts `a` (this one) to `e`; some of another family, one at this host's own address.
fn vteps() -> impl Strategy<Value = &'static str> {
    select(vec!["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::3"])
}

fn networks() -> [Network; 2] {
    let second = Network {
        id: "ba9876543210".into(),
        name: "db".into(),
        vni: 4712,
        subnets: vec![Subnet { subnet: prefix("10.43.0.0/16"), gateway: ip("10.43.0.1"), block: 26 }],
        ..network()
    };
    [network(), second]
}

fn blocks() -> Vec<(String, IpNetwork)> {
    let of = |id: &str, blocks: &[&str]| -> Vec<_> {
        blocks.iter().map(|block| (id.to_owned(), prefix(block))).collect()
    };
    let first =
        ["10.42.0.0/26", "10.42.0.64/26", "10.42.0.70/32", "fd42::/122", "fd42::40/122", "fd42::7/128"];
    [of(ID, &first), of("ba9876543210", &["10.43.0.0/26", "10.43.0.64/26", "10.43.0.1/32"])].concat()
}

/// One change of a view, and what a delta says of it.
#[derive(Debug, Clone)]
enum Change {
    Owner(usize, Option<&'static str>),
    Host(&'static str, Option<(&'static str, bool)>),
    Endpoint(usize, bool),
    Network(usize, Option<Encap>),
}

fn change() -> impl Strategy<Value = Change> {
    let who = || select(vec!["a", "b", "c", "d"]);
    prop_oneof![
        6 => (0..blocks().len(), prop::option::weighted(0.8, who())).prop_map(|(at, to)| Change::Owner(at, to)),
        3 => (select(vec!["b", "c", "d"]), prop::option::weighted(0.8, (vteps(), any::<bool>())))
            .prop_map(|(name, to)| Change::Host(name, to)),
        2 => (0..2usize, any::<bool>()).prop_map(|(at, to)| Change::Endpoint(at, to)),
        1 => (0..2usize, prop::option::weighted(0.8, select(vec![Encap::Vxlan, Encap::Direct])))
            .prop_map(|(at, to)| Change::Network(at, to)),
    ]
}

fn apply_to(view: &mut View, delta: &mut Delta, change: &Change) {
    match change {
        Change::Owner(at, to) => {
            let key = blocks()[*at].clone();
            match to {
                Some(owner) => drop(view.owners.insert(key.clone(), (*owner).into())),
                None => drop(view.owners.remove(&key)),
            }
            delta.blocks.insert(key);
        }
        Change::Host(name, to) => {
            match to {
                Some((vtep, removed)) => {
                    let host =
                        ovl_api::model::Host { removed: *removed, ..host(name, vtep, Some("192.0.2.0/24")) };
                    view.hosts.insert((*name).into(), host);
                }
                None => drop(view.hosts.remove(*name)),
            }
            delta.hosts.insert((*name).into());
        }
        Change::Endpoint(at, to) => {
            let network = &networks()[*at];
            let address = if *at == 0 { "10.42.0.5" } else { "10.43.0.5" };
            let mut of = endpoint(&format!("one{at}"), &[address]);
            of.network = network.id.clone();
            if *to {
                view.endpoints.insert(of.veth.clone(), of);
            } else {
                view.endpoints.remove(&of.veth);
            }
            delta.networks.insert(network.id.clone());
        }
        Change::Network(at, to) => {
            let network = networks()[*at].clone();
            delta.networks.insert(network.id.clone());
            match to {
                Some(encap) => {
                    drop(view.networks.insert(network.id.clone(), Network { encap: *encap, ..network }))
                }
                None => drop(view.networks.remove(&network.id)),
            }
        }
    }
}

proptest! {
    /// Whatever changes: following the deltas leads where looking at everything leads.
    #[test]
    fn deltas_lead_where_the_whole_leads(rounds in prop::collection::vec(prop::collection::vec(change(), 1..5), 1..12)) {
        let me = host("a", "192.0.2.1", Some("192.0.2.0/24"));
        let mut view = view("a", &[me], &networks(), &[], &[]);
        let underlay = Underlay { link: 2, name: "eth0".into(), mtu: 1500 };
        let mut model = Model::of(&view).unwrap();
        let mut kernel = Kernel::default();
        kernel.0.links.insert("eth0".into(), Shown { up: true, ..Shown::default() });
        let mut warnings = std::collections::BTreeSet::new();
        for changes in &rounds {
            let mut delta = Delta::default();
            changes.iter().for_each(|change| apply_to(&mut view, &mut delta, change));
            let touched = model.touched(&view, &delta).unwrap();
            let old = Scene { model: &model, underlay: &underlay }.pieces(&touched);
            let mut remembered = Dumped::showing(&old.objects);
            for (dev, link) in &kernel.0.links {
                remembered.links.entry(dev.clone()).or_insert(Shown { up: link.up, ..Shown::default() });
            }
            model.update(&view, &delta, &touched);
            let new = Scene { model: &model, underlay: &underlay }.pieces(&touched);
            kernel.does_all(&plan(&new.objects, &remembered));
            warnings.retain(|warning| !old.warnings.contains(warning));
            warnings.extend(new.warnings);

            let fresh = Model::of(&view).unwrap();
            prop_assert_eq!(&model.endpoints, &fresh.endpoints);
            let whole = Scene { model: &fresh, underlay: &underlay };
            prop_assert_eq!(whole.rules(), Scene { model: &model, underlay: &underlay }.rules());
            let whole = whole.everything();
            prop_assert_eq!(plan(&whole.objects, &kernel.0), vec![]);
            prop_assert_eq!(&warnings, &whole.warnings);
        }
    }
}
