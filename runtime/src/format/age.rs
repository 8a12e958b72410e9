//! Spans of time in Docker's words: "About a minute ago", "Up 3 hours".

use std::time::Duration;

/// A span in one unit, rounded down: "Less than a second", "5 seconds", "About a minute", "3 weeks".
pub fn human(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if days < 14 => format!("{days} days"),
        () if days < 60 => format!("{} weeks", days / 7),
        () if days < 730 => format!("{} months", days / 30),
        () => format!("{} years", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_as_dockers_do() {
        let said = |seconds| human(Duration::from_secs(seconds));
        let day = 86_400;
        assert_eq!(said(0), "Less than a second");
        assert_eq!(said(1), "1 second");
        assert_eq!(said(59), "59 seconds");
        assert_eq!(said(61), "About a minute");
        assert_eq!(said(150), "2 minutes");
        assert_eq!(said(3700), "About an hour");
        assert_eq!(said(47 * 3600), "47 hours");
        assert_eq!(said(3 * day), "3 days");
        assert_eq!(said(21 * day), "3 weeks");
        assert_eq!(said(90 * day), "3 months");
        assert_eq!(said(800 * day), "2 years");
    }
}
