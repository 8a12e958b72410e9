//! A container's input and output: pipes, terminals, logs, attach, exec.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Host, lives, until};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

/// Runs a command line on a terminal of its own (script(1)). Each step waits until the terminal shows the first text and
/// types the second. What it showed, and the exit code.
fn on_terminal(line: &str, steps: &[(&str, &str)]) -> (String, i32) {
    let mut child = Command::new("script")
        .args(["-qec", line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut shown = String::new();
    let mut steps = steps.iter();
    let mut step = steps.next();
    let mut buffer = [0; 1000];
    loop {
        let size = stdout.read(&mut buffer).unwrap();
        if size == 0 {
            break;
        }
        shown += &String::from_utf8_lossy(&buffer[..size]);
        while let Some((awaited, typed)) = step.filter(|(awaited, _)| shown.contains(awaited)) {
            assert!(!awaited.is_empty());
            stdin.write_all(typed.as_bytes()).unwrap();
            step = steps.next();
        }
    }
    drop(stdin);
    (shown, child.wait().unwrap().code().unwrap())
}

#[test]
fn input_goes_in_with_i_and_without_there_is_none() {
    let host = Host::new();
    let big = "0123456789abcde\n".repeat(50_000);
    let (code, out, _) = host.fed(&["run", "--rm", "-i", "--network", "none", "cat"], &big);
    assert!(code == 0 && out == big, "{} of {} bytes", out.len(), big.len());
    assert_eq!(host.fed(&["run", "--rm", "--network", "none", "cat"], "unread").1, "");
    host.assert_clean();
}

#[test]
fn with_t_it_has_a_terminal_of_its_own() {
    let host = Host::new();
    let script = "tty; test -c /dev/console && echo console; stty size; exit 4";
    let line = format!("stty rows 33 cols 77; {} run --rm -it --network none sh -c '{script}'", host.line());
    let (shown, code) = on_terminal(&line, &[]);
    assert!(shown.contains("/dev/pts/0\r\nconsole\r\n33 77\r\n"), "{shown:?}");
    assert_eq!(code, 4);
    host.assert_clean();
}

#[test]
fn keys_reach_the_program_and_control_c_interrupts_it() {
    let host = Host::new();
    let line = format!(
        "{} run --rm -it --network none sh -c 'trap \"exit 130\" INT; echo ready; read line; echo got $line; read line'",
        host.line()
    );
    let (shown, code) = on_terminal(&line, &[("ready", "typed\r"), ("got typed", "\u{3}")]);
    assert!(shown.contains("got typed"), "{shown:?}");
    assert_eq!(code, 130, "{shown:?}");
    host.assert_clean();
}

#[test]
fn control_p_control_q_leaves_it_running() {
    let host = Host::new();
    let line = format!("{} run -it --name one --network none sh -c 'echo ready; cat'", host.line());
    let (_, code) = on_terminal(&line, &[("ready", "\u{10}\u{11}")]);
    assert_eq!(code, 0);
    assert!(host.ok(&["ps"]).contains("one"));
    host.ok(&["rm", "-f", "one"]);
    host.assert_clean();
}

#[test]
fn a_terminal_for_input_that_is_none_is_refused() {
    let host = Host::new();
    let (_, _, error) = host.all(&["run", "--rm", "-it", "--network", "none", "true"]);
    assert!(error.contains("the input device is not a TTY"), "{error}");
    host.sleeper("one", &["--network", "none"]);
    assert!(host.fails(1, &["exec", "-it", "one", "true"]).contains("not a TTY"));
    host.ok(&["rm", "-f", "one"]);
    host.all(&["rm", "-f", host.all(&["ps", "-aq"]).1.trim()]);
    host.assert_clean();
}

#[test]
fn logs_are_dockers_json_lines_and_are_printed_apart_by_stream() {
    let host = Host::new();
    let script = "echo one; echo two >&2; printf three";
    host.ok(&["run", "-d", "--name", "one", "--network", "none", "sh", "-c", script]);
    host.ok(&["wait", "one"]);
    let (_, out, err) = host.all(&["logs", "one"]);
    assert_eq!((out.as_str(), err.as_str()), ("one\nthree", "two\n"));
    // Two streams are two pipes: which one's last line is the container's last is left to the kernel.
    let stamped = host.all(&["logs", "-t", "--tail", "3", "one"]).1;
    let (time, line) = stamped.lines().last().unwrap().split_once(' ').unwrap();
    assert!(time.len() == 30 && time.ends_with('Z') && line == "three", "{stamped}");
    assert_eq!(host.all(&["logs", "--since", "2999-01-01T00:00:00Z", "one"]).1, "");
    host.ok(&["rm", "one"]);
    host.assert_clean();
}

#[test]
fn followed_logs_come_as_they_are_written_and_end_with_the_container() {
    let host = Host::new();
    let script = "echo first; read x < /fifo; echo last";
    let fifo = "mkfifo /fifo; ";
    host.ok(&["run", "-d", "--name", "one", "--network", "none", "sh", "-c", &format!("{fifo}{script}")]);
    let mut follow = host.command(&["logs", "-f", "one"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "first");
    // It may be killed with the container, which ends before it does.
    let _ = host.all(&["exec", "one", "sh", "-c", "echo > /fifo"]);
    assert_eq!(lines.next().unwrap().unwrap(), "last");
    assert!(lines.next().is_none());
    assert!(follow.wait().unwrap().success());
    host.ok(&["rm", "one"]);
    host.assert_clean();
}

#[test]
fn exec_has_the_containers_namespaces_rights_and_exit_code() {
    let host = Host::new();
    let id = host.sleeper("one", &["--network", "none", "-e", "A=of the container"]);
    let namespaces =
        host.ok(&["exec", "one", "sh", "-c", "cd /proc/self/ns; readlink cgroup ipc mnt net pid uts"]);
    let own = ["cgroup", "ipc", "mnt", "net", "pid", "uts"].map(|kind| {
        let link = std::fs::read_link(format!("/proc/{}/ns/{kind}", host.pid(&id, "pid"))).unwrap();
        link.to_str().unwrap().to_owned()
    });
    assert_eq!(namespaces.lines().collect::<Vec<_>>(), own);
    let status = host.ok(&["exec", "one", "cat", "/proc/self/status"]);
    assert!(status.contains("CapEff:\t00000000a80425fb") && status.contains("Seccomp:\t2"), "{status}");
    let options =
        ["exec", "-e", "B=more", "-w", "/usr", "-u", "nobody", "one", "sh", "-c", "echo $A $B $PWD; id -un"];
    assert_eq!(host.ok(&options), "of the container more /usr\nnobody");
    assert_eq!(host.all(&["exec", "one", "sh", "-c", "exit 42"]).0, 42);
    assert_eq!(host.all(&["exec", "one", "sh", "-c", "kill -TERM $$"]).0, 143);
    assert!(host.fails(127, &["exec", "one", "nosuch"]).contains("executable file not found in $PATH"));
    host.fails(126, &["exec", "one", "/etc/passwd"]);
    assert_eq!(host.fed(&["exec", "-i", "one", "cat"], "fed").1, "fed");
    host.ok(&["rm", "-f", "one"]);
    host.assert_clean();
}

#[test]
fn exec_on_a_terminal_has_one_of_the_containers() {
    let host = Host::new();
    host.sleeper("one", &["--network", "none"]);
    let line = format!("stty rows 20 cols 50; {} exec -it one sh -c 'tty; stty size; exit 6'", host.line());
    let (shown, code) = on_terminal(&line, &[]);
    assert!(shown.contains("/dev/pts/0\r\n20 50\r\n"), "{shown:?}");
    assert_eq!(code, 6);
    host.ok(&["rm", "-f", "one"]);
    host.assert_clean();
}

#[test]
fn a_detached_exec_goes_on_and_ends_with_the_container() {
    let host = Host::new();
    let id = host.sleeper("one", &["--network", "none"]);
    host.ok(&["exec", "-d", "one", "sh", "-c", "sleep 999 & echo $! > /started; wait"]);
    until("it started", || host.all(&["exec", "one", "test", "-s", "/started"]).0 == 0);
    let cgroup = format!("/sys/fs/cgroup/unified/weft/{id}/cgroup.procs");
    let pids: Vec<i32> = match std::fs::read_to_string(&cgroup) {
        Ok(text) => text.lines().map(|pid| pid.parse().unwrap()).collect(),
        Err(_) => vec![host.pid(&id, "pid")],
    };
    assert!(pids.iter().all(|pid| lives(*pid)));
    host.ok(&["rm", "-f", "one"]);
    until("all died", || pids.iter().all(|pid| !lives(*pid)));
    host.assert_clean();
}

#[test]
fn exec_in_one_that_does_not_run_says_so() {
    let host = Host::new();
    host.ok(&["run", "--name", "one", "--network", "none", "true"]);
    assert!(host.fails(1, &["exec", "one", "true"]).contains("is not running"));
    host.ok(&["rm", "one"]);
    host.assert_clean();
}

#[test]
fn a_pipeline_whose_reader_has_gone_ends_and_the_container_goes_on() {
    let host = Host::new();
    let script = "while echo line; do sleep 0.01; done";
    let run = format!("{} run --name one --network none sh -c '{script}' | head -1", host.line());
    let out = std::process::Command::new("sh").args(["-c", &run]).output().unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap(), "line\n");
    assert_eq!(host.ok(&["ps", "--format", "{{.Names}}"]), "one");
    host.ok(&["rm", "-f", "one"]);
    host.assert_clean();
}
