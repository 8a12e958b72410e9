//! Which system calls a container may not make: those that Docker's default profile refuses to a container with the
//! default capabilities (moby, profiles/seccomp/default.json). Here they are a list of what is refused; what is newer than
//! the list gets ENOSYS, as if the kernel did not know it. Programs of another word size than the host's are killed.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

/// The newest system call known to this list (file_setattr, Linux 6.17): numbers above it get ENOSYS. So do those of the
/// x32 ABI, which begin at 0x40000000 and would pass by a list of x86_64's.
const NEWEST: u32 = 469;

/// The namespaces' clone flags, which need CAP_SYS_ADMIN, and in a user namespace would be had without.
const NAMESPACES: u64 = 0x7E02_0080;

/// Refused with EPERM, whatever the arguments.
const REFUSED: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// The same, of those that only x86_64 has.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[i64] = &[
    libc::SYS__sysctl,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[i64] = &[];

/// The personalities that are allowed: PER_LINUX, PER_LINUX32, each with or without UNAME26, and the query.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The filters, to be installed one after the other; the kernel obeys the strictest.
pub struct Filters([BpfProgram; 2]);

impl Filters {
    /// Compiles them. No kernel is asked.
    pub fn new() -> Result<Self> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for call in REFUSED.iter().chain(REFUSED_HERE) {
            rules.insert(*call, Vec::new());
        }
        let any = |flag: u64| {
            let op = SeccompCmpOp::MaskedEq(flag);
            SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Qword, op, flag)?])
        };
        let flags = (0..64).map(|bit| 1 << bit).filter(|flag| NAMESPACES & flag != 0);
        rules.insert(libc::SYS_clone, flags.map(any).collect::<Result<_, _>>()?);
        let other: Result<Vec<_>, _> = PERSONALITIES
            .iter()
            .map(|&allowed| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, allowed))
            .collect();
        rules.insert(libc::SYS_personality, vec![SeccompRule::new(other?)?]);
        // Sockets to the hypervisor know no network namespace.
        let vsock =
            SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AF_VSOCK as u64)?;
        rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![vsock])?]);
        let arch = std::env::consts::ARCH.try_into().context("no system call filter for this machine")?;
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let refused = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?;
        Ok(Self([unknown_calls(), refused.try_into()?]))
    }

    /// Installs them for this process and all that come from it. Sets no_new_privs, without which only a process with
    /// CAP_SYS_ADMIN might.
    pub fn install(&self) -> Result<()> {
        for program in &self.0 {
            seccompiler::apply_filter(program).context("cannot install the system call filter")?;
        }
        Ok(())
    }
}

/// ENOSYS for clone3, whose flags no filter can read and which the C library does without when told so, and for what is
/// newer than this list. The numbers of the instructions are in include/uapi/linux/bpf_common.h.
fn unknown_calls() -> BpfProgram {
    let op = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let (load, jump_equal, jump_above, answer) = (0x20, 0x15, 0x25, 0x06);
    let enosys = 0x0005_0000 | libc::ENOSYS as u32;
    vec![
        op(load, 0, 0, 0), // seccomp_data.nr
        op(jump_equal, 2, 0, libc::SYS_clone3 as u32),
        op(jump_above, 1, 0, NEWEST),
        op(answer, 0, 0, 0x7fff_0000), // SECCOMP_RET_ALLOW
        op(answer, 0, 0, enosys),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles_and_refuses_on_a_thread_of_its_own() {
        let filters = Filters::new().unwrap();
        // A filter stays with the thread that installed it, and ends with it.
        std::thread::spawn(move || {
            filters.install().unwrap();
            let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error().unwrap();
            assert_eq!(errno(nix::unistd::sethostname("x").map_err(Into::into)), libc::EPERM);
            let flags = nix::sched::CloneFlags::CLONE_NEWUSER;
            assert_eq!(errno(nix::sched::unshare(flags).map_err(Into::into)), libc::EPERM);
            assert_eq!(errno(crate::engine::sys::open_tree("/".as_ref(), false).map(drop)), libc::EPERM);
            std::fs::read("/proc/self/status").unwrap();
        })
        .join()
        .unwrap();
    }
}
