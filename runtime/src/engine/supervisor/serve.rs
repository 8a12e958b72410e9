//! The supervisor's work while the container runs, and its end.

use std::cell::RefCell;
use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::Pipes;
use super::hub::Hub;
use super::log::{Lines, Log};
use crate::engine::launch::Launched;
use crate::engine::release::{self, Lock};
use crate::engine::sys;
use crate::engine::wire::Frame;
use crate::network;
use crate::ports::Proxy;
use crate::state::{Container, Status, now};

/// How long output that is left in the pipes is waited for when the process has ended.
const DRAIN: Duration = Duration::from_secs(1);
/// How long the container has after the supervisor itself was told to end.
const GRACE: Duration = Duration::from_secs(10);

/// The signals that tell the supervisor to end, caught from here on: one that comes while the container is being started
/// is obeyed when it runs.
pub struct Orders {
    runtime: Runtime,
    signals: Vec<Signal>,
}

impl Orders {
    /// Catches them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let kinds =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()];
        let signals = kinds.into_iter().map(signal).collect::<std::io::Result<_>>()?;
        drop(entered);
        Ok(Self { runtime, signals })
    }
}

/// A running container and all that is held for it.
pub struct Service {
    process: Launched,
    pipes: Pipes,
    terminal: Option<OwnedFd>,
    log: Log,
    listener: UnixListener,
    proxy: Proxy,
    kept: Option<(Container, Lock)>,
}

impl Service {
    /// The service of a process.
    pub fn new(
        process: Launched,
        pipes: Pipes,
        terminal: Option<OwnedFd>,
        log: Log,
        listener: UnixListener,
        proxy: Proxy,
    ) -> Self {
        Self { process, pipes, terminal, log, listener, proxy, kept: None }
    }

    /// What it answers for.
    pub fn keep(&mut self, container: Container, lock: Lock) {
        self.kept = Some((container, lock));
    }

    /// Serves until the container has ended and everything is given back.
    pub fn serve(self, orders: Orders, first: Option<UnixStream>) -> Result<()> {
        let Orders { runtime, signals } = orders;
        LocalSet::new().block_on(&runtime, self.run(signals, first))
    }

    async fn run(mut self, signals: Vec<Signal>, first: Option<UnixStream>) -> Result<()> {
        let (mut container, lock) = self.kept.take().ok_or_else(|| anyhow!("nothing to serve"))?;
        network::rules::keep(&container.paths);
        let log = Rc::new(RefCell::new(self.log));
        let input = match (&self.terminal, self.pipes.input.take()) {
            (Some(terminal), _) => Some(terminal.try_clone()?),
            (None, pipe) => pipe,
        };
        let feed = input.map(|to| {
            let (sender, receiver) = channel(16);
            spawn_local(feed(to, receiver));
            sender
        });
        let hub = Hub::new(
            self.process.pidfd.try_clone()?,
            self.terminal.as_ref().map(OwnedFd::try_clone).transpose()?,
            feed,
        );
        if let Some(first) = first {
            first.set_nonblocking(true)?;
            hub.attach(tokio::net::UnixStream::from_std(first)?, true);
        }
        let output = self.terminal.take().or(self.pipes.output.take());
        let mut pumps = Vec::new();
        for (fd, stream) in [(output, "stdout"), (self.pipes.errors.take(), "stderr")] {
            if let Some(fd) = fd {
                pumps.push(spawn_local(pump(fd, stream, Rc::clone(&log), Rc::clone(&hub))));
            }
        }
        self.listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(self.listener)?;
        let accepting = Rc::clone(&hub);
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accepting.attach(stream, false);
            }
        });
        spawn_local(obey(signals, Rc::clone(&hub), container.spec.stop_signal.unwrap_or(libc::SIGTERM)));

        if container.is_removed() {
            // By force, while it was starting.
            hub.signal(libc::SIGKILL);
        }
        let code = ended(self.process.pid, self.process.pidfd).await?;
        drop(self.process.guard);
        drain(pumps).await;
        let state = &mut container.state;
        state.status = Status::Exited;
        state.exit_code = code;
        state.finished = Some(now());
        state.pid = 0;
        // On a full disk too everything is given back.
        let _ = container.save_state();
        // Nobody is sent to a container that has ended.
        drop(self.proxy);
        if !release::joiners(&container).is_empty() {
            // What fails is done with the rest.
            let _ = release::unpublish(&mut container);
            // Whoever waits for the process need not wait for those who share its network.
            hub.exited(code).await;
            alone(&container).await?;
        }
        // A failure is in the container's state; it is dead then.
        let released = release::release(&mut container);
        drop(lock);
        release::finish_late_removal(&mut container);
        release::release_joined(&container);
        hub.exited(code).await;
        hub.flushed().await;
        released
    }
}

