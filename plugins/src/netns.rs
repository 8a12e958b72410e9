//! The container's network namespace, opened before anything is changed; the host's own is refused.

use crate::errors::Coded;
use cni::Error;
use cni::request::Request;
use net::Netns;

const NETNS: &[&str] = &["CNI_NETNS"];

/// Opens the namespace for ADD and CHECK.
///
/// # Errors
/// Code 4 when nothing is there, when it is no network namespace, and when it is the host's own, unless
/// `CNI_NETNS_OVERRIDE` allows that.
pub fn open(request: &Request) -> Result<Netns, Error> {
    let path = request.netns.as_ref().ok_or_else(|| Error::environment(NETNS, "required, but not set"))?;
    let netns = Netns::open(path).coded()?;
    if !request.netns_override && is_own(&netns)? {
        let why = format!(
            "{} is the host's own network namespace, which is not changed (CNI_NETNS_OVERRIDE=1 allows it)",
            path.display()
        );
        return Err(Error::environment(NETNS, why));
    }
    Ok(netns)
}

/// Whether it is the namespace this process runs in.
pub fn is_own(netns: &Netns) -> Result<bool, Error> {
    Ok(Netns::current().coded()?.same(netns))
}

/// Opens the namespace for DEL: there may be none (any more), and the host's own is never touched.
pub fn open_for_del(request: &Request) -> Option<Netns> {
    let path = request.netns.as_ref()?;
    let netns = match Netns::open(path) {
        Ok(netns) => netns,
        Err(net::Error::NetnsMissing(_) | net::Error::NotANamespace(_)) => return None,
        Err(error) => {
            eprintln!("DEL goes on without the network namespace: {error}");
            return None;
        }
    };
    if request.netns_override || is_own(&netns).is_ok_and(|own| !own) {
        return Some(netns);
    }
    eprintln!("DEL leaves the host's own network namespace {} as it is", path.display());
    None
}

/// The namespace's path, as results name it.
pub fn sandbox(request: &Request) -> Option<String> {
    request.netns.as_ref().map(|path| path.to_string_lossy().into_owned())
}
