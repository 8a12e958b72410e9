//! What a process on its way to exec tells the one that made it, over a socket that exec closes: nothing but the end means
//! that the program runs.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, send, sendmsg, socketpair,
};

use crate::engine::{Failure, sys};

/// The longest message, in bytes.
const LIMIT: usize = 8192;

/// The new process's end.
pub struct Reporter(OwnedFd);

/// The end of the process that made it.
pub struct Listener(OwnedFd);

/// What was heard until the program ran.
#[derive(Default)]
pub struct Heard {
    /// What the user should know.
    pub notes: Vec<String>,
    /// The master of the process's terminal.
    pub terminal: Option<OwnedFd>,
}

/// Both ends.
pub fn pair() -> Result<(Listener, Reporter)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .context("socketpair")?;
    Ok((Listener(ours), Reporter(theirs)))
}

impl Reporter {
    /// Waits until the listener lets it go on. An error when the listener is gone.
    pub fn wait(&self) -> Result<()> {
        let mut byte = [0];
        match recv(self.0.as_raw_fd(), &mut byte, MsgFlags::empty())? {
            0 => bail!("the supervisor is gone"),
            _ => Ok(()),
        }
    }

    /// Whether the listener is gone.
    pub fn is_orphaned(&self) -> bool {
        matches!(recv(self.0.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT), Ok(0))
    }

    /// Tells what the user should know.
    pub fn note(&self, text: &str) {
        self.tell(b'N', text, None);
    }

    /// Hands over the master of the terminal.
    pub fn terminal(&self, master: &OwnedFd) {
        self.tell(b'T', "", Some(master));
    }

    /// Tells why the program cannot be executed.
    pub fn fail(&self, failure: &Failure) {
        self.tell(b'E', &format!("{}:{}", failure.code, failure.message), None);
    }

    fn tell(&self, tag: u8, text: &str, fd: Option<&OwnedFd>) {
        let text = &text.as_bytes()[..text.len().min(LIMIT - 1)];
        let message = [&[tag], text].concat();
        let parts = [io::IoSlice::new(&message)];
        let fds = [fd.map_or(-1, AsRawFd::as_raw_fd)];
        let rights = [ControlMessage::ScmRights(&fds)];
        let control: &[ControlMessage<'_>] = if fd.is_some() { &rights } else { &[] };
        // When nobody listens any more this process is about to be killed.
        let _ = sendmsg::<()>(self.0.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None);
    }
}

impl AsFd for Reporter {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Listener {
    /// Lets the process go on.
    pub fn go(&self) -> Result<()> {
        send(self.0.as_raw_fd(), b"g", MsgFlags::MSG_NOSIGNAL).context("the new process ended at once")?;
        Ok(())
    }

    /// Listens until the program runs, or fails to. The error is a [`Failure`] when the program is at fault.
    pub fn listen(&self) -> Result<Heard> {
        let mut heard = Heard::default();
        let mut buffer = vec![0; LIMIT];
        // Of a process that ended with the word to go on unread, the kernel says this before what it sent (unix(7)).
        let mut reset = None;
        loop {
            let (size, fd) = match sys::receive(self.0.as_fd(), &mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset && reset.is_none() => {
                    reset = Some(e);
                    continue;
                }
                other => other.context("cannot hear from the new process")?,
            };
            let Some((tag, text)) = buffer[..size].split_first() else {
                return match reset {
                    Some(error) => Err(error).context("the new process ended"),
                    None => Ok(heard),
                };
            };
            let text = String::from_utf8_lossy(text);
            match tag {
                b'N' => heard.notes.push(text.into_owned()),
                b'T' => heard.terminal = fd,
                _ => {
                    let (code, message) = text.split_once(':').unwrap_or(("125", &text));
                    return Err(Failure { code: code.parse().unwrap_or(125), message: message.into() }.into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_of_a_process_that_did_not_wait_for_the_word_is_heard() {
        let (listener, reporter) = pair().unwrap();
        listener.go().unwrap();
        reporter.fail(&Failure { code: 126, message: "why".into() });
        drop(reporter);
        let error = listener.listen().err().unwrap();
        let failure = error.downcast_ref::<Failure>().map(|failure| (failure.code, failure.message.as_str()));
        assert_eq!(failure, Some((126, "why")), "{error:#}");
    }

    #[test]
    fn process_that_ends_without_a_word_is_no_program_that_runs() {
        let (listener, reporter) = pair().unwrap();
        listener.go().unwrap();
        drop(reporter);
        assert!(listener.listen().is_err());
    }
}
