//! portmap: ports of the host that lead to the container. It runs after the plugin that made the interface, and passes
//! that one's result on.

mod conditions;
mod conf;
mod local;

use crate::errors::{Coded, Failures};
use crate::firewall::{self, owner};
use crate::rollback::Rollback;
use crate::rules;
use cni::plugin::Plugin;
use cni::request::Request;
use cni::types::AddResult;
use cni::{Error, code};
use conf::{Conf, container_addresses, usable};
use local::Localnet;
use net::conntrack::{self, UdpFlow};
use net::dead::Caller;
use net::firewall::nft::Content;
use net::firewall::{PortMapping, Protocol, PublishOptions, What};

/// The plugin.
pub struct Portmap;

/// Forgets the UDP connections of these ports: while packets flow, the kernel would go on to send them where the port led
/// before, which after an ADD is the host itself and after a DEL a container that is gone.
fn forget_udp(ports: &[PortMapping]) -> Result<(), Error> {
    let udp = ports.iter().filter(|port| port.protocol == Protocol::Udp);
    let flow = |port: &PortMapping| UdpFlow::ToPort {
        ip: port.host_ip.filter(|ip| !ip.is_unspecified()),
        port: port.host_port,
    };
    flush(udp.map(flow).collect())
}

fn flush(flows: Vec<UdpFlow>) -> Result<(), Error> {
    if flows.is_empty() {
        return Ok(());
    }
    match conntrack::flush_udp(&flows) {
        // A kernel that shows no connections remembers none that could be forgotten.
        Err(net::Error::Unsupported(_)) => Ok(()),
        flushed => flushed.coded().map(drop),
    }
}

impl Plugin for Portmap {
    fn name(&self) -> &'static str {
        "portmap"
    }

    fn about(&self) -> String {
        crate::about("portmap")
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let conf = Conf::of(request)?;
        let result = request.conf.require_prev_result()?.clone();
        if conf.ports.is_empty() {
            rules::restore();
            rules::note_portless(request);
            return Ok(result);
        }
        let addresses = container_addresses(&result);
        let ports = usable(&conf.ports, &addresses);
        if ports.is_empty() {
            let msg = "prevResult has no address of the container that the ports could lead to";
            return Err(Error::new(code::INVALID_CONFIG, msg));
        }
        let owner = owner(request);
        let mut firewall = conf.backend.open()?;
        let link = if conf.options.snat { Localnet::towards(&addresses)? } else { None };
        let mut options = conf.options.clone();
        options.localnet = link.as_ref().and_then(Localnet::to_record);
        let mut rollback = Rollback::new();
        rollback.on_failure("the published ports", || firewall::unpublish(conf.backend, request, &ports));
        let record = |options: &PublishOptions| {
            let PublishOptions { snat, masq_all, ref localnet, .. } = *options;
            let content =
                Content::Ports { addresses: addresses.clone(), ports: ports.clone(), snat, masq_all };
            rules::record(request, content, localnet.as_deref());
        };
        // Only nftables has one.
        let is_recorded = firewall.handle().is_some();
        if is_recorded {
            record(&options);
        }
        firewall.publish(&owner, &addresses, &ports, &options).coded()?;
        if let Some(mut link) = link {
            // A DEL of the last port may have cleared it since the first look.
            if options.localnet.is_none() {
                link.refresh()?;
                options.localnet = link.to_record();
                if options.localnet.is_some() {
                    if is_recorded {
                        record(&options);
                    }
                    firewall.publish(&owner, &addresses, &ports, &options).coded()?;
                }
            }
            // A DEL that clears it from now on finds this port, and sets it again. iptables' has no such look.
            if !(is_recorded && link.is_set()) {
                link.allow()?;
            }
        }
        forget_udp(&ports)?;
        firewall::release(firewall.as_ref());
        rollback.keep();
        Ok(result)
    }

    /// It must work without `prevResult` and without the ports: both only make it quicker.
    fn del(&self, request: &Request) -> Result<(), Error> {
        let conf = Conf::of(request);
        if let Err(error) = &conf {
            eprintln!("portmap: DEL goes on by what the firewall has: {error}");
        }
        let (backend, ports) = match conf {
            Ok(conf) => (Some(conf.backend), conf.ports),
            Err(_) => (None, Vec::new()),
        };
        let mut failures = Failures::default();
        let firewalls = firewall::unpublish_all(request, backend, &ports, &mut failures);
        if !firewalls.is_empty() {
            failures.note(firewall::finish(firewalls.iter().map(AsRef::as_ref), Caller::Unknown));
        }
        failures.note(firewall::forget_reference(request, What::Ports));
        if ports.is_empty() {
            let addresses = request.conf.prev_result.as_ref().map(container_addresses).unwrap_or_default();
            failures
                .note(flush(addresses.iter().map(|address| UdpFlow::ToContainer(address.ip())).collect()));
        } else {
            failures.note(forget_udp(&ports));
        }
        failures.outcome()
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let conf = Conf::of(request)?;
        let addresses = container_addresses(request.conf.require_prev_result()?);
        let ports = usable(&conf.ports, &addresses);
        if ports.is_empty() {
            return Ok(());
        }
        conf.backend.open()?.check_publish(&owner(request), &addresses, &ports, &conf.options).coded()
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let conf = Conf::of(request);
        let swept = firewall::gc(request, conf.as_ref().ok().map(|conf| conf.backend), What::Ports);
        conf.map(drop).and(swept)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let opened = Conf::of(request)?.backend.open();
        opened.map(drop).map_err(|error| Error { code: code::NOT_AVAILABLE, ..error })
    }
}
