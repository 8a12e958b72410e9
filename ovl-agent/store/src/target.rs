//! Which store is meant, and how it is reached: the flags `--etcd…` of the agent, read and checked.
//!
//! ```
//! use ovl_store::target::EtcdConf;
//! let mut conf = EtcdConf::new("https://10.0.0.1,https://10.0.0.2:2379")?;
//! conf.ca = Some("/etc/weft/etcd-ca.pem".into());
//! conf.check()?;
//! assert_eq!(conf.endpoints, ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]);
//! # Ok::<(), ovl_store::Error>(())
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The flag that names the endpoints.
pub const FLAG_ENDPOINTS: &str = "--etcd";
/// The flag that names what keys begin with.
pub const FLAG_PREFIX: &str = "--etcd-prefix";
/// The flag that names the authority's certificate.
pub const FLAG_CA: &str = "--etcd-ca";
/// The flag that names the client certificate.
pub const FLAG_CERT: &str = "--etcd-cert";
/// The flag that names the client certificate's key.
pub const FLAG_KEY: &str = "--etcd-key";
/// The flag that names the name in the server's certificate.
pub const FLAG_SERVER_NAME: &str = "--etcd-server-name";
/// The flag that names the user.
pub const FLAG_USER: &str = "--etcd-user";
/// The flag that names the file with the password.
pub const FLAG_PASSWORD_FILE: &str = "--etcd-password-file";
/// The environment variable with the password.
pub const ENV_PASSWORD: &str = "WEFT_ETCD_PASSWORD";

/// What keys begin with unless said otherwise.
pub const PREFIX: &str = "/weft/";
/// etcd's port for clients.
const PORT: u16 = 2379;

const URLS: &str = "allowed are http://HOST:PORT or https://HOST:PORT, separated by commas";

/// The store that an agent uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Embedded, in this directory.
    Local(PathBuf),
    /// etcd.
    Etcd(EtcdConf),
}

/// How etcd is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdConf {
    /// `http://HOST:PORT` or `https://HOST:PORT`, one or more; checked by [`EtcdConf::check`].
    pub endpoints: Vec<String>,
    /// What keys begin with: `/weft/`.
    pub prefix: String,
    /// Authority of the server's certificate (PEM); None: only for http.
    pub ca: Option<PathBuf>,
    /// Client certificate (PEM).
    pub cert: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
    /// The name in the server's certificate, when it is not the endpoint's host.
    pub server_name: Option<String>,
    /// User and password.
    pub user: Option<(String, String)>,
}

impl std::fmt::Debug for EtcdConf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the password.
        let user = self.user.as_ref().map(|(user, _)| user);
        f.debug_struct("EtcdConf")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .field("server_name", &self.server_name)
            .field("user", &user)
            .finish_non_exhaustive()
    }
}

impl EtcdConf {
    /// Reads the value of `--etcd`: `http(s)://HOST[:PORT]`, separated by commas; the port is 2379 unless given. The other
    /// settings are as if their flags were not given: set the fields, then call [`EtcdConf::check`].
    ///
    /// # Errors
    /// [`Error::Setting`], without the password should one be in there.
    pub fn new(endpoints: &str) -> Result<EtcdConf> {
        if let Some((_, host)) = endpoints.rsplit_once('@') {
            let scheme = endpoints.split_once("://").map_or("http", |(scheme, _)| scheme);
            // A password can hold commas and slashes: nothing before the last @ is shown.
            let value = format!("{scheme}://***@{host}");
            let why = format!(
                "a user or password does not belong into the address; give {FLAG_USER} and {FLAG_PASSWORD_FILE} (or the \
                 environment variable {ENV_PASSWORD})"
            );
            return Err(Error::Setting { field: FLAG_ENDPOINTS, value, why });
        }
        let mut conf = EtcdConf {
            endpoints: Vec::new(),
            prefix: PREFIX.to_owned(),
            ca: None,
            cert: None,
            key: None,
            server_name: None,
            user: None,
        };
        for url in endpoints.split(',') {
            let endpoint = endpoint(url.trim())?;
            if !conf.endpoints.contains(&endpoint) {
                conf.endpoints.push(endpoint);
            }
        }
        Ok(conf)
    }

