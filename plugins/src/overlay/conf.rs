//! The overlay plugin's configuration, checked before anything is changed.

use crate::args::{container_mac, requested_ips};
use crate::firewall::{Backend, exceptions, masquerade_backend};
use crate::place;
use cni::Error;
use cni::request::Request;
use cni::types::AddResult;
use ipnetwork::IpNetwork;
use ovl_api::{Client, names};
use serde::Deserialize;
use std::net::IpAddr;
use std::path::PathBuf;

/// The arguments in `CNI_ARGS` that it knows, as Weft's other plugins do.
const KNOWN_ARGS: [&str; 3] = ["IP", "GATEWAY", "MAC"];

/// The keys, as configurations have them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Keys {
    network: Option<String>,
    is_default_gateway: Option<bool>,
    ip_masq: Option<bool>,
    ip_masq_backend: Option<String>,
    #[serde(rename = "nonMasqueradeCIDRs")]
    exceptions: Option<Vec<String>>,
    socket: Option<String>,
    root: Option<String>,
}

/// What a configuration asks for.
#[derive(Debug, Clone)]
pub struct Conf {
    /// The overlay network's name.
    pub network: String,
    /// The container's default route goes through the network, unless the network is internal.
    pub default_route: bool,
    /// Masquerade what the container sends beyond the network; `None`: where its default route goes through the network.
    pub masquerade: Option<bool>,
    /// Destinations to which that is not masqueraded, beside those of the network's option.
    pub exceptions: Vec<IpNetwork>,
    /// What masquerades.
    pub backend: Backend,
    /// The agent's socket.
    pub socket: PathBuf,
    /// The agent's root directory, its `--root`.
    pub root: PathBuf,
    /// Addresses that are asked for, one of a family at most.
    pub ips: Vec<IpAddr>,
    /// The hardware address that is asked for.
    pub mac: Option<[u8; 6]>,
}

fn path(key: &str, text: Option<String>, usual: impl FnOnce() -> PathBuf) -> Result<PathBuf, Error> {
    match text.filter(|text| !text.is_empty()) {
        None => Ok(usual()),
        Some(text) if text.starts_with('/') => Ok(text.into()),
        Some(text) => Err(Error::config(key, format!("{text:?}"), "an absolute path")),
    }
}

fn socket() -> PathBuf {
    names::socket(&place::run())
}

/// One address of a family at most.
fn one_of_a_family(ips: Vec<IpAddr>) -> Result<Vec<IpAddr>, Error> {
    for v4 in [true, false] {
        let same: Vec<_> = ips.iter().filter(|ip| ip.is_ipv4() == v4).map(ToString::to_string).collect();
        if same.len() > 1 {
            return Err(Error::config("ips", same.join(", "), "one IPv4 and one IPv6 address at most"));
        }
    }
    Ok(ips)
}

impl Conf {
    /// Reads the configuration.
    ///
    /// # Errors
    /// Code 7 for a wrong value, code 4 for wrong `CNI_ARGS`.
    pub fn of(request: &Request) -> Result<Conf, Error> {
        let keys: Keys = request.conf.parse()?;
        request.args.only(&KNOWN_ARGS)?;
        if request.conf.ipam.as_ref().is_some_and(|ipam| !ipam.is_empty()) {
            let kind = format!("of type {:?}", request.conf.ipam_kind().unwrap_or_default());
            return Err(Error::config("ipam", kind, "none: the overlay agent gives the addresses"));
        }
        let network = keys.network.filter(|name| !name.is_empty());
        let network = network.unwrap_or_else(|| request.conf.name.clone());
        cni::validate::network_name(&network)
            .map_err(|error| Error::config("network", format!("{network:?}"), error))?;
        Ok(Conf {
            network,
            default_route: keys.is_default_gateway != Some(false),
            masquerade: keys.ip_masq,
            exceptions: exceptions(keys.exceptions.as_deref().unwrap_or_default())?,
            backend: masquerade_backend(keys.ip_masq_backend.as_deref())?,
            socket: path("socket", keys.socket, socket)?,
            root: path("root", keys.root, place::root)?,
            ips: one_of_a_family(requested_ips(request)?)?,
            mac: container_mac(request)?,
        })
    }

    /// For DEL, which goes on with what can be read.
    pub fn lenient(request: &Request) -> Conf {
        Conf::of(request).unwrap_or_else(|error| {
            eprintln!("overlay: DEL goes on without reading the whole configuration: {error}");
            let text =
                |key: &str| request.conf.get::<String>(key).ok().flatten().filter(|text| !text.is_empty());
            Conf {
                network: text("network").unwrap_or_else(|| request.conf.name.clone()),
                default_route: true,
                masquerade: None,
                exceptions: Vec::new(),
                backend: Backend::Auto,
                socket: path("socket", text("socket"), socket).unwrap_or_else(|_| socket()),
                root: path("root", text("root"), place::root).unwrap_or_else(|_| place::root()),
                ips: Vec::new(),
                mac: None,
            }
        })
    }

