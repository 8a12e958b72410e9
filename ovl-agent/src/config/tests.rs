//! Settings from layers, and what is refused.

use super::*;
use crate::args::{Cli, Command};
use clap::Parser;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

/// Checks these arguments with these variables, and an empty file unless they name one.
fn check(args: &[&str], env: &[(&str, &str)]) -> Result<Config> {
    let env: BTreeMap<_, _> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let env = |name: &str| env.get(name).cloned();
    let mut words = vec!["ovl-agent", "run"];
    if !args.contains(&"--config") && env("WEFT_AGENT_CONFIG").is_none() {
        words.extend(["--config", "/dev/null"]);
    }
    words.extend(args);
    let cli = Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
    let Command::Run(run) = &cli.command else { panic!("not run") };
    Config::check(&Layers::read(&cli.global, run, env)?, "myhost", env)
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, text).unwrap();
    file
}

fn refused(args: &[&str], env: &[(&str, &str)]) -> String {
    check(args, env).unwrap_err().to_string()
}

#[test]
fn without_anything_the_defaults_hold() {
    let config = check(&[], &[]).unwrap();
    assert_eq!(config.agent_root, Path::new("/var/lib/weft/ovl-agent"));
    assert_eq!(config.run, Path::new("/run/weft"));
    assert_eq!(config.store, Target::Local("/var/lib/weft/ovl-agent/store".into()));
    assert_eq!((config.node_name.as_str(), config.port), ("myhost", 4789));
    assert_eq!((config.interface, config.advertise, config.metrics_listen), (None, None, None));
    assert_eq!(config.logging, Logging { level: tracing::Level::INFO, json: false });
}

#[test]
fn a_flag_wins_over_a_variable_and_a_variable_over_the_file() {
    let file =
        file("port = 1\nnode-name = \"file\"\nlog = \"error\"\netcd = [\"http://a:1\", \"http://b:2\"]\n");
    let path = file.path().to_str().unwrap();
    let env = [("WEFT_PORT", "2"), ("WEFT_NODE_NAME", "env")];
    let config = check(&["--config", path, "--port", "3"], &env).unwrap();
    assert_eq!((config.port, config.node_name.as_str()), (3, "env"));
    assert_eq!(config.logging.level, tracing::Level::ERROR);
    let Target::Etcd(etcd) = config.store else { panic!("{:?}", config.store) };
    assert_eq!(etcd.endpoints, ["http://a:1", "http://b:2"]);
    // The file by its variable, and an empty variable, which is none.
    let config = check(&[], &[("WEFT_AGENT_CONFIG", path), ("WEFT_PORT", "")]).unwrap();
    assert_eq!((config.port, config.node_name.as_str()), (1, "file"));
}

#[test]
fn every_setting_has_a_flag_a_variable_and_a_key() {
    for key in layers::KEYS {
        let value = "\u{1}not allowed anywhere\n";
        let file = file(&format!("{key} = {}\n", toml::Value::String(value.to_owned())));
        let variable = format!("WEFT_{}", key.to_uppercase().replace('-', "_"));
        let of =
            |layers: std::result::Result<Layers, ConfigError>| layers.unwrap().get(key).unwrap().text.clone();
        let no = |_: &str| None;
        let global =
            |config: &Path| crate::args::Global { config: Some(config.to_owned()), ..Default::default() };
        let run = crate::args::RunArgs::default();
        assert_eq!(of(Layers::read(&global(file.path()), &run, no)), value, "{key} in the file");
        let env = |name: &str| (name == variable).then(|| value.to_owned());
        assert_eq!(of(Layers::read(&global(Path::new("/dev/null")), &run, env)), value, "{variable}");
        let flag = format!("--{key}");
        let cli = Cli::try_parse_from(["ovl-agent", "run", "--config", "/dev/null", &flag, value]).unwrap();
        let Command::Run(run) = &cli.command else { panic!("not run") };
        assert_eq!(of(Layers::read(&cli.global, run, no)), value, "{flag}");
    }
}

#[test]
fn what_is_not_allowed_is_refused_by_origin_value_and_what_is() {
    let cases: [(&[&str], &str); 19] = [
        (&["--port", "0"], "--port \"0\": must be a UDP port, 1 to 65535"),
        (&["--port", "70000"], "--port \"70000\": must be"),
        (&["--node-name", "a/b"], "--node-name \"a/b\": must be 1 to 253 of"),
        (&["--node-name", ""], "--node-name \"\": must be"),
        (&["--interface", "sixteen-bytes-is"], "--interface \"sixteen-bytes-is\": must be"),
        (&["--advertise", "10.0.0.0/8"], "--advertise \"10.0.0.0/8\": must be an address"),
        (&["--advertise", "127.0.0.1"], "--advertise \"127.0.0.1\""),
        (&["--advertise", "fe80::1"], "--advertise \"fe80::1\""),
        (&["--metrics-listen", "9790"], "--metrics-listen \"9790\": must be ADDRESS:PORT"),
        (&["--log", "loud"], "--log \"loud\": must be error, warn, info or debug"),
        (&["--log-format", "xml"], "--log-format \"xml\": must be text or json"),
        (&["--no-forward-accept", "yes"], "--no-forward-accept \"yes\": must be true or false"),
        (&["--root", ""], "--root \"\": must be the path of a directory"),
        (&["--etcd-ca", "/x"], "--etcd-ca: it needs the endpoints of etcd, --etcd URL"),
        (&["--etcd", "10.0.0.1:2379"], "--etcd"),
        (&["--etcd", ""], "--etcd"),
        (&["--etcd", "http://a:1", "--etcd-user", "u"], "needs a password: --etcd-password-file FILE"),
        (
            &["--etcd", "http://a:1", "--etcd-password-file", "/x"],
            "--etcd-password-file \"/x\": needs --etcd-user",
        ),
        (
            &["--etcd", "http://a:1", "--etcd-user", "u", "--etcd-password-file", "/nowhere"],
            "--etcd-password-file \"/nowhere\": cannot be read: No such file",
        ),
    ];
    for (args, expected) in cases {
        let error = refused(args, &[]);
        assert!(error.contains(expected), "{args:?}: {error}");
    }
    assert!(refused(&[], &[("WEFT_PORT", "x")]).starts_with("WEFT_PORT \"x\": must be a UDP port"));
    assert!(refused(&[], &[("WEFT_ETCD", "ftp://x")]).starts_with("WEFT_ETCD \"ftp://x\": "));
}

