//! A host to test on: a network and mount namespace of its own, held by a child, with empty state directories. Needs
//! root. Nothing of the machine's own network or files is touched, and nothing is left when the child ends.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod agent;
pub mod packets;
pub mod stage;

use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The executable under test.
pub const WEFT_CNI: &str = env!("CARGO_BIN_EXE_weft-cni");

/// A server that answers each connection on a TCP port with the client's address.
pub const SERVER: &str = "import socket,sys
six = \":\" in sys.argv[1]
s = socket.socket(socket.AF_INET6 if six else socket.AF_INET)
if six: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((sys.argv[1], int(sys.argv[2])))
s.listen()
while True:
    c, a = s.accept()
    c.sendall(a[0].encode())
    c.close()
";

/// Connects and prints what the server said.
pub const CLIENT: &str = "import socket,sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)
print(s.recv(100).decode())
";

/// One machine.
pub struct Host {
    holder: Child,
    /// The plugins, installed.
    pub bin: TempDir,
}

/// What a plugin did.
#[derive(Debug)]
pub struct Outcome {
    pub success: bool,
    /// What it printed; null when nothing.
    pub document: Value,
    pub stderr: String,
}

impl Outcome {
    /// The document of a call that succeeded.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.success, "{} {}", self.document, self.stderr);
        self.document
    }

    /// The code of a call that failed.
    #[track_caller]
    pub fn code(&self) -> u64 {
        assert!(!self.success, "it succeeded: {}", self.document);
        assert!(!self.document["msg"].as_str().unwrap().is_empty());
        self.document["code"].as_u64().unwrap_or_else(|| panic!("{}", self.document))
    }

    /// Message and details of a call that failed.
    #[track_caller]
    pub fn text(&self) -> String {
        assert!(!self.success, "it succeeded: {}", self.document);
        format!("{} {}", self.document["msg"], self.document["details"]).replace('\\', "")
    }
}

/// A call of a plugin.
#[derive(Clone)]
pub struct Call<'h> {
    host: &'h Host,
    verb: &'h str,
    conf: String,
    plugin: String,
    env: Vec<(String, String)>,
    wrapper: Vec<String>,
}

impl Call<'_> {
    /// Sets a variable of the environment.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Sends this instead of the configuration.
    pub fn stdin(mut self, text: impl Into<String>) -> Self {
        self.conf = text.into();
        self
    }

    /// Runs the plugin by another program, as strace.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Starts it.
    pub fn spawn(self) -> Running {
        let mut command = self.host.command("/usr/bin/env");
        command.args(["CNI_PATH=".to_owned() + self.host.bin.path().to_str().unwrap()]);
        command.arg(format!("CNI_COMMAND={}", self.verb));
        command.args(self.env.iter().map(|(key, value)| format!("{key}={value}")));
        command.args(&self.wrapper).arg(self.host.bin.path().join(&self.plugin));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // The plugin may have refused before it read all of this.
        let _ = stdin.write_all(self.conf.as_bytes());
        Running(child)
    }

    /// Runs it to its end.
    pub fn run(self) -> Outcome {
        self.spawn().wait()
    }
}

/// A plugin that runs.
pub struct Running(Child);

impl Running {
    pub fn wait(self) -> Outcome {
        let output = self.0.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let document = match text.trim() {
            "" => Value::Null,
            text => {
                serde_json::from_str(text).unwrap_or_else(|error| panic!("not one document: {error}: {text}"))
            }
        };
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Outcome { success: output.status.success(), document, stderr }
    }
}

