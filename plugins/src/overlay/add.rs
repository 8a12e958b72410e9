//! ADD: everything is opened and checked; then address, link, firewall, each undone when a later one fails.

use super::conf::Conf;
use super::plan::{Plan, host_net, router6};
use super::{detach, notes, remove_link, undo_grant};
use crate::attach::{self, Routers, Settings, Wanted};
use crate::errors::{Coded, from_ovl};
use crate::firewall::{self, owner};
use crate::netns;
use crate::rollback::Rollback;
use crate::rules;
use cni::Error;
use cni::request::Request;
use cni::types::AddResult;
use net::dead::Caller;
use net::firewall::nft::{Content, Kind};
use net::{Batch, Family, Netlink, NewAddr, PortSet, Route, mac_text, sysctl};
use nix::libc;
use ovl_api::ClientError;
use ovl_api::names::ROUTE_PROTOCOL;
use ovl_api::wire::{Attach, Attached};

/// Serves an ADD.
pub fn add(request: &Request) -> Result<AddResult, Error> {
    let conf = Conf::of(request)?;
    let netns = netns::open(request)?;
    let owner = owner(request);
    // What is declared after it is gone when it undoes.
    let mut rollback = Rollback::new();
    let mut host = Netlink::open().coded()?;
    rules::identify(&host);
    let mut container = attach::open_container(&netns, &request.ifname)?;
    let mut firewall = (conf.masquerade != Some(false)).then(|| conf.backend.open()).transpose()?;

    attach::check_name(&mut host, &owner)?;
    let granted = ask(request, &conf, &owner.host_veth())?;
    rollback.on_failure("the addresses", || undo_grant(&conf, &owner, &detach(&conf, request)));
    notes::forget(&conf, &detach(&conf, request))?;
    let plan = Plan::of(&granted, conf.default_route)?;
    let mut result = plan.result();
    result.check_version(request.conf.version)?;

    rollback.on_failure("the link", || {
        remove_link(&owner, Some(&netns))?;
        firewall::finish(None, Caller::Unknown).map(drop)
    });
    let wanted = Wanted {
        owner: &owner,
        netns: &netns,
        sandbox: netns::sandbox(request),
        mac: plan.mac,
        mtu: Some(granted.mtu),
        master: None,
        group: Some(granted.group),
        port: PortSet::default(),
    };
    let pair = attach::make_pair(&mut host, &mut container, &wanted)?;
    let routes = [&plan.to_next_hops[..], &plan.routes].concat();
    let neighbours: Vec<_> = plan.next_hops.iter().map(|hop| (*hop, pair.host_mac)).collect();
    let settings = Settings {
        addresses: &plan.addresses,
        routes: &routes,
        no_prefix_routes: true,
        routers: Routers::Ignored,
        conf: pair.conf,
        neighbours: &neighbours,
        at_once: true,
        ..Settings::default()
    };
    attach::configure(&netns, &mut container, &request.ifname, pair.container, &settings)?;
    // Now that both ends have carrier.
    lead_to_container(&mut host, pair.host, &pair.interfaces[0].name, &plan)?;

    let masquerade = conf.masquerades(Some(&result));
    if let Some(firewall) = firewall.as_mut().filter(|_| masquerade) {
        rollback.on_failure("the masquerading", || {
            rules::forget(request, &[Kind::Link]);
            firewall::unmasquerade(conf.backend, &owner)
        });
        let except = [&conf.exceptions[..], &plan.exceptions].concat();
        // Only nftables has a handle.
        if firewall.handle().is_some() {
            let masqueraded = plan.addresses.clone();
            rules::record(
                request,
                Content::Link { masqueraded, except: except.clone(), bridge: None, forward: false },
                None,
            );
        }
        firewall.masquerade_except(&owner, &plan.addresses, &except).coded()?;
    } else {
        rules::restore();
    }
    if let Some(firewall) = &firewall {
        firewall::release(firewall.as_ref());
    }
    result.interfaces = pair.interfaces.into();
    result.interfaces.iter_mut().for_each(|interface| interface.mtu = Some(granted.mtu));
    if !request.conf.dns.is_empty() {
        result.dns = request.conf.dns.clone();
    }
    attach::settle(&mut container.netlink, &plan.addresses);
    rollback.keep();
    attach::reap("overlay", &mut host);
    Ok(result)
}

/// Asks the agent for addresses.
fn ask(request: &Request, conf: &Conf, veth: &str) -> Result<Attached, Error> {
    let attach = Attach {
        network: conf.network.clone(),
        container: request.container_id.clone(),
        ifname: request.ifname.clone(),
        veth: veth.to_owned(),
        ips: conf.ips.clone(),
        mac: conf.mac.map(mac_text),
        netns: netns::sandbox(request),
    };
    conf.client().attach(&attach).map_err(|error| {
        // It may have granted them all the same.
        if matches!(error, ClientError::TimedOut { .. } | ClientError::Garbled { .. })
            && let Err(error) = notes::leave(conf, &detach(conf, request))
        {
            eprintln!("overlay: {error}");
        }
        from_ovl(&error)
    })
}

/// The host's half: routes and neighbours towards the container, and the next hop of its IPv6 routes. The agent, which has
/// known of the attachment since it granted the addresses, may have been as quick.
fn lead_to_container(host: &mut Netlink, veth: u32, name: &str, plan: &Plan) -> Result<(), Error> {
    match host.run(leading_to_container(veth, name, plan)) {
        // The host has IPv6 switched off for new links.
        Err(error) if error.errno() == Some(libc::EACCES) => {
            sysctl::write_if_there(&sysctl::conf(Family::V6, name, "disable_ipv6"), "0").coded()?;
            host.run(leading_to_container(veth, name, plan)).coded().map(drop)
        }
        done => done.coded().map(drop),
    }
}

fn leading_to_container(veth: u32, name: &str, plan: &Plan) -> Batch {
    let mut batch = Batch::new();
    batch.call(veth, name);
    // The kernel acts on a new carrier in the background; asked for the link, it does so first.
    batch.lookup(name);
    if plan.addresses.iter().any(|address| address.is_ipv6()) {
        batch.addr_replace(veth, &NewAddr::new(router6()));
    }
    for address in &plan.addresses {
        let net = host_net(address.ip());
        batch.neigh_replace(veth, address.ip(), plan.mac);
        batch.route_replace(&Route { oif: Some(veth), protocol: ROUTE_PROTOCOL, ..Route::to(net) });
    }
    batch
}