    /// The agent.
    pub fn client(&self) -> Client {
        Client::new(&*self.socket)
    }

    /// Whether an attachment with this result is masqueraded: what is not configured follows from its default route. Without
    /// a result it may be.
    pub fn masquerades(&self, result: Option<&AddResult>) -> bool {
        let has_default = |result: &AddResult| result.routes.iter().any(|route| route.dst.prefix() == 0);
        self.masquerade.unwrap_or_else(|| result.is_none_or(has_default))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::request::{Args, Command};
    use serde_json::{Value, json};

    fn read(keys: Value, args: &str) -> Result<Conf, Error> {
        let mut conf = json!({"name": "web", "type": "overlay"});
        for (key, value) in keys.as_object().unwrap() {
            conf[key] = value.clone();
        }
        Conf::of(&request(conf, args))
    }

    fn request(conf: Value, args: &str) -> Request {
        Request {
            command: Command::Add,
            container_id: "c".into(),
            netns: None,
            ifname: "eth0".into(),
            args: Args::parse(args),
            path: Vec::new(),
            conf: cni::config::NetConf::from_value(conf).unwrap(),
            netns_override: false,
        }
    }

    #[test]
    fn without_keys_the_network_has_the_conflists_name() {
        let conf = read(json!({}), "").unwrap();
        assert_eq!((conf.network.as_str(), conf.masquerade), ("web", None));
        let conf = read(json!({"network": "ov", "ipMasq": false, "ipam": {}}), "").unwrap();
        assert_eq!((conf.network.as_str(), conf.masquerade), ("ov", Some(false)));
        assert!(conf.default_route && !read(json!({"isDefaultGateway": false}), "").unwrap().default_route);
    }

    #[test]
    fn addresses_and_mac_come_from_every_place() {
        let conf = json!({"runtimeConfig": {"ips": ["10.42.0.7/16"], "mac": "02:00:00:00:00:07"}});
        let conf = read(conf, "IP=fd00::7;MAC=02:00:00:00:00:08").unwrap();
        assert_eq!(conf.ips, ["fd00::7".parse::<IpAddr>().unwrap(), "10.42.0.7".parse().unwrap()]);
        assert_eq!(conf.mac, Some([2, 0, 0, 0, 0, 7]));
        let conf =
            read(json!({"args": {"cni": {"ips": ["10.42.0.7"], "mac": "02:00:00:00:00:09"}}}), "").unwrap();
        assert_eq!((conf.ips.len(), conf.mac), (1, Some([2, 0, 0, 0, 0, 9])));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (keys, args, code, named) in [
            (json!({"network": 7}), "", 7, "network"),
            (json!({"network": "a b"}), "", 7, "network"),
            (json!({"ipMasq": "yes"}), "", 7, "ipMasq"),
            (json!({"isDefaultGateway": 1}), "", 7, "isDefaultGateway"),
            (json!({"ipMasqBackend": "ebtables"}), "", 7, "ipMasqBackend"),
            (json!({"nonMasqueradeCIDRs": "10.0.0.0/8"}), "", 7, "nonMasqueradeCIDRs"),
            (
                json!({"nonMasqueradeCIDRs": ["fd00::/8", "10.0.0.1/8"]}),
                "",
                7,
                "nonMasqueradeCIDRs is \"10.0.0.1/8\"",
            ),
            (json!({"socket": "run/x.sock"}), "", 7, "socket"),
            (json!({"root": {}}), "", 7, "root"),
            (json!({"ipam": {"type": "host-local"}}), "", 7, "ipam"),
            (json!({"runtimeConfig": {"ips": ["10.1.0.1", "10.1.0.2"]}}), "", 7, "10.1.0.1, 10.1.0.2"),
            (json!({"runtimeConfig": {"ips": ["10.1.0"]}}), "", 7, "runtimeConfig.ips"),
            (json!({"runtimeConfig": {"mac": "01:00:00:00:00:01"}}), "", 7, "runtimeConfig.mac"),
            (json!({}), "IP=x", 4, "CNI_ARGS"),
            (json!({}), "FOO=x", 4, "FOO"),
        ] {
            let error = read(keys.clone(), args).unwrap_err();
            assert!(error.code == code && error.to_string().contains(named), "{keys}: {error}");
        }
    }

    #[test]
    fn del_takes_what_can_be_read() {
        let wrong = json!({"name": "web", "type": "overlay", "network": "ov", "socket": 5, "root": "/r", "ipMasq": 3});
        let conf = Conf::lenient(&request(wrong, "FOO=1"));
        assert_eq!((conf.network.as_str(), conf.root.to_str()), ("ov", Some("/r")));
        assert_eq!(conf.socket, socket());
        assert!(conf.masquerades(None) && !conf.masquerades(Some(&AddResult::default())));
    }
}
