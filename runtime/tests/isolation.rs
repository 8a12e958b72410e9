//! What a container sees of the host, and what it may do to it.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::Host;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

#[test]
fn it_has_dockers_capabilities_no_new_privileges_and_a_filter() {
    let host = Host::new();
    let status = host.sh("cat /proc/self/status");
    for line in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000a80425fb",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line:?} in {status}");
    }
    host.assert_clean();
}

#[test]
fn another_user_has_no_capabilities() {
    let host = Host::new();
    let run = ["run", "--rm", "--network", "none", "-u", "65534:65534", "grep", "Cap", "/proc/self/status"];
    let status = host.ok(&run);
    assert!(status.contains("CapPrm:\t0000000000000000") && status.contains("CapEff:\t0000000000000000"));
    host.assert_clean();
}

#[test]
fn what_docker_refuses_is_refused() {
    let host = Host::new();
    for (script, why) in [
        ("unshare -U true", "Operation not permitted"),
        ("unshare -n true", "Operation not permitted"),
        ("mount -t tmpfs none /mnt", "permission denied"),
        ("echo 1 > /proc/sys/net/ipv4/ip_forward", "Read-only file system"),
        ("mkdir /sys/fs/x", "Read-only file system"),
        ("hostname other", "you must be root"),
    ] {
        let out = host.sh(&format!("{{ {script}; }} 2>&1; true"));
        assert!(out.to_lowercase().contains(&why.to_lowercase()), "{script}: {out}");
    }
    host.assert_clean();
}

/// Makes system calls by their numbers on x86_64; prints those that are not refused, and whether a thread starts. Not uprobe:
/// the kernel lets it by every filter (kernel/seccomp.c, seccomp_uprobe_exception).
#[cfg(target_arch = "x86_64")]
const CALLS: &str = r#"
import ctypes, errno, socket, threading
libc = ctypes.CDLL(None, use_errno=True)
calls = dict(kcmp=312, pidfd_getfd=438, process_madvise=440, set_mempolicy_home_node=450, lsm_get_self_attr=459,
    lsm_set_self_attr=460, lsm_list_modules=461, open_tree_attr=467, file_getattr=468, file_setattr=469,
    io_uring_setup=425, userfaultfd=323, keyctl=250, bpf=321, clone3=435, not_yet_made=999, x32=0x40000000 + 39)
for name, number in calls.items():
    expected = errno.ENOSYS if number == 435 or number > 466 else errno.EPERM
    if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != expected:
        print(name, ctypes.get_errno())
for family in socket.AF_ALG, socket.AF_VSOCK:
    try: print(socket.socket(family, socket.SOCK_SEQPACKET))
    except PermissionError: pass
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
"#;

#[test]
#[cfg(target_arch = "x86_64")]
fn system_calls_outside_dockers_list_are_refused() {
    let host = Host::new();
    host.sleeper("one", &["--network", "none"]);
    assert_eq!(host.ok(&["run", "--rm", "--network", "none", "python3", "-c", CALLS]), "thread");
    assert_eq!(host.ok(&["exec", "one", "python3", "-c", CALLS]), "thread");
    host.ok(&["rm", "-f", "one"]);
    host.assert_clean();
}

#[test]
fn user_has_its_primary_group_among_its_groups() {
    let host = Host::new();
    let id = ["id", "-G"];
    let run = |user| host.ok(&[&["run", "--rm", "--network", "none", "-u", user], &id[..]].concat());
    assert_eq!(run("www-data"), "33");
    assert_eq!(run("12345:77"), "77");
    let groups = "grep Groups: /proc/self/status";
    let out = host.ok(&["run", "--rm", "--network", "none", "-u", "www-data", "sh", "-c", groups]);
    assert_eq!(out.split_whitespace().nth(1), Some("33"), "{out}");
    host.assert_clean();
}