/// Waits for the process and gives its exit code, 128+signal when a signal ended it.
async fn ended(pid: i32, pidfd: OwnedFd) -> Result<i32> {
    let pidfd = sys::watched(pidfd, Interest::READABLE)?;
    loop {
        let mut ready = pidfd.readable().await?;
        match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)).context("waitpid")? {
            WaitStatus::Exited(_, code) => return Ok(code),
            WaitStatus::Signaled(_, signal, _) => return Ok(128 + signal as i32),
            _ => ready.clear_ready(),
        }
    }
}

/// Relays output to the log and the clients until it ends.
async fn pump(from: OwnedFd, stream: &'static str, log: Rc<RefCell<Log>>, hub: Rc<Hub>) -> Result<()> {
    let from = nonblocking(from, Interest::READABLE)?;
    let mut lines = Lines::new(stream);
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let size = match from.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, &mut buffer)?)).await
        {
            // A terminal ends so when its last program has closed it.
            Ok(0) | Err(_) => break,
            Ok(size) => size,
        };
        // A log that cannot be written must not stop the container.
        let _ = lines.push(&buffer[..size], &mut log.borrow_mut());
        let bytes = buffer[..size].to_vec();
        let frame = if stream == "stderr" { Frame::Errors(bytes) } else { Frame::Output(bytes) };
        hub.output(&frame).await;
    }
    Ok(lines.finish(&mut log.borrow_mut())?)
}

/// Writes what clients send to the container's input, until they have sent all.
async fn feed(to: OwnedFd, mut from: Receiver<Vec<u8>>) -> Result<()> {
    let to = nonblocking(to, Interest::WRITABLE)?;
    while let Some(bytes) = from.recv().await {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let size = to.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, rest)?)).await?;
            rest = &rest[size..];
        }
    }
    Ok(())
}

fn nonblocking(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>> {
    let flags = nix::fcntl::OFlag::from_bits_retain(nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL)?);
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(flags | nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(sys::watched(fd, interest)?)
}

async fn drain(pumps: Vec<JoinHandle<Result<()>>>) {
    let all = async {
        for pump in pumps {
            let _ = pump.await;
        }
    };
    // Whoever else holds the pipes open is not waited for.
    let _ = tokio::time::timeout(DRAIN, all).await;
}

/// A supervisor that is told to end ends its container, and then itself.
async fn obey(mut signals: Vec<Signal>, hub: Rc<Hub>, stop_signal: i32) {
    poll_fn(|context| {
        let is_told = signals.iter_mut().any(|each| each.poll_recv(context).is_ready());
        if is_told { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    hub.signal(stop_signal);
    tokio::time::sleep(GRACE).await;
    hub.signal(libc::SIGKILL);
}

/// Waits until no other container shares this one's network.
async fn alone(container: &Container) -> Result<()> {
    let dir = container.paths.shared().join(container.id());
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let flags = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVED_FROM;
    if inotify.add_watch(&dir, flags).is_err() {
        // With the last of them the directory went.
        return Ok(());
    }
    let events = sys::watched(inotify.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
    while !release::joiners(container).is_empty() {
        let mut ready = events.readable().await?;
        let _ = inotify.read_events();
        ready.clear_ready_matching(Ready::READABLE);
    }
    Ok(())
}
