//! The runtime as a user meets it: networks, containers, published ports, and nothing left afterwards.
//!
//! Every test has a machine of its own, which has to look as before when the test ends (see [`tests::Host`]).

mod cleanup;
mod flush;
mod internal;
mod io;
mod isolated;
mod life;
mod modes;
mod networks;
mod parallel;
mod ports;
mod published;
mod published6;
mod refused;
mod udp;

use tests::{Container, Host, Machine};

/// The command line of a web server.
pub const WWW: &str = "python3 -m http.server 80";

/// A machine with another one on its link, and a network `testbridge` with a gateway of 192.168.10.1.
pub struct Site {
    /// The machine.
    pub host: Host,
}

impl Site {
    /// A machine with the network, and nothing else yet.
    pub fn set_up() -> Site {
        let host = Host::new();
        host.link_machine("outside");
        host.weft().run("network create --driver bridge --subnet 192.168.10.1/24 testbridge").ok();
        Site { host }
    }

    /// A container `www` with a web server, published on 8080.
    pub fn www(&self) -> Container<'_> {
        let www = self.host.weft().container("www", &format!("--network testbridge -p 8080:80 {WWW}"));
        www.until_listening(80);
        www
    }

    /// Runs a line of shell on the other machine.
    #[track_caller]
    pub fn outside(&self, line: &str) -> tests::Output {
        self.host.run_in("outside", line)
    }

    /// Removes the network; nothing may use it any more.
    #[track_caller]
    pub fn finish(self) {
        self.host.weft().run("network rm testbridge").ok();
        self.host.assert_as_before();
    }
}

/// A page of the web server, fetched with this prefix to `curl`'s URL.
pub fn page(address: &str) -> String {
    format!("curl -sS -m 5 http://{address}/")
}

/// That this is the page.
#[track_caller]
pub fn is_page(out: tests::Output) {
    assert!(out.code == 0 && out.stdout.contains("Directory listing for"), "not the page: {out}");
}

/// The host's address on the link to the other machine.
pub const HOST: &str = Machine::HOST;
