//! Hosts for the tests of the agent: network namespaces, held by a process each, with a directory for root and run; and
//! the real agent in them. Everything ends with the test, also when that dies.
#![allow(dead_code, reason = "every test file uses its part")]

pub mod container;
pub mod lan;
pub mod pings;

use ovl_api::Client;
use ovl_api::wire::{NetworkCreate, Status};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long something that happens eventually may take: far more than it needs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace.
pub struct Space(Child);

impl Space {
    pub fn new() -> Space {
        // The test's end, however it comes, ends the holder, and with it the namespace.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]);
        let space = Space(command.stdin(Stdio::null()).spawn().unwrap());
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        eventually("a namespace of its own", || std::fs::read_link(space.path()).is_ok_and(|ns| ns != own));
        space.ok("ip link set lo up");
        space
    }

    /// The process that holds it.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.0.id()))
    }

    /// A command in it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter"]);
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a line of shell in it.
    pub fn run(&self, line: &str) -> Output {
        self.command("sh").args(["-c", line]).output().unwrap()
    }

    /// Runs a line that has to succeed, and returns what it printed.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A host: a namespace, and a directory for what its agent keeps.
pub struct Host {
    pub name: String,
    pub space: Space,
    pub dir: tempfile::TempDir,
}

/// A running agent; dropped, it is killed.
pub struct Agent {
    pub child: Child,
    log: PathBuf,
}

impl Host {
    /// A host without any network.
    pub fn bare(name: &str) -> Host {
        Host { name: name.to_owned(), space: Space::new(), dir: tempfile::tempdir().unwrap() }
    }

    /// A host with an underlay that leads nowhere: `eth0` with 192.0.2.1/24 and a default route.
    pub fn alone(name: &str) -> Host {
        let host = Host::bare(name);
        host.space.ok("ip link add eth0 type veth peer name far; ip link set far up");
        host.give_underlay("192.0.2.1/24");
        host
    }

    pub fn give_underlay(&self, address: &str) {
        self.space.ok(&format!(
            "ip addr add {address} dev eth0; ip link set eth0 up; ip route replace default via 192.0.2.254 dev eth0"
        ));
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn socket(&self) -> PathBuf {
        ovl_api::names::socket(&self.run_dir())
    }

    pub fn client(&self) -> Client {
        Client::new(self.socket())
    }

    /// `ovl-agent` with these words, in this host, with its directories and none of the machine's configuration. OVL_AGENT
    /// names another build of it to try.
    pub fn ovl_agent(&self, words: &[&str]) -> Command {
        let program = std::env::var_os("OVL_AGENT").unwrap_or_else(|| env!("CARGO_BIN_EXE_ovl-agent").into());
        let mut command = self.space.command(program);
        command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("WEFT_ROOT", self.root()).env("WEFT_RUN", self.run_dir());
        command.env("WEFT_AGENT_CONFIG", "/dev/null").env("WEFT_NODE_NAME", &self.name);
        command
    }

    /// Starts the agent with these flags.
    pub fn start(&self, flags: &[&str]) -> Agent {
        self.start_with(flags, |command| command)
    }

    pub fn start_with(&self, flags: &[&str], with: impl Fn(&mut Command) -> &mut Command) -> Agent {
        let log = self.dir.path().join("log");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut command = self.ovl_agent(&[&["run"], flags].concat());
        let child =
            with(&mut command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Agent { child, log }
    }

    /// Starts the agent and waits until it is ready.
    #[track_caller]
    pub fn ready(&self, flags: &[&str]) -> Agent {
        let mut agent = self.start(flags);
        let start = Instant::now();
        while let Err(error) = self.client().healthz() {
            let ended = agent.child.try_wait().unwrap();
            let late = start.elapsed() > PATIENCE;
            assert!(
                ended.is_none() && !late,
                "{} is not ready: {error}; it said:\n{}",
                self.name,
                agent.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        agent
    }

    /// Makes a network with this subnet.
    #[track_caller]
    pub fn create(&self, name: &str, subnets: &[&str]) -> ovl_api::model::Network {
        let subnets = subnets.iter().map(|subnet| subnet.parse().unwrap()).collect();
        let create = NetworkCreate { name: name.into(), subnets, ..NetworkCreate::default() };
        self.client().create_network(&create).unwrap()
    }

    #[track_caller]
    pub fn sync(&self) -> Status {
        self.client().sync().unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Deletes the `unreachable` route of a subnet, and returns how long the agent took to restore it: the least that anything takes
    /// on a machine that is as busy as this one.
    #[track_caller]
    pub fn restoring(&self, subnet: &str) -> Duration {
        let repairs = || self.client().status(None).unwrap().repairs;
        let before = repairs().count;
        self.space.ok(&format!("ip route del unreachable {subnet}"));
        eventually("the route is restored", || repairs().count > before);
        Duration::from_millis(repairs().last.unwrap().took_ms)
    }

    /// The agent's routes of both families.
    pub fn routes(&self) -> String {
        self.space.ok("ip route show proto 87; ip -6 route show proto 87")
    }
}

impl Agent {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that agents of this host have said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal and waits for the end.
    #[track_caller]
    pub fn end(&mut self, signal: &str) -> std::process::ExitStatus {
        self.signal(signal);
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the agent does not end; it said:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.pid().to_string()]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until it is so.
#[track_caller]
pub fn eventually(what: &str, is: impl FnMut() -> bool) {
    assert!(within(is), "not yet: {what}");
}

/// Waits until it is so; false when it never is.
pub fn within(mut is: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !is() {
        if start.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// An exchange with a socket by curl, as users do it: the status and the body.
pub fn curl(socket: &Path, args: &[&str]) -> (u16, String) {
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "20", "-w", "\n%{http_code}", "--unix-socket"]).arg(socket).args(args);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", "0"));
    (status.parse().unwrap_or_default(), body.trim_end().to_owned())
}
