use super::form::{Publish, clash, mappings, parse, shown};
use crate::spec::{PortMapping, Protocol};
use proptest::prelude::*;

fn one(text: &str) -> Publish {
    let mut all = parse(text).unwrap();
    assert_eq!(all.len(), 1, "{text}");
    all.remove(0)
}

fn publish(ip: Option<&str>, host: Option<u16>, container_port: u16, protocol: Protocol) -> Publish {
    let host_ip = ip.map(|ip| ip.parse().unwrap());
    Publish { host_ip, host: host.map(|port| port..=port), container_port, protocol }
}

fn mapping(ip: Option<&str>, host_port: u16) -> PortMapping {
    let host_ip = ip.map(|ip| ip.parse().unwrap());
    PortMapping { host_ip, host_port, container_port: 80, ..PortMapping::default() }
}

#[test]
fn every_form_is_read() {
    use Protocol::{Sctp, Tcp, Udp};
    assert_eq!(one("80"), publish(None, None, 80, Tcp));
    assert_eq!(one("8080:80"), publish(None, Some(8080), 80, Tcp));
    assert_eq!(one("127.0.0.1:8080:80"), publish(Some("127.0.0.1"), Some(8080), 80, Tcp));
    assert_eq!(one("127.0.0.1::80/udp"), publish(Some("127.0.0.1"), None, 80, Udp));
    assert_eq!(one("[::1]:8080:80/sctp"), publish(Some("::1"), Some(8080), 80, Sctp));
    assert_eq!(one("[::]::80"), publish(Some("::"), None, 80, Tcp));
    assert_eq!(one(":80"), publish(None, None, 80, Tcp));
    assert_eq!(one("53:53/UDP"), publish(None, Some(53), 53, Udp));
}

#[test]
fn ranges_map_port_by_port_or_to_one() {
    let all = parse("8000-8002:80-82").unwrap();
    let ends: Vec<_> = all.iter().map(|each| (each.host.clone().unwrap(), each.container_port)).collect();
    assert_eq!(ends, [(8000..=8000, 80), (8001..=8001, 81), (8002..=8002, 82)]);
    assert_eq!(one("8000-8005:80").host, Some(8000..=8005));
    assert_eq!(parse("80-82").unwrap().len(), 3);
}

#[test]
fn what_is_no_port_is_an_error_that_names_it() {
    for (text, named) in [
        ("70000:80", "70000"),
        ("80:70000", "70000"),
        ("0:80", "\"0\""),
        ("", "\"\""),
        ("8080:", "\"\""),
        ("x:80", "\"x\""),
        ("80/icmp", "icmp"),
        ("1.2.3:80:80", "1.2.3"),
        ("::1:80:80", "brackets"),
        ("[::1]80", "missing"),
        ("[::1:80:80", "]"),
        ("82-80:80-82", "backwards"),
        ("8000-8001:80-82", "2 host ports"),
        ("8000:80-82", "1 host ports"),
        ("[127.0.0.1]", "missing"),
        ("[::ffff:127.0.0.1]:80:80", "write 127.0.0.1"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("--publish"), "{text}: {error}");
    }
}

#[test]
fn mappings_keep_an_open_host_port_and_refuse_a_port_twice() {
    let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let all = mappings(&texts(&["80", "8080:80", "8080:80"]), None).unwrap();
    assert_eq!(all, [mapping(None, 0), mapping(None, 8080)]);
    let error = mappings(&texts(&["8080:80", "127.0.0.1:8080:81"]), None).unwrap_err().to_string();
    assert!(error.contains("8080"), "{error}");
    assert!(mappings(&texts(&["8080:80", "8080:81/udp"]), None).is_ok());
    let ip = "127.0.0.1".parse().ok();
    assert_eq!(mappings(&texts(&["8080:80"]), ip).unwrap(), [mapping(Some("127.0.0.1"), 8080)]);
    let range = PortMapping { host_port_last: 8005, ..mapping(None, 8000) };
    assert_eq!(mappings(&texts(&["8000-8005:80", "8000:80"]), None).unwrap(), [range, mapping(None, 8000)]);
}

