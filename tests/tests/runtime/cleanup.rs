//! After a container and its network are gone the machine is as before, whatever happened to the processes.

use crate::Site;
use std::time::{Duration, Instant};

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn rm_f_and_network_rm_leave_nothing() {
    let site = Site::set_up();
    let www = site.www();
    www.remove();
    let leases = site.host.weft().run("ipam ls").ok();
    assert!(!leases.stdout.contains("192.168.10."), "{leases}");
    site.finish();
}

#[test]
fn a_container_killed_with_sigkill_leaves_nothing() {
    let site = Site::set_up();
    let www = site.www();
    site.host.run(&format!("kill -9 {}", www.pid())).ok();
    assert_eq!(site.host.weft().run("wait www").ok().text(), "137");
    until("its port is free", || site.host.run(&crate::page("127.0.0.1:8080")).code != 0);
    let leases = || site.host.weft().run("ipam ls").ok().stdout;
    until("its address is given back", || !leases().contains("192.168.10."));
    www.remove();
    site.finish();
}

#[test]
fn a_supervisor_killed_with_sigkill_leaves_nothing() {
    let site = Site::set_up();
    let www = site.www();
    let pid = www.pid();
    let parent = site.host.run(&format!("awk '/^PPid/ {{print $2}}' /proc/{pid}/status")).ok();
    let supervisor: u32 = parent.text().parse().unwrap();
    assert!(supervisor > 1, "the container's parent is its supervisor");
    site.host.run(&format!("kill -9 {supervisor}")).ok();
    www.remove();
    site.finish();
}

#[test]
fn after_its_supervisor_was_killed_a_container_is_not_shown_as_running() {
    let site = Site::set_up();
    let www = site.www();
    let parent = site.host.run(&format!("awk '/^PPid/ {{print $2}}' /proc/{}/status", www.pid())).ok();
    site.host.run(&format!("kill -9 {}", parent.text())).ok();
    until("ps without it", || !site.host.weft().run("ps").ok().stdout.contains("www"));
    // The port and the name can be used again.
    site.host.weft().run("rm www").ok();
    let again = site.www();
    crate::is_page(site.host.run(&crate::page("127.0.0.1:8080")));
    again.remove();
    site.finish();
}

#[test]
fn rm_option_removes_the_container_when_it_ends() {
    let site = Site::set_up();
    let weft = site.host.weft();
    weft.run("run -d --rm --name brief --network testbridge sleep 0.2").ok();
    until("it is gone", || !weft.run("ps -a").ok().stdout.contains("brief"));
    site.finish();
}

#[test]
fn a_container_that_ends_by_itself_gives_its_address_back() {
    let site = Site::set_up();
    let weft = site.host.weft();
    weft.run("run --name brief --network testbridge true").ok();
    let leases = weft.run("ipam ls").ok();
    assert!(!leases.stdout.contains("192.168.10."), "{leases}");
    weft.run("rm brief").ok();
    site.finish();
}

#[test]
fn a_run_that_fails_after_the_network_was_there_leaves_nothing() {
    let site = Site::set_up();
    let weft = site.host.weft();
    weft.run("run --rm --network testbridge true").ok(); // the bridge is there from now on
    let before = site.host.settled();
    weft.run("run --rm --network testbridge -p 8080:80 /no/such/program").code(127);
    site.host.assert_still(&before);
    weft.run("run -d --rm --network testbridge -p 8080:80 /etc/passwd").code(126);
    site.host.assert_still(&before);
    site.finish();
}

#[test]
fn a_foreground_run_that_is_interrupted_leaves_nothing() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let running = weft.spawn("run --rm --name fg --network testbridge sleep 1000");
    until("it runs", || weft.run("ps").ok().stdout.contains("fg"));
    site.host.run("runtime=$(pgrep -f '[r]un --rm --name fg' | head -1); kill -INT $runtime").ok();
    let gone = || !weft.run("ps -a").ok().stdout.contains("fg");
    let start = Instant::now();
    while !gone() && start.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(50));
    }
    // `sleep` as PID 1 ignores SIGINT; the container may still be there, and then it can be removed.
    if !gone() {
        weft.run("rm -f fg").ok();
    }
    drop(running);
    site.finish();
}

#[test]
fn on_a_full_disk_a_container_with_a_port_leaves_nothing() {
    for end in ["rm -f www", "stop -t 0 www", "kill -9 the container", "kill -9 the supervisor"] {
        let host = tests::Host::new();
        host.link_machine("outside");
        host.run("mkdir -p /var/lib/weft && mount -t tmpfs -o size=4m none /var/lib/weft").ok();
        host.note_baseline();
        host.weft().run("network create --driver bridge --subnet 192.168.10.1/24 testbridge").ok();
        let site = Site { host };
        let weft = site.host.weft();
        let www = site.www();
        let pid = www.pid();
        let parent = site.host.run(&format!("awk '/^PPid/ {{print $2}}' /proc/{pid}/status")).ok();
        site.host.run(
            "dd if=/dev/zero of=/var/lib/weft/fill bs=64k; dd if=/dev/zero of=/var/lib/weft/fill2 bs=512",
        );
        assert!(site.host.run("echo x > /var/lib/weft/more").code != 0, "the disk is not full");
        match end {
            "kill -9 the container" => drop(site.host.run(&format!("kill -9 {pid}")).ok()),
            "kill -9 the supervisor" => drop(site.host.run(&format!("kill -9 {}", parent.text())).ok()),
            line => drop(weft.run(line).ok()),
        }
        until("ps tells the truth", || !weft.run("ps").ok().stdout.contains("www"));
        weft.run("rm -f www").ok();
        assert!(!weft.run("ps -a").ok().stdout.contains("www"), "{end}");
        let leases = weft.run("ipam ls").ok();
        assert!(!leases.stdout.contains("192.168.10."), "{end}: {leases}");
        site.host.run("test -z \"$(find /var/lib/weft -name '*tmp*' -o -name '*.new*')\"").ok();
        let ports = site.host.run("nft list ruleset");
        assert!(!ports.stdout.contains("8080"), "{end}: {ports}");
        weft.run("network rm testbridge").ok();
        site.host.run("rm -f /var/lib/weft/fill /var/lib/weft/fill2 /var/lib/weft/more").ok();
        site.host.assert_as_before();
    }
}
