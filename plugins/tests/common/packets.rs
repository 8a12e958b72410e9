//! Programs in Python that send and answer packets, also such as no kernel would send.

/// Sends one UDP datagram in a frame to the gateway: link, the gateway's MAC, source and destination address and port.
pub const FORGE: &str = r#"
import ipaddress, socket, struct, sys
link, mac, src, sport, dst, dport = sys.argv[1:]
s, d = ipaddress.ip_address(src), ipaddress.ip_address(dst)
def csum(b):
    b += b"\0" * (len(b) % 2)
    t = sum(struct.unpack(f"!{len(b) // 2}H", b))
    while t >> 16: t = (t & 0xffff) + (t >> 16)
    return ~t & 0xffff
udp = struct.pack("!HHHH", int(sport), int(dport), 12, 0) + b"ping"
pseudo = s.packed + d.packed + (struct.pack("!BBH", 0, 17, 12) if s.version == 4 else struct.pack("!II", 12, 17))
udp = udp[:6] + struct.pack("!H", csum(pseudo + udp) or 0xffff) + udp[8:]
if s.version == 4:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 32, 1, 0, 64, 17, 0, s.packed, d.packed)
    packet, kind = head[:10] + struct.pack("!H", csum(head)) + head[12:] + udp, 0x800
else:
    packet, kind = struct.pack("!IHBB16s16s", 6 << 28, 12, 17, 64, s.packed, d.packed) + udp, 0x86dd
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind((link, 0))
own = out.getsockname()[4]
out.send(bytes.fromhex(mac.replace(":", "")) + own + struct.pack("!H", kind) + packet)
"#;

/// Sends a TCP reset of no connection, which connection tracking calls invalid.
pub const RESET: &str = r#"
import ipaddress, socket, struct, sys
s, d = (ipaddress.ip_address(a) for a in sys.argv[1:])
def csum(b):
    t = sum(struct.unpack(f"!{len(b) // 2}H", b))
    while t >> 16: t = (t & 0xffff) + (t >> 16)
    return ~t & 0xffff
tcp = struct.pack("!HHIIBBHHH", 4000, 9999, 1, 0, 0x50, 4, 0, 0, 0)
pseudo = s.packed + d.packed + (struct.pack("!BBH", 0, 6, 20) if s.version == 4 else struct.pack("!II", 20, 6))
tcp = tcp[:16] + struct.pack("!H", csum(pseudo + tcp)) + tcp[18:]
out = socket.socket(socket.AF_INET if s.version == 4 else socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_TCP)
out.bind((str(s), 0))
out.sendto(tcp, (str(d), 0))
"#;

/// Asks a UDP server from a certain address and port; prints its answer.
pub const ASK: &str = r#"
import socket, sys
src, sport, dst, dport, wait = sys.argv[1:]
s = socket.socket(socket.AF_INET6 if ":" in src else socket.AF_INET, socket.SOCK_DGRAM)
s.bind((src, int(sport)))
s.settimeout(float(wait))
s.sendto(b"ask", (dst, int(dport)))
print(s.recvfrom(100)[0].decode())
"#;

/// Answers every datagram with its sender's address.
pub const SERVE: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", int(sys.argv[1])))
print("ready", flush=True)
while True:
    data, peer = s.recvfrom(100)
    s.sendto(peer[0].encode(), peer)
"#;
