//! What goes into a container and comes out: logs, exec, standard input, terminals, environment, volumes, root.

use tests::Host;

#[test]
fn logs_keeps_the_two_streams_apart() {
    let host = Host::new();
    let weft = host.weft();
    weft.run("run -d --name box --network none sh -c 'echo one; echo two >&2; echo three'").ok();
    weft.run("wait box").ok();
    let out = weft.run("logs box").ok();
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("one\nthree\n", "two\n"));
    weft.run("rm box").ok();
}

#[test]
fn logs_f_follows_until_the_container_ends() {
    let host = Host::new();
    let weft = host.weft();
    weft.run("run -d --name box --network none sh -c 'echo one; sleep 1; echo two'").ok();
    let out = weft.run("logs -f box").ok();
    assert_eq!(out.stdout, "one\ntwo\n");
    assert_eq!(weft.run("logs --tail 1 box").ok().stdout, "two\n");
    weft.run("rm -f box").ok();
}

#[test]
fn a_foreground_run_passes_both_streams() {
    let host = Host::new();
    let out = host.weft().run("run --rm --network none sh -c 'echo out; echo err >&2'").ok();
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn standard_input_reaches_the_program() {
    let host = Host::new();
    let weft = host.weft();
    let out = weft.run_with("run --rm -i --network none cat", b"hello\n").ok();
    assert_eq!(out.stdout, "hello\n");
    let out = weft.run("run --rm --network none cat").ok();
    assert_eq!(out.stdout, "", "without -i there is nothing to read");
    let much = vec![b'x'; 1 << 20];
    let out = weft.run_with("run --rm -i --network none wc -c", &much).ok();
    assert_eq!(out.text(), "1048576");
}

#[test]
fn exec_runs_in_the_container() {
    let host = Host::new();
    let weft = host.weft();
    let c = weft.container("box", "--network none --hostname box -e COLOUR=red sleep 1000");
    assert_eq!(weft.run("exec box hostname").ok().text(), "box");
    assert_eq!(c.sh("echo $COLOUR").ok().text(), "red");
    assert_eq!(
        weft.run("exec -e COLOUR=blue -w /usr box sh -c 'echo $COLOUR $PWD'").ok().text(),
        "blue /usr"
    );
    weft.run("exec box sh -c 'exit 9'").code(9);
    weft.run("exec box no-such-program").code(127);
    assert_eq!(weft.run_with("exec -i box cat", b"in\n").ok().stdout, "in\n");
    let ps = c.sh("cat /proc/1/cmdline | tr '\\0' ' '").ok();
    assert_eq!(ps.text(), "sleep 1000", "its first process is the program");
    c.remove();
    weft.run("exec box true").code(1);
}

#[test]
fn a_terminal_is_one() {
    let host = Host::new();
    let weft = host.weft();
    let out = weft.run("run --rm -t --network none sh -c 'test -t 0 && test -t 1 && tty'").ok();
    assert!(out.text().starts_with("/dev/pts/"), "{out}");
    weft.run("run --rm --network none sh -c 'test -t 1'").code(1);
}

#[test]
fn environment_hostname_and_working_directory() {
    let host = Host::new();
    let weft = host.weft();
    let line = "run --rm --network none -e A=1 -e B=2 --hostname box -w /usr/share sh -c 'echo $A $B $(hostname) $PWD'";
    assert_eq!(weft.run(line).ok().text(), "1 2 box /usr/share");
}

#[test]
fn the_root_is_a_copy_on_write_of_the_hosts() {
    let host = Host::new();
    let weft = host.weft();
    let line =
        "run --rm --network none sh -c 'echo changed > /usr/share/weft-test; cat /usr/share/weft-test'";
    assert_eq!(weft.run(line).ok().text(), "changed");
    assert!(host.run("test -e /usr/share/weft-test").code != 0, "the host's file system was changed");
}

#[test]
fn volumes_are_shared_and_can_be_read_only() {
    let host = Host::new();
    let weft = host.weft();
    host.write("/run/shared/file", "from the host\n");
    host.note_baseline();
    let out = weft
        .run("run --rm --network none -v /run/shared:/data sh -c 'cat /data/file; echo new > /data/file'")
        .ok();
    assert_eq!(out.text(), "from the host");
    assert_eq!(host.run("cat /run/shared/file").ok().text(), "new");
    let out = weft.run("run --rm --network none -v /run/shared:/data:ro sh -c 'echo no > /data/file'");
    assert!(out.code != 0 && out.stderr.contains("Read-only"), "{out}");
}

#[test]
fn a_root_of_its_own() {
    let host = Host::new();
    let weft = host.weft();
    // The runtime itself is a static file: the smallest root there is.
    let runtime = tests::dist().join("bin/runtime");
    host.run(&format!("mkdir -p /run/root/bin && cp {} /run/root/bin/program", runtime.display())).ok();
    host.note_baseline();
    let out = weft.run("run --rm --network none --rootfs /run/root /bin/program --version").ok();
    assert!(!out.text().is_empty(), "{out}");
    weft.run("run --rm --network none --rootfs /run/root sh").code(127);
    weft.run("run --rm --network none --rootfs /run/no-such-root true").code(125);
}

#[test]
fn a_root_from_a_tar_file() {
    let host = Host::new();
    let runtime = tests::dist().join("bin/runtime");
    host.run(&format!(
        "mkdir -p /run/root/bin && cp {} /run/root/bin/program && tar -C /run/root -cf /run/root.tar . && rm -r /run/root",
        runtime.display()
    ))
    .ok();
    host.note_baseline();
    let out = host.weft().run("run --rm --network none --rootfs /run/root.tar /bin/program --version").ok();
    assert!(!out.text().is_empty(), "{out}");
}

#[test]
fn the_container_knows_its_own_name_and_has_a_resolver() {
    let host = Host::new();
    let weft = host.weft();
    weft.run("network create --subnet 192.168.10.1/24 testbridge").ok();
    let out = weft
        .run("run --rm --network testbridge --hostname box sh -c 'getent hosts box; cat /etc/resolv.conf'")
        .ok();
    assert!(out.stdout.contains("192.168.10."), "{out}");
    assert!(
        out.stdout.contains("nameserver") || std::fs::read_to_string("/etc/resolv.conf").is_err(),
        "{out}"
    );
    weft.run("network rm testbridge").ok();
}

#[test]
fn the_container_has_few_capabilities_and_gains_none() {
    let host = Host::new();
    let out = host.weft().run("run --rm --network none cat /proc/self/status").ok();
    let value = |key: &str| {
        let line = out.stdout.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
        line.split_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(value("CapEff:"), "00000000a80425fb", "the default capabilities");
    assert_eq!(value("NoNewPrivs:"), "1");
    assert_eq!(value("Seccomp:"), "2", "a filter is there");
    let out = host.weft().run("run --rm --network none mount -t tmpfs none /mnt");
    assert!(out.code != 0, "a container may not mount");
}

#[test]
fn following_logs_starts_at_once() {
    let host = Host::new();
    let weft = host.weft();
    let c = weft.container("box", "--network none sh -c 'echo one; sleep 1000'");
    let mut follow = weft.spawn("logs -f box");
    follow.until("one");
    c.remove();
    drop(follow);
}
