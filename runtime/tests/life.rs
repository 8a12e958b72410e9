//! A container's life: run, stop, kill, start, wait, rm, and the exit codes of each.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Host, lives, until};
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn run_prints_what_the_container_prints_and_gives_its_exit_code() {
    let host = Host::new();
    let (code, out, err) =
        host.all(&["run", "--rm", "--network", "none", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((code, out.as_str(), err.as_str()), (3, "out\n", "err\n"));
    host.assert_clean();
}

#[test]
fn a_program_that_is_missing_is_127_and_one_that_is_no_program_126() {
    let host = Host::new();
    let run = |command| {
        host.fails(
            if command == "nosuch" { 127 } else { 126 },
            &["run", "--rm", "--network", "none", command],
        )
    };
    assert!(run("nosuch").contains(r#"exec: "nosuch": executable file not found in $PATH"#));
    assert!(run("/etc/passwd").contains(r#"exec: "/etc/passwd": permission denied"#));
    assert!(run("/etc").contains("is a directory"));
    host.assert_clean();
}

#[test]
fn a_signal_that_ends_it_gives_128_and_its_number() {
    let host = Host::new();
    let id = host.ok(&["run", "-d", "--network", "none", "sleep", "1000"]);
    host.ok(&["kill", &id]);
    assert_eq!(host.ok(&["wait", &id]), "137");
    host.ok(&["rm", &id]);
    host.assert_clean();
}

#[test]
fn a_detached_one_runs_as_process_1_and_its_id_is_printed() {
    let host = Host::new();
    let id = host.sleeper("one", &["--network", "none"]);
    assert_eq!(id.len(), 64);
    assert!(lives(host.pid(&id, "pid")));
    assert_eq!(host.ok(&["exec", "one", "sh", "-c", "cat /proc/1/comm"]), "sh");
    host.ok(&["rm", "-f", "one"]);
    host.assert_clean();
}

#[test]
fn stop_ends_it_with_its_signal_or_in_time_with_sigkill() {
    let host = Host::new();
    let polite = host.sleeper("polite", &["--network", "none"]);
    host.ok(&["stop", "polite"]);
    assert_eq!(host.state(&polite, "exit_code"), 0);
    let deaf = host.ok(&["run", "-d", "--name", "deaf", "--network", "none", "sleep", "1000"]);
    let begin = Instant::now();
    host.ok(&["stop", "-t", "1", "deaf"]);
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert_eq!(host.state(&deaf, "exit_code"), 137);
    assert_eq!(host.asked("DEL none"), 2);
    host.ok(&["rm", "polite", "deaf"]);
    host.assert_clean();
}

#[test]
fn one_that_ended_starts_again_with_its_files() {
    let host = Host::new();
    let script = "cat /etc/count 2>/dev/null; echo again >> /etc/count";
    host.ok(&["run", "--name", "one", "--network", "none", "sh", "-c", script]);
    host.ok(&["start", "one"]);
    assert_eq!(host.ok(&["wait", "one"]), "0");
    assert_eq!(host.ok(&["logs", "one"]), "again");
    assert!(!std::path::Path::new("/etc/count").exists());
    host.ok(&["rm", "one"]);
    host.assert_clean();
}

#[test]
fn wait_waits_for_the_end_and_prints_the_code() {
    let host = Host::new();
    host.ok(&["run", "-d", "--name", "one", "--network", "none", "sh", "-c", "sleep 0.3; exit 5"]);
    assert_eq!(host.ok(&["wait", "one"]), "5");
    assert_eq!(host.ok(&["wait", "one"]), "5");
    host.ok(&["rm", "one"]);
    host.assert_clean();
}

#[test]
fn rm_of_a_running_one_takes_force() {
    let host = Host::new();
    let id = host.sleeper("one", &["--network", "none"]);
    let pid = host.pid(&id, "pid");
    let error = host.fails(1, &["rm", "one"]);
    assert!(error.contains("container is running"), "{error}");
    host.ok(&["rm", "-f", "one"]);
    assert!(!lives(pid));
    host.assert_clean();
}

#[test]
fn rm_flag_removes_it_at_its_end_also_when_it_was_detached() {
    let host = Host::new();
    host.ok(&["run", "-d", "--rm", "--name", "one", "--network", "none", "true"]);
    until("it is removed", || !host.path("root").exists());
    host.assert_clean();
}

#[test]
fn a_signal_to_a_foreground_run_reaches_the_container() {
    let host = Host::new();
    let script = "trap 'echo bye; exit 9' TERM; echo ready; sleep 1000 & wait";
    let mut command = host.command(&["run", "--rm", "--network", "none", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut reader = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    line.clear();
    std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
    assert_eq!(line, "bye\n");
    assert_eq!(child.wait().unwrap().code(), Some(9));
    host.assert_clean();
}

#[test]
fn it_goes_on_when_the_one_who_ran_it_is_killed() {
    let host = Host::new();
    let mut child =
        host.command(&["run", "--name", "one", "--network", "none", "sleep", "1000"]).spawn().unwrap();
    until("it runs", || host.all(&["ps", "-q"]).1.lines().count() == 1);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(host.ok(&["ps", "-q"]).lines().count(), 1);
    host.ok(&["rm", "-f", "one"]);
    host.assert_clean();
}

#[test]
fn many_start_and_end_at_once() {
    let host = Host::new();
    let children: Vec<_> = (0..8)
        .map(|n| {
            let line = format!("echo {n}; exit {n}");
            let mut command = host.command(&["run", "--rm", "--network", "none", "sh", "-c", &line]);
            command.stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (n, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(n as i32));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{n}\n"));
    }
    host.assert_clean();
}
