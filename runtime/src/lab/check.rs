//! `lab check`: whether the lab is as its file expects, and where a packet stops when it is not.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use net::{Family, Netns};

use super::dirs::Lab;
use super::expect::{Attempt, Expectation};
use super::http;
use super::icmp::{self, Manner};
use super::live::{self, Container};
use super::walk::{Place, walk};
use super::{parallel, ping};

/// How often to ask for an echo, and how long to wait for each. What is expected to answer is asked again anyway.
const PING: Manner = Manner { count: 2, timeout: Duration::from_millis(500) };
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(1);

/// What came of one expectation.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The expectation.
    pub what: String,
    /// What does not hold, a sentence each; empty: it holds.
    pub failures: Vec<String>,
}

/// Evaluates all expectations. What is expected to work and does not is tried again for as long as `patience`: a server
/// may only just be starting.
///
/// # Errors
/// The lab's state cannot be read.
pub fn check(lab: &Lab, patience: Duration) -> Result<Vec<Verdict>> {
    let end = Instant::now() + patience;
    let again = |evaluate: &dyn Fn(&Attempts<'_>) -> Vec<String>| -> Result<Vec<String>> {
        loop {
            let attempts = Attempts { lab, containers: live::containers(lab)? };
            let failures = evaluate(&attempts);
            if failures.is_empty() || Instant::now() >= end {
                return Ok(failures);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    if lab.plan.expect.is_empty() {
        let failures = again(&|attempts| attempts.everything())?;
        let mut what = "every container reaches every other of its networks".to_owned();
        let all = live::containers(lab)?;
        let absent: Vec<&str> = live::absent(lab, &all).map(|one| one.name.as_str()).collect();
        if !absent.is_empty() {
            what += &format!(" (but for those made by hand that do not run: {})", absent.join(", "));
        }
        return Ok(vec![Verdict { what, failures }]);
    }
    let verdicts = parallel::map(&lab.plan.expect, |expectation| {
        let failures = again(&|attempts| attempts.expectation(expectation))?;
        Ok(Verdict { what: expectation.to_string(), failures })
    });
    verdicts.into_iter().collect()
}

struct Attempts<'l> {
    lab: &'l Lab,
    containers: Vec<Container>,
}

impl Attempts<'_> {
    fn place(&self, name: &str) -> Option<Place<'_>> {
        let container = self.containers.iter().find(|one| one.name == name).map(Place::Container);
        container.or_else(|| self.lab.plan.host(name).ok().map(Place::Host))
    }

    /// Every pair of containers that have a network in common.
    fn everything(&self) -> Vec<String> {
        let matrix = match ping::ping(self.lab, PING, false) {
            Ok(matrix) => matrix,
            Err(error) => return vec![format!("{error:#}")],
        };
        if let Some(nothing) = matrix.nothing() {
            return vec![nothing];
        }
        let failures = parallel::map(&matrix.hole_names(), |(from, to, family)| {
            let places = self.place(from).zip(self.place(to));
            places.map(|(from, to)| self.explained(from, to, *family))
        });
        failures.into_iter().flatten().collect()
    }

    /// Why there is no answer.
    fn explained(&self, from: Place<'_>, to: Place<'_>, family: Family) -> String {
        match self.address(from, to, family) {
            Some(ip) => self.stopped(from, to, ip),
            None => {
                let why = match (down(from), down(to)) {
                    (Some(why), _) | (_, Some(why)) => why,
                    _ => format!("no {} address of it is known", super::expect::family_name(family)),
                };
                format!("{} → {}: {why}", from.name(), to.name())
            }
        }
    }

    /// The sentence that says where packets to an address stop, or those that answer.
    fn stopped(&self, from: Place<'_>, to: Place<'_>, ip: IpAddr) -> String {
        let way = format!("{} → {} ({ip})", from.name(), to.name());
        if let Some(stop) = walk(self.lab, from, to, ip) {
            return format!("{way}: {stop}");
        }
        match self.address(to, from, Family::of(ip)).and_then(|back| walk(self.lab, to, from, back)) {
            Some(stop) => format!("{way}: the answer {stop}"),
            None => format!("{way}: no answer, though every hop on the way looks as it should"),
        }
    }

    /// The address of `to` for `from`: of a container in a network that both have, if there is one.
    fn address(&self, from: Place<'_>, to: Place<'_>, family: Family) -> Option<IpAddr> {
        match (from, to) {
            (Place::Container(from), Place::Container(to)) => {
                let own = from.networks();
                to.address(family, &own).or_else(|| to.address(family, &to.networks()))
            }
            (_, Place::Container(to)) => to.address(family, &to.networks()),
            (_, Place::Host(to)) => {
                to.addresses.iter().map(|net| net.ip()).find(|ip| Family::of(*ip) == family)
            }
        }
    }

    /// The families to try: the one asked for, else those that both ends have.
    fn families(&self, from: Place<'_>, to: Place<'_>, asked: Option<Family>) -> Vec<Family> {
        let has = |family: &Family| {
            let own = match from {
                Place::Container(one) => one.address(*family, &one.networks()).is_some(),
                Place::Host(_) => true,
            };
            own && self.address(from, to, *family).is_some()
        };
        match asked {
            Some(family) => vec![family],
            None => [Family::V4, Family::V6].into_iter().filter(has).collect(),
        }
    }

    fn expectation(&self, expectation: &Expectation) -> Vec<String> {
        let places = |names: &[String]| names.iter().filter_map(|name| self.place(name)).collect::<Vec<_>>();
        let from = places(&expectation.from);
        let pairs = |to: &[String]| {
            let to = places(to);
            let all = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
            // In a list of all to all, nobody is meant to try itself.
            all.filter(|(from, to)| from.name() != to.name()).collect::<Vec<_>>()
        };
        let failures = match &expectation.what {
            Attempt::Ping(to) => {
                parallel::map(&pairs(to), |(from, to)| self.pair(*from, *to, expectation, &ping_once))
            }
            Attempt::Tcp(to, port) => {
                let attempt = |netns: &Netns, ip| tcp(netns, ip, *port);
                parallel::map(&pairs(to), |(from, to)| self.pair(*from, *to, expectation, &attempt))
            }
            Attempt::Http { url, status, body } => {
                parallel::map(&from, |from| self.http(*from, url, *status, body.as_deref(), expectation))
            }
        };
        failures.concat()
    }

    /// One pair, in each of their families.
    fn pair(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        expectation: &Expectation,
        attempt: &dyn Fn(&Netns, IpAddr) -> Result<(), Refused>,
    ) -> Vec<String> {
        if let Some(why) = down(from).or_else(|| down(to)) {
            return vec![format!("{} → {}: {why}", from.name(), to.name())];
        }
        let families = self.families(from, to, expectation.family);
        let works = expectation.works;
        if families.is_empty() && works {
            return vec![format!("{} → {}: they have no address family in common", from.name(), to.name())];
        }
        let mut failures = Vec::new();
        for family in families {
            match self.address(from, to, family) {
                Some(ip) => failures.extend(self.attempt(from, Some(to), ip, works, attempt)),
                None if works => failures.push(self.explained(from, to, family)),
                // What has no address cannot be reached, as is expected.
                None => {}
            }
        }
        failures
    }

    fn attempt(
        &self,
        from: Place<'_>,
        to: Option<Place<'_>>,
        ip: IpAddr,
        works: bool,
        attempt: &dyn Fn(&Netns, IpAddr) -> Result<(), Refused>,
    ) -> Option<String> {
        let way = match to {
            Some(to) => format!("{} → {} ({ip})", from.name(), to.name()),
            None => format!("{} → {ip}", from.name()),
        };
        let netns = match live::netns_of(self.lab, &self.containers, from.name()) {
            Ok(netns) => netns,
            Err(error) => return Some(format!("{way}: {error:#}")),
        };
        match (attempt(&netns, ip), works) {
            (Ok(()), true) | (Err(_), false) => None,
            (Ok(()), false) => Some(format!("{way}: it works, and should not")),
            // Who answers, though not as wished, was reached.
            (Err(Refused { why, reached: true }), true) => Some(format!("{way}: {why}")),
            (Err(Refused { why, .. }), true) => Some(match to {
                Some(to) => {
                    let stopped = self.stopped(from, to, ip);
                    let told = stopped.contains("no answer, though") && !why.is_empty();
                    if told { format!("{way}: {why}") } else { stopped }
                }
                None => format!("{way}: {why}"),
            }),
        }
    }

    fn http(
        &self,
        from: Place<'_>,
        text: &str,
        status: u16,
        body: Option<&str>,
        expectation: &Expectation,
    ) -> Vec<String> {
        // The file was checked when it was read.
        let Some(url) = http::Url::parse(text) else { return vec![format!("{text} is no URL")] };
        let attempt = |netns: &Netns, ip: IpAddr| fetch(netns, ip, &url, status, body);
        if let Ok(ip) = url.host.parse::<IpAddr>() {
            return self.attempt(from, None, ip, expectation.works, &attempt).into_iter().collect();
        }
        match self.place(&url.host) {
            Some(to) => {
                // One answer is enough: a server may listen on one family alone.
                let families = self.families(from, to, expectation.family);
                let first = families.first().copied();
                let one = Expectation { family: first.or(expectation.family), ..expectation.clone() };
                self.pair(from, to, &one, &attempt)
            }
            None => vec![format!("{text}: there is no container or host {:?}", url.host)],
        }
    }
}

