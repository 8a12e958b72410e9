//! Results survive the way through a version and back, as far as that version can say them.

use cni::Version;
use cni::types::{AddResult, Dns, Interface, IpConfig, Route};
use ipnetwork::IpNetwork;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from(bits))),
        any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from(bits))),
    ]
}

fn network() -> impl Strategy<Value = IpNetwork> {
    (address(), 0..=128u8).prop_map(|(address, prefix)| {
        let prefix = if address.is_ipv4() { prefix % 33 } else { prefix };
        IpNetwork::new(address, prefix).unwrap()
    })
}

fn interface() -> impl Strategy<Value = Interface> {
    let text = || of("[a-z0-9:/.]{1,12}");
    ("[a-z]{1,15}", text(), of(1..u32::MAX), text(), text(), text()).prop_map(
        |(name, mac, mtu, sandbox, socket_path, pci_id)| Interface {
            name,
            mac,
            mtu,
            sandbox,
            socket_path,
            pci_id,
        },
    )
}

fn ip() -> impl Strategy<Value = IpConfig> {
    (of(0..9usize), network(), of(address())).prop_map(|(interface, address, gateway)| IpConfig {
        interface,
        address,
        gateway,
    })
}

fn route() -> impl Strategy<Value = Route> {
    let number = || of(1..u32::MAX);
    (network(), of(address()), number(), number(), number(), of(any::<u32>()), of(any::<u8>())).prop_map(
        |(dst, gw, mtu, advmss, priority, table, scope)| Route {
            dst,
            gw,
            mtu,
            advmss,
            priority,
            table,
            scope,
        },
    )
}

fn dns() -> impl Strategy<Value = Dns> {
    let texts = || vec("[a-z.:0-9]{1,9}", 0..3);
    (texts(), of("[a-z.]{1,9}"), texts(), texts()).prop_map(|(nameservers, domain, search, options)| Dns {
        nameservers,
        domain,
        search,
        options,
    })
}

fn result() -> impl Strategy<Value = AddResult> {
    (vec(interface(), 0..4), vec(ip(), 0..5), vec(route(), 0..5), dns())
        .prop_map(|(interfaces, ips, routes, dns)| AddResult { interfaces, ips, routes, dns })
}

fn version() -> impl Strategy<Value = Version> {
    proptest::sample::select(Version::ALL)
}

/// What a version can say of a result; `None` when it cannot say it at all.
fn sayable(mut result: AddResult, version: Version) -> Option<AddResult> {
    if version < Version::V1_1_0 {
        for interface in &mut result.interfaces {
            (interface.mtu, interface.socket_path, interface.pci_id) = (None, None, None);
        }
    }
    if version < Version::V0_3_0 {
        let mut families = Vec::new();
        let mut routes = Vec::new();
        for ipv4 in [true, false] {
            let Some(first) = result.ips.iter().find(|ip| ip.address.is_ipv4() == ipv4) else { continue };
            families.push(IpConfig { interface: None, ..first.clone() });
            routes.extend(result.routes.iter().filter(|route| route.dst.is_ipv4() == ipv4).cloned());
        }
        if families.is_empty() {
            return None;
        }
        result = AddResult { interfaces: Vec::new(), ips: families, routes, dns: result.dns };
    }
    Some(result)
}

proptest! {
    #[test]
    fn a_result_keeps_what_the_version_can_say(result in result(), version in version()) {
        let printed = result.to_json(version);
        let read = printed.ok().map(|printed| AddResult::from_json(&printed).unwrap());
        prop_assert_eq!(read, sayable(result, version));
    }

    #[test]
    fn the_newest_version_loses_nothing(result in result()) {
        let printed = result.to_json(Version::CURRENT).unwrap();
        prop_assert_eq!(AddResult::from_json(&printed).unwrap(), result);
    }

    #[test]
    fn a_second_conversion_changes_nothing(result in result(), version in version()) {
        if let Ok(printed) = result.to_json(version) {
            let again = AddResult::from_json(&printed).unwrap().to_json(version).unwrap();
            prop_assert_eq!(again.to_string(), printed.to_string());
        }
    }

    #[test]
    fn down_in_two_steps_is_as_down_in_one(result in result(), one in version(), two in version()) {
        let (higher, lower) = (one.max(two), one.min(two));
        if let (Ok(direct), Ok(first)) = (result.to_json(lower), result.to_json(higher)) {
            let stepwise = AddResult::from_json(&first).unwrap().to_json(lower).unwrap();
            prop_assert_eq!(stepwise.to_string(), direct.to_string());
        }
    }
}
