//! CNI executables driven by hand, as a container runtime would: environment, standard input, prevResult.

use crate::command::{self, Output};
use crate::host::{Host, LIMIT};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A list of plugins for one attachment. Change the public fields at will; all verbs use them as they are then.
#[derive(Debug, Clone)]
pub struct Chain<'h> {
    host: &'h Host,
    /// The directory with the executables.
    pub dir: PathBuf,
    /// The network's name.
    pub name: String,
    /// `cniVersion`; `None` leaves the key out.
    pub version: Option<String>,
    /// The plugins' configurations, without name and version. The key `exec` names an executable other than `type`.
    pub plugins: Vec<Value>,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_NETNS`; `None` leaves it out.
    pub netns: Option<String>,
    /// `CNI_ARGS`.
    pub args: String,
    /// What the runtime can do: each plugin gets those of its declared capabilities as `runtimeConfig`.
    pub runtime: Value,
    /// More of the environment.
    pub env: Vec<(String, String)>,
}

/// A plugin of a chain that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Which plugin of the chain, from 0.
    pub at: usize,
    /// What it answered.
    pub output: Output,
}

impl Host {
    /// A chain of the executables in `dir` for the namespace `netns`.
    pub fn cni(&self, dir: &Path, netns: &str, plugins: Vec<Value>) -> Chain<'_> {
        Chain {
            host: self,
            dir: dir.to_owned(),
            name: "testnet".to_owned(),
            version: Some("1.0.0".to_owned()),
            plugins,
            container: "c1".to_owned(),
            ifname: "eth0".to_owned(),
            netns: Some(netns.to_owned()),
            args: String::new(),
            runtime: json!({}),
            env: Vec::new(),
        }
    }

    /// Runs one executable with exactly this environment (besides PATH and CNI_PATH) and input.
    #[track_caller]
    pub fn cni_raw(&self, executable: &Path, env: &[(&str, &str)], stdin: &[u8]) -> Output {
        let mut command = self.command(executable, &[]);
        let dir = executable.parent().unwrap_or(Path::new("/"));
        command.env("CNI_PATH", dir).envs(env.iter().copied());
        let verb = env.iter().find(|(key, _)| *key == "CNI_COMMAND").map_or("", |(_, verb)| verb);
        command::run(command, &format!("{verb} {}", executable.display()), stdin, LIMIT)
    }
}

impl Chain<'_> {
    /// The same for another container in another namespace.
    pub fn of(&self, container: &str, netns: &str) -> Self {
        Chain { container: container.to_owned(), netns: Some(netns.to_owned()), ..self.clone() }
    }

    /// The configuration that plugin `at` gets on standard input.
    pub fn conf(&self, at: usize, previous: Option<&Value>) -> Value {
        let mut conf = self.plugins[at].clone();
        let Some(keys) = conf.as_object_mut() else {
            panic!("a plugin's configuration is an object: {conf}")
        };
        keys.remove("exec");
        if let Some(version) = &self.version {
            keys.insert("cniVersion".into(), json!(version));
        }
        keys.insert("name".into(), json!(self.name));
        if let Some(previous) = previous {
            keys.insert("prevResult".into(), previous.clone());
        }
        let declared = keys.get("capabilities").and_then(Value::as_object).cloned().unwrap_or_default();
        let given = self.runtime.as_object().into_iter().flatten();
        let wanted = |key: &&String| declared.get(*key) == Some(&json!(true));
        let runtime: serde_json::Map<_, _> =
            given.filter(|(key, _)| wanted(key)).map(|(key, value)| (key.clone(), value.clone())).collect();
        if !runtime.is_empty() {
            keys.insert("runtimeConfig".into(), Value::Object(runtime));
        }
        conf
    }

    /// Runs one verb of plugin `at`.
    #[track_caller]
    pub fn exec(&self, verb: &str, at: usize, previous: Option<&Value>) -> Output {
        let plugin = &self.plugins[at];
        let kind = plugin.get("exec").or(plugin.get("type")).and_then(Value::as_str).unwrap_or("bridge");
        let mut env =
            vec![("CNI_COMMAND", verb), ("CNI_CONTAINERID", &self.container), ("CNI_IFNAME", &self.ifname)];
        if let Some(netns) = &self.netns {
            env.push(("CNI_NETNS", netns));
        }
        if !self.args.is_empty() {
            env.push(("CNI_ARGS", &self.args));
        }
        env.extend(self.env.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        let stdin = self.conf(at, previous).to_string();
        self.host.cni_raw(&self.dir.join(kind), &env, stdin.as_bytes())
    }

    /// ADD of the whole chain: the last result, or the first failure.
    #[track_caller]
    pub fn add(&self) -> Result<Value, Failure> {
        let mut result = None;
        for at in 0..self.plugins.len() {
            let output = self.exec("ADD", at, result.as_ref());
            if output.code != 0 {
                return Err(Failure { at, output });
            }
            result = Some(output.json());
        }
        Ok(result.unwrap_or(Value::Null))
    }

    /// ADD that must succeed.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn add_ok(&self) -> Value {
        self.add().unwrap_or_else(|failure| panic!("ADD failed at plugin {}: {}", failure.at, failure.output))
    }

    /// CHECK of the whole chain with the chain's result.
    #[track_caller]
    pub fn check(&self, result: &Value) -> Result<(), Failure> {
        for at in 0..self.plugins.len() {
            let output = self.exec("CHECK", at, Some(result));
            if output.code != 0 {
                return Err(Failure { at, output });
            }
        }
        Ok(())
    }

    /// DEL of the whole chain from its end; every plugin is asked, and the failures are returned.
    #[track_caller]
    pub fn del(&self, result: Option<&Value>) -> Vec<Failure> {
        let all = (0..self.plugins.len()).rev();
        let failed = all.map(|at| Failure { at, output: self.exec("DEL", at, result) });
        failed.filter(|failure| failure.output.code != 0).collect()
    }

    /// DEL that must succeed.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn del_ok(&self, result: Option<&Value>) {
        if let Some(failure) = self.del(result).first() {
            panic!("DEL failed at plugin {}: {}", failure.at, failure.output);
        }
    }

    /// GC of the whole chain: these attachments (container, interface) are still there.
    #[track_caller]
    pub fn gc(&self, valid: &[(&str, &str)]) -> Vec<Failure> {
        let valid: Vec<_> =
            valid.iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname})).collect();
        let mut chain = self.clone();
        for plugin in &mut chain.plugins {
            plugin["cni.dev/valid-attachments"] = json!(valid);
            plugin["cni.dev/attachments"] = json!(valid);
        }
        chain.version = Some("1.1.0".to_owned());
        (chain.netns, chain.container, chain.ifname) = (None, String::new(), String::new());
        let failed = (0..chain.plugins.len()).map(|at| Failure { at, output: chain.exec("GC", at, None) });
        failed.filter(|failure| failure.output.code != 0).collect()
    }
}
