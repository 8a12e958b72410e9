//! `lab fail` and `lab heal`: a part of the lab breaks as parts do, without notice, and is mended.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::dirs::{self, Lab};
use super::plan::Machine;
use super::{daemons, live, procs, underlay, up};

/// An agent that could not reach its store for so long is not waited for.
const STORELESS: Duration = Duration::from_secs(3);

/// What breaks, or is mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All members of etcd, or the one of this number.
    Etcd(Option<u32>),
    /// The agent of a host.
    Agent(String),
    /// A host's link to the underlay.
    Link(String),
    /// A host: its power.
    Host(String),
}

/// Breaks a part; what was done, in words.
///
/// # Errors
/// There is no such part.
pub fn fail(lab: &Lab, part: &Part) -> Result<String> {
    let _lock = dirs::lock(&lab.dir)?;
    match part {
        Part::Etcd(number) => {
            let mut ended = Vec::new();
            for member in members(lab, *number)? {
                if daemons::member(lab, member).kill() {
                    ended.push(member.name.clone());
                }
            }
            Ok(match ended.is_empty() {
                true => "etcd did not run".into(),
                false => format!("{} killed", ended.join(", ")),
            })
        }
        Part::Agent(host) => {
            let ended = daemons::agent_of(lab, lab.plan.host(host)?).kill();
            Ok(if ended {
                format!("the agent of {host} killed")
            } else {
                format!("the agent of {host} did not run")
            })
        }
        Part::Link(host) => {
            underlay::set_link(lab, &lab.plan.host(host)?.name, false)?;
            Ok(format!("the link of {host} is down"))
        }
        Part::Host(host) => {
            let host = &lab.plan.host(host)?.name;
            underlay::set_link(lab, host, false)?;
            procs::kill_all(&procs::namespaces_of(&lab.dir, host))?;
            Ok(format!("{host} is off: its link is down, its agent and containers are killed"))
        }
    }
}

/// Mends a part; what was done, in words.
///
/// # Errors
/// There is no such part, or it does not start.
pub fn heal(lab: &Lab, part: &Part) -> Result<String> {
    let _lock = dirs::lock(&lab.dir)?;
    match part {
        Part::Etcd(number) => {
            let members = members(lab, *number)?;
            for member in &members {
                if daemons::member(lab, member).pid().is_none() {
                    daemons::start_member(lab, member)?;
                }
            }
            // Two of three do without the third, one of three waits for another: then it is started, and that is all.
            let running = lab.plan.etcd.iter().filter(|member| daemons::member(lab, member).pid().is_some());
            if running.count() * 2 > lab.plan.etcd.len() {
                for member in &members {
                    daemons::wait_for_member(lab, member, &|| Ok(()))?;
                }
            }
            let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
            Ok(format!("{} running, with the data of before", names.join(", ")))
        }
        Part::Agent(host) => {
            let waits = start_agent(lab, lab.plan.host(host)?)?;
            Ok(format!("the agent of {host} is running{waits}"))
        }
        Part::Link(host) => {
            underlay::set_link(lab, &lab.plan.host(host)?.name, true)?;
            Ok(format!("the link of {host} is up"))
        }
        Part::Host(host) => {
            let host = lab.plan.host(host)?;
            underlay::set_link(lab, &host.name, true)?;
            let waits = start_agent(lab, host)?;
            // The first command of the runtime after a crash has all that were running as ended, and gives back what they held.
            let mut command = up::runtime(lab, &host.name)?;
            command.args(["ps", "--quiet"]);
            up::run_on(lab, &host.name, command)?;
            start_containers(lab, host)?;
            let all = live::containers(lab)?;
            let here: Vec<&live::Container> = all.iter().filter(|one| one.host == host.name).collect();
            let with =
                |runs: bool| here.iter().filter(|one| one.runs() == runs).map(|one| &*one.name).collect();
            Ok(host_is_on(&host.name, with(true), with(false)) + &waits)
        }
    }
}

/// What runs on a host that was off, and what does not.
fn host_is_on(host: &str, running: Vec<&str>, ended: Vec<&str>) -> String {
    let mut said = format!("{host} is on: its link is up, its agent is running");
    if !running.is_empty() {
        said += &format!("; containers running: {}", running.join(", "));
    }
    if !ended.is_empty() {
        said += &format!("; containers made by hand, not running: {}", ended.join(", "));
    }
    said
}

fn members(lab: &Lab, number: Option<u32>) -> Result<Vec<&Machine>> {
    let all: Vec<&Machine> = lab.plan.etcd.iter().collect();
    let Some(number) = number else {
        return match all.is_empty() {
            true => bail!("lab {} has no etcd", lab.plan.name),
            false => Ok(all),
        };
    };
    let one = usize::try_from(number).ok().and_then(|number| all.get(number.checked_sub(1)?).copied());
    one.map(|one| vec![one]).with_context(|| {
        format!("lab {} has no etcd {number}: it has {} members, counted from 1", lab.plan.name, all.len())
    })
}

/// Starts an agent, and waits until it is ready, or has waited for its store for some time: etcd may be down. Then what it
/// waits for, in words.
fn start_agent(lab: &Lab, host: &Machine) -> Result<String> {
    if daemons::agent_of(lab, host).pid().is_none() {
        daemons::start_agent(lab, host)?;
    }
    let client = daemons::client(lab, &host.name).with_timeout(Duration::from_secs(2));
    let enough = Instant::now() + STORELESS;
    let mut waits = String::new();
    let mut storeless = || {
        let status = client.status(None).ok().filter(|status| !status.ready && !status.connected);
        waits = status.and_then(|status| status.store_error).unwrap_or_default();
        Instant::now() > enough && !waits.is_empty()
    };
    daemons::wait_for_agent_unless(lab, host, &mut storeless)?;
    let ready = waits.is_empty() || client.healthz().is_ok();
    Ok(if ready { String::new() } else { format!("; it waits for its store: {waits}") })
}

/// Starts what the lab's plan has on a host and does not run; one that was removed is made again. Others stay ended, as
/// nothing says that they should come back.
fn start_containers(lab: &Lab, host: &Machine) -> Result<()> {
    let all = live::containers(lab)?;
    let planned = lab.plan.containers.iter().filter(|planned| planned.host == host.name);
    for planned in planned {
        match all.iter().find(|one| one.name == planned.name && one.host == host.name) {
            Some(one) if one.runs() => {}
            Some(one) if !one.id.is_empty() => {
                let mut command = up::runtime(lab, &host.name)?;
                command.args(["start", &one.id]);
                up::run_on(lab, &host.name, command)
                    .with_context(|| format!("cannot start container {}", one.name))?;
            }
            _ => up::run_container(lab, planned)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_on_again_says_what_runs_there_and_what_does_not() {
        let on = "host1 is on: its link is up, its agent is running";
        assert_eq!(host_is_on("host1", vec![], vec![]), on);
        assert_eq!(
            host_is_on("host1", vec!["c1", "c2"], vec!["late"]),
            format!("{on}; containers running: c1, c2; containers made by hand, not running: late")
        );
    }
}
