//! Failures of plugins in the user's words: the network and the container by name, each thing once.

use crate::paths::Paths;
use crate::state::Container;
use cni::invoke::InvokeError;

/// Digits of a container's ID.
const ID: usize = 64;

/// What a failed call of a plugin says, without the plugin's path and with containers' names in place of their IDs.
pub fn plain(paths: &Paths, network: &str, error: &InvokeError) -> String {
    let text = named(paths, &text(error));
    // The caller names the network.
    let own = [format!("network {network}: "), format!("network \"{network}\": ")];
    own.iter().find_map(|own| text.strip_prefix(own.as_str())).map_or_else(|| text.clone(), str::to_owned)
}

fn text(error: &InvokeError) -> String {
    match error {
        InvokeError::Plugin { error, .. } => error.to_string(),
        InvokeError::Execute { kind, source, .. } => format!("cannot execute the plugin {kind}: {source}"),
        InvokeError::Timeout { kind, limit, stderr, .. } => {
            let stderr =
                if stderr.is_empty() { String::new() } else { format!("; it wrote: {}", stderr.trim()) };
            format!("the plugin {kind} did not end within {} s and was killed{stderr}", limit.as_secs())
        }
        InvokeError::Undo { error, undo } => {
            let (error, undo) = (text(error), text(undo));
            if error == undo { error } else { format!("{error}; undoing it failed too: {undo}") }
        }
        InvokeError::Several(errors) => {
            let mut texts: Vec<String> = Vec::new();
            for each in errors.iter().map(text) {
                if !texts.contains(&each) {
                    texts.push(each);
                }
            }
            texts.join("; ")
        }
        InvokeError::NotFound { .. } | InvokeError::Output { .. } | InvokeError::Request(_) => {
            error.to_string()
        }
    }
}

/// The text with each container's ID replaced by its name, or by the ID's first digits when it is not the runtime's.
fn named(paths: &Paths, text: &str) -> String {
    let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let mut named = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(is_digit) {
        let (before, from) = rest.split_at(at);
        let end = from.find(|c| !is_digit(c)).unwrap_or(from.len());
        let (word, after) = from.split_at(end);
        named.push_str(before);
        if word.len() == ID && !before.ends_with(char::is_alphanumeric) {
            match Container::by_id(paths, word) {
                Ok(Some(container)) => named.push_str(&container.spec.name),
                _ => named.push_str(&word[..12]),
            }
        } else {
            named.push_str(word);
        }
        rest = after;
    }
    named + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::Error;

    fn nowhere() -> Paths {
        let none = std::path::PathBuf::from("/nonexistent");
        Paths { root: none.clone(), run: none.clone(), config_dir: none, cni_bin: vec![] }
    }

    fn plugin(msg: &str) -> InvokeError {
        InvokeError::Plugin {
            kind: "bridge".into(),
            path: "/opt/cni/bin/bridge".into(),
            verb: cni::request::Command::Add,
            error: Error::new(11, msg),
        }
    }

    #[test]
    fn a_plugins_error_has_neither_path_nor_id() {
        let id = "0123456789abcdef".repeat(4);
        let error = plugin(&format!("network web: 10.0.0.9 is held by container {id}, deadbeef"));
        let text = plain(&nowhere(), "web", &error);
        assert_eq!(text, "10.0.0.9 is held by container 0123456789ab, deadbeef");
    }

    #[test]
    fn what_is_said_twice_is_printed_once() {
        let twice = InvokeError::Several(vec![plugin("no"), plugin("no"), plugin("nay")]);
        assert_eq!(plain(&nowhere(), "web", &twice), "no; nay");
        let undo = InvokeError::Undo { error: Box::new(plugin("no")), undo: Box::new(plugin("no")) };
        assert_eq!(plain(&nowhere(), "web", &undo), "no");
    }
}
