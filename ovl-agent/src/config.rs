//! The settings: read from all layers, checked, and in the types that the rest works with.

mod layers;
#[cfg(test)]
mod tests;

pub use layers::{Layers, Value};

use ovl_store::target::{EtcdConf, Target};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// What is wrong with a setting: where it was given, its value, what is allowed. Never a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

type Result<T> = std::result::Result<T, ConfigError>;

/// What is logged, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logging {
    /// The least important that is shown.
    pub level: tracing::Level,
    /// A JSON object a line, for programs.
    pub json: bool,
}

/// The settings of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The agent's own directory: DIR/ovl-agent.
    pub agent_root: PathBuf,
    /// The directory of the socket.
    pub run: PathBuf,
    /// The host's name in the cluster.
    pub node_name: String,
    /// The underlay's interface, when it is not to be found.
    pub interface: Option<String>,
    /// The VTEP address, when it is not to be found.
    pub advertise: Option<IpAddr>,
    /// UDP port of VXLAN.
    pub port: u16,
    /// The name and the identity of a dead node are taken over.
    pub take_over: bool,
    /// Other programs' forward chains whose policy is drop get rules that accept the overlay's packets.
    pub forward_accept: bool,
    /// The store.
    pub store: Target,
    /// Containers of this host may connect to etcd.
    pub allow_store_from_containers: bool,
    /// Where /metrics and /healthz are served over TCP.
    pub metrics_listen: Option<SocketAddr>,
    /// The log.
    pub logging: Logging,
    /// Things that are allowed but not wise, to be logged.
    pub warnings: Vec<String>,
}

/// The directory of the socket, for commands that talk to an agent.
pub fn run_dir(layers: &Layers) -> Result<PathBuf> {
    directory(layers, "run", "/run/weft")
}

impl Config {
    /// Checks the settings. `host` is this host's name, `env` gives variables.
    ///
    /// # Errors
    /// The first one that is not allowed.
    pub fn check(layers: &Layers, host: &str, env: impl Fn(&str) -> Option<String>) -> Result<Config> {
        let agent_root = ovl_api::names::agent_root(&directory(layers, "root", "/var/lib/weft")?);
        let mut warnings = Vec::new();
        let store = match layers.get("etcd") {
            Some(value) => Target::Etcd(etcd(layers, value, env, &mut warnings)?),
            None => {
                let needs = layers::KEYS.iter().find_map(|key| {
                    key.starts_with("etcd-").then(|| layers.get(key)).flatten().map(|value| &value.origin)
                });
                if let Some(origin) = needs {
                    return Err(ConfigError(format!(
                        "{origin}: it needs the endpoints of etcd, --etcd URL,…"
                    )));
                }
                Target::Local(agent_root.join("store"))
            }
        };
        Ok(Config {
            run: run_dir(layers)?,
            node_name: node_name(layers.get("node-name"), host)?,
            interface: layers.get("interface").map(interface).transpose()?,
            advertise: layers.get("advertise").map(advertise).transpose()?,
            port: layers.get("port").map_or(Ok(ovl_api::names::VXLAN_PORT), port)?,
            take_over: layers.get("take-over").map_or(Ok(false), boolean)?,
            forward_accept: !layers.get("no-forward-accept").map_or(Ok(false), boolean)?,
            allow_store_from_containers: layers
                .get("allow-store-from-containers")
                .map_or(Ok(false), boolean)?,
            metrics_listen: layers.get("metrics-listen").map(listen).transpose()?,
            logging: logging(layers)?,
            agent_root,
            store,
            warnings,
        })
    }
}

/// The log's settings.
pub fn logging(layers: &Layers) -> Result<Logging> {
    let level = match layers.get("log").map(|value| (value, value.text.as_str())) {
        None | Some((_, "info")) => tracing::Level::INFO,
        Some((_, "error")) => tracing::Level::ERROR,
        Some((_, "warn")) => tracing::Level::WARN,
        Some((_, "debug")) => tracing::Level::DEBUG,
        Some((value, _)) => return Err(value.wrong("must be error, warn, info or debug")),
    };
    let json = match layers.get("log-format").map(|value| (value, value.text.as_str())) {
        None | Some((_, "text")) => false,
        Some((_, "json")) => true,
        Some((value, _)) => return Err(value.wrong("must be text or json")),
    };
    Ok(Logging { level, json })
}

