//! ICMP echo (RFC 792, RFC 4443), sent from inside a network namespace to many addresses at once.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use net::{Family, Netns};
use socket2::{Domain, Protocol, Socket, Type};

/// How many requests of one round are sent before their answers are looked at: an answer does not wait for long.
const BURST: usize = 32;
/// Types of ICMP and ICMPv6.
const ECHO_REPLY4: u8 = 0;
const ECHO_REQUEST4: u8 = 8;
const ECHO_REQUEST6: u8 = 128;
const ECHO_REPLY6: u8 = 129;

/// How often and how patiently.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Requests to each address.
    pub count: u16,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// What came of the requests to one address.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Echo {
    /// How long the answers took.
    pub times: Vec<Duration>,
    /// How many requests were sent, or could not be.
    pub sent: u16,
    /// Why the last one could not be sent.
    pub refused: Option<String>,
}

impl Echo {
    /// Whether every request was answered.
    pub fn whole(&self) -> bool {
        self.sent > 0 && self.times.len() == usize::from(self.sent)
    }

    /// The mean of the answers' times; None when there was no answer.
    pub fn mean(&self) -> Option<Duration> {
        let count = u32::try_from(self.times.len()).ok().filter(|count| *count > 0)?;
        Some(self.times.iter().sum::<Duration>() / count)
    }
}

