//! What is left when something is killed: nothing.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Host, kill, lives, until};

#[test]
fn a_killed_process_is_seen_and_all_of_it_released() {
    let host = Host::new();
    let id = host.sleeper("one", &["--network", "none"]);
    kill(host.pid(&id, "pid"));
    assert_eq!(host.ok(&["wait", "one"]), "137");
    assert_eq!(host.asked("DEL none"), 1, "{} {}", host.state(&id, "status"), host.state(&id, "error"));
    host.assert_no_mounts();
    assert!(!host.path("run").exists());
    host.ok(&["rm", "one"]);
    host.assert_clean();
}

#[test]
fn with_its_supervisor_the_container_dies_and_the_next_command_cleans_up() {
    for next in [&["ps"][..], &["inspect", "one"], &["start", "one"], &["rm", "-f", "one"], &["rm", "one"]] {
        let host = Host::new();
        let id = host.sleeper("one", &["--network", "none"]);
        let pid = host.pid(&id, "pid");
        let supervisor = host.pid(&id, "supervisor_pid");
        kill(supervisor);
        until("the container died", || !lives(pid));
        until("the supervisor died", || !lives(supervisor));
        host.ok(next);
        assert_eq!(host.asked("DEL none"), 1, "after {next:?}");
        if next[0] == "ps" {
            assert_eq!(host.state(&id, "exit_code"), 137);
            assert!(!host.path("run").exists());
            host.assert_no_mounts();
        }
        host.all(&["rm", "-f", "one"]);
        host.assert_clean();
    }
}

#[test]
fn container_that_clears_its_death_signal_ends_with_its_supervisor() {
    // PR_SET_PDEATHSIG; a change of user clears the signal too.
    for clear in ["ctypes.CDLL(None).prctl(1, 0)", "os.setgid(65534); os.setuid(65534)"] {
        let host = Host::new();
        let script = format!(
            "import ctypes, os, time\nos.fork()\n{clear}\nos.write(1, b'ready\\n')\ntime.sleep(1000)"
        );
        let run = ["run", "-d", "--name", "one", "--network", "none", "python3", "-uc", &script];
        let id = host.ok(&run);
        until("both are ready", || host.ok(&["logs", "one"]) == "ready\nready");
        host.ok(&["exec", "-d", "one", "sleep", "1000"]);
        let pid = host.pid(&id, "pid");
        let supervisor = host.pid(&id, "supervisor_pid");
        kill(supervisor);
        until("the container died", || !lives(pid));
        assert!(host.ok(&["ps", "-a"]).contains("Exited (137)"));
        host.ok(&["rm", "one"]);
        host.assert_clean();
    }
}

#[test]
fn container_ends_with_its_guard() {
    let host = Host::new();
    let id = host.sleeper("one", &["--network", "none"]);
    let supervisor = host.pid(&id, "supervisor_pid");
    let pid = host.pid(&id, "pid");
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
    let children: Vec<i32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    let guard = children.into_iter().find(|child| *child != pid).unwrap();
    kill(guard);
    until("the container died", || !lives(pid));
    assert_eq!(host.ok(&["wait", "one"]), "137");
    host.ok(&["rm", "one"]);
    host.assert_clean();
}

#[test]
fn a_foreground_run_whose_supervisor_is_killed_ends_with_137_and_leaves_nothing() {
    let host = Host::new();
    let script =
        ["run", "--rm", "--name", "one", "--network", "none", "sh", "-c", "echo up; exec sleep 1000"];
    let mut child = host.command(&script).stdout(std::process::Stdio::piped()).spawn().unwrap();
    // With its first output it is known to have started.
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
    let id = || host.all(&["ps", "-q", "--no-trunc"]).1.trim().to_owned();
    until("it runs", || !id().is_empty());
    kill(host.pid(&id(), "supervisor_pid"));
    assert_eq!(child.wait().unwrap().code(), Some(137));
    host.assert_clean();
}

#[test]
fn a_supervisor_that_is_told_to_end_stops_its_container_first() {
    let host = Host::new();
    let id = host.sleeper("one", &["--network", "none"]);
    let supervisor = nix::unistd::Pid::from_raw(host.pid(&id, "supervisor_pid"));
    nix::sys::signal::kill(supervisor, nix::sys::signal::Signal::SIGTERM).unwrap();
    until("it ended", || host.state(&id, "status") == "exited");
    assert_eq!(host.state(&id, "exit_code"), 0);
    until("all is released", || !host.path("run").exists());
    host.ok(&["rm", "one"]);
    host.assert_clean();
}

