//! Taking down what a container holds: network, cgroup, run directory, and with `--rm` all of it. The supervisor does so at
//! the end; when it was killed, whoever looks at the container next. Every step may be repeated.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use cni::share::Share;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::client::Waiter;
use super::{cgroup, process, tree};
use crate::network;
use crate::paths::make_private;
use crate::spec::NetMode;
use crate::state::{Container, Status, now, same_file};

/// The exclusive right to a container's running state, which its supervisor has for all its life: a lock of the open file
/// (fcntl(2), F_OFD_SETLK), which ends with the process and can be asked about without being taken.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes it; none when a supervisor has it.
    pub fn take(container: &Container) -> Result<Option<Self>> {
        let dir = container.run_dir();
        let path = dir.join("lock");
        loop {
            make_private(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            let file = match File::options().create(true).append(true).open(&path) {
                // A supervisor has just removed the directory.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                other => other.with_context(|| format!("cannot open {}", path.display()))?,
            };
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole())) {
                Ok(_) if same_file(&file, &path) => return Ok(Some(Self { _file: file })),
                Ok(_) => continue,
                Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
                Err(e) => return Err(e).with_context(|| format!("cannot lock {}", path.display())),
            }
        }
    }

    /// Removes the run directory `dir` of a container that is gone, if there is nothing in it but a lock that no process has. A
    /// command that was killed may have made it anew. Containers of another `--root` may have theirs beside it.
    pub fn remove_unused(dir: &Path) {
        let path = dir.join("lock");
        let mut names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        if !names.all(|name| name == path) {
            return;
        }
        if let Ok(file) = File::options().append(true).open(&path) {
            let taken = fcntl(&file, FcntlArg::F_OFD_SETLK(&whole()));
            if taken.is_err() || !same_file(&file, &path) || fs::remove_file(&path).is_err() {
                return;
            }
        }
        let above = dir.parent().and_then(|all| all.parent().map(|run| [dir, all, run]));
        remove_if_empty(above.as_ref().map_or(&[], |above| above.as_slice()));
    }

    /// Whether somebody has it. Takes and makes nothing.
    pub fn is_taken(container: &Container) -> bool {
        let Ok(file) = File::open(container.run_dir().join("lock")) else { return false };
        let mut lock = whole();
        let asked = fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock));
        asked.is_ok() && i32::from(lock.l_type) != libc::F_UNLCK
    }
}

/// A lock for writing on the whole of a file.
fn whole() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The IDs and names of the containers that share this one's network namespace. One that is not the runtime's has its short
/// ID as its name.
pub(crate) fn joined(container: &Container) -> Vec<(String, String)> {
    let joiners = Share::new(container.paths.shared())
        .with_notes(container.paths.left())
        .joiners(container.id())
        .unwrap_or_default();
    let mut joined: Vec<(String, String)> = Vec::new();
    for (id, _) in joiners {
        if joined.iter().any(|(known, _)| *known == id) {
            continue;
        }
        let name = match Container::by_id(&container.paths, &id) {
            Ok(Some(joiner)) => joiner.spec.name,
            _ => id.get(..12).unwrap_or(&id).to_owned(),
        };
        joined.push((id, name));
    }
    joined
}

/// The names of the containers that share this one's network namespace.
pub(crate) fn joiners(container: &Container) -> Vec<String> {
    joined(container).into_iter().map(|(_, name)| name).collect()
}

/// Gives everything back that belongs to a run of the container, and with `--rm`, or when it was removed by force, the
/// container itself. The caller has the lock. What cannot be taken down makes the container dead, and is tried again later.
pub fn release(container: &mut Container) -> Result<()> {
    if goes(container) {
        // First, so that what follows has room on a full disk.
        free_layer(container)?;
    }
    if holds(container) {
        let spec = with_ports(container);
        let mut detached = network::detach(&container.paths, &spec, netns_path(container).as_deref());
        if detached.is_ok() && owns_netns(container) {
            let netns = container.paths.netns(container.id());
            detached = net::ns::Netns::delete(netns).map_err(|e| anyhow!("{e}"));
        }
        cgroup::remove(container.id());
        if let Err(error) = detached {
            container.state.status = Status::Dead;
            container.state.error = format!("{error:#}");
            return Err(match container.save_state() {
                Ok(()) => error,
                Err(second) => error.context(format!("{second:#}")),
            });
        }
        let state = &mut container.state;
        state.netns = None;
        state.attachments.clear();
        state.supervisor_pid = 0;
        if state.status == Status::Dead {
            state.status = Status::Exited;
            state.error.clear();
        }
        let saved = container.save_state();
        // One that goes needs none, and makes room on a full disk.
        if !goes(container) {
            saved?;
        }
    }
    let goes = goes(container);
    if goes {
        // Should this be cut off, whoever comes next sees that it is to be removed. Where nothing can be written, there is
        // nothing that a removal could leave out either.
        let _ = fs::write(container.removed_mark(), "");
    }
    remove_run_dir(container)?;
    if goes { erase(container) } else { Ok(()) }
}

