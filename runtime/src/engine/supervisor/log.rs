//! The container's log as Docker's json-file driver writes it: a JSON object a line with `log`, `stream` and `time`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

/// A line longer than this is written in pieces, as Docker does, in bytes.
const LONGEST: usize = 16 * 1024;

/// One entry.
#[derive(Serialize)]
struct Entry<'a> {
    log: &'a str,
    stream: &'a str,
    time: &'a str,
}

/// The file, opened for appending.
pub struct Log(File);

impl Log {
    /// Opens or makes it.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(OpenOptions::new().append(true).create(true).open(path)?))
    }

    fn write(&mut self, stream: &str, lines: &[&[u8]]) -> io::Result<()> {
        let time = crate::state::now();
        let mut bytes = Vec::new();
        for line in lines {
            let log = String::from_utf8_lossy(line);
            serde_json::to_writer(&mut bytes, &Entry { log: &log, stream, time: &time })?;
            bytes.push(b'\n');
        }
        self.0.write_all(&bytes)
    }
}

/// What has come of one stream since its last whole line.
pub struct Lines {
    stream: &'static str,
    pending: Vec<u8>,
}

impl Lines {
    /// Nothing yet of this stream.
    pub fn new(stream: &'static str) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Takes output; writes the lines that are whole.
    pub fn push(&mut self, bytes: &[u8], log: &mut Log) -> io::Result<()> {
        self.pending.extend_from_slice(bytes);
        let mut lines = Vec::new();
        let mut rest = self.pending.as_slice();
        loop {
            let window = &rest[..rest.len().min(LONGEST)];
            let end = match window.iter().position(|b| *b == b'\n') {
                Some(at) => at + 1,
                None if rest.len() >= LONGEST => whole_characters(window),
                None => break,
            };
            let (line, after) = rest.split_at(end);
            lines.push(line);
            rest = after;
        }
        let written = if lines.is_empty() { Ok(()) } else { log.write(self.stream, &lines) };
        self.pending = rest.to_vec();
        written
    }

    /// Writes what is left when the stream has ended.
    pub fn finish(&mut self, log: &mut Log) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() { Ok(()) } else { log.write(self.stream, &[&pending]) }
    }
}

/// How much of the bytes to take without cutting a character of UTF-8 in two.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(e) if e.error_len().is_none() && e.valid_up_to() > 0 => e.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn logged(pieces: &[&[u8]]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        let mut log = Log::open(&path).unwrap();
        let mut lines = Lines::new("stdout");
        for piece in pieces {
            lines.push(piece, &mut log).unwrap();
        }
        lines.finish(&mut log).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        text.lines()
            .map(|line| {
                let entry: Value = serde_json::from_str(line).unwrap();
                assert_eq!(entry["stream"], "stdout");
                assert!(entry["time"].as_str().unwrap().ends_with('Z'));
                entry["log"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    #[test]
    fn lines_are_entries_however_they_arrive() {
        assert_eq!(logged(&[b"a\nb", b"c\n", b"d"]), ["a\n", "bc\n", "d"]);
        assert_eq!(logged(&[b""]), Vec::<String>::new());
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let long = "\u{e9}".repeat(LONGEST);
        let entries = logged(&[b"x", long.as_bytes(), b"\n"]);
        assert!(entries.len() == 3 && entries.iter().all(|e| !e.contains('\u{fffd}')));
        assert_eq!(entries.concat(), format!("x{long}\n"));
    }
}
