//! One execution: what a plugin may do with its pipes and its time, and how a failure is told.

use crate::scripts::Scripts;
use cni::config::ConfList;
use cni::invoke::{Attachment, InvokeError, Invoker};
use serde_json::json;
use std::time::{Duration, Instant};

fn add(scripts: &Scripts, limit: Option<Duration>, padding: usize) -> Result<usize, InvokeError> {
    let list = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "p", "padding": "x".repeat(padding)}]});
    let list = ConfList::from_slice(list.to_string().as_bytes()).unwrap();
    let attachment = Attachment {
        container_id: "c".into(),
        netns: Some("/n".into()),
        ifname: "eth0".into(),
        ..Attachment::default()
    };
    let invoker = Invoker { path: vec![scripts.path()], limit, ..Invoker::default() };
    invoker.add(&list, &attachment).map(|result| result.dns.domain.unwrap_or_default().len())
}

/// The error of the ADD itself: the DELs of these plugins fail as well.
fn failure(scripts: &Scripts, limit: Option<Duration>) -> InvokeError {
    match add(scripts, limit, 0).unwrap_err() {
        InvokeError::Undo { error, .. } => *error,
        error => error,
    }
}

#[test]
fn a_plugin_may_print_much_before_it_reads_anything() {
    let scripts = Scripts::new();
    scripts.raw(
        "p",
        r#"printf '{"dns":{"domain":"'; head -c 1000000 /dev/zero | tr '\0' y; printf '"}}'
head -c 300000 /dev/zero >&2; cat >/dev/null"#,
    );
    assert_eq!(add(&scripts, None, 1_000_000).unwrap(), 1_000_000);
}

#[test]
fn a_plugin_need_not_read_its_stdin() {
    let scripts = Scripts::new();
    scripts.raw("p", "exec <&-; echo '{}'");
    assert_eq!(add(&scripts, None, 1_000_000).unwrap(), 0);
}

#[test]
fn a_process_that_a_plugin_leaves_behind_with_its_pipes_is_not_waited_for() {
    let scripts = Scripts::new();
    scripts.raw("p", "echo '{}'; sleep 300 & echo $! > ${0%/*}/left; exit 0");
    assert_eq!(add(&scripts, None, 0).unwrap(), 0);
    let left = std::fs::read_to_string(scripts.path().join("left")).unwrap();
    let killed = std::process::Command::new("kill").arg(left.trim()).status().unwrap();
    assert!(killed.success(), "it still runs: the invoker did not wait for it");
}

#[test]
fn a_plugin_that_takes_too_long_is_killed() {
    let scripts = Scripts::new();
    for body in ["echo waiting >&2; exec sleep 300", "echo waiting >&2; exec >&- 2>&-; exec sleep 300"] {
        scripts.raw("p", body);
        let start = Instant::now();
        let error = failure(&scripts, Some(Duration::from_millis(300)));
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
        assert!(matches!(&error, InvokeError::Timeout { stderr, .. } if stderr == "waiting"), "{error}");
        assert_eq!(error.code(), 11);
    }
}

#[test]
fn a_missing_plugin_is_an_error_that_lists_where_it_was_looked_for() {
    let scripts = Scripts::new();
    let error = failure(&scripts, None);
    assert_eq!(error.to_string(), format!("no plugin \"p\" for ADD in {}", scripts.path().display()));
}

#[test]
fn a_plugin_that_is_no_executable_is_an_error_with_its_path() {
    let scripts = Scripts::new();
    std::fs::create_dir(scripts.path()).unwrap();
    std::fs::write(scripts.path().join("p"), "text").unwrap();
    let error = failure(&scripts, None);
    assert!(matches!(error, InvokeError::Execute { .. }) && error.code() == 5, "{error}");
    assert!(error.to_string().contains("bin/p"), "{error}");
}

#[test]
fn output_that_is_not_json_is_shown_with_the_end_of_stderr() {
    let scripts = Scripts::new();
    for (body, parts) in [
        ("echo hello; echo warning >&2", ["cannot be decoded", "hello", "warning"]),
        ("echo hello; echo warning >&2; exit 3", ["exit status: 3", "hello", "warning"]),
        ("echo '{}'; echo warning >&2; exit 3", ["exit status: 3", "not an error document", "warning"]),
        ("echo gone >&2; kill -9 $$", ["signal: 9", "no error document", "gone"]),
    ] {
        scripts.raw("p", body);
        let error = failure(&scripts, None);
        assert_eq!(error.code(), 6);
        for part in parts {
            assert!(error.to_string().contains(part), "{body}: {error}");
        }
    }
}

#[test]
fn only_the_beginning_of_stdout_and_the_end_of_stderr_are_shown() {
    let scripts = Scripts::new();
    scripts.raw(
        "p",
        "head -c 9000 /dev/zero | tr '\\0' a; (head -c 9000 /dev/zero | tr '\\0' b; echo END) >&2; exit 1",
    );
    let InvokeError::Output { stdout, stderr, .. } = failure(&scripts, None) else { panic!() };
    assert_eq!(*stdout, *"a".repeat(200));
    assert!(stderr.len() <= 4096 && stderr.ends_with("bEND"), "{}", stderr.len());
}

#[test]
fn a_plugin_that_prints_without_end_is_killed() {
    let scripts = Scripts::new();
    scripts.raw("p", "exec cat /dev/zero");
    let error = failure(&scripts, Some(Duration::from_secs(20)));
    assert!(error.to_string().contains("more than 8 MiB"), "{error}");
}

#[test]
fn an_add_that_prints_nothing_is_an_error() {
    let scripts = Scripts::new();
    scripts.raw("p", "exit 0");
    assert_eq!(failure(&scripts, None).code(), 6);
}