#[test]
fn no_forward_accept_is_a_switch_in_each_layer() {
    let file = file("no-forward-accept = true");
    let config = ["--config", file.path().to_str().unwrap()];
    let accepts = |args: &[&str], env: &[(&str, &str)]| check(args, env).unwrap().forward_accept;
    assert!(accepts(&[], &[]));
    assert!(!accepts(&["--no-forward-accept", "--port", "4790"], &[]));
    assert!(!accepts(&config, &[]) && !accepts(&[], &[("WEFT_NO_FORWARD_ACCEPT", "true")]));
    assert!(accepts(&[&config[..], &["--no-forward-accept=false"]].concat(), &[]));
}

#[test]
fn a_bad_file_is_refused_by_its_name_and_key() {
    let cases = [
        ("colour = 1", "\"colour\" in FILE: there is no such key; keys are root, run, node-name"),
        ("[etcd]\nca = \"x\"", "etcd in FILE: a table; it must be a string or a list of strings"),
        (
            "allow-store-from-containers = 1",
            "allow-store-from-containers in FILE \"1\": must be true or false",
        ),
        ("port = true", "port in FILE: a boolean; it must be a string"),
        ("no-forward-accept = []", "no-forward-accept in FILE \"\": must be true or false"),
        ("port = 99999", "port in FILE \"99999\": must be a UDP port"),
        ("log = \"info\"\nport = ", "FILE, line 2:"),
    ];
    for (text, expected) in cases {
        let file = file(text);
        let path = file.path().to_str().unwrap();
        let error = refused(&["--config", path], &[]);
        assert!(error.contains(&expected.replace("FILE", path)), "{text}: {error}");
    }
    let error = refused(&["--config", "/nowhere.toml"], &[]);
    assert!(error.starts_with("configuration file /nowhere.toml: No such file"), "{error}");
}

#[test]
fn a_password_is_in_no_error_and_no_debug_output() {
    let secret = "s3cr3t-w0rd";
    let password = file(&format!("{secret}\n"));
    let path = password.path().to_str().unwrap();
    let args = ["--etcd", "http://a:1", "--etcd-user", "u", "--etcd-password-file", path];
    let config = check(&args, &[]).unwrap();
    let Target::Etcd(etcd) = &config.store else { panic!("{:?}", config.store) };
    assert_eq!(etcd.user, Some(("u".to_owned(), secret.to_owned())));
    assert!(!format!("{config:?}").contains(secret));
    let of_file = |warning: &&String| warning.starts_with("the password file");
    assert_eq!(config.warnings.iter().find(of_file), None, "a file of mode 0600 is good");
    let env = [("WEFT_ETCD_PASSWORD", secret)];
    let config = check(&["--etcd", "http://a:1", "--etcd-user", "u"], &env).unwrap();
    assert!(!format!("{config:?}").contains(secret));
    // Where somebody puts it by mistake.
    let key = file(&format!("etcd-password = \"{secret}\""));
    let errors = [
        refused(&["--etcd", "http://a:1", "--etcd-user", &format!("u:{secret}")], &[]),
        refused(&["--etcd", &format!("http://u:{secret}@a:1")], &[]),
        refused(&["--etcd", &format!("u:{secret}@a:1")], &[]),
        refused(&["--config", key.path().to_str().unwrap()], &[]),
    ];
    for error in errors {
        assert!(!error.contains(secret), "{error}");
    }
    assert!(Cli::try_parse_from(["ovl-agent", "run", "--etcd-password", "x"]).is_err());
}

#[test]
fn a_password_file_that_others_can_read_is_warned_of() {
    let password = file("word");
    std::fs::set_permissions(password.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let path = password.path().to_str().unwrap();
    let config =
        check(&["--etcd", "http://a:1", "--etcd-user", "u", "--etcd-password-file", path], &[]).unwrap();
    assert_eq!(config.warnings[0], format!("the password file {path} can be read by others (mode 0644)"));
}

#[test]
fn password_over_http_is_warned_of() {
    let env = [("WEFT_ETCD_PASSWORD", "s3cr3t")];
    let config = check(&["--etcd", "http://a:1", "--etcd-user", "u"], &env).unwrap();
    let warned = config.warnings;
    assert!(
        matches!(&warned[..], [one] if one.starts_with("--etcd http://a:1: user and password")),
        "{warned:?}"
    );
    assert_eq!(check(&["--etcd", "http://a:1"], &[]).unwrap().warnings, Vec::<String>::new());
    let ca = file("");
    let ca = ca.path().to_str().unwrap();
    let config = check(&["--etcd", "https://a:1", "--etcd-ca", ca, "--etcd-user", "u"], &env).unwrap();
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn files_that_are_not_regular_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [fifo.to_str().unwrap(), "/dev/zero"] {
        let errors = [
            refused(&["--config", path], &[]),
            refused(&["--etcd", "http://a:1", "--etcd-user", "u", "--etcd-password-file", path], &[]),
        ];
        for error in errors {
            assert!(error.contains(path) && error.contains("expected a regular file"), "{error}");
        }
    }
}