/// Whether an address answers one of a few echo requests.
///
/// # Errors
/// No socket can be made there.
pub fn answers(netns: &Netns, ip: IpAddr, manner: Manner) -> io::Result<bool> {
    let once = Manner { count: 1, ..manner };
    for _ in 0..manner.count {
        if echo(netns, &[ip], once)?.iter().any(Echo::whole) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Sends echo requests from a namespace to addresses of one family.
///
/// # Errors
/// No socket can be made there.
pub fn echo(netns: &Netns, to: &[IpAddr], manner: Manner) -> io::Result<Vec<Echo>> {
    let Some(family) = to.first().map(|ip| Family::of(*ip)) else { return Ok(Vec::new()) };
    let mut pinger = Pinger::new(netns, family)?;
    let mut echoes = vec![Echo::default(); to.len()];
    for round in 0..manner.count {
        for burst in (0..to.len()).step_by(BURST) {
            let all: Vec<usize> = (burst..to.len().min(burst + BURST)).collect();
            pinger.burst(round, &all, to, manner.timeout, &mut echoes)?;
        }
    }
    Ok(echoes)
}

struct Pinger {
    /// A raw socket; a UdpSocket in name alone, for its safe calls.
    socket: UdpSocket,
    family: Family,
    /// Tells the answers to this one from others'.
    ident: u16,
}

impl Pinger {
    fn new(netns: &Netns, family: Family) -> io::Result<Pinger> {
        let (domain, protocol) = match family {
            Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
            Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket =
            netns.run(|| Socket::new(domain, Type::RAW, Some(protocol))).map_err(io::Error::other)??;
        // Several of one process may be at work in one namespace.
        static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let ident = (std::process::id() as u16).wrapping_mul(31).wrapping_add(number);
        Ok(Pinger { socket: socket.into(), family, ident })
    }

    /// One request to each of some addresses, and their answers.
    fn burst(
        &mut self,
        round: u16,
        which: &[usize],
        to: &[IpAddr],
        timeout: Duration,
        echoes: &mut [Echo],
    ) -> io::Result<()> {
        // The sequence number tells the address; the round is in the payload.
        let mut began: Vec<Option<Instant>> = vec![None; which.len()];
        let mut waiting: usize = 0;
        for (slot, at) in which.iter().enumerate() {
            let packet = self.request(slot as u16, round);
            echoes[*at].sent += 1;
            let now = Instant::now();
            match self.socket.send_to(&packet, SocketAddr::new(to[*at], 0)) {
                Ok(_) => {
                    began[slot] = Some(now);
                    waiting += 1;
                    // An answer that is there already is read before the next request, for the sake of its time.
                    waiting -= usize::from(self.receive(None, round, which, to, &mut began, echoes)?);
                }
                Err(error) => echoes[*at].refused = Some(error.to_string()),
            }
        }
        let end = Instant::now() + timeout;
        while waiting > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            waiting -= usize::from(self.receive(Some(left), round, which, to, &mut began, echoes)?);
        }
        Ok(())
    }

    /// Receives one packet, waiting at most so long (None: not at all); true when it answers one of this burst's requests.
    fn receive(
        &self,
        patience: Option<Duration>,
        round: u16,
        which: &[usize],
        to: &[IpAddr],
        began: &mut [Option<Instant>],
        echoes: &mut [Echo],
    ) -> io::Result<bool> {
        self.socket.set_nonblocking(patience.is_none())?;
        if let Some(patience) = patience {
            self.socket.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        }
        let mut buffer = [0; 512];
        let (length, from) = match self.socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if is_lull(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        let slot = self.answered(&buffer[..length], round).filter(|slot| *slot < which.len());
        let Some(slot) = slot.filter(|slot| from.ip() == to[which[*slot]]) else { return Ok(false) };
        let Some(time) = began[slot].take() else { return Ok(false) };
        echoes[which[slot]].times.push(now - time);
        Ok(true)
    }

    fn request(&self, sequence: u16, round: u16) -> Vec<u8> {
        let kind = if self.family == Family::V4 { ECHO_REQUEST4 } else { ECHO_REQUEST6 };
        let mut packet = vec![kind, 0, 0, 0];
        packet.extend(self.ident.to_be_bytes());
        packet.extend(sequence.to_be_bytes());
        packet.extend(round.to_be_bytes());
        packet.extend(b"weft lab ping: the rest of it.");
        // The kernel does it for ICMPv6, whose checksum covers the addresses.
        if self.family == Family::V4 {
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        packet
    }

    /// The sequence number that a packet answers, when it is an answer to this round.
    fn answered(&self, packet: &[u8], round: u16) -> Option<usize> {
        // Raw sockets of IPv4 get the IP header too.
        let (kind, header) = match self.family {
            Family::V4 => (ECHO_REPLY4, usize::from(packet.first()? & 0x0f) * 4),
            Family::V6 => (ECHO_REPLY6, 0),
        };
        let icmp = packet.get(header..)?;
        let word = |at: usize| Some(u16::from_be_bytes([*icmp.get(at)?, *icmp.get(at + 1)?]));
        let ours = *icmp.first()? == kind && word(4)? == self.ident && word(8)? == round;
        ours.then_some(usize::from(word(6)?))
    }
}

/// Whether only nothing came, or the kernel hands on what a router said of an earlier request.
fn is_lull(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable, TimedOut, WouldBlock,
    };
    matches!(
        error.kind(),
        WouldBlock | TimedOut | Interrupted | ConnectionRefused | HostUnreachable | NetworkUnreachable
    )
}

/// The checksum of the Internet (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::testns;

    const MANNER: Manner = Manner { count: 3, timeout: Duration::from_secs(5) };

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        // RFC 1071, section 3: the sum of these is ddf2.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0xff]), !0xff00);
    }

    #[test]
    fn own_addresses_answer_in_both_families() {
        testns::in_fresh(|| {
            let here = Netns::current().unwrap();
            for ips in [["127.0.0.1", "127.0.0.2"].as_slice(), ["::1"].as_slice()] {
                let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
                for echo in echo(&here, &ips, MANNER).unwrap() {
                    assert!(echo.whole() && echo.mean().unwrap() > Duration::ZERO, "{echo:?}");
                    assert_eq!(echo.times.len(), 3);
                }
            }
        });
    }

    #[test]
    fn what_does_not_answer_is_a_hole_and_what_does_still_counts() {
        testns::in_fresh(|| {
            let here = Netns::current().unwrap();
            let mut batch = net::Batch::new();
            let lo = net::Netlink::open().unwrap().need_link("lo").unwrap().index;
            let nowhere =
                net::Route { kind: net::route::UNREACHABLE, ..net::Route::to("10.0.0.0/8".parse().unwrap()) };
            batch.route_add(&nowhere);
            batch.route_add(&net::Route { oif: Some(lo), ..net::Route::to("10.1.0.0/16".parse().unwrap()) });
            net::Netlink::open().unwrap().run(batch).unwrap();
            let ips: Vec<IpAddr> =
                ["10.9.9.9", "10.1.0.1", "127.0.0.1"].map(|ip| ip.parse().unwrap()).to_vec();
            let manner = Manner { count: 2, timeout: Duration::from_millis(200) };
            let echoes = echo(&here, &ips, manner).unwrap();
            assert!(echoes[0].times.is_empty() && echoes[0].sent == 2, "{:?}", echoes[0]);
            assert!(echoes[0].refused.as_deref().is_some_and(|why| why.contains("host")), "{:?}", echoes[0]);
            assert!(echoes[1].mean().is_none(), "{:?}", echoes[1]);
            assert!(echoes[2].whole(), "{:?}", echoes[2]);
            let empty = testns::another();
            assert!(!echo(&empty, &ips[2..], manner).unwrap()[0].whole(), "its loopback is down");
        });
    }

    #[test]
    fn many_addresses_are_asked_at_once() {
        testns::in_fresh(|| {
            let here = Netns::current().unwrap();
            let ips: Vec<IpAddr> = (1..=100u8).map(|last| IpAddr::from([127, 0, 1, last])).collect();
            let echoes = echo(&here, &ips, MANNER).unwrap();
            assert!(echoes.iter().all(Echo::whole));
        });
    }
}
