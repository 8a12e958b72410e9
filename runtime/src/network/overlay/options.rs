//! The options of `network create --driver overlay --opt`. Pure.

use crate::network::options;
use anyhow::{Result, anyhow, bail};
use ovl_api::model::{Encap, Network, parse_exceptions};
use ovl_api::names::MAX_VNI;
use std::collections::BTreeMap;

const MTU: &str = "mtu";
const VNI: &str = "vni";
const BLOCK_SIZE: &str = "block-size";
const ENCAP: &str = "encap";
const INGRESS: &str = Network::INGRESS_OPTION;
const EXCEPTIONS: &str = Network::EXCEPTIONS_OPTION;
const KNOWN: [&str; 8] = [MTU, VNI, BLOCK_SIZE, ENCAP, INGRESS, EXCEPTIONS, options::MTU, options::PREFIX];

/// The smallest MTU in bytes: what every host takes by IPv4 (RFC 791), and by IPv6 (RFC 8200 section 5), below which the
/// kernel turns it off.
const LEAST_MTU: u32 = 576;
const LEAST_MTU_V6: u32 = 1280;
/// The largest MTU in bytes: an IPv4 packet's, less what VXLAN takes.
const LARGEST_MTU: u32 = 65_485;
/// Prefix lengths of blocks.
const BLOCKS: std::ops::RangeInclusive<u8> = 20..=30;

/// What the options of an overlay network ask for; what is not set is chosen by the agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// The containers' MTU in bytes.
    pub mtu: Option<u32>,
    /// VXLAN network identifier.
    pub vni: Option<u32>,
    /// Prefix length of the IPv4 blocks.
    pub block_size: Option<u8>,
    /// How packets travel.
    pub encap: Encap,
}

impl Options {
    /// Reads the options. `ipv6` is whether the network will have IPv6, which needs a larger MTU.
    ///
    /// # Errors
    /// An unknown option, or a value that it cannot have; names what is allowed.
    pub fn parse(given: &BTreeMap<String, String>, ipv6: bool) -> Result<Options> {
        let mut options = Options::default();
        if given.contains_key(MTU) && given.contains_key(options::MTU) {
            bail!("--opt {MTU} and --opt {} are the same: give one of them", options::MTU);
        }
        let least = if ipv6 { LEAST_MTU_V6 } else { LEAST_MTU };
        for (key, value) in given {
            let bad = |allowed: String| anyhow!("--opt {key}={value}: allowed is {allowed}");
            match key.as_str() {
                MTU | options::MTU => {
                    let mtu = value.parse().ok();
                    let mtu = mtu.filter(|mtu| *mtu == 0 || (least..=LARGEST_MTU).contains(mtu));
                    let mtu = mtu.ok_or_else(|| {
                        let family = if ipv6 { " (with IPv6)" } else { "" };
                        bad(format!(
                            "{least} to {LARGEST_MTU}{family}, or 0 for what the underlay has room for"
                        ))
                    })?;
                    options.mtu = Some(mtu).filter(|mtu| *mtu != 0);
                }
                VNI => {
                    let vni = value.parse().ok().filter(|vni| (1..=MAX_VNI).contains(vni));
                    options.vni = Some(vni.ok_or_else(|| bad(format!("1 to {MAX_VNI}")))?);
                }
                BLOCK_SIZE => {
                    let size =
                        value.trim_start_matches('/').parse().ok().filter(|size| BLOCKS.contains(size));
                    let allowed =
                        || format!("the prefix length of a block, {} to {}", BLOCKS.start(), BLOCKS.end());
                    options.block_size = Some(size.ok_or_else(|| bad(allowed()))?);
                }
                ENCAP => {
                    options.encap = match value.as_str() {
                        "vxlan" => Encap::Vxlan,
                        "direct" => Encap::Direct,
                        _ => return Err(bad("vxlan or direct".into())),
                    };
                }
                // The agent reads it from the network's options.
                INGRESS if Network::INGRESS.contains(&value.as_str()) => {}
                INGRESS => return Err(bad(Network::INGRESS.join(" or "))),
                // The plugin reads it from the network's options.
                EXCEPTIONS => {
                    parse_exceptions(value.split(','))
                        .map_err(|why| anyhow!("--opt {key}={value}: {why}"))?;
                }
                // Its value is read as that of a bridge network's.
                options::PREFIX => {
                    options::Options::parse(&[(key.clone(), value.clone())].into())?;
                }
                _ if options::KNOWN.contains(&key.as_str()) => {
                    bail!("--opt {key}: it is for bridge networks; overlay has {}", KNOWN.join(", "))
                }
                _ => bail!("--opt {key}: unknown; the options of overlay are {}", KNOWN.join(", ")),
            }
        }
        Ok(options)
    }
}

/// What interfaces in containers are called, when an overlay network's options say it.
pub fn interface_prefix(given: &BTreeMap<String, String>) -> Option<String> {
    given.get(options::PREFIX).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)], ipv6: bool) -> Result<Options> {
        Options::parse(&pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(), ipv6)
    }

    #[test]
    fn every_known_option_is_read() {
        let all =
            [(MTU, "1400"), (VNI, "4097"), (BLOCK_SIZE, "28"), (ENCAP, "direct"), (options::PREFIX, "net")];
        let expected =
            Options { mtu: Some(1400), vni: Some(4097), block_size: Some(28), encap: Encap::Direct };
        assert_eq!(parse(&all, true).unwrap(), expected);
        assert_eq!(parse(&[(options::MTU, "0")], true).unwrap(), Options::default());
        assert_eq!(parse(&[(options::MTU, "9000")], false).unwrap().mtu, Some(9000));
    }

    #[test]
    fn an_unknown_option_is_an_error_with_those_of_overlay() {
        for key in ["encrypted", "com.docker.network.bridge.name", "com.docker.network.bridge.enable_icc"] {
            let error = parse(&[(key, "x")], false).unwrap_err().to_string();
            assert!(error.contains(key) && KNOWN.iter().all(|known| error.contains(known)), "{error}");
            assert_eq!(error.contains("it is for bridge networks"), key.contains("bridge"), "{error}");
        }
    }

    #[test]
    fn a_wrong_value_is_an_error_that_names_it_and_what_is_allowed() {
        for (key, value, allowed) in [
            (MTU, "575", "576 to 65485"),
            (MTU, "x", "576 to 65485"),
            (options::MTU, "70000", "576 to 65485"),
            (VNI, "0", "1 to 16777215"),
            (VNI, "16777216", "1 to 16777215"),
            (BLOCK_SIZE, "19", "20 to 30"),
            (BLOCK_SIZE, "31", "20 to 30"),
            (ENCAP, "gre", "vxlan or direct"),
            (INGRESS, "open", "published or routed"),
            (options::PREFIX, "a/b", "1 to 13 bytes"),
        ] {
            let error = parse(&[(key, value)], false).unwrap_err().to_string();
            assert!(error.contains(&format!("{key}={value}")) && error.contains(allowed), "{error}");
        }
        assert!(parse(&[(INGRESS, "routed")], false).is_ok());
        assert!(parse(&[(MTU, "1000")], false).is_ok());
        assert!(parse(&[(MTU, "1000")], true).unwrap_err().to_string().contains("1280"));
        assert!(parse(&[(MTU, "1400"), (options::MTU, "1400")], true).is_err());
    }
}