#[test]
fn mappings_clash_on_a_common_address_only() {
    assert!(clash(&mapping(None, 80), &mapping(Some("10.0.0.1"), 80)));
    assert!(clash(&mapping(Some("0.0.0.0"), 80), &mapping(Some("10.0.0.1"), 80)));
    assert!(!clash(&mapping(Some("10.0.0.2"), 80), &mapping(Some("10.0.0.1"), 80)));
    assert!(!clash(&mapping(Some("0.0.0.0"), 80), &mapping(Some("::"), 80)));
    assert!(!clash(&mapping(None, 0), &mapping(None, 0)));
}

#[test]
fn a_mapping_is_shown_with_ipv6_only_where_the_container_has_it() {
    assert_eq!(shown(&mapping(None, 8080), false), ["0.0.0.0:8080"]);
    assert_eq!(shown(&mapping(None, 8080), true), ["0.0.0.0:8080", "[::]:8080"]);
    assert_eq!(shown(&mapping(Some("::1"), 8080), false), ["[::1]:8080"]);
}

proptest! {
    #[test]
    fn parsing_never_panics(text in "[0-9a-z\\[\\]:./-]{0,24}") {
        let _ = parse(&text);
    }

    #[test]
    fn a_host_and_a_container_port_come_back(host in 1u16.., container in 1u16..) {
        let read = one(&format!("{host}:{container}"));
        prop_assert_eq!(read, publish(None, Some(host), container, Protocol::Tcp));
    }
}

mod sockets {
    use crate::paths::Paths;
    use crate::ports::bind;
    use crate::spec::{PortMapping, Protocol, Spec};
    use std::io::{Read, Write};
    use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn paths() -> Paths {
        let none = std::path::PathBuf::from("/nonexistent");
        Paths { root: none.clone(), run: none.clone(), config_dir: none, cni_bin: Vec::new() }
    }

    fn spec(host_ip: Option<IpAddr>, host_port: u16, container_port: u16, protocol: Protocol) -> Spec {
        let ports =
            vec![PortMapping { host_ip, host_port, container_port, protocol, ..PortMapping::default() }];
        Spec { id: "a".into(), ports, ..Spec::default() }
    }

