//! What a plugin answers: one document on stdout or none, and the exit status.

use cni::plugin::{Plugin, run};
use cni::request::Request;
use cni::types::{AddResult, IpConfig};
use cni::{Error, MAX_DOCUMENT, Version};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::io::{self, Read};

/// A plugin that writes down what it was asked.
#[derive(Default)]
struct Probe {
    asked: RefCell<Vec<String>>,
    without_address: bool,
}

impl Probe {
    fn note(&self, request: &Request) {
        self.asked.borrow_mut().push(request.command.to_string());
    }
}

impl Plugin for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        self.note(request);
        assert!(request.conf.get::<bool>("panic")?.is_none(), "told to");
        let ip = IpConfig { interface: None, address: "10.0.0.5/24".parse().unwrap(), gateway: None };
        let ips = if self.without_address { vec![] } else { vec![ip] };
        Ok(AddResult { ips, ..AddResult::default() })
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        self.note(request);
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        self.note(request);
        Err(Error::new(100, "it is gone"))
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        self.note(request);
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        self.note(request);
        Err(Error::not_available("no addresses"))
    }
}

const ALL: &[(&str, &str)] = &[
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/c1"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_PATH", "/opt/cni/bin"),
];

/// Asks with these variables; gives the status and all of stdout.
fn ask_with(plugin: &Probe, command: &str, vars: &[(&str, &str)], stdin: impl Read) -> (i32, String) {
    let env = |name: &str| {
        let value = vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        if name == "CNI_COMMAND" { Some(command.to_owned()) } else { value }
    };
    let mut stdout = Vec::new();
    let status = run(plugin, env, stdin, &mut stdout);
    (status, String::from_utf8(stdout).unwrap())
}

fn ask(command: &str, conf: &Value) -> (i32, Value) {
    let (status, stdout) = ask_with(&Probe::default(), command, ALL, conf.to_string().as_bytes());
    (status, if stdout.is_empty() { Value::Null } else { serde_json::from_str(&stdout).unwrap() })
}

fn conf(version: &str) -> Value {
    json!({"cniVersion": version, "name": "net", "type": "probe"})
}

#[test]
fn add_prints_its_result_in_the_configurations_version() {
    assert_eq!(
        ask("ADD", &conf("1.1.0")),
        (0, json!({"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.5/24"}]}))
    );
    let old = json!({"cniVersion": "0.1.0", "ip4": {"ip": "10.0.0.5/24"}, "dns": {}});
    assert_eq!(ask("ADD", &conf("0.1.0")), (0, old.clone()));
    assert_eq!(ask("ADD", &json!({"name": "net"})), (0, old), "no cniVersion means 0.1.0");
}

#[test]
fn verbs_without_a_result_print_nothing() {
    assert_eq!(ask("DEL", &conf("0.1.0")), (0, Value::Null));
    let mut gc = conf("1.1.0");
    gc["cni.dev/valid-attachments"] = json!([]);
    assert_eq!(ask("GC", &gc), (0, Value::Null));
}

#[test]
fn errors_are_one_document_in_the_configurations_version() {
    assert_eq!(
        ask("CHECK", &conf("0.4.0")),
        (1, json!({"cniVersion": "0.4.0", "code": 100, "msg": "it is gone"}))
    );
    assert_eq!(ask("STATUS", &conf("1.1.0")).1["code"], 50);
}

#[test]
fn each_verb_names_the_variables_that_it_misses() {
    for (command, required) in [
        ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"][..]),
        ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
        ("GC", &["CNI_PATH"]),
        ("STATUS", &["CNI_PATH"]),
    ] {
        let probe = Probe::default();
        let (status, stdout) = ask_with(&probe, command, &[], conf("1.1.0").to_string().as_bytes());
        let error: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((status, &error["code"]), (1, &json!(4)), "{command}");
        for (name, _) in ALL {
            let named = error["msg"].as_str().unwrap().contains(name);
            assert_eq!(named, required.contains(name), "{command} {name}: {error}");
        }
        assert!(probe.asked.borrow().is_empty());
    }
}

#[test]
fn variables_that_no_verb_requires_may_be_missing() {
    let mut stdin = conf("1.1.0");
    stdin["cni.dev/valid-attachments"] = json!([]);
    for (command, vars) in [("ADD", &ALL[..3]), ("DEL", &[ALL[0], ALL[2]]), ("GC", &ALL[3..])] {
        let (status, stdout) = ask_with(&Probe::default(), command, vars, stdin.to_string().as_bytes());
        assert_eq!(status, 0, "{command}: {stdout}");
    }
}

#[test]
fn an_empty_variable_is_as_missing() {
    let vars = [("CNI_CONTAINERID", ""), ALL[1], ALL[2]];
    let (_, stdout) = ask_with(&Probe::default(), "ADD", &vars, conf("1.0.0").to_string().as_bytes());
    assert!(stdout.contains("CNI_CONTAINERID") && !stdout.contains("CNI_IFNAME"), "{stdout}");
}

#[test]
fn an_unknown_or_missing_command_is_an_environment_error() {
    for command in ["", "add", "DESTROY"] {
        let (status, error) = ask(command, &conf("1.0.0"));
        assert_eq!((status, &error["code"]), (1, &json!(4)), "{command}");
        assert!(error["msg"].as_str().unwrap().contains("CNI_COMMAND"));
    }
}

