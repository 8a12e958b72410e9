//! `lab down`: everything a lab made goes, whatever state it is in. It needs no plan: containers, processes, mounts and
//! files are found where they are, so that it works after a crash at any point, also of an earlier `down`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use net::Netns;

use super::dirs::{self, Lock};
use super::{exec, plan, procs};
use crate::engine::cgroup;
use crate::paths::Paths;

/// How long the runtime of a host may take to remove its containers, before they are ended otherwise.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes a lab down; false when there is none.
///
/// # Errors
/// Something of it does not go, or another command is at work on it.
pub fn down(paths: &Paths, name: &str) -> Result<bool> {
    plan::check_name(name)?;
    let dir = dirs::labs(paths).join(name);
    if !dir.exists() {
        return Ok(false);
    }
    let lock = dirs::lock(&dir)?;
    down_locked(&dir, lock, &paths.cni_bin).map(|()| true)
}

/// Takes down the lab at `dir`, of which the caller has the lock.
///
/// # Errors
/// Something of it does not go.
pub fn down_locked(dir: &Path, lock: Lock, cni_bin: &[PathBuf]) -> Result<()> {
    let hosts = hosts(dir);
    let containers = containers(dir, &hosts);
    remove_containers(dir, &hosts, cni_bin);
    // The hosts before etcd, without which an agent would wait for it.
    procs::end_all(&hosts.iter().flat_map(|host| procs::namespaces_of(dir, host)).collect())?;
    procs::end_all(&procs::namespaces(dir))?;
    // Of containers that were not removed in peace, this alone is outside of the lab's directory.
    containers.iter().for_each(|id| cgroup::remove(id));
    dirs::unmount_below(dir)?;
    remove_mount_points(dir);
    remove_tree(dir)?;
    drop(lock);
    // The last one takes the directories with it, unless something else is in there.
    if let Some(labs) = dir.parent() {
        let _ = fs::remove_dir(labs);
        let _ = labs.parent().map(fs::remove_dir);
    }
    Ok(())
}

/// The hosts whose directories are there.
fn hosts(dir: &Path) -> Vec<String> {
    names(&dir.join("hosts"))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The IDs of all containers of these hosts.
fn containers(dir: &Path, hosts: &[String]) -> Vec<String> {
    let of_host = |host: &String| names(&dirs::host_paths(dir, host, &[]).containers());
    hosts.iter().flat_map(of_host).collect()
}

/// Has each host's runtime remove its containers, all hosts at the same time. What does not work is left to what follows.
fn remove_containers(dir: &Path, hosts: &[String], cni_bin: &[PathBuf]) {
    let each = hosts.iter();
    let mut children: Vec<Child> =
        each.filter_map(|host| remover(&dirs::host_paths(dir, host, cni_bin), dir, host)).collect();
    let end = Instant::now() + PATIENCE;
    while let Some(child) = children.last_mut() {
        match child.try_wait() {
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            _ => drop(children.pop()),
        }
    }
}

fn remover(paths: &Paths, dir: &Path, host: &str) -> Option<Child> {
    let ids = names(&paths.containers());
    if ids.is_empty() {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.args(paths.to_args()).args(["rm", "-f"]).args(ids).envs(exec::environment(paths, host));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let netns = Netns::open(dir.join("netns").join(host)).ok()?;
    netns.run(|| command.spawn()).ok()?.ok()
}

/// Removes the directories that `lab exec` made on the machine, where they are empty.
fn remove_mount_points(dir: &Path) {
    let text = fs::read_to_string(dir.join("mount-points")).unwrap_or_default();
    let mut made: Vec<&str> = text.lines().collect();
    // What is inside was made later.
    made.reverse();
    for path in made {
        let _ = fs::remove_dir(path);
    }
}

/// Removes a directory in which nothing is mounted any more.
fn remove_tree(dir: &Path) -> Result<()> {
    let mounts: Vec<PathBuf> = dirs::mounts_below(dir)?;
    if let Some(mount) = mounts.first() {
        bail!("{} is still mounted", mount.display());
    }
    let mut tries = 0;
    loop {
        match fs::remove_dir_all(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // A process that was just killed may have written a last file.
            Err(_) if tries < 20 => tries += 1,
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", dir.display())),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
