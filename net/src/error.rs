//! What can go wrong between Weft and the kernel, in words for the person who reads the log: the operation, the object's
//! name, the kernel's own explanation where it gave one (extended ACK), and what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The result of an operation of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation on the kernel's networking.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a netlink request.
    #[error("{what}: {refusal}{}", hint(.refusal.errno))]
    Kernel {
        /// What was asked, with the object's name: "create veth vetha1b2 in bridge cni0".
        what: String,
        /// The kernel's answer.
        refusal: Refusal,
    },
    /// A system call failed.
    #[error("{what}: {source}{}", hint(.source.raw_os_error().unwrap_or(0)))]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel's answer is not what its interface promises.
    #[error("{what}: the kernel's answer cannot be read: {why}")]
    Decode {
        /// What was asked.
        what: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// There is nothing at the path of a network namespace.
    #[error("no network namespace at {}: no such file", .0.display())]
    NetnsMissing(PathBuf),
    /// The file at the path of a network namespace is no namespace, as after a reboot, when the mount is gone and the
    /// empty file left.
    #[error("{} is a plain file, not a namespace: nothing is mounted there (remove it and create the namespace again)", .0.display())]
    NotANamespace(PathBuf),
    /// The file is a namespace of another kind.
    #[error("{} is a {kind} namespace, not a network namespace", .path.display())]
    NotNetwork {
        /// The file.
        path: PathBuf,
        /// The kind that it is: "mount", "PID" …
        kind: &'static str,
    },
    /// No link of this name (or index) in the namespace.
    #[error("no network interface {0}")]
    NoLink(String),
    /// The running kernel was built without a feature, or its module is not loaded.
    #[error("this kernel has no {0}")]
    Unsupported(String),
    /// An argument that the kernel would misunderstand.
    #[error("{what} {value:?}: {why}")]
    Invalid {
        /// The name of the argument.
        what: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        why: String,
    },
    /// Something that must be there is not, or differs (the CHECK verb).
    #[error("{0}")]
    Mismatch(String),
    /// A host port is published already by a container that is alive.
    #[error("host port {port}/{protocol} is already published by {holder}")]
    PortTaken {
        /// The port of the host.
        port: u16,
        /// "tcp", "udp" or "sctp".
        protocol: String,
        /// The holder's tag, network/container/interface.
        holder: String,
    },
    /// Anything else, said in full.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// A failed system call, described.
    pub fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::Io { what: what.into(), source: source.into() }
    }

    /// The error number behind this error, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Kernel { refusal, .. } => Some(refusal.errno),
            Error::Io { source, .. } => source.raw_os_error(),
            Error::NetnsMissing(_) => Some(libc::ENOENT),
            Error::NoLink(_) => Some(libc::ENODEV),
            Error::Unsupported(_) => Some(libc::EOPNOTSUPP),
            Error::PortTaken { .. } => Some(libc::EADDRINUSE),
            _ => None,
        }
    }

    /// True when the object of the request does not exist: for a deletion that is success.
    pub fn is_missing(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::ENXIO | libc::EADDRNOTAVAIL)
        )
    }

    /// EBUSY: it is in use.
    pub fn is_busy(&self) -> bool {
        self.errno() == Some(libc::EBUSY)
    }

    /// True when the link of the request is down.
    pub fn is_down(&self) -> bool {
        self.errno() == Some(libc::ENETDOWN)
    }

    /// True when the object exists already.
    pub fn is_existing(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }
}

/// How the kernel said no to one netlink message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error number, positive.
    pub errno: i32,
    /// The kernel's explanation (NLMSGERR_ATTR_MSG), where it gave one.
    pub text: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = nix::errno::Errno::from_raw(self.errno);
        match &self.text {
            Some(text) => write!(f, "{text} ({})", error.desc()),
            None => write!(f, "{} ({error:?})", error.desc()),
        }
    }
}

/// What to do about an error number, where the number alone tells.
fn hint(errno: i32) -> &'static str {
    match errno {
        libc::EPERM | libc::EACCES => "; this needs root, or CAP_NET_ADMIN in the network namespace",
        libc::EXFULL => "; the bridge is full (a Linux bridge takes 1,023 ports): use a second network",
        libc::ENOBUFS | libc::ENOMEM => "; the kernel is short of memory",
        libc::EMFILE | libc::ENFILE => "; too many open files: raise the limit (ulimit -n)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_with_the_kernels_words_and_a_hint() {
        let refusal = Refusal { errno: libc::EXFULL, text: None };
        let error = Error::Kernel { what: "add vetha to bridge cni0".into(), refusal };
        let text = error.to_string();
        assert!(text.starts_with("add vetha to bridge cni0: "), "{text}");
        assert!(text.contains("1,023"), "{text}");

        let refusal = Refusal { errno: libc::EOPNOTSUPP, text: Some("Unknown device type".into()) };
        let error = Error::Kernel { what: "create x".into(), refusal };
        assert_eq!(
            error.to_string(),
            "create x: Unknown device type (Operation not supported on transport endpoint)"
        );
    }

    #[test]
    fn missing_is_what_a_deletion_takes_for_success() {
        for errno in [libc::ENOENT, libc::ENODEV, libc::ESRCH, libc::EADDRNOTAVAIL] {
            let refusal = Refusal { errno, text: None };
            assert!(Error::Kernel { what: String::new(), refusal }.is_missing());
        }
        assert!(!Error::io("x", io::Error::from_raw_os_error(libc::EPERM)).is_missing());
    }
}