impl Host {
    /// A host with nothing but a loopback interface that is up.
    pub fn new() -> Host {
        let script = "mount -t tmpfs tmpfs /run && mkdir -p /var/lib/cni /var/lib/weft && \
             mount -t tmpfs tmpfs /var/lib/cni && mount -t tmpfs tmpfs /var/lib/weft && \
             mount -t proc proc /proc && mount -t sysfs sysfs /sys && \
             ip link set lo up && echo ready && exec sleep infinity";
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c", script])
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare is in util-linux");
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "these tests need root");
        let bin = tempfile::tempdir().unwrap();
        let host = Host { holder, bin };
        let installed = Command::new(WEFT_CNI).arg("install").arg(host.bin.path()).output().unwrap();
        assert!(installed.status.success());
        host
    }

    /// A command on this host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let pid = self.holder.id().to_string();
        command.args(["--target", &pid, "--net", "--mount", "--", program]);
        command.env_remove("WEFT_ROOT").env_remove("CNI_ARGS");
        command
    }

    /// Runs a script on this host and returns what it printed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let (success, text) = self.try_sh(script);
        assert!(success, "{script}: {text}");
        text
    }

    /// Runs a script on this host: whether it succeeded, and what it printed.
    pub fn try_sh(&self, script: &str) -> (bool, String) {
        let output = self.command("sh").args(["-c", script]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        (
            output.status.success(),
            format!("{}{stderr}", String::from_utf8_lossy(&output.stdout)).trim().to_owned(),
        )
    }

    /// Output of an `ip -json` command.
    #[track_caller]
    pub fn ip(&self, command: &str) -> Value {
        let text = self.sh(&format!("ip -json {command}"));
        serde_json::from_str(&text).unwrap_or(json!([]))
    }

    /// Makes a container's network namespace.
    pub fn netns(&self, name: &str) -> String {
        self.sh(&format!("ip netns add {name}"));
        format!("/run/netns/{name}")
    }

    /// A call of the plugin that `conf` names.
    pub fn call<'h>(&'h self, verb: &'h str, conf: &Value) -> Call<'h> {
        let plugin = conf["type"].as_str().unwrap_or("bridge").to_owned();
        Call { host: self, verb, conf: conf.to_string(), plugin, env: Vec::new(), wrapper: Vec::new() }
    }

    /// A call about eth0 of container `id`, whose namespace has the same name.
    pub fn about<'h>(&'h self, verb: &'h str, conf: &Value, id: &str) -> Call<'h> {
        let netns = format!("/run/netns/{id}");
        self.call(verb, conf).env("CNI_CONTAINERID", id).env("CNI_NETNS", &netns).env("CNI_IFNAME", "eth0")
    }

    /// What a DEL or a GC must leave as it was: links, addresses, routes, the firewall, files. Carrier changes later.
    pub fn picture(&self) -> String {
        self.idle();
        self.sh(
            "ip -o link | sed 's/^[0-9]*: //' | cut -d' ' -f1 | sort; ip route | sed 's/linkdown *//'; ip -6 route | sed 's/linkdown *//'; nft list ruleset; \
             find /run /var/lib/weft /var/lib/cni -not -path '/run/netns*' | sort",
        )
    }

    /// Waits until no plugin of this host runs: the child that outlives a DEL removes what is unused as the last thing.
    #[track_caller]
    pub fn idle(&self) {
        let start = std::time::Instant::now();
        while let Some(process) = self.plugin_process() {
            assert!(
                start.elapsed() < std::time::Duration::from_secs(60),
                "still running: {}",
                process.display()
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// The executable of a process that is one of this host's plugins.
    fn plugin_process(&self) -> Option<PathBuf> {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|process| std::fs::read_link(process.path().join("exe")).ok())
            .find(|executable| executable.starts_with(self.bin.path()))
    }

    /// Waits until a script succeeds: what the kernel or a short-lived child does in the background.
    #[track_caller]
    pub fn eventually(&self, script: &str) {
        let start = std::time::Instant::now();
        while start.elapsed() < std::time::Duration::from_secs(60) {
            if self.try_sh(script).0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("never came true: {script}: {}", self.try_sh(script).1);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A bridge network with host-local.
pub fn bridge(name: &str, subnet: &str) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": name, "type": "bridge", "bridge": "br0", "isDefaultGateway": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]]},
    })
}

/// The configuration with these keys set.
pub fn with(conf: &Value, keys: Value) -> Value {
    let mut conf = conf.clone();
    for (key, value) in keys.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

/// The path of the result's first address, without its prefix.
pub fn address(result: &Value, index: usize) -> String {
    let text = result["ips"][index]["address"].as_str().unwrap_or_else(|| panic!("{result}"));
    text.split('/').next().unwrap().to_owned()
}

/// A path below a fresh directory of the machine's own.
pub fn scratch() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}

/// Calls that change nothing outside of their process: a process that is killed before one of them leaves what it leaves
/// when it is killed before the next call that is none of these.
const HARMLESS: &str = "access arch_prctl brk close exit exit_group fstat futex getcwd geteuid getpid getrandom gettid getuid \
    lseek madvise mmap mprotect mremap munmap newfstatat poll pread64 prlimit64 read readlink rseq rt_sigaction \
    rt_sigprocmask sched_getaffinity sched_yield set_robust_list set_tid_address sigaltstack statx uname";

/// Where a run can be killed with an effect of its own, from strace's record of it: every system call but the harmless ones, as
/// strace's `inject` names it, the n-th call of its name in its process (strace counts by name and process).
pub fn places(trace: &str) -> Vec<(String, usize)> {
    let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
    let mut places = Vec::new();
    for line in trace.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let Some((name, _)) = rest.trim_start().split_once('(') else { continue };
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            continue;
        }
        let count = counts.entry((pid, name)).or_default();
        *count += 1;
        let place = (name.to_owned(), *count);
        if !HARMLESS.split_whitespace().any(|each| each == name) && !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

impl Host {
    /// Records a run and returns the places at which it can be killed.
    pub fn recorded(&self, call: Call<'_>) -> Vec<(String, usize)> {
        let trace = self.bin.path().join("trace");
        call.under(&["strace", "-f", "-qq", "-o", trace.to_str().unwrap()]).run().ok();
        let places = places(&std::fs::read_to_string(&trace).unwrap());
        std::fs::remove_file(trace).unwrap();
        // How many there are depends on the libc and its files.
        assert!(places.len() > 20, "strace does not work here: {places:?}");
        places
    }
}

impl Call<'_> {
    /// Lets the plugin be killed at a place of its run. Whether it survived, as one does that makes fewer calls this time.
    pub fn killed_at(self, (name, count): &(String, usize)) -> bool {
        let inject = format!("inject={name}:signal=KILL:when={count}");
        self.under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject]).run().success
    }
}
