//! Several hosts on one segment, and etcd on it.

use super::container::Container;
use super::{Agent, Host, Space, eventually};
use std::process::{Child, Stdio};

/// A switch with hosts, which have 192.0.2.1, 192.0.2.2, … and 2001:db8::1, 2001:db8::2, …; etcd is at 192.0.2.200 and 2001:db8::200.
pub struct Lan {
    pub hosts: Vec<Host>,
    pub etcd: Option<Child>,
    switch: Space,
    dir: tempfile::TempDir,
}

/// Where etcd is.
pub const ETCD: &str = "http://192.0.2.200:2379";
/// The same by IPv6.
pub const ETCD6: &str = "http://[2001:db8::200]:2379";

/// What etcd lists beside, as if it listened there too.
pub const MEMBER: &str = "http://192.0.2.200:2378";

impl Lan {
    pub fn new(count: usize) -> Lan {
        let switch = Space::new();
        switch.ok("ip link add br0 type bridge && ip addr add 192.0.2.200/24 dev br0 && ip link set br0 up");
        switch.ok("ip addr add 2001:db8::200/64 dev br0 nodad");
        let hosts = (1..=count).map(|number| {
            let host = Host::bare(&format!("h{number}"));
            let pid = host.space.pid();
            switch.ok(&format!(
                "ip link add p{number} master br0 type veth peer name eth0 netns {pid} && ip link set p{number} up"
            ));
            host.space.ok(&format!("ip addr add 2001:db8::{number}/64 dev eth0 nodad"));
            host.give_underlay(&format!("192.0.2.{number}/24"));
            host
        });
        let hosts = hosts.collect();
        Lan { hosts, etcd: None, switch, dir: tempfile::tempdir().unwrap() }
    }

    /// Starts etcd, anew or with the data it had.
    pub fn start_etcd(&mut self) {
        let mut command = self.switch.command("etcd");
        command.args(["--data-dir"]).arg(self.dir.path().join("etcd"));
        command.args(["--listen-client-urls", &format!("{ETCD},{ETCD6}")]);
        command.args(["--advertise-client-urls", &format!("{ETCD},{MEMBER}")]);
        command.args(["--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "error"]);
        command.args(["--unsafe-no-fsync"]);
        self.etcd =
            Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        eventually("etcd answers", || self.switch.run(&format!("curl -sf {ETCD}/health")).status.success());
    }

    /// Starts the agents of the first two hosts, with network `ov` of IPv4 and a container on each: they reach each other.
    #[track_caller]
    pub fn pair(&self) -> ([Agent; 2], [Container; 2]) {
        let [h1, h2, ..] = &self.hosts[..] else { panic!("a pair needs two hosts") };
        let flags = ["--etcd", ETCD];
        let agents = [h1.ready(&flags), h2.ready(&flags)];
        h1.create("ov", &["10.42.0.0/16"]);
        h2.sync();
        let (one, two) = (Container::new(h1, "ov", "one"), Container::new(h2, "ov", "two"));
        assert!(one.reaches(&two));
        (agents, [one, two])
    }

    pub fn stop_etcd(&mut self) {
        if let Some(mut etcd) = self.etcd.take() {
            let _ = etcd.kill();
            let _ = etcd.wait();
        }
    }

    /// The namespace of the switch, which is where etcd is.
    pub fn switch(&self) -> &Space {
        &self.switch
    }

    /// Gives a host a second interface on the segment, which is down.
    pub fn add_interface(&self, number: usize, name: &str) {
        let pid = self.hosts[number - 1].space.pid();
        self.switch.ok(&format!(
            "ip link add {name}-{number} master br0 type veth peer name {name} netns {pid} && ip link set {name}-{number} up"
        ));
    }

    /// Pulls a host's plug out, or puts it in again.
    pub fn plug(&self, number: usize, state: &str) {
        self.switch.ok(&format!("ip link set p{number} {state}"));
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.stop_etcd();
    }
}
