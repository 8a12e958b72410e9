//! `lab up`: machines, etcd, agents, networks, containers. What fails, or is interrupted, is taken down again.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use net::Netns;
use nix::sys::statvfs::statvfs;

use super::daemons;
use super::dirs::{self, Lab};
use super::plan::{Container, Machine, Network, Plan};
use super::{down, exec, parallel, underlay};
use crate::paths::{Paths, make_private};

/// Brings a lab up. `tell` gets what has been done; `still` fails when it is to be given up.
///
/// # Errors
/// A lab of that name exists, or something failed: then nothing of the new one is left.
pub fn up(
    paths: &Paths,
    mut plan: Plan,
    tell: &mut dyn FnMut(&str),
    still: &(dyn Fn() -> Result<()> + Sync),
) -> Result<Lab> {
    // What is missing is said before anything is made.
    daemons::agent()?;
    if !plan.etcd.is_empty() {
        daemons::etcd()?;
        check_space(&paths.run, plan.etcd.len() as u64)?;
    }
    plan.created = crate::state::now();
    let (lab, lock) = Lab::make(paths, plan)?;
    let made = make(&lab, tell, still);
    if let Err(error) = made {
        return match down::down_locked(&lab.dir, lock, &lab.cni_bin) {
            Ok(()) => {
                Err(error.context(format!("lab {} did not come up, and is taken down again", lab.plan.name)))
            }
            Err(left) => Err(error.context(format!("lab {} did not come up; and {left:#}", lab.plan.name))),
        };
    }
    Ok(lab)
}

/// Whether members of etcd find room below a directory that may not be there yet: each allocates 128 MiB of log when it starts,
/// and often the run directory is a small file system in memory.
fn check_space(dir: &Path, members: u64) -> Result<()> {
    let there = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let space = statvfs(there).with_context(|| format!("cannot look at {}", there.display()))?;
    let mebibytes = (space.blocks_available() as u64).saturating_mul(space.fragment_size() as u64) >> 20;
    let needed = 160 * members;
    if mebibytes < needed {
        bail!(
            "{} has {mebibytes} MiB free, and {members} of etcd need {needed} MiB: choose another directory by --run",
            there.display()
        );
    }
    Ok(())
}

fn make(lab: &Lab, tell: &mut dyn FnMut(&str), still: &(dyn Fn() -> Result<()> + Sync)) -> Result<()> {
    let plan = &lab.plan;
    dirs::mount_shared(&lab.dir)?;
    lab.save()?;
    for host in &plan.hosts {
        let paths = lab.host(&host.name);
        for dir in [&paths.root, &paths.run] {
            make_private(dir)?;
        }
        fs::create_dir_all(&paths.config_dir)?;
    }
    for member in &plan.etcd {
        make_private(&lab.member(&member.name))?;
    }
    underlay::make(lab)?;
    still()?;
    let subnets: Vec<String> = plan.underlay.gateways().iter().map(|net| net.network_text()).collect();
    tell(&format!("underlay {} with {}", subnets.join(" and "), names(plan.machines())));

    for member in &plan.etcd {
        daemons::start_member(lab, member)?;
    }
    for member in &plan.etcd {
        daemons::wait_for_member(lab, member, &|| still())?;
    }
    if !plan.etcd.is_empty() {
        tell(&format!("etcd at {}", plan.endpoints().join(", ")));
    }
    start_agents(lab, plan.hosts.iter(), still)?;
    tell(&format!("an agent on {}", names(plan.hosts.iter())));

    for network in &plan.networks {
        still()?;
        create_network(lab, network)?;
        tell(&format!("network {}", network.name));
    }
    if !plan.networks.is_empty() {
        parallel::each(&plan.hosts, |host| sync(lab, host))?;
    }
    let hosts: Vec<&Machine> = plan.hosts.iter().collect();
    parallel::each(&hosts, |host| {
        for container in plan.containers.iter().filter(|container| container.host == host.name) {
            still()?;
            run_container(lab, container)?;
        }
        Ok(())
    })?;
    if !plan.containers.is_empty() {
        tell(&format!("{} containers", plan.containers.len()));
    }
    still()?;
    lab.set_ready()
}

