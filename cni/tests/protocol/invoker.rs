//! Chains of plugins: what each gets, in which order, and what happens when one fails.

use crate::scripts::Scripts;
use cni::cache::Cache;
use cni::config::{ConfList, ValidAttachment};
use cni::invoke::{Attachment, InvokeError, Invoker};
use cni::{Error, Version};
use serde_json::{Value, json};

fn invoker(scripts: &Scripts) -> Invoker {
    let cache = Some(Cache::new(scripts.dir.path().join("results")));
    Invoker { path: vec![scripts.path()], cache, ..Invoker::default() }
}

fn list(value: &Value) -> ConfList {
    ConfList::from_slice(value.to_string().as_bytes()).unwrap()
}

fn chain(version: &str) -> ConfList {
    let plugins =
        json!([{"type": "one", "own": 1}, {"type": "two", "capabilities": {"ports": true, "mac": false}}]);
    list(&json!({"cniVersion": version, "name": "net", "plugins": plugins}))
}

fn attachment() -> Attachment {
    Attachment {
        container_id: "c1".into(),
        netns: Some("/run/netns/c1".into()),
        ifname: "eth0".into(),
        args: vec![("A".into(), "1".into()), ("B".into(), "2".into())],
        capability_args: json!({"ports": [80], "mac": "02::", "other": 1}).as_object().unwrap().clone(),
    }
}

fn good() -> Scripts {
    let scripts = Scripts::new();
    scripts.good("one", "10.0.0.1/24");
    scripts.good("two", "10.0.0.2/24");
    scripts
}

#[test]
fn add_passes_each_result_to_the_next_plugin_and_returns_the_last() {
    let scripts = good();
    let result = invoker(&scripts).add(&chain("1.0.0"), &attachment()).unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.0.0.2/24");
    assert_eq!(scripts.said(), ["one ADD", "two ADD"]);
    let calls = scripts.calls();
    assert_eq!(calls[0].stdin, json!({"type": "one", "own": 1, "cniVersion": "1.0.0", "name": "net"}));
    assert_eq!(
        calls[1].stdin["prevResult"],
        json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/24"}]})
    );
}

#[test]
fn plugins_get_their_parameters_in_the_environment() {
    let scripts = good();
    let invoker = Invoker { env: vec![("CNI_EXTRA".into(), "x".into())], ..invoker(&scripts) };
    invoker.add(&chain("1.0.0"), &attachment()).unwrap();
    let calls = scripts.calls();
    let path = scripts.path().display().to_string();
    for (name, value) in [
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "A=1;B=2"),
        ("CNI_PATH", &path),
        ("CNI_EXTRA", "x"),
    ] {
        assert_eq!(calls[0].var(name), Some(value), "{name}");
    }
    assert_eq!(calls[0].var("PATH").map(str::to_owned), std::env::var("PATH").ok(), "the rest is inherited");
}

#[test]
fn a_plugin_gets_the_capabilities_that_it_declares_and_no_others() {
    let scripts = good();
    invoker(&scripts).add(&chain("1.0.0"), &attachment()).unwrap();
    let calls = scripts.calls();
    assert_eq!(calls[0].stdin.get("runtimeConfig"), None);
    assert_eq!(calls[1].stdin["runtimeConfig"], json!({"ports": [80]}));
}

#[test]
fn del_runs_in_reverse_with_the_result_of_the_add_and_forgets_it() {
    let scripts = good();
    let invoker = invoker(&scripts);
    invoker.add(&chain("0.4.0"), &attachment()).unwrap();
    let bare = Attachment { netns: None, args: vec![], capability_args: Default::default(), ..attachment() };
    invoker.del(&chain("0.4.0"), &bare).unwrap();
    assert_eq!(scripts.said()[2..], ["two DEL", "one DEL"]);
    for call in &scripts.calls()[2..] {
        assert_eq!(call.stdin["prevResult"]["ips"][0]["address"], "10.0.0.2/24");
        assert_eq!((call.var("CNI_NETNS"), call.var("CNI_ARGS")), (Some(""), Some("A=1;B=2")));
    }
    assert_eq!(scripts.calls()[2].stdin["runtimeConfig"], json!({"ports": [80]}));
    assert_eq!(invoker.cache.as_ref().unwrap().entries().unwrap(), []);
    invoker.del(&chain("0.4.0"), &bare).unwrap();
    assert_eq!(scripts.calls()[4].stdin.get("prevResult"), None);
}

