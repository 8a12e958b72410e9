//! Keys and values of the store: which key says what, and back.

use ipnetwork::IpNetwork;
use ovl_store::range_end;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What every agent follows.
pub(crate) const FOLLOWED: &str = "c/";
/// Every creation of a network rewrites this key and fails when another did: two that overlap cannot both succeed.
pub(crate) const SUBNETS: &str = "c/subnets";
/// Which history the store's data is of.
pub(crate) const HISTORY: &str = "c/history";
pub(crate) const NETWORKS: &str = "c/networks/";
pub(crate) const BLOCKS: &str = "c/blocks/";
pub(crate) const SINGLES: &str = "c/singles/";

/// The value of a block's key: the owner and the epoch it claimed it in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub(crate) host: String,
    pub(crate) id: String,
    pub(crate) epoch: u64,
}

/// The value of a single address's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SingleClaim {
    #[serde(flatten)]
    pub(crate) claim: Claim,
    pub(crate) state: SingleState,
}

/// How far a single address is: asked of the block's owner, or the asker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SingleState {
    Asked,
    Granted,
}

/// A followed key, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key<'a> {
    Network(&'a str),
    Host(&'a str),
    Live(&'a str),
    /// That the node has put its part back.
    Back(&'a str),
    Block(&'a str, IpNetwork),
    Single(&'a str, IpAddr),
    Other,
}

pub(crate) fn network(name: &str) -> String {
    format!("{NETWORKS}{name}")
}

pub(crate) fn vni(vni: u32) -> String {
    format!("c/vnis/{vni}")
}

pub(crate) fn host(name: &str) -> String {
    format!("c/hosts/{name}")
}

pub(crate) fn live(name: &str) -> String {
    format!("c/live/{name}")
}

pub(crate) fn back(name: &str) -> String {
    format!("c/back/{name}")
}

pub(crate) fn blocks(network: &str) -> String {
    format!("{BLOCKS}{network}/")
}

pub(crate) fn singles(network: &str) -> String {
    format!("{SINGLES}{network}/")
}

pub(crate) fn block(network: &str, block: IpNetwork) -> String {
    format!("{BLOCKS}{network}/{}-{}", address_text(block.ip()), block.prefix())
}

pub(crate) fn single(network: &str, address: IpAddr) -> String {
    format!("{SINGLES}{network}/{}", address_text(address))
}

/// The range of the keys of single addresses in a block.
pub(crate) fn singles_in(network: &str, block: IpNetwork) -> (String, String) {
    (single(network, block.network()), range_end(&single(network, block.broadcast())))
}

/// The range that holds one key alone.
pub(crate) fn alone(key: &str) -> (String, String) {
    (key.to_owned(), format!("{key}\0"))
}

pub(crate) fn acks(network: &str) -> String {
    format!("a/{network}/")
}

pub(crate) fn ack(network: &str, host: &str) -> String {
    format!("a/{network}/{host}")
}

pub(crate) fn endpoints(network: &str) -> String {
    format!("e/{network}/")
}

pub(crate) fn endpoints_of(network: &str, host: &str) -> String {
    format!("e/{network}/{host}/")
}

pub(crate) fn endpoint(network: &str, host: &str, container: &str, ifname: &str) -> String {
    format!("e/{network}/{host}/{container}/{ifname}")
}

fn address_text(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("4-{:08x}", u32::from(v4)),
        IpAddr::V6(v6) => format!("6-{:032x}", u128::from(v6)),
    }
}

fn address_of(text: &str) -> Option<IpAddr> {
    // One range has one key: no capitals, no signs.
    if !text.bytes().skip(2).all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
        return None;
    }
    match text.split_at_checked(2)? {
        ("4-", hex) if hex.len() == 8 => Some(IpAddr::V4(Ipv4Addr::from(u32::from_str_radix(hex, 16).ok()?))),
        ("6-", hex) if hex.len() == 32 => {
            Some(IpAddr::V6(Ipv6Addr::from(u128::from_str_radix(hex, 16).ok()?)))
        }
        _ => None,
    }
}

impl Key<'_> {
    /// The key as it is in the store.
    pub(crate) fn text(&self) -> String {
        match *self {
            Key::Network(name) => network(name),
            Key::Host(name) => host(name),
            Key::Live(name) => live(name),
            Key::Back(name) => back(name),
            Key::Block(of, range) => block(of, range),
            Key::Single(of, address) => single(of, address),
            Key::Other => String::new(),
        }
    }

    /// Reads a key; what is not known is [`Key::Other`], for a later version may know it.
    pub(crate) fn parse(key: &str) -> Key<'_> {
        let Some((kind, rest)) = key.strip_prefix(FOLLOWED).and_then(|rest| rest.split_once('/')) else {
            return Key::Other;
        };
        let in_network = || rest.split_once('/');
        let parsed = match kind {
            "networks" => Some(Key::Network(rest)),
            "hosts" => Some(Key::Host(rest)),
            "live" => Some(Key::Live(rest)),
            "back" => Some(Key::Back(rest)),
            "blocks" => in_network().and_then(|(network, text)| {
                let (address, prefix) = text.rsplit_once('-')?;
                let length: u8 = prefix.parse().ok()?;
                let block = IpNetwork::new(address_of(address)?, length).ok()?;
                (length.to_string() == prefix).then_some(Key::Block(network, block))
            }),
            "singles" => {
                in_network().and_then(|(network, text)| Some(Key::Single(network, address_of(text)?)))
            }
            _ => None,
        };
        parsed.unwrap_or(Key::Other)
    }
}

/// A value as JSON. All that is put there can be written.
pub(crate) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back_and_sort_by_address() {
        for text in ["10.42.3.64/26", "fd00::1:0/112", "0.0.0.0/30"] {
            let net: IpNetwork = text.parse().unwrap();
            assert_eq!(Key::parse(&block("a1", net)), Key::Block("a1", net));
            assert_eq!(Key::parse(&single("a1", net.ip())), Key::Single("a1", net.ip()));
        }
        assert_eq!(block("a1", "10.42.3.64/26".parse().unwrap()), "c/blocks/a1/4-0a2a0340-26");
        let (from, to) = singles_in("a1", "10.42.3.64/26".parse().unwrap());
        let inside = single("a1", "10.42.3.127".parse().unwrap());
        let outside = single("a1", "10.42.3.128".parse().unwrap());
        assert!(from < inside && inside < to && to < outside);
    }

    #[test]
    fn keys_that_are_not_known_are_passed_over() {
        for key in [
            "c/subnets",
            "c/x/y",
            "c/blocks/a1/4-zz-26",
            "c/blocks/a1/4-0a2a0340-40",
            "c/blocks/a1/4-0A2A0340-26",
            "c/blocks/a1/4-+a2a0340-26",
            "c/blocks/a1/4-0a2a0340-026",
            "e/a/b",
            "c/vnis/7",
        ] {
            assert_eq!(Key::parse(key), Key::Other, "{key}");
        }
        assert_eq!(Key::parse("c/hosts/a.b"), Key::Host("a.b"));
    }
}
