//! `lab up|down|ls|inspect|exec|ping|check|fail|heal|graph`.

use crate::format;
use crate::lab::{self, Drawing, Lab, Part, plan};
use crate::paths::Paths;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const COLUMNS: &[(&str, &str)] = &[
    ("Name", "LAB"),
    ("Status", "STATUS"),
    ("Hosts", "HOSTS"),
    ("Etcd", "ETCD"),
    ("Networks", "NETWORKS"),
    ("Containers", "RUNNING"),
];

/// A command of `lab`.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Bring a lab up, from a file or a number of hosts
    Up(UpArgs),
    /// Take a lab down, with everything that it made
    Down {
        /// Its name; without it, that of --name
        lab: Option<String>,
        #[command(flatten)]
        which: Which,
    },
    /// List labs
    #[command(visible_alias = "list")]
    Ls {
        /// json, or a template like '{{.Name}}'
        #[arg(long)]
        format: Option<String>,
    },
    /// Show a lab's machines, processes and containers
    Inspect {
        /// json, or a template like '{{.Directory}}'
        #[arg(short, long)]
        format: Option<String>,
        #[command(flatten)]
        which: Which,
    },
    /// Run a command as on a host
    Exec {
        #[command(flatten)]
        which: Which,
        /// The host
        host: String,
        /// The command and its arguments, behind --
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Have every container of the overlay networks ping every other
    Ping {
        /// Requests to each
        #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
        count: u16,
        /// Seconds to wait for each answer
        #[arg(short = 'W', long, default_value = "1", value_name = "SECONDS", value_parser = seconds)]
        timeout: Duration,
        /// Between networks too
        #[arg(long)]
        across: bool,
        /// table or json
        #[arg(long, default_value = "table", value_parser = ["table", "json"])]
        format: String,
        #[command(flatten)]
        which: Which,
    },
    /// Look whether the lab is as its file expects; name the hop where a packet stops
    Check {
        /// Seconds to go on trying what does not work yet
        #[arg(short = 'W', long, default_value = "5", value_name = "SECONDS", value_parser = seconds)]
        timeout: Duration,
        #[command(flatten)]
        which: Which,
    },
    /// Break a part
    #[command(subcommand)]
    Fail(PartArgs),
    /// Mend a part
    #[command(subcommand)]
    Heal(PartArgs),
    /// Draw machines, containers and networks
    Graph {
        /// text, or dot for Graphviz
        #[arg(long, value_enum, default_value = "text")]
        format: Drawing,
        #[command(flatten)]
        which: Which,
    },
}

/// Which lab.
#[derive(Debug, Args)]
pub struct Which {
    /// The lab's name
    #[arg(long, value_name = "LAB", env = "WEFT_LAB", default_value = plan::DEFAULT_NAME)]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct UpArgs {
    /// A file that describes the lab (docs/lab.md)
    #[arg(conflicts_with_all = ["hosts", "etcd", "ipv6", "encap", "mtu"])]
    pub file: Option<PathBuf>,
    /// Instead of a file: this many hosts, the overlay network ov, a container on each
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(plan::MAX_HOSTS)))]
    pub hosts: Option<u32>,
    /// The lab's name; default: what the file says, else lab
    #[arg(long, value_name = "LAB", env = "WEFT_LAB")]
    pub name: Option<String>,
    /// Members of etcd: 1 or 3; 0 for a single host with a store of its own
    #[arg(long, value_name = "MEMBERS", default_value = "1", value_parser = ["0", "1", "3"])]
    pub etcd: String,
    /// The hosts reach each other by IPv6 alone
    #[arg(long)]
    pub ipv6: bool,
    /// How packets travel between hosts
    #[arg(long, default_value = "vxlan", value_parser = ["vxlan", "direct"])]
    pub encap: String,
    /// MTU of the links between hosts, in bytes: 1330 to 65000, with --ipv6 from 1350
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(..=i64::from(plan::MTU.1)))]
    pub mtu: u32,
    /// Say nothing while it comes up
    #[arg(short, long)]
    pub quiet: bool,
}

/// What breaks, or is mended.
#[derive(Debug, Subcommand)]
pub enum PartArgs {
    /// All members of etcd, or one
    Etcd {
        /// Its number or name: 1, etcd1 …
        #[arg(value_parser = member)]
        member: Option<u32>,
        #[command(flatten)]
        which: Which,
    },
    /// The agent of a host
    Agent {
        /// The host
        host: String,
        #[command(flatten)]
        which: Which,
    },
    /// The link of a host to the others
    Link {
        /// The host
        host: String,
        #[command(flatten)]
        which: Which,
    },
    /// A whole host: link, agent and containers
    Host {
        /// The host
        host: String,
        #[command(flatten)]
        which: Which,
    },
}

