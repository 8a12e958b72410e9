//! The overlay agent on a test's machine.

use crate::command::{Output, Running};
use crate::host::Host;
use std::time::{Duration, Instant};

/// Where the agent answers, on the machine.
pub const SOCKET: &str = "/run/weft/ovl-agent.sock";
/// How long it may take to be ready, or to end. Far more than it needs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running agent. Dropped, it is killed.
#[derive(Debug)]
pub struct Agent {
    running: Running,
    pid: u32,
}

impl Host {
    /// Starts `ovl-agent run` with these flags, and waits until it is ready. What it keeps in its root is no leak of this
    /// machine.
    ///
    /// # Panics
    /// When it is never ready.
    #[track_caller]
    pub fn agent(&self, flags: &str) -> Agent {
        self.tolerate("/var/lib/weft/ovl-agent");
        let agent = self.agent_unready(flags);
        let start = Instant::now();
        while self.ask_agent("GET", "/healthz").code != 0 {
            let said = agent.said();
            assert!(start.elapsed() < PATIENCE, "the agent is never ready; it said: {said}");
            std::thread::sleep(Duration::from_millis(10));
        }
        agent
    }

    /// Starts `ovl-agent run` with these flags.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn agent_unready(&self, flags: &str) -> Agent {
        let program = crate::dist().join("bin/ovl-agent");
        // Its ID in the machine's namespace, and its log behind it.
        let line = format!("echo $$; exec {} run {flags} 2>&1", program.display());
        let mut running = self.spawn("/bin/sh", &["-c", &line]);
        let first = running.until("\n").so_far();
        let pid = first.lines().next().and_then(|line| line.parse().ok());
        Agent { running, pid: pid.unwrap_or_else(|| panic!("the agent did not start: {first}")) }
    }

    /// A request to the agent, as `curl --unix-socket` sends it; fails when the answer is an error.
    #[track_caller]
    pub fn ask_agent(&self, method: &str, path: &str) -> Output {
        let url = format!("http://ovl-agent{path}");
        let args = ["-sS", "--fail-with-body", "-m", "20", "-X", method, "--unix-socket", SOCKET, &url];
        self.exec("curl", &args)
    }
}

impl Agent {
    /// Everything it has written so far.
    pub fn said(&self) -> String {
        self.running.so_far()
    }

    /// Its process, seen on its machine.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it in good order, and returns what it said.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn stop(self, host: &Host) -> String {
        self.signal(host, "TERM")
    }

    /// Kills it.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn kill(self, host: &Host) -> String {
        self.signal(host, "KILL")
    }

    #[track_caller]
    fn signal(self, host: &Host, signal: &str) -> String {
        host.run(&format!("kill -{signal} {}", self.pid)).ok();
        let start = Instant::now();
        while host.run(&format!("kill -0 {}", self.pid)).code == 0 {
            assert!(start.elapsed() < PATIENCE, "the agent does not end; it said: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.said()
    }
}
