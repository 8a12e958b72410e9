//! The runtime on a test's machine.

use crate::command::{self, Output, Running};
use crate::host::{Host, LIMIT};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

/// The runtime of the machine, with its default directories (all of them the machine's own).
#[derive(Debug, Clone, Copy)]
pub struct Weft<'h> {
    host: &'h Host,
}

/// A container that was started with [`Weft::container`].
#[derive(Debug)]
pub struct Container<'h> {
    weft: Weft<'h>,
    /// Its name.
    pub name: String,
    /// The ID that `run -d` printed.
    pub id: String,
}

impl Host {
    /// The runtime on this machine.
    pub fn weft(&self) -> Weft<'_> {
        Weft { host: self }
    }
}

impl<'h> Weft<'h> {
    /// A command of the runtime whose environment can still be changed. Words are separated by white space; what is
    /// between single quotes is kept together.
    pub fn command(&self, line: &str) -> Command {
        let words = words(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = self.host.command(crate::dist().join("bin/runtime"), &words);
        command.env("CNI_PATH", crate::weft_cni());
        command
    }

    /// Runs the runtime to its end.
    #[track_caller]
    pub fn run(&self, line: &str) -> Output {
        command::run(self.command(line), &format!("runtime {line}"), b"", LIMIT)
    }

    /// Runs the runtime to its end, with something to read.
    #[track_caller]
    pub fn run_with(&self, line: &str, stdin: &[u8]) -> Output {
        command::run(self.command(line), &format!("runtime {line}"), stdin, LIMIT)
    }

    /// Starts the runtime in the background.
    #[track_caller]
    pub fn spawn(&self, line: &str) -> Running {
        Running::start(self.command(line), &format!("runtime {line}"))
    }

    /// `run -d --name NAME …`: a container in the background.
    #[track_caller]
    pub fn container(&self, name: &str, line: &str) -> Container<'h> {
        let out = self.run(&format!("run -d --name {name} {line}")).ok();
        let id = out.text().to_owned();
        assert!(id.len() == 64 && id.bytes().all(|c| c.is_ascii_hexdigit()), "`run -d` prints the ID: {out}");
        Container { weft: *self, name: name.to_owned(), id }
    }

    /// `run -d` with the traffic helper's directory at `/traffic` in the container.
    #[track_caller]
    pub fn traffic_container(&self, name: &str, options: &str, command: &str) -> Container<'h> {
        let volume = traffic_volume();
        self.container(name, &format!("{volume} {options} /traffic/weft-traffic {command}"))
    }
}

/// The option that brings the traffic helper into a container, at `/traffic`.
pub(crate) fn traffic_volume() -> String {
    let helper = crate::traffic();
    let dir = helper.parent().unwrap_or(&helper).to_owned();
    format!("-v {}:/traffic:ro", dir.display())
}

/// Splits a line into words as a shell does that knows single quotes alone.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let (mut in_word, mut quoted) = (false, false);
    for c in line.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                if !in_word {
                    words.push(String::new());
                    in_word = true;
                }
            }
            c if c.is_whitespace() && !quoted => in_word = false,
            c => {
                if !in_word {
                    words.push(String::new());
                    in_word = true;
                }
                if let Some(word) = words.last_mut() {
                    word.push(c);
                }
            }
        }
    }
    words
}

impl Container<'_> {
    /// `runtime inspect`, the container's object.
    #[track_caller]
    pub fn inspect(&self) -> Value {
        let all = self.weft.run(&format!("inspect {}", self.name)).ok().json();
        all.get(0).cloned().unwrap_or_else(|| panic!("inspect prints a list: {all}"))
    }

    /// Runs a line of shell in the container.
    #[track_caller]
    pub fn sh(&self, line: &str) -> Output {
        let mut command = self.weft.command(&format!("exec {} /bin/sh -c", self.name));
        command.arg(line);
        command::run(command, &format!("runtime exec {} sh -c '{line}'", self.name), b"", LIMIT)
    }

    /// Its first IPv4 address on its first interface.
    #[track_caller]
    pub fn address(&self) -> String {
        self.an_address("-4")
    }

    /// Its first global IPv6 address on its first interface.
    #[track_caller]
    pub fn address6(&self) -> String {
        self.an_address("-6")
    }

    #[track_caller]
    fn an_address(&self, family: &str) -> String {
        let out = self.sh(&format!("ip -j {family} addr show scope global")).ok();
        let links = out.json();
        let all = links.as_array().into_iter().flatten();
        let mut found = all.flat_map(|link| link["addr_info"].as_array().into_iter().flatten());
        let local = found.find_map(|address| address["local"].as_str());
        local.map(str::to_owned).unwrap_or_else(|| panic!("{} has no {family} address: {links}", self.name))
    }

    /// Waits until something listens on TCP port `port` in the container.
    ///
    /// # Panics
    /// When nothing does within ten seconds.
    #[track_caller]
    pub fn until_listening(&self, port: u16) {
        let start = Instant::now();
        loop {
            let out = self.sh(&format!("ss -Htnl sport = :{port}; ss -Hunl sport = :{port}"));
            if out.code == 0 && !out.text().is_empty() {
                return;
            }
            let logs = || self.weft.run(&format!("logs {}", self.name)).stdout;
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "nothing listens on {port}: {out}\nlogs: {}",
                logs()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `rm -f`.
    #[track_caller]
    pub fn remove(&self) {
        self.weft.run(&format!("rm -f {}", self.name)).ok();
    }

    /// The PID of its process, as the machine sees it.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let about = self.inspect();
        let pid = about["State"]["Pid"].as_u64().unwrap_or(0);
        assert!(pid > 0, "a running container has a PID: {}", about["State"]);
        pid as u32
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn quotes_keep_words_together() {
        assert_eq!(words("run  sh -c 'echo a; echo b' ''"), ["run", "sh", "-c", "echo a; echo b", ""]);
    }
}