#[test]
fn the_supervisor_of_a_foreground_run_obeys_signals_too() {
    let host = Host::new();
    let script = "trap 'exit 3' TERM; : > /ready; sleep 1000 & wait";
    let mut child = host.command(&["run", "--rm", "--network", "none", "sh", "-c", script]).spawn().unwrap();
    let id = || host.all(&["ps", "-q", "--no-trunc"]).1.trim().to_owned();
    until("it runs", || !id().is_empty());
    until("its trap is set", || host.all(&["exec", &id(), "test", "-e", "/ready"]).0 == 0);
    let supervisor = nix::unistd::Pid::from_raw(host.pid(&id(), "supervisor_pid"));
    nix::sys::signal::kill(supervisor, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    host.assert_clean();
}

#[test]
fn one_that_joined_has_the_others_network_and_nothing_else_of_it() {
    let host = Host::new();
    let one = host.sleeper("one", &["--network", "none"]);
    let two = host.sleeper("two", &["--network", "container:one"]);
    let namespace = |id: &str, kind: &str| {
        std::fs::read_link(format!("/proc/{}/ns/{kind}", host.pid(id, "pid"))).unwrap()
    };
    assert_eq!(namespace(&one, "net"), namespace(&two, "net"));
    for kind in ["pid", "mnt", "uts", "ipc", "cgroup"] {
        assert_ne!(namespace(&one, kind), namespace(&two, kind), "{kind}");
    }
    host.ok(&["rm", "-f", "two", "one"]);
    host.assert_clean();
}

#[test]
fn a_shared_network_outlives_its_container_until_the_last_who_joined_ends() {
    let host = Host::new();
    let one = host.sleeper("one", &["--network", "none"]);
    host.sleeper("two", &["--network", "container:one"]);
    let error = host.fails(1, &["rm", "one"]);
    assert!(error.contains("two"), "{error}");
    host.ok(&["stop", "one"]);
    assert_eq!(host.asked("DEL none"), 0);
    assert!(host.fails(1, &["rm", "one"]).contains("used by two"));
    host.ok(&["rm", "-f", "one"]);
    assert!(!host.ok(&["ps", "-a"]).contains("one"));
    assert!(host.path("run/netns").join(&one).exists());
    assert_eq!(host.asked("DEL none"), 0);
    host.ok(&["exec", "two", "true"]);
    host.ok(&["rm", "-f", "two"]);
    until("the network is released", || !host.path("run").exists() && !host.path("root").exists());
    assert_eq!(host.asked("DEL none"), 1);
    host.assert_clean();
}

#[test]
fn a_shared_network_is_released_also_when_both_supervisors_are_killed() {
    let host = Host::new();
    let one = host.sleeper("one", &["--network", "none"]);
    let two = host.sleeper("two", &["--network", "container:one"]);
    kill(host.pid(&one, "supervisor_pid"));
    until("one died", || !lives(host.pid(&one, "pid")));
    host.ok(&["ps"]);
    assert_eq!(host.asked("DEL none"), 0);
    host.ok(&["exec", "two", "true"]);
    let pid = host.pid(&two, "pid");
    kill(host.pid(&two, "supervisor_pid"));
    until("two died", || !lives(pid));
    host.ok(&["ps"]);
    host.ok(&["rm", "one", "two"]);
    assert_eq!(host.asked("DEL none"), 1);
    host.assert_clean();
}

#[test]
fn one_that_does_not_run_cannot_be_joined() {
    let host = Host::new();
    host.ok(&["run", "--name", "one", "--network", "none", "true"]);
    let (code, _, error) = host.all(&["run", "--rm", "--network", "container:one", "true"]);
    assert_eq!(code, 125);
    assert!(error.contains("not running"), "{error}");
    host.ok(&["rm", "one"]);
    host.assert_clean();
}

#[test]
fn on_a_full_disk_a_container_is_killed_and_removed_all_the_same() {
    for killed in ["pid", "supervisor_pid"] {
        let host = Host::new();
        let root = host.path("root");
        std::fs::create_dir(&root).unwrap();
        let mount = ["-t", "tmpfs", "-o", "size=1m", "none"];
        assert!(std::process::Command::new("mount").args(mount).arg(&root).status().unwrap().success());
        let id = host.sleeper("one", &["--network", "none"]);
        let pid = host.pid(&id, "pid");
        let mut file = std::fs::File::create(root.join("fill")).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 512]).is_ok() {}
        kill(host.pid(&id, killed));
        until("the container died", || !lives(pid));
        host.ok(&["rm", "-f", "one"]);
        assert_eq!(host.asked("DEL none"), 1, "{killed}");
        assert!(!root.join("containers").exists() && !host.path("run").exists(), "{killed}");
        drop(file);
        // A process that another test is just starting has what is open here until it executes its program.
        until("nobody holds the disk", || {
            std::process::Command::new("umount").arg(&root).output().unwrap().status.success()
        });
        std::fs::remove_dir(&root).unwrap();
        host.assert_clean();
    }
}

