//! Where a container's files come from: the host's root, a directory, an archive; volumes; and its environment.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Host, until};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A small root: a shell, `cat` and `ls` with their libraries.
fn small_root(dir: &Path) {
    for program in ["sh", "cat", "ls"] {
        let path = format!("/bin/{program}");
        let output = Command::new("ldd").arg(&path).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.chain([path.as_str()]) {
            let to = dir.join(&file[1..]);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(file, to).unwrap();
        }
    }
}

#[test]
fn a_directory_is_its_root_and_is_not_written_to() {
    let host = Host::new();
    let root = host.path("small");
    small_root(&root);
    fs::create_dir(root.join("etc")).unwrap();
    fs::write(root.join("etc/of-the-image"), "yes").unwrap();
    let script = "cat /etc/of-the-image; echo no > /etc/of-the-image; echo new > /new; ls /";
    let at = root.to_str().unwrap();
    let out = host.ok(&["run", "--rm", "--network", "none", "--rootfs", at, "sh", "-c", script]);
    assert!(out.starts_with("yes") && out.contains("\nnew\n") && !out.contains("home"), "{out}");
    assert_eq!(fs::read(root.join("etc/of-the-image")).unwrap(), b"yes");
    assert!(!root.join("new").exists() && !root.join("proc").exists());
    host.assert_clean();
}

#[test]
fn an_archive_is_its_root_gzipped_or_not_and_is_kept_between_starts() {
    let host = Host::new();
    let root = host.path("small");
    small_root(&root);
    for (flag, name) in [("cf", "a.tar"), ("czf", "a.tgz")] {
        let archive = host.path(name);
        let status = Command::new("tar").arg(flag).arg(&archive).arg("-C").arg(&root).arg(".").status();
        assert!(status.unwrap().success());
        let script = "cat /count; echo x >> /count";
        let at = archive.to_str().unwrap();
        host.all(&["run", "--name", "one", "--network", "none", "--rootfs", at, "sh", "-c", script]);
        host.ok(&["start", "one"]);
        host.ok(&["wait", "one"]);
        assert!(host.all(&["logs", "one"]).1.ends_with("x\n"));
        host.ok(&["rm", "one"]);
    }
    host.assert_clean();
}

#[test]
fn a_root_that_is_not_there_or_no_archive_is_an_error_that_names_it() {
    let host = Host::new();
    let bad = host.path("bad.tar");
    fs::write(&bad, "no archive".repeat(200)).unwrap();
    for path in ["/nowhere/at/all", bad.to_str().unwrap()] {
        let error = host.fails(125, &["run", "--rm", "--network", "none", "--rootfs", path, "true"]);
        assert!(error.contains(path), "{error}");
    }
    host.assert_clean();
}

#[test]
fn an_image_whose_links_lead_outside_stays_inside() {
    let host = Host::new();
    let root = host.path("small");
    small_root(&root);
    let victim = host.path("victim");
    fs::create_dir(&victim).unwrap();
    for name in ["etc", "dev", "proc", "data"] {
        std::os::unix::fs::symlink(&victim, root.join(name)).unwrap();
    }
    let volume = host.path("volume");
    fs::create_dir(&volume).unwrap();
    let option = format!("{}:/data/in/it", volume.display());
    let at = root.to_str().unwrap();
    host.all(&["run", "--rm", "--network", "none", "--rootfs", at, "-v", &option, "sh", "-c", "ls /"]);
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    host.assert_clean();
}

#[test]
fn volumes_by_path_and_by_name_are_shared_and_read_only_ones_are() {
    let host = Host::new();
    let dir = host.path("volume");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("f"), "hi").unwrap();
    let (writable, readable) = (format!("{}:/rw", dir.display()), format!("{}:/ro:ro", dir.display()));
    let file = format!("{}:/etc/one-file:ro", dir.join("f").display());
    let script = "cat /ro/f /etc/one-file; echo x > /rw/g; echo x > /ro/h || echo refused; echo named > /n/f";
    let run =
        ["run", "--rm", "--network", "none", "-v", &writable, "-v", &readable, "-v", &file, "-v", "name:/n"];
    let out = host.ok(&[&run[..], &["sh", "-c", script]].concat());
    assert!(out.starts_with("hihi") && out.ends_with("refused"), "{out}");
    assert!(dir.join("g").exists() && !dir.join("h").exists());
    let again = ["run", "--rm", "--network", "none", "-v", "name:/again", "cat", "/again/f"];
    assert_eq!(host.ok(&again), "named");
    fs::remove_dir_all(host.path("root/volumes")).unwrap();
    fs::remove_dir(host.path("root")).unwrap();
    host.assert_clean();
}