/// Why an end cannot take part.
fn down(place: Place<'_>) -> Option<String> {
    match place {
        Place::Container(one) if !one.runs() => {
            Some(format!("stops at {}: container {} does not run ({})", one.host, one.name, one.status))
        }
        _ => None,
    }
}

/// An attempt that failed.
struct Refused {
    why: String,
    /// Somebody answered.
    reached: bool,
}

fn ping_once(netns: &Netns, ip: IpAddr) -> Result<(), Refused> {
    match icmp::answers(netns, ip, PING) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Refused { why: String::new(), reached: false }),
        Err(error) => Err(Refused { why: error.to_string(), reached: false }),
    }
}

fn tcp(netns: &Netns, ip: IpAddr, port: u16) -> Result<(), Refused> {
    let at = std::net::SocketAddr::new(ip, port);
    let connected = netns.run(|| std::net::TcpStream::connect_timeout(&at, CONNECT));
    let refused = |error: std::io::Error| Refused {
        reached: error.kind() == std::io::ErrorKind::ConnectionRefused,
        why: format!("port {port}: {}", plain(&error)),
    };
    match connected {
        Ok(connected) => connected.map(drop).map_err(refused),
        Err(error) => Err(Refused { why: error.to_string(), reached: false }),
    }
}

fn fetch(netns: &Netns, ip: IpAddr, url: &http::Url, status: u16, body: Option<&str>) -> Result<(), Refused> {
    let got = netns.run(|| http::get(ip, url.port, &url.host, &url.path, Duration::from_secs(2)));
    let answer = match got {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            let reached = error.kind() == std::io::ErrorKind::ConnectionRefused;
            return Err(Refused { why: format!("port {}: {}", url.port, plain(&error)), reached });
        }
        Err(error) => return Err(Refused { why: error.to_string(), reached: false }),
    };
    let wrong = |why: String| Err(Refused { why, reached: true });
    if answer.status != status {
        return wrong(format!("status {}, expected is {status}", answer.status));
    }
    match body.filter(|wanted| !answer.body.contains(wanted)) {
        Some(wanted) => wrong(format!("{wanted:?} is not in the body")),
        None => Ok(()),
    }
}

/// An error without its number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
