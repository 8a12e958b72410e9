//! The proxy behind published ports: it passes on what address translation does not catch, so that a port answers at
//! every address of the host, `[::1]` too. It is slow beside translation, and seldom used.

use super::bind::Port;
use super::datagram::{self, Path};
use crate::spec::Protocol;
use anyhow::{Context, Result};
use socket2::Socket;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio::time::timeout;

/// Connections and UDP flows at once, of one container; more wait, or are dropped with UDP.
const MOST: usize = 512;
/// How long a connection to the container may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a UDP flow lives without a packet (as nf_conntrack_udp_timeout_stream).
const IDLE: Duration = Duration::from_secs(120);
/// The largest UDP datagram.
const DATAGRAM: usize = 65_535;

/// A running proxy. Dropping it ends the proxy and closes the ports' sockets.
#[derive(Debug)]
pub struct Proxy {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(super) fn start(ports: Vec<Port>, addresses: &[IpAddr]) -> Result<Proxy> {
        if ports.is_empty() {
            return Ok(Proxy { stop: None, thread: None });
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("cannot start the proxy of the published ports")?;
        let (stop, stopped) = oneshot::channel();
        // Before this returns, so that what arrives afterwards is passed on.
        let entered = runtime.enter();
        // Ports that cannot be served stay bound: they are held all the same.
        let held = serve(ports, addresses);
        drop(entered);
        let serve = move || {
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
            drop(held);
        };
        let thread = std::thread::Builder::new().name("ports".into()).spawn(serve);
        let thread = thread.context("cannot start the proxy of the published ports")?;
        Ok(Proxy { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts a task for each socket; gives back those that no task can serve.
fn serve(ports: Vec<Port>, addresses: &[IpAddr]) -> Vec<Socket> {
    let room = Arc::new(Semaphore::new(MOST));
    let mut held = Vec::new();
    for Port { mapping, sockets } in ports {
        for socket in sockets {
            let is_ipv6 = socket.local_addr().is_ok_and(|address| address.is_ipv6());
            let Some(ip) = backend(addresses, is_ipv6) else {
                held.push(socket);
                continue;
            };
            let to = SocketAddr::new(ip, mapping.container_port);
            let _ = socket.set_nonblocking(true);
            match mapping.protocol {
                Protocol::Tcp => {
                    if let Ok(listener) = TcpListener::from_std(socket.into()) {
                        tokio::spawn(tcp(listener, to, room.clone()));
                    }
                }
                Protocol::Udp => {
                    let socket: std::net::UdpSocket = socket.into();
                    datagram::note_destinations(&socket, is_ipv6);
                    discard(&socket);
                    if let Ok(socket) = UdpSocket::from_std(socket) {
                        tokio::spawn(udp(Arc::new(socket), to, room.clone()));
                    }
                }
                Protocol::Sctp => held.push(socket),
            }
        }
    }
    held
}

/// The container's address for connections of a family: of the same one if it has such, else of the other.
fn backend(addresses: &[IpAddr], is_ipv6: bool) -> Option<IpAddr> {
    addresses.iter().find(|ip| ip.is_ipv6() == is_ipv6).or_else(|| addresses.first()).copied()
}

async fn tcp(listener: TcpListener, to: SocketAddr, room: Arc<Semaphore>) {
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                tokio::spawn(async move {
                    let _ = pass(client, to).await;
                    drop(permit);
                });
            }
            // Out of descriptors, or a client that left at once.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn pass(mut client: TcpStream, to: SocketAddr) -> io::Result<()> {
    let mut server = timeout(PATIENCE, TcpStream::connect(to)).await??;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// Drops what arrived before the port's address translation was there. Were it answered, conntrack would know the answer as
/// a flow of the host's own, and every later datagram of that client as its reply: none would be translated any more.
fn discard(socket: &std::net::UdpSocket) {
    while socket.recv_from(&mut [0; 1]).is_ok() {}
}

type Flows = Arc<Mutex<HashMap<Path, Arc<UdpSocket>>>>;

async fn udp(socket: Arc<UdpSocket>, to: SocketAddr, room: Arc<Semaphore>) {
    let flows: Flows = Flows::default();
    while socket.readable().await.is_ok() {
        // Only while something comes: a container may have thousands of ports.
        let mut packet = vec![0; DATAGRAM];
        loop {
            match datagram::receive(&socket, &mut packet) {
                Ok((length, path)) => forward(&socket, path, &packet[..length], to, &flows, &room).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error of an earlier reply.
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

/// Passes a client's datagram on to the container, by the client's flow.
async fn forward(
    socket: &Arc<UdpSocket>,
    path: Path,
    packet: &[u8],
    to: SocketAddr,
    flows: &Flows,
    room: &Arc<Semaphore>,
) {
    let known = flows.lock().await.get(&path).cloned();
    let flow = match known {
        Some(flow) => flow,
        None => {
            let Ok(permit) = room.clone().try_acquire_owned() else { return };
            let Ok(flow) = connect(to).await else { return };
            let flow = Arc::new(flow);
            flows.lock().await.insert(path, flow.clone());
            let (socket, flows, back) = (socket.clone(), flows.clone(), flow.clone());
            tokio::spawn(async move {
                replies(&socket, &path, &back).await;
                flows.lock().await.remove(&path);
                drop(permit);
            });
            flow
        }
    };
    let _ = flow.send(packet).await;
}

async fn connect(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// Passes a flow's replies back until it is idle or the container refuses.
async fn replies(socket: &UdpSocket, path: &Path, flow: &UdpSocket) {
    let mut packet = vec![0; DATAGRAM];
    while let Ok(Ok(length)) = timeout(IDLE, flow.recv(&mut packet)).await {
        let _ = datagram::answer(socket, &packet[..length], path).await;
    }
}
