//! ICMP echo (RFC 792, RFC 4443) from a network namespace, by sockets that are open before it matters.

use crate::cluster::inside;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

/// Raw sockets for both families; UdpSockets in name alone, for their safe calls.
pub struct Pinger {
    v4: UdpSocket,
    v6: UdpSocket,
    next: Cell<u16>,
}

/// So many requests are on their way at once.
const BURST: usize = 32;

impl Pinger {
    #[track_caller]
    pub fn new(netns: &Path) -> Pinger {
        let open = |family, protocol| {
            let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
            UdpSocket::from(fd.unwrap_or_else(|e| panic!("a raw socket: {e}")))
        };
        let (v4, v6) = inside(netns, || {
            (open(AddressFamily::Inet, SockProtocol::Icmp), open(AddressFamily::Inet6, SockProtocol::IcmpV6))
        });
        Pinger { v4, v6, next: Cell::new(1) }
    }

    /// One request to each; those that did not answer.
    pub fn silent(&self, to: &[IpAddr], patience: Duration) -> Vec<IpAddr> {
        let mut silent = Vec::new();
        for v6 in [false, true] {
            let family: Vec<IpAddr> = to.iter().copied().filter(|ip| ip.is_ipv6() == v6).collect();
            for some in family.chunks(BURST) {
                silent.extend(self.burst(v6, some, patience));
            }
        }
        silent
    }

    fn burst(&self, v6: bool, to: &[IpAddr], patience: Duration) -> Vec<IpAddr> {
        let socket = if v6 { &self.v6 } else { &self.v4 };
        drain(socket);
        let sequence = self.next.replace(self.next.get() + 1);
        let ident = std::process::id() as u16;
        let mut waiting: BTreeSet<IpAddr> = to.iter().copied().collect();
        for ip in to {
            // Refused at once is as good as no answer.
            if let Err(why) = socket.send_to(&request(v6, ident, sequence), SocketAddr::new(*ip, 0)) {
                println!("a ping to {ip}: {why}");
            }
        }
        let end = Instant::now() + patience;
        let mut packet = [0; 1500];
        while !waiting.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let _ = socket.set_read_timeout(Some(left));
            let Ok((len, from)) = socket.recv_from(&mut packet) else { continue };
            let packet = &packet[..len];
            // A raw IPv4 socket gives the header too.
            let skip = if v6 { 0 } else { usize::from(packet[0] & 0xf) * 4 };
            let kind = if v6 { 129 } else { 0 };
            let Some(echo) = packet.get(skip..skip + 8) else { continue };
            let same = echo[4..6] == ident.to_be_bytes() && echo[6..8] == sequence.to_be_bytes();
            if echo[0] == kind && same {
                waiting.remove(&from.ip());
            }
        }
        waiting.into_iter().collect()
    }
}

/// Reads what has come since the last burst. A raw socket gets what others' pings send and receive too, and once its buffer is
/// full, an answer that comes before the first is read would be dropped.
fn drain(socket: &UdpSocket) {
    let nonblocking = |on| socket.set_nonblocking(on).unwrap_or_else(|e| panic!("a raw socket: {e}"));
    nonblocking(true);
    while socket.recv_from(&mut [0; 1500]).is_ok() {}
    nonblocking(false);
}

fn request(v6: bool, ident: u16, sequence: u16) -> Vec<u8> {
    let mut packet = vec![if v6 { 128 } else { 8 }, 0, 0, 0];
    packet.extend(ident.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend(*b"first of all packets ");
    packet.push(b'.');
    if !v6 {
        // The kernel does it for IPv6.
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The Internet's checksum (RFC 1071) of an even number of bytes.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], *two.get(1).unwrap_or(&0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
