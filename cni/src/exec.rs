//! Running an executable with a document on stdin: nobody waits for the other's full pipe, and a limit of time can be
//! set. One thread does it all by poll(2).

use crate::MAX_DOCUMENT;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How much of the end of stderr is kept, in bytes.
const STDERR_KEPT: usize = 4096;

/// How often a process is asked whether it has ended where the kernel cannot tell by itself (before Linux 5.3).
const LOOK: Duration = Duration::from_millis(1);

/// What an executable left.
pub(crate) struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    /// Its end.
    pub stderr: Vec<u8>,
}

/// Why there is no [`Output`].
pub(crate) enum Failure {
    /// It could not be started or talked to.
    Io(io::Error),
    /// It did not end in time and has been killed; with the end of its stderr.
    Timeout(Duration, Vec<u8>),
    /// It printed more than [`MAX_DOCUMENT`] and has been killed.
    TooLong,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Failure {
        Failure::Io(error.into())
    }
}

/// The executable of a plugin type in the first directory that has it.
pub(crate) fn find(kind: &str, path: &[PathBuf]) -> Option<PathBuf> {
    // An empty directory would leave a bare name, which execvp(3) searches in PATH.
    let dirs = path.iter().filter(|dir| !dir.as_os_str().is_empty());
    dirs.map(|dir| dir.join(kind)).find(|candidate| candidate.is_file())
}

/// Runs `program` with this process's environment, in which all of `CNI_…` is replaced by `env`.
pub(crate) fn run<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    program: &Path,
    env: impl IntoIterator<Item = (K, V)>,
    stdin: &[u8],
    limit: Option<Duration>,
) -> Result<Output, Failure> {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"CNI_") {
            command.env_remove(&name);
        }
    }
    command.envs(env).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command)?;
    let deadline = limit.map(|limit| (limit, Instant::now() + limit));
    let output = talk(&mut child, stdin, deadline);
    if output.is_err() {
        // It may have ended by itself meanwhile; either way it must be waited for.
        let _ = child.kill();
        let _ = child.wait();
    }
    output
}

/// An executable that was written a moment ago may still be open for writing in a child that another thread is about to
/// start (ETXTBSY); that passes within milliseconds.
fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut tries = 0;
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < 20 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(tries));
            }
            outcome => return outcome,
        }
    }
}

fn unblock(pipe: &impl AsFd) -> Result<(), Failure> {
    let flags = OFlag::from_bits_truncate(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn talk(
    child: &mut Child,
    mut input: &[u8],
    deadline: Option<(Duration, Instant)>,
) -> Result<Output, Failure> {
    let (mut stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut printed, mut logged) = (Vec::new(), Vec::new());
    for unblocked in [stdin.as_ref().map(unblock), stdout.as_ref().map(unblock), stderr.as_ref().map(unblock)]
    {
        unblocked.transpose()?;
    }
    // The end of the process counts, not that of its pipes: a plugin may leave a child behind that holds them open.
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).ok();
    let mut ended = None;
    loop {
        feed(&mut stdin, &mut input)?;
        drain(&mut stdout, &mut printed)?;
        drain(&mut stderr, &mut logged)?;
        logged.drain(..logged.len().saturating_sub(STDERR_KEPT));
        if printed.len() > MAX_DOCUMENT {
            return Err(Failure::TooLong);
        }
        if let Some(status) = ended {
            return Ok(Output { status, stdout: printed, stderr: logged });
        }
        if let Some((limit, _)) = deadline.filter(|(_, at)| Instant::now() >= *at) {
            return Err(Failure::Timeout(limit, logged));
        }
        let left = deadline.map(|(_, at)| at.saturating_duration_since(Instant::now()));
        // Rounded up, or the last millisecond would be spent turning.
        let left = left.map(|left| left + Duration::from_millis(1));
        let wait = if process.is_some() { left } else { Some(left.unwrap_or(LOOK).min(LOOK)) };
        let wait =
            wait.map_or(PollTimeout::NONE, |wait| PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX));
        let readable = |pipe| PollFd::new(pipe, PollFlags::POLLIN);
        let mut fds = Vec::with_capacity(4);
        fds.extend(process.as_ref().map(|process| readable(process.as_fd())));
        fds.extend(stdout.as_ref().map(|pipe| readable(pipe.as_fd())));
        fds.extend(stderr.as_ref().map(|pipe| readable(pipe.as_fd())));
        fds.extend(stdin.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
        match poll(&mut fds, wait) {
            Err(Errno::EINTR) => continue,
            outcome => outcome?,
        };
        if process.is_none() || fds[0].any().unwrap_or(true) {
            ended = child.try_wait()?;
        }
    }
}

/// Writes what the pipe takes, and closes it after the last byte. A reader that closed it did not want the rest.
fn feed(pipe: &mut Option<ChildStdin>, input: &mut &[u8]) -> io::Result<()> {
    while let Some(open) = pipe {
        if input.is_empty() {
            *pipe = None;
            break;
        }
        match open.write(input) {
            Ok(written) => *input = &input[written..],
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => break,
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::BrokenPipe => *pipe = None,
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

/// Reads what is there, and closes the pipe at its end.
fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    while let Some(open) = pipe {
        match open.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(_) if into.len() > MAX_DOCUMENT => break,
            Ok(read) => into.extend_from_slice(&buffer[..read]),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => break,
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
    Ok(())
}
