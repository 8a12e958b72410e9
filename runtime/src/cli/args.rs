//! Commands and flags, in Docker's words.

use clap::{Args, Parser, Subcommand};
use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// Runs containers and connects them, by CNI.
#[derive(Debug, Parser)]
#[command(name = "runtime", version, max_term_width = 110, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Where things are kept.
#[derive(Debug, Args)]
pub struct Global {
    /// Directory of what lasts: containers, volumes, leases
    #[arg(long, global = true, value_name = "DIR", env = "WEFT_ROOT", default_value = "/var/lib/weft")]
    pub root: PathBuf,
    /// Directory of what does not outlive a reboot: locks, sockets, namespaces
    #[arg(long, global = true, value_name = "DIR", env = "WEFT_RUN", default_value = "/run/weft")]
    pub run: PathBuf,
    /// Directory of the networks, a conflist each
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "WEFT_CONFIG_DIR",
        default_value = "/etc/weft/net.d"
    )]
    pub config_dir: PathBuf,
    /// Directory of CNI executables (repeatable, or parted by ':'); default /opt/cni/bin, then ../cni beside this one
    #[arg(long, global = true, value_name = "DIR", env = "CNI_PATH", value_delimiter = ':')]
    pub cni_bin: Vec<PathBuf>,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a container and run it
    Run(Box<RunArgs>),
    /// Create a container
    Create(Box<CreateArgs>),
    /// Start containers
    Start(StartArgs),
    /// Stop containers: the stop signal, then SIGKILL
    Stop(StopArgs),
    /// Send containers a signal
    Kill(KillArgs),
    /// Stop and start containers
    Restart(StopArgs),
    /// Remove containers
    Rm(RmArgs),
    /// List containers
    Ps(PsArgs),
    /// Run one more process in a container
    Exec(ExecArgs),
    /// Print a container's output
    Logs(LogsArgs),
    /// Print all there is to know of containers and networks, as JSON
    Inspect(InspectArgs),
    /// List a container's published ports
    Port {
        /// Name or ID
        container: String,
        /// Only this port of the container: PORT[/PROTOCOL]
        port: Option<String>,
    },
    /// Wait until containers end, and print their exit codes
    Wait {
        /// Names or IDs
        #[arg(required = true, value_name = "CONTAINER")]
        containers: Vec<String>,
    },
    /// Manage networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Show and mend address leases
    #[command(subcommand)]
    Ipam(IpamCommand),
    /// Several hosts on this machine, with an overlay between them
    #[command(subcommand)]
    Lab(super::lab::LabCommand),
    /// Print a script that completes this command's words in a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    #[command(hide = true)]
    Supervise { id: String },
}

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct RunArgs {
    /// Run in the background and print the container's ID
    #[arg(short, long)]
    pub detach: bool,
    #[command(flatten)]
    pub create: CreateArgs,
}

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct CreateArgs {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Remove it when it ends
    #[arg(long)]
    pub rm: bool,
    /// Its name
    #[arg(long)]
    pub name: Option<String>,
    /// Its network: NAME (repeatable), host, none or container:NAME
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    pub network: Vec<String>,
    /// Publish a port: [HOST-ADDRESS:][HOST-PORT:]PORT[/tcp|/udp|/sctp]; ports may be ranges
    #[arg(short, long, value_name = "PORTS")]
    pub publish: Vec<String>,
    /// Its IPv4 address in the first network
    #[arg(long)]
    pub ip: Option<Ipv4Addr>,
    /// Its IPv6 address in the first network
    #[arg(long)]
    pub ip6: Option<Ipv6Addr>,
    /// Its hardware address in the first network
    #[arg(long, value_name = "MAC")]
    pub mac_address: Option<String>,
    /// Its host name
    #[arg(short = 'h', long)]
    pub hostname: Option<String>,
    /// Set a variable: NAME=VALUE, or NAME for that of this process
    #[arg(short, long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// Set the variables of a file
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Mount a directory, a file or a volume: SOURCE:TARGET[:ro]
    #[arg(short, long, value_name = "VOLUME")]
    pub volume: Vec<String>,
    /// Its working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Its user: NAME-OR-UID[:GROUP-OR-GID]
    #[arg(short, long)]
    pub user: Option<String>,
    /// Set a label: NAME[=VALUE]
    #[arg(short, long)]
    pub label: Vec<String>,
    /// A program that gets the command as its arguments
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Add a line to /etc/hosts: NAME:ADDRESS, the address may be host-gateway
    #[arg(long, value_name = "HOST")]
    pub add_host: Vec<String>,
    /// Use this name server
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<IpAddr>,
    /// Search names in this domain
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// Set a resolver option
    #[arg(long, value_name = "OPTION")]
    pub dns_option: Vec<String>,
    /// Write the container's ID to this file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Its files: a directory or a tar archive; else a view of the host's own
    #[arg(long, value_name = "DIR|TAR")]
    pub rootfs: Option<PathBuf>,
    /// Show the host's keys, password hashes and files that only some users may read in the view of its files
    #[arg(long, conflicts_with = "rootfs")]
    pub show_host_secrets: bool,
    /// The signal that stops it
    #[arg(long, value_name = "SIGNAL", default_value = "SIGTERM")]
    pub stop_signal: String,
    /// Seconds from that signal to SIGKILL
    #[arg(long, value_name = "SECONDS")]
    pub stop_timeout: Option<u32>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct StartArgs {
    /// Attach to its output, and pass signals on
    #[arg(short, long)]
    pub attach: bool,
    /// Attach to its standard input
    #[arg(short, long)]
    pub interactive: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    /// Seconds from the stop signal to SIGKILL (default: the container's --stop-timeout, or 10)
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS")]
    pub time: Option<u64>,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct KillArgs {
    /// The signal, by name or number
    #[arg(short, long, default_value = "SIGKILL")]
    pub signal: String,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Kill those that run
    #[arg(short, long)]
    pub force: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    /// All, not only those that run
    #[arg(short, long)]
    pub all: bool,
    /// IDs only
    #[arg(short, long)]
    pub quiet: bool,
    /// Whole IDs and commands
    #[arg(long)]
    pub no_trunc: bool,
    /// Only those with: id=, name=, status=, network=, label=, exited= (repeatable)
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// json, or a template like '{{.ID}} {{.Names}}'
    #[arg(long)]
    pub format: Option<String>,
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Leave it alone in the background
    #[arg(short, long)]
    pub detach: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable: NAME=VALUE, or NAME for that of this process
    #[arg(short, long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// Set the variables of a file
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Its working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Its user: NAME-OR-UID[:GROUP-OR-GID]
    #[arg(short, long)]
    pub user: Option<String>,
    /// Name or ID
    pub container: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// Only so many of the last lines
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all")]
    pub tail: String,
    /// Begin each line with its time
    #[arg(short, long)]
    pub timestamps: bool,
    /// Only lines since a time (RFC 3339) or for a span (10m)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only lines before a time (RFC 3339) or a span ago (10m)
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Name or ID
    pub container: String,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// json, or a template like '{{.State.Pid}}'
    #[arg(short, long)]
    pub format: Option<String>,
    /// Only things of this type
    #[arg(long = "type", value_name = "TYPE", value_parser = ["container", "network"])]
    pub kind: Option<String>,
    /// Names or IDs
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Create a network
    Create(Box<NetworkCreateArgs>),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(NetworkLsArgs),
    /// Print all there is to know of networks, as JSON
    Inspect {
        /// json, or a template like '{{.Driver}}'
        #[arg(short, long)]
        format: Option<String>,
        /// Names or IDs
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm {
        /// Do not complain of those that do not exist, and remove those that cannot be cleaned up
        #[arg(short, long)]
        force: bool,
        /// Names or IDs
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
    /// Remove all networks that no container names
    Prune {
        /// Do not ask
        #[arg(short, long)]
        force: bool,
        /// Only those with: label=NAME[=VALUE] (repeatable)
        #[arg(long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
    },
}

impl NetworkCommand {
    /// Whether the command must know which containers really run.
    pub fn needs_true_states(&self) -> bool {
        matches!(self, Self::Inspect { .. } | Self::Rm { .. } | Self::Prune { .. })
    }
}

#[derive(Debug, Args)]
pub struct NetworkCreateArgs {
    /// What makes it: bridge, on this host, or overlay, on all hosts with an overlay agent
    #[arg(short, long, default_value = "bridge")]
    pub driver: String,
    /// A subnet; host bits are the gateway (192.168.10.1/24). Repeatable: one of each family
    #[arg(long)]
    pub subnet: Vec<String>,
    /// The containers' gateway in its subnet: the bridge's address, or that of every host (repeatable)
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Vec<IpAddr>,
    /// Where dynamic addresses come from, a part of a bridge network's subnet (repeatable)
    #[arg(long, value_name = "SUBNET")]
    pub ip_range: Vec<IpNetwork>,
    /// An address that a bridge network does not give out: NAME=ADDRESS (repeatable)
    #[arg(long, value_name = "NAME=ADDRESS")]
    pub aux_address: Vec<String>,
    /// With IPv6: the --subnet of that family, or a unique local one
    #[arg(long)]
    pub ipv6: bool,
    /// Without a way out
    #[arg(long)]
    pub internal: bool,
    /// Accepted: every network is attachable
    #[arg(long)]
    pub attachable: bool,
    /// Set a label: NAME[=VALUE]
    #[arg(long)]
    pub label: Vec<String>,
    /// Set an option: NAME=VALUE, e.g. com.docker.network.driver.mtu=1400; of an overlay network mtu, vni, block-size (a
    /// prefix length) and encap (vxlan or direct)
    #[arg(short, long)]
    pub opt: Vec<String>,
    /// Its name
    pub name: String,
}

#[derive(Debug, Args)]
pub struct NetworkLsArgs {
    /// IDs only
    #[arg(short, long)]
    pub quiet: bool,
    /// Whole IDs
    #[arg(long)]
    pub no_trunc: bool,
    /// Only those with: id=, name=, driver=, scope=, label= (repeatable)
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// json, or a template like '{{.Name}}'
    #[arg(long)]
    pub format: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum IpamCommand {
    /// List leases
    #[command(visible_alias = "list")]
    Ls {
        /// Only those of this network
        #[arg(long)]
        network: Option<String>,
        /// json, or a template like '{{.Address}}'
        #[arg(long)]
        format: Option<String>,
        /// Addresses only
        #[arg(short, long)]
        quiet: bool,
        /// Whole container IDs
        #[arg(long)]
        no_trunc: bool,
    },
    /// Give an address back, whoever holds it
    Release {
        /// The network's name
        network: String,
        /// The address
        address: IpAddr,
    },
    /// Take over the leases of host-local's files
    Import {
        /// The directory with a directory for each network
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// The network's name
        network: String,
    },
}
