//! `lab exec`: a command as on a host. It is executed in the place of this process, so that input, terminal, signals and
//! exit code are its own.
//!
//! It has the host's network namespace and host name, the host's directories in its environment, and a mount namespace of
//! its own in which they also lie where a machine has them: `/run/weft`, `/var/lib/weft`, `/etc/weft`, `/run/netns`, and in
//! which `/sys` shows the host's links. What is mounted in the lab's directory, as the namespaces of containers are, is seen
//! by all; everything else stays inside.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use net::Netns;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::daemons;
use super::dirs::{self, Lab};
use crate::engine::Failure;
use crate::paths::Paths;

const RUN: &str = "/run/weft";
const ROOT: &str = "/var/lib/weft";
const CONFIG: &str = "/etc/weft";
/// Where `ip netns` has its namespaces.
const NAMED: &str = "/run/netns";
const SYS: &str = "/sys";

/// Executes a command as on a host; comes back only when that does not work.
///
/// # Errors
/// There is no such host, its directories cannot be mounted, or the program cannot be executed (126) or is not there (127).
pub fn exec(lab: &Lab, host: &str, command: &[String]) -> Result<std::convert::Infallible> {
    lab.plan.host(host)?;
    let netns = Netns::open(lab.netns(host))
        .with_context(|| format!("lab {} is not up (any more)", lab.plan.name))?;
    setns(&netns, CloneFlags::CLONE_NEWNET).context("cannot enter the host's network namespace")?;
    drop(netns);
    // The host's name is a convenience. Its directories are not: without them the command would change the machine's own.
    if unshare(CloneFlags::CLONE_NEWUTS).is_ok() {
        let _ = nix::unistd::sethostname(host);
    }
    usual_places(lab, host)
        .with_context(|| format!("cannot mount the directories of {host} over those of this machine"))?;
    let paths = lab.host(host);
    let Some((program, args)) = command.split_first() else { anyhow::bail!("a command is missing") };
    let mut path = daemons::own_dir()?.into_os_string();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    // This process's own PATH too: that is where the program is looked for.
    let mut command = Command::new(find(program, &path));
    command
        .arg0(program)
        .args(args)
        .envs(environment(&paths, host))
        .env("PATH", path)
        .env("WEFT_LAB", &lab.plan.name);
    let error = command.exec();
    let code = if error.kind() == ErrorKind::NotFound { 127 } else { 126 };
    Err(Failure { code, message: format!("cannot execute {program}: {error}") }.into())
}

/// The program of this name along a PATH; the name itself when there is none, or it is a path.
fn find(program: &str, path: &OsString) -> PathBuf {
    let found = (!program.contains('/'))
        .then(|| std::env::split_paths(path).map(|dir| dir.join(program)).find(|file| file.is_file()))
        .flatten();
    found.unwrap_or_else(|| program.into())
}

/// What programs find in their environment on a host.
pub fn environment(paths: &Paths, host: &str) -> Vec<(&'static str, OsString)> {
    let mut environment = vec![
        ("WEFT_ROOT", paths.root.clone().into_os_string()),
        ("WEFT_RUN", paths.run.clone().into_os_string()),
        ("WEFT_CONFIG_DIR", paths.config_dir.clone().into_os_string()),
        ("WEFT_NODE_NAME", host.into()),
    ];
    if let Ok(dirs) = std::env::join_paths(&paths.cni_bin)
        && !dirs.is_empty()
    {
        environment.push(("CNI_PATH", dirs));
    }
    environment
}

/// Mounts the host's directories where a machine has its own.
fn usual_places(lab: &Lab, host: &str) -> Result<()> {
    let paths = lab.host(host);
    let etc = lab.host_dir(host).join("etc");
    for place in [RUN, ROOT, CONFIG, NAMED] {
        make_mount_point(lab, Path::new(place))?;
    }
    let named = dirs::named(&lab.dir, host);
    fs::create_dir_all(&named)?;
    // With the usual run directory, the lab itself is below /run/weft, and has to be seen there still.
    let covered = lab.dir.strip_prefix(RUN).ok().map(|below| Path::new(RUN).join(below));
    if let Ok(below) = lab.dir.strip_prefix(RUN) {
        fs::create_dir_all(paths.run.join(below))?;
    }

    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    for at in dirs::mount_points()?.iter().filter(|at| !at.starts_with(&lab.dir)) {
        // A place that something else covers cannot be named, and nothing is mounted there.
        let _ = mount(none, at, none, MsFlags::MS_SLAVE, none);
    }
    // Open before it is covered.
    let whole = File::open(&lab.dir)?;
    for (from, to) in [(paths.root.as_path(), ROOT), (etc.as_path(), CONFIG), (paths.run.as_path(), RUN)] {
        mount(Some(from), to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
        // It sees what is mounted there from elsewhere; what is mounted here goes by way of the lab's directory alone.
        mount(none, to, none, MsFlags::MS_SLAVE, none)?;
    }
    if let Some(covered) = covered {
        let whole = PathBuf::from(format!("/proc/self/fd/{}", whole.as_raw_fd()));
        mount(Some(&whole), &covered, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    }
    // What `ip netns add` mounts there is in the lab's directory for the next command, and goes with it.
    mount(Some(&named), NAMED, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    // The machine's links are better than nothing.
    let _ = own_sys();
    Ok(())
}

/// Mounts a `/sys` that shows the links of this process's network namespace, with all that is mounted in the present one.
fn own_sys() -> Result<()> {
    let sys = Path::new(SYS);
    // Open before they are covered; what is in one of them comes with it.
    let mut inside: Vec<(PathBuf, File)> = Vec::new();
    for at in dirs::mount_points()?.into_iter().filter(|at| at.starts_with(sys) && at != sys) {
        if !inside.iter().any(|(other, _)| at.starts_with(other)) {
            inside.push((at.clone(), File::open(&at)?));
        }
    }
    let none = None::<&str>;
    let how = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), sys, Some("sysfs"), how, none)?;
    for (at, file) in inside {
        let file = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        mount(Some(&file), &at, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    }
    Ok(())
}

/// Makes a directory on the machine to mount on, where it is missing; `lab down` removes it again.
fn make_mount_point(lab: &Lab, place: &Path) -> Result<()> {
    if place.is_dir() {
        return Ok(());
    }
    // Written down first, so that it goes whatever happens.
    let mut list = File::options().create(true).append(true).open(lab.dir.join("mount-points"))?;
    let missing: Vec<&Path> = place.ancestors().take_while(|dir| !dir.exists()).collect();
    for dir in missing.iter().rev() {
        writeln!(list, "{}", dir.display())?;
    }
    fs::create_dir_all(place).with_context(|| format!("cannot make the directory {}", place.display()))
}
