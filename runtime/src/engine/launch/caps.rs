//! What root in a container may do: Docker's default capabilities. Its other users have none.

use anyhow::{Context, Result};
use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use super::user::User;

/// Docker's default set (moby, oci/caps/defaults.go).
const DEFAULT: [Capability; 14] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FSETID,
    Capability::CAP_FOWNER,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_KILL,
    Capability::CAP_AUDIT_WRITE,
];

/// Becomes `user` with at most the default capabilities. The bounding set goes first, as long as this process may still
/// change it; the inheritable and ambient sets are empty, as Docker's are since 20.10.14 (CVE-2022-24769).
pub fn become_user(user: &User) -> Result<()> {
    let wanted: CapsHashSet = DEFAULT.into_iter().collect();
    for cap in caps::all() {
        // A capability that this kernel does not know is not in the set.
        if !wanted.contains(&cap) && caps::has_cap(None, CapSet::Bounding, cap).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, cap).with_context(|| format!("cannot drop {cap}"))?;
        }
    }
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).context("cannot set the supplementary groups")?;
    setgid(Gid::from_raw(user.gid)).with_context(|| format!("cannot take group {}", user.gid))?;
    caps::clear(None, CapSet::Ambient).context("cannot clear the ambient capabilities")?;
    caps::clear(None, CapSet::Inheritable).context("cannot clear the inheritable capabilities")?;
    setuid(Uid::from_raw(user.uid)).with_context(|| format!("cannot take user {}", user.uid))?;
    let has = caps::read(None, CapSet::Permitted).context("cannot read the capabilities")?;
    let keep: CapsHashSet = has.intersection(&wanted).copied().collect();
    caps::set(None, CapSet::Effective, &keep).context("cannot set the effective capabilities")?;
    caps::set(None, CapSet::Permitted, &keep).context("cannot set the permitted capabilities")?;
    Ok(())
}
