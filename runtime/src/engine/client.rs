//! A client of attach.sock: this process's standard input, output, signals and window joined to a container's.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use super::wire::{self, Frame};
use super::{Interact, tty};

/// Signals that are passed on; the others keep their meaning for this process.
const PASSED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
];

/// Ctrl-P Ctrl-Q, which leaves a container that goes on, as in Docker.
const DETACH: [u8; 2] = [0x10, 0x11];

/// How an attachment ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The container's process ended with this code.
    Exit(i32),
    /// The user left.
    Detached,
    /// The supervisor is gone without a word.
    Lost,
    /// Nobody reads this process's output any more.
    Unread,
}

/// A client that waits for the end of the container's process and wants no output.
pub struct Waiter(UnixStream);

impl Waiter {
    /// Reaches the supervisor.
    pub fn new(run_dir: &Path) -> io::Result<Self> {
        let stream = wire::connect(run_dir)?;
        Frame::Hello { output: false, rows: 0, columns: 0 }.write(&stream)?;
        Ok(Self(stream))
    }

    /// Waits.
    pub fn wait(self) -> End {
        loop {
            match Frame::read(&self.0) {
                Ok(Some(Frame::Exit(code))) => return End::Exit(code),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return End::Lost,
            }
        }
    }

    /// Waits for so long at most: whether it has ended is to be looked at then.
    pub fn wait_at_most(self, patience: Duration) {
        if self.0.set_read_timeout(Some(patience)).is_ok() {
            let _ = self.wait();
        }
    }

    /// What it waits on, readable at the end.
    pub fn socket(&self) -> &UnixStream {
        &self.0
    }
}

/// The first frame of a client that wants output.
pub fn hello() -> Frame {
    let (rows, columns) = tty::size();
    Frame::Hello { output: true, rows, columns }
}

/// Blocks the signals that are to be passed on, so that none is lost before somebody waits for them. To be called before
/// any thread is made.
pub fn hold_signals(io: Interact) -> Result<SigSet> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGWINCH);
    if io.sig_proxy {
        PASSED.into_iter().for_each(|signal| set.add(signal));
    }
    set.thread_block().context("cannot hold signals back")?;
    Ok(set)
}

/// Joins this process to a container whose attachment `stream` has been greeted already, until either ends.
pub fn join(stream: UnixStream, run_dir: &Path, io: Interact, has_tty: bool, held: SigSet) -> Result<End> {
    let raw = if has_tty && io.stdin { tty::Raw::new()? } else { None };
    let (ends, ended) = std::sync::mpsc::channel();
    if io.stdin {
        let stream = stream.try_clone()?;
        let ends = ends.clone();
        let keys = raw.is_some();
        std::thread::spawn(move || {
            if send_input(&stream, keys) {
                let _ = ends.send(End::Detached);
            }
        });
    }
    // Of its own, so that a signal passes input that the container does not read.
    let control: PathBuf = run_dir.to_owned();
    std::thread::spawn(move || {
        let _ = send_signals(&control, &held);
    });
    std::thread::spawn(move || {
        let _ = ends.send(show(&stream));
    });
    let end = ended.recv().unwrap_or(End::Lost);
    drop(raw);
    let _ = held.thread_unblock();
    Ok(end)
}

/// Passes input on; true when the user leaves.
fn send_input(stream: &UnixStream, keys: bool) -> bool {
    let mut buffer = [0; 16 * 1024];
    let mut half = false;
    loop {
        let size = match io::stdin().lock().read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => break,
            Ok(size) => size,
        };
        let (bytes, leaves) = match keys {
            true => without_detach(&buffer[..size], &mut half),
            false => (buffer[..size].to_vec(), false),
        };
        if leaves {
            return true;
        }
        if Frame::Input(bytes).write(stream).is_err() {
            return false;
        }
    }
    let _ = Frame::InputEnd.write(stream);
    false
}

/// Takes the keys for leaving out of the input; `half` is whether the first of them was the last byte before.
fn without_detach(bytes: &[u8], half: &mut bool) -> (Vec<u8>, bool) {
    let mut out = Vec::with_capacity(bytes.len() + 1);
    for &byte in bytes {
        match (std::mem::take(half), byte) {
            (true, key) if key == DETACH[1] => return (out, true),
            (had, key) => {
                if had {
                    out.push(DETACH[0]);
                }
                if key == DETACH[0] {
                    *half = true;
                } else {
                    out.push(key);
                }
            }
        }
    }
    (out, false)
}

fn send_signals(run_dir: &Path, held: &SigSet) -> Result<()> {
    let mut control = None;
    loop {
        let signal = held.wait()?;
        let frame = match signal {
            Signal::SIGWINCH => {
                let (rows, columns) = tty::size();
                Frame::Resize { rows, columns }
            }
            signal => Frame::Signal(signal as i32),
        };
        if control.is_none() {
            control = Some(Waiter::new(run_dir)?);
        }
        if let Some(control) = &control {
            frame.write(control.socket())?;
        }
    }
}

/// Shows the container's output until its end.
fn show(stream: &UnixStream) -> End {
    let mut reader = io::BufReader::new(stream);
    loop {
        let frame = match Frame::read(&mut reader) {
            Ok(Some(frame)) => frame,
            Ok(None) | Err(_) => return End::Lost,
        };
        let shown = match frame {
            Frame::Output(bytes) => put(io::stdout().lock(), &bytes),
            Frame::Errors(bytes) => put(io::stderr().lock(), &bytes),
            Frame::Exit(code) => return End::Exit(code),
            _ => Ok(()),
        };
        // Whoever read our output has gone, and a pipeline waits for us; the container goes on, as with Docker.
        if shown.is_err_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
            return End::Unread;
        }
    }
}

fn put(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_for_leaving_are_taken_out_and_half_of_them_passed_on() {
        let mut half = false;
        assert_eq!(without_detach(b"a\x10", &mut half), (b"a".to_vec(), false));
        assert_eq!(without_detach(b"b", &mut half), (b"\x10b".to_vec(), false));
        assert_eq!(without_detach(b"c\x10\x11d", &mut half), (b"c".to_vec(), true));
        assert_eq!(without_detach(b"\x10\x10\x11", &mut half), (b"\x10".to_vec(), true));
    }
}