    /// Sets user and password: that of the file (its first line), else that of the environment.
    ///
    /// # Errors
    /// [`Error::Setting`]: there is no password, the file cannot be read, a password without a user.
    pub fn set_user(&mut self, user: Option<&str>, file: Option<&Path>, env: Option<&str>) -> Result<()> {
        let Some(user) = user else {
            return match file {
                // The environment can be set for other agents beside this one.
                None => Ok(()),
                Some(file) => setting(FLAG_PASSWORD_FILE, file.display(), format!("needs {FLAG_USER} too")),
            };
        };
        if user.is_empty() || user.chars().any(char::is_control) {
            return setting(FLAG_USER, user, "allowed is a name of etcd's users, not empty");
        }
        let password = match (file, env) {
            (Some(file), _) => {
                let text = base::file::read_text(file).or_else(|e| {
                    setting(FLAG_PASSWORD_FILE, file.display(), format!("cannot be read: {e}"))
                })?;
                let line = text.lines().next().unwrap_or_default().to_owned();
                if line.is_empty() {
                    return setting(FLAG_PASSWORD_FILE, file.display(), "its first line is empty");
                }
                line
            }
            (None, Some(password)) if !password.is_empty() => password.to_owned(),
            (None, _) => {
                let why =
                    format!("needs a password: {FLAG_PASSWORD_FILE} FILE or the variable {ENV_PASSWORD}");
                return setting(FLAG_USER, user, why);
            }
        };
        self.user = Some((user.to_owned(), password));
        Ok(())
    }

    /// The endpoints' hosts, names or addresses without brackets, and ports.
    pub fn hosts(&self) -> Vec<(String, u16)> {
        self.endpoints.iter().filter_map(|url| host_and_port(url)).collect()
    }

    /// Looks whether the settings fit together.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn check(&self) -> Result<()> {
        let listed = || self.endpoints.join(",");
        for url in &self.endpoints {
            if endpoint(url)? != *url {
                return setting(FLAG_ENDPOINTS, url, URLS);
            }
        }
        let secure = self.endpoints.iter().filter(|e| is_https(e)).count();
        if self.endpoints.is_empty() {
            return setting(FLAG_ENDPOINTS, "", URLS);
        }
        if secure != 0 && secure != self.endpoints.len() {
            return setting(FLAG_ENDPOINTS, listed(), "either all are http or all are https");
        }
        let files = [(FLAG_CA, &self.ca), (FLAG_CERT, &self.cert), (FLAG_KEY, &self.key)];
        let mut tls =
            files.map(|(flag, file)| (flag, file.as_ref().map(|f| f.display().to_string()))).to_vec();
        tls.push((FLAG_SERVER_NAME, self.server_name.clone()));
        if secure == 0
            && let Some((flag, Some(value))) = tls.iter().find(|(_, value)| value.is_some())
        {
            return setting(flag, value, format!("needs https endpoints; {FLAG_ENDPOINTS} has {}", listed()));
        }
        if secure > 0 && self.ca.is_none() {
            let why = format!("https needs {FLAG_CA} FILE, the certificate of the authority (PEM)");
            return setting(FLAG_ENDPOINTS, listed(), why);
        }
        match (&self.cert, &self.key) {
            (Some(cert), None) => {
                return setting(FLAG_CERT, cert.display(), format!("needs {FLAG_KEY} too"));
            }
            (None, Some(key)) => return setting(FLAG_KEY, key.display(), format!("needs {FLAG_CERT} too")),
            _ => {}
        }
        if let Some(name) = &self.server_name
            && !is_host(name)
        {
            return setting(FLAG_SERVER_NAME, name, "allowed is a host name or an IP address");
        }
        let prefix = &self.prefix;
        if !(prefix.starts_with('/') && prefix.ends_with('/'))
            || prefix.len() > 200
            || !prefix.bytes().all(|b| (0x21..0x7f).contains(&b))
        {
            let why = "allowed are printable ASCII characters that begin and end with /, at most 200";
            return setting(FLAG_PREFIX, prefix, why);
        }
        Ok(())
    }
}

fn setting<T>(field: &'static str, value: impl ToString, why: impl ToString) -> Result<T> {
    Err(Error::Setting { field, value: value.to_string(), why: why.to_string() })
}

