//! The versions of the specification. They are matched as exact strings; nothing is guessed from their order.

use crate::error::Error;
use std::fmt;
use std::str::FromStr;

/// A released version of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.1.0: results with `ip4` and `ip6`.
    V0_1_0,
    /// 0.2.0: the verb VERSION.
    V0_2_0,
    /// 0.3.0: results with interfaces, and chains of plugins.
    V0_3_0,
    /// 0.3.1: the same with a correction of the text.
    V0_3_1,
    /// 0.4.0: the verb CHECK, and `prevResult` on DEL.
    V0_4_0,
    /// 1.0.0: addresses no longer name their version.
    V1_0_0,
    /// 1.1.0: the verbs GC and STATUS, and more fields of interfaces and routes.
    V1_1_0,
}

impl Version {
    /// Every version, the oldest first.
    pub const ALL: &'static [Version] = &[
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];

    /// The newest version.
    pub const CURRENT: Version = Version::V1_1_0;

    /// What a configuration without `cniVersion` means.
    pub const DEFAULT: Version = Version::V0_1_0;

    /// The version as it is written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }
}

impl Default for Version {
    /// [`Version::DEFAULT`].
    fn default() -> Version {
        Version::DEFAULT
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = Error;

    /// Reads a version; the empty string is 0.1.0, as is an absent `cniVersion`.
    fn from_str(text: &str) -> Result<Version, Error> {
        if text.is_empty() {
            return Ok(Version::DEFAULT);
        }
        Version::ALL
            .iter()
            .copied()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| Error::version(text, Version::ALL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_reads_back_what_it_prints() {
        for &version in Version::ALL {
            assert_eq!(version.to_string().parse::<Version>().unwrap(), version);
        }
    }

    #[test]
    fn an_absent_version_is_the_first_one() {
        assert_eq!("".parse::<Version>().unwrap(), Version::V0_1_0);
    }

    #[test]
    fn only_exact_strings_are_versions() {
        for text in ["1.0", "v1.0.0", "1.0.0 ", "01.0.0", "1.2.0", "1.1.0-rc1"] {
            assert_eq!(
                text.parse::<Version>().unwrap_err().code,
                crate::code::INCOMPATIBLE_VERSION,
                "{text}"
            );
        }
    }

    #[test]
    fn versions_are_ordered_by_age() {
        assert!(Version::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(Version::ALL.last(), Some(&Version::CURRENT));
    }
}
