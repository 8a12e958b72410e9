//! A plugin's calls of another: the same parameters, the same configuration, errors with their codes.

use crate::scripts::Scripts;
use cni::request::{Command, Request};
use cni::{Version, delegate};
use serde_json::{Value, json};

fn request(scripts: &Scripts, command: Command) -> Request {
    let path = scripts.path().display().to_string();
    let env = move |name: &str| {
        let value = match name {
            "CNI_CONTAINERID" => "c1",
            "CNI_NETNS" => "/run/netns/c1",
            "CNI_IFNAME" => "eth0",
            "CNI_ARGS" => "IP=10.0.0.9;MAC=02::",
            "CNI_NETNS_OVERRIDE" => "True",
            "CNI_PATH" => path.as_str(),
            _ => return None,
        };
        Some(value.to_owned())
    };
    Request::new(command, &env, conf().as_object().unwrap().clone(), Version::ALL).unwrap()
}

fn conf() -> Value {
    json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "pool"},
        "cni.dev/valid-attachments": []})
}

#[test]
fn the_delegate_gets_its_callers_parameters_and_configuration() {
    let scripts = Scripts::new();
    scripts.good("pool", "10.0.0.9/24");
    let result = delegate::add(&request(&scripts, Command::Add), "pool").unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.0.0.9/24");
    let call = &scripts.calls()[0];
    assert_eq!(call.stdin, conf());
    for (name, value) in [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IP=10.0.0.9;MAC=02::"),
        ("CNI_NETNS_OVERRIDE", "1"),
    ] {
        assert_eq!(call.var(name), Some(value), "{name}");
    }
}

#[test]
fn every_verb_reaches_the_delegate() {
    let scripts = Scripts::new();
    scripts.good("pool", "10.0.0.9/24");
    delegate::del(&request(&scripts, Command::Del), "pool").unwrap();
    delegate::check(&request(&scripts, Command::Check), "pool").unwrap();
    delegate::gc(&request(&scripts, Command::Gc), "pool").unwrap();
    delegate::status(&request(&scripts, Command::Status), "pool").unwrap();
    assert_eq!(scripts.said(), ["pool DEL", "pool CHECK", "pool GC", "pool STATUS"]);
}

#[test]
fn the_delegates_error_keeps_its_code_and_names_it() {
    let scripts = Scripts::new();
    scripts.raw(
        "pool",
        r#"cat >/dev/null; echo '{"code":11,"msg":"full","details":"all of 10.0.0.0/24"}'; exit 1"#,
    );
    let error = delegate::add(&request(&scripts, Command::Add), "pool").unwrap_err();
    assert_eq!(
        (error.code, error.msg.as_str(), error.details.as_str()),
        (11, "pool ADD: full", "all of 10.0.0.0/24")
    );
}

#[test]
fn a_delegate_that_is_not_there_is_an_error_that_names_it() {
    let scripts = Scripts::new();
    let error = delegate::del(&request(&scripts, Command::Del), "pool").unwrap_err();
    assert!(error.code == 4 && error.msg.contains("\"pool\""), "{error}");
    let mut without_path = request(&scripts, Command::Del);
    without_path.path.clear();
    let error = delegate::del(&without_path, "pool").unwrap_err();
    assert!(error.code == 4 && error.msg.contains("CNI_PATH"), "{error}");
    let error = delegate::add(&request(&scripts, Command::Add), "../pool").unwrap_err();
    assert_eq!(error.code, 7);
}

#[test]
fn a_delegate_that_prints_no_result_is_an_error() {
    let scripts = Scripts::new();
    for body in ["exit 0", "echo '{\"ips\":3}'"] {
        scripts.raw("pool", body);
        assert_eq!(delegate::add(&request(&scripts, Command::Add), "pool").unwrap_err().code, 6);
    }
}
