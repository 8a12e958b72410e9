//! Services of Weft on the host: published ports that a program answers, and what the overlay agent listens on.

use socket2::SockRef;
use std::os::fd::AsFd;

/// The mark (SO_MARK) of their sockets, which containers of internal networks do not reach: one bit, of those that other
/// programs use least (Kubernetes has bits 14 and 15, the reference's portmap 13, Tailscale 16 to 23). Packets that such a
/// socket sends have it too, so that a policy rule (`ip rule`) for this bit would apply to them.
pub const SERVICE_MARK: u32 = 0x1000_0000;

/// Marks a socket as one of these, before it listens: the sockets of its connections have the mark from it.
///
/// Without CAP_NET_ADMIN and CAP_NET_RAW it stays as it is. Such a caller could not have closed a network on this host.
pub fn mark_service(socket: &impl AsFd) {
    let _ = SockRef::from(socket).set_mark(SERVICE_MARK);
}
