//! `conditionsV4` and `conditionsV6` in the language of nft, as the reference's nftables backend takes them.
//!
//! Weft's own table holds a port as an element of a map, which has no room for matches of the user's. What nft says by these
//! words iptables says too, so the rules are made by it.

use cni::Error;

const EXPECTED: &str = "matches of nft: \"ip saddr\", \"ip daddr\" (ip6 in conditionsV6), \"iifname\", \"meta mark\", \"tcp sport\", \
    \"udp sport\", \"ct state\", each with \"!=\" if need be";

/// Whether these are matches of nft: those of iptables begin with an option.
pub fn are_of_nft(words: &[String]) -> bool {
    words.first().is_some_and(|word| !word.trim_start().starts_with(['-', '!']))
}

/// The same matches in iptables' words. `key` is where they stand in the configuration.
///
/// # Errors
/// Code 7 for a match that is none of nft's, or has no counterpart.
pub fn to_iptables(key: &str, is_v6: bool, words: &[String]) -> Result<Vec<String>, Error> {
    let mut words = words.iter().flat_map(|word| word.split_whitespace()).peekable();
    let mut matches = Vec::new();
    while let Some(mut word) = words.next() {
        if word == "meta" {
            word = words.next().unwrap_or(word);
        }
        let wrong = |what: &str| Error::config(key, format!("{what:?}"), EXPECTED);
        let field = match word {
            "ip" | "ip6" | "tcp" | "udp" | "sctp" | "th" | "ct" => words.next().unwrap_or_default(),
            _ => "",
        };
        let is_not = words.next_if(|word| matches!(*word, "!=" | "==")) == Some("!=");
        let value = words.next().unwrap_or_default().trim_matches('"');
        if value.is_empty() || value.starts_with(['{', '@', '$', '-', '!']) {
            return Err(wrong(&format!("{word} {field} {value}")));
        }
        let (module, option, value) = match (word, field) {
            ("ip", "saddr") if !is_v6 => (None, "-s", value.to_owned()),
            ("ip", "daddr") if !is_v6 => (None, "-d", value.to_owned()),
            ("ip6", "saddr") if is_v6 => (None, "-s", value.to_owned()),
            ("ip6", "daddr") if is_v6 => (None, "-d", value.to_owned()),
            ("iifname" | "iif", "") => (None, "-i", value.replace('*', "+")),
            ("mark", "") => (Some("mark"), "--mark", value.to_owned()),
            ("tcp" | "udp" | "sctp" | "th", "sport") => (None, "--sport", value.replace('-', ":")),
            ("ct", "state") => (Some("conntrack"), "--ctstate", value.to_uppercase()),
            _ => return Err(wrong(format!("{word} {field}").trim())),
        };
        matches.extend(module.into_iter().flat_map(|module| ["-m".to_owned(), module.to_owned()]));
        matches.extend(is_not.then(|| "!".to_owned()));
        matches.extend([option.to_owned(), value]);
    }
    Ok(matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(is_v6: bool, words: &[&str]) -> Result<String, String> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        to_iptables("conditionsV4", is_v6, &words)
            .map(|words| words.join(" "))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn matches_of_nft_have_their_counterparts() {
        for (is_v6, nft, iptables) in [
            (false, &["ip", "saddr", "192.0.2.0/24"][..], "-s 192.0.2.0/24"),
            (false, &["ip saddr != 192.0.2.0/24", "iifname", "eth*"], "! -s 192.0.2.0/24 -i eth+"),
            (true, &["ip6", "daddr", "==", "fd00::/8"], "-d fd00::/8"),
            (false, &["meta", "mark", "!=", "0x10"], "-m mark ! --mark 0x10"),
            (false, &["tcp sport 1024-2048"], "--sport 1024:2048"),
            (false, &["ct", "state", "new,related"], "-m conntrack --ctstate NEW,RELATED"),
            (false, &["meta iifname \"eth0\""], "-i eth0"),
        ] {
            assert_eq!(translated(is_v6, nft).as_deref(), Ok(iptables), "{nft:?}");
        }
    }

    #[test]
    fn unknown_match_is_named() {
        for words in [
            &["ip6", "saddr", "fd00::/8"][..],
            &["ip", "saddr"],
            &["ip ttl 5"],
            &["jump", "x"],
            &["ip saddr @x"],
        ] {
            let error = translated(false, words).unwrap_err();
            assert!(error.contains("conditionsV4") && error.contains("ip saddr"), "{words:?}: {error}");
        }
    }
}
