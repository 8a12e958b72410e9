//! `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`. Keys are case-sensitive.

use crate::error::Error;

/// The key that lets a plugin pass over keys that it does not know.
const IGNORE_UNKNOWN: &str = "IgnoreUnknown";

/// The pairs of `CNI_ARGS`.
///
/// Reading them never fails: a plugin that takes no arguments has no reason to reject any. One that does calls
/// [`Args::only`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    raw: String,
    pairs: Vec<(String, String)>,
    malformed: Vec<String>,
}

impl Args {
    /// Splits the variable's value.
    pub fn parse(raw: &str) -> Args {
        let mut args = Args { raw: raw.to_owned(), ..Args::default() };
        for part in raw.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some((key, value)) if !key.is_empty() => args.pairs.push((key.to_owned(), value.to_owned())),
                _ => args.malformed.push(part.to_owned()),
            }
        }
        args
    }

    /// The variable's value as it was given, for delegates.
    pub fn as_str(&self) -> &str {
        &self.raw
    }

    /// A key's value; when it is given more than once, the last one.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(each, _)| each == key).map(|(_, value)| value.as_str())
    }

    /// The arguments without these keys: for a delegate that does not know its caller's own.
    #[must_use]
    pub fn without(&self, keys: &[&str]) -> Args {
        let kept = |part: &&str| !part.trim().split_once('=').is_some_and(|(key, _)| keys.contains(&key));
        Args::parse(&self.raw.split(';').filter(kept).collect::<Vec<_>>().join(";"))
    }

    /// The pairs, in the order in which they were given.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// Whether unknown keys are to be passed over.
    pub fn ignore_unknown(&self) -> bool {
        self.get(IGNORE_UNKNOWN).is_some_and(super::is_true)
    }

    /// Checks that there are no keys but these, unless `IgnoreUnknown` is set.
    ///
    /// # Errors
    /// Code 4, naming `CNI_ARGS` and what is wrong in it.
    pub fn only(&self, known: &[&str]) -> Result<(), Error> {
        let wrong = |why: String| Err(Error::environment(&["CNI_ARGS"], why));
        if let Some(part) = self.malformed.first() {
            return wrong(format!("{part:?} is not of the form KEY=VALUE"));
        }
        let flag = self.get(IGNORE_UNKNOWN).unwrap_or("0");
        if !super::is_true(flag) && flag != "0" && !flag.eq_ignore_ascii_case("false") {
            return wrong(format!("{IGNORE_UNKNOWN} is {flag:?}; allowed: 1, true, 0, false"));
        }
        let is_known = |key: &str| key == IGNORE_UNKNOWN || known.contains(&key);
        let unknown: Vec<&str> =
            self.pairs.iter().map(|(key, _)| key.as_str()).filter(|key| !is_known(key)).collect();
        if unknown.is_empty() || self.ignore_unknown() {
            return Ok(());
        }
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        wrong(format!(
            "unknown keys {}; allowed: {known}; {IGNORE_UNKNOWN}=1 passes over others",
            unknown.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_split_at_semicolons_and_the_first_equals_sign() {
        let args = Args::parse("IgnoreUnknown=1;K8S_POD_NAME=web;IP=10.0.0.1;EXPR=a=b;EMPTY=;");
        assert_eq!(args.get("K8S_POD_NAME"), Some("web"));
        assert_eq!(args.get("EXPR"), Some("a=b"));
        assert_eq!(args.get("EMPTY"), Some(""));
        assert_eq!(args.get("ip"), None);
        assert!(args.ignore_unknown());
    }

    #[test]
    fn unknown_keys_are_an_error_that_names_them() {
        let error = Args::parse("IP=10.0.0.1;FOO=1;BAR=2").only(&["IP"]).unwrap_err();
        assert_eq!(error.code, 4);
        for part in ["CNI_ARGS", "FOO, BAR", "allowed: IP"] {
            assert!(error.msg.contains(part), "{error}");
        }
    }

    #[test]
    fn ignore_unknown_allows_any_key() {
        for raw in ["IgnoreUnknown=1;X=1", "X=1;IgnoreUnknown=true", "IgnoreUnknown=TRUE;X=1"] {
            assert!(Args::parse(raw).only(&[]).is_ok(), "{raw}");
        }
        for raw in ["IgnoreUnknown=0;X=1", "IgnoreUnknown=false;X=1", "ignoreunknown=1;X=1"] {
            assert!(Args::parse(raw).only(&[]).is_err(), "{raw}");
        }
    }

    #[test]
    fn a_callers_own_keys_can_be_kept_from_its_delegate() {
        let args = Args::parse("IP=10.0.0.1;MAC=02:00:00:00:00:01;X").without(&["MAC"]);
        assert_eq!(args.as_str(), "IP=10.0.0.1;X");
        assert_eq!(args.get("MAC"), None);
    }

    #[test]
    fn malformed_arguments_are_an_error_only_for_who_reads_them() {
        for raw in ["IP", "=x", "IP=1;;x", "IgnoreUnknown=maybe"] {
            assert_eq!(Args::parse(raw).only(&["IP"]).unwrap_err().code, 4, "{raw}");
        }
        assert!(Args::parse("").only(&[]).is_ok());
    }
}
