//! VXLAN packets made by hand (RFC 7348): a datagram of a network, as another host would have sent it.

use crate::cluster::{Cluster, Member};
use crate::echo::checksum;
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// Where a forged datagram is listened for in a container.
const PORT: u16 = 7777;

/// A packet with a word for a container.
pub struct Forged {
    /// The underlay address of the container's host.
    pub vtep: IpAddr,
    vni: u32,
    vtep_mac: [u8; 6],
    from: IpAddr,
    to: IpAddr,
    listener: UdpSocket,
}

impl Forged {
    /// Packets of `network` to a container, that seem to come from another container.
    #[track_caller]
    pub fn new(lab: &Cluster, network: &str, to: &Member, from: &Member, vtep: &str) -> Forged {
        let about = lab.runtime(&to.on, &format!("network inspect {network}")).ok().json();
        let about = &about[0]["Weft"];
        let device = about["Device"].as_str().unwrap_or_default();
        let link = lab.sh(&to.on, &format!("ip -j link show dev {device}")).ok().json();
        let mac = link[0]["address"].as_str().unwrap_or_default();
        let mut vtep_mac = [0; 6];
        for (byte, text) in vtep_mac.iter_mut().zip(mac.split(':')) {
            *byte = u8::from_str_radix(text, 16).unwrap_or_default();
        }
        assert_ne!(vtep_mac, [0; 6], "{device}: {mac}");
        Forged {
            vtep: vtep.parse().unwrap_or_else(|e| panic!("{vtep}: {e}")),
            vni: about["VNI"].as_u64().unwrap_or_else(|| panic!("no VNI: {about}")) as u32,
            vtep_mac,
            from: from.v4,
            to: to.v4,
            listener: crate::cluster::udp(&lab.netns_of(to), &format!("0.0.0.0:{PORT}")),
        }
    }

    /// Whether the container hears a word that is sent in such a packet from a socket.
    #[track_caller]
    pub fn passes(&self, socket: &UdpSocket, word: &str) -> bool {
        self.passes_to(self.vtep, socket, word)
    }

    /// The same to another underlay address than the VTEP.
    #[track_caller]
    pub fn passes_to(&self, address: IpAddr, socket: &UdpSocket, word: &str) -> bool {
        let sent = socket.send_to(&self.packet(word), SocketAddr::new(address, 4789));
        assert!(sent.is_ok(), "{word}: {sent:?}");
        let mut heard = [0; 200];
        while let Ok((len, from)) = self.listener.recv_from(&mut heard) {
            if &heard[..len] == word.as_bytes() {
                assert_eq!(from.ip(), self.from);
                return true;
            }
        }
        false
    }

    fn packet(&self, word: &str) -> Vec<u8> {
        let (IpAddr::V4(from), IpAddr::V4(to)) = (self.from, self.to) else { panic!("an IPv4 datagram") };
        let datagram = 8 + word.len();
        let mut packet = vec![0x08, 0, 0, 0];
        packet.extend(&self.vni.to_be_bytes()[1..]);
        packet.push(0);
        packet.extend(self.vtep_mac);
        packet.extend([0x02, 0, 0, 0, 0, 0x66, 0x08, 0x00]);
        let mut header = vec![0x45, 0];
        header.extend((20 + datagram as u16).to_be_bytes());
        // No fragment; 64 hops; UDP.
        header.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        header.extend(from.octets());
        header.extend(to.octets());
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(header);
        packet.extend(6666u16.to_be_bytes());
        packet.extend(PORT.to_be_bytes());
        packet.extend((datagram as u16).to_be_bytes());
        // Zero: without a checksum (RFC 768).
        packet.extend([0, 0]);
        packet.extend(word.as_bytes());
        packet
    }
}
