//! Files of a container or a user that are no regular files: read without waiting, and not without end.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Host, until};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a command, which must end within a minute: exit code and standard error.
fn bounded(host: &Host, args: &[&str]) -> (i32, String) {
    let line = host.line();
    let output = Command::new("timeout").arg("60").args(line.split(' ')).args(args).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn fifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

/// Puts what is not to be read at `path`, a case after the other.
fn hostile(path: &Path, case: &str) {
    let _ = fs::remove_file(path);
    match case {
        "fifo" => fifo(path),
        "endless" => symlink("/dev/zero", path).unwrap(),
        "kernel log" => symlink("/proc/kmsg", path).unwrap(),
        "socket" => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        "directory" => fs::create_dir(path).unwrap(),
        _ => File::create(path).unwrap().set_len(1 << 40).unwrap(),
    }
}

const CASES: [&str; 5] = ["fifo", "endless", "socket", "huge", "directory"];

#[test]
fn root_whose_lists_are_no_files_is_refused() {
    let host = Host::new();
    let root = host.path("image");
    for dir in ["bin", "etc"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/sh")).unwrap();
    let rootfs = root.to_str().unwrap();
    for list in ["etc/passwd", "etc/group"] {
        for case in CASES.into_iter().chain(["kernel log"]) {
            let path = root.join(list);
            hostile(&path, case);
            let run = ["run", "--rm", "--network", "none", "--rootfs", rootfs, "sh", "-c", "true"];
            let (code, error) = bounded(&host, &run);
            assert_eq!(code, 126, "{case}: {error}");
            assert!(error.contains(&format!("cannot read the container's /{list}")), "{case}: {error}");
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
        }
    }
    for id in host.ok(&["ps", "-aq"]).lines() {
        host.ok(&["rm", "-f", id]);
    }
    host.assert_clean();
}

#[test]
fn exec_in_a_container_with_hostile_lists_fails_at_once() {
    let host = Host::new();
    for make in ["mkfifo /etc/new", "ln -s /dev/zero /etc/new", "truncate -s 1T /etc/new"] {
        host.sleeper("one", &["--network", "none"]);
        host.ok(&["exec", "one", "sh", "-c", &format!("{make} && mv -f /etc/new /etc/passwd")]);
        for args in [&["exec", "one", "true"][..], &["restart", "-t", "0", "one"]] {
            let (code, error) = bounded(&host, args);
            assert!(code != 0 && code != 124, "{make}: {args:?}: {error}");
            assert!(error.contains("cannot read the container's /etc/passwd"), "{make}: {error}");
        }
        let (code, error) = bounded(&host, &["rm", "-f", "one"]);
        assert_eq!(code, 0, "{error}");
    }
    host.assert_clean();
}

/// The client of `exec` reads the lists in the container's namespaces, with its own descriptors still open.
#[test]
fn lists_that_lead_to_open_files_of_exec_are_refused() {
    let host = Host::new();
    host.sleeper("one", &["--network", "none"]);
    let input = host.path("passwd");
    fs::write(&input, "stranger:x:4711:4711::/:/bin/sh\n").unwrap();
    for to in ["/proc/self/fd/0", "/dev/stdin", "/dev/fd/0", "/proc/thread-self/fd/0"] {
        host.ok(&["exec", "one", "sh", "-c", &format!("ln -s {to} /etc/new && mv -f /etc/new /etc/passwd")]);
        let mut exec = host.command(&["exec", "-u", "stranger", "one", "id", "-u"]);
        let output = exec.stdin(File::open(&input).unwrap()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{to}: {}", String::from_utf8_lossy(&output.stdout));
        assert!(error.contains("cannot read the container's /etc/passwd"), "{to}: {error}");
        host.ok(&["rm", "-f", "one"]);
        host.sleeper("one", &["--network", "none"]);
    }
    // Links inside of the container lead where they lead.
    let link = "echo stranger:x:4712:4712::/:/bin/sh > /srv/list && ln -sf ../srv/list /etc/passwd";
    host.ok(&["exec", "one", "sh", "-c", link]);
    assert_eq!(host.ok(&["exec", "-u", "stranger", "one", "id", "-u"]).trim(), "4712");
    host.ok(&["exec", "one", "sh", "-c", "ln -sf /proc/self/fd/0 /dev/ptmx"]);
    let (code, error) = bounded(&host, &["exec", "-t", "one", "true"]);
    assert!(code != 0 && code != 124 && error.contains("/dev/ptmx"), "{code} {error}");
    host.ok(&["rm", "-f", "one"]);
    host.assert_clean();
}

#[test]
fn fifo_among_the_networks_is_passed_over() {
    let host = Host::new();
    fs::create_dir_all(host.path("net.d")).unwrap();
    fifo(&host.path("net.d/10-wait.conflist"));
    for args in [&["network", "ls"][..], &["ps"], &["run", "--rm", "--network", "none", "true"]] {
        let (code, error) = bounded(&host, args);
        assert_eq!(code, 0, "{args:?}: {error}");
    }
    let (_, error) = bounded(&host, &["network", "ls"]);
    assert!(error.contains("10-wait.conflist") && error.contains("regular file"), "{error}");
    host.assert_clean();
}

#[test]
fn user_files_that_are_not_regular_are_refused() {
    let host = Host::new();
    let path = host.path("file");
    let name = path.to_str().unwrap();
    for case in CASES {
        hostile(&path, case);
        let run = ["run", "--rm", "--network", "none", "--env-file", name, "true"];
        for args in [&run[..], &["lab", "up", name]] {
            let (code, error) = bounded(&host, args);
            assert!(code != 0 && code != 124 && error.contains(name), "{case}: {args:?}: {code} {error}");
        }
    }
    fs::remove_dir(&path).unwrap();
    // An archive that becomes a FIFO after the container was created.
    File::create(&path).unwrap();
    let id = host.ok(&["create", "--network", "none", "--rootfs", name, "true"]);
    hostile(&path, "fifo");
    let (code, error) = bounded(&host, &["start", &id]);
    assert!(code != 0 && code != 124 && error.contains("regular file"), "{code} {error}");
    host.ok(&["rm", &id]);
    host.assert_clean();
}

#[test]
fn container_with_deep_directories_is_removed() {
    let host = Host::new();
    let script = "import os\nos.chdir('/srv')\nfor _ in range(2000): os.mkdir('d'); os.chdir('d')";
    host.ok(&["run", "--name", "one", "--network", "none", "python3", "-c", script]);
    let line = format!("ulimit -n 256; exec {} rm one", host.line());
    assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
    host.assert_clean();
}

#[test]
fn rm_by_force_ends_a_launch_that_hangs() {
    let host = Host::new();
    // The first ADD waits for ever; it says that it is there.
    let started = host.path("started");
    let plugin = host.path("cni/none");
    let answers = fs::read_to_string(&plugin).unwrap();
    let waits = format!("[ $CNI_COMMAND != ADD ] || {{ : > {}; sleep 1000; }}\n", started.display());
    let (shebang, rest) = answers.split_once('\n').unwrap();
    let (log, rest) = rest.split_once('\n').unwrap();
    fs::write(&plugin, format!("{shebang}\n{log}\n{waits}{rest}")).unwrap();
    let mut run = host.command(&["run", "-d", "--name", "one", "--network", "none", "sleep", "1000"]);
    let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the plugin runs", || started.exists());
    assert!(host.ok(&["ps", "-a"]).contains("one"));
    let (code, error) = bounded(&host, &["rm", "-f", "one"]);
    assert_eq!(code, 0, "{error}");
    assert!(!child.wait().unwrap().success());
    host.assert_clean();
}
