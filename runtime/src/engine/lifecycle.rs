//! What is done to containers after their start: stop, kill, restart, wait, remove.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::client::{End, Waiter};
use super::{process, release, sys};
use crate::paths::Paths;
use crate::state::{Container, Status};

/// How long a container has after its stop signal, as in Docker.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a start may take before a removal by force ends it.
const LAUNCH: Duration = Duration::from_secs(3);

/// Brings every container whose supervisor died into a true state: kills what is left, releases networks, removes those
/// with `--rm`. What fails is in the state of the container, which is dead then.
pub fn recover(paths: &Paths) -> Result<()> {
    Container::sweep(paths)?;
    for mut container in Container::every(paths)? {
        let _ = release::recover(&mut container);
    }
    Ok(())
}

impl Container {
    /// Ends it: its stop signal, then after `patience` (none: 10 s) SIGKILL. Returns when its network is released. A
    /// container that does not run stays as it is.
    pub fn stop(&mut self, patience: Option<Duration>) -> Result<()> {
        let signal = self.spec.stop_signal.unwrap_or(libc::SIGTERM);
        self.end(signal, patience.unwrap_or(PATIENCE))
    }

    /// Sends its process a signal. SIGKILL returns when the container has ended.
    pub fn kill(&mut self, signal: i32) -> Result<()> {
        release::recover(self)?;
        let process = (self.state.status == Status::Running).then(|| process::find(&self.state)).flatten();
        let Some(pidfd) = process else { bail!("container {} is not running", self.spec.name) };
        if signal == libc::SIGKILL {
            return self.end(signal, Duration::ZERO);
        }
        sys::pidfd_send_signal(pidfd.as_fd(), signal).with_context(|| format!("cannot send signal {signal}"))
    }

    /// Stops and starts it. One whose network another shares goes on as it is: it could not start again.
    pub fn restart(&mut self, patience: Option<Duration>) -> Result<()> {
        let joiners = release::joiners(self);
        if !joiners.is_empty() {
            bail!(
                "cannot restart container {}: its network is used by {}; stop that first",
                self.spec.name,
                joiners.join(", ")
            );
        }
        self.stop(patience)?;
        self.start()
    }

    /// Removes it and all it left. A running one, or one whose network another shares, only by `force`. Of one that is
    /// shared, the network is released when the last sharer ends.
    pub fn remove(mut self, force: bool) -> Result<()> {
        match force {
            true => release::settle_by_force(&mut self, LAUNCH)?,
            false => release::settle(&mut self)?,
        }
        if !self.refresh()? {
            return Ok(());
        }
        let joiners = release::joiners(&self);
        if !joiners.is_empty() && !force {
            bail!(
                "cannot remove container {}: its network is used by {}; stop that first, or use -f",
                self.spec.name,
                joiners.join(", ")
            );
        }
        let running = release::Lock::is_taken(&self);
        if running && !force {
            bail!(
                "cannot remove container {}: container is running: stop the container before removing or force remove",
                self.spec.name
            );
        }
        let mark = self.removed_mark();
        if let Err(error) = std::fs::write(&mark, "") {
            // It has just removed itself.
            return if self.refresh()? {
                Err(error).with_context(|| mark.display().to_string())
            } else {
                Ok(())
            };
        }
        if running {
            self.end(libc::SIGKILL, Duration::ZERO)?;
        }
        // What no supervisor removes, because there is none, or it was through before the mark was there.
        release::settle(&mut self)?;
        release::settle_joined(&self);
        Ok(())
    }

    /// Waits until it ends and gives its exit code.
    pub fn wait(&mut self) -> Result<i32> {
        release::settle(self)?;
        if !self.refresh()? || self.state.status != Status::Running {
            // It may have ended just now, and its supervisor be giving everything back.
            release::settle(self)?;
            return Ok(self.state.exit_code);
        }
        // One that cannot be reached has ended just now, or its supervisor has.
        let end = Waiter::new(&self.run_dir()).map_or(End::Lost, Waiter::wait);
        self.ended(end)
    }

    /// Sends `signal`, after `patience` SIGKILL, and waits until the supervisor has given everything back.
    fn end(&mut self, signal: i32, patience: Duration) -> Result<()> {
        release::recover(self)?;
        if !self.refresh()? {
            return Ok(());
        }
        // A client before the signal: so the end is not missed.
        let mut waiter = Waiter::new(&self.run_dir()).ok();
        if let Some(pidfd) = process::find(&self.state) {
            // A process that has just ended needs none.
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), signal);
            if !process::wait(&pidfd, Some(patience)) {
                process::kill(&pidfd);
            }
        }
        // A supervisor that is still starting listens soon, and ends by itself when its container was removed.
        for _ in 0..500 {
            if waiter.is_some() || !release::Lock::is_taken(self) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
            waiter = Waiter::new(&self.run_dir()).ok();
        }
        if waiter.map(Waiter::wait).is_none_or(|end| end == End::Lost) {
            release::recover(self)?;
        }
        release::settle_joined(self);
        self.refresh()?;
        Ok(())
    }
}