fn names<'m>(machines: impl Iterator<Item = &'m Machine>) -> String {
    let all: Vec<&str> = machines.map(|machine| machine.name.as_str()).collect();
    match all.as_slice() {
        [first, .., last] if all.len() > 6 => format!("{first} … {last} ({} of them)", all.len()),
        _ => all.join(", "),
    }
}

trait NetworkText {
    fn network_text(&self) -> String;
}

impl NetworkText for ipnetwork::IpNetwork {
    fn network_text(&self) -> String {
        format!("{}/{}", self.network(), self.prefix())
    }
}

/// Starts the agents of hosts, and waits until they are ready.
///
/// # Errors
/// One is not, with the end of its log.
pub fn start_agents<'m>(
    lab: &Lab,
    hosts: impl Iterator<Item = &'m Machine> + Clone,
    still: &(dyn Fn() -> Result<()> + Sync),
) -> Result<()> {
    for host in hosts.clone() {
        daemons::start_agent(lab, host)?;
    }
    for host in hosts {
        daemons::wait_for_agent(lab, host, &|| still())?;
    }
    Ok(())
}

/// Waits until a host's agent shows what the store holds now.
fn sync(lab: &Lab, host: &Machine) -> Result<()> {
    let answer = daemons::client(lab, &host.name).with_timeout(daemons::PATIENCE).sync();
    answer.map(|_| ()).with_context(|| format!("the agent of {}", host.name))
}

/// The runtime of a host, in its namespace.
pub fn runtime(lab: &Lab, host: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this executable")?);
    let paths = lab.host(host);
    command.args(paths.to_args()).stdin(Stdio::null()).envs(exec::environment(&paths, host));
    Ok(command)
}

/// Runs a command to its end in a host's namespace; what it says when it fails is the error.
///
/// # Errors
/// It failed.
pub fn run_on(lab: &Lab, host: &str, mut command: Command) -> Result<String> {
    let netns = Netns::open(lab.netns(host))?;
    let output = netns
        .run(|| command.output())?
        .with_context(|| format!("cannot execute {}", Path::new(command.get_program()).display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().trim_start_matches("runtime: ");
        match said.is_empty() {
            true => bail!("on {host}: {}", output.status),
            false => bail!("on {host}: {said}"),
        }
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn create_network(lab: &Lab, network: &Network) -> Result<()> {
    let Some(first) = lab.plan.hosts.first() else { bail!("a lab has a host") };
    let mut command = runtime(lab, &first.name)?;
    command.args(["network", "create", "--driver", "overlay"]);
    for subnet in &network.subnets {
        command.args(["--subnet", subnet]);
    }
    if network.ipv6 {
        command.arg("--ipv6");
    }
    if network.internal {
        command.arg("--internal");
    }
    for (name, value) in &network.options {
        command.arg("--opt").arg(format!("{name}={value}"));
    }
    command.arg(&network.name);
    run_on(lab, &first.name, command)
        .map(|_| ())
        .with_context(|| format!("cannot create network {}", network.name))
}

/// Runs a container of the plan on its host.
///
/// # Errors
/// It does not start.
pub fn run_container(lab: &Lab, container: &Container) -> Result<()> {
    let mut command = runtime(lab, &container.host)?;
    command.args(["run", "-d", "--name", &container.name]);
    match container.networks.is_empty() {
        true => {
            command.args(["--network", "none"]);
        }
        false => {
            for network in &container.networks {
                command.args(["--network", network]);
            }
        }
    }
    for ip in &container.ips {
        command.args([if ip.is_ipv4() { "--ip" } else { "--ip6" }, &ip.to_string()]);
    }
    for port in &container.publish {
        command.args(["--publish", port]);
    }
    command.args(container.words());
    let ran = run_on(lab, &container.host, command);
    ran.map(|_| ()).with_context(|| format!("cannot run container {}", container.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_for_etcd_is_said_before_anything_is_made() {
        net::testns::private_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            check_space(&dir.path().join("not/yet/there"), 1).unwrap();
            let none = None::<&str>;
            let small = Some("size=32m");
            nix::mount::mount(none, dir.path(), Some("tmpfs"), nix::mount::MsFlags::empty(), small).unwrap();
            let error = check_space(&dir.path().join("not/yet/there"), 3).unwrap_err().to_string();
            assert!(error.contains("32 MiB free") && error.contains("480 MiB"), "{error}");
            assert!(!dir.path().join("not").exists());
            nix::mount::umount(dir.path()).unwrap();
        });
    }
}
