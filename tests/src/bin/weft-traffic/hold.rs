//! A machine of its own: network, mount and PID namespaces that live until standard input ends.
//!
//! The PID namespace makes the clean-up certain: when its first process ends, the kernel kills all others, however
//! they were started. The file system is the real one, but what Weft writes goes to memory: `/run`, `/etc` and
//! `/var/lib` are the machine's own.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::wait;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Makes the namespaces, starts the first process in them and prints its PID as seen from outside.
pub fn outer() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)
        .context("unshare network, mounts and PIDs (are you root?)")?;
    let mut init =
        Command::new("/proc/self/exe").arg("hold-init").spawn().context("start the first process")?;
    println!("{}", init.id());
    init.wait()?;
    Ok(())
}

fn mount_at(source: &str, target: &str, kind: &str, flags: MsFlags, data: &str) -> Result<()> {
    mount(Some(source), target, Some(kind), flags, Some(data))
        .with_context(|| format!("mount {kind} on {target}"))
}

fn tmpfs(target: &str) -> Result<()> {
    mount_at("tmpfs", target, "tmpfs", MsFlags::empty(), "mode=755")
}

fn prepare_files() -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    mount_at("proc", "/proc", "proc", MsFlags::empty(), "")?;

    // Copies on write of /etc and /var/lib. Their upper halves stay reachable below the second tmpfs on /run.
    tmpfs("/run")?;
    for dir in ["/etc", "/var/lib"] {
        let own = format!("/run/upper{}", dir.replace('/', "-"));
        std::fs::create_dir_all(format!("{own}/up"))?;
        std::fs::create_dir_all(format!("{own}/work"))?;
        let data = format!("lowerdir={dir},upperdir={own}/up,workdir={own}/work");
        mount_at("overlay", dir, "overlay", MsFlags::empty(), &data)?;
    }
    // A sysfs shows the network namespace it was mounted in; the cgroups below it are kept.
    std::fs::create_dir_all("/run/cgroup")?;
    mount(Some("/sys/fs/cgroup"), "/run/cgroup", none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .context("keep the cgroups")?;
    mount_at("sysfs", "/sys", "sysfs", MsFlags::empty(), "")?;
    mount(Some("/run/cgroup"), "/sys/fs/cgroup", none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .context("put the cgroups back")?;

    tmpfs("/run")?;
    std::fs::create_dir_all("/run/lock")?;
    for dir in ["/var/lib/weft", "/var/lib/cni", "/etc/weft", "/etc/cni"] {
        std::fs::create_dir_all(dir)?;
        tmpfs(dir)?;
    }
    Ok(())
}

/// The first process of the machine: prepares it, says `ready`, and reaps orphans until standard input ends.
pub fn init() -> Result<()> {
    prepare_files()?;
    // The first `ip netns add` makes /run/netns a mount of its own; done here, it is there before any test looks.
    for command in ["ip link set lo up", "ip netns add first", "ip netns delete first"] {
        let mut words = command.split(' ');
        let status = Command::new(words.next().unwrap_or("ip")).args(words).stdin(Stdio::null()).status()?;
        anyhow::ensure!(status.success(), "`{command}` failed");
    }
    println!("ready");
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    loop {
        if wait() == Err(Errno::ECHILD) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
