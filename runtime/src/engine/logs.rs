//! Printing a container's log.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::Deserialize;

use super::client::Waiter;
use super::{LogOptions, release};
use crate::state::{Container, Status, rfc3339};

/// One entry of the log.
#[derive(Deserialize)]
struct Entry {
    log: String,
    stream: String,
    time: String,
}

impl Container {
    /// Prints its log: what it wrote to standard output and to standard error, each to ours.
    pub fn logs(&self, options: &LogOptions) -> Result<()> {
        let this = release::current(self)?;
        let path = self.dir().join("log.json");
        let file = match File::open(&path) {
            // It was never started.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.with_context(|| format!("cannot open {}", path.display()))?,
        };
        let mut printer = Printer::new(file, options)?;
        if !options.follow || this.state.status != Status::Running {
            return printer.print();
        }
        // Watched before it is read: nothing is missed in between.
        let changes = watch(&path)?;
        let end = Waiter::new(&self.run_dir());
        printer.print()?;
        let Ok(end) = end else { return printer.print() };
        loop {
            let mut fds = [
                PollFd::new(changes.as_fd(), PollFlags::POLLIN),
                PollFd::new(end.socket().as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other.context("poll")?,
            };
            let ended = fds[1].any().unwrap_or(true);
            let _ = changes.read_events();
            printer.print()?;
            if ended {
                return Ok(());
            }
        }
    }
}

fn watch(path: &Path) -> Result<Inotify> {
    let watch = || {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(path, AddWatchFlags::IN_MODIFY)?;
        nix::Result::Ok(inotify)
    };
    watch().with_context(|| format!("cannot watch {}", path.display()))
}

struct Printer {
    reader: BufReader<File>,
    partial: String,
    timestamps: bool,
    since: Option<String>,
    until: Option<String>,
}

impl Printer {
    fn new(mut file: File, options: &LogOptions) -> Result<Self> {
        if let Some(lines) = options.tail {
            let start = start_of_last(&mut file, lines).context("cannot read the log")?;
            file.seek(SeekFrom::Start(start)).context("cannot read the log")?;
        }
        Ok(Self {
            reader: BufReader::with_capacity(64 * 1024, file),
            partial: String::new(),
            timestamps: options.timestamps,
            // Times in the log are of one length, so they compare as texts.
            since: options.since.map(rfc3339),
            until: options.until.map(rfc3339),
        })
    }

    /// Prints what there is by now.
    fn print(&mut self) -> Result<()> {
        let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
        loop {
            self.reader.read_line(&mut self.partial).context("cannot read the log")?;
            if !self.partial.ends_with('\n') {
                break;
            }
            let line = std::mem::take(&mut self.partial);
            // The supervisor may have been killed in the middle of a line.
            let Ok(entry) = serde_json::from_str::<Entry>(&line) else { continue };
            if self.since.as_ref().is_some_and(|since| entry.time < *since)
                || self.until.as_ref().is_some_and(|until| entry.time >= *until)
            {
                continue;
            }
            let to: &mut dyn Write = if entry.stream == "stderr" { &mut err } else { &mut out };
            let printed = match self.timestamps {
                true => write!(to, "{} {}", entry.time, entry.log),
                false => write!(to, "{}", entry.log),
            };
            match printed {
                Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
                other => other.context("cannot print the log")?,
            }
        }
        let _ = out.flush();
        Ok(())
    }
}

/// Where the last `lines` lines of a file begin, read from its end.
fn start_of_last(file: &mut File, lines: usize) -> io::Result<u64> {
    let size = file.seek(SeekFrom::End(0))?;
    let mut position = size;
    let mut seen = 0;
    let mut buffer = vec![0; 64 * 1024];
    while position > 0 {
        let take = position.min(buffer.len() as u64);
        position -= take;
        file.seek(SeekFrom::Start(position))?;
        let chunk = &mut buffer[..take as usize];
        file.read_exact(chunk)?;
        for (at, byte) in chunk.iter().enumerate().rev() {
            let here = position + at as u64 + 1;
            // The newline at the very end ends the last line rather than beginning another one.
            if *byte == b'\n' && here < size {
                seen += 1;
                if seen == lines {
                    return Ok(here);
                }
            }
        }
    }
    Ok(if lines == 0 { size } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let text = (0..30_000).map(|n| format!("line {n}\n")).collect::<String>();
        std::fs::write(&path, &text).unwrap();
        let mut file = File::open(&path).unwrap();
        for lines in [0, 1, 2, 20_000, 30_000, 40_000] {
            let start = start_of_last(&mut file, lines).unwrap() as usize;
            assert_eq!(text[start..].lines().count(), lines.min(30_000), "{lines}");
        }
    }
}
