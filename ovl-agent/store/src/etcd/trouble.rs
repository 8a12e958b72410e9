//! What a failed exchange with etcd means: lost, TLS, denied, compacted, refused. Where the library hides the cause, the
//! chain of sources is walked for it.

use std::error::Error as StdError;

use tonic::{Code, ConnectError, Status};

use crate::target::{FLAG_CA, FLAG_CERT, FLAG_KEY, FLAG_SERVER_NAME, FLAG_USER};

/// A failed exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) kind: Kind,
    /// For people; without a password.
    pub(super) why: String,
}

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// No answer, or none that counts. `sent`: the request may have been carried out.
    Lost { sent: bool },
    /// TLS failed.
    Tls,
    /// User or password are wrong, or the user may not do this.
    Denied,
    /// The token is stale; a new connection gets a new one. Nothing was carried out.
    StaleToken,
    /// The revision has been compacted, or there is too much for one answer.
    Compacted,
    /// There is no such lease.
    NoLease,
    /// A setting or the request itself.
    Refused,
    /// A file of the configuration cannot be used: the flag.
    Setting(&'static str),
}

impl Trouble {
    pub(super) fn new(kind: Kind, why: impl Into<String>) -> Trouble {
        Trouble { kind, why: why.into() }
    }

    /// No answer in time.
    pub(super) fn silent() -> Trouble {
        Trouble::new(Kind::Lost { sent: true }, "no answer in time")
    }
}

impl From<etcd_client::Error> for Trouble {
    fn from(e: etcd_client::Error) -> Self {
        use etcd_client::Error as E;
        match e {
            E::GRpcStatus(status) => of_status(&status),
            E::TransportError(e) => {
                of_transport(&e).unwrap_or_else(|| Trouble::new(Kind::Refused, deepest(&e)))
            }
            E::IoError(e) => Trouble::new(Kind::Lost { sent: true }, plain(&e.to_string())),
            // The library's only signs that a lease has ended, and that a connection's task is gone.
            E::LeaseKeepAliveError(why) if why == "lease not found" => Trouble::new(Kind::NoLease, why),
            E::LeaseKeepAliveError(why) | E::WatchError(why) | E::EndpointError(why) => {
                Trouble::new(Kind::Lost { sent: true }, why)
            }
            other => Trouble::new(Kind::Refused, other.to_string()),
        }
    }
}

fn chain<'a>(e: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(e), |&e| e.source())
}