#[test]
fn below_0_4_0_del_gets_no_previous_result() {
    let scripts = good();
    let invoker = invoker(&scripts);
    invoker.add(&chain("0.3.1"), &attachment()).unwrap();
    invoker.del(&chain("0.3.1"), &attachment()).unwrap();
    assert_eq!(scripts.calls()[2].stdin.get("prevResult"), None);
}

#[test]
fn a_failed_add_is_taken_back_through_the_whole_chain() {
    let scripts = good();
    scripts.plugin(
        "two",
        r#"[ $VERB = ADD ] && { echo '{"code":7,"msg":"no","details":"way"}'; exit 1; }; exit 0"#,
    );
    scripts.good("three", "10.0.0.3/24");
    let list = list(&json!({"cniVersion": "1.0.0", "name": "net",
        "plugins": [{"type": "one"}, {"type": "two"}, {"type": "three"}]}));
    let error = invoker(&scripts).add(&list, &attachment()).unwrap_err();
    assert_eq!(scripts.said(), ["one ADD", "two ADD", "three DEL", "two DEL", "one DEL"]);
    let InvokeError::Plugin { kind, error, .. } = &error else { panic!("{error}") };
    assert_eq!((kind.as_str(), error), ("two", &Error::new(7, "no").details("way")));
    assert_eq!(scripts.calls()[2].stdin["prevResult"]["ips"][0]["address"], "10.0.0.1/24");
}

#[test]
fn an_undo_goes_on_after_an_error_and_reports_it() {
    let scripts = good();
    scripts.plugin("two", r#"echo "{\"code\":100,\"msg\":\"no $VERB\"}"; exit 1"#);
    let error = invoker(&scripts).add(&chain("1.0.0"), &attachment()).unwrap_err();
    assert_eq!(scripts.said(), ["one ADD", "two ADD", "two DEL", "one DEL"]);
    assert!(matches!(error, InvokeError::Undo { .. }) && error.code() == 100);
    assert!(error.to_string().contains("no ADD") && error.to_string().contains("no DEL"), "{error}");
}

#[test]
fn a_del_that_fails_stops_the_chain_and_keeps_the_result_for_the_next_try() {
    let scripts = good();
    let invoker = invoker(&scripts);
    invoker.add(&chain("1.0.0"), &attachment()).unwrap();
    scripts.plugin("two", r#"echo '{"code":11,"msg":"busy"}'; exit 1"#);
    assert_eq!(invoker.del(&chain("1.0.0"), &attachment()).unwrap_err().code(), 11);
    assert_eq!(scripts.said()[2..], ["two DEL"]);
    assert_eq!(invoker.cache.unwrap().entries().unwrap().len(), 1);
}

#[test]
fn check_asks_every_plugin_with_the_result_of_the_add() {
    let scripts = good();
    let invoker = invoker(&scripts);
    assert_eq!(invoker.check(&chain("1.0.0"), &attachment()).unwrap_err().code(), 3, "nothing was added");
    invoker.add(&chain("1.0.0"), &attachment()).unwrap();
    invoker.check(&chain("1.0.0"), &attachment()).unwrap();
    assert_eq!(scripts.said()[2..], ["one CHECK", "two CHECK"]);
    assert_eq!(scripts.calls()[2].stdin["prevResult"]["ips"][0]["address"], "10.0.0.2/24");
}

#[test]
fn check_is_not_run_where_it_is_disabled_and_refused_where_it_does_not_exist() {
    let scripts = good();
    let invoker = invoker(&scripts);
    invoker.add(&chain("0.3.1"), &attachment()).unwrap();
    assert_eq!(invoker.check(&chain("0.3.1"), &attachment()).unwrap_err().code(), 1);
    let mut list = chain("1.0.0");
    list.disable_check = true;
    invoker.check(&list, &attachment()).unwrap();
    assert_eq!(scripts.said().len(), 2);
}

#[test]
fn a_result_that_was_kept_in_another_version_is_converted() {
    let scripts = good();
    let invoker = invoker(&scripts);
    invoker.add(&chain("0.4.0"), &attachment()).unwrap();
    invoker.check(&chain("1.0.0"), &attachment()).unwrap();
    let expected = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]});
    assert_eq!(scripts.calls()[2].stdin["prevResult"], expected);
}

