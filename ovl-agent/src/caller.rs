//! Who asks, and whether there is still somebody who waits for the answer.
//!
//! A request can lie in the socket of an agent that hangs until whoever sent it has given up, and has cleared up: an
//! attachment that were made then would be nobody's.

use axum::extract::FromRequestParts;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::http::request::Parts;
use axum::response::Response;
use axum::serve::IncomingStream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ovl_api::wire::{DEADLINE, Problem, ProblemKind, monotonic};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;

/// The connection that a request came by.
#[derive(Debug, Clone)]
pub struct Peer(Option<Arc<OwnedFd>>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Peer {
        // Without it, the deadline alone tells.
        Peer(stream.io().as_fd().try_clone_to_owned().ok().map(Arc::new))
    }
}

impl Peer {
    /// The other end is closed: not for writing alone, as some do who only wait for the answer.
    fn has_hung_up(&self) -> bool {
        let Some(socket) = &self.0 else { return false };
        // POLLHUP is told without being asked for.
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        let told = poll(&mut fds, PollTimeout::ZERO);
        told.is_ok() && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    peer: Peer,
    /// Until when it waits, by [`monotonic`].
    until: Option<Duration>,
}

impl Caller {
    /// The time until which it waits is over: how long ago.
    fn late(&self) -> Option<Duration> {
        let now = monotonic();
        self.until.filter(|until| now > *until).map(|until| now - until)
    }

    /// That its time is not over. What it asked for it has settled in another way by then.
    ///
    /// # Errors
    /// It is.
    pub fn in_time(&self) -> Result<(), Problem> {
        match self.late() {
            None => Ok(()),
            Some(ago) => {
                let ago = Duration::from_millis(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
                Err(given_up(format!("its sender waited until {ago:?} ago")))
            }
        }
    }

    /// That it waits for the answer.
    ///
    /// # Errors
    /// It does not: its time is over, or it has closed the connection.
    pub fn waits(&self) -> Result<(), Problem> {
        self.in_time()?;
        if self.peer.has_hung_up() {
            return Err(given_up("its sender has closed the connection".to_owned()));
        }
        Ok(())
    }
}

fn given_up(why: String) -> Problem {
    Problem::new(ProblemKind::NotReady, format!("nobody waits for this request any more: {why}"))
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Caller, Response> {
        let peer = parts.extensions.get::<ConnectInfo<Peer>>();
        let peer = peer.map_or(Peer(None), |ConnectInfo(peer)| peer.clone());
        let until = match parts.headers.get(DEADLINE) {
            None => None,
            Some(value) => Some(deadline(value.as_bytes()).map_err(|problem| super::api::refuse(&problem))?),
        };
        Ok(Caller { peer, until })
    }
}

fn deadline(value: &[u8]) -> Result<Duration, Problem> {
    let text = String::from_utf8_lossy(value);
    text.parse().map(Duration::from_millis).map_err(|_| {
        let message = format!("{DEADLINE} {text:?}: must be milliseconds of CLOCK_MONOTONIC");
        Problem::invalid(DEADLINE, message)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    fn caller(stream: &UnixStream, until: Option<Duration>) -> Caller {
        let socket = stream.as_fd().try_clone_to_owned().unwrap();
        Caller { peer: Peer(Some(Arc::new(socket))), until }
    }

    #[test]
    fn who_has_hung_up_does_not_wait_but_who_only_has_no_more_to_say_does() {
        let (here, there) = UnixStream::pair().unwrap();
        let caller = caller(&here, None);
        caller.waits().unwrap();
        there.shutdown(Shutdown::Write).unwrap();
        caller.waits().unwrap();
        drop(there);
        let problem = caller.waits().unwrap_err();
        assert!(problem.message.contains("has closed the connection"), "{problem}");
        caller.in_time().unwrap();
    }

    #[test]
    fn who_waited_until_a_time_that_is_over_does_not_wait_any_more() {
        let (here, _there) = UnixStream::pair().unwrap();
        let hour = Duration::from_secs(3600);
        caller(&here, Some(monotonic() + hour)).waits().unwrap();
        let late = caller(&here, Some(monotonic().saturating_sub(Duration::from_millis(1))));
        std::thread::sleep(Duration::from_millis(2));
        for refused in [late.waits(), late.in_time()] {
            let problem = refused.unwrap_err();
            assert!(problem.message.contains("its sender waited until"), "{problem}");
        }
    }

    #[test]
    fn a_deadline_is_a_number_of_milliseconds() {
        assert_eq!(deadline(b"1500").unwrap(), Duration::from_millis(1500));
        for wrong in [&b""[..], b"-1", b"1.5", b"\xff"] {
            assert_eq!(deadline(wrong).unwrap_err().field.as_deref(), Some(DEADLINE));
        }
    }
}