    #[test]
    fn a_free_port_is_chosen_and_held() {
        let held = bind(&paths(), &spec(None, 0, 80, Protocol::Tcp)).unwrap();
        let port = held.ports()[0].host_port;
        assert_ne!(port, 0);
        assert!(TcpListener::bind((LOOPBACK, port)).is_err());
        drop(held);
        // A process that another test starts may have the socket until its exec.
        let start = std::time::Instant::now();
        while TcpListener::bind((LOOPBACK, port)).is_err() {
            assert!(start.elapsed().as_secs() < 30, "the port is still taken");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    #[test]
    fn a_taken_port_is_an_error_with_its_holder() {
        let other = TcpListener::bind((LOOPBACK, 0)).unwrap();
        let port = other.local_addr().unwrap().port();
        let error = bind(&paths(), &spec(None, port, 80, Protocol::Tcp)).unwrap_err().to_string();
        assert!(error.contains(&format!("port {port}/tcp")), "{error}");
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    }

    #[test]
    fn an_address_that_is_not_the_hosts_is_an_error() {
        let ip = "192.0.2.1".parse().ok();
        let error = bind(&paths(), &spec(ip, 0, 80, Protocol::Tcp)).unwrap_err().to_string();
        assert!(error.contains("192.0.2.1 is no address of this host"), "{error}");
    }

    #[test]
    fn of_a_range_the_first_free_port_is_taken() {
        let other = TcpListener::bind((LOOPBACK, 0)).unwrap();
        let port = other.local_addr().unwrap().port();
        let range = |last| {
            let mut spec = spec(Some(LOOPBACK), port, 80, Protocol::Tcp);
            spec.ports[0].host_port_last = last;
            spec
        };
        if port < u16::MAX {
            let held = bind(&paths(), &range(u16::MAX)).unwrap().ports()[0];
            assert!(held.host_port > port && held.host_port_last == 0);
        }
        let error = bind(&paths(), &range(port)).unwrap_err().to_string();
        assert!(error.contains(&format!("{port}-{port}/tcp")), "{error}");
    }

    #[test]
    fn a_range_leaves_a_port_to_the_mapping_that_has_no_choice() {
        // Two ports next to each other that are free.
        let (first, second) = (0..1000)
            .find_map(|_| {
                let one = TcpListener::bind((LOOPBACK, 0)).unwrap();
                let port = one.local_addr().unwrap().port();
                let two = TcpListener::bind((LOOPBACK, port.checked_add(1)?)).ok()?;
                Some((port, two.local_addr().unwrap().port()))
            })
            .unwrap();
        let mut spec = spec(Some(LOOPBACK), first, 80, Protocol::Tcp);
        spec.ports[0].host_port_last = second;
        spec.ports.push(PortMapping { host_port_last: 0, container_port: 81, ..spec.ports[0] });
        let held = bind(&paths(), &spec).unwrap().ports();
        assert_eq!((held[0].host_port, held[1].host_port), (second, first));
    }

    #[test]
    fn the_proxy_passes_tcp_on_whatever_family_the_container_has_and_ends_with_its_handle() {
        let six = std::net::Ipv6Addr::LOCALHOST.into();
        for (outside, inside) in [(LOOPBACK, LOOPBACK), (LOOPBACK, six), (six, LOOPBACK)] {
            let server = TcpListener::bind((inside, 0)).unwrap();
            let port = server.local_addr().unwrap().port();
            let held = bind(&paths(), &spec(Some(outside), 0, port, Protocol::Tcp)).unwrap();
            let published = held.ports()[0].host_port;
            let proxy = held.serve(&[inside]).unwrap();
            let echo = std::thread::spawn(move || {
                let (mut stream, _) = server.accept().unwrap();
                let mut text = [0; 4];
                stream.read_exact(&mut text).unwrap();
                stream.write_all(&text).unwrap();
            });
            let mut client = TcpStream::connect((outside, published)).unwrap();
            client.write_all(b"ping").unwrap();
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            assert_eq!(text, "ping");
            echo.join().unwrap();
            drop(proxy);
            assert!(TcpStream::connect((outside, published)).is_err());
        }
    }

    #[test]
    fn the_proxy_passes_udp_on() {
        let server = UdpSocket::bind((LOOPBACK, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        let held = bind(&paths(), &spec(Some(LOOPBACK), 0, port, Protocol::Udp)).unwrap();
        let published = held.ports()[0].host_port;
        let _proxy = held.serve(&[LOOPBACK]).unwrap();
        let client = UdpSocket::bind((LOOPBACK, 0)).unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        client.send_to(b"ping", (LOOPBACK, published)).unwrap();
        let mut packet = [0; 16];
        let (length, from) = server.recv_from(&mut packet).unwrap();
        server.send_to(&packet[..length], from).unwrap();
        let (length, from) = client.recv_from(&mut packet).unwrap();
        assert_eq!((&packet[..length], from.port()), (&b"ping"[..], published));
    }

    /// Set in the process that [`bind_without_privilege_raises_soft_limit`] starts of itself.
    const LIMITED: &str = "WEFT_TEST_LIMITED";

    /// Binds more ports than the soft limit of descriptors has room for, and fails to bind more than the hard limit has, in a
    /// process that may not raise that.
    #[test]
    fn bind_without_privilege_raises_soft_limit() {
        if std::env::var_os(LIMITED).is_some() {
            let port = spec(Some(LOOPBACK), 0, 80, Protocol::Tcp).ports[0];
            let spec = |ports| Spec { id: "a".into(), ports: vec![port; ports], ..Spec::default() };
            assert_eq!(bind(&paths(), &spec(150)).unwrap().ports().len(), 150);
            // More than the hard limit has room for.
            let error = bind(&paths(), &spec(400)).unwrap_err().to_string();
            for part in ["cannot publish 400 ports", "hard limit 400", "LimitNOFILE=464"] {
                assert!(error.contains(part), "{error}");
            }
            return;
        }
        let limits = "prlimit --nofile=100:400 setpriv --bounding-set=-sys_resource --inh-caps=-sys_resource";
        let mut words = limits.split(' ');
        let output = std::process::Command::new(words.next().unwrap())
            .args(words)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "ports::tests::sockets::bind_without_privilege_raises_soft_limit"])
            .env(LIMITED, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
}
