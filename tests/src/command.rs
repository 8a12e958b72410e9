//! Commands with a time limit, and what they answered.

use serde_json::Value;
use std::fmt;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What a command that has ended left: its exit code and everything it wrote.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command, for messages.
    pub what: String,
    /// The exit code, or 128 + the signal that ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` ended with {}\nstdout: {}\nstderr: {}",
            self.what, self.code, self.stdout, self.stderr
        )
    }
}

impl Output {
    /// The output of a command that must have succeeded.
    ///
    /// # Panics
    /// When it has not.
    #[track_caller]
    pub fn ok(self) -> Output {
        assert!(self.code == 0, "{self}");
        self
    }

    /// The output of a command that must have ended with this code.
    ///
    /// # Panics
    /// When it ended with another one.
    #[track_caller]
    pub fn code(self, code: i32) -> Output {
        assert!(self.code == code, "expected exit code {code}, but {self}");
        self
    }

    /// Standard output without the white space around it.
    pub fn text(&self) -> &str {
        self.stdout.trim()
    }

    /// Standard output as exactly one JSON document.
    ///
    /// # Panics
    /// When it is none, or more than one.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("stdout is not one JSON document ({e}): {self}"))
    }
}

fn drain(source: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut source) = source {
            let _ = source.read_to_end(&mut all);
        }
        let _ = send.send(all);
    });
    receive
}

/// The direct children of a process, by their parent in `/proc/PID/stat`.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        after_name.split(' ').nth(1).and_then(|ppid| ppid.parse().ok()) == Some(parent)
    })
    .collect()
}

/// Ends a process we started and those it started directly (`nsenter` and the command in the namespaces).
fn end(child: &mut Child) {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    for pid in children(child.id()) {
        let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Runs a command to its end, feeding it `stdin`.
///
/// # Panics
/// When it cannot be started, takes longer than `limit`, or leaves something behind that keeps its output open (a
/// shell's `$(…)` would then hang for ever).
#[track_caller]
pub(crate) fn run(mut command: Command, what: &str, stdin: &[u8], limit: Duration) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start `{what}`: {e}"));
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    if let Some(mut pipe) = child.stdin.take() {
        let stdin = stdin.to_vec();
        // A command may refuse its input half way; that is not an error here.
        std::thread::spawn(move || drop(pipe.write_all(&stdin)));
    }
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() < limit => std::thread::sleep(Duration::from_millis(1)),
            other => {
                end(&mut child);
                let text =
                    |from: Receiver<Vec<u8>>| from.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
                let (stdout, stderr) = (text(stdout), text(stderr));
                panic!(
                    "`{what}` has not ended within {limit:?} ({other:?})\nstdout: {}\nstderr: {}",
                    String::from_utf8_lossy(&stdout),
                    String::from_utf8_lossy(&stderr)
                );
            }
        }
    };
    let text = |from: Receiver<Vec<u8>>| match from.recv_timeout(Duration::from_secs(5)) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(RecvTimeoutError::Timeout) => panic!("`{what}` has ended, but something keeps its output open"),
        Err(RecvTimeoutError::Disconnected) => String::new(),
    };
    Output { what: what.to_owned(), code: exit_code(status), stdout: text(stdout), stderr: text(stderr) }
}

/// A command in the background; ended, with what it started, when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    output: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Running {
    #[track_caller]
    pub(crate) fn start(mut command: Command, what: &str) -> Running {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start `{what}`: {e}"));
        let output = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        if let Some(mut pipe) = child.stdout.take() {
            let output = output.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                    if let Ok(mut output) = output.lock() {
                        output.push_str(&String::from_utf8_lossy(&buffer[..n]));
                    }
                }
            });
        }
        Running { child, what: what.to_owned(), output }
    }

    /// Everything it has written to standard output so far.
    pub fn so_far(&self) -> String {
        self.output.lock().map(|text| text.clone()).unwrap_or_default()
    }

    /// Waits until its output contains `text`, at most ten seconds.
    ///
    /// # Panics
    /// When it never does.
    #[track_caller]
    pub fn until(&mut self, text: &str) -> &mut Running {
        let start = Instant::now();
        while !self.so_far().contains(text) {
            let ended = self.child.try_wait().ok().flatten();
            assert!(
                start.elapsed() < Duration::from_secs(10) && ended.is_none(),
                "`{}` never said {text:?} ({ended:?}); it said: {}",
                self.what,
                self.so_far()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
