//! Pings at fifty a second, and when they are answered.

use super::container::Container;
use super::eventually;
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Pings from one container to another, until it is dropped.
pub struct Pings {
    child: Child,
    out: tempfile::NamedTempFile,
}

impl Pings {
    /// Begins with them; the first has been answered.
    #[track_caller]
    pub fn new(from: &Container, to: IpAddr) -> Pings {
        let out = tempfile::NamedTempFile::new().unwrap();
        let mut command = from.space.command("ping");
        command.args(["-n", "-D", "-i", "0.02", &to.to_string()]);
        let child =
            command.stdin(Stdio::null()).stdout(out.reopen().unwrap()).stderr(Stdio::null()).spawn().unwrap();
        let pings = Pings { child, out };
        eventually("the first answer", || pings.answers().next().is_some());
        pings
    }

    /// When an answer came.
    fn answers(&self) -> impl Iterator<Item = SystemTime> {
        let said = std::fs::read_to_string(self.out.path()).unwrap();
        // Lines as `[1764433482.123456] 64 bytes from 10.42.0.5: icmp_seq=1 ttl=62 time=0.1 ms`; others are of errors.
        let lines = said.lines().filter(|line| line.contains(" bytes from ")).map(str::to_owned);
        let at = |line: String| line.strip_prefix('[')?.split_once(']')?.0.parse::<f64>().ok();
        let times: Vec<f64> = lines.filter_map(at).collect();
        times.into_iter().map(|seconds| UNIX_EPOCH + Duration::from_secs_f64(seconds))
    }

    /// From a moment to the first answer after it, for which this waits.
    #[track_caller]
    pub fn outage(&self, since: SystemTime) -> Duration {
        let first = || self.answers().find(|at| *at >= since);
        eventually("a ping is answered", || first().is_some());
        first().and_then(|at| at.duration_since(since).ok()).unwrap()
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
