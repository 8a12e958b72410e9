//! etcd and the agents: started, waited for, and asked.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use net::Netns;
use ovl_api::Client;

use super::dirs::{Lab, UNDERLAY};
use super::http;
use super::plan::{Machine, client_url};
use super::procs::Daemon;

/// How long etcd and an agent may take until they answer: a slow machine with many hosts.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How many lines of a log are shown when its owner failed.
const LAST_WORDS: usize = 12;

/// The executable of etcd.
///
/// # Errors
/// It is not installed.
pub fn etcd() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/bin".into(), "/usr/local/bin".into()]);
    dirs.map(|dir| dir.join("etcd"))
        .find(|file| file.is_file())
        .context("etcd is not installed: on Debian, apt-get install etcd-server (a lab with one host and --etcd 0 needs none)")
}

/// The executable of the agent, beside this one.
///
/// # Errors
/// It is not there.
pub fn agent() -> Result<PathBuf> {
    let own = own_dir()?;
    let agent = own.join("ovl-agent");
    if !agent.is_file() {
        bail!("{} is not there: a lab needs ovl-agent beside runtime", agent.display());
    }
    Ok(agent)
}

/// The directory of this executable.
///
/// # Errors
/// The system does not say.
pub fn own_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this executable")?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

/// The process of a member of etcd.
pub fn member(lab: &Lab, member: &Machine) -> Daemon {
    Daemon::at(lab.member(&member.name))
}

/// The process of a host's agent.
pub fn agent_of(lab: &Lab, host: &Machine) -> Daemon {
    Daemon::at(lab.host_dir(&host.name).join("agent"))
}

/// Starts a member of etcd.
///
/// # Errors
/// It cannot be executed.
pub fn start_member(lab: &Lab, which: &Machine) -> Result<()> {
    let ip = which.ip().with_context(|| format!("{} has no address", which.name))?;
    let peer = |ip| format!("http://{}", std::net::SocketAddr::new(ip, 2380));
    let cluster: Vec<String> = lab
        .plan
        .etcd
        .iter()
        .filter_map(|each| each.ip().map(|ip| format!("{}={}", each.name, peer(ip))))
        .collect();
    let mut command = Command::new(etcd()?);
    // The variables are etcd's flags too; those of this shell are not meant for the lab.
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("ETCD_")) {
        command.env_remove(key);
    }
    if std::env::consts::ARCH != "x86_64" {
        // etcd 3.4 asks for this on architectures that it has no test machines for.
        command.env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH.replace("aarch64", "arm64"));
    }
    let flag = |name: &str, value: String| [format!("--{name}"), value];
    command
        .args(flag("name", which.name.clone()))
        .args(flag("data-dir", lab.member(&which.name).join("data").display().to_string()))
        .args(flag("listen-client-urls", client_url(ip)))
        .args(flag("advertise-client-urls", client_url(ip)))
        .args(flag("listen-peer-urls", peer(ip)))
        .args(flag("initial-advertise-peer-urls", peer(ip)))
        .args(flag("initial-cluster", cluster.join(",")))
        .args(flag("initial-cluster-token", format!("weft-lab-{}", lab.plan.name)))
        .args(flag("logger", "zap".into()));
    if lab.plan.etcd.len() == 1 {
        // One member has nobody to wait for.
        command.args(flag("heartbeat-interval", "20".into())).args(flag("election-timeout", "200".into()));
    }
    let netns = Netns::open(lab.netns(&which.name))?;
    member(lab, which).start(&netns, &mut command)
}

/// Starts a host's agent.
///
/// # Errors
/// It cannot be executed.
pub fn start_agent(lab: &Lab, host: &Machine) -> Result<()> {
    let paths = lab.host(&host.name);
    let mut command = Command::new(agent()?);
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("WEFT_")) {
        command.env_remove(key);
    }
    command.arg("run").arg("--root").arg(&paths.root).arg("--run").arg(&paths.run);
    command.args(["--node-name", &host.name]);
    let endpoints = lab.plan.endpoints();
    if !endpoints.is_empty() {
        command.args(["--etcd", &endpoints.join(",")]);
    }
    command.args(&host.agent);
    agent_of(lab, host).start(&Netns::open(lab.netns(&host.name))?, &mut command)
}

/// Waits until a member of etcd says that it is healthy: that there is a leader, too.
///
/// # Errors
/// It ended, or does not say so in time; with the end of its log.
pub fn wait_for_member(lab: &Lab, which: &Machine, still: &dyn Fn() -> Result<()>) -> Result<()> {
    let ip = which.ip().with_context(|| format!("{} has no address", which.name))?;
    let underlay = Netns::open(lab.netns(UNDERLAY))?;
    let healthy = || {
        let answer = underlay.run(|| http::get(ip, 2379, &ip.to_string(), "/health", Duration::from_secs(2)));
        matches!(answer, Ok(Ok(answer)) if answer.status == 200 && answer.body.contains("true"))
    };
    wait(&which.name, &member(lab, which), still, healthy)
}

/// Waits until an agent is ready to attach containers.
///
/// # Errors
/// It ended, or is not ready in time; with the end of its log.
pub fn wait_for_agent(lab: &Lab, host: &Machine, still: &dyn Fn() -> Result<()>) -> Result<()> {
    let client = client(lab, &host.name).with_timeout(Duration::from_secs(2));
    wait(&format!("the agent of {}", host.name), &agent_of(lab, host), still, || client.healthz().is_ok())
}

/// As [`wait_for_agent`], but no longer than until something else is so.
///
/// # Errors
/// As [`wait_for_agent`].
pub fn wait_for_agent_unless(lab: &Lab, host: &Machine, enough: &mut dyn FnMut() -> bool) -> Result<()> {
    let client = client(lab, &host.name).with_timeout(Duration::from_secs(2));
    let what = format!("the agent of {}", host.name);
    wait(&what, &agent_of(lab, host), &|| Ok(()), || client.healthz().is_ok() || enough())
}

/// A client of a host's agent.
pub fn client(lab: &Lab, host: &str) -> Client {
    Client::new(ovl_api::names::socket(&lab.host(host).run))
}

fn wait(
    what: &str,
    daemon: &Daemon,
    still: &dyn Fn() -> Result<()>,
    mut done: impl FnMut() -> bool,
) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !done() {
        still()?;
        let state = match daemon.pid() {
            None => "has ended",
            Some(_) if Instant::now() > end => "does not get ready",
            Some(_) => {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        bail!("{what} {state}; the end of its log:\n{}", indented(&daemon.last_words(LAST_WORDS)));
    }
    Ok(())
}

/// Lines that belong to the one above.
pub fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
