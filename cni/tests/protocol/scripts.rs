//! Plugins that are shell scripts, and what they leave behind.

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A directory of plugins that write down in what order and with what they were called.
pub struct Scripts {
    pub dir: tempfile::TempDir,
}

/// A call that a plugin wrote down.
pub struct Call {
    pub kind: String,
    pub verb: String,
    pub stdin: Value,
    pub env: Vec<(String, String)>,
}

impl Call {
    pub fn var(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

impl Scripts {
    pub fn new() -> Scripts {
        Scripts { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    /// A plugin that does just this.
    pub fn raw(&self, kind: &str, body: &str) {
        fs::create_dir_all(self.path()).unwrap();
        let file = self.path().join(kind);
        fs::write(&file, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A plugin that writes down its call and then does this; `$VERB` is the verb.
    pub fn plugin(&self, kind: &str, body: &str) {
        let log = self.dir.path().display();
        let note = format!(
            r#"VERB=$CNI_COMMAND
n=$(ls {log} | grep -c '^call-')
mkdir {log}/call-$n
cat > {log}/call-$n/stdin
env > {log}/call-$n/env
echo {kind} > {log}/call-$n/kind
{body}"#
        );
        self.raw(kind, &note);
    }

    /// A plugin that answers ADD with an address and knows all versions.
    pub fn good(&self, kind: &str, address: &str) {
        let versions = r#"{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}"#;
        let body = format!(
            r#"case $VERB in
ADD) echo '{{"ips":[{{"address":"{address}"}}]}}' ;;
VERSION) echo '{versions}' ;;
esac"#
        );
        self.plugin(kind, &body);
    }

    /// The calls so far, in their order.
    pub fn calls(&self) -> Vec<Call> {
        let read = |index: usize, name: &str| {
            fs::read_to_string(self.dir.path().join(format!("call-{index}/{name}"))).ok()
        };
        let call = |index| {
            let lines = read(index, "env")?;
            let pairs = lines.lines().filter_map(|line| line.split_once('='));
            let env: Vec<(String, String)> =
                pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            Some(Call {
                kind: read(index, "kind")?.trim().to_owned(),
                verb: env.iter().find(|(key, _)| key == "CNI_COMMAND")?.1.clone(),
                stdin: serde_json::from_str(&read(index, "stdin")?).unwrap(),
                env,
            })
        };
        (0..).map_while(call).collect()
    }

    /// The calls so far, as "kind VERB".
    pub fn said(&self) -> Vec<String> {
        self.calls().iter().map(|call| format!("{} {}", call.kind, call.verb)).collect()
    }
}
