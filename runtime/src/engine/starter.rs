//! Starting a container: its supervisor is made, and heard until the container runs or does not.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use super::client::{self, End};
use super::supervisor::Report;
use super::{Interact, own, release, tty};
use crate::state::{Container, Status};

impl Container {
    /// Starts it in the background; returns when its process runs. A [`super::Failure`] says why it could not be executed.
    pub fn start(&mut self) -> Result<()> {
        self.launch(None)
    }

    /// Starts it with this process attached from its first byte; returns its exit code when all of it is taken down.
    pub fn run(&mut self, io: Interact) -> Result<i32> {
        tty::check(self.spec.tty, io.stdin)?;
        let held = client::hold_signals(io)?;
        let (ours, theirs) = UnixStream::pair().context("socketpair")?;
        client::hello().write(&ours)?;
        self.launch(Some(theirs))?;
        let end = client::join(ours, &self.run_dir(), io, self.spec.tty, held)?;
        self.ended(end)
    }

    /// Attaches to a running container; returns its exit code.
    pub fn attach(&self, io: Interact) -> Result<i32> {
        let mut this = release::current(self)?;
        if this.state.status != Status::Running {
            bail!("You cannot attach to a stopped container, start it first");
        }
        tty::check(self.spec.tty, io.stdin)?;
        let held = client::hold_signals(io)?;
        let stream =
            super::wire::connect(&self.run_dir()).context("cannot reach the container's supervisor")?;
        client::hello().write(&stream)?;
        let end = client::join(stream, &self.run_dir(), io, self.spec.tty, held)?;
        this.ended(end)
    }

    /// What comes of an attachment's end. A user who left is no failure.
    pub(super) fn ended(&mut self, end: End) -> Result<i32> {
        match end {
            End::Exit(code) => Ok(code),
            End::Detached => Ok(0),
            End::Unread => Ok(128 + libc::SIGPIPE),
            End::Lost => {
                // Its supervisor was killed, and the container with it.
                release::recover(self)?;
                Ok(if self.refresh()? { self.state.exit_code } else { 128 + libc::SIGKILL })
            }
        }
    }

    fn launch(&mut self, client: Option<UnixStream>) -> Result<()> {
        release::settle(self)?;
        if !self.refresh()? {
            bail!("No such container: {}", self.spec.name);
        }
        if self.state.status == Status::Running {
            // As `docker start` of a running container.
            return if client.is_none() {
                Ok(())
            } else {
                Err(anyhow!("container {} is already running", self.spec.name))
            };
        }
        let (mut report, theirs) = UnixStream::pair().context("socketpair")?;
        let executable = own::executable().context("cannot find this executable")?;
        let mut command = Command::new(own::path(&executable));
        command.arg0("runtime").args(self.paths.to_args()).arg("supervise").arg(self.id());
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stderr(Stdio::null());
        command.stdout(client.map_or_else(Stdio::null, |client| Stdio::from(OwnedFd::from(client))));
        command.spawn().context("cannot start the supervisor")?;
        drop(command);
        let mut text = Vec::new();
        report.read_to_end(&mut text).context("cannot hear from the supervisor")?;
        self.refresh()?;
        let report: Report = serde_json::from_slice(&text).map_err(|_| {
            anyhow!("the supervisor of container {} ended before the container ran", self.spec.name)
        })?;
        for note in &report.notes {
            eprintln!("runtime: note: {note}");
        }
        report.failure.map_or(Ok(()), |failure| Err(failure.into()))
    }
}
