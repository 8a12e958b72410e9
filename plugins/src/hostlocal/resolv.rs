//! `resolvConf`: what a file like /etc/resolv.conf (resolv.conf(5)) says, as the `dns` of a result.

use cni::Error;
use cni::types::Dns;
use std::path::Path;

/// Reads the file.
///
/// # Errors
/// Code 5 when it cannot be read.
pub fn read(path: &Path) -> Result<Dns, Error> {
    let text = base::file::read_text(path);
    let text =
        text.map_err(|error| Error::io(format!("cannot read resolvConf {}", path.display()), error))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace().map(str::to_owned);
        let Some(keyword) = words.next() else { continue };
        match keyword.as_str() {
            "nameserver" => dns.nameservers.extend(words.next()),
            "domain" => dns.domain = words.next().or(dns.domain.take()),
            "search" => dns.search.extend(words),
            "options" => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_keyword_of_a_resolver_is_taken_over() {
        let dns = parse(
            "# comment\n; another\nnameserver 192.0.2.1\nnameserver 192.0.2.2 \n\ndomain example.com\n\
             search a.example b.example\noptions ndots:2 edns0\nsortlist 1.2.3.0\nnameserver\n",
        );
        assert_eq!(dns.nameservers, ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(dns.domain.as_deref(), Some("example.com"));
        assert_eq!(dns.search, ["a.example", "b.example"]);
        assert_eq!(dns.options, ["ndots:2", "edns0"]);
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_it() {
        let error = read("/nonexistent/resolv.conf".as_ref()).unwrap_err();
        assert!(error.code == 5 && error.msg.contains("/nonexistent/resolv.conf"), "{error}");
    }
}
