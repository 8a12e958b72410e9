//! The error document of the specification (section 5, "Error"), which is also the error of this library.

use crate::version::Version;
use serde_json::{Map, Value};
use std::fmt::Display;

/// The numbers that the specification gives to errors. 100 and above are a plugin's own.
pub mod code {
    /// The configuration's version is not one that the plugin, or the verb, knows.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration is not supported; the message names its key and value.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is not known or does not exist: the runtime need not clean up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or wrong; the message names it.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// A document could not be decoded.
    pub const DECODE: u32 = 6;
    /// The configuration is wrong.
    pub const INVALID_CONFIG: u32 = 7;
    /// A passing state: the runtime should try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: the plugin cannot serve an ADD now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: as 50, and containers of the network may have lost connectivity too.
    pub const LIMITED: u32 = 51;
    /// The first number that belongs to the plugins; used here for what has no number of its own.
    pub const PLUGIN: u32 = 100;
}

/// An error as a plugin prints it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct Error {
    /// One of [`code`], or 100 and above for a plugin's own.
    pub code: u32,
    /// What went wrong, in one sentence.
    pub msg: String,
    /// More about it; may be empty.
    pub details: String,
}

impl Error {
    /// An error with a number and a message.
    pub fn new(code: u32, msg: impl Into<String>) -> Error {
        Error { code, msg: msg.into(), details: String::new() }
    }

    /// The same error with details.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Error {
        self.details = details.into();
        self
    }

    /// A version that is not among the supported ones (code 1).
    pub fn version(got: &str, supported: &[Version]) -> Error {
        let list: Vec<&str> = supported.iter().map(|version| version.as_str()).collect();
        Error::new(code::INCOMPATIBLE_VERSION, "incompatible CNI version")
            .details(format!("the configuration's cniVersion is {got:?}, supported are {}", list.join(", ")))
    }

    /// A field that is not supported (code 2).
    pub fn unsupported_field(key: &str, value: impl Display) -> Error {
        Error::new(code::UNSUPPORTED_FIELD, format!("unsupported field {key:?} with value {value}"))
    }

    /// Environment variables that are missing or wrong (code 4).
    pub fn environment(vars: &[&str], why: impl Display) -> Error {
        Error::new(code::INVALID_ENVIRONMENT, format!("{}: {why}", vars.join(", ")))
    }

    /// A failed reading or writing (code 5): `doing` says of what.
    pub fn io(doing: impl Display, why: impl Display) -> Error {
        Error::new(code::IO, doing.to_string()).details(why.to_string())
    }

    /// A document that cannot be decoded (code 6): `what` names the document.
    pub fn decode(what: impl Display, why: impl Display) -> Error {
        Error::new(code::DECODE, format!("cannot decode {what}")).details(why.to_string())
    }

    /// A wrong value in the configuration (code 7): the field, the value that it has, and what is allowed.
    pub fn config(field: &str, value: impl Display, allowed: impl Display) -> Error {
        Error::new(code::INVALID_CONFIG, format!("invalid {field:?} in the network configuration"))
            .details(format!("{field} is {value}; allowed: {allowed}"))
    }

    /// A passing state (code 11).
    pub fn try_again(why: impl Display) -> Error {
        Error::new(code::TRY_AGAIN, why.to_string())
    }

    /// STATUS: not ready to serve an ADD (code 50).
    pub fn not_available(why: impl Display) -> Error {
        Error::new(code::NOT_AVAILABLE, why.to_string())
    }

    /// The document that a plugin prints: `cniVersion`, `code`, `msg`, and `details` when there are any.
    pub fn to_json(&self, version: Version) -> Value {
        let mut doc = Map::new();
        doc.insert("cniVersion".into(), version.as_str().into());
        doc.insert("code".into(), self.code.into());
        doc.insert("msg".into(), self.msg.as_str().into());
        if !self.details.is_empty() {
            doc.insert("details".into(), self.details.as_str().into());
        }
        Value::Object(doc)
    }

    /// Reads an error document that a plugin printed; `None` when it is not one.
    pub fn from_json(doc: &Value) -> Option<Error> {
        let text = |key: &str| doc.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let code = u32::try_from(doc.get("code")?.as_u64()?).ok()?;
        Some(Error { code, msg: text("msg"), details: text("details") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_document_has_the_fields_of_the_specification_in_its_order() {
        let error = Error::config("mtu", -1, "0 to 65535");
        assert_eq!(
            error.to_json(Version::V1_0_0).to_string(),
            r#"{"cniVersion":"1.0.0","code":7,"msg":"invalid \"mtu\" in the network configuration","details":"mtu is -1; allowed: 0 to 65535"}"#
        );
    }

    #[test]
    fn details_are_left_out_when_there_are_none() {
        assert_eq!(
            Error::try_again("busy").to_json(Version::CURRENT),
            json!({"cniVersion": "1.1.0", "code": 11, "msg": "busy"})
        );
    }

    #[test]
    fn a_document_reads_back_as_the_error_that_printed_it() {
        let error = Error::io("cannot read /x", "permission denied");
        assert_eq!(Error::from_json(&error.to_json(Version::CURRENT)), Some(error));
        assert_eq!(Error::from_json(&json!({"ips": []})), None);
    }

    #[test]
    fn the_text_of_an_error_joins_message_and_details() {
        assert_eq!(Error::new(100, "a").details("b").to_string(), "a: b");
        assert_eq!(Error::new(100, "a").to_string(), "a");
    }

    #[test]
    fn environment_errors_name_every_variable() {
        let error = Error::environment(&["CNI_NETNS", "CNI_IFNAME"], "required for ADD, but not set");
        assert_eq!(
            (error.code, error.msg.as_str()),
            (4, "CNI_NETNS, CNI_IFNAME: required for ADD, but not set")
        );
    }
}
