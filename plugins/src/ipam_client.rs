//! A plugin's IPAM: Weft's own in process, any other by executing it as the specification says (section 4).

use crate::errors::Failures;
use crate::{hostlocal, static_ipam};
use cni::request::Request;
use cni::types::AddResult;
use cni::{Error, delegate};

/// The arguments that Weft's IPAM plugins know, and those of the plugins that call them.
const KNOWN_ARGS: [&str; 3] = ["IP", "GATEWAY", "MAC"];

/// Plugins of Weft and of the reference that give no addresses. Executed as an IPAM plugin they would make interfaces, and one
/// that executes its IPAM in turn would execute itself without end.
const NOT_IPAM: [&str; 20] = [
    "bandwidth",
    "bridge",
    "container",
    "dummy",
    "firewall",
    "flannel",
    "host",
    "host-device",
    "ipvlan",
    "loopback",
    "macvlan",
    "multus",
    "none",
    "overlay",
    "portmap",
    "ptp",
    "sbr",
    "tap",
    "tuning",
    "vlan",
];

/// The type of a foreign IPAM plugin, checked.
///
/// # Errors
/// Code 7 for what is no file name, and for a plugin that gives no addresses.
fn foreign(request: &Request) -> Result<&str, Error> {
    let kind = request.conf.ipam_kind().unwrap_or_default();
    cni::validate::kind(kind)?;
    if NOT_IPAM.contains(&kind) || kind == request.conf.kind {
        let expected = "an IPAM plugin, as \"host-local\", \"static\" or \"dhcp\"";
        return Err(Error::config("ipam.type", format!("{kind:?}"), expected));
    }
    Ok(kind)
}

/// The IPAM that a configuration asks for, its part of the configuration checked.
pub enum Ipam<'r> {
    /// None: layer 2 alone.
    None,
    /// host-local, in process.
    HostLocal(Box<hostlocal::Conf>),
    /// static, in process.
    Static(static_ipam::Conf),
    /// Another plugin, by its type.
    Foreign(&'r str),
}

/// What an IPAM gave.
#[derive(Debug, Default)]
pub struct Given {
    /// Its result.
    pub result: AddResult,
    /// Whether no attachment had these addresses before, as far as the IPAM knows.
    pub is_new: bool,
}

/// The request as a delegate gets it: without our own argument, which it would refuse.
fn forwarded(request: &Request) -> Request {
    let mut forwarded = request.clone();
    if !request.args.ignore_unknown() {
        forwarded.args = request.args.without(&["MAC"]);
    }
    forwarded
}

impl<'r> Ipam<'r> {
    /// Reads the configuration for ADD, CHECK and STATUS; nothing is changed.
    ///
    /// # Errors
    /// Codes 4 and 7 for what is wrong in the arguments and in the configuration.
    pub fn of(request: &'r Request) -> Result<Ipam<'r>, Error> {
        let Some(kind) = request.conf.ipam_kind() else {
            request.args.only(&["MAC"])?;
            return Ok(Ipam::None);
        };
        Ok(match kind {
            "host-local" => {
                request.args.only(&KNOWN_ARGS)?;
                Ipam::HostLocal(Box::new(hostlocal::Conf::of(request)?))
            }
            "static" => {
                request.args.only(&KNOWN_ARGS)?;
                Ipam::Static(static_ipam::Conf::of(request)?)
            }
            _ => Ipam::Foreign(foreign(request)?),
        })
    }

    /// Whether there is any.
    pub fn is_some(&self) -> bool {
        !matches!(self, Ipam::None)
    }

    /// Whether it may use the container's interface, as DHCP does: it is asked once that is there.
    pub fn needs_link(&self) -> bool {
        matches!(self, Ipam::Foreign(_))
    }

    /// Asks for addresses. When a foreign plugin fails, its DEL is called before this returns.
    pub fn add(&self, request: &Request) -> Result<Given, Error> {
        let result = match self {
            Ipam::HostLocal(conf) => return hostlocal::add(request, conf),
            Ipam::None => AddResult::default(),
            Ipam::Static(conf) => conf.result(),
            Ipam::Foreign(kind) => {
                let request = forwarded(request);
                delegate::add(&request, kind).inspect_err(|_| {
                    if let Err(error) = delegate::del(&request, kind) {
                        eprintln!("{kind} DEL after its failed ADD: {error}");
                    }
                })?
            }
        };
        Ok(Given { result, is_new: false })
    }

    /// Are the addresses still held?
    pub fn check(&self, request: &Request) -> Result<(), Error> {
        match self {
            Ipam::None => Ok(()),
            Ipam::HostLocal(conf) => hostlocal::check(request, conf),
            Ipam::Static(conf) => conf.check(request),
            Ipam::Foreign(kind) => delegate::check(&forwarded(request), kind),
        }
    }

    /// Could addresses be given?
    pub fn status(&self, request: &Request) -> Result<(), Error> {
        match self {
            Ipam::HostLocal(conf) => hostlocal::status(request, conf),
            Ipam::Foreign(kind) => delegate::status(&forwarded(request), kind),
            Ipam::None | Ipam::Static(_) => Ok(()),
        }
    }
}

/// Releases the addresses. It reads no more of the configuration than it must, and looks in host-local's stores whatever the
/// configuration says: it may have said something else at ADD.
pub fn del(request: &Request) -> Result<(), Error> {
    let mut failures = Failures::default();
    failures.note(hostlocal::del(request));
    match request.conf.ipam_kind() {
        None | Some("static" | "host-local") => {}
        Some(_) => match foreign(request) {
            Ok(kind) => failures.note(delegate::del(&forwarded(request), kind)),
            // No ADD ever got an address by it, so there is none to release.
            Err(error) => eprintln!("DEL goes on without the IPAM plugin: {error}"),
        },
    }
    failures.outcome()
}

/// Releases what belongs to no valid attachment.
pub fn gc(request: &Request) -> Result<(), Error> {
    let mut failures = Failures::default();
    failures.note(hostlocal::gc(request));
    match request.conf.ipam_kind() {
        None | Some("static" | "host-local") => {}
        Some(_) => failures.note(foreign(request).and_then(|kind| delegate::gc(request, kind))),
    }
    failures.outcome()
}
