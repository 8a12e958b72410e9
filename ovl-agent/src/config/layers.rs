//! Where settings come from: file, variables and flags, in that rising order. A value keeps where it came from, so that an
//! error can say it.

use super::ConfigError;
use crate::args::{Global, RunArgs};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file that is read when none is named, if it is there.
pub const DEFAULT_FILE: &str = "/etc/weft/ovl-agent.toml";
/// All keys of the file; the flag is `--KEY`, the variable `WEFT_KEY`.
pub const KEYS: [&str; 20] = [
    "root",
    "run",
    "node-name",
    "interface",
    "advertise",
    "take-over",
    "port",
    "no-forward-accept",
    "etcd",
    "etcd-prefix",
    "etcd-ca",
    "etcd-cert",
    "etcd-key",
    "etcd-server-name",
    "etcd-user",
    "etcd-password-file",
    "allow-store-from-containers",
    "metrics-listen",
    "log",
    "log-format",
];

/// Those whose values are true and false.
const SWITCHES: [&str; 3] = ["take-over", "no-forward-accept", "allow-store-from-containers"];

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// As text; lists parted by commas.
    pub text: String,
    /// `--port`, `WEFT_PORT`, `port in FILE`.
    pub origin: String,
}

impl Value {
    /// It is not allowed; this is.
    pub fn wrong(&self, allowed: impl std::fmt::Display) -> ConfigError {
        ConfigError(format!("{} {:?}: {allowed}", self.origin, self.text))
    }
}

/// The settings that were given, by key.
#[derive(Debug, Default)]
pub struct Layers(BTreeMap<&'static str, Value>);

impl Layers {
    /// All layers, one over the other.
    ///
    /// # Errors
    /// A file that is named but cannot be read, is not TOML, has a key that is none, or a value of the wrong type.
    pub fn read(
        global: &Global,
        run: &RunArgs,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Layers, ConfigError> {
        let mut layers = Layers::default();
        let named = global.config.clone().or_else(|| env("WEFT_AGENT_CONFIG").map(PathBuf::from));
        match named {
            Some(file) => layers.add_file(&file)?,
            None if Path::new(DEFAULT_FILE).exists() => layers.add_file(Path::new(DEFAULT_FILE))?,
            None => {}
        }
        for key in KEYS {
            let variable = variable(key);
            // A variable that is set to nothing is not set.
            if let Some(text) = env(&variable).filter(|text| !text.is_empty()) {
                layers.0.insert(key, Value { text, origin: variable });
            }
        }
        for (key, flag) in flags(global, run) {
            if let Some(text) = flag {
                layers.0.insert(key, Value { text: text.clone(), origin: format!("--{key}") });
            }
        }
        Ok(layers)
    }

    /// A setting, when it was given.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    fn add_file(&mut self, file: &Path) -> Result<(), ConfigError> {
        let shown = file.display();
        let text = base::file::read_text(file)
            .map_err(|error| ConfigError(format!("configuration file {shown}: {error}")))?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            ConfigError(format!("configuration file {shown}, line {line}: {}", error.message()))
        })?;
        for (name, value) in table {
            let Some(key) = KEYS.into_iter().find(|key| *key == name) else {
                let why = if name == "etcd-password" {
                    "a password does not stand here; name a file with etcd-password-file".to_owned()
                } else {
                    format!("there is no such key; keys are {}", KEYS.join(", "))
                };
                return Err(ConfigError(format!("{name:?} in {shown}: {why}")));
            };
            let switch = value.as_bool().filter(|_| SWITCHES.contains(&key));
            let text = switch.map(|value| value.to_string());
            let text = text.or_else(|| scalar(&value)).or_else(|| list(&value)).ok_or_else(|| {
                let allowed = match key {
                    "etcd" => "a string or a list of strings",
                    switch if SWITCHES.contains(&switch) => "true or false",
                    _ => "a string",
                };
                ConfigError(format!("{key} in {shown}: a {}; it must be {allowed}", value.type_str()))
            })?;
            self.0.insert(key, Value { text, origin: format!("{key} in {shown}") });
        }
        Ok(())
    }
}

/// The variable of a key.
fn variable(key: &str) -> String {
    format!("WEFT_{}", key.to_uppercase().replace('-', "_"))
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

fn list(value: &toml::Value) -> Option<String> {
    let items = value.as_array()?.iter().map(|item| item.as_str());
    items.collect::<Option<Vec<_>>>().map(|items| items.join(","))
}

fn flags<'a>(global: &'a Global, run: &'a RunArgs) -> [(&'static str, &'a Option<String>); KEYS.len()] {
    [
        ("root", &global.root),
        ("run", &global.run),
        ("node-name", &run.node_name),
        ("interface", &run.interface),
        ("advertise", &run.advertise),
        ("take-over", &run.take_over),
        ("port", &run.port),
        ("no-forward-accept", &run.no_forward_accept),
        ("etcd", &run.etcd),
        ("etcd-prefix", &run.etcd_prefix),
        ("etcd-ca", &run.etcd_ca),
        ("etcd-cert", &run.etcd_cert),
        ("etcd-key", &run.etcd_key),
        ("etcd-server-name", &run.etcd_server_name),
        ("etcd-user", &run.etcd_user),
        ("etcd-password-file", &run.etcd_password_file),
        ("allow-store-from-containers", &run.allow_store_from_containers),
        ("metrics-listen", &run.metrics_listen),
        ("log", &run.log),
        ("log-format", &run.log_format),
    ]
}
