//! A container's life: exit codes, stop, kill, wait, restartable names, ps, inspect.

use std::time::{Duration, Instant};
use tests::Host;

#[test]
fn the_exit_code_is_the_programs() {
    let host = Host::new();
    let weft = host.weft();
    weft.run("run --rm --network none true").code(0);
    weft.run("run --rm --network none sh -c 'exit 7'").code(7);
}

#[test]
fn the_exit_code_is_127_for_a_program_that_is_not_there() {
    let host = Host::new();
    let out = host.weft().run("run --rm --network none no-such-program").code(127);
    assert!(out.stderr.contains("no-such-program"), "{out}");
}

#[test]
fn the_exit_code_is_126_for_a_file_that_is_no_program() {
    let host = Host::new();
    let out = host.weft().run("run --rm --network none /etc/passwd").code(126);
    assert!(out.stderr.contains("/etc/passwd"), "{out}");
}

#[test]
fn the_exit_code_is_125_for_an_error_of_the_runtime() {
    let host = Host::new();
    let weft = host.weft();
    weft.run("run --rm --network no-such-network true").code(125);
    weft.run("run --rm --no-such-flag true").code(125);
    weft.run("run --rm -p 70000:80 true").code(125);
    weft.run("run").code(125);
}

#[test]
fn the_exit_code_is_128_and_the_signal() {
    let host = Host::new();
    let weft = host.weft();
    let c = weft.container("box", "--network none sleep 1000");
    weft.run("kill box").ok();
    assert_eq!(weft.run("wait box").ok().text(), "137");
    c.remove();
    let c = weft.container("box", "--network none sh -c 'sh -c \"kill -TERM \\$\\$\"; exit $?'");
    assert_eq!(weft.run("wait box").ok().text(), "143");
    c.remove();
}

#[test]
fn stop_asks_first() {
    let host = Host::new();
    let weft = host.weft();
    let c = weft.container(
        "box",
        "--network none sh -c 'trap \"exit 3\" TERM; echo ready; while :; do sleep 0.05; done'",
    );
    while !weft.run("logs box").ok().stdout.contains("ready") {}
    // The harness ends a command long before this time limit.
    assert_eq!(weft.run("stop -t 300 box").ok().text(), "box");
    assert_eq!(weft.run("wait box").ok().text(), "3");
    c.remove();
}

#[test]
fn stop_kills_what_does_not_listen() {
    let host = Host::new();
    let weft = host.weft();
    let c = weft.container("box", "--network none sh -c 'trap \"\" TERM; while :; do sleep 1; done'");
    let start = Instant::now();
    weft.run("stop -t 1 box").ok();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(weft.run("wait box").ok().text(), "137");
    c.remove();
}

#[test]
fn kill_sends_the_signal_asked_for() {
    let host = Host::new();
    let weft = host.weft();
    let c = weft.container(
        "box",
        "--network none sh -c 'trap \"exit 4\" USR1; echo ready; while :; do sleep 0.05; done'",
    );
    while !weft.run("logs box").ok().stdout.contains("ready") {}
    weft.run("kill -s USR1 box").ok();
    assert_eq!(weft.run("wait box").ok().text(), "4");
    c.remove();
}

#[test]
fn ps_shows_the_running_ones_and_with_a_all() {
    let host = Host::new();
    let weft = host.weft();
    let c = weft.container("alive", "--network none sleep 1000");
    weft.run("run --name done --network none true").ok();
    let running = weft.run("ps").ok();
    assert!(running.stdout.contains("alive") && !running.stdout.contains("done"), "{running}");
    assert!(running.stdout.starts_with("CONTAINER ID"), "{running}");
    let all = weft.run("ps -a").ok();
    assert!(
        all.stdout.contains("alive") && all.stdout.contains("done") && all.stdout.contains("Exited (0)"),
        "{all}"
    );
    let ids = weft.run("ps -q").ok();
    assert_eq!(ids.text(), &c.id[..12]);
    let json = weft.run("ps -a --format json").ok();
    for line in json.text().lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
    weft.run("rm alive").code(1);
    weft.run("rm -f alive").ok();
    weft.run("rm done").ok();
}

#[test]
fn a_container_is_found_by_name_id_and_the_start_of_its_id() {
    let host = Host::new();
    let weft = host.weft();
    let c = weft.container("box", "--network none sleep 1000");
    for key in ["box", &c.id, &c.id[..12], &c.id[..5]] {
        assert_eq!(weft.run(&format!("inspect {key}")).ok().json()[0]["Id"], c.id.as_str());
    }
    weft.run("inspect nobody").code(1);
    c.remove();
}

#[test]
fn a_name_can_be_used_once() {
    let host = Host::new();
    let weft = host.weft();
    let c = weft.container("box", "--network none sleep 1000");
    let out = weft.run("run --name box --network none true").code(125);
    assert!(out.stderr.contains("box") && out.stdout.is_empty(), "{out}");
    c.remove();
    weft.container("box", "--network none sleep 1000").remove();
}

#[test]
fn inspect_tells_state_and_addresses() {
    let host = Host::new();
    let weft = host.weft();
    weft.run("network create --subnet 192.168.10.1/24 testbridge").ok();
    let c = weft.container(
        "box",
        "--network testbridge --ip 192.168.10.77 --mac-address 02:42:00:00:00:77 sleep 1000",
    );
    let about = c.inspect();
    assert_eq!(about["State"]["Status"], "running", "{about}");
    let network = &about["NetworkSettings"]["Networks"]["testbridge"];
    assert_eq!(network["IPAddress"], "192.168.10.77", "{about}");
    assert_eq!(network["MacAddress"], "02:42:00:00:00:77", "{about}");
    assert_eq!(network["Gateway"], "192.168.10.1", "{about}");
    assert_eq!(c.address(), "192.168.10.77");
    c.remove();
    weft.run("network rm testbridge").ok();
}

#[test]
fn run_detached_returns_while_container_runs() {
    let host = Host::new();
    let weft = host.weft();
    let c = weft.container("box", "--network none sleep 1000");
    assert_eq!(c.inspect()["State"]["Status"], "running");
    c.remove();
}
