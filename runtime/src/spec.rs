//! What the user asked for when the container was made. Written once, at creation; it never changes afterwards, so a
//! restart starts the same container.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A container as it was asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// 64 lower-case hex digits; chosen at creation when empty.
    pub id: String,
    /// Unique among the containers of one root; chosen at creation when empty.
    pub name: String,
    /// When it was made, RFC 3339; set at creation.
    pub created: String,
    /// The name in its UTS namespace; empty: the first 12 digits of `id`, or with the host's network the host's name.
    pub hostname: String,
    /// The program and its arguments. Never empty.
    pub command: Vec<String>,
    /// `KEY=VALUE`, the user's own; the defaults (PATH, HOME, HOSTNAME, TERM) are added at the start.
    pub env: Vec<String>,
    /// The working directory; empty: `/`.
    pub workdir: String,
    /// `user[:group]`, names or numbers, looked up in the container's /etc/passwd and /etc/group; none: root.
    pub user: Option<String>,
    /// Whether the process has a terminal.
    pub tty: bool,
    /// Whether its standard input stays open for those who attach.
    pub stdin_open: bool,
    /// Whether it is removed when it ends.
    pub auto_remove: bool,
    /// Whether it was started in the background (`-d`).
    pub detach: bool,
    /// Where its file system comes from.
    pub rootfs: Rootfs,
    /// Whether a view of the host's own root shows the host's secrets.
    pub shows_host_secrets: bool,
    /// What is mounted into it.
    pub volumes: Vec<Volume>,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// How it is connected.
    pub network: NetMode,
    /// Published ports; `host_port` 0 asks for a free one.
    pub ports: Vec<PortMapping>,
    /// The signal that `stop` sends first, by number; none: SIGTERM.
    pub stop_signal: Option<i32>,
    /// How many seconds `stop` waits after that signal before it kills; none: 10.
    pub stop_timeout: Option<u32>,
    /// More lines for /etc/hosts, each `NAME:ADDRESS`.
    pub extra_hosts: Vec<String>,
    /// Name servers for /etc/resolv.conf; empty: the network's, else the host's.
    pub dns: Vec<IpAddr>,
    /// Search domains for /etc/resolv.conf; empty: the network's, else the host's.
    pub dns_search: Vec<String>,
    /// Resolver options for /etc/resolv.conf; empty: the network's, else the host's.
    pub dns_options: Vec<String>,
}

impl Spec {
    /// The first 12 digits of the id, as lists show it.
    pub fn short_id(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }
}

/// Where a container's files come from. All of them are copy-on-write: what the container writes is its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rootfs {
    /// A view of the host's own root.
    #[default]
    Host,
    /// A directory.
    Dir(PathBuf),
    /// A tar archive, gzipped or not.
    Tar(PathBuf),
}

/// A directory or file of the host that appears in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// An absolute path on the host, or the name of a volume (no `/` in it).
    pub source: String,
    /// An absolute path in the container.
    pub target: PathBuf,
    /// Whether the container may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// How a container is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetMode {
    /// A namespace of its own with loopback alone.
    #[default]
    None,
    /// The host's namespace.
    Host,
    /// The namespace of the container with this full id.
    Container(String),
    /// A namespace of its own, attached to these networks in this order.
    Networks(Vec<NetAttach>),
}

/// One attachment to a network, as asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetAttach {
    /// The network's name.
    pub network: String,
    /// The interface's name in the container.
    pub ifname: String,
    /// The IPv4 address asked for.
    pub ip: Option<Ipv4Addr>,
    /// The IPv6 address asked for.
    pub ip6: Option<Ipv6Addr>,
    /// The hardware address asked for.
    pub mac: Option<String>,
    /// More names for it on this network.
    pub aliases: Vec<String>,
}

/// A published port. Its JSON is the `portMappings` entry of the CNI conventions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// Which of the host's addresses; none: all.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The host's port; 0 in a spec: a free one is chosen at the start.
    #[serde(rename = "hostPort")]
    pub host_port: u16,
    /// In a spec, the last of the host's ports to choose from at the start; 0: there is no choice.
    #[serde(rename = "hostPortLast", default, skip_serializing_if = "is_zero")]
    pub host_port_last: u16,
    /// The container's port.
    #[serde(rename = "containerPort")]
    pub container_port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(port: &u16) -> bool {
    *port == 0
}

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its name as users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(format!("invalid protocol {text:?}: tcp, udp or sctp")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_reads_back_as_it_was_written() {
        let spec = Spec {
            id: "ab".repeat(32),
            command: vec!["true".into()],
            rootfs: Rootfs::Dir("/srv/root".into()),
            network: NetMode::Networks(vec![NetAttach { network: "web".into(), ..Default::default() }]),
            ports: vec![PortMapping {
                host_ip: None,
                host_port: 8080,
                container_port: 80,
                ..PortMapping::default()
            }],
            ..Default::default()
        };
        let text = serde_json::to_string(&spec).unwrap();
        assert!(text.contains(r#"{"hostPort":8080,"containerPort":80,"protocol":"tcp"}"#), "{text}");
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
    }

    #[test]
    fn a_spec_of_an_older_version_reads_with_defaults() {
        let spec: Spec = serde_json::from_str(r#"{"id":"aa","command":["sh"]}"#).unwrap();
        assert_eq!((spec.network, spec.rootfs), (NetMode::None, Rootfs::Host));
    }
}