#[test]
fn bad_names_are_refused_before_the_plugin_is_asked() {
    for (name, value, code) in
        [("CNI_CONTAINERID", "../x", 4), ("CNI_IFNAME", "a/b", 4), ("CNI_IFNAME", "1234567890123456", 4)]
    {
        let mut vars = ALL.to_vec();
        vars.retain(|(key, _)| *key != name);
        vars.push((name, value));
        let probe = Probe::default();
        let (_, stdout) = ask_with(&probe, "DEL", &vars, conf("1.0.0").to_string().as_bytes());
        assert!(stdout.contains(&format!("\"code\":{code}")) && stdout.contains(name), "{stdout}");
        assert!(probe.asked.borrow().is_empty());
    }
    for name in [json!("a b"), json!(""), Value::Null] {
        let mut conf = conf("1.0.0");
        conf["name"] = name;
        assert_eq!(ask("ADD", &conf).1["code"], 7, "{conf}");
    }
}

#[test]
fn a_version_that_the_plugin_does_not_know_is_an_error_that_lists_those_it_knows() {
    let (status, error) = ask("ADD", &conf("1.2.0"));
    assert_eq!((status, &error["code"], &error["cniVersion"]), (1, &json!(1), &json!("1.1.0")));
    assert!(error["details"].as_str().unwrap().contains("1.2.0"), "{error}");
    assert!(error["details"].as_str().unwrap().contains("0.3.1"), "{error}");
}

#[test]
fn verbs_are_refused_in_versions_that_do_not_have_them() {
    for &version in Version::ALL {
        for (command, since) in
            [("CHECK", Version::V0_4_0), ("GC", Version::V1_1_0), ("STATUS", Version::V1_1_0)]
        {
            let error = ask(command, &conf(version.as_str())).1;
            let refused = error["code"] == 1;
            assert_eq!(refused, version < since, "{command} {version}: {error}");
        }
    }
}

#[test]
fn gc_without_the_list_of_valid_attachments_is_refused() {
    let (status, error) = ask("GC", &conf("1.1.0"));
    assert_eq!((status, &error["code"]), (1, &json!(7)));
    assert!(error["msg"].as_str().unwrap().contains("cni.dev/valid-attachments"), "{error}");
    let mut old = conf("1.1.0");
    old["cni.dev/attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    assert_eq!(ask("GC", &old).0, 0);
}

#[test]
fn version_needs_only_the_command_and_echoes_the_runtimes_version() {
    let all = json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for (stdin, version) in [
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"7.0.0"}"#, "7.0.0"),
        ("", "1.1.0"),
        ("{", "1.1.0"),
    ] {
        let (status, stdout) = ask_with(&Probe::default(), "VERSION", &[], stdin.as_bytes());
        let said: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((status, said), (0, json!({"cniVersion": version, "supportedVersions": all})));
    }
}

#[test]
fn truncated_json_is_a_decoding_error() {
    let whole = conf("1.0.0").to_string();
    for end in 0..whole.len() {
        let (status, stdout) = ask_with(&Probe::default(), "ADD", ALL, &whole.as_bytes()[..end]);
        assert!(status == 1 && stdout.contains("\"code\":6"), "{end}: {stdout}");
    }
}

#[test]
fn a_document_of_10_mb_is_refused_without_being_read_to_its_end() {
    struct Counted(u64);
    impl Read for Counted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            buffer.fill(b' ');
            self.0 += buffer.len() as u64;
            Ok(buffer.len())
        }
    }
    let mut endless = Counted(0);
    let (status, stdout) = ask_with(&Probe::default(), "ADD", ALL, &mut endless);
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["code"], 6);
    assert_eq!(status, 1);
    assert!(endless.0 <= MAX_DOCUMENT as u64 + 64 * 1024, "{} bytes were read", endless.0);
    let long = format!("{}{}", " ".repeat(10_000_000), conf("1.0.0"));
    let (status, stdout) = ask_with(&Probe::default(), "ADD", ALL, long.as_bytes());
    assert!(status == 1 && stdout.contains("8 MiB"), "{stdout}");
}

#[test]
fn stdin_that_cannot_be_read_is_an_io_error() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }
    let (status, stdout) = ask_with(&Probe::default(), "ADD", ALL, Broken);
    assert!(status == 1 && stdout.contains("\"code\":5"), "{stdout}");
}

#[test]
fn a_panic_becomes_an_error_document() {
    let mut conf = conf("0.4.0");
    conf["panic"] = json!(true);
    let (status, error) = ask("ADD", &conf);
    assert_eq!((status, &error["code"], &error["cniVersion"]), (1, &json!(100), &json!("0.4.0")));
    assert!(error["details"].as_str().unwrap().contains("told to"), "{error}");
}

#[test]
fn an_add_whose_result_cannot_be_told_is_taken_back() {
    let probe = Probe { without_address: true, ..Probe::default() };
    let (status, stdout) = ask_with(&probe, "ADD", ALL, conf("0.2.0").to_string().as_bytes());
    assert!(status == 1 && stdout.contains("\"code\":1"), "{stdout}");
    assert_eq!(probe.asked.borrow().len(), 2, "ADD and DEL");
}

#[test]
fn del_goes_on_without_a_prev_result_that_cannot_be_read() {
    let mut conf = conf("1.0.0");
    conf["prevResult"] = json!({"ips": "none"});
    assert_eq!(ask("DEL", &conf), (0, Value::Null));
    assert_eq!(ask("ADD", &conf).1["code"], 6);
}

proptest! {
    #[test]
    fn any_input_gets_exactly_one_document(command in "ADD|DEL|CHECK|GC|STATUS|VERSION|.{0,8}", stdin: Vec<u8>, depth in 0..300usize) {
        let nested = "[".repeat(depth);
        for stdin in [&stdin[..], nested.as_bytes(), format!("{{\"name\":{nested}").as_bytes()] {
            let (status, stdout) = ask_with(&Probe::default(), &command, ALL, stdin);
            prop_assert!(serde_json::from_str::<Value>(&stdout).is_ok(), "{}", stdout);
            prop_assert_eq!(status == 0, command == "VERSION");
        }
    }
}
