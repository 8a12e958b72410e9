//! A machine for tests of the command line: a network namespace of its own, directories of its own, and the real binary.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure report")]

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

pub struct Machine {
    dir: tempfile::TempDir,
}

/// Runs a test on a machine of its own.
pub fn machine(test: impl FnOnce(&Machine) + Send) {
    let machine = Machine { dir: tempfile::tempdir().unwrap() };
    net::testns::in_fresh(|| test(&machine));
}

impl Machine {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_runtime"))
            .arg("--root")
            .arg(self.path("root"))
            .arg("--run")
            .arg(self.path("run"))
            .arg("--config-dir")
            .arg(self.path("net.d"))
            .arg("--cni-bin")
            .arg(self.path("cni"))
            .args(args)
            .output()
            .unwrap()
    }

    /// What a command that succeeds prints.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The exit code and the error of a command that fails.
    pub fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{args:?} did not fail");
        (output.status.code().unwrap(), error)
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    pub fn conflist(&self, name: &str) -> Value {
        let text = fs::read(self.path("net.d").join(format!("{name}.conflist"))).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// `ip` in the machine's namespace.
    pub fn ip(&self, args: &str) {
        let status = Command::new("ip").args(args.split(' ')).status().unwrap();
        assert!(status.success(), "ip {args}");
    }

    /// Executables that succeed with everything and note the verb and what they were given.
    pub fn plugins(&self, kinds: &[&str]) {
        fs::create_dir_all(self.path("cni")).unwrap();
        for kind in kinds {
            let log = self.path("calls").display().to_string();
            let script = format!(
                "#!/bin/sh\nin=$(cat)\necho \"{kind} $CNI_COMMAND $WEFT_ROOT $in\" | tr -d '\\n' >> {log}\necho >> {log}\n"
            );
            let path = self.path("cni").join(kind);
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The names in the machine's directory.
    pub fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
