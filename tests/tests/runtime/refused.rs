//! Bad input to the runtime: an error, the right exit code, and nothing changed.

use tests::Host;

/// Each of these must fail with this code, say something, and change nothing.
fn refused(code: i32, lines: &[&str]) {
    let host = Host::new();
    let weft = host.weft();
    weft.run("network create --subnet 192.168.10.1/24 testbridge").ok();
    let before = host.settled();
    for line in lines {
        let out = weft.run(line).code(code);
        assert!(out.text().is_empty() || out.text() == "[]", "{out}"); // an empty list, as Docker's inspect
        assert!(!out.stderr.trim().is_empty(), "{out}");
        assert!(!out.stderr.contains("panicked"), "{out}");
    }
    host.assert_still(&before);
    weft.run("network rm testbridge").ok();
}

#[test]
fn run_refuses_bad_options() {
    refused(
        125,
        &[
            "run --rm --network testbridge -p 70000:80 true",
            "run --rm --network testbridge -p 80:0 true",
            "run --rm --network testbridge -p 8000-8005:80-81 true",
            "run --rm --network testbridge -p a:b true",
            "run --rm --network testbridge -p 80:80/icmp true",
            "run --rm --network testbridge --ip 192.168.99.1 true",
            "run --rm --network testbridge --ip 192.168.10.1 true",
            "run --rm --network testbridge --ip not-an-address true",
            "run --rm --network testbridge --mac-address zz:zz true",
            "run --rm --network nowhere true",
            "run --rm --name a/b --network none true",
            "run --rm --name -x --network none true",
            "run --rm --network none -p 80:80 -v relative:/x:bad true",
        ],
    );
}

#[test]
fn network_create_refuses_bad_options() {
    refused(
        1,
        &[
            "network create a/b",
            "network create .a",
            "network create --subnet 10.0.0.0/99 a",
            "network create --subnet nonsense a",
            "network create --subnet 10.0.0.0/31 a",
            "network create --driver no-such-driver a",
            "network create --subnet 10.66.0.0/24 --gateway 10.67.0.1 a",
            "network create --subnet 10.66.0.0/24 --ip-range 10.67.0.0/28 a",
            "network create testbridge",
            "network rm no-such-network",
            "network inspect no-such-network",
        ],
    );
}

#[test]
fn commands_on_containers_that_are_not_there_fail() {
    refused(
        1,
        &[
            "stop nobody",
            "kill nobody",
            "logs nobody",
            "port nobody",
            "wait nobody",
            "inspect nobody",
            "exec nobody true",
        ],
    );
}

#[test]
fn errors_of_networks_name_network_and_container_once() {
    let host = Host::new();
    let weft = host.weft();
    weft.run("network create --subnet 10.7.0.0/29 --ip-range 10.7.0.2/31 tiny").ok();
    for name in ["one", "two"] {
        weft.run(&format!("run -d --name {name} --network tiny sleep 1000")).ok();
    }
    for line in ["run --name three --network tiny true", "run --name three --network tiny --ip 10.7.0.2 true"]
    {
        let out = weft.run(line).code(125);
        let says = &out.stderr;
        assert_eq!(says.matches("three").count(), 1, "{out}");
        assert_eq!(says.matches("network tiny").count(), 1, "{out}");
        assert!(!says.contains("/bridge") && says.lines().count() == 1, "{out}");
        let longest = says.split(|c: char| !c.is_ascii_hexdigit()).map(str::len).max();
        assert!(longest < Some(13), "{out}");
    }
    weft.run("rm -f one two").ok();
    weft.run("network rm tiny").ok();
    host.assert_as_before();
}
