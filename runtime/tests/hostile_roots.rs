//! Roots and volumes whose links would lead the container's mounts astray.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::Host;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A root with a static busybox alone.
fn root(host: &Host, name: &str) -> PathBuf {
    let root = host.path(name);
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::hard_link(root.join("bin/busybox"), root.join("bin/sh")).unwrap();
    root
}

fn archive(root: &Path) -> PathBuf {
    let archive = root.with_extension("tar");
    let tar = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(root).arg(".").status();
    assert!(tar.unwrap().success());
    archive
}

/// Tells what of the kernel could be written or read. Writes nothing.
const PROBE: &str = "for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do
        (: >> $f) 2>/dev/null && echo $f is writable; done
    busybox cat /proc/keys; busybox cat /proc/timer_list; busybox ls /sys/firmware; echo end";

#[test]
fn root_with_linked_system_directory_is_refused() {
    let host = Host::new();
    for (case, name) in ["proc", "sys", "dev"].into_iter().enumerate() {
        for (at, to) in ["/dev/p", "/real", "../real", "/missing"].into_iter().enumerate() {
            let root = root(&host, &format!("root{case}{at}"));
            fs::create_dir_all(root.join("real")).unwrap();
            if name != "dev" {
                fs::create_dir_all(root.join("dev")).unwrap();
                symlink("/real", root.join("dev/p")).unwrap();
            }
            symlink(to, root.join(name)).unwrap();
            for from in [root.clone(), archive(&root)] {
                let from = from.to_str().unwrap();
                let error = host
                    .fails(125, &["run", "--rm", "--network", "none", "--rootfs", from, "sh", "-c", PROBE]);
                assert!(error.contains(&format!("/{name}")) && error.contains("symbolic link"), "{error}");
            }
            assert_eq!(fs::read_dir(root.join("real")).unwrap().count(), 0);
        }
    }
    let root = root(&host, "file");
    fs::write(root.join("proc"), "").unwrap();
    host.fails(125, &["run", "--network", "none", "--rootfs", root.to_str().unwrap(), "sh"]);
    for id in host.ok(&["ps", "-aq"]).lines() {
        host.ok(&["rm", "-f", id]);
    }
    host.assert_clean();
}

#[test]
fn volume_over_kernel_file_systems_is_refused() {
    let host = Host::new();
    let root = root(&host, "image");
    symlink("/proc", root.join("link")).unwrap();
    symlink("/", root.join("top")).unwrap();
    let volume = host.path("volume");
    fs::create_dir_all(volume.join("sys/kernel")).unwrap();
    let (root, volume) = (root.to_str().unwrap(), volume.to_str().unwrap());
    for target in ["/proc", "/proc/sys", "/link", "/link/sys", "/sys", "/top", "/..", "/dev/../proc"] {
        let mount = format!("{volume}:{target}");
        let run = ["run", "--rm", "--network", "none", "--rootfs", root, "-v", &mount, "sh", "-c", PROBE];
        let error = host.fails(125, &run);
        assert!(error.contains("cannot mount at"), "{target}: {error}");
    }
    host.assert_clean();
}

#[test]
fn volume_as_dev_changes_no_mask() {
    let host = Host::new();
    let root = root(&host, "image");
    let volume = host.path("volume");
    fs::create_dir(&volume).unwrap();
    symlink("/proc/sys/kernel/core_pattern", volume.join("null")).unwrap();
    symlink("/real", volume.join("p")).unwrap();
    let mount = format!("{}:/dev", volume.display());
    let sh = ["--rootfs", root.to_str().unwrap(), "-v", &mount, "sh", "-c", PROBE];
    assert_eq!(host.ok(&[&["run", "--rm", "--network", "none"], &sh[..]].concat()), "end");
    let id = host.ok(&[&["create", "--network", "none", "-t"], &sh[..]].concat());
    let _ = host.all(&["start", &id]);
    let _ = host.all(&["wait", &id]);
    host.ok(&["rm", "-f", &id]);
    assert!(fs::symlink_metadata(volume.join("null")).unwrap().is_symlink());
    host.assert_clean();
}

#[test]
fn volume_target_links_stay_inside_the_root() {
    let host = Host::new();
    let root = root(&host, "image");
    fs::create_dir(root.join("data")).unwrap();
    symlink("../../../../data", root.join("up")).unwrap();
    symlink("/data/made", root.join("missing")).unwrap();
    let volume = host.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "of the volume").unwrap();
    let at = |target: &str| format!("{}:{target}", volume.display());
    let run = ["run", "--rm", "--network", "none", "--rootfs", root.to_str().unwrap()];
    let script = "busybox cat /data/x/file /data/made/file";
    let (up, missing) = (at("/up/x"), at("/missing"));
    let out = host.ok(&[&run[..], &["-v", &up, "-v", &missing, "sh", "-c", script]].concat());
    assert_eq!(out, "of the volumeof the volume");
    host.assert_clean();
}

#[test]
fn archive_entries_through_links_are_refused() {
    let host = Host::new();
    let victim = host.path("victim");
    fs::create_dir(&victim).unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o700)).unwrap();
    let links = root(&host, "links");
    symlink(&victim, links.join("evil")).unwrap();
    let files = host.path("files");
    fs::create_dir_all(files.join("evil")).unwrap();
    fs::write(files.join("evil/file"), "").unwrap();
    for entry in ["evil", "evil/file"] {
        let archive = archive(&links);
        let tar = |args: &[&str]| Command::new("tar").args(args).arg("-f").arg(&archive).status();
        let args = ["--append", "-C", files.to_str().unwrap(), "--no-recursion", entry];
        assert!(tar(&args).unwrap().success());
        let run =
            ["run", "--rm", "--network", "none", "--rootfs", archive.to_str().unwrap(), "sh", "-c", "true"];
        let error = host.fails(125, &run);
        assert!(error.contains("cannot unpack it"), "{entry}: {error}");
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
        assert_eq!(fs::metadata(&victim).unwrap().permissions().mode() & 0o777, 0o700);
    }
    for id in host.ok(&["ps", "-aq"]).lines() {
        host.ok(&["rm", "-f", id]);
    }
    host.assert_clean();
}

#[test]
fn volumes_of_special_files_mount_or_fail_at_once() {
    let host = Host::new();
    let fifo = host.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = host.path("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let image = root(&host, "image");
    fs::create_dir_all(image.join("at")).unwrap();
    nix::unistd::mkfifo(&image.join("at/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for source in [fifo.as_path(), &socket, Path::new("/dev/null")] {
        for target in ["/new", "/at/fifo", "/etc/hosts"] {
            let mount = format!("{}:{target}", source.display());
            let script = format!("[ -e {target} ] && [ ! -f {target} ] && echo there");
            let rootfs = image.to_str().unwrap();
            let run =
                ["run", "--rm", "--network", "none", "--rootfs", rootfs, "-v", &mount, "sh", "-c", &script];
            assert_eq!(host.ok(&run), "there", "{mount}");
        }
    }
    host.assert_clean();
}
