//! A host of its own for a test: network and mount namespaces of the test's thread, directories in a temporary one, and CNI
//! plugins that are scripts, so that nothing but the runtime is tested. A test that ends leaves nothing, and says so.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Answers every verb; ADD brings up loopback. What was asked is written to cni.log.
const PLUGIN: &str = r#"#!/bin/sh
echo "$CNI_COMMAND ${0##*/} $CNI_CONTAINERID" >> "$WEFT_ROOT/../cni.log"
input=$(cat)
target=$(echo "$input" | grep -o '"container": *"[0-9a-f]*"' | grep -o '[0-9a-f]\{64\}')
case ${0##*/} in
    container) place=$WEFT_ROOT/shared/$target/$CNI_CONTAINERID--$CNI_IFNAME ;;
    *) place= ;;
esac
case $CNI_COMMAND in
    ADD) [ ${0##*/} = host ] || nsenter --net="$CNI_NETNS" ip link set lo up
         [ -z "$place" ] || { mkdir -p "${place%/*}"; : > "$place"; }
         echo '{"cniVersion": "1.0.0"}' ;;
    DEL) [ -z "$place" ] || { rm -f "$place"; rmdir "${place%/*}" 2>/dev/null; } ;;
    VERSION) echo '{"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}' ;;
esac
exit 0
"#;

/// A host.
pub struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    /// A new one. The thread is in it from here on.
    pub fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let dir = tempfile::Builder::new().prefix("runtime-test-").tempdir().unwrap();
        let bin = dir.path().join("cni");
        fs::create_dir(&bin).unwrap();
        for name in ["none", "host", "container", "loopback"] {
            let path = bin.join(name);
            fs::write(&path, PLUGIN).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { dir }
    }

    /// A path in the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command line up to the subcommand.
    pub fn line(&self) -> String {
        let at = |name: &str| self.path(name).display().to_string();
        let exe = env!("CARGO_BIN_EXE_runtime");
        format!(
            "{exe} --root {} --run {} --config-dir {} --cni-bin {}",
            at("root"),
            at("run"),
            at("net.d"),
            at("cni")
        )
    }

    /// The runtime with these arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let line = self.line();
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(args).stdin(Stdio::null());
        command
    }

    /// Runs it.
    pub fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it: exit code, standard output, standard error.
    pub fn all(&self, args: &[&str]) -> (i32, String, String) {
        parts(self.output(args))
    }

    /// Runs it with this input: exit code, standard output, standard error.
    pub fn fed(&self, args: &[&str], input: &str) -> (i32, String, String) {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        parts(child.wait_with_output().unwrap())
    }

    /// Runs it; it must succeed. Its standard output, without the last newline.
    pub fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.all(args);
        assert_eq!(code, 0, "{args:?}: {out}{err}");
        out.trim_end().to_owned()
    }

    /// Runs it; it must fail with this code. Its standard error.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let (got, out, err) = self.all(args);
        assert_eq!(got, code, "{args:?}: {out}{err}");
        assert!(err.starts_with("runtime: "), "{err:?}");
        err
    }

    /// Runs a shell command in a new container without a network; it must succeed. What it printed.
    pub fn sh(&self, script: &str) -> String {
        self.ok(&["run", "--rm", "--network", "none", "sh", "-c", script])
    }

    /// Starts a container that sleeps, with a handler that ends it at once when it is stopped. Its id.
    pub fn sleeper(&self, name: &str, options: &[&str]) -> String {
        let sleep = ["sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"];
        let id = self.ok(&[&["run", "-d", "--name", name], options, &sleep].concat());
        let pid = self.pid(&id, "pid");
        until("the handler is there", || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap_or("0");
            u64::from_str_radix(caught, 16).unwrap() & 1 << 14 != 0
        });
        id
    }

    /// A field of a container's state.
    pub fn state(&self, id: &str, field: &str) -> serde_json::Value {
        let text = fs::read(self.path("root").join("containers").join(id).join("state.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()[field].clone()
    }

    /// A PID of a container's state.
    pub fn pid(&self, id: &str, field: &str) -> i32 {
        self.state(id, field).as_i64().unwrap() as i32
    }

    /// How often the plugins were asked this.
    pub fn asked(&self, what: &str) -> usize {
        let log = fs::read_to_string(self.path("cni.log")).unwrap_or_default();
        log.lines().filter(|line| line.starts_with(what)).count()
    }

    /// Whether nothing is left of any container: no directory, mount, process, cgroup, attachment.
    pub fn assert_clean(&self) {
        let left = || -> Vec<_> {
            ["root", "run"].map(|name| self.path(name)).into_iter().filter(|p| p.exists()).collect()
        };
        // A supervisor that removes a container removes the empty directories above it last.
        let since = std::time::Instant::now();
        while !left().is_empty() {
            assert!(
                since.elapsed() < std::time::Duration::from_secs(30),
                "left: {:?}",
                left().first().map(|p| tree(p))
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        self.assert_no_mounts();
        let own = self.dir.path().display().to_string();
        // A supervisor says that it is done just before it ends.
        until("no process is left", || {
            let mut lines = fs::read_dir("/proc").unwrap().map(|entry| {
                let line = fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).into_owned()
            });
            !lines.any(|line| line.contains(&own))
        });
        let log = fs::read_to_string(self.path("cni.log")).unwrap_or_default();
        for id in log.lines().filter_map(|line| line.split(' ').nth(2)) {
            for base in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
                assert!(!Path::new(base).join("weft").join(id).exists(), "the cgroup of {id} is left");
            }
        }
        let adds: Vec<_> = log.lines().filter_map(|line| line.strip_prefix("ADD ")).collect();
        for add in adds {
            assert!(log.contains(&format!("DEL {add}")), "no DEL for {add}");
        }
    }

    /// Whether the host has no mount of any container.
    pub fn assert_no_mounts(&self) {
        let own = self.dir.path().display().to_string();
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!mounts.contains(&own), "{mounts}");
    }
}

fn parts(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        all.extend(tree(&entry.path()));
    }
    all
}

/// Waits until something holds, at most 30 s: machines may be loaded.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends SIGKILL to one process.
pub fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Whether a process is there and not a zombie.
pub fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}
