//! Commands and flags. Settings stay text here: what they may be is checked in one place, [`crate::config`], whether they
//! come from a file, a variable or a flag.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// The overlay of this host: containers on many hosts reach each other.
#[derive(Debug, Parser)]
#[command(
    name = "ovl-agent",
    version,
    max_term_width = 110,
    disable_help_subcommand = true,
    after_help = "Every setting is also a variable (--etcd-prefix: WEFT_ETCD_PREFIX) and a key of the file (etcd-prefix = \"…\"). \
                  A flag wins over a variable, a variable over the file."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Where things are.
#[derive(Debug, Default, Args)]
pub struct Global {
    /// Configuration file (TOML); default /etc/weft/ovl-agent.toml, when it is there [env: WEFT_AGENT_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of what lasts [default: /var/lib/weft]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<String>,
    /// Directory of what a reboot voids; the agent's socket is there [default: /run/weft]
    #[arg(long, global = true, value_name = "DIR")]
    pub run: Option<String>,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent of this host
    Run(Box<RunArgs>),
    /// Show how the agent is
    Status {
        #[command(flatten)]
        output: Output,
    },
    /// List and remove the hosts of the cluster
    #[command(subcommand)]
    Node(NodeCommand),
    /// List the overlay networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Wait until the kernel shows all that the store holds now
    Sync {
        #[command(flatten)]
        output: Output,
    },
    /// Apply what is held back because too many hosts vanished at once
    Accept,
    /// Print a script of completions for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// A command about hosts.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the hosts
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        output: Output,
    },
    /// Declare a host gone: its blocks become free, and it has to start anew
    #[command(visible_alias = "remove")]
    Rm {
        /// The host's name
        name: String,
        /// Also when its agent is alive
        #[arg(short, long)]
        force: bool,
    },
}

/// A command about networks.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// List the overlay networks
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        output: Output,
    },
}

/// How a list is printed.
#[derive(Debug, Args)]
pub struct Output {
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// The formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// What the API answers
    Json,
}

/// The settings of `ovl-agent run`.
#[derive(Debug, Default, Args)]
pub struct RunArgs {
    /// This host's name, unique in the cluster [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Interface of the underlay [default: the default route's]
    #[arg(long, value_name = "INTERFACE")]
    pub interface: Option<String>,
    /// Address at which other hosts reach this one [default: the underlay interface's]
    #[arg(long, value_name = "ADDRESS")]
    pub advertise: Option<String>,
    /// Take over the name and the identity of a node whose agent is dead, as after a reinstallation [default: false]
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub take_over: Option<String>,
    /// UDP port of VXLAN [default: 4789]
    #[arg(long, value_name = "PORT")]
    pub port: Option<String>,
    /// Add no rules to other programs' forward chains whose policy is drop; overlay packets are dropped there
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub no_forward_accept: Option<String>,
    /// Endpoints of etcd, http:// or https://, parted by commas [default: a store of this host alone]
    #[arg(long, value_name = "URL,…")]
    pub etcd: Option<String>,
    /// What the keys in etcd begin with [default: /weft/]
    #[arg(long, value_name = "PREFIX")]
    pub etcd_prefix: Option<String>,
    /// Authority of etcd's certificate (PEM)
    #[arg(long, value_name = "FILE")]
    pub etcd_ca: Option<String>,
    /// Client certificate for etcd (PEM)
    #[arg(long, value_name = "FILE")]
    pub etcd_cert: Option<String>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE")]
    pub etcd_key: Option<String>,
    /// Name in etcd's certificate, when it is not the endpoint's host
    #[arg(long, value_name = "NAME")]
    pub etcd_server_name: Option<String>,
    /// User of etcd
    #[arg(long, value_name = "USER")]
    pub etcd_user: Option<String>,
    /// File with the user's password (or the variable WEFT_ETCD_PASSWORD)
    #[arg(long, value_name = "FILE")]
    pub etcd_password_file: Option<String>,
    /// Let this host's containers connect to etcd's endpoints, which are closed to them else [default: false]
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub allow_store_from_containers: Option<String>,
    /// Serve /metrics and /healthz over TCP as well
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<String>,
    /// What is logged: error, warn, info or debug [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}