fn directory(layers: &Layers, key: &str, default: &str) -> Result<PathBuf> {
    let Some(value) = layers.get(key) else { return Ok(PathBuf::from(default)) };
    // Also refuses the empty path.
    std::path::absolute(&value.text).map_err(|_| value.wrong("must be the path of a directory"))
}

fn node_name(value: Option<&Value>, host: &str) -> Result<String> {
    let default =
        Value { text: host.to_owned(), origin: "--node-name, by default the host name,".to_owned() };
    let value = value.unwrap_or(&default);
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let name = &value.text;
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && name.len() <= 253 && name.bytes().all(good) {
        return Ok(name.clone());
    }
    Err(value.wrong("must be 1 to 253 of a-z, A-Z, 0-9, '.', '-' and '_', the first a letter or digit"))
}

fn interface(value: &Value) -> Result<String> {
    let name = &value.text;
    let good = (1..16).contains(&name.len())
        && !matches!(name.as_str(), "." | "..")
        && !name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace());
    if good { Ok(name.clone()) } else { Err(value.wrong("must be an interface's name, 1 to 15 bytes")) }
}

fn advertise(value: &Value) -> Result<IpAddr> {
    let allowed = "must be an address of this host that other hosts reach, like 192.0.2.7 or 2001:db8::7";
    let address = value.text.parse::<IpAddr>().map_err(|_| value.wrong(allowed))?;
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local {
        return Err(value.wrong(allowed));
    }
    Ok(address)
}

fn port(value: &Value) -> Result<u16> {
    let port = value.text.parse::<u16>().ok().filter(|port| *port > 0);
    port.ok_or_else(|| value.wrong("must be a UDP port, 1 to 65535"))
}

fn boolean(value: &Value) -> Result<bool> {
    value.text.parse().map_err(|_| value.wrong("must be true or false"))
}

fn listen(value: &Value) -> Result<SocketAddr> {
    let address = value.text.parse::<SocketAddr>();
    address.map_err(|_| value.wrong("must be ADDRESS:PORT, like 127.0.0.1:9790 or [::1]:9790"))
}

fn etcd(
    layers: &Layers,
    endpoints: &Value,
    env: impl Fn(&str) -> Option<String>,
    warnings: &mut Vec<String>,
) -> Result<EtcdConf> {
    let text = |key: &str| layers.get(key).map(|value| value.text.as_str());
    let path = |key: &str| text(key).map(PathBuf::from);
    let password_file = path("etcd-password-file");
    if let Some(user) = layers.get("etcd-user").filter(|user| user.text.contains(':')) {
        // The value is not shown: there may be a password in it.
        let allowed = "must be the name of a user of etcd; the password goes into --etcd-password-file";
        return Err(ConfigError(format!("{}: {allowed}", user.origin)));
    }
    let conf = || -> ovl_store::Result<EtcdConf> {
        let mut conf = EtcdConf::new(&endpoints.text)?;
        if let Some(prefix) = text("etcd-prefix") {
            conf.prefix = prefix.to_owned();
        }
        (conf.ca, conf.cert, conf.key) = (path("etcd-ca"), path("etcd-cert"), path("etcd-key"));
        conf.server_name = text("etcd-server-name").map(str::to_owned);
        let password = env("WEFT_ETCD_PASSWORD");
        conf.set_user(text("etcd-user"), password_file.as_deref(), password.as_deref())?;
        conf.check()?;
        Ok(conf)
    };
    let conf = conf().map_err(|error| match error {
        // The store names flags; it may have been a variable or the file.
        ovl_store::Error::Setting { field, value, why } => {
            let given = layers.get(field.trim_start_matches("--"));
            let origin = given.map_or(field, |given| &given.origin);
            ConfigError(format!("{origin} {value:?}: {why}"))
        }
        other => ConfigError(other.to_string()),
    })?;
    warnings.extend(password_file.as_deref().and_then(readable_by_others));
    let plain = conf.endpoints.iter().find(|endpoint| endpoint.starts_with("http://"));
    if let (Some(endpoint), Some(_)) = (plain, &conf.user) {
        warnings.push(format!(
            "{} {endpoint}: user and password of etcd go over the network as they are; use https:// and --etcd-ca",
            endpoints.origin
        ));
    }
    Ok(conf)
}

fn readable_by_others(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0)
        .then(|| format!("the password file {} can be read by others (mode {mode:04o})", path.display()))
}