/// What the innermost source says.
pub(super) fn deepest(e: &(dyn StdError + 'static)) -> String {
    plain(&chain(e).last().map_or_else(String::new, ToString::to_string))
}

/// What comes of HTTP/2 sent to TLS, in one of several ways, and of a connection that ends without a word.
const CLOSED: &str = "it closed the connection";

/// Without the number that the standard library adds, and with a hint where one helps.
fn plain(text: &str) -> String {
    let text = text.split(" (os error").next().unwrap_or(text);
    match text {
        "tls handshake eof" => "it closed the connection in the TLS handshake; is it http?".to_owned(),
        "stream closed because of a broken pipe"
        | "connection closed because of a broken pipe"
        | "frame with invalid size" => CLOSED.to_owned(),
        _ => text.to_owned(),
    }
}

/// What the connection says. None: nothing that is known.
fn of_transport(e: &(dyn StdError + 'static)) -> Option<Trouble> {
    if let Some(why) = chain(e).find_map(|e| tls(&e.to_string())) {
        return Some(Trouble::new(Kind::Tls, why));
    }
    let connect = chain(e).any(|e| e.is::<ConnectError>());
    let unsent = connect || chain(e).zip(chain(e).skip(1)).any(|(e, source)| never_sent(e, source));
    let io = chain(e).any(|e| e.is::<std::io::Error>());
    (unsent || io).then(|| Trouble::new(Kind::Lost { sent: !unsent }, deepest(e)))
}

/// The HTTP library's error for a request that was still in its queue when the connection ended.
fn never_sent(e: &(dyn StdError + 'static), source: &(dyn StdError + 'static)) -> bool {
    e.to_string().contains("operation was canceled")
        && ["connection closed", "connection was not ready"].contains(&source.to_string().as_str())
}

fn of_status(status: &Status) -> Trouble {
    let message = status.message();
    let said = |text: &str| message.contains(text);
    // A status with a source was made on this side.
    if let Some(source) = StdError::source(status) {
        return of_transport(source)
            .unwrap_or_else(|| Trouble::new(Kind::Lost { sent: true }, deepest(source)));
    }
    if let Some(why) = tls(message) {
        return Trouble::new(Kind::Tls, why);
    }
    let kind = match status.code() {
        Code::Unavailable if said("no leader") || said("too many requests") => Kind::Lost { sent: false },
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => {
            Kind::Lost { sent: true }
        }
        Code::ResourceExhausted if said("too many requests") => Kind::Lost { sent: false },
        Code::Unauthenticated => Kind::StaleToken,
        Code::PermissionDenied => Kind::Denied,
        _ if said("revision of auth store is old") || said("invalid auth token") => Kind::StaleToken,
        _ if said("user name is empty") => {
            return Trouble::new(Kind::Denied, format!("it asks for a user and password ({FLAG_USER})"));
        }
        _ if said("authentication is not enabled") => {
            let why = format!("it has no authentication enabled; leave {FLAG_USER} away, or enable it");
            return Trouble::new(Kind::Denied, why);
        }
        _ if said("authentication failed") => {
            return Trouble::new(Kind::Denied, "wrong user or password");
        }
        _ if said("permission denied") => Kind::Denied,
        Code::OutOfRange => Kind::Compacted,
        Code::NotFound if said("lease not found") => Kind::NoLease,
        // Made by the library when a connection breaks in the midst of an answer.
        Code::Unknown | Code::Internal if said("h2 protocol error") || said("transport error") => {
            Kind::Lost { sent: true }
        }
        _ => Kind::Refused,
    };
    Trouble::new(kind, plain(message.trim_start_matches("etcdserver: ")))
}

/// What answers to TLS with something else.
pub(super) const NOT_TLS: &str = "it does not speak TLS; is it http?";

/// What a text of the TLS library means, if it is one.
pub(super) fn tls(text: &str) -> Option<String> {
    let said = |part: &str| text.contains(part);
    Some(if said("UnknownIssuer") || said("BadSignature") || said("CaUsedAsEndEntity") {
        format!("its certificate is not signed by the authority in {FLAG_CA}")
    } else if said("NotValidForName") || said("not valid for name") {
        format!("its certificate is for another name (give it with {FLAG_SERVER_NAME} if that is right)")
    } else if said("invalid peer certificate: Expired") || said("certificate expired") {
        "its certificate has expired".to_owned()
    } else if said("invalid peer certificate: NotValidYet") || said("certificate not valid yet") {
        "its certificate is not valid yet".to_owned()
    } else if said("invalid peer certificate") {
        format!("its certificate is not accepted: {text}")
    } else if said("received fatal alert: BadCertificate")
        || said("received fatal alert: CertificateRequired")
        || said("received fatal alert: UnknownCA")
        || said("received fatal alert: CertificateUnknown")
        || said("received fatal alert: CertificateExpired")
        || said("received fatal alert: DecryptError")
    {
        let alert = text.rsplit("alert: ").next().unwrap_or(text);
        format!(
            "it does not accept the client certificate, or asks for one ({FLAG_CERT}, {FLAG_KEY}): {alert}"
        )
    } else if said("received fatal alert") || said("peer is incompatible") || said("not negotiated") {
        text.to_owned()
    } else if said("InvalidContentType") || said("corrupt message") {
        NOT_TLS.to_owned()
    } else {
        return None;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code, message: &str) -> Kind {
        Trouble::from(etcd_client::Error::GRpcStatus(Status::new(code, message))).kind
    }

    #[test]
    fn answers_of_etcd_are_told_apart() {
        let sent = Kind::Lost { sent: true };
        for (code, message, kind) in [
            (Code::Unavailable, "etcdserver: no leader", Kind::Lost { sent: false }),
            (Code::Unavailable, "etcdserver: request timed out", sent),
            (Code::Unavailable, "etcdserver: leader changed", sent),
            (Code::ResourceExhausted, "etcdserver: too many requests", Kind::Lost { sent: false }),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", Kind::Refused),
            (Code::Unauthenticated, "etcdserver: invalid auth token", Kind::StaleToken),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old", Kind::StaleToken),
            (Code::InvalidArgument, "etcdserver: user name is empty", Kind::Denied),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                Kind::Denied,
            ),
            (Code::FailedPrecondition, "etcdserver: authentication is not enabled", Kind::Denied),
            (Code::PermissionDenied, "etcdserver: permission denied", Kind::Denied),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", Kind::Compacted),
            (Code::NotFound, "etcdserver: requested lease not found", Kind::NoLease),
            (Code::InvalidArgument, "etcdserver: request is too large", Kind::Refused),
        ] {
            assert_eq!(of(code, message), kind, "{message}");
        }
        let space = Status::new(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
        assert_eq!(of_status(&space).why, "mvcc: database space exceeded");
    }
}
