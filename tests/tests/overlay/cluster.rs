//! A lab that the tests of this suite work in: commands on its hosts, its containers, and what is sent from inside a network
//! namespace by this process itself, so that nothing has to be started between two events.

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tests::{Host, Output};

/// Until what happens soon has happened. Far more than it needs.
pub const SOON: Duration = Duration::from_secs(20);

/// A lab of the name `lab` on a machine of its own.
pub struct Cluster {
    pub host: Host,
}

/// A container in a lab.
#[derive(Debug, Clone)]
pub struct Member {
    pub on: String,
    pub name: String,
    pub pid: u64,
    /// Its addresses in its first network: IPv4, and IPv6 if it has one.
    pub v4: IpAddr,
    pub v6: Option<IpAddr>,
}

impl Member {
    pub fn ips(&self) -> Vec<IpAddr> {
        [Some(self.v4), self.v6].into_iter().flatten().collect()
    }
}

impl Cluster {
    /// A lab with so many hosts, host1 and on, and nothing on them.
    #[track_caller]
    pub fn bare(hosts: usize) -> Cluster {
        Cluster::up(&format!("hosts: {hosts}\n"))
    }

    /// A lab as a file describes it.
    #[track_caller]
    pub fn up(file: &str) -> Cluster {
        let host = Host::new();
        host.write("/run/lab.yaml", file);
        host.note_baseline();
        host.weft().run("lab up -q /run/lab.yaml").ok();
        Cluster { host }
    }

    /// Takes it down; nothing of it is left on the machine.
    #[track_caller]
    pub fn down(self) {
        self.host.weft().run("lab down").ok();
        self.host.assert_as_before();
    }

    /// A command as a user of the host gives it.
    #[track_caller]
    pub fn exec(&self, on: &str, line: &str) -> Output {
        self.host.weft().run(&format!("lab exec {on} -- {line}"))
    }

    /// A command of the runtime on a host.
    #[track_caller]
    pub fn runtime(&self, on: &str, line: &str) -> Output {
        self.exec(on, &format!("runtime {line}"))
    }

    /// A line of shell in a machine's network namespace.
    #[track_caller]
    pub fn sh(&self, machine: &str, line: &str) -> Output {
        let netns = format!("--net=/run/weft/labs/lab/netns/{machine}");
        self.host.exec("nsenter", &[&netns, "/bin/sh", "-c", line])
    }

    /// A line of shell in a container's network namespace, with all the rights of the machine.
    #[track_caller]
    pub fn sh_in(&self, member: &Member, line: &str) -> Output {
        self.host.exec("nsenter", &[&format!("--net=/proc/{}/ns/net", member.pid), "/bin/sh", "-c", line])
    }

    /// `network create --driver overlay` on host1; the others know of it at once.
    #[track_caller]
    pub fn network(&self, line: &str) {
        self.runtime("host1", &format!("network create --driver overlay {line}")).ok();
    }

    /// `run -d` of a container that sleeps.
    #[track_caller]
    pub fn run(&self, on: &str, name: &str, flags: &str) -> Member {
        self.runtime(on, &format!("run -d --name {name} {flags} sleep 1000")).ok();
        self.member(on, name)
    }

    /// A container that answers on TCP port 7000 with its name.
    #[track_caller]
    pub fn server(&self, on: &str, name: &str, flags: &str) -> Member {
        let traffic = tests::traffic();
        let dir = traffic.parent().unwrap_or(&traffic).display().to_string();
        self.runtime(
            on,
            &format!(
                "run -d --name {name} {flags} -v {dir}:/traffic:ro /traffic/weft-traffic tcp-serve [::]:7000 {name}"
            ),
        )
        .ok();
        let member = self.member(on, name);
        self.soon("it listens", || self.sh_in(&member, "ss -Htnl sport = :7000").stdout.contains("LISTEN"));
        member
    }

    /// What `inspect` tells of a container.
    #[track_caller]
    pub fn member(&self, on: &str, name: &str) -> Member {
        let about = self.runtime(on, &format!("inspect {name}")).ok().json();
        let about = &about[0];
        let networks = about["NetworkSettings"]["Networks"].as_object().cloned().unwrap_or_default();
        let first = networks.values().next().cloned().unwrap_or_default();
        let ip = |key: &str| first[key].as_str().and_then(|text| text.parse().ok());
        Member {
            on: on.to_owned(),
            name: name.to_owned(),
            pid: about["State"]["Pid"].as_u64().unwrap_or(0),
            v4: ip("IPAddress").unwrap_or_else(|| panic!("{name} has no address: {about}")),
            v6: ip("GlobalIPv6Address"),
        }
    }

    /// `rm -f`.
    #[track_caller]
    pub fn remove(&self, members: &[&Member]) {
        for member in members {
            self.runtime(&member.on, &format!("rm -f {}", member.name)).ok();
        }
    }

    /// The network namespace of a machine of the lab, for this process.
    pub fn netns(&self, machine: &str) -> PathBuf {
        self.host.path(format!("/run/weft/labs/lab/netns/{machine}"))
    }

    /// The network namespace of a container, for this process.
    pub fn netns_of(&self, member: &Member) -> PathBuf {
        self.host.path(format!("/proc/{}/ns/net", member.pid))
    }