/// Whether an endpoint that was checked is reached by TLS.
pub(crate) fn is_https(endpoint: &str) -> bool {
    endpoint.starts_with("https://")
}

/// The host, without brackets, and the port of a URL of etcd's; None when it is no such URL.
pub(crate) fn host_and_port(url: &str) -> Option<(String, u16)> {
    let url = endpoint(url).ok()?;
    let (host, port) = url.split_once("://")?.1.rsplit_once(':')?;
    Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
}

/// An endpoint in the form `SCHEME://HOST:PORT`.
fn endpoint(url: &str) -> Result<String> {
    let bad = |why: &str| setting(FLAG_ENDPOINTS, url, format!("{why}; {URLS}"));
    let Some((scheme, rest)) = url.split_once("://") else {
        return bad("it is not a URL");
    };
    let scheme = scheme.to_ascii_lowercase();
    if scheme != "http" && scheme != "https" {
        return bad("its scheme is neither http nor https");
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return bad("it has a path");
    }
    let (host, port) = match rest.rfind(']') {
        Some(end) => rest.split_at(end + 1),
        None => rest.find(':').map_or((rest, ""), |at| rest.split_at(at)),
    };
    let named = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').is_some_and(|h| h.parse::<Ipv6Addr>().is_ok()),
        None => is_host(host) && !host.contains(':'),
    };
    if !named {
        return bad("its host is neither a name nor an address (IPv6 in brackets)");
    }
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => PORT,
        Some(digits) => match digits.parse() {
            Ok(port) if port > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => port,
            _ => return bad("its port is not a number from 1 to 65535"),
        },
        None => return bad("its host is neither a name nor an address (IPv6 in brackets)"),
    };
    Ok(format!("{scheme}://{}:{port}", host.to_ascii_lowercase()))
}

