//! Who holds a port: another container, by the state of all, else the process that has the socket.

use super::form::clash;
use crate::paths::Paths;
use crate::spec::{PortMapping, Protocol};
use crate::state::{Container, Status};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// In words that go behind "is already in use"; empty when nobody is found (a process that this one may not look into,
/// or that has gone).
pub fn find(paths: &Paths, id: &str, mapping: &PortMapping, address: SocketAddr) -> String {
    let process = inodes(mapping.protocol, address).iter().find_map(|inode| process(*inode));
    let pid = process.as_ref().and_then(|(pid, _)| i32::try_from(*pid).ok());
    if let Some(container) = container(paths, id, mapping, pid) {
        return format!(" by container {container}");
    }
    match process {
        Some((pid, command)) => format!(" by process {pid} ({command})"),
        None => String::new(),
    }
}

/// The container whose supervisor is the process that was found; else, when none was, the one that says it has the port.
fn container(paths: &Paths, id: &str, mapping: &PortMapping, pid: Option<i32>) -> Option<String> {
    let all = Container::all(paths).ok()?;
    let holds = |each: &&Container| match pid {
        Some(pid) => each.state.supervisor_pid == pid,
        None => {
            each.spec.id != id
                && each.state.status == Status::Running
                && each.state.ports.iter().any(|port| clash(port, mapping))
        }
    };
    all.iter().find(holds).map(|each| format!("{} ({})", each.spec.name, each.spec.short_id()))
}

/// The inodes of the sockets that keep an address from being bound, of this thread's network namespace.
fn inodes(protocol: Protocol, address: SocketAddr) -> Vec<u64> {
    let table = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => return Vec::new(),
    };
    let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
    let mut found = listeners(&read(table), protocol, address);
    found.extend(listeners(&read(&format!("{table}6")), protocol, address));
    found
}

/// Lines of /proc/net/tcp and its like (kernel: Documentation/networking/proc_net_tcp.rst) that hold the address.
fn listeners(table: &str, protocol: Protocol, address: SocketAddr) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (ip, port) = local(fields.get(1)?)?;
        let listens = protocol != Protocol::Tcp || fields.get(3) == Some(&LISTEN);
        let same_ip = ip == address.ip() || ip.is_unspecified() || address.ip().is_unspecified();
        // A socket on [::] may hold the port in IPv4 too.
        let same_family = ip.is_ipv4() == address.is_ipv4() || ip.is_unspecified() && ip.is_ipv6();
        let inode: u64 = fields.get(9)?.parse().ok()?;
        (listens && port == address.port() && same_ip && same_family && inode != 0).then_some(inode)
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// `0100007F:1F90`: an address in words of the host's byte order, and a port.
fn local(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = if ip.len() == 8 {
        IpAddr::from(Ipv4Addr::from(word(0)?))
    } else {
        let words = [word(0)?, word(8)?, word(16)?, word(24)?];
        let mut octets = [0; 16];
        for (to, from) in octets.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&from);
        }
        IpAddr::from(Ipv6Addr::from(octets))
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

/// The process that has the socket with this inode open, and its command.
fn process(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(fds) = fs::read_dir(process.path().join("fd")) else { continue };
        if fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str()))
        {
            return Some((pid, command(pid)));
        }
    }
    None
}

fn command(pid: u32) -> String {
    const LONGEST: usize = 80;
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(String::from_utf8_lossy);
    let line = words.collect::<Vec<_>>().join(" ");
    if line.is_empty() {
        return fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    }
    if line.chars().count() <= LONGEST { line } else { line.chars().take(LONGEST).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_behind_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let found = inodes(Protocol::Tcp, address).iter().find_map(|inode| process(*inode));
        assert_eq!(found.map(|(pid, _)| pid), Some(std::process::id()));
    }

    #[test]
    fn a_socket_on_all_addresses_holds_each() {
        let udp = std::net::UdpSocket::bind("[::]:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        assert!(!inodes(Protocol::Udp, SocketAddr::from(([127, 0, 0, 1], port))).is_empty());
        assert!(inodes(Protocol::Tcp, SocketAddr::from(([127, 0, 0, 1], port))).is_empty());
    }

    #[test]
    fn a_listening_line_is_read() {
        let line = "h\n 0: 0100007F:1F90 00000000:0000 0A 0:0 00:0 0 0 0 4711 1\n";
        let found = listeners(line, Protocol::Tcp, SocketAddr::from(([127, 0, 0, 1], 8080)));
        if cfg!(target_endian = "little") {
            assert_eq!(found, [4711]);
        }
    }
}
