//! Connection tracking: forgetting UDP "connections" whose way has changed. The kernel decides about address translation at
//! a flow's first packet; a client that keeps sending to a port from before it was published would otherwise never reach
//! the container, and one that keeps sending to a container that is gone would be led to whoever gets its address next.
//! Only entries that match are deleted; the kernel picks them where it can (Linux 5.8), and each is looked at again here.

use std::net::IpAddr;

use crate::addr::ip_of;
use crate::error::{Error, Result};
use crate::socket::{Channel, Outgoing};
use crate::wire::{self, nest, put};

/// Message types: the subsystem NFNL_SUBSYS_CTNETLINK (1) in the high byte (linux/netfilter/nfnetlink_conntrack.h).
const CT_GET: u16 = 0x101;
const CT_DELETE: u16 = 0x102;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
/// In a tuple.
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
/// Which fields of a tuple a dump filters by (CTA_FILTER_FLAG_*).
const BY_SOURCE: u32 = 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_DESTINATION_PORT: u32 = 1 << 5;
/// Deletions sent at once.
const CHUNK: usize = 500;

/// Which UDP entries to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UdpFlow {
    /// Those whose packets were sent to this port, at this address of the host, or at any.
    ToPort {
        /// The address; None: any.
        ip: Option<IpAddr>,
        /// The port.
        port: u16,
    },
    /// Those that this address answers: whatever port they came in by, translated or not.
    ToContainer(IpAddr),
}

/// One side of an entry.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tuple {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: u8,
    destination_port: u16,
}

impl Tuple {
    fn parse(bytes: &[u8]) -> Tuple {
        let mut tuple = Tuple::default();
        for (kind, value) in wire::find(bytes, CTA_TUPLE_IP).into_iter().flat_map(wire::attributes) {
            match kind {
                1 | 3 => tuple.source = ip_of(value),
                2 | 4 => tuple.destination = ip_of(value),
                _ => {}
            }
        }
        for (kind, value) in wire::find(bytes, CTA_TUPLE_PROTO).into_iter().flat_map(wire::attributes) {
            match (kind, value) {
                (CTA_PROTO_NUM, [number]) => tuple.protocol = *number,
                (CTA_PROTO_DST_PORT, [high, low]) => {
                    tuple.destination_port = u16::from_be_bytes([*high, *low])
                }
                _ => {}
            }
        }
        tuple
    }

    fn put(&self, out: &mut Vec<u8>, kind: u16) {
        nest(out, kind, |out| {
            nest(out, CTA_TUPLE_IP, |out| {
                for (ip, v4, v6) in [(self.source, 1, 3), (self.destination, 2, 4)] {
                    match ip {
                        Some(IpAddr::V4(ip)) => put(out, v4, &ip.octets()),
                        Some(IpAddr::V6(ip)) => put(out, v6, &ip.octets()),
                        None => {}
                    }
                }
            });
            nest(out, CTA_TUPLE_PROTO, |out| {
                put(out, CTA_PROTO_NUM, &[self.protocol]);
                put(out, CTA_PROTO_DST_PORT, &self.destination_port.to_be_bytes());
            });
        });
    }
}

impl UdpFlow {
    fn matches(&self, original: &Tuple, reply: &Tuple) -> bool {
        let udp = i32::from(original.protocol) == libc::IPPROTO_UDP;
        udp && match *self {
            UdpFlow::ToPort { ip, port } => {
                original.destination_port == port && ip.is_none_or(|ip| original.destination == Some(ip))
            }
            UdpFlow::ToContainer(ip) => reply.source == Some(ip),
        }
    }

    fn is_of(&self, family: i32) -> bool {
        let ip = match *self {
            UdpFlow::ToPort { ip, .. } => ip,
            UdpFlow::ToContainer(ip) => Some(ip),
        };
        ip.is_none_or(|ip| ip.is_ipv4() == (family == libc::AF_INET))
    }