/// Withdraws the published ports of a container that has ended and whose network others share. The caller has the lock.
pub fn unpublish(container: &mut Container) -> Result<()> {
    if container.state.ports.is_empty() {
        return Ok(());
    }
    network::unpublish(&container.paths, &container.spec, netns_path(container).as_deref())?;
    container.state.ports.clear();
    container.save_state()
}

/// Whether a run of the container may still hold something: a supervisor says that it does before it takes the first thing,
/// and [`release`] that it does no longer.
fn holds(container: &Container) -> bool {
    container.state.supervisor_pid != 0 || matches!(container.state.status, Status::Running | Status::Dead)
}

/// Whether the container is to be removed when it does not run.
fn goes(container: &Container) -> bool {
    container.is_removed() || (container.spec.auto_remove && container.state.started.is_some())
}

/// Removes the run directory; the lock last, so that whoever finds no lock finds nothing else either.
fn remove_run_dir(container: &Container) -> Result<()> {
    let dir = container.run_dir();
    let lock = dir.join("lock");
    for entry in fs::read_dir(&dir).into_iter().flatten() {
        let path = entry?.path();
        if path != lock {
            remove_tree(&path)?;
        }
    }
    remove_tree(&lock)?;
    // Not empty when another process has just made a lock of its own, to look whether there is something to do: it will
    // find nothing, and remove it.
    let run = &container.paths.run;
    remove_if_empty(&[&dir, &run.join("containers"), &run.join("netns"), run]);
    Ok(())
}

