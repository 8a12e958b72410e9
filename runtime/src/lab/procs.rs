//! The processes of a lab: started in a machine's namespace, known by PID and start, and all of them found by the
//! namespace they live in, never by name.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use net::Netns;

use crate::engine::{process, sys};

/// Device and inode of a namespace.
type NsId = (u64, u64);

/// How long processes have after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(3);

/// A process that was started: its PID and when it began, in a file.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// Its directory, with `pid` and `log`.
    dir: PathBuf,
}

impl Daemon {
    /// The one whose `pid` and `log` are in this directory.
    pub fn at(dir: PathBuf) -> Daemon {
        Daemon { dir }
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Its PID, while it runs.
    pub fn pid(&self) -> Option<i32> {
        let text = fs::read_to_string(self.dir.join("pid")).ok()?;
        let mut words = text.split_whitespace();
        let (pid, began) = (words.next()?.parse().ok()?, words.next()?.parse::<u64>().ok()?);
        (process::started(pid) == Some(began) && is_alive(pid)).then_some(pid)
    }

    /// Starts it in a namespace, in a process group of its own, its output appended to the log.
    ///
    /// # Errors
    /// It cannot be executed.
    pub fn start(&self, netns: &Netns, command: &mut Command) -> Result<()> {
        fs::create_dir_all(&self.dir)?;
        let log = File::options().create(true).append(true).open(self.log())?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0).current_dir("/");
        let program = command.get_program().to_string_lossy().into_owned();
        let child = netns.run(|| command.spawn())?.with_context(|| format!("cannot execute {program}"))?;
        let pid = child.id() as i32;
        let began = process::started(pid).unwrap_or(0);
        // Should this not be written, the process is found by its namespace all the same.
        fs::write(self.dir.join("pid"), format!("{pid} {began}\n"))?;
        Ok(())
    }

    /// Ends it with SIGKILL; false when it did not run.
    pub fn kill(&self) -> bool {
        let Some(pid) = self.pid() else { return false };
        let Ok(pidfd) = sys::pidfd_open(pid) else { return false };
        // Only now the PID cannot become another's.
        self.pid() == Some(pid) && process::kill(&pidfd)
    }

    /// The last lines of its log.
    pub fn last_words(&self, lines: usize) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// Whether a process is there and no zombie: a lab's processes outlive the command that would wait for them.
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z") && !rest.starts_with(" X"))
}

/// The namespaces of a lab: of its machines, of the containers on its hosts, and those that `ip netns` made there.
pub fn namespaces(lab: &Path) -> BTreeSet<NsId> {
    let mut files = entries(&lab.join("netns"));
    for host in entries(&lab.join("hosts")) {
        files.extend(inside(&host));
    }
    let mut found: BTreeSet<NsId> =
        files.iter().filter_map(|file| Netns::open(file).ok()).map(|ns| ns.id()).collect();
    // Not those of the machine itself, whatever somebody mounted there.
    for own in ["/proc/self/ns/net", "/proc/1/ns/net"] {
        if let Some(id) = id_of(Path::new(own)) {
            found.remove(&id);
        }
    }
    found
}

/// The files of namespaces in a host's directory.
fn inside(host: &Path) -> Vec<PathBuf> {
    ["run/netns", "netns"].iter().flat_map(|dir| entries(&host.join(dir))).collect()
}

/// The namespaces of one host: its own, and those on it.
pub fn namespaces_of(lab: &Path, host: &str) -> BTreeSet<NsId> {
    let own = lab.join("netns").join(host);
    let files = inside(&super::dirs::host_dir(lab, host));
    let all = namespaces(lab);
    let of_host = files.iter().chain([&own]).filter_map(|file| Netns::open(file).ok()).map(|ns| ns.id());
    of_host.filter(|id| all.contains(id)).collect()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn id_of(path: &Path) -> Option<NsId> {
    fs::metadata(path).ok().map(|data| (data.dev(), data.ino()))
}

/// The processes that live in one of these network namespaces.
fn residents(of: &BTreeSet<NsId>) -> Vec<(i32, OwnedFd)> {
    let own = std::process::id() as i32;
    let lives =
        |pid: i32| id_of(Path::new(&format!("/proc/{pid}/ns/net"))).is_some_and(|id| of.contains(&id));
    let mut found = Vec::new();
    for entry in entries(Path::new("/proc")) {
        let pid = entry.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<i32>().ok());
        let Some(pid) = pid.filter(|pid| *pid != own && lives(*pid)) else { continue };
        // Looked at again: only with the pidfd in hand the PID cannot become another's.
        if let Ok(pidfd) = sys::pidfd_open(pid)
            && lives(pid)
        {
            found.push((pid, pidfd));
        }
    }
    found
}