#[test]
fn gc_deletes_what_the_cache_knows_as_stale_and_then_asks_the_plugins() {
    let scripts = good();
    let invoker = invoker(&scripts);
    for container_id in ["c1", "c2"] {
        let attachment = Attachment { container_id: container_id.into(), ..attachment() };
        invoker.add(&chain("1.1.0"), &attachment).unwrap();
    }
    let valid = [ValidAttachment { container_id: "c2".into(), ifname: "eth0".into() }];
    invoker.gc(&chain("1.1.0"), &valid).unwrap();
    assert_eq!(scripts.said()[4..], ["two DEL", "one DEL", "one GC", "two GC"]);
    let calls = scripts.calls();
    assert_eq!((calls[4].var("CNI_CONTAINERID"), calls[4].var("CNI_ARGS")), (Some("c1"), Some("A=1;B=2")));
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        assert_eq!(calls[6].stdin[key], json!([{"containerID": "c2", "ifname": "eth0"}]), "{key}");
    }
    assert_eq!(invoker.cache.unwrap().entries().unwrap().len(), 1);
}

#[test]
fn gc_goes_on_after_errors_and_reports_all() {
    let scripts = good();
    for kind in ["one", "two"] {
        scripts.plugin(kind, &format!(r#"echo '{{"code":100,"msg":"{kind} fails"}}'; exit 1"#));
    }
    let error = invoker(&scripts).gc(&chain("1.1.0"), &[]).unwrap_err();
    assert_eq!(error.all().len(), 2, "{error}");
    assert!(error.to_string().contains("one fails") && error.to_string().contains("two fails"), "{error}");
}

#[test]
fn gc_and_status_are_not_sent_where_they_do_not_exist_or_are_disabled() {
    let scripts = good();
    let invoker = invoker(&scripts);
    invoker.gc(&chain("1.0.0"), &[]).unwrap();
    invoker.status(&chain("1.0.0")).unwrap();
    let mut list = chain("1.1.0");
    list.disable_gc = true;
    invoker.gc(&list, &[]).unwrap();
    assert_eq!(scripts.said(), Vec::<String>::new());
    invoker.status(&list).unwrap();
    assert_eq!(scripts.said(), ["one STATUS", "two STATUS"]);
}

#[test]
fn a_list_of_several_versions_speaks_the_newest_that_every_plugin_supports() {
    let scripts = good();
    scripts.plugin(
        "two",
        r#"[ $VERB = VERSION ] && echo '{"supportedVersions":["0.4.0","1.0.0","9.0.0"]}' || echo '{"cniVersion":"1.0.0"}'"#,
    );
    let mut value = chain("0.3.1").to_value();
    value["cniVersions"] = json!(["0.4.0", "1.0.0", "1.1.0"]);
    let list = list(&value);
    let invoker = invoker(&scripts);
    invoker.add(&list, &attachment()).unwrap();
    assert_eq!(scripts.said(), ["one VERSION", "two VERSION", "one ADD", "two ADD"]);
    assert_eq!(scripts.calls()[2].stdin["cniVersion"], "1.0.0");
    invoker.del(&list, &attachment()).unwrap();
    assert_eq!(scripts.said()[4..], ["two DEL", "one DEL"], "DEL speaks what ADD spoke");
}

#[test]
fn no_common_version_is_an_error_that_names_the_plugin() {
    let scripts = good();
    scripts.plugin("two", r#"echo '{"supportedVersions":["0.2.0"]}'"#);
    let mut value = chain("0.4.0").to_value();
    value["cniVersions"] = json!(["1.0.0"]);
    let error = invoker(&scripts).add(&list(&value), &attachment()).unwrap_err();
    assert!(error.code() == 1 && error.to_string().contains("two"), "{error}");
}

#[test]
fn a_plugin_says_which_versions_it_supports() {
    let scripts = good();
    scripts.plugin("ancient", r#"echo '{"code":100,"msg":"unknown CNI_COMMAND: VERSION"}'; exit 1"#);
    let invoker = invoker(&scripts);
    assert_eq!(
        invoker.version("one").unwrap(),
        [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0]
    );
    assert_eq!(invoker.version("ancient").unwrap(), [Version::V0_1_0]);
}

#[test]
fn impossible_names_are_refused_before_anything_runs() {
    let scripts = good();
    let invoker = invoker(&scripts);
    for wrong in [
        Attachment { container_id: "../x".into(), ..attachment() },
        Attachment { ifname: "a/b".into(), ..attachment() },
        Attachment { netns: None, ..attachment() },
    ] {
        assert_eq!(invoker.add(&chain("1.0.0"), &wrong).unwrap_err().code(), 4);
    }
    assert_eq!(scripts.said(), Vec::<String>::new());
}