/// Removes what the container wrote: its layer and its log.
fn free_layer(container: &Container) -> Result<()> {
    let kept = ["spec.json", "state.json", "removed"];
    for entry in fs::read_dir(container.dir()).into_iter().flatten().flatten() {
        if !kept.iter().any(|name| entry.file_name() == *name) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes the temporary files of writers that were killed. The caller has the lock, so no writer is left.
fn remove_temporary(container: &Container) {
    for entry in fs::read_dir(container.dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains(".tmp") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Ends a container that a killed `rm -f` marked as removed and left running, and waits until its supervisor has given all
/// back, unless others share its network. True: nobody has the lock any more, and what is left is the caller's to remove.
fn finish_removal(container: &Container) -> bool {
    const PATIENCE: Duration = Duration::from_secs(5);
    if !container.is_removed() {
        return false;
    }
    let end = Instant::now() + PATIENCE;
    while Lock::is_taken(container) && joiners(container).is_empty() && Instant::now() < end {
        // Each time: one that is just starting has its process later.
        let current = Container::by_id(&container.paths, container.id());
        if let Ok(Some(current)) = current
            && let Some(pidfd) = process::find(&current.state)
        {
            process::kill(&pidfd);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    !Lock::is_taken(container)
}

/// Removes the container's lasting state; its spec and the mark that it is removed go last.
pub fn erase(container: &Container) -> Result<()> {
    let dir = container.dir();
    let last = [dir.join("spec.json"), container.removed_mark()];
    match fs::read_dir(&dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => {
            for entry in entries.with_context(|| format!("cannot read {}", dir.display()))? {
                let path = entry?.path();
                if !last.contains(&path) {
                    remove_tree(&path)?;
                }
            }
        }
    }
    // Without its spec it is no container any more, also when this is cut off here (see Container::sweep).
    for path in &last {
        remove_tree(path)?;
    }
    remove_tree(&dir)?;
    let paths = &container.paths;
    remove_if_empty(&[&paths.containers(), &paths.results(), &paths.shared(), &paths.volumes(), &paths.root]);
    Ok(())
}

/// Removes a container that was marked as removed after its supervisor had looked for the mark, and before it gave up the
/// lock: who made the mark may have been killed.
pub fn finish_late_removal(container: &mut Container) {
    if container.is_removed() {
        // What fails is tried again by the next command.
        let _ = recover(container);
    }
}

/// Brings a container whose supervisor died into a true state. Does nothing when its supervisor lives, or when all of it is
/// in order already.
pub fn recover(container: &mut Container) -> Result<()> {
    let in_question = holds(container) || goes(container) || container.run_dir().exists();
    if !in_question {
        return Ok(());
    }
    if Lock::is_taken(container) && !finish_removal(container) {
        return Ok(());
    }
    let Some(lock) = Lock::take(container)? else { return Ok(()) };
    // Only now it stays as it is.
    if !container.refresh()? {
        return remove_run_dir(container);
    }
    remove_temporary(container);
    if holds(container) {
        let mut saved = Ok(());
        if let Some(pidfd) = process::find(&container.state) {
            process::kill(&pidfd);
        }
        if container.state.status == Status::Running {
            // As when its process is killed: nobody was there to see how it ended.
            container.state.status = Status::Exited;
            container.state.exit_code = 128 + libc::SIGKILL;
            container.state.finished = Some(now());
            container.state.pid = 0;
            container.state.error = "its supervisor was killed".into();
            // On a full disk it is not written down until there is room; what it holds is given back all the same.
            saved = container.save_state();
        }
        if !joiners(container).is_empty() {
            // The last of them does the rest.
            return saved.and_then(|()| unpublish(container));
        }
    }
    let result = release(container);
    drop(lock);
    release_joined(container);
    result
}

/// Waits until a supervisor whose container has ended is through with giving everything back, unless that waits for
/// others.
pub fn settle(container: &mut Container) -> Result<()> {
    settle_within(container, Duration::from_secs(10))
}

/// As [`settle`], with a supervisor that does not come to an end within `patience`, or whose launch does not, killed with the
/// plugins that it runs. What it held is given back.
pub fn settle_by_force(container: &mut Container, patience: Duration) -> Result<()> {
    settle_within(container, patience)?;
    let is_busy = Lock::is_taken(container)
        && container.refresh()?
        && container.state.status != Status::Running
        && joiners(container).is_empty();
    if let (true, Some(pidfd)) = (is_busy, process::supervisor(&container.state, container.id())) {
        // It leads a session of its own. The container's process ends with it.
        let _ = killpg(Pid::from_raw(container.state.supervisor_pid), Signal::SIGKILL);
        process::kill(&pidfd);
    }
    recover(container)
}

fn settle_within(container: &mut Container, patience: Duration) -> Result<()> {
    recover(container)?;
    let patience = Instant::now() + patience;
    while Lock::is_taken(container)
        && container.refresh()?
        && container.state.status != Status::Running
        && joiners(container).is_empty()
        && Instant::now() < patience
    {
        match Waiter::new(&container.run_dir()) {
            // One that is starting listens before it says that it runs; its end may be far.
            Ok(waiter) => waiter.wait_at_most(Duration::from_millis(50)),
            // It is starting, or has just finished.
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    recover(container)
}

/// When this container shared another one's network, and that one has ended and has no supervisor any more, releases it.
pub fn release_joined(container: &Container) {
    let NetMode::Container(id) = &container.spec.network else { return };
    if let Ok(Some(mut other)) = Container::by_id(&container.paths, id) {
        // It is in order, or it will be tried again when somebody looks at it.
        let _ = recover(&mut other);
    }
}

/// When this container shared another one's network, and that one has ended, waits until that is released too.
pub fn settle_joined(container: &Container) {
    let NetMode::Container(id) = &container.spec.network else { return };
    if let Ok(Some(mut other)) = Container::by_id(&container.paths, id) {
        let _ = settle(&mut other);
    }
}

/// The container as it is now, brought into a true state first.
pub fn current(container: &Container) -> Result<Container> {
    let mut current = container.clone();
    recover(&mut current)?;
    if !current.refresh()? {
        bail!("No such container: {}", container.spec.name);
    }
    Ok(current)
}

/// The spec with the host ports that were chosen at the start.
pub fn with_ports(container: &Container) -> crate::spec::Spec {
    let mut spec = container.spec.clone();
    if !container.state.ports.is_empty() {
        spec.ports.clone_from(&container.state.ports);
    }
    spec
}

/// Whether the container has a network namespace of its own.
pub fn owns_netns(container: &Container) -> bool {
    matches!(container.spec.network, NetMode::None | NetMode::Networks(_))
}

/// Where the container's network namespace is.
pub fn netns_path(container: &Container) -> Option<PathBuf> {
    match &container.spec.network {
        NetMode::Host => Some("/proc/self/ns/net".into()),
        NetMode::Container(id) => Some(container.paths.netns(id)),
        _ => Some(container.paths.netns(container.id())),
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    tree::remove(path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Removes directories that hold nothing any more; the others stay.
fn remove_if_empty(dirs: &[&Path]) {
    for dir in dirs {
        let _ = fs::remove_dir(dir);
    }
}