/// Whether this is a host name or an address. What looks like an IPv4 address has to be one.
fn is_host(name: &str) -> bool {
    if name.parse::<Ipv6Addr>().is_ok() {
        return true;
    }
    if name.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return name.parse::<Ipv4Addr>().is_ok();
    }
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: std::fmt::Debug>(result: Result<T>) -> (&'static str, String, String) {
        match result.unwrap_err() {
            Error::Setting { field, value, why } => (field, value, why),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn endpoints_are_brought_into_one_form() {
        let given =
            "http://10.0.0.1:2379, HTTP://Etcd.example.org ,http://[2001:db8::1]:4001/,http://10.0.0.1";
        let conf = EtcdConf::new(given).unwrap();
        assert_eq!(
            conf.endpoints,
            ["http://10.0.0.1:2379", "http://etcd.example.org:2379", "http://[2001:db8::1]:4001"]
        );
        conf.check().unwrap();
        assert_eq!(conf.prefix, "/weft/");
    }

    #[test]
    fn hosts_of_endpoints_are_names_and_addresses_without_brackets() {
        let conf =
            EtcdConf::new("http://10.0.0.1,http://Etcd.example.org:1,http://[2001:db8::1]:4001/").unwrap();
        let hosts: Vec<_> = conf.hosts().into_iter().map(|(host, port)| format!("{host} {port}")).collect();
        assert_eq!(hosts, ["10.0.0.1 2379", "etcd.example.org 1", "2001:db8::1 4001"]);
    }

    #[test]
    fn bad_endpoints_are_named_with_what_is_allowed() {
        for (url, what) in [
            ("", "not a URL"),
            ("10.0.0.1:2379", "not a URL"),
            ("http://a,,http://b", "not a URL"),
            ("ftp://a", "scheme"),
            ("http://", "host"),
            ("http://a b", "host"),
            ("http://-a", "host"),
            ("http://1.2.3", "host"),
            ("http://1.2.3.400:2379", "host"),
            ("http://2001:db8::1:2379", "host"),
            ("http://[2001:db8::1:2379", "host"),
            ("http://[2001:db8::x]:2379", "host"),
            ("http://[::1]2379", "host"),
            ("http://a:0", "port"),
            ("http://a:65536", "port"),
            ("http://a:+80", "port"),
            ("http://a:", "port"),
            ("http://a:2379/v3", "path"),
            ("http://a?x", "path"),
        ] {
            let (field, value, why) = refused(EtcdConf::new(url));
            assert_eq!(field, "--etcd", "{url}");
            assert!(url.contains(&value), "{url}: {value}");
            assert!(
                why.contains(what) && why.contains("http://HOST:PORT or https://HOST:PORT"),
                "{url}: {why}"
            );
        }
    }

    #[test]
    fn a_password_in_an_endpoint_is_refused_and_never_shown() {
        for url in [
            "http://root:hunter2@a:2379",
            "http://root:hunter2@",
            "root:hunter2@a",
            "http://b:1,https://root:x,hunter2,y@a:2379/path",
            "http://root:hunter2/@hunter2@a",
        ] {
            let error = EtcdConf::new(url).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(!text.contains("hunter2") && !text.contains("root"), "{url}: {text}");
            assert!(text.contains("--etcd-user") && text.contains("--etcd-password-file"), "{text}");
        }
    }

    #[test]
    fn settings_that_do_not_fit_together_are_refused() {
        let file = || Some(PathBuf::from("/x.pem"));
        let http = || EtcdConf::new("http://a").unwrap();
        let https = || EtcdConf { ca: file(), ..EtcdConf::new("https://a").unwrap() };
        https().check().unwrap();
        EtcdConf { cert: file(), key: file(), server_name: Some("b.c".into()), ..https() }.check().unwrap();
        for (conf, field) in [
            (EtcdConf { ca: file(), ..http() }, "--etcd-ca"),
            (EtcdConf { cert: file(), ..http() }, "--etcd-cert"),
            (EtcdConf { key: file(), ..http() }, "--etcd-key"),
            (EtcdConf { server_name: Some("a".into()), ..http() }, "--etcd-server-name"),
            (EtcdConf { ca: None, ..https() }, "--etcd"),
            (EtcdConf { cert: file(), ..https() }, "--etcd-cert"),
            (EtcdConf { key: file(), ..https() }, "--etcd-key"),
            (EtcdConf { server_name: Some("a b".into()), ..https() }, "--etcd-server-name"),
            (EtcdConf { endpoints: vec!["http://a:1".into(), "https://a:1".into()], ..http() }, "--etcd"),
            (EtcdConf { endpoints: vec![], ..http() }, "--etcd"),
            (EtcdConf { endpoints: vec!["a".into()], ..http() }, "--etcd"),
            (EtcdConf { prefix: "weft/".into(), ..http() }, "--etcd-prefix"),
            (EtcdConf { prefix: "/weft".into(), ..http() }, "--etcd-prefix"),
            (EtcdConf { prefix: "".into(), ..http() }, "--etcd-prefix"),
            (EtcdConf { prefix: "/w ft/".into(), ..http() }, "--etcd-prefix"),
        ] {
            assert_eq!(refused(conf.check()).0, field, "{conf:?}");
        }
    }

    #[test]
    fn the_password_comes_from_the_file_or_the_environment_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "hunter2\nrest\n").unwrap();
        let mut conf = EtcdConf::new("http://a").unwrap();
        conf.set_user(None, None, Some("hunter2")).unwrap();
        assert_eq!(conf.user, None);
        conf.set_user(Some("weft"), None, Some("hunter3")).unwrap();
        assert_eq!(conf.user, Some(("weft".into(), "hunter3".into())));
        conf.set_user(Some("weft"), Some(&file), Some("hunter3")).unwrap();
        assert_eq!(conf.user, Some(("weft".into(), "hunter2".into())));
        assert!(!format!("{conf:?} {:?}", Target::Etcd(conf.clone())).contains("hunter"));
        assert_eq!(refused(conf.set_user(Some("weft"), None, None)).0, "--etcd-user");
        assert_eq!(refused(conf.set_user(Some("weft"), None, Some(""))).0, "--etcd-user");
        assert_eq!(refused(conf.set_user(Some(""), Some(&file), None)).0, "--etcd-user");
        assert_eq!(refused(conf.set_user(None, Some(&file), None)).0, "--etcd-password-file");
        let (field, value, _) = refused(conf.set_user(Some("weft"), Some(&dir.path().join("none")), None));
        assert!(field == "--etcd-password-file" && value.ends_with("/none"), "{field} {value}");
        std::fs::write(&file, "\n").unwrap();
        assert_eq!(refused(conf.set_user(Some("weft"), Some(&file), None)).0, "--etcd-password-file");
    }
}