/// Ends every process in one of these namespaces: with SIGTERM, and what stays with SIGKILL.
///
/// # Errors
/// Some do not end.
pub fn end_all(of: &BTreeSet<NsId>) -> Result<()> {
    for (_, pidfd) in residents(of) {
        let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGTERM);
    }
    let end = Instant::now() + PATIENCE;
    while !residents(of).is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_all(of)
}

/// Ends every process in one of these namespaces with SIGKILL.
///
/// # Errors
/// Some do not end.
pub fn kill_all(of: &BTreeSet<NsId>) -> Result<()> {
    // Again and again: one that was just being forked was not seen.
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let all = residents(of);
        if all.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            let pids: Vec<String> = all.iter().map(|(pid, _)| pid.to_string()).collect();
            bail!("these processes of the lab do not end: {}", pids.join(", "));
        }
        // Stopped first: in a crash no process sees the end of another, as a supervisor that of its container.
        for signal in [libc::SIGSTOP, libc::SIGKILL] {
            for (_, pidfd) in &all {
                let _ = sys::pidfd_send_signal(pidfd.as_fd(), signal);
            }
        }
        for (_, pidfd) in &all {
            process::wait(pidfd, Some(Duration::from_secs(2)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_found_by_their_namespace_and_no_others_end() {
        net::testns::private_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            let netns = Netns::create(dir.path().join("netns/host1")).unwrap();
            let inside = dir.path().join("hosts/host1/run/netns/box");
            let container = Netns::create(&inside).unwrap();
            let named = Netns::create(super::super::dirs::named(dir.path(), "host1").join("x")).unwrap();
            // What is no namespace any more does no harm.
            fs::write(dir.path().join("hosts/host1/run/netns/old"), "").unwrap();
            let sleeper = || {
                let mut command = Command::new("sh");
                command.args(["-c", "trap '' TERM; sleep 60 & wait"]);
                command
            };
            let mut bystander = sleeper().spawn().unwrap();
            let daemon = Daemon::at(dir.path().join("d"));
            daemon.start(&netns, &mut sleeper()).unwrap();
            let mut resident = container.run(|| sleeper().spawn()).unwrap().unwrap();
            assert!(daemon.pid().is_some());

            let all = namespaces(dir.path());
            assert_eq!(all, BTreeSet::from([netns.id(), container.id(), named.id()]));
            assert_eq!(namespaces_of(dir.path(), "host1"), all);
            assert_eq!(namespaces_of(dir.path(), "host2"), BTreeSet::from([]));
            kill_all(&all).unwrap();
            assert!(daemon.pid().is_none(), "a zombie runs no more");
            assert!(!daemon.kill());
            assert!(residents(&all).is_empty());
            assert!(bystander.try_wait().unwrap().is_none(), "the bystander lives");
            bystander.kill().unwrap();
            bystander.wait().unwrap();
            resident.wait().unwrap();
            super::super::dirs::unmount_below(dir.path()).unwrap();
        });
    }

    #[test]
    fn the_machines_own_namespace_is_never_a_labs() {
        net::testns::private_mounts(|| {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("netns")).unwrap();
            let file = dir.path().join("netns/evil");
            fs::write(&file, "").unwrap();
            let none = None::<&str>;
            let own = Some("/proc/self/ns/net");
            nix::mount::mount(own, &file, none, nix::mount::MsFlags::MS_BIND, none).unwrap();
            assert!(namespaces(dir.path()).is_empty());
            super::super::dirs::unmount_below(dir.path()).unwrap();
        });
    }

    #[test]
    fn a_log_ends_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::at(dir.path().to_owned());
        assert_eq!(daemon.last_words(2), "");
        fs::write(daemon.log(), "a\nb\nc\n").unwrap();
        assert_eq!(daemon.last_words(2), "b\nc");
    }
}