    /// All keys of the lab's etcd, each with the revision that wrote it last, but for what hosts write by themselves: that
    /// they are alive, and what their kernels show.
    #[track_caller]
    pub fn keys(&self) -> Vec<String> {
        // From the first key to the last, as base64 of a NUL.
        let ask = r#"{"key":"AA==","range_end":"AA=="}"#;
        let out = self.sh("etcd1", &format!("curl -sS -m 10 http://10.99.0.2:2379/v3/kv/range -d '{ask}'"));
        let answer = out.ok().json();
        let all = answer["kvs"].as_array().cloned().unwrap_or_default();
        let shown = all.iter().map(|kv| {
            let key = base64(kv["key"].as_str().unwrap_or_default());
            format!("{key} {}", kv["mod_revision"])
        });
        let mut shown: Vec<String> =
            shown.filter(|key| !key.starts_with("/weft/c/live/") && !key.starts_with("/weft/a/")).collect();
        shown.sort();
        assert!(!shown.is_empty(), "etcd has something: {answer}");
        shown
    }

    /// What can be seen of the lab without asking an agent: etcd's keys, and of each host the kernel's state and the files.
    #[track_caller]
    pub fn state(&self, hosts: &[&str]) -> Vec<String> {
        let mut all = self.keys();
        all.extend(self.kernel_of(hosts));
        for host in hosts {
            let files = self.host.run(&format!("cd /run/weft/labs/lab/hosts/{host}; find root run etc")).ok();
            // What an agent has seen it writes down a while later.
            let lines = files.stdout.lines().filter(|line| !line.contains("view.json"));
            all.extend(lines.map(|line| format!("{host}: {line}")));
        }
        all.sort();
        all
    }

    /// What the kernels of hosts show: links, addresses, routes, permanent neighbours, forwarding, nftables.
    #[track_caller]
    pub fn kernel_of(&self, hosts: &[&str]) -> Vec<String> {
        let mut all = Vec::new();
        for host in hosts {
            let shown = self.sh(
                host,
                "ip -o link; ip -o addr show scope global; ip route show table all; ip -6 route show table all
                 ip neigh show nud permanent; ip -6 neigh show nud permanent; bridge fdb; nft -s list ruleset",
            );
            // The kernel makes link-local addresses and what belongs to them by itself, some time after the link.
            let by_itself = ["local fe80:", "anycast fe80:", "fe80::/64", "ff00::/8"];
            let shown = shown.ok().stdout;
            let lines = shown.lines().filter(|line| !by_itself.iter().any(|part| line.contains(part)));
            // Without how long something is valid yet.
            let words = |line: &str| line.split(" expires ").next().unwrap_or_default().trim_end().to_owned();
            all.extend(lines.map(|line| format!("{host}: {}", words(line))));
        }
        all.sort();
        all
    }

    /// Fails when the state is not as it was, once things have settled.
    #[track_caller]
    pub fn assert_still(&self, hosts: &[&str], before: &[String], what: &str) {
        let start = Instant::now();
        loop {
            let now = self.state(hosts);
            if now == before {
                return;
            }
            let only = |one: &[String], other: &[String]| {
                one.iter().filter(|line| !other.contains(line)).cloned().collect::<Vec<_>>().join("\n  ")
            };
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{what} changed something\nnew:\n  {}\ngone:\n  {}",
                only(&now, before),
                only(before, &now)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// When it never is.
    #[track_caller]
    pub fn soon(&self, what: &str, so: impl Fn() -> bool) {
        self.soon_or(what, so, String::new);
    }

    /// The same; the failure says more.
    #[track_caller]
    pub fn soon_or(&self, what: &str, so: impl Fn() -> bool, more: impl Fn() -> String) {
        let start = Instant::now();
        while !so() {
            assert!(start.elapsed() < SOON, "never: {what}; {}", more());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Does something on a thread in a network namespace; what it opens there stays there.
#[track_caller]
pub fn inside<T: Send>(netns: &Path, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let enter = || {
            let file = File::open(netns).unwrap_or_else(|e| panic!("{}: {e}", netns.display()));
            setns(&file, CloneFlags::CLONE_NEWNET).unwrap_or_else(|e| panic!("{}: {e}", netns.display()));
            act()
        };
        let done = scope.spawn(enter).join();
        done.unwrap_or_else(|_| panic!("failed in {}", netns.display()))
    })
}

/// Whether a server of [`Cluster::server`] says its name to somebody in a network namespace.
pub fn answers(netns: &Path, ip: IpAddr, patience: Duration) -> Option<String> {
    answers_at(netns, SocketAddr::new(ip, 7000), patience)
}

/// The same at another address and port that lead to the server.
pub fn answers_at(netns: &Path, to: SocketAddr, patience: Duration) -> Option<String> {
    inside(netns, || {
        let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        let mut said = String::new();
        stream.read_to_string(&mut said).ok()?;
        Some(said)
    })
}

/// A UDP socket in a network namespace.
#[track_caller]
pub fn udp(netns: &Path, bound: &str) -> UdpSocket {
    let socket = inside(netns, || UdpSocket::bind(bound)).unwrap_or_else(|e| panic!("{bound}: {e}"));
    socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap_or_else(|e| panic!("{bound}: {e}"));
    socket
}

/// What a base64 text (RFC 4648) says.
fn base64(text: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut have) = (Vec::new(), 0u32, 0);
    for value in text.bytes().filter_map(|c| DIGITS.iter().position(|digit| *digit == c)) {
        bits = bits << 6 | value as u32;
        have += 6;
        if have >= 8 {
            have -= 8;
            bytes.push((bits >> have & 0xff) as u8);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
