//! What a lab's file expects of it.

use serde::{Deserialize, Serialize};
use std::fmt;

use net::Family;

/// One expectation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Expectation {
    /// Containers or hosts that try, each of them.
    pub from: Vec<String>,
    /// What they try.
    pub what: Attempt,
    /// By this family alone; None: by those that both have.
    #[serde(default, with = "family", skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// It has to succeed, or to fail.
    pub works: bool,
}

/// What is tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Attempt {
    /// An ICMP echo to each of these containers or hosts.
    Ping(Vec<String>),
    /// A TCP connection to a port of each of these.
    Tcp(Vec<String>, u16),
    /// An HTTP request.
    Http {
        /// The URL; its host may be a container's or a host's name.
        url: String,
        /// The status that is wanted.
        status: u16,
        /// A text that has to be in the body.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body: Option<String>,
    },
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let no = if self.works { "" } else { "no " };
        let from = self.from.join(", ");
        match &self.what {
            Attempt::Ping(to) => write!(f, "{no}ping {from} -> {}", to.join(", ")),
            Attempt::Tcp(to, port) => write!(f, "{no}tcp {from} -> {} port {port}", to.join(", ")),
            Attempt::Http { url, .. } => write!(f, "{no}http {from} -> {url}"),
        }?;
        match self.family {
            Some(family) => write!(f, " ({})", family_name(family)),
            None => Ok(()),
        }
    }
}

/// A family as people write it.
pub fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// A family in JSON: 4 or 6.
mod family {
    use net::Family;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(family: &Option<Family>, to: S) -> Result<S::Ok, S::Error> {
        match family {
            Some(Family::V4) => to.serialize_some(&4),
            Some(Family::V6) => to.serialize_some(&6),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Family>, D::Error> {
        let number = Option::<u8>::deserialize(from)?;
        Ok(number.map(|number| if number == 4 { Family::V4 } else { Family::V6 }))
    }
}
