//! Published ports over IPv6, on a network that has both families.

use crate::HOST;
use tests::{Container, Host, Machine};

const HOST6: &str = Machine::HOST6;

fn site() -> Host {
    let host = Host::new();
    host.link_machine("outside");
    host.weft().run("network create --ipv6 --subnet 192.168.11.0/24 --subnet fd00:11::/64 six").ok();
    host
}

fn echo(host: &Host) -> Container<'_> {
    let echo =
        host.weft().traffic_container("echo", "--network six -p 7000:7000", "tcp-serve [::]:7000 echo");
    echo.until_listening(7000);
    echo
}

fn ask(to: &str) -> String {
    format!("{} tcp {to}:7000", tests::traffic().display())
}

fn finish(host: &Host, echo: &Container<'_>) {
    echo.remove();
    host.weft().run("network rm six").ok();
    host.assert_as_before();
}

#[test]
fn ipv6_from_the_hosts_loopback() {
    let host = site();
    let echo = echo(&host);
    assert!(host.run(&ask("[::1]")).ok().text().starts_with("echo "));
    assert!(host.run(&ask("127.0.0.1")).ok().text().starts_with("echo "));
    finish(&host, &echo);
}

#[test]
fn ipv6_from_the_hosts_own_address() {
    let host = site();
    let echo = echo(&host);
    assert!(host.run(&ask(&format!("[{HOST6}]"))).ok().text().starts_with("echo "));
    finish(&host, &echo);
}

#[test]
fn ipv6_from_another_machine() {
    let host = site();
    let echo = echo(&host);
    assert_eq!(host.run_in("outside", &ask(&format!("[{HOST6}]"))).ok().text(), "echo 2001:db8:ffff::2");
    assert_eq!(host.run_in("outside", &ask(HOST)).ok().text(), "echo 192.0.2.2");
    finish(&host, &echo);
}

#[test]
fn ipv6_from_another_container_and_itself_through_the_hosts_address() {
    let host = site();
    let echo = echo(&host);
    let client = host.weft().traffic_container("client", "--network six", "udp-serve [::]:9 client");
    for container in [&client, &echo] {
        for address in [format!("[{HOST6}]"), HOST.to_owned()] {
            let out = container.sh(&format!("/traffic/weft-traffic tcp {address}:7000")).ok();
            assert!(out.text().starts_with("echo "), "{out}");
        }
    }
    client.remove();
    finish(&host, &echo);
}

#[test]
fn port_names_both_families() {
    let host = site();
    let echo = echo(&host);
    let out = host.weft().run("port echo").ok();
    let lines: Vec<&str> = out.text().lines().collect();
    assert_eq!(lines, ["7000/tcp -> 0.0.0.0:7000", "7000/tcp -> [::]:7000"]);
    finish(&host, &echo);
}
