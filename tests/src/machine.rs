//! Another machine on the host's link.

use crate::command::{Output, Running};
use crate::host::Host;

/// Another machine: a namespace on a veth to the host. The host is 192.0.2.1 and 2001:db8:ffff::1 on that link, the
/// machine 192.0.2.2 and 2001:db8:ffff::2. It knows no other routes, as a neighbour in a data centre.
#[derive(Debug)]
pub struct Machine<'h> {
    host: &'h Host,
    name: String,
}

impl Machine<'_> {
    /// The host's IPv4 address on the link.
    pub const HOST: &'static str = "192.0.2.1";
    /// The host's IPv6 address on the link.
    pub const HOST6: &'static str = "2001:db8:ffff::1";
    /// The machine's IPv4 address.
    pub const ADDRESS: &'static str = "192.0.2.2";
    /// The machine's IPv6 address.
    pub const ADDRESS6: &'static str = "2001:db8:ffff::2";
}

impl Host {
    /// Links another machine; it belongs to the baseline from then on.
    #[track_caller]
    pub fn link_machine(&self, name: &str) -> Machine<'_> {
        self.run(&link_line(name)).ok();
        self.note_baseline();
        Machine { host: self, name: name.to_owned() }
    }
}

/// The line of shell that links another machine.
pub fn link_line(name: &str) -> String {
    let (host, host6) = (Machine::HOST, Machine::HOST6);
    let (address, address6) = (Machine::ADDRESS, Machine::ADDRESS6);
    format!(
        "set -e; ip netns add {name}; ip link add uplink0 type veth peer name eth0 netns {name}
         ip link set uplink0 addrgenmode none; ip -n {name} link set eth0 addrgenmode none
         ip addr add {host}/24 dev uplink0; ip -6 addr add {host6}/64 dev uplink0 nodad
         ip -n {name} link set lo up; ip -n {name} addr add {address}/24 dev eth0
         ip -n {name} -6 addr add {address6}/64 dev eth0 nodad
         ip link set uplink0 up; ip -n {name} link set eth0 up"
    )
}

impl Machine<'_> {
    /// Runs a line of shell there.
    #[track_caller]
    pub fn run(&self, line: &str) -> Output {
        self.host.run_in(&self.name, line)
    }

    /// Starts a program there.
    #[track_caller]
    pub fn spawn(&self, program: &str, args: &[&str]) -> Running {
        let mut all = vec!["netns", "exec", self.name.as_str(), program];
        all.extend(args);
        self.host.spawn("ip", &all)
    }

    /// Runs the traffic helper there.
    #[track_caller]
    pub fn traffic(&self, args: &str) -> Output {
        self.run(&format!("{} {args}", crate::traffic().display()))
    }
}
