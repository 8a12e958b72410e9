//! The bench's own namespaces: one for its mounts, one network for each machine, and fresh ones for containers.

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

const NONE: Option<&str> = None;

/// Leaves the machine's network and mounts: `/run` is in memory from here on, and nothing outside is touched.
pub fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    std::fs::create_dir_all("/run/netns")?;
    std::fs::create_dir_all("/run/lock")?;
    Ok(())
}

/// Makes a network namespace with a name and returns its file.
pub fn fresh(name: &str) -> Result<PathBuf> {
    let file = Path::new("/run/netns").join(name);
    File::create(&file)?;
    let target = file.clone();
    // On a thread of its own, as the new namespace is that of the thread.
    let made = std::thread::spawn(move || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &target, NONE, MsFlags::MS_BIND, NONE)?;
        Ok(())
    });
    made.join().map_err(|_| anyhow::anyhow!("the thread that makes a namespace panicked"))??;
    Ok(file)
}

/// Deletes a namespace; the kernel does the rest in the background.
pub fn delete(file: &Path) -> Result<()> {
    umount2(file, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", file.display()))?;
    std::fs::remove_file(file)?;
    Ok(())
}

/// A machine: a network namespace with `lo` up. What is run on it is started by a thread that is in it.
#[derive(Debug)]
pub struct Machine {
    file: File,
    /// Its directory for state.
    pub dir: PathBuf,
}

impl Machine {
    /// A new one.
    pub fn new(name: &str) -> Result<Machine> {
        let path = fresh(&format!("machine-{name}"))?;
        let dir = Path::new("/run/bench").join(name);
        std::fs::create_dir_all(&dir)?;
        let machine = Machine { file: File::open(path)?, dir };
        machine.enter()?;
        anyhow::ensure!(
            Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success(),
            "lo does not come up"
        );
        Ok(machine)
    }

    /// From here on the calling thread, and what it starts, is on this machine.
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).context("enter a machine")
    }

    /// How many links of dead containers wait for their end on this machine: neither `lo` nor a bridge.
    pub fn links(&self) -> Result<usize> {
        self.enter()?;
        let out = Command::new("ip").args(["-o", "link", "show", "type", "veth"]).output()?;
        Ok(String::from_utf8_lossy(&out.stdout).lines().count())
    }
}
