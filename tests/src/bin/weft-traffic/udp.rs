//! UDP: a server that tells each client the address it saw, its client, and a client that keeps one flow alive.

use anyhow::{Context, Result};
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

pub fn serve(addr: &str, name: &str) -> Result<()> {
    let socket = UdpSocket::bind(addr).with_context(|| format!("bind {addr}"))?;
    println!("listening {}", socket.local_addr()?);
    let mut buffer = [0; 2048];
    loop {
        // An ICMP error of an earlier answer shows up here; the next datagram is still to be answered.
        if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}\n", peer.ip().to_canonical()).as_bytes(), peer);
        }
    }
}

fn socket_to(addr: &str, source_port: u16) -> Result<UdpSocket> {
    let to: SocketAddr = addr.parse().with_context(|| format!("{addr} is no ADDR:PORT"))?;
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, source_port).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, source_port).into(),
    };
    let socket = UdpSocket::bind(any).with_context(|| format!("bind source port {source_port}"))?;
    socket.connect(to)?;
    Ok(socket)
}

/// Asks again every 200 ms until the time is over, as a datagram may be lost while a neighbour is resolved.
pub fn ask(addr: &str, milliseconds: u64, source_port: u16) -> Result<()> {
    let socket = socket_to(addr, source_port)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut buffer = [0; 2048];
    let mut last = None;
    for _ in 0..milliseconds.div_ceil(200) {
        // ECONNREFUSED of the previous datagram may be reported by this send.
        let _ = socket.send(b"?");
        match socket.recv(&mut buffer) {
            Ok(n) => {
                std::io::stdout().write_all(&buffer[..n])?;
                return Ok(());
            }
            Err(e) => {
                if e.kind() == std::io::ErrorKind::ConnectionRefused {
                    std::thread::sleep(Duration::from_millis(100));
                }
                last = Some(e);
            }
        }
    }
    Err(anyhow::anyhow!("no answer from {addr} within {milliseconds} ms, last: {last:?}"))
}

/// Sends on until it is killed: a flow whose conntrack entry never expires by itself.
pub fn tick(addr: &str, source_port: u16) -> Result<()> {
    let socket = socket_to(addr, source_port)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut buffer = [0; 2048];
    loop {
        let _ = socket.send(b"?");
        match socket.recv(&mut buffer) {
            Ok(n) => {
                std::io::stdout().write_all(&buffer[..n])?;
                std::io::stdout().flush()?;
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(_) => {}
        }
    }
}