#[test]
fn environment_directory_user_and_name_are_as_asked() {
    let host = Host::new();
    let script =
        "echo $A $HOME $HOSTNAME $PWD; id -u; hostname; cat /etc/hostname; grep named /etc/hosts | wc -l";
    let options = ["-e", "A=1", "-w", "/made/for/it", "-u", "nobody", "--hostname", "named"];
    let out = host.ok(&[&["run", "--rm", "--network", "none"], &options[..], &["sh", "-c", script]].concat());
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], "1 /nonexistent named /made/for/it");
    assert_eq!(lines[1..4], ["65534", "named", "named"]);
    assert_ne!(lines[4], "0");
    let error = host.fails(126, &["run", "--rm", "--network", "none", "-u", "nosuchuser", "true"]);
    assert!(error.contains("unable to find user nosuchuser"), "{error}");
    host.assert_clean();
}

#[test]
fn on_a_file_system_that_takes_no_overlay_changes_are_kept_in_memory_and_said_so() {
    let host = Host::new();
    // An overlay takes no layers of another one.
    for dir in ["lower", "upper", "work", "over"] {
        fs::create_dir(host.path(dir)).unwrap();
    }
    let at = |name: &str| host.path(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    let over = host.path("over");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("overlay"), &over, Some("overlay"), flags, Some(options.as_str())).unwrap();
    let exe = env!("CARGO_BIN_EXE_runtime");
    let output = Command::new(exe)
        .args([
            "--root",
            &format!("{}/root", over.display()),
            "--run",
            &at("run"),
            "--config-dir",
            &at("net.d"),
        ])
        .args([
            "--cni-bin",
            &at("cni"),
            "run",
            "--rm",
            "--network",
            "none",
            "sh",
            "-c",
            "echo x > /etc/y; cat /etc/y",
        ])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "x\n", "{error}");
    assert!(error.contains("in memory"), "{error}");
    assert!(!over.join("root").exists() && !host.path("run").exists());
    // The supervisor has the log open until its very end.
    until("it is unmounted", || nix::mount::umount(&over).is_ok());
    host.assert_clean();
}

#[test]
fn a_device_node_of_its_root_cannot_be_opened() {
    let host = Host::new();
    let root = host.path("small");
    small_root(&root);
    // The number is that of /dev/null, so that what refuses is not the device.
    let script = "mknod $0/node c 1 3 && tar -C $0 -cf $0.tar .";
    assert!(Command::new("sh").args(["-c", script]).arg(&root).status().unwrap().success());
    // Of an archive none is unpacked.
    let script = "test -c /node && true > /node";
    for from in [root.display().to_string(), format!("{}.tar", root.display())] {
        let run = ["run", "--rm", "--network", "none", "--rootfs", &from, "sh", "-c", script];
        assert_ne!(host.all(&run).0, 0, "{from}");
    }
    host.assert_clean();
}

#[test]
fn an_archive_writes_and_reads_nothing_outside_of_its_root() {
    let host = Host::new();
    let root = host.path("small");
    small_root(&root);
    let secret = host.path("secret");
    fs::write(&secret, "of the host").unwrap();
    let outside = host.path("outside");
    fs::create_dir(&outside).unwrap();
    let up = "../".repeat(20);
    let out = outside.display().to_string();
    let file = |name: &str| (tar::EntryType::Regular, name.to_owned(), String::new());
    let link = |kind, name: &str, to: String| (kind, name.to_owned(), to);
    let (symlink, hard) = (tar::EntryType::Symlink, tar::EntryType::Link);
    for entries in [
        vec![file(&format!("{up}{}/a", &out[1..]))],
        vec![link(symlink, "lnk", out.clone()), file("lnk/b")],
        vec![link(symlink, "lnk", format!("{up}{}", &out[1..])), file("lnk/c")],
        vec![link(hard, "stolen", secret.display().to_string())],
        vec![link(hard, "stolen", format!("{up}{}", &secret.display().to_string()[1..]))],
        vec![
            link(symlink, "dir", host.path("").display().to_string()),
            link(hard, "stolen", "dir/secret".into()),
        ],
    ] {
        let path = host.path("evil.tar");
        let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
        builder.append_dir_all(".", &root).unwrap();
        for (kind, name, to) in &entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            // Written as they are: the library's own functions refuse such names.
            header.as_gnu_mut().unwrap().name[..name.len().min(100)]
                .copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
            header.as_gnu_mut().unwrap().linkname[..to.len().min(100)]
                .copy_from_slice(&to.as_bytes()[..to.len().min(100)]);
            header.set_mode(0o644);
            header.set_size(0);
            header.set_cksum();
            builder.append(&header, std::io::empty()).unwrap();
        }
        drop(builder.into_inner().unwrap());
        let at = path.to_str().unwrap();
        let run = ["run", "--rm", "--network", "none", "--rootfs", at, "sh", "-c", "cat /stolen"];
        let (_, got, _) = host.all(&run);
        assert!(!got.contains("of the host"), "{entries:?}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{entries:?}");
    }
    assert_eq!(fs::read_to_string(&secret).unwrap(), "of the host");
    host.assert_clean();
}