    /// Has the kernel pick the entries that may match.
    fn filter(&self, out: &mut Vec<u8>) {
        let protocol = libc::IPPROTO_UDP as u8;
        let (kind, flags, tuple) = match *self {
            UdpFlow::ToPort { port, .. } => {
                let tuple = Tuple { protocol, destination_port: port, ..Tuple::default() };
                (CTA_TUPLE_ORIG, BY_PROTOCOL | BY_DESTINATION_PORT, tuple)
            }
            UdpFlow::ToContainer(ip) => (
                CTA_TUPLE_REPLY,
                BY_PROTOCOL | BY_SOURCE,
                Tuple { protocol, source: Some(ip), ..Tuple::default() },
            ),
        };
        tuple.put(out, kind);
        // CTA_FILTER_ORIG_FLAGS is 1 and CTA_FILTER_REPLY_FLAGS 2, as the tuples are.
        nest(out, CTA_FILTER, |out| wire::put_u32(out, kind, flags));
    }
}

/// struct nfgenmsg.
fn header(family: i32) -> [u8; 4] {
    [family as u8, 0, 0, 0]
}

/// Forgets the UDP entries of this thread's namespace that one of `flows` matches. Returns how many there were.
///
/// # Errors
/// [`Error::Unsupported`] when the kernel shows no connection tracking by netlink; there is nothing to forget that could
/// be forgotten.
pub fn flush_udp(flows: &[UdpFlow]) -> Result<usize> {
    if flows.is_empty() {
        return Ok(0);
    }
    let mut channel = Channel::open(libc::NETLINK_NETFILTER)?;
    let mut deletions = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let flows: Vec<_> = flows.iter().filter(|flow| flow.is_of(family)).collect();
        // Every dump walks the kernel's whole table: past a few, one that reads all of it costs less.
        if flows.len() <= 4 {
            for flow in flows {
                deletions.extend(find(&mut channel, family, Some(flow), &|o, r| flow.matches(o, r))?);
            }
        } else {
            let any = |o: &Tuple, r: &Tuple| flows.iter().any(|flow| flow.matches(o, r));
            deletions.extend(find(&mut channel, family, None, &any)?);
        }
    }
    let mut deleted = 0;
    for chunk in deletions.chunks(CHUNK) {
        let mut out = Outgoing::new();
        for body in chunk {
            out.change(CT_DELETE, 0, |bytes| bytes.extend_from_slice(body));
        }
        let answers = channel.exchange(out)?;
        deleted += chunk.len() - answers.refusals.len();
        // An entry may have ended by itself.
        if let Some((_, refusal)) =
            answers.refusals.into_iter().find(|(_, refusal)| refusal.errno != libc::ENOENT)
        {
            return Err(Error::Kernel { what: "delete UDP entries of connection tracking".into(), refusal });
        }
    }
    Ok(deleted)
}

/// The bodies of the requests that delete the matching entries.
fn find(
    channel: &mut Channel,
    family: i32,
    filter: Option<&UdpFlow>,
    matches: &dyn Fn(&Tuple, &Tuple) -> bool,
) -> Result<Vec<Vec<u8>>> {
    let mut body = header(family).to_vec();
    if let Some(flow) = filter {
        flow.filter(&mut body);
    }
    let what = "list the UDP entries of connection tracking";
    let found = channel.dump(what, CT_GET, &body, |_, body| {
        let attributes = body.get(4..)?;
        let tuple = |kind| wire::find(attributes, kind).map(Tuple::parse);
        matches(&tuple(CTA_TUPLE_ORIG)?, &tuple(CTA_TUPLE_REPLY)?).then(|| deletion(family, attributes))
    });
    match found {
        // A kernel that knows no filter takes it for something else.
        Err(error) if filter.is_some() && matches!(error.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            find(channel, family, None, matches)
        }
        // nfnetlink_rcv_msg() of net/netfilter/nfnetlink.c, when nobody has the subsystem.
        Err(error) if error.errno() == Some(libc::EINVAL) => {
            Err(Error::Unsupported("connection tracking by netlink (CONFIG_NF_CT_NETLINK)".into()))
        }
        found => found,
    }
}

