//! `-p` in all its forms, `port`, and ports that are taken.

use crate::{Site, WWW};

#[test]
fn port_prints_where_it_is_published() {
    let site = Site::set_up();
    let www = site.www();
    let weft = site.host.weft();
    assert_eq!(weft.run("port www").ok().text().lines().next(), Some("80/tcp -> 0.0.0.0:8080"));
    assert_eq!(weft.run("port www 80").ok().text().lines().next(), Some("0.0.0.0:8080"));
    assert_eq!(weft.run("port www 80/tcp").ok().text().lines().next(), Some("0.0.0.0:8080"));
    weft.run("port www 81").code(1);
    www.remove();
    site.finish();
}

#[test]
fn a_second_run_on_a_taken_port_fails_at_once_and_leaves_nothing() {
    let site = Site::set_up();
    let www = site.www();
    let before = site.host.settled();
    let out =
        site.host.weft().run(&format!("run -d --name www2 --network testbridge -p 8080:80 {WWW}")).code(125);
    assert!(out.stderr.contains("8080"), "names the port: {out}");
    assert!(out.stderr.contains("www") && !out.stderr.contains("panicked"), "names the holder: {out}");
    site.host.assert_still(&before);
    let all = site.host.weft().run("ps -a").ok();
    assert!(!all.stdout.contains("www2"), "{all}");
    crate::is_page(site.host.run(&crate::page("127.0.0.1:8080")));
    www.remove();
    site.finish();
}

#[test]
fn a_port_that_another_program_holds_is_refused() {
    let site = Site::set_up();
    let traffic = tests::traffic().display().to_string();
    let mut other = site.host.spawn(&traffic, &["tcp-serve", "0.0.0.0:8080", "other"]);
    other.until("listening");
    let before = site.host.settled();
    let out =
        site.host.weft().run(&format!("run -d --name www --network testbridge -p 8080:80 {WWW}")).code(125);
    assert!(out.stderr.contains("8080"), "names the port: {out}");
    site.host.assert_still(&before);
    drop(other);
    site.finish();
}

#[test]
fn a_published_port_is_held_against_other_programs() {
    let site = Site::set_up();
    let www = site.www();
    let out =
        site.host.run(&format!("timeout 2 {} tcp-serve 0.0.0.0:8080 other", tests::traffic().display()));
    assert!(out.code == 1, "another program took the port: {out}");
    www.remove();
    site.finish();
}

#[test]
fn the_same_port_on_two_addresses_and_protocols() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let a =
        weft.traffic_container("aa", "--network testbridge -p 127.0.0.1:7000:7000", "tcp-serve [::]:7000 a");
    let b =
        weft.traffic_container("bb", "--network testbridge -p 192.0.2.1:7000:7000", "tcp-serve [::]:7000 b");
    let c =
        weft.traffic_container("box", "--network testbridge -p 7000:7000/udp", "udp-serve 0.0.0.0:7000 c");
    for container in [&a, &b, &c] {
        container.until_listening(7000);
    }
    let ask =
        |how: &str| site.host.run(&format!("{} {how}", tests::traffic().display())).ok().text().to_owned();
    assert!(ask("tcp 127.0.0.1:7000").starts_with("a "));
    assert!(ask("tcp 192.0.2.1:7000").starts_with("b "));
    assert!(ask("udp 192.0.2.1:7000").starts_with("c "));
    for container in [&a, &b, &c] {
        container.remove();
    }
    site.finish();
}

#[test]
fn a_port_chosen_by_the_kernel_and_a_range() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let options = "--network testbridge -p 80 -p 8000-8002:90-92";
    let c = weft.traffic_container("cc", options, "tcp-serve [::]:80 c");
    c.until_listening(80);
    let out = weft.run("port cc").ok();
    for line in ["90/tcp -> 0.0.0.0:8000", "91/tcp -> 0.0.0.0:8001", "92/tcp -> 0.0.0.0:8002"] {
        assert!(out.stdout.contains(line), "{out}");
    }
    let chosen = weft.run("port cc 80").ok();
    let port: u16 = chosen.text().lines().next().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    assert!(port >= 32768, "{chosen}");
    let answer = site.outside(&format!("{} tcp 192.0.2.1:{port}", tests::traffic().display())).ok();
    assert_eq!(answer.text(), "c 192.0.2.2");
    c.remove();
    site.finish();
}

#[test]
fn a_port_is_free_again_after_stop() {
    let site = Site::set_up();
    let www = site.www();
    site.host.weft().run("stop -t 0 www").ok();
    let again = site.host.weft().container("again", &format!("--network testbridge -p 8080:80 {WWW}"));
    again.until_listening(80);
    crate::is_page(site.host.run(&crate::page("127.0.0.1:8080")));
    www.remove();
    again.remove();
    site.finish();
}

#[test]
fn ten_runs_at_once_share_a_range_of_ports() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let names: Vec<String> = (0..10).map(|n| format!("c{n}")).collect();
    let ports: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
        let run = |name| {
            scope.spawn(move || {
                weft.run(&format!("run -d --name {name} --network testbridge -p 7000-7019:80 sleep 1000"))
                    .ok();
                weft.run(&format!("port {name} 80")).ok().text().lines().next().unwrap().to_owned()
            })
        };
        let runs: Vec<_> = names.iter().map(run).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(ports.len(), 10, "{ports:?}");
    assert!(ports.iter().all(|port| port.starts_with("0.0.0.0:70")), "{ports:?}");
    let inspected = weft.run("inspect c0").ok().json();
    assert_eq!(inspected[0]["HostConfig"]["PortBindings"]["80/tcp"][0]["HostPort"], "7000-7019");
    // A start chooses again.
    weft.run("stop -t 0 c0").ok();
    let taken = weft.run("run -d --name next --network testbridge -p 7000-7009:80 sleep 1000").ok();
    weft.run("start c0").ok();
    weft.run(&format!("rm -f {} {}", taken.text(), names.join(" "))).ok();
    site.finish();
}

#[test]
fn a_port_that_answers_on_ipv6_is_shown_there() {
    let site = Site::set_up();
    let www = site.www();
    let weft = site.host.weft();
    crate::is_page(site.host.run(&crate::page("[::1]:8080")));
    assert_eq!(weft.run("port www").ok().text(), "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080");
    let ps = weft.run("ps").ok();
    assert!(ps.stdout.contains("0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"), "{ps}");
    let inspected = weft.run("inspect www").ok().json();
    let ports = &inspected[0]["NetworkSettings"]["Ports"]["80/tcp"];
    assert_eq!(
        *ports,
        serde_json::json!([{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}])
    );
    www.remove();
    site.finish();
}
