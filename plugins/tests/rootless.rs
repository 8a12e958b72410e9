//! In a user namespace, as under a rootless podman: root there, but not over the host's directories.

#![allow(clippy::unwrap_used)]

mod common;

use common::Host;

/// Makes a network namespace of the user's own and runs a script there. `plugin VERB` executes bridge for container c1.
fn rootless(host: &Host, home: &str, ipam: &str, script: &str) -> (bool, String) {
    let bin = host.bin.path().display();
    let conf = format!(
        r#"{{"cniVersion":"1.1.0","name":"web","type":"bridge","bridge":"br0","isGateway":true,"ipMasq":true,"ipam":{ipam}}}"#
    );
    let inner = format!(
        "set -e; mount -t tmpfs tmpfs /run; ip link set lo up; ip netns add c1; \
         plugin() {{ printf %s '{conf}' | CNI_COMMAND=$1 CNI_CONTAINERID=c1 CNI_IFNAME=eth0 CNI_NETNS=/run/netns/c1 \
         CNI_PATH={bin} {bin}/bridge; }}; {script}"
    );
    std::fs::write(host.bin.path().join("inner.sh"), inner).unwrap();
    host.try_sh(&format!(
        "chmod 755 {bin} && chmod 700 /var/lib/weft && mkdir -p {home} && chown 1000:1000 {home} && \
         setpriv --reuid 1000 --regid 1000 --clear-groups env -u XDG_DATA_HOME HOME={home} \
         unshare --user --map-root-user --net --mount sh {bin}/inner.sh"
    ))
}

#[test]
fn rootless_bridge_keeps_leases_in_the_users_home() {
    let host = Host::new();
    let ipam = r#"{"type":"host-local","subnet":"10.5.0.0/24"}"#;
    let script = "plugin ADD | grep -q 10.5.0.2/24; ip netns exec c1 ping -qc1 -W4 10.5.0.1; \
         test -d $HOME/.local/share/weft/ipam; plugin DEL; plugin DEL; plugin ADD | grep -q /24; plugin DEL";
    let (success, text) = rootless(&host, "/run/home", ipam, script);
    assert!(success, "{text}");
    assert!(!text.contains("denied"), "{text}");
}

#[test]
fn rootless_bridge_keeps_leases_in_the_data_dir() {
    let host = Host::new();
    let ipam = r#"{"type":"host-local","subnet":"10.5.0.0/24","dataDir":"/run/home/leases"}"#;
    // A tmpfs over /run hides the home, so the store is in it.
    let script = "plugin ADD | grep -q 10.5.0.2/24; test -d /run/home/leases/.weft; plugin DEL";
    let (success, text) = rootless(&host, "/run/home", ipam, script);
    assert!(success, "{text}");
    assert!(!text.contains("denied"), "{text}");
}
