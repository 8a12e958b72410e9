//! The executables under a runtime of the real world: podman with its CNI backend, where it is installed.
//!
//! podman makes the conflist, drives the chain (its `firewall` and `tuning` are the reference's) and passes what it passes;
//! the traffic comes from another machine.

use std::path::Path;
use tests::{Host, Machine, Output, REFERENCE};

/// podman as it is called here: all of its files in the machine's own /run.
const PODMAN: &str = "CONTAINERS_CONF=/run/podman.conf CONTAINERS_STORAGE_CONF=/run/storage.conf podman \
    --root /run/podman/root --runroot /run/podman/run --tmpdir /run/podman/tmp --storage-driver vfs";

/// A machine on which podman uses Weft's executables, or why there is none.
fn host() -> Result<Host, String> {
    let find = |name: &str| ["/usr/bin", "/usr/sbin"].iter().any(|dir| Path::new(dir).join(name).exists());
    for program in ["podman", "conmon", "crun", "iptables"] {
        if !find(program) {
            return Err(format!("{program} is not installed"));
        }
    }
    if !Path::new(REFERENCE).join("firewall").exists() {
        return Err("containernetworking-plugins is not installed".into());
    }
    let host = Host::new();
    // crun takes cgroups of one version or the other, not both.
    host.run("mountpoint -q /sys/fs/cgroup/unified && umount /sys/fs/cgroup/unified");
    host.note_baseline();
    let weft = tests::weft_cni();
    let conf = format!(
        "[network]\nnetwork_backend = \"cni\"\nnetwork_config_dir = \"/etc/cni/net.d\"\n\
         cni_plugin_dirs = [\"{}\", \"{REFERENCE}\"]\n\
         [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"crun\"\n\
         [containers]\nlog_driver = \"k8s-file\"\n",
        weft.display()
    );
    host.write("/run/podman.conf", conf);
    host.write(
        "/run/storage.conf",
        "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/podman/run\"\ngraphroot = \"/run/podman/root\"\n",
    );
    // What podman and the reference's `firewall` leave themselves.
    for theirs in [
        "/run/podman",
        "/run/storage.conf",
        "/run/cni",
        "/run/crun",
        "/run/libpod",
        "/run/containers",
        "/etc/cni/net.d",
        "filter",
    ] {
        host.tolerate(theirs);
    }
    for ours in ["/var/lib/weft/", "/var/lib/cni/"] {
        host.tolerate(ours); // the empty store, and libcni's empty directory
    }
    let backend = podman(&host, "info --format '{{.Host.NetworkBackend}}'");
    if backend.code != 0 || backend.text() != "cni" {
        return Err(format!("podman has no CNI backend here: {}{}", backend.stdout, backend.stderr.trim()));
    }
    Ok(host)
}

#[track_caller]
fn podman(host: &Host, args: &str) -> Output {
    host.run(&format!("{PODMAN} {args}"))
}

/// A container that answers TCP on 80 and UDP on 53 by its name.
#[track_caller]
fn serve(host: &Host, name: &str, options: &str) {
    let traffic = tests::traffic();
    let traffic = traffic.display();
    let served = format!("{traffic} udp-serve [::]:53 {name} & exec {traffic} tcp-serve [::]:80 {name}");
    let run = format!("run -d --cgroups=disabled --name {name} {options} --rootfs /:O sh -c '{served}'");
    podman(host, &run).ok();
}

#[track_caller]
fn answers(machine: &Machine<'_>, name: &str) {
    let (v4, v6) = (Machine::HOST, Machine::HOST6);
    for question in [format!("tcp {v4}:8080"), format!("tcp [{v6}]:8080"), format!("udp {v4}:5353")] {
        let asked = || machine.traffic(&format!("{question} 500"));
        let mut answer = asked();
        // The server may still be starting.
        for _ in 0..20 {
            if answer.code == 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
            answer = asked();
        }
        assert!(answer.ok().text().starts_with(name), "{question}");
    }
}

#[test]
fn podman_runs_containers_in_several_networks_with_published_ports() {
    let host = match host() {
        Ok(host) => host,
        Err(why) => return tests::skipped(&why),
    };
    let outside = host.link_machine("outside");
    podman(&host, "network create --ipv6 --subnet 10.9.1.0/24 --subnet fd00:9:1::/64 web").ok();
    podman(&host, "network create --subnet 10.9.2.0/24 back").ok();

    let publish = "-p 8080:80 -p 5353:53/udp";
    let web = "--network web:ip=10.9.1.77,ip6=fd00:9:1::77,mac=02:00:00:00:00:77";
    serve(&host, "www", &format!("{web} --network back {publish}"));
    answers(&outside, "www");
    let rules = host.run("nft list table inet weft").ok();
    assert!(rules.stdout.contains("10.9.1.77") && rules.stdout.contains("8080"), "{rules}");
    let seen = podman(&host, "exec www ip -o addr").ok();
    for expected in ["10.9.1.77/24", "fd00:9:1::77/64", "10.9.2.2/24"] {
        assert!(seen.stdout.contains(expected), "{seen}");
    }
    // The same port again is refused, by name, and leaves nothing.
    let second = podman(&host, "run --rm --cgroups=disabled --network web -p 8080:80 --rootfs /:O true");
    assert!(second.code == 126 && second.stderr.contains("8080"), "{second}");

    podman(&host, "restart -t 0 www").ok(); // the same ID
    answers(&outside, "www");

    // Container and monitor are killed; nobody calls DEL before podman is told to remove it.
    let kill = format!("kill -9 $({PODMAN} inspect -f '{{{{.State.ConmonPid}}}} {{{{.State.Pid}}}}' www)");
    host.run(&kill).ok();
    podman(&host, "rm -f -t 0 www").ok();
    serve(&host, "again", &format!("{web} --network back {publish}"));
    answers(&outside, "again");

    podman(&host, "rm -f -t 0 again").ok();
    podman(&host, "network rm web back").ok();
}
