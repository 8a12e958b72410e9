//! Usage errors and help, and words of Docker's that Weft has not.

use super::args::Cli;
use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::process::ExitCode;

/// Commands that Docker has and Weft has not.
const COMMANDS: &str = "attach build builder buildx checkpoint commit compose config container context cp diff events export \
    history image images import info init load login logout manifest node pause plugin pull push rename save search secret \
    service stack stats swarm system tag top trust unpause update version volume";
/// The same of `network`.
const NETWORK: &str = "connect disconnect";
/// Flags that Docker has and Weft has not, by command.
const FLAGS: [(&[&str], &str); 11] = [
    (
        &["run", "create"],
        "-a --attach --annotation --blkio-weight --blkio-weight-device --cap-add --cap-drop --cgroup-parent --cgroupns \
         --cpu-count --cpu-percent --cpu-period --cpu-quota --cpu-rt-period --cpu-rt-runtime -c --cpu-shares --cpus \
         --cpuset-cpus --cpuset-mems --detach-keys --device --device-cgroup-rule --device-read-bps --device-read-iops \
         --device-write-bps --device-write-iops --disable-content-trust --domainname --expose --gpus --group-add \
         --health-cmd --health-interval --health-retries --health-start-interval --health-start-period \
         --health-timeout --init --io-maxbandwidth --io-maxiops --ipc --isolation --kernel-memory --label-file --link \
         --link-local-ip --log-driver --log-opt -m --memory --memory-reservation --memory-swap --memory-swappiness \
         --mount --network-alias --net-alias --no-healthcheck --oom-kill-disable --oom-score-adj --pid --pids-limit \
         --platform --privileged -P --publish-all --pull -q --quiet --read-only --restart --runtime --security-opt \
         --shm-size --sig-proxy --storage-opt --sysctl --tmpfs --ulimit --use-api-socket --userns --uts \
         --volume-driver --volumes-from",
    ),
    (&["start"], "--checkpoint --checkpoint-dir --detach-keys"),
    (&["stop", "restart"], "-s --signal"),
    (&["rm"], "-l --link -v --volumes"),
    (&["ps"], "-n --last -l --latest -s --size"),
    (&["exec"], "--detach-keys --privileged"),
    (&["logs"], "--details"),
    (&["inspect"], "-s --size"),
    (&["network", "create"], "--config-from --config-only --ingress --ipam-driver --ipam-opt --ipv4 --scope"),
    (&["network", "inspect"], "-v --verbose"),
    (
        &[],
        "--config -c --context -D --debug -H --host -l --log-level --tls --tlscacert --tlscert --tlskey --tlsverify",
    ),
];

/// Prints a usage error, or what `--help` and `--version` ask for.
pub fn report(error: clap::Error) -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let command = Cli::command();
    // The command is not known when parsing failed; it is the first word that is one.
    let first = words.iter().find(|word| command.find_subcommand(word).is_some()).map_or("", String::as_str);
    let second = words.iter().skip_while(|word| *word != first).nth(1).map_or("", String::as_str);
    if error.kind() == ErrorKind::InvalidSubcommand && asked(&error, ContextKind::InvalidSubcommand) == "help"
    {
        return help(words.iter().skip_while(|word| *word != "help").skip(1));
    }
    if matches!(
        error.kind(),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        // As Docker: a command that needs another word says which there are.
        return help([first, second].iter().map(|word| (*word).to_owned()).collect::<Vec<_>>().iter());
    }
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = match dockers(&error, first, second) {
        Some(text) => format!("runtime: {text}\n"),
        None => {
            // When it is a variable that is wrong, there is no error without it.
            let plain = without_variables(command).try_get_matches();
            let error = plain.err().filter(|plain| plain.kind() == error.kind()).unwrap_or(error);
            let text = error.render().to_string();
            text.strip_prefix("error: ").map_or_else(|| text.clone(), |text| format!("runtime: {text}"))
        }
    };
    eprint!("{text}");
    ExitCode::from(if first == "run" || first == "create" { 125 } else { 1 })
}

