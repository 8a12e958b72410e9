//! Signals by name and number.

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

/// The largest signal number of Linux.
const LAST: i32 = 64;

/// Reads `SIGTERM`, `term`, `15`, `RTMIN+3`.
///
/// # Errors
/// Says what is allowed.
pub fn parse(flag: &str, text: &str) -> Result<i32> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let number = name.parse().ok().filter(|number| (1..=LAST).contains(number));
    let named = || format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32);
    let real_time = || {
        let (base, offset, sign) = if let Some(offset) = name.strip_prefix("RTMIN") {
            (libc::SIGRTMIN(), offset, '+')
        } else {
            (libc::SIGRTMAX(), name.strip_prefix("RTMAX")?, '-')
        };
        let offset: i32 = if offset.is_empty() { 0 } else { offset.strip_prefix(sign)?.parse().ok()? };
        let number = if sign == '+' { base + offset } else { base - offset };
        (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number).then_some(number)
    };
    number.or_else(named).or_else(real_time).with_context(|| {
        format!("{flag} {text:?}: allowed is a name like SIGTERM or a number from 1 to {LAST}")
    })
}

/// A signal's name, or its number where it has none.
pub fn name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_in_every_form() {
        for (text, number) in [("SIGTERM", 15), ("term", 15), ("9", 9), ("sigusr1", 10), ("64", 64)] {
            assert_eq!(parse("--signal", text).unwrap(), number, "{text}");
        }
        assert_eq!(parse("--signal", "RTMIN+1").unwrap(), libc::SIGRTMIN() + 1);
        assert_eq!(parse("--signal", "SIGRTMAX").unwrap(), libc::SIGRTMAX());
        for text in ["", "0", "65", "TERMINATE", "RTMIN-1", "RTMIN+99"] {
            assert!(parse("--signal", text).unwrap_err().to_string().contains(&format!("{text:?}")));
        }
        assert_eq!((name(15).as_str(), name(40).as_str()), ("SIGTERM", "40"));
    }
}
