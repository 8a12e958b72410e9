//! Real sockets for published ports, in the host's namespace, held for as long as the container runs.

use super::holder;
use super::proxy::Proxy;
use crate::paths::Paths;
use crate::spec::{PortMapping, Protocol, Spec};
use anyhow::{Result, anyhow, bail};
use net::firewall::mark_service;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

/// How often a free port is asked for until one is free in both families.
const TRIES: usize = 64;
/// Connections that may wait on a published port's socket.
const BACKLOG: i32 = 128;

/// The sockets of one mapping.
#[derive(Debug)]
pub(super) struct Port {
    pub mapping: PortMapping,
    pub sockets: Vec<Socket>,
}

/// The sockets of all published ports of a container. Dropping it gives the ports back.
#[derive(Debug)]
pub struct Held {
    ports: Vec<Port>,
}

impl Held {
    /// The mappings, with the host ports that were chosen.
    pub fn ports(&self) -> Vec<PortMapping> {
        self.ports.iter().map(|port| port.mapping).collect()
    }

    /// Whether a port that names no host address answers on the host's IPv6 addresses too.
    pub fn answers_ipv6(&self) -> bool {
        let is_ipv6 = |socket: &Socket| socket.local_addr().is_ok_and(|address| address.is_ipv6());
        self.ports.iter().any(|port| port.mapping.host_ip.is_none() && port.sockets.iter().any(is_ipv6))
    }

    /// Answers on the sockets for what address translation does not catch (IPv6's loopback among it) by passing it on to
    /// the container. The first address of each family is used; connections of a family that the container has not go to
    /// its address of the other. It goes on in a thread of its own until the [`Proxy`] is dropped, which gives the ports back.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn serve(self, addresses: &[IpAddr]) -> Result<Proxy> {
        Proxy::start(self.ports, addresses)
    }
}

/// Binds the container's published ports in the calling thread's network namespace, which must be the host's.
///
/// A mapping without a host address gets a socket in each family that the host has. A mapping without a host port gets a
/// free one of the kernel's choice, the same in both families; one with a range the first of it that is free.
///
/// # Errors
/// A taken port: names it and who holds it. More ports than this process may have sockets. Nothing stays bound then.
pub fn bind(paths: &Paths, spec: &Spec) -> Result<Held> {
    raise_limit(&spec.ports)?;
    // Those without a choice first, then those with a few ports to choose from: the others find another one.
    let mut order: Vec<usize> = (0..spec.ports.len()).collect();
    let freedom = |at: &usize| match spec.ports[*at] {
        PortMapping { host_port: 0, .. } => 2,
        PortMapping { host_port_last: 0, .. } => 0,
        _ => 1,
    };
    order.sort_by_key(freedom);
    let mut ports: Vec<Option<Port>> = Vec::new();
    ports.resize_with(spec.ports.len(), || None);
    for at in order {
        let mapping = &spec.ports[at];
        ports[at] = Some(match mapping.host_port_last {
            0 => bind_one(mapping).map_err(|failure| explain(paths, &spec.id, mapping, &failure))?,
            last => bind_range(mapping, mapping.host_port..=last)?,
        });
    }
    Ok(Held { ports: ports.into_iter().flatten().collect() })
}

/// Lets this process have the sockets of these mappings open at once.
///
/// # Errors
/// The limit of open files is too low for them, and this process may not raise it.
fn raise_limit(ports: &[PortMapping]) -> Result<()> {
    /// For what this process has open beside them, and for connections of the proxy, which wait where there are too few.
    const OTHERS: u64 = 1024;
    /// For what this process has open beside them at least.
    const LEAST: u64 = 64;
    let families = 1 + u64::from(Socket::new(Domain::IPV6, Type::STREAM, None).is_ok());
    let sockets: u64 = ports.iter().map(|port| if port.host_ip.is_some() { 1 } else { families }).sum();
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(()) };
    let best = sockets + OTHERS;
    // Raising the hard limit takes CAP_SYS_RESOURCE, and fs.nr_open bounds it.
    if soft >= best || setrlimit(Resource::RLIMIT_NOFILE, best, hard.max(best)).is_ok() {
        return Ok(());
    }
    let most = soft.max(best.min(hard));
    let limit = setrlimit(Resource::RLIMIT_NOFILE, most, hard).map_or(soft, |()| most);
    let least = sockets + LEAST;
    if limit < least {
        bail!(
            "cannot publish {} ports: their {sockets} sockets take a limit of open files of {least}, and it is {limit} \
             (hard limit {hard}); raise the hard limit (`ulimit -Hn {least}`, or LimitNOFILE={least} of a systemd service), \
             or publish fewer ports",
            ports.len()
        );
    }
    Ok(())
}

