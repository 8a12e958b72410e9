//! Datagrams of a socket that is bound to all of the host's addresses: the answer leaves with the one that the client used, as
//! a client takes it from no other.

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Between whom a datagram went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Path {
    pub client: SocketAddr,
    /// The host's address, with the link's index where it is valid on a link alone. `None`: the kernel chooses.
    host: Option<(IpAddr, u32)>,
}

/// Has the kernel say with each datagram to which address it was sent. Where it cannot, it chooses the answers' address.
pub fn note_destinations(socket: &impl AsFd, is_ipv6: bool) {
    let _ = match is_ipv6 {
        true => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true),
        false => setsockopt(socket, sockopt::Ipv4PacketInfo, &true),
    };
}

/// Returns the length of the datagram that is there.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when there is none; the kernel's, ICMP errors of earlier answers among them.
pub fn receive(socket: &UdpSocket, packet: &mut [u8]) -> io::Result<(usize, Path)> {
    socket.try_io(Interest::READABLE, || receive_now(socket, packet))
}

fn receive_now(socket: &UdpSocket, packet: &mut [u8]) -> io::Result<(usize, Path)> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(packet)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let client = message.address.as_ref().and_then(address_of).ok_or(io::ErrorKind::InvalidData)?;
    let host = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some((local4(&info).into(), 0)),
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
            let index = if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
            (!address.is_multicast()).then_some((address.into(), index))
        }
        _ => None,
    });
    Ok((message.bytes, Path { client, host }))
}

/// Sends an answer.
///
/// # Errors
/// The kernel's.
pub async fn answer(socket: &UdpSocket, packet: &[u8], path: &Path) -> io::Result<usize> {
    socket.async_io(Interest::WRITABLE, || answer_now(socket, packet, path)).await
}

fn answer_now(socket: &UdpSocket, packet: &[u8], path: &Path) -> io::Result<usize> {
    let (parts, to) = ([IoSlice::new(packet)], SockaddrStorage::from(path.client));
    let send = |control: &[ControlMessage<'_>]| {
        let flags = MsgFlags::MSG_DONTWAIT;
        Ok(sendmsg(socket.as_raw_fd(), &parts, control, flags, Some(&to))?)
    };
    match path.host {
        None => send(&[]),
        Some((IpAddr::V4(address), _)) => {
            let unset = libc::in_addr { s_addr: 0 };
            let source = libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: unset };
            send(&[ControlMessage::Ipv4PacketInfo(&info)])
        }
        Some((IpAddr::V6(address), index)) => {
            let ipi6_addr = libc::in6_addr { s6_addr: address.octets() };
            let info = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: index };
            send(&[ControlMessage::Ipv6PacketInfo(&info)])
        }
    }
}

/// The host's address, of a broadcast too.
fn local4(info: &libc::in_pktinfo) -> Ipv4Addr {
    Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes())
}

fn address_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddrV4::from(*address).into());
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddrV6::from(*address).into()))
}
