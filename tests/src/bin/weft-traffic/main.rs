//! `weft-traffic`: the small helper of the end-to-end tests.
//!
//! It holds the namespaces of a test's own machine (`hold`), and it is both ends of the tests' traffic: servers
//! that answer with their name and the address they saw the client at, and clients that print the answer. It
//! knows nothing of Weft; what it reports is what the kernel did with the packets.
#![forbid(unsafe_code)]

mod attach;
mod hold;
mod tcp;
mod udp;

use std::process::ExitCode;

const USAGE: &str = "\
usage: weft-traffic tcp-serve ADDR:PORT NAME      answer each connection with `NAME CLIENT-ADDRESS`
       weft-traffic tcp ADDR:PORT [MILLISECONDS]  connect, print the answer
       weft-traffic udp-serve ADDR:PORT NAME      answer each datagram with `NAME CLIENT-ADDRESS`
       weft-traffic udp ADDR:PORT [MILLISECONDS [SOURCE-PORT]]
       weft-traffic udp-tick ADDR:PORT SOURCE-PORT   one datagram each 50 ms from one socket, every answer printed
       weft-traffic attach                        CNI commands on hosts of a lab, from a plan on standard input
       weft-traffic hold                          a machine of its own until standard input ends";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["attach"] => attach::run(),
        ["hold"] => hold::outer(),
        ["hold-init"] => hold::init(),
        ["tcp-serve", addr, name] => tcp::serve(addr, name),
        ["tcp", addr] => tcp::ask(addr, 5000),
        ["tcp", addr, ms] => ms.parse().map_err(Into::into).and_then(|ms| tcp::ask(addr, ms)),
        ["udp-serve", addr, name] => udp::serve(addr, name),
        ["udp", addr] => udp::ask(addr, 2000, 0),
        ["udp", addr, ms] => ms.parse().map_err(Into::into).and_then(|ms| udp::ask(addr, ms, 0)),
        ["udp", addr, ms, port] => match (ms.parse(), port.parse()) {
            (Ok(ms), Ok(port)) => udp::ask(addr, ms, port),
            _ => Err(anyhow::anyhow!("{USAGE}")),
        },
        ["udp-tick", addr, port] => port.parse().map_err(Into::into).and_then(|port| udp::tick(addr, port)),
        _ => Err(anyhow::anyhow!("{USAGE}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("weft-traffic: {e:#}");
            ExitCode::from(1)
        }
    }
}