/// Prints the help of the command that these words name, as far as they do.
fn help<'w>(words: impl Iterator<Item = &'w String>) -> ExitCode {
    let mut command = without_variables(Cli::command());
    command.build();
    for word in words.filter(|word| !word.is_empty()) {
        match command.find_subcommand(word) {
            Some(next) if !next.is_hide_set() => command = next.clone(),
            _ => break,
        }
    }
    let text = command.render_help().to_string();
    ExitCode::from(u8::from(crate::format::print(&text).is_err()))
}

/// The command without its variables. What they set counts as given, and is shown in usages as if it were required.
pub fn without_variables(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| arg.env(None::<&'static str>)).mut_subcommands(without_variables)
}

fn asked(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    }
}

/// What to say of a word that Docker has and Weft has not; none for any other.
fn dockers(error: &clap::Error, first: &str, second: &str) -> Option<String> {
    let has = |list: &str, word: &str| list.split_whitespace().any(|each| each == word);
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let word = asked(error, ContextKind::InvalidSubcommand);
            let (list, line) = if first == "network" { (NETWORK, "network ") } else { (COMMANDS, "") };
            has(list, &word).then(|| {
                format!("{line}{word}: Docker has this command, Weft has not; `runtime help` lists Weft's commands")
            })
        }
        ErrorKind::UnknownArgument => {
            let argument = asked(error, ContextKind::InvalidArg);
            let word = argument.split(['=', ' ']).next()?;
            let path: Vec<&str> = match first {
                "" => vec![],
                "network" => vec![first, second],
                _ => vec![first],
            };
            let matches = |commands: &&[&str]| match path.as_slice() {
                [only] => commands.contains(only) && commands.first() != Some(&"network"),
                other => **commands == *other,
            };
            let known = FLAGS.iter().any(|(commands, flags)| matches(commands) && has(flags, word));
            let line = path.join(" ");
            known.then(|| {
                let command = if line.is_empty() { "runtime".to_owned() } else { format!("runtime {line}") };
                format!(
                    "{line}{}{word}: Docker has this flag, Weft has not; `{command} --help` lists Weft's flags",
                    if line.is_empty() { "" } else { " " }
                )
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_of_the_lists_is_one_of_wefts() {
        let command = Cli::command();
        for word in COMMANDS.split_whitespace() {
            assert!(command.find_subcommand(word).is_none(), "{word}");
        }
        for (path, flags) in FLAGS {
            let mut of = vec![&command];
            if path.first() == Some(&"network") {
                let network = command.find_subcommand("network").unwrap();
                of = vec![network.find_subcommand(path[1]).unwrap()];
            } else if !path.is_empty() {
                of = path.iter().map(|word| command.find_subcommand(word).unwrap()).collect();
            }
            for (command, flag) in
                of.iter().flat_map(|of| flags.split_whitespace().map(move |flag| (of, flag)))
            {
                let is = |arg: &clap::Arg| match flag.strip_prefix("--") {
                    Some(long) => arg.get_long_and_visible_aliases().unwrap_or_default().contains(&long),
                    None => arg.get_short().is_some_and(|short| flag == format!("-{short}")),
                };
                assert!(!command.get_arguments().any(is), "{} {flag}", command.get_name());
            }
        }
    }

    #[test]
    fn what_a_variable_sets_is_not_in_the_usage() {
        let error = |command: clap::Command| {
            command.try_get_matches_from(["runtime", "lab", "exec"]).unwrap_err().to_string()
        };
        // Of those that are set wherever tests run.
        let with =
            Cli::command().mut_args(|arg| if arg.get_id() == "cni_bin" { arg.env("PATH") } else { arg });
        assert!(error(with.clone()).contains("--cni-bin"), "{}", error(with.clone()));
        let without = error(without_variables(with));
        assert!(without.contains("<HOST>") && !without.contains("--cni-bin"), "{without}");
    }
}