/// Binds the first port of a range that is free.
fn bind_range(mapping: &PortMapping, range: RangeInclusive<u16>) -> Result<Port> {
    let protocol = mapping.protocol;
    for host_port in range.clone() {
        match bind_one(&PortMapping { host_port, host_port_last: 0, ..*mapping }) {
            Ok(port) => return Ok(port),
            Err(Failure { error, .. }) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(Failure { address, error }) => bail!(
                "cannot publish a port of {}-{}/{protocol} on {}: {error}",
                range.start(),
                range.end(),
                address.ip()
            ),
        }
    }
    bail!("cannot publish: every port of {}-{}/{protocol} is in use", range.start(), range.end())
}

/// Which address could not be bound, and why.
struct Failure {
    address: SocketAddr,
    error: io::Error,
}

fn bind_one(mapping: &PortMapping) -> Result<Port, Failure> {
    let addresses = match mapping.host_ip {
        Some(ip) => vec![ip],
        None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    };
    let any_family = mapping.host_ip.is_none();
    let mut tries = 0;
    loop {
        tries += 1;
        match bind_all(mapping, &addresses, any_family) {
            // The port that the kernel chose for IPv4 is taken in IPv6: another one.
            Err(Failure { error, .. })
                if mapping.host_port == 0 && error.kind() == io::ErrorKind::AddrInUse && tries < TRIES => {}
            other => return other,
        }
    }
}

fn bind_all(mapping: &PortMapping, addresses: &[IpAddr], any_family: bool) -> Result<Port, Failure> {
    let mut port = Port { mapping: *mapping, sockets: Vec::with_capacity(addresses.len()) };
    for ip in addresses {
        let address = SocketAddr::new(*ip, port.mapping.host_port);
        match socket(mapping.protocol, address) {
            Ok((socket, chosen)) => {
                port.mapping.host_port = chosen;
                port.sockets.push(socket);
            }
            // A host without this family, or a kernel without SCTP: there is no port that anyone could take.
            Err(error)
                if missing(&error, mapping.protocol) || (any_family && ip.is_ipv6() && no_ipv6(&error)) => {}
            Err(error) => return Err(Failure { address, error }),
        }
    }
    if port.mapping.host_port == 0 {
        let address = SocketAddr::new(addresses[0], 0);
        let error =
            io::Error::new(io::ErrorKind::Unsupported, "this kernel has no such socket, name a host port");
        return Err(Failure { address, error });
    }
    Ok(port)
}

/// Whether the kernel has no SCTP; then address translation alone publishes the port.
fn missing(error: &io::Error, protocol: Protocol) -> bool {
    protocol == Protocol::Sctp
        && matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::ESOCKTNOSUPPORT))
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// A bound socket and its port.
fn socket(protocol: Protocol, address: SocketAddr) -> io::Result<(Socket, u16)> {
    let (kind, number) = match protocol {
        Protocol::Tcp => (Type::STREAM, libc::IPPROTO_TCP),
        Protocol::Udp => (Type::DGRAM, libc::IPPROTO_UDP),
        Protocol::Sctp => (Type::STREAM, libc::IPPROTO_SCTP),
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(number.into()))?;
    mark_service(&socket);
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if protocol != Protocol::Udp {
        // Connections that are not quite closed must not keep a port from its next container.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    if protocol != Protocol::Udp {
        socket.listen(BACKLOG)?;
    }
    let chosen = socket.local_addr()?.as_socket().map_or(address.port(), |address| address.port());
    Ok((socket, chosen))
}

fn explain(paths: &Paths, id: &str, mapping: &PortMapping, failure: &Failure) -> anyhow::Error {
    let Failure { address, error } = failure;
    let (port, protocol) = (mapping.host_port, mapping.protocol);
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let by = holder::find(paths, id, mapping, *address);
            anyhow!("port {port}/{protocol} on {} is already in use{by}", address.ip())
        }
        io::ErrorKind::AddrNotAvailable => {
            anyhow!("cannot publish port {port}/{protocol}: {} is no address of this host", address.ip())
        }
        _ => anyhow!("cannot publish port {port}/{protocol} on {}: {error}", address.ip()),
    }
}
