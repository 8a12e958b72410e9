//! The forms that names must have (specification 1.1.0, section 2, "Parameters").

use crate::error::{Error, code};

/// The longest name of an interface in bytes: the kernel's IFNAMSIZ less the closing zero.
pub const MAX_IFNAME: usize = 15;

fn plain(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

const PLAIN: &str = "a letter or digit, then letters, digits, '_', '.' or '-'";

/// Whether this can be a container's ID.
///
/// # Errors
/// Code 4, naming `CNI_CONTAINERID`.
pub fn container_id(id: &str) -> Result<(), Error> {
    if plain(id) {
        return Ok(());
    }
    Err(Error::environment(&["CNI_CONTAINERID"], format!("{id:?} is not a container ID; allowed: {PLAIN}")))
}

/// Whether this can be a network's name.
///
/// # Errors
/// Code 7, naming the field `name`.
pub fn network_name(name: &str) -> Result<(), Error> {
    if plain(name) {
        return Ok(());
    }
    Err(Error::config("name", format!("{name:?}"), PLAIN))
}

/// Whether this can be the name of an interface.
///
/// # Errors
/// Code 4, naming `CNI_IFNAME`.
pub fn ifname(name: &str) -> Result<(), Error> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > MAX_IFNAME {
        "it is longer than 15 bytes"
    } else if name == "." || name == ".." {
        "\".\" and \"..\" are reserved"
    } else if name.contains(['/', ':', '\0']) || name.contains(char::is_whitespace) {
        "it contains '/', ':', white space or a zero byte"
    } else {
        return Ok(());
    };
    Err(Error::new(
        code::INVALID_ENVIRONMENT,
        format!("CNI_IFNAME: {name:?} cannot name an interface: {why}"),
    ))
}

/// Whether this can be a plugin's type: the name of an executable, not a path.
///
/// # Errors
/// Code 7, naming the field `type`.
pub fn kind(kind: &str) -> Result<(), Error> {
    if kind.is_empty() || kind == "." || kind == ".." || kind.contains(['/', '\0']) {
        return Err(Error::config("type", format!("{kind:?}"), "the file name of a plugin, without a path"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids_and_network_names_start_with_a_letter_or_digit() {
        for name in ["a", "0", "web-1.prod_x", "A.", &"x".repeat(300)] {
            assert!(container_id(name).is_ok() && network_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "-a", "_a", "a/b", "a b", "a\n", "é", "a:b", "../x"] {
            assert_eq!(container_id(name).unwrap_err().code, 4, "{name:?}");
            assert_eq!(network_name(name).unwrap_err().code, 7, "{name:?}");
        }
    }

    #[test]
    fn interface_names_are_those_the_kernel_takes() {
        for name in ["eth0", "e", "123456789012345", "a.100", "-x", "net1%", "é"] {
            assert!(ifname(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "1234567890123456", "a/b", "a:b", "a b", "a\t", "éééééééé", "a\0b"]
        {
            let error = ifname(name).unwrap_err();
            assert!(error.code == 4 && error.msg.contains("CNI_IFNAME"), "{name:?}: {error}");
        }
    }

    #[test]
    fn a_type_is_a_file_name() {
        assert!(kind("host-local").is_ok());
        for name in ["", "..", "../sh", "/bin/sh"] {
            assert_eq!(kind(name).unwrap_err().code, 7, "{name:?}");
        }
    }
}
