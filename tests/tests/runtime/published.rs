//! A published port answers from everywhere it should, and from nowhere else.

use crate::{HOST, Site, is_page, page};

#[test]
fn the_page_comes_from_the_hosts_loopback() {
    let site = Site::set_up();
    let www = site.www();
    is_page(site.host.run(&page("127.0.0.1:8080")));
    is_page(site.host.run(&page("localhost:8080")));
    www.remove();
    site.finish();
}

#[test]
fn the_page_comes_from_the_hosts_own_address() {
    let site = Site::set_up();
    let www = site.www();
    is_page(site.host.run(&page(&format!("{HOST}:8080"))));
    is_page(site.host.run(&page("192.168.10.1:8080")));
    www.remove();
    site.finish();
}

#[test]
fn the_page_comes_from_another_machine() {
    let site = Site::set_up();
    let www = site.www();
    is_page(site.outside(&page(&format!("{HOST}:8080"))));
    www.remove();
    site.finish();
}

#[test]
fn the_page_comes_from_another_container_through_the_hosts_address() {
    let site = Site::set_up();
    let www = site.www();
    let client = site.host.weft().container("client", "--network testbridge sleep 1000");
    is_page(client.sh(&page(&format!("{HOST}:8080"))));
    is_page(client.sh(&page("192.168.10.1:8080")));
    is_page(client.sh(&page(&www.address())));
    client.remove();
    www.remove();
    site.finish();
}

#[test]
fn the_page_comes_from_a_container_of_another_network_through_the_hosts_address() {
    let site = Site::set_up();
    let www = site.www();
    site.host.weft().run("network create --subnet 192.168.20.0/24 second").ok();
    let client = site.host.weft().container("client", "--network second sleep 1000");
    is_page(client.sh(&page(&format!("{HOST}:8080"))));
    client.remove();
    www.remove();
    site.host.weft().run("network rm second").ok();
    site.finish();
}

#[test]
fn the_page_comes_from_the_container_itself_through_the_host() {
    let site = Site::set_up();
    let www = site.www();
    is_page(www.sh(&page(&format!("{HOST}:8080"))));
    is_page(www.sh(&page("127.0.0.1:80")));
    www.remove();
    site.finish();
}

#[test]
fn the_container_sees_the_other_machines_address() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let echo =
        weft.traffic_container("echo", "--network testbridge -p 7000:7000", "tcp-serve [::]:7000 echo");
    echo.until_listening(7000);
    let answer = site.outside(&format!("{} tcp {HOST}:7000", tests::traffic().display())).ok();
    assert_eq!(answer.text(), "echo 192.0.2.2");
    echo.remove();
    site.finish();
}

#[test]
fn a_port_published_on_loopback_is_not_reachable_from_another_machine() {
    let site = Site::set_up();
    let www = site
        .host
        .weft()
        .container("www", "--network testbridge -p 127.0.0.1:8080:80 python3 -m http.server 80");
    www.until_listening(80);
    is_page(site.host.run(&page("127.0.0.1:8080")));
    assert!(site.outside(&page(&format!("{HOST}:8080"))).code != 0, "reachable by the host's address");
    // A neighbour can route 127.0.0.1 to the host's MAC: the host has to drop it.
    let line = format!(
        "ip addr del 127.0.0.1/8 dev lo; sysctl -qw net.ipv4.conf.eth0.route_localnet=1; \
         ip route add 127.0.0.1 via {HOST} src 192.0.2.2; curl -sS -m 2 http://127.0.0.1:8080/; r=$?; \
         ip route del 127.0.0.1; ip addr add 127.0.0.1/8 dev lo; exit $r"
    );
    let out = site.outside(&line);
    assert!(out.code != 0, "reachable by a route to 127.0.0.1: {out}");
    www.remove();
    site.finish();
}

#[test]
fn a_port_on_one_address_of_the_host_answers_there_alone() {
    let site = Site::set_up();
    let www =
        site.host.weft().container("www", &format!("--network testbridge -p {HOST}:8080:80 {}", crate::WWW));
    www.until_listening(80);
    is_page(site.outside(&page(&format!("{HOST}:8080"))));
    is_page(site.host.run(&page(&format!("{HOST}:8080"))));
    assert!(site.host.run(&page("127.0.0.1:8080")).code != 0, "reachable at 127.0.0.1");
    www.remove();
    site.finish();
}

#[test]
fn an_unpublished_port_is_not_reachable_from_another_machine() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let echo =
        weft.traffic_container("echo", "--network testbridge -p 7000:7000", "tcp-serve [::]:7001 echo");
    echo.until_listening(7001);
    site.outside(&format!("ip route add 192.168.10.0/24 via {HOST}")).ok();
    let line = format!("{} tcp {}:7001 1500", tests::traffic().display(), echo.address());
    let out = site.outside(&line);
    site.outside("ip route del 192.168.10.0/24").ok();
    assert!(out.code != 0, "an unpublished port answers by a direct route: {out}");
    // The host itself does reach it.
    assert_eq!(site.host.run(&line).ok().text(), "echo 192.168.10.1");
    echo.remove();
    site.finish();
}

#[test]
fn a_container_reaches_another_machine_as_the_host() {
    let site = Site::set_up();
    let server = site.host.spawn(
        "ip",
        &[
            "netns",
            "exec",
            "outside",
            &tests::traffic().display().to_string(),
            "tcp-serve",
            "192.0.2.2:7000",
            "outside",
        ],
    );
    let mut server = server;
    server.until("listening");
    let weft = site.host.weft();
    let out = weft.run(&format!(
        "run --rm -v {}:/traffic:ro --network testbridge /traffic/weft-traffic tcp 192.0.2.2:7000",
        tests::traffic().parent().map(|dir| dir.display().to_string()).unwrap_or_default()
    ));
    assert_eq!(out.ok().text(), format!("outside {HOST}"));
    drop(server);
    site.finish();
}
