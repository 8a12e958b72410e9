//! The log: lines on stderr, as text or as JSON, and what becomes of a panic.

use crate::config::Logging;
use std::fmt;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

/// What libraries below say is shown from this level on only.
const OTHERS: tracing::Level = tracing::Level::WARN;

/// Sets the log up for the whole process, and logs panics, which end the process: systemd starts it again, and a dead
/// agent harms less than half a one.
pub fn start(logging: Logging) {
    let ours = ["ovl_agent", "ovl_claims", "ovl_kernel", "ovl_store", "net", "ipam"];
    let filter =
        ours.iter().fold(Targets::new().with_default(OTHERS.min(logging.level)), |targets, target| {
            targets.with_target(*target, logging.level)
        });
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .event_format(Lines { json: logging.json });
    let subscriber = tracing_subscriber::registry().with(filter).with(layer);
    // Only fails when there is one already: in tests.
    let _ = tracing::subscriber::set_global_default(subscriber);
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("the agent ends, this is a defect of it: {panic}");
        std::process::abort();
    }));
}

/// A line an event.
struct Lines {
    json: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        if self.json {
            let mut line = serde_json::Map::new();
            line.insert("time".to_owned(), time.into());
            line.insert("level".to_owned(), metadata.level().as_str().to_lowercase().into());
            line.insert("target".to_owned(), metadata.target().into());
            line.insert("message".to_owned(), fields.message.into());
            line.extend(fields.others.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
            return writeln!(out, "{}", serde_json::Value::Object(line));
        }
        // One line an event, whatever is in it.
        let message = crate::table::plain(&fields.message.replace('\n', " "));
        write!(out, "{time} {:>5} {message}", metadata.level())?;
        for (name, value) in fields.others {
            write!(out, " {name}={value:?}")?;
        }
        writeln!(out)
    }
}

/// An event's message and what else it holds, as text.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" { self.message = text } else { self.others.push((field.name(), text)) }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_owned();
        } else {
            self.others.push((field.name(), value.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let layer =
            tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).event_format(Lines { json });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(network = "ov\u{1b}[0m", "route\u{1b}[2J\n\"10.42.3.0/26\" added");
        });
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn an_event_is_one_line_of_text() {
        let line = logged(false);
        assert!(
            line.ends_with("  INFO route\\u{1b}[2J \"10.42.3.0/26\" added network=\"ov\\u{1b}[0m\"\n"),
            "{line}"
        );
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn an_event_is_one_json_object() {
        let line = logged(true);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["message"], "route\u{1b}[2J\n\"10.42.3.0/26\" added");
        assert_eq!(value["level"], "info");
        assert_eq!(value["network"], "ov\u{1b}[0m");
    }
}
