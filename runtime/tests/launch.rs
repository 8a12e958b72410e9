//! A container's process sets itself up while its networks are attached, and waits for them.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::Host;
use std::fs;

/// Makes the plugin `none` wait until the container's own layer is complete before its ADD goes on with `then`.
fn attach_after_set_up(host: &Host, then: &str) {
    let script = format!(
        r#"#!/bin/sh
echo "$CNI_COMMAND none $CNI_CONTAINERID" >> "$WEFT_ROOT/../cni.log"
[ $CNI_COMMAND = ADD ] || exit 0
for i in $(seq 1500); do
    # The kernel makes the directory `work` below it when the layer is mounted.
    [ -d "$WEFT_ROOT/containers/$CNI_CONTAINERID/work/work" ] && {{ {then}; }}
    sleep 0.02
done
echo '{{"cniVersion": "1.0.0", "code": 100, "msg": "the process did not set itself up"}}'
exit 1
"#
    );
    fs::write(host.path("cni").join("none"), script).unwrap();
}

#[test]
fn container_sets_itself_up_while_networks_attach() {
    let host = Host::new();
    let result = r#"echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.8.7/24"}]}'; exit 0"#;
    attach_after_set_up(&host, result);
    // The files that depend on the result are complete when the program runs.
    let hosts = host.ok(&["run", "--rm", "--network", "none", "--hostname", "one", "cat", "/etc/hosts"]);
    assert!(hosts.contains("10.9.8.7\tone"), "{hosts}");
    host.assert_clean();
}

#[test]
fn failed_attachment_ends_the_process_that_waits() {
    let host = Host::new();
    attach_after_set_up(&host, r#"echo '{"cniVersion": "1.0.0", "code": 100, "msg": "no"}'; exit 1"#);
    let run = ["run", "--name", "one", "--network", "none", "true"];
    let message = host.fails(125, &run);
    assert!(message.contains("cannot attach container one"), "{message}");
    host.all(&["rm", "-f", "one"]);
    host.assert_clean();
}

#[test]
fn failed_set_up_releases_what_was_attached() {
    let host = Host::new();
    // A file cannot be mounted at a directory, which the process finds out while its network is attached.
    let run = ["run", "--name", "one", "--network", "none", "-v", "/etc/hostname:/usr", "true"];
    let message = host.fails(125, &run);
    assert!(message.contains("cannot mount at /usr"), "{message}");
    assert_eq!(host.asked("ADD none"), 1);
    host.all(&["rm", "-f", "one"]);
    host.assert_clean();
}