/// The request that deletes an entry: told by its original tuple, its zone, and its ID, so that one which has taken its
/// place meanwhile is spared.
fn deletion(family: i32, entry: &[u8]) -> Vec<u8> {
    let mut body = header(family).to_vec();
    for (kind, value) in wire::attributes(entry) {
        match kind {
            CTA_TUPLE_ORIG => nest(&mut body, kind, |out| out.extend_from_slice(value)),
            CTA_ZONE | CTA_ID => put(&mut body, kind, value),
            _ => {}
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testns;
    use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};

    /// Enters a connection as if its first packet had come: sent to `to`, answered by `by`.
    fn enter(channel: &mut Channel, protocol: i32, from: &str, to: (&str, u16), by: (&str, u16)) {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let family = if ip(from).is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let mut out = Outgoing::new();
        out.change(0x100, NLM_F_CREATE | NLM_F_EXCL, |bytes| {
            bytes.extend_from_slice(&header(family));
            let mut side = |kind, source, destination, source_port: u16, port: u16| {
                let start = bytes.len();
                let (source, destination) = (Some(ip(source)), Some(ip(destination)));
                Tuple { source, destination, protocol: protocol as u8, destination_port: port }
                    .put(bytes, kind);
                // The source port, which the filter does not need, at the end of the protocol's part.
                put(bytes, 2, &source_port.to_be_bytes());
                let proto = start + 4 + if family == libc::AF_INET { 20 } else { 44 };
                for at in [start, proto] {
                    let length = u16::from_ne_bytes([bytes[at], bytes[at + 1]]) + 8;
                    bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
                }
            };
            side(CTA_TUPLE_ORIG, from, to.0, 4000, to.1);
            side(CTA_TUPLE_REPLY, by.0, from, by.1, 4000);
            put(bytes, 7, &60u32.to_be_bytes()); // CTA_TIMEOUT
            if protocol == libc::IPPROTO_TCP {
                nest(bytes, 4, |bytes| nest(bytes, 1, |bytes| put(bytes, 1, &[3]))); // established
            }
        });
        let answers = channel.exchange(out).unwrap();
        assert!(answers.refusals.is_empty(), "{answers:?}");
    }

    fn count(channel: &mut Channel) -> usize {
        channel.dump("count", CT_GET, &header(libc::AF_UNSPEC), |_, _| Some(())).unwrap().len()
    }

    #[test]
    fn only_what_matches_is_forgotten() {
        testns::in_fresh(|| {
            let mut channel = Channel::open(libc::NETLINK_NETFILTER).unwrap();
            let udp = libc::IPPROTO_UDP;
            enter(&mut channel, udp, "192.0.2.1", ("198.51.100.1", 53), ("198.51.100.1", 53));
            enter(&mut channel, udp, "192.0.2.2", ("198.51.100.2", 53), ("10.1.0.5", 5353));
            enter(&mut channel, udp, "192.0.2.1", ("198.51.100.1", 54), ("10.1.0.5", 53));
            enter(&mut channel, udp, "2001:db8::1", ("2001:db8::2", 53), ("fd00::5", 53));
            enter(&mut channel, libc::IPPROTO_TCP, "192.0.2.1", ("198.51.100.1", 53), ("10.1.0.5", 53));
            assert_eq!(count(&mut channel), 5);

            let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
            let port = |at: Option<&str>, port| UdpFlow::ToPort { ip: at.map(ip), port };
            assert_eq!(flush_udp(&[]).unwrap(), 0);
            assert_eq!(flush_udp(&[port(None, 99), UdpFlow::ToContainer(ip("10.1.0.6"))]).unwrap(), 0);
            assert_eq!(flush_udp(&[port(Some("198.51.100.2"), 53)]).unwrap(), 1);
            assert_eq!(flush_udp(&[port(None, 53)]).unwrap(), 2);
            assert_eq!(count(&mut channel), 2);
            assert_eq!(flush_udp(&[UdpFlow::ToContainer(ip("10.1.0.5"))]).unwrap(), 1);
            assert_eq!(count(&mut channel), 1, "TCP is left alone");

            for n in 1..=20 {
                enter(&mut channel, udp, "192.0.2.9", ("198.51.100.1", n), ("10.1.0.9", n));
            }
            let many: Vec<_> = (1..=10).map(|n| port(None, n)).collect();
            assert_eq!(flush_udp(&many).unwrap(), 10);
            assert_eq!(count(&mut channel), 11);
        });
    }
}
