//! Small pieces that several commands read: `KEY=VALUE` lists, variables, filters, names, times. Pure but for the
//! process's own variables.

use anyhow::{Context, Result, anyhow, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// `NAME[=VALUE]` of a repeatable flag; without `=` the value is empty.
pub fn pairs(flag: &str, texts: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        if name.is_empty() {
            bail!("{flag} {text:?}: the name is empty; the form is NAME[=VALUE]");
        }
        Ok((name.to_owned(), value.to_owned()))
    };
    texts.iter().map(pair).collect()
}

/// The variables of `--env-file` and `--env`, in this order, so that the latter win. A name alone takes the value of
/// this process, and is left out when there is none.
pub fn variables(files: &[PathBuf], texts: &[String]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for file in files {
        let named = || format!("--env-file {}", file.display());
        let text = base::file::read_text(file).with_context(named)?;
        for line in
            text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            all.extend(variable(line).with_context(|| format!("--env-file {}", file.display()))?);
        }
    }
    for text in texts {
        all.extend(variable(text)?);
    }
    Ok(all)
}

fn variable(text: &str) -> Result<Option<String>> {
    let name = text.split_once('=').map_or(text, |(name, _)| name);
    if name.is_empty() || name.contains(char::is_whitespace) || text.contains('\0') {
        bail!("invalid variable {text:?}: the form is NAME=VALUE, the name without white space");
    }
    if text.contains('=') {
        return Ok(Some(text.to_owned()));
    }
    Ok(std::env::var(name).ok().map(|value| format!("{name}={value}")))
}

/// Filters: `KEY=VALUE`, where one of the same key's values is enough.
#[derive(Debug, Default, PartialEq)]
pub struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Reads `--filter`.
    ///
    /// # Errors
    /// A key that is not among `known`.
    pub fn parse(texts: &[String], known: &[&str]) -> Result<Filters> {
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for text in texts {
            let (key, value) =
                text.split_once('=').filter(|(key, _)| known.contains(key)).with_context(|| {
                    format!("invalid --filter {text:?}: allowed is {}=VALUE", known.join("=VALUE, "))
                })?;
            all.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        Ok(Filters(all))
    }

    /// Whether a key is filtered by.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Whether nothing is asked of `key`, or one of its values passes.
    pub fn pass(&self, key: &str, test: impl Fn(&str) -> bool) -> bool {
        self.0.get(key).is_none_or(|values| values.iter().any(|value| test(value)))
    }

    /// Whether the labels have all that are asked for: `label=NAME` or `label=NAME=VALUE`.
    pub fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.get("label").into_iter().flatten().all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|have| have == value),
            None => labels.contains_key(wanted),
        })
    }
}

/// `a=b,c=d`, as lists show labels.
pub fn joined(pairs: &BTreeMap<String, String>) -> String {
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// Checks a container's name.
///
/// # Errors
/// Says what is allowed.
pub fn check_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = name.len() > 1 && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if !(first && rest) || name.len() > 128 {
        bail!("invalid container name {name:?}: allowed is [a-zA-Z0-9][a-zA-Z0-9_.-]+, at most 128 bytes");
    }
    Ok(())
}

/// Checks a hardware address and writes it in lower case with colons.
///
/// # Errors
/// Says what is allowed.
pub fn mac(text: &str) -> Result<String> {
    let octets: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
        .collect();
    match octets
        .filter(|octets| octets.len() == 6 && octets[0] & 1 == 0 && octets.iter().any(|octet| *octet != 0))
    {
        Some(octets) => Ok(octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":")),
        None => bail!("--mac-address {text:?}: allowed is a unicast address like 02:42:ac:11:00:02"),
    }
}

/// A time: RFC 3339, seconds since 1970, or a span before now like `90s`, `10m`, `1h30m`.
///
/// # Errors
/// Says what is allowed.
pub fn moment(flag: &str, text: &str) -> Result<OffsetDateTime> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return OffsetDateTime::from_unix_timestamp(seconds).with_context(|| format!("{flag} {text}"));
    }
    if let Some(time) =
        span(text).and_then(|span| OffsetDateTime::now_utc().checked_sub(span.try_into().ok()?))
    {
        return Ok(time);
    }
    Err(anyhow!(
        "{flag} {text:?}: allowed is a time (2026-01-31T12:00:00Z), seconds since 1970, or a span (1h30m)"
    ))
}

fn span(text: &str) -> Option<Duration> {
    let (mut seconds, mut digits) = (0u64, String::new());
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                digits.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        seconds = seconds.checked_add(digits.parse::<u64>().ok()?.checked_mul(unit)?)?;
        digits.clear();
    }
    (digits.is_empty() && !text.is_empty()).then(|| Duration::from_secs(seconds))
}

/// An absolute path, as of now.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} cannot be made absolute", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(all: &[&str]) -> Vec<String> {
        all.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn variables_come_from_files_then_flags() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "# comment\n\nA=1\nB=x y\nNOT_SET_ANYWHERE\n").unwrap();
        let all = variables(std::slice::from_ref(&file), &texts(&["A=2", "PATH"])).unwrap();
        assert_eq!(all[..3], texts(&["A=1", "B=x y", "A=2"]));
        assert!(all[3].starts_with("PATH="));
        assert!(variables(&[], &texts(&["=x"])).is_err());
        assert!(variables(&[], &texts(&["a b=x"])).is_err());
        assert!(variables(&[dir.path().join("none")], &[]).is_err());
    }

    #[test]
    fn filters_of_a_key_are_alternatives_and_labels_add_up() {
        let filters =
            Filters::parse(&texts(&["name=a", "name=b", "label=x", "label=y=1"]), &["name", "label"])
                .unwrap();
        assert!(filters.pass("name", |value| value == "b"));
        assert!(!filters.pass("name", |value| value == "c"));
        assert!(filters.pass("status", |_| false));
        let labels = |all: &[(&str, &str)]| all.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        assert!(filters.labels(&labels(&[("x", ""), ("y", "1")])));
        assert!(!filters.labels(&labels(&[("x", ""), ("y", "2")])));
        let error = Filters::parse(&texts(&["nme=a"]), &["name"]).unwrap_err().to_string();
        assert!(error.contains("nme=a") && error.contains("name=VALUE"), "{error}");
    }

    #[test]
    fn names_and_hardware_addresses_are_checked() {
        assert!(check_name("www-1.x_y").is_ok());
        for name in ["", "a", "a/b", "-ab", "a b", &"a".repeat(129)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert_eq!(mac("02-42-AC-11-00-02").unwrap(), "02:42:ac:11:00:02");
        for text in ["", "02:42:ac:11:00", "03:00:00:00:00:01", "00:00:00:00:00:00", "02:42:ac:11:00:2"] {
            assert!(mac(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_moments_or_spans() {
        assert_eq!(moment("--since", "2026-01-31T12:00:00Z").unwrap().unix_timestamp(), 1_769_860_800);
        assert_eq!(moment("--since", "12").unwrap().unix_timestamp(), 12);
        let ago = OffsetDateTime::now_utc() - moment("--since", "1h30m").unwrap();
        assert!((5399..5402).contains(&ago.whole_seconds()));
        assert!(moment("--since", "soon").is_err());
    }
}