#[test]
fn one_whose_network_is_shared_is_not_stopped_by_a_restart_that_could_not_start_it() {
    let host = Host::new();
    let id = host.sleeper("one", &["--network", "none"]);
    host.sleeper("two", &["--network", "container:one"]);
    let error = host.fails(1, &["restart", "one"]);
    assert!(error.contains("used by two"), "{error}");
    assert!(lives(host.pid(&id, "pid")));
    host.ok(&["rm", "-f", "one", "two"]);
    host.assert_clean();
}

#[test]
fn a_container_that_is_just_starting_is_removed_by_force_without_waiting_for_its_end() {
    let host = Host::new();
    let listens = || {
        let runs = std::fs::read_dir(host.path("run").join("containers")).into_iter().flatten().flatten();
        runs.into_iter().any(|run| run.path().join("attach.sock").exists())
    };
    for _ in 0..20 {
        let mut start = host.command(&["run", "-d", "--name", "one", "--network", "none", "sleep", "1000"]);
        let mut start =
            start.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        // From here on its supervisor can be reached, and does not yet say that the container runs.
        while !listens() && start.try_wait().unwrap().is_none() {}
        let mut remove = host.command(&["rm", "-f", "one"]).spawn().unwrap();
        until("it is removed", || remove.try_wait().unwrap().is_some());
        start.wait().unwrap();
        host.all(&["rm", "-f", "one"]);
    }
    host.assert_clean();
}

#[test]
fn killed_rm_f_is_finished_by_any_later_command() {
    let host = Host::new();
    let id = host.sleeper("one", &["--network", "none"]);
    let pid = host.pid(&id, "pid");
    // What an `rm -f` that was killed after its first step leaves.
    std::fs::write(host.path("root/containers").join(&id).join("removed"), "").unwrap();
    assert!(!host.ok(&["ps", "-a"]).contains("one"));
    until("its process ended", || !lives(pid));
    until("all of it is removed", || !host.path("root").exists() && !host.path("run").exists());
    host.assert_clean();
}

#[test]
fn rm_f_killed_at_random_leaves_nothing_after_ps() {
    let host = Host::new();
    for round in 0..30 {
        let id = host.sleeper("one", &["--network", "none"]);
        let pid = host.pid(&id, "pid");
        let mut remove =
            host.command(&["rm", "-f", "one"]).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_micros(700 * round));
        let _ = remove.kill();
        remove.wait().unwrap();
        if host.ok(&["ps", "-a", "-q"]).is_empty() {
            until("its process ended", || !lives(pid));
        } else {
            host.ok(&["rm", "-f", "one"]);
        }
        // A command that comes while the supervisor ends can leave the rest to the next one.
        let since = std::time::Instant::now();
        while host.path("root").exists() || host.path("run").exists() {
            host.ok(&["ps", "-a", "-q"]);
            assert!(
                since.elapsed() < std::time::Duration::from_secs(30),
                "left after round {round}: {}",
                String::from_utf8_lossy(
                    &std::process::Command::new("find").arg(host.path("")).output().unwrap().stdout
                )
            );
        }
    }
    host.assert_clean();
}

#[test]
fn killed_create_leaves_no_directory_after_ps() {
    let host = Host::new();
    let dir = host.path("root/containers/0123456789ab");
    for leftover in ["state.json", "state.tmp1", "removed"] {
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(leftover), "{}").unwrap();
        host.ok(&["ps"]);
        assert!(!host.path("root").exists(), "{leftover}");
    }
    host.assert_clean();
}