impl PartArgs {
    fn parts(self) -> (Part, Which) {
        match self {
            PartArgs::Etcd { member, which } => (Part::Etcd(member), which),
            PartArgs::Agent { host, which } => (Part::Agent(host), which),
            PartArgs::Link { host, which } => (Part::Link(host), which),
            PartArgs::Host { host, which } => (Part::Host(host), which),
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok().filter(|seconds| (0.001..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "allowed is a number of seconds, 0.001 to 3600".into())
}

fn member(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix("etcd").unwrap_or(text).parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "allowed is a member's number or name, like 1 or etcd1".into())
}

/// Does a command of `lab`.
///
/// # Errors
/// What befalls it.
pub fn lab(paths: &Paths, command: LabCommand) -> Result<ExitCode> {
    let open = |which: &Which| Lab::open(paths, &which.name);
    let holds = |good: bool| Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    match command {
        LabCommand::Up(args) => up(paths, args),
        LabCommand::Down { lab, which } => {
            let name = lab.unwrap_or(which.name);
            if !lab::down(paths, &name)? {
                let others = lab::names(paths);
                let others = match others.is_empty() {
                    true => String::new(),
                    false => format!("; there are {}", others.join(", ")),
                };
                eprintln!("runtime: there is no lab {name}: nothing to do{others}");
            }
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Ls { format } => {
            let rows = lab::overview(paths);
            format::print(&format::listing(COLUMNS, &rows, format.as_deref())?)?;
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Inspect { format, which } => {
            let lab = open(&which)?;
            let text = match format {
                None => lab::report(&lab)?,
                Some(format) => format::inspection(&[lab::inspect(&lab)?], Some(&format))?,
            };
            format::print(&text)?;
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Exec { which, host, command } => match lab::exec(&open(&which)?, &host, &command)? {},
        LabCommand::Ping { count, timeout, across, format, which } => {
            let matrix = lab::ping(&open(&which)?, lab::Manner { count, timeout }, across)?;
            let text = if format == "json" { format!("{}\n", matrix.json()) } else { matrix.text() };
            format::print(&text)?;
            // That nobody was asked proves nothing.
            holds(matrix.holes() == 0 && matrix.nothing().is_none())
        }
        LabCommand::Check { timeout, which } => {
            let verdicts = lab::check(&open(&which)?, timeout)?;
            let mut text = String::new();
            for verdict in &verdicts {
                let word = if verdict.failures.is_empty() { "ok    " } else { "FAILED" };
                text.push_str(&format!("{word}  {}\n", verdict.what));
                text.extend(verdict.failures.iter().map(|why| format!("        {why}\n")));
            }
            format::print(&text)?;
            holds(verdicts.iter().all(|verdict| verdict.failures.is_empty()))
        }
        LabCommand::Fail(part) => {
            let (part, which) = part.parts();
            format::print(&(lab::fail(&open(&which)?, &part)? + "\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Heal(part) => {
            let (part, which) = part.parts();
            format::print(&(lab::heal(&open(&which)?, &part)? + "\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Graph { format, which } => {
            format::print(&lab::draw(&open(&which)?, format)?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn up(paths: &Paths, args: UpArgs) -> Result<ExitCode> {
    let plan = match (&args.file, args.hosts) {
        (Some(file), _) => {
            let mut plan = lab::file::read(file)?;
            plan.name = args.name.unwrap_or(plan.name);
            plan
        }
        (None, Some(hosts)) => plan::Plan::quick(&plan::Quick {
            name: args.name.unwrap_or_else(|| plan::DEFAULT_NAME.into()),
            hosts,
            etcd: args.etcd.parse()?,
            ipv6: args.ipv6,
            mtu: args.mtu,
            encap: args.encap,
        })?,
        (None, None) => bail!("lab up needs the file of a lab (docs/lab.md), or --hosts N"),
    };
    let interrupted = interruption()?;
    let still = || match interrupted.load(Ordering::Relaxed) {
        true => bail!("interrupted"),
        false => Ok(()),
    };
    let mut tell = |what: &str| {
        if !args.quiet {
            // Where nobody reads it, the lab comes up all the same.
            let _ = format::print(&format!("{what}\n"));
        }
    };
    let lab = lab::up(paths, plan, &mut tell, &still)?;
    if !args.quiet {
        format::print(&format!("lab {} is up\n", lab.plan.name))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Becomes true when this process is to end: then what was begun is taken down before it does.
fn interruption() -> Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let flag = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot wait for signals")?;
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    for kind in kinds {
        let mut stream = {
            let _inside = runtime.enter();
            signal(kind).context("cannot wait for signals")?
        };
        let flag = Arc::clone(&flag);
        runtime.spawn(async move {
            while stream.recv().await.is_some() {
                flag.store(true, Ordering::Relaxed);
            }
        });
    }
    let wait = move || runtime.block_on(std::future::pending::<()>());
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("cannot wait for signals")?;
    Ok(flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_of_etcd_is_named_by_number_or_name() {
        assert_eq!((member("2"), member("etcd2")), (Ok(2), Ok(2)));
        for bad in ["0", "etcd", "host1", "etcd-1", ""] {
            assert!(member(bad).unwrap_err().contains("etcd1"), "{bad}");
        }
    }
}
