//! What systemd is told (sd_notify(3)); nothing happens where it does not ask.

use sd_notify::NotifyState;
use std::time::Duration;

/// The agent is ready, with a sentence about how.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A sentence about how the agent is.
pub fn status(status: &str) {
    send(&[NotifyState::Status(status)]);
}

/// The agent ends.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// The agent is alive.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// How often [`alive`] is to be said: half of what systemd allows, so that one may be late.
pub fn alive_every() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("systemd cannot be told: {error}");
    }
}
