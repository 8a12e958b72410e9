//! Whether this process may change the network at all.

use net::{Batch, Netlink};
use nix::libc;

use crate::error::{Error, Result};

/// An index that no link has: the kernel counts from 1.
const NONE: u32 = i32::MAX as u32;

/// That this thread may change links, routes and the packet filter of its network namespace. The kernel is asked, by way of
/// something that there is not: which capability of which user namespace it takes, it knows best.
///
/// # Errors
/// [`Error::Forbidden`]; [`Error::Net`] when the kernel cannot be asked.
pub fn permitted() -> Result<()> {
    let mut batch = Batch::new();
    batch.link_del(NONE);
    match Netlink::open()?.run(batch) {
        Err(error) if error.errno() == Some(libc::EPERM) => Err(Error::Forbidden),
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
        done => Ok(done.map(drop)?),
    }
}