#[test]
fn what_docker_masks_shows_nothing() {
    let host = Host::new();
    assert_eq!(
        host.sh("cat /proc/keys /proc/timer_list; ls /sys/firmware /proc/acpi 2>/dev/null | grep -v :;
            ls /sys/devices/system/cpu/cpu*/thermal_throttle 2>/dev/null | grep -v :; true"),
        ""
    );
    host.assert_clean();
}

#[test]
fn it_sees_its_own_processes_alone_and_is_number_1() {
    let host = Host::new();
    let pids = host.sh("echo /proc/[0-9]*; echo $$");
    assert_eq!(pids, "/proc/1\n1");
    host.assert_clean();
}

#[test]
fn it_writes_to_its_own_copy_of_the_hosts_files() {
    let host = Host::new();
    let script = "echo changed > /etc/passwd-of-test; rm -f /etc/debian_version; ls /etc/passwd-of-test; ls /etc/debian_version 2>&1";
    let out = host.sh(&format!("{script}; true"));
    assert!(out.starts_with("/etc/passwd-of-test\n"), "{out}");
    assert!(!std::path::Path::new("/etc/passwd-of-test").exists());
    host.assert_clean();
}

#[test]
fn the_hosts_sockets_temporary_files_and_the_runtimes_own_do_not_leak_in() {
    let host = Host::new();
    assert_eq!(host.sh("ls -A /run /tmp | grep -v :; true"), "");
    let root = host.path("root").display().to_string();
    assert_eq!(host.sh(&format!("ls -A {root} 2>/dev/null; true")), "");
    assert_eq!(
        host.sh("ls /dev | sort | tr '\\n' ' '").trim(),
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    host.assert_clean();
}

/// Lays a writable copy over a directory of the host, in this test alone.
fn own(host: &Host, dir: &str) {
    use nix::mount::{MsFlags, mount};
    let layers = host.path(&dir.replace('/', "_"));
    fs::create_dir(&layers).unwrap();
    mount(Some("tmpfs"), &layers, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let [upper, work] = ["upper", "work"].map(|name| layers.join(name));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let options = format!("lowerdir={dir},upperdir={},workdir={}", upper.display(), work.display());
    mount(Some("overlay"), dir, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
}

/// Takes it away.
fn disown(host: &Host, dir: &str) {
    for place in [dir.into(), host.path(&dir.replace('/', "_"))] {
        nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

fn private(path: &str, mode: u32) {
    fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
    fs::write(path, "secret").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Each tree is a mount of its own here, as on hosts with a disk for /var/lib.
#[test]
fn host_view_shows_no_secrets_of_services() {
    const TREES: [&str; 6] = ["/boot", "/opt", "/srv", "/usr/local", "/var/lib", "/var/log"];
    let host = Host::new();
    TREES.iter().for_each(|dir| own(&host, dir));
    let secrets = [
        ("/boot/initrd.img-1", 0o600),
        ("/boot/grub/grub.cfg", 0o600),
        ("/opt/a/b/c/key", 0o600),
        ("/srv/a/b/c/key", 0o640),
        ("/usr/local/etc/x/key", 0o600),
        ("/var/lib/x/y/key", 0o600),
        ("/var/lib/mysql/table", 0o644),
        ("/var/lib/postgresql/15/main/weft-test", 0o644),
        ("/var/log/journal/id/system.journal", 0o640),
        ("/var/log/x/y/log", 0o640),
    ];
    let public = ["/boot/vmlinuz-1", "/opt/a/b/c/data", "/usr/local/etc/x/conf", "/var/lib/x/y/data"];
    secrets.iter().for_each(|(path, mode)| private(path, *mode));
    public.iter().for_each(|path| private(path, 0o644));
    let all: Vec<&str> = secrets.iter().map(|(path, _)| *path).chain(public).collect();
    let seen = host.sh(&format!("ls -1 {} 2>/dev/null; true", all.join(" ")));
    assert_eq!(seen.lines().collect::<Vec<_>>(), public);
    // The directory at which a mount begins is itself for root alone.
    fs::set_permissions("/srv", fs::Permissions::from_mode(0o700)).unwrap();
    private("/srv/data", 0o644);
    assert_eq!(host.sh("find /srv -type f"), "");
    TREES.iter().for_each(|dir| disown(&host, dir));
    host.assert_clean();
}

/// Prints what of the host's secrets a container can see.
const SECRETS: &str =
    "find /etc /root /home /var/lib/weft -xdev -type f ! -perm -004 ! -path '/etc/*shadow*';
    ls -A /root /home /etc/weft /etc/ssl/private /etc/private /etc/private-key 2>/dev/null | grep -v -e ':$' -e '^$';
    grep -v '^[^:]*:[*]:' /etc/shadow /etc/shadow- /etc/gshadow; grep -c ^root: /etc/shadow";

#[test]
fn host_view_shows_no_secrets() {
    let host = Host::new();
    assert_eq!(host.sh(&format!("{SECRETS}; true")), "1");
    own(&host, "/etc");
    fs::create_dir_all("/etc/weft/net.d").unwrap();
    fs::create_dir_all("/etc/private/dir").unwrap();
    fs::set_permissions("/etc/private", fs::Permissions::from_mode(0o700)).unwrap();
    fs::write("/etc/shadow-", "root:$6$hash:1:0:99999:7:::\n").unwrap();
    private("/etc/weft/net.d/a.conflist", 0o644);
    private("/etc/private/dir/file", 0o644);
    private("/etc/private-key", 0o640);
    private("/etc/public", 0o644);
    // Also where a link leads.
    fs::create_dir("/etc/elsewhere").unwrap();
    private("/etc/elsewhere/token", 0o644);
    let _ = fs::remove_dir_all("/etc/cni");
    std::os::unix::fs::symlink("elsewhere", "/etc/cni").unwrap();
    assert_eq!(host.sh("cat /etc/cni/token /etc/elsewhere/token 2>/dev/null; true"), "");
    assert_eq!(
        host.sh(&format!("{SECRETS}; cat /etc/public /etc/shadow-")),
        "1\nsecretroot:*:1:0:99999:7:::"
    );
    let shown = ["run", "--rm", "--network", "none", "--show-host-secrets", "cat", "/etc/private-key"];
    assert_eq!(host.ok(&shown), "secret");
    let seen = host.ok(&[&shown[..5], &["cat", "/etc/shadow-"]].concat());
    assert!(seen.contains("$6$hash"), "{seen}");
    disown(&host, "/etc");
    host.assert_clean();
}

#[test]
fn host_view_shows_no_secrets_where_links_lead() {
    let host = Host::new();
    own(&host, "/usr");
    fs::remove_dir_all("/usr/local").unwrap();
    private("/usr/elsewhere/bin/key", 0o600);
    private("/usr/elsewhere/etc/x/y/z/key", 0o600);
    private("/usr/elsewhere/etc/x/y/z/data", 0o644);
    std::os::unix::fs::symlink("elsewhere", "/usr/local").unwrap();
    assert_eq!(host.sh("find /usr/elsewhere -type f"), "/usr/elsewhere/etc/x/y/z/data");
    disown(&host, "/usr");
    host.assert_clean();
}

#[test]
fn host_view_keeps_what_replaces_a_secret() {
    let host = Host::new();
    let script = "set -e; mkdir -p /etc/weft /root/.ssh
        [ -e /root/.ssh/own ] && cat /root/.ssh/own /etc/gshadow- && exit
        echo own > /root/.ssh/own; echo mine > /etc/new; mv /etc/new /etc/gshadow-; chmod 600 /etc/gshadow-";
    host.ok(&["run", "--name", "one", "--network", "none", "sh", "-c", script]);
    assert_eq!(host.ok(&["start", "-a", "one"]), "own\nmine");
    host.ok(&["rm", "one"]);
    host.assert_clean();
}

#[test]
fn no_descriptor_of_the_host_is_open_in_it() {
    let host = Host::new();
    // 3 is the directory that ls reads.
    assert_eq!(host.sh("ls /proc/self/fd | tr '\\n' ' '").trim(), "0 1 2 3");
    host.sleeper("one", &["--network", "none"]);
    assert_eq!(host.ok(&["exec", "one", "sh", "-c", "ls /proc/self/fd | tr '\\n' ' '"]).trim(), "0 1 2 3");
    let escape = ["run", "--rm", "--network", "none", "-w", "/proc/self/fd/3", "pwd"];
    assert_ne!(host.all(&escape).0, 0);
    host.ok(&["rm", "-f", "one"]);
    host.assert_clean();
}

#[test]
fn a_container_that_gets_hold_of_the_executable_finds_it_read_only() {
    let host = Host::new();
    let id = host.sleeper("one", &["--network", "none"]);
    let read_only = |pid: &str| {
        let file = fs::File::open(format!("/proc/{pid}/exe")).unwrap();
        let flags = nix::sys::statvfs::fstatvfs(&file).unwrap().flags();
        flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY)
    };
    assert!(read_only(&host.pid(&id, "supervisor_pid").to_string()));
    // Nothing in the environment switches it off.
    let mut client = host.command(&["exec", "one", "sleep", "1"]);
    let child = client.env("WEFT_READ_ONLY_EXECUTABLE", "1").spawn().unwrap();
    common::until("the client is a read-only one", || read_only(&child.id().to_string()));
    child.wait_with_output().unwrap();
    host.ok(&["rm", "-f", "one"]);
    host.assert_clean();
}

#[test]
fn the_host_has_only_the_mount_of_the_network_namespace() {
    let host = Host::new();
    let id = host.sleeper("one", &["--network", "none"]);
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let own: Vec<_> =
        mounts.lines().filter(|line| line.contains("runtime-test-") && line.contains(&id)).collect();
    assert!(own.len() == 1 && own[0].contains("/run/netns/"), "{own:?}");
    host.ok(&["rm", "-f", "one"]);
    host.assert_clean();
}

#[test]
fn without_a_network_it_has_loopback_alone_and_can_ping_it_as_any_user() {
    let host = Host::new();
    let links = host.sh("ip -o link | cut -d: -f2; ping -c1 -W2 127.0.0.1 >/dev/null && echo root pings");
    assert_eq!(links, " lo\nroot pings");
    let nobody = ["run", "--rm", "--network", "none", "-u", "nobody", "ping", "-c1", "-W2", "127.0.0.1"];
    host.ok(&nobody);
    host.assert_clean();
}

#[test]
fn with_the_hosts_network_it_sees_the_hosts_links_and_has_its_name() {
    let host = Host::new();
    let add = ["link", "add", "weft-seen", "type", "bridge"];
    assert!(std::process::Command::new("ip").args(add).status().unwrap().success());
    let out =
        host.ok(&["run", "--rm", "--network", "host", "sh", "-c", "ip -o link show weft-seen; hostname"]);
    assert!(out.contains("weft-seen"), "{out}");
    let name = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert_eq!(out.lines().last(), Some(name.as_str()));
    host.assert_clean();
}

#[test]
fn resource_limits_are_the_callers() {
    let host = Host::new();
    let line = host.command(&["run", "--rm", "--network", "none", "sh", "-c", "ulimit -n"]);
    let line =
        std::iter::once(line.get_program()).chain(line.get_args()).map(|a| a.to_str().unwrap().to_owned());
    let quoted: Vec<String> = line.map(|word| format!("'{word}'")).collect();
    let output = std::process::Command::new("sh")
        .arg("-c")
        .arg(format!("ulimit -n 777; {}", quoted.join(" ")))
        .output();
    assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), "777\n");
    host.assert_clean();
}

#[test]
fn a_device_node_that_it_makes_cannot_be_opened_and_the_standard_ones_can() {
    let host = Host::new();
    let volume = host.path("volume");
    fs::create_dir(&volume).unwrap();
    let mount = format!("{}:/volume", volume.display());
    // The number is that of /dev/null, so that what refuses is not the device.
    let script = "for d in / /root /dev /run /tmp /dev/shm /volume; do
            mknod $d/node c 1 3 && { true > $d/node; } 2>/dev/null && echo $d/node is open
        done
        true > /dev/null; head -c 3 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c";
    let run = ["run", "--rm", "--network", "none", "-v", &mount, "sh", "-c", script];
    assert_eq!(host.ok(&run), "3\n4");
    // As is done to hide a file.
    let hide = ["run", "--rm", "--network", "none", "-v", "/dev/null:/etc/passwd", "cat", "/etc/passwd"];
    assert_eq!(host.ok(&hide), "");
    host.assert_clean();
}

#[test]
fn its_directories_have_the_hosts_owners_and_modes_whatever_the_callers_umask() {
    let host = Host::new();
    let line = format!("umask 077; {} run --rm --network none", host.line());
    let sh = |rest: &str| {
        let out = std::process::Command::new("sh").args(["-c", &format!("{line} {rest}")]).output().unwrap();
        String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap()
    };
    let out = sh("-u 65534:65534 sh -c 'ls -d /etc; cat /etc/hosts | head -1'");
    assert_eq!(out, "/etc\n127.0.0.1\tlocalhost\n");
    let own = fs::metadata("/").unwrap();
    assert_eq!(sh("stat -c '%a %u' /"), format!("{:o} {}\n", own.mode() & 0o7777, own.uid()));
    host.assert_clean();
}

#[test]
fn what_is_kept_of_it_on_the_host_is_for_root_alone() {
    let host = Host::new();
    let id = host.sleeper("one", &["--network", "none", "-e", "SECRET=x"]);
    for top in ["root", "run"] {
        let dir = host.path(top).join("containers").join(&id);
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700, "{}", dir.display());
    }
    host.ok(&["rm", "-f", "one"]);
    host.assert_clean();
}

#[test]
fn host_mount_keeps_its_layer_when_others_come() {
    let host = Host::new();
    own(&host, "/srv");
    private("/srv/key", 0o600);
    let script = "cat /srv/mine; echo mine > /srv/mine; cat /srv/key /boot/key /boot/mine 2>/dev/null; true";
    host.ok(&["run", "--name", "one", "--network", "none", "sh", "-c", script]);
    // The mounts of a host have no lasting order.
    own(&host, "/boot");
    private("/boot/key", 0o600);
    private("/boot/public", 0o644);
    assert_eq!(host.ok(&["start", "-a", "one"]), "mine");
    host.ok(&["rm", "one"]);
    ["/srv", "/boot"].iter().for_each(|dir| disown(&host, dir));
    host.assert_clean();
}

#[test]
fn what_it_writes_is_never_in_the_run_directory_or_in_memory() {
    let host = Host::new();
    let run = host.path("run");
    fs::create_dir(&run).unwrap();
    nix::mount::mount(Some("tmpfs"), &run, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>)
        .unwrap();
    let script = "stat -c '%d %a %n' /etc/hosts /etc/resolv.conf /etc/hostname /run /tmp; ls -A /run /tmp
        echo x | tee /run/file /tmp/file > /dev/null; sleep 1000 & wait";
    host.ok(&["run", "-d", "--name", "one", "--network", "none", "sh", "-c", script]);
    let device = std::os::unix::fs::MetadataExt::dev(&fs::metadata(host.path("root")).unwrap());
    let files = [("644", "/etc/hosts"), ("644", "/etc/resolv.conf"), ("644", "/etc/hostname")];
    let dirs = [("755", "/run"), ("1777", "/tmp")];
    let expected: String =
        files.iter().chain(&dirs).map(|(mode, path)| format!("{device} {mode} {path}\n")).collect();
    let expected = format!("{expected}/run:\n\n/tmp:");
    common::until("it has written", || host.ok(&["logs", "one"]) == expected);
    // Empty at each start.
    host.ok(&["restart", "-t", "0", "one"]);
    common::until("it has written again", || host.ok(&["logs", "one"]) == format!("{expected}\n{expected}"));
    host.ok(&["rm", "-f", "one"]);
    nix::mount::umount2(&run, nix::mount::MntFlags::MNT_DETACH).unwrap();
    fs::remove_dir(&run).unwrap();
    host.assert_clean();
}
