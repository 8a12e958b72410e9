//! A machine of its own, made of namespaces.

use crate::command::{self, Output, Running};
use crate::snapshot::{Leak, Snapshot};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long one command may take. Far more than any needs: it only keeps a test that hangs from hanging for ever.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How long what a command left to be done in the background may take (namespaces and links go asynchronously).
const SETTLE: Duration = Duration::from_secs(30);

/// A machine of its own: network, mount and PID namespaces; dropped, it checks that nothing was left, and goes.
#[derive(Debug)]
pub struct Host {
    holder: Child,
    /// While this is open, the machine lives.
    life: Option<ChildStdin>,
    pid: u32,
    baseline: Mutex<Option<Snapshot>>,
    tolerated: Mutex<Vec<String>>,
}

/// A lock that a failed test on another thread may have poisoned.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Host {
    fn default() -> Self {
        Host::new()
    }
}

impl Host {
    /// A new machine with nothing but `lo`, which is up.
    ///
    /// # Panics
    /// When the kernel refuses (the tests run as root).
    #[track_caller]
    pub fn new() -> Host {
        let mut holder = Command::new(crate::traffic())
            .arg("hold")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start the holder of namespaces: {e}"));
        let life = holder.stdin.take();
        let mut lines = BufReader::new(holder.stdout.take().unwrap_or_else(|| panic!("no stdout"))).lines();
        // The holder prints the PID, the first process `ready`; either may be first.
        let said: Vec<String> = lines.by_ref().take(2).map_while(Result::ok).collect();
        let pid = said.iter().find_map(|line| line.parse().ok());
        let (Some(pid), true) = (pid, said.iter().any(|line| line == "ready")) else {
            let _ = holder.kill();
            let _ = holder.wait();
            panic!("the kernel gives no namespaces (are you root?)");
        };
        let host = Host { holder, life, pid, baseline: Mutex::new(None), tolerated: Mutex::new(Vec::new()) };
        host.note_baseline();
        host
    }

    /// The PID of its first process, seen from outside.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// A file of this machine, as a path the test itself can open.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        Path::new(&format!("/proc/{}/root", self.pid)).join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Writes a file on this machine, with the directories above it.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    pub fn write(&self, inside: &str, content: impl AsRef<[u8]>) {
        let file = self.path(inside);
        let made = file.parent().map_or(Ok(()), std::fs::create_dir_all);
        made.and_then(|()| std::fs::write(&file, content)).unwrap_or_else(|e| panic!("write {inside}: {e}"));
    }

    /// A command to be run on this machine; its environment can still be changed.
    pub fn command(&self, program: impl AsRef<Path>, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--pid", "--target", &self.pid.to_string(), "--"]);
        command.arg(program.as_ref()).args(args);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs a program to its end.
    #[track_caller]
    pub fn exec(&self, program: impl AsRef<Path>, args: &[&str]) -> Output {
        let what = format!("{} {}", program.as_ref().display(), args.join(" "));
        command::run(self.command(program, args), &what, b"", LIMIT)
    }

    /// Runs a line of shell to its end.
    #[track_caller]
    pub fn run(&self, line: &str) -> Output {
        command::run(self.command("/bin/sh", &["-c", line]), line, b"", LIMIT)
    }

    /// Starts a program in the background.
    #[track_caller]
    pub fn spawn(&self, program: impl AsRef<Path>, args: &[&str]) -> Running {
        let what = format!("{} {}", program.as_ref().display(), args.join(" "));
        Running::start(self.command(program, args), &what)
    }

    /// Makes a named network namespace (`/run/netns/NAME`) and returns its path. Gone again with [`Host::netns_del`].
    #[track_caller]
    pub fn netns_add(&self, name: &str) -> String {
        self.exec("ip", &["netns", "add", name]).ok();
        format!("/var/run/netns/{name}")
    }

    /// Deletes a named network namespace.
    #[track_caller]
    pub fn netns_del(&self, name: &str) {
        self.exec("ip", &["netns", "delete", name]).ok();
    }

    /// Runs a line of shell in a named network namespace of this machine.
    #[track_caller]
    pub fn run_in(&self, netns: &str, line: &str) -> Output {
        self.exec("ip", &["netns", "exec", netns, "/bin/sh", "-c", line])
    }

    /// From now on this is what the machine has to look like at its end.
    #[track_caller]
    pub fn note_baseline(&self) {
        let now = Snapshot::take(self);
        *lock(&self.baseline) = Some(now);
    }

    /// What the machine looks like now.
    #[track_caller]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(self)
    }

    /// What the machine looks like once it has settled: dead links and ended processes are gone.
    #[track_caller]
    pub fn settled(&self) -> Snapshot {
        let (start, mut last) = (Instant::now(), self.snapshot());
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let now = self.snapshot();
            if now == last || start.elapsed() > SETTLE {
                return now;
            }
            last = now;
        }
    }

    /// Lines of a leak report that contain `text` are no leak on this machine; say why where it is called.
    pub fn tolerate(&self, text: &str) {
        lock(&self.tolerated).push(text.to_owned());
    }

    /// What is there now and was not at first, or the other way round, once things have settled.
    #[track_caller]
    pub fn leak(&self) -> Option<Leak> {
        let baseline = lock(&self.baseline).clone()?;
        self.leak_since(&baseline)
    }

    /// What is there now and was not in `before`, or the other way round, once things have settled.
    #[track_caller]
    pub fn leak_since(&self, before: &Snapshot) -> Option<Leak> {
        let start = Instant::now();
        loop {
            let leak = before.compare(&self.snapshot(), &lock(&self.tolerated));
            if leak.is_none() || start.elapsed() > SETTLE {
                return leak;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Fails when the machine does not look as it did at first.
    ///
    /// # Panics
    /// With the report of what was left.
    #[track_caller]
    pub fn assert_as_before(&self) {
        if let Some(leak) = self.leak() {
            panic!("{leak}");
        }
    }

    /// Fails when the machine does not look like this.
    ///
    /// # Panics
    /// With the report of what differs.
    #[track_caller]
    pub fn assert_still(&self, before: &Snapshot) {
        if let Some(leak) = self.leak_since(before) {
            panic!("{leak}");
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let leak = if std::thread::panicking() { None } else { self.leak() };
        drop(self.life.take());
        let _ = self.holder.wait();
        if let Some(leak) = leak {
            panic!("{leak}");
        }
    }
}
