//! The options of `network create --opt`: Docker's `com.docker.network.…`, and `non-masquerade-cidrs`. Pure.

use anyhow::{Result, anyhow, bail};
use ipnetwork::IpNetwork;
use ovl_api::model;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The option of the MTU.
pub const MTU: &str = "com.docker.network.driver.mtu";
/// The option of the bridge's name.
pub const BRIDGE: &str = "com.docker.network.bridge.name";
const ICC: &str = "com.docker.network.bridge.enable_icc";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
/// The option of the start of the interfaces' names in containers.
pub const PREFIX: &str = ovl_api::names::PREFIX_OPTION;

/// The option of destinations to which nothing is masqueraded.
pub const EXCEPTIONS: &str = model::Network::EXCEPTIONS_OPTION;

/// The options that are known.
pub const KNOWN: [&str; 7] = [MTU, BRIDGE, ICC, MASQUERADE, HOST_BINDING, PREFIX, EXCEPTIONS];

/// What a container's interfaces are called when a network says nothing: `eth0`, `eth1`, …
pub const DEFAULT_PREFIX: &str = "eth";

/// What the options of a network ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Unset: the kernel's. 0: that of the link which has the host's default route.
    pub mtu: Option<u32>,
    /// The bridge's name.
    pub bridge: Option<String>,
    /// Whether containers of the network reach each other.
    pub icc: bool,
    /// Whether what leaves the host gets the host's address.
    pub masquerade: bool,
    /// Destinations to which it does not.
    pub exceptions: Vec<IpNetwork>,
    /// The host address of published ports that name none.
    pub host_binding: Option<IpAddr>,
    /// The start of the interfaces' names in containers.
    pub prefix: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            mtu: None,
            bridge: None,
            icc: true,
            masquerade: true,
            exceptions: Vec::new(),
            host_binding: None,
            prefix: None,
        }
    }
}

impl Options {
    /// Reads the options.
    ///
    /// # Errors
    /// An unknown option, or a value that it cannot have; names what is allowed.
    pub fn parse(given: &BTreeMap<String, String>) -> Result<Options> {
        let mut options = Options::default();
        for (key, value) in given {
            let bad = |allowed: &str| anyhow!("--opt {key}={value}: allowed is {allowed}");
            match key.as_str() {
                MTU => {
                    let mtu = value.parse().ok().filter(|mtu| *mtu == 0 || (68..=65_535).contains(mtu));
                    options.mtu = Some(mtu.ok_or_else(|| bad("68 to 65535, or 0 for the default route's"))?);
                }
                BRIDGE => {
                    cni::validate::ifname(value).map_err(|error| anyhow!("--opt {key}={value}: {error}"))?;
                    if value == "lo" {
                        return Err(bad("the name of a bridge; lo is the loopback interface"));
                    }
                    options.bridge = Some(value.clone());
                }
                ICC => options.icc = flag(value).ok_or_else(|| bad("true or false"))?,
                MASQUERADE => options.masquerade = flag(value).ok_or_else(|| bad("true or false"))?,
                EXCEPTIONS => {
                    let parsed = model::parse_exceptions(value.split(','));
                    options.exceptions = parsed.map_err(|bad| anyhow!("--opt {key}={value}: {bad}"))?;
                }
                HOST_BINDING => {
                    let ip = value.parse().ok().filter(IpAddr::is_ipv4);
                    options.host_binding = Some(ip.ok_or_else(|| bad("an IPv4 address of this host"))?);
                }
                PREFIX => {
                    if !ovl_api::names::is_interface_prefix(value) {
                        return Err(bad("1 to 13 bytes without '/', ':' and white space"));
                    }
                    options.prefix = Some(value.clone());
                }
                _ => bail!("--opt {key}: unknown; the options are {}", KNOWN.join(", ")),
            }
        }
        Ok(options)
    }
}

fn flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "t" => Some(true),
        "false" | "0" | "f" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Options> {
        Options::parse(&pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect())
    }

    #[test]
    fn every_known_option_is_read() {
        let options = parse(&[
            (MTU, "1400"),
            (BRIDGE, "web0"),
            (ICC, "false"),
            (MASQUERADE, "false"),
            (EXCEPTIONS, "10.0.0.0/8,fd00::/8"),
            (HOST_BINDING, "127.0.0.1"),
            (PREFIX, "net"),
        ]);
        let expected = Options {
            mtu: Some(1400),
            bridge: Some("web0".into()),
            icc: false,
            masquerade: false,
            exceptions: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            host_binding: "127.0.0.1".parse().ok(),
            prefix: Some("net".into()),
        };
        assert_eq!(options.unwrap(), expected);
    }

    #[test]
    fn an_unknown_option_is_an_error_with_the_known_ones() {
        let error = parse(&[("com.docker.network.bridge.mtu", "1")]).unwrap_err().to_string();
        assert!(KNOWN.iter().all(|known| error.contains(known)), "{error}");
    }

    #[test]
    fn a_wrong_value_is_an_error_that_names_it() {
        for (key, value) in [
            (MTU, "67"),
            (MTU, "x"),
            (BRIDGE, "sixteen-bytes-xx"),
            (BRIDGE, "lo"),
            (ICC, "maybe"),
            (HOST_BINDING, "::1"),
            (EXCEPTIONS, "10.0.0.1/8"),
            (PREFIX, "a/b"),
        ] {
            let error = parse(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(value), "{error}");
        }
    }
}
