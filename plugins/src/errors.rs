//! The one table from what can go wrong in the libraries to the numbers of CNI error documents.
//!
//! The numbers below 100 are the specification's (section 5); those of 100 and above are listed in docs/differences.md.

use cni::{Error, code};
use ovl_api::ClientError;
use ovl_api::wire::ProblemKind;

/// An address that was asked for is held by another container.
pub const ADDRESS_TAKEN: u32 = 101;
/// No address of a range is free.
pub const RANGE_FULL: u32 = 102;
/// The container's interface holds an address of this network already, or exists.
pub const EXISTS: u32 = 103;
/// A host port is published by another container.
pub const PORT_TAKEN: u32 = 104;
/// CHECK: something is not as ADD left it.
pub const MISMATCH: u32 = 105;
/// The kernel was built without something that is needed.
pub const NO_KERNEL_SUPPORT: u32 = 106;
/// A container whose namespace should be joined is not known.
pub const NO_TARGET: u32 = 107;

/// Turns a library's error into a CNI error.
pub trait Coded<T> {
    /// The same result, with the error that the runtime gets.
    fn coded(self) -> Result<T, Error>;
}

impl<T> Coded<T> for Result<T, net::Error> {
    fn coded(self) -> Result<T, Error> {
        self.map_err(|error| from_net(&error))
    }
}

impl<T> Coded<T> for Result<T, ipam::Error> {
    fn coded(self) -> Result<T, Error> {
        self.map_err(|error| from_ipam(&error))
    }
}

impl<T> Coded<T> for Result<T, ClientError> {
    fn coded(self) -> Result<T, Error> {
        self.map_err(|error| from_ovl(&error))
    }
}

/// The number of an error of the overlay agent, or of the lack of one.
pub fn from_ovl(error: &ClientError) -> Error {
    use ProblemKind as K;
    let number = match error {
        ClientError::NoAgent { .. } | ClientError::TimedOut { .. } => code::TRY_AGAIN,
        ClientError::Denied { .. } => code::IO,
        ClientError::Garbled { .. } => code::DECODE,
        ClientError::Problem(problem) => match problem.kind {
            K::Invalid | K::NotFound => code::INVALID_CONFIG,
            K::Taken => ADDRESS_TAKEN,
            K::Full => RANGE_FULL,
            K::Duplicate => EXISTS,
            K::Store | K::NotReady => code::TRY_AGAIN,
            K::InUse | K::Internal => code::PLUGIN,
        },
    };
    Error::new(number, error.to_string())
}

/// The number of a kernel error.
pub fn from_net(error: &net::Error) -> Error {
    use net::Error as E;
    let number = match error {
        E::NetnsMissing(_) | E::NotANamespace(_) | E::NotNetwork { .. } => {
            return Error::environment(&["CNI_NETNS"], error);
        }
        E::Kernel { .. } | E::Io { .. } | E::Decode { .. } => code::IO,
        E::Invalid { .. } => code::INVALID_CONFIG,
        E::Unsupported(_) => NO_KERNEL_SUPPORT,
        E::Mismatch(_) => MISMATCH,
        E::PortTaken { .. } => PORT_TAKEN,
        _ => code::PLUGIN,
    };
    Error::new(number, error.to_string())
}

/// The number of an address store's error.
pub fn from_ipam(error: &ipam::Error) -> Error {
    use ipam::Error as E;
    let number = match error {
        E::TooSmall { .. }
        | E::HostBits { .. }
        | E::Outside { .. }
        | E::Reversed { .. }
        | E::EmptySet
        | E::MixedFamilies(..)
        | E::Overlap(..)
        | E::Name { .. }
        | E::NotInRange { .. }
        | E::IsGateway { .. }
        | E::Surplus { .. } => code::INVALID_CONFIG,
        E::Taken { .. } => ADDRESS_TAKEN,
        E::Full { .. } => RANGE_FULL,
        E::Duplicate { .. } => EXISTS,
        E::Damaged { .. } | E::Busy { .. } => code::TRY_AGAIN,
        _ => code::IO,
    };
    Error::new(number, error.to_string())
}

/// Something that CHECK found missing or different.
pub fn mismatch(what: impl Into<String>) -> Error {
    Error::new(MISMATCH, what)
}

/// Steps that go on after errors: what failed is collected and told in one error at the end, with the first one's code.
#[derive(Default)]
pub struct Failures(Vec<Error>);

impl Failures {
    /// Notes a step's outcome.
    pub fn note(&mut self, outcome: Result<(), Error>) {
        self.0.extend(outcome.err());
    }

    /// The value of a step, if it succeeded.
    pub fn value<T>(&mut self, outcome: Result<T, Error>) -> Option<T> {
        outcome.map_err(|error| self.0.push(error)).ok()
    }

    /// Nothing when every step succeeded.
    pub fn outcome(self) -> Result<(), Error> {
        let mut all = self.0.into_iter();
        let Some(mut first) = all.next() else { return Ok(()) };
        for other in all {
            if !first.details.is_empty() {
                first.details.push_str("; ");
            }
            first.details.push_str(&format!("also: {other}"));
        }
        Err(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_wrong_namespace_is_an_error_of_the_environment() {
        let error = from_net(&net::Error::NotANamespace(PathBuf::from("/tmp/x")));
        assert!(
            error.code == 4 && error.msg.contains("CNI_NETNS") && error.msg.contains("/tmp/x"),
            "{error}"
        );
    }

    #[test]
    fn a_taken_port_has_a_number_of_its_own() {
        let error =
            net::Error::PortTaken { port: 8080, protocol: "tcp".into(), holder: "web/c1/eth0".into() };
        let error = from_net(&error);
        assert!(
            error.code == 104 && error.msg.contains("8080") && error.msg.contains("web/c1/eth0"),
            "{error}"
        );
    }

    #[test]
    fn what_the_overlay_agent_says_has_the_numbers_of_the_address_store() {
        let problem = |kind| ClientError::Problem(ovl_api::wire::Problem::new(kind, "why"));
        let absent = ClientError::NoAgent { socket: "/run/x.sock".into(), why: "refused".into() };
        let absent = from_ovl(&absent);
        assert!(absent.code == 11 && absent.msg.contains("ovl-agent run"), "{absent}");
        for (kind, number) in [
            (ProblemKind::Invalid, 7),
            (ProblemKind::NotFound, 7),
            (ProblemKind::Taken, 101),
            (ProblemKind::Full, 102),
            (ProblemKind::Duplicate, 103),
            (ProblemKind::Store, 11),
            (ProblemKind::NotReady, 11),
            (ProblemKind::Internal, 100),
        ] {
            let error = from_ovl(&problem(kind));
            assert_eq!((error.code, error.msg.as_str()), (number, "why"), "{kind:?}");
        }
    }

    #[test]
    fn every_failure_is_told() {
        let mut failures = Failures::default();
        failures.note(Ok(()));
        failures.note(Err(Error::new(5, "a")));
        assert_eq!(failures.value(Ok(3)), Some(3));
        failures.note(Err(Error::new(7, "b").details("c")));
        let error = failures.outcome().unwrap_err();
        assert_eq!((error.code, error.to_string().as_str()), (5, "a: also: b: c"));
        assert!(Failures::default().outcome().is_ok());
    }
}
