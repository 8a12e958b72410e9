//! A host with a bridge and two containers, and another host beside it; servers that tell whom they see.

use super::{addrs, run};
use crate::firewall::{Protocol, mark_service};
use crate::{Netns, testns};
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// How long an answer may take. Nothing waits so long that is answered; what is not costs this time.
const PATIENCE: Duration = Duration::from_millis(400);

/// The thread's namespace is the host: 192.0.2.1 and 2001:db8::1 outside, 10.1.0.1 and fd00::1 on bridge `br0`.
pub struct Lab {
    /// 10.1.0.3, fd00::3; serves port 80
    pub a: Netns,
    /// 10.1.0.4, fd00::4; serves port 80
    pub b: Netns,
    /// 192.0.2.2, 2001:db8::2, routes to the containers' subnets through the host; serves port 80
    pub other: Netns,
}

impl Lab {
    /// Builds it around the calling thread, which is in a fresh namespace.
    pub fn new() -> Lab {
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/accept_dad", "0"),
        ] {
            std::fs::write(format!("/proc/sys/net/{key}"), value).unwrap();
        }
        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        run("ip addr add 10.1.0.1/16 dev br0");
        run("ip addr add fd00::1/64 dev br0 nodad");
        std::fs::write("/proc/sys/net/ipv4/conf/br0/route_localnet", "1").unwrap();
        let container = |n: u16| {
            let ns = join(&format!("c{n}"), "eth0", &pair(n), ["10.1.0.1", "fd00::1"]);
            // Where the bridge passes frames through netfilter (br_netfilter, as Kubernetes wants it), what a container
            // sends to itself by the host's address is bridged back to its port, not routed.
            run(&format!("ip link set c{n} master br0"));
            run(&format!("ip link set c{n} type bridge_slave hairpin on"));
            ns
        };
        let (a, b) = (container(3), container(4));
        let other = join(
            "out",
            "eth0",
            &["192.0.2.2/24".into(), "2001:db8::2/64".into()],
            ["192.0.2.1", "2001:db8::1"],
        );
        run("ip addr add 192.0.2.1/24 dev out");
        run("ip addr add 2001:db8::1/64 dev out nodad");
        let lab = Lab { a, b, other };
        serve(&lab.a, "10.1.0.3");
        serve(&lab.a, "fd00::3");
        serve(&lab.b, "10.1.0.4");
        serve(&lab.b, "fd00::4");
        serve(&lab.other, "192.0.2.2");
        serve(&lab.other, "2001:db8::2");
        // The kernel tells IPv6 of a link's carrier up to a second late.
        for to in ["10.1.0.3:80", "10.1.0.4:80", "[fd00::3]:80", "[fd00::4]:80"] {
            let reached = (0..20).any(|_| lab.ask(Some(&lab.other), to, Protocol::Udp).is_some());
            assert!(reached, "{to} cannot be reached in the lab");
        }
        lab
    }

    /// Serves an address and port of the host.
    pub fn serve_on_host(&self, at: &str) {
        let at: SocketAddr = at.parse().unwrap();
        answer(TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap());
    }

    /// The same with a service of Weft.
    pub fn serve_weft_on_host(&self, at: &str) {
        let at: SocketAddr = at.parse().unwrap();
        let (tcp, udp) = (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap());
        mark_service(&tcp);
        mark_service(&udp);
        answer(tcp, udp);
    }

    /// Asks what listens there, from a namespace (None: the host itself): the address that the server saw.
    pub fn ask(&self, from: Option<&Netns>, to: &str, protocol: Protocol) -> Option<String> {
        ask(from, to, protocol)
    }
}

/// Asks what listens there: the address that the server saw.
pub fn ask(from: Option<&Netns>, to: &str, protocol: Protocol) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    let ask = || match protocol {
        Protocol::Udp => ask_udp(to),
        _ => ask_tcp(to),
    };
    let seen = match from {
        Some(ns) => ns.run(ask).unwrap(),
        None => ask(),
    };
    seen.ok().map(|addr| addr.to_string())
}

/// A container's addresses as text.
fn pair(n: u16) -> [String; 2] {
    [addrs(n)[0].to_string(), addrs(n)[1].to_string()]
}

/// A veth between here and a new namespace, up, with addresses and default routes at the other end.
pub fn join(here: &str, there: &str, addrs: &[String; 2], gateways: [&str; 2]) -> Netns {
    let ns = testns::another();
    run(&format!("ip link add {here} type veth peer name p-{here}"));
    let fd = ns.as_fd().as_raw_fd();
    run(&format!("ip link set p-{here} netns /proc/{}/fd/{fd} name {there}", std::process::id()));
    run(&format!("ip link set {here} up"));
    ns.run(|| {
        run("ip link set lo up");
        run(&format!("ip link set {there} up"));
        for addr in addrs {
            let dad = if addr.contains(':') { "nodad" } else { "" };
            run(&format!("ip addr add {addr} dev {there} {dad}"));
        }
        for gateway in gateways {
            run(&format!("ip route add default via {gateway}"));
        }
    })
    .unwrap();
    ns
}

/// Serves port 80 of an address, TCP and UDP, until the test process ends.
pub fn serve(ns: &Netns, addr: &str) {
    let addr: IpAddr = addr.parse().unwrap();
    let (tcp, udp) =
        ns.run(|| (TcpListener::bind((addr, 80)).unwrap(), UdpSocket::bind((addr, 80)).unwrap())).unwrap();
    answer(tcp, udp);
}

/// The answer is the asker's address.
fn answer(tcp: TcpListener, udp: UdpSocket) {
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            use std::io::Write;
            let mut stream = stream;
            let peer = stream.peer_addr().map(|p| p.ip().to_string()).unwrap_or_default();
            let _ = stream.write_all(peer.as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buf = [0; 64];
        while let Ok((_, peer)) = udp.recv_from(&mut buf) {
            let _ = udp.send_to(peer.ip().to_string().as_bytes(), peer);
        }
    });
}

fn ask_tcp(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut seen = String::new();
    stream.read_to_string(&mut seen)?;
    Ok(seen)
}

fn ask_udp(to: SocketAddr) -> std::io::Result<String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    socket.send(b"?")?;
    let mut buf = [0; 64];
    let len = socket.recv(&mut buf)?;
    Ok(String::from_utf8_lossy(&buf[..len]).into_owned())
}