#[test]
fn locks_of_gone_containers_are_removed_and_those_of_another_root_stay() {
    let host = Host::new();
    let id = host.sleeper("one", &["--network", "none"]);
    let lock = host.path("run/containers").join(&id).join("lock");
    let left = host.path("run/containers/0123456789ab");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("lock"), "").unwrap();
    // Another root, the same run directory.
    let other = host.path("other");
    let ps = host.command(&["ps"]);
    let root = host.path("root");
    let words: Vec<_> =
        ps.get_args().map(|word| if word == root { other.as_os_str() } else { word }).collect();
    assert!(words.contains(&other.as_os_str()));
    let done = std::process::Command::new(ps.get_program()).args(words).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    assert!(lock.exists(), "the lock of a container that runs was removed");
    assert!(!left.exists());
    host.ok(&["rm", "-f", "one"]);
    let _ = std::fs::remove_dir_all(&other);
    host.assert_clean();
}

#[test]
fn restarts_in_parallel_never_miss_a_directory() {
    let host = Host::new();
    let names = ["aa", "bb", "cc", "dd"];
    for name in names {
        host.sleeper(name, &["--network", "none"]);
    }
    let lines: Vec<_> = names.iter().map(|name| host.command(&["restart", "-t", "0", name])).collect();
    let restarts: Vec<_> = lines
        .into_iter()
        .map(|mut line| {
            std::thread::spawn(move || {
                for _ in 0..10 {
                    let out = line.output().unwrap();
                    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
                }
            })
        })
        .collect();
    for restart in restarts {
        restart.join().unwrap();
    }
    host.ok(&["rm", "-f", "aa", "bb", "cc", "dd"]);
    host.assert_clean();
}

#[test]
fn stop_of_several_containers_takes_the_time_of_one() {
    let host = Host::new();
    for name in ["aa", "bb", "cc"] {
        host.ok(&["run", "-d", "--name", name, "--network", "none", "sleep", "1000"]);
    }
    // sleep as PID 1 ignores SIGTERM, so that each waits for its whole timeout: in turn at least 18 s.
    let begin = std::time::Instant::now();
    assert_eq!(host.ok(&["stop", "-t", "6", "aa", "bb", "cc"]), "aa\nbb\ncc");
    assert!(begin.elapsed() < std::time::Duration::from_secs(17));
    host.ok(&["rm", "aa", "bb", "cc"]);
    host.assert_clean();
}

#[test]
fn rm_f_of_a_missing_container_exits_0() {
    let host = Host::new();
    let (code, _, error) = host.all(&["rm", "-f", "missing"]);
    assert_eq!((code, error.as_str()), (0, "runtime: No such container: missing\n"));
    host.fails(1, &["rm", "missing"]);
    host.assert_clean();
}

#[test]
fn supervisor_told_to_end_while_starting_obeys_afterwards() {
    let host = Host::new();
    // The network's ADD waits until the test lets it go on.
    let plugin = host.path("cni/none");
    let slow = "[ $CNI_COMMAND != ADD ] || { : > $WEFT_ROOT/../adding; while [ -e $WEFT_ROOT/../adding ]; do sleep 0.01; done; }";
    let script = std::fs::read_to_string(&plugin).unwrap().replacen('\n', &format!("\n{slow}\n"), 1);
    std::fs::write(&plugin, script).unwrap();
    for signal in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGHUP] {
        let line =
            ["run", "-d", "--name", "one", "--stop-signal", "KILL", "--network", "none", "sleep", "1000"];
        let run = host.command(&line).stdout(std::process::Stdio::piped()).spawn().unwrap();
        until("its network is being attached", || host.path("adding").exists());
        let id = host.ok(&["ps", "-a", "-q", "--no-trunc"]);
        let supervisor = nix::unistd::Pid::from_raw(host.pid(&id, "supervisor_pid"));
        nix::sys::signal::kill(supervisor, signal).unwrap();
        std::fs::remove_file(host.path("adding")).unwrap();
        let out = run.wait_with_output().unwrap();
        assert!(out.status.success(), "{signal}: the start was cut off");
        assert_eq!(host.ok(&["wait", "one"]), "137");
        assert_eq!(host.state(&id, "error"), "", "{signal}");
        host.ok(&["rm", "one"]);
    }
    host.assert_clean();
}

#[test]
fn parts_of_cached_results_go_with_their_container() {
    let host = Host::new();
    let id = host.sleeper("one", &["--network", "none"]);
    // What a supervisor that was killed while it wrote the result of an ADD leaves.
    std::fs::write(host.path("root/results").join(format!(".none-{id}-lo.4711")), "{").unwrap();
    host.ok(&["rm", "-f", "one"]);
    host.assert_clean();
}
