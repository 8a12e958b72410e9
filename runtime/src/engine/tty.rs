//! This process's own terminal: raw while a container has it, and as before afterwards, however this process ends.

use std::io::{IsTerminal, stdin, stdout};
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::sys;

/// The terminal in raw mode; dropping it gives it back.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes the terminal of standard input raw; none when it is no terminal.
    pub fn new() -> Result<Option<Self>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSANOW, &raw).context("cannot make the terminal raw")?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

/// The window size (rows, columns) of the terminal; zeros when there is none.
pub fn size() -> (u16, u16) {
    let sizes = [sys::window_size(stdout().as_fd()), sys::window_size(stdin().as_fd())];
    sizes.into_iter().flatten().next().unwrap_or_default()
}

/// The same, if it is known.
pub fn known_size() -> Option<(u16, u16)> {
    Some(size()).filter(|(rows, columns)| *rows > 0 && *columns > 0)
}

/// Refuses what Docker refuses: a terminal for the container, fed from something that is none.
pub fn check(tty: bool, stdin_wanted: bool) -> Result<()> {
    if tty && stdin_wanted && !stdin().is_terminal() {
        bail!("the input device is not a TTY");
    }
    Ok(())
}
