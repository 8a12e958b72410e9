//! A chain of CNI plugins, timed from the spawn of its first to the exit of its last.

use crate::space::Machine;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The plugins of one side on one machine.
#[derive(Debug, Clone)]
pub struct Chain {
    /// The directory with the executables.
    pub dir: PathBuf,
    /// Where the machine keeps its state.
    pub state: PathBuf,
    /// The plugins' configurations.
    pub plugins: Vec<Value>,
}

/// One attachment of a chain.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The container's ID.
    pub id: String,
    /// The file of its namespace.
    pub netns: PathBuf,
    /// The result of the ADD.
    pub result: Option<Value>,
}

impl Attachment {
    /// One that has not been added yet.
    pub fn new(id: &str, netns: &Path) -> Attachment {
        Attachment { id: id.to_owned(), netns: netns.to_owned(), result: None }
    }
}

impl Chain {
    /// `bridge` with `host-local`, leases in the machine's own directory.
    pub fn bridge(dir: &Path, machine: &Machine) -> Chain {
        let plugin = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "br-bench", "isGateway": true,
            "ipam": {"type": "host-local", "subnet": "10.100.0.0/16", "routes": [{"dst": "0.0.0.0/0"}],
                     "dataDir": machine.dir.join("leases")}});
        Chain { dir: dir.to_owned(), state: machine.dir.clone(), plugins: vec![plugin] }
    }

    /// The same with masquerade, and `portmap` with these host ports.
    pub fn published(dir: &Path, machine: &Machine, ports: &[u16]) -> Chain {
        let mut chain = Chain::bridge(dir, machine);
        chain.plugins[0]["ipMasq"] = json!(true);
        chain.plugins.push(json!({"cniVersion": "1.0.0", "name": "bench", "type": "portmap"}));
        chain.with_ports(ports)
    }

    /// The same with other host ports.
    pub fn with_ports(mut self, ports: &[u16]) -> Chain {
        let mappings: Vec<_> = ports
            .iter()
            .map(|port| json!({"hostPort": port, "containerPort": 80, "protocol": "tcp"}))
            .collect();
        if let Some(portmap) = self.plugins.get_mut(1) {
            portmap["capabilities"] = json!({"portMappings": true});
            portmap["runtimeConfig"] = json!({"portMappings": mappings});
        }
        self
    }

    /// A command that runs plugin `at`.
    pub fn command(&self, wrapper: &[&str], verb: &str, at: usize, attachment: &Attachment) -> Command {
        let kind = self.plugins[at]["type"].as_str().unwrap_or_default();
        let file = self.dir.join(kind);
        let mut command = match wrapper {
            [] => Command::new(file),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(file);
                command
            }
        };
        command.env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("CNI_PATH", &self.dir);
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &attachment.id).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", &attachment.netns);
        command.env("WEFT_ROOT", self.state.join("root")).env("WEFT_RUN", self.state.join("run"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command
    }

    /// The configuration of plugin `at`, as bytes.
    pub fn input(&self, at: usize, previous: Option<&Value>) -> Vec<u8> {
        let mut conf = self.plugins[at].clone();
        if let Some(previous) = previous {
            conf["prevResult"] = previous.clone();
        }
        conf.to_string().into_bytes()
    }

    fn exec(
        &self,
        verb: &str,
        at: usize,
        attachment: &Attachment,
        previous: Option<&Value>,
    ) -> Result<Vec<u8>> {
        finish(self.command(&[], verb, at, attachment), &self.input(at, previous))
            .with_context(|| format!("{verb} of {}", self.plugins[at]["type"]))
    }

    /// ADD of the whole chain: how long it took.
    pub fn add(&self, attachment: &mut Attachment) -> Result<Duration> {
        let start = Instant::now();
        for at in 0..self.plugins.len() {
            let out = self.exec("ADD", at, attachment, attachment.result.as_ref())?;
            attachment.result = Some(serde_json::from_slice(&out)?);
        }
        Ok(start.elapsed())
    }

    /// DEL of the whole chain: how long it took.
    pub fn del(&self, attachment: &Attachment) -> Result<Duration> {
        let start = Instant::now();
        for at in (0..self.plugins.len()).rev() {
            self.exec("DEL", at, attachment, attachment.result.as_ref())?;
        }
        Ok(start.elapsed())
    }
}

/// Runs a command to its end with this input: its output, or an error with it.
pub fn finish(mut command: Command, input: &[u8]) -> Result<Vec<u8>> {
    let mut child = command.spawn().with_context(|| format!("start {:?}", command.get_program()))?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input) {
            // The reference plugins do not read what comes with VERSION, and may be gone by now.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    let out = child.wait_with_output()?;
    anyhow::ensure!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stdout));
    Ok(out.stdout)
}
