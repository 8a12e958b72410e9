//! Which system calls a container may make: those that Docker's default profile allows a container with the default
//! capabilities (moby/profiles, seccomp/default.json). All others get EPERM, and those newer than the profile ENOSYS, as if
//! the kernel did not know them. Programs of another word size than the host's are killed.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

/// The newest system call known to this list (removexattrat, Linux 6.13): numbers above it get ENOSYS. So do those of the
/// x32 ABI, which begin at 0x40000000 and would pass by a list of x86_64's.
const NEWEST: u32 = 466;

/// The namespaces' clone flags, which need CAP_SYS_ADMIN, and in a user namespace would be had without.
const NAMESPACES: u64 = 0x7E02_0080;

/// Allowed whatever the arguments. The numbers are of calls that the libc crate does not name; they are the same everywhere.
const ALLOWED: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_adjtimex,
    libc::SYS_bind,
    libc::SYS_brk,
    451, // cachestat
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_chdir,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fanotify_mark,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    452, // fchmodat2
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    456, // futex_requeue
    455, // futex_wait
    449, // futex_waitv
    454, // futex_wake
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getitimer,
    libc::SYS_getpeername,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_get_robust_list,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_getxattr,
    464, // getxattrat
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_io_cancel,
    libc::SYS_ioctl,
    libc::SYS_io_destroy,
    libc::SYS_io_getevents,
    libc::SYS_ioprio_get,
    libc::SYS_ioprio_set,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_kill,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_listen,
    458, // listmount
    libc::SYS_listxattr,
    465, // listxattrat
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lseek,
    libc::SYS_lsetxattr,
    libc::SYS_madvise,
    453, // map_shadow_stack
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    447, // memfd_secret
    libc::SYS_mincore,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mq_getsetattr,
    libc::SYS_mq_notify,
    libc::SYS_mq_open,
    libc::SYS_mq_timedreceive,
    libc::SYS_mq_timedsend,
    libc::SYS_mq_unlink,
    libc::SYS_mremap,
    462, // mseal
    libc::SYS_msgctl,
    libc::SYS_msgget,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_munmap,
    libc::SYS_name_to_handle_at,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pipe2,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_prlimit64,
    448, // process_mrelease
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_remap_file_pages,
    libc::SYS_removexattr,
    466, // removexattrat
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getparam,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_semctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_sendfile,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setitimer,
    libc::SYS_setpgid,
    libc::SYS_setpriority,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_set_robust_list,
    libc::SYS_setsid,
    libc::SYS_setsockopt,
    libc::SYS_set_tid_address,
    libc::SYS_setuid,
    libc::SYS_setxattr,
    463, // setxattrat
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_shmget,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_socketpair,
    libc::SYS_splice,
    libc::SYS_statfs,
    457, // statmount
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_sysinfo,
    libc::SYS_tee,
    libc::SYS_tgkill,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    libc::SYS_tkill,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_vmsplice,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_chroot,
];

/// The same, of those that only x86_64 has, or has under another number.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_ctl_old,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_wait_old,
    libc::SYS_eventfd,
    libc::SYS_fork,
    libc::SYS_futimesat,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_get_thread_area,
    libc::SYS_inotify_init,
    libc::SYS_lchown,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_mknod,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_setrlimit,
    libc::SYS_set_thread_area,
    libc::SYS_signalfd,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_sync_file_range,
    libc::SYS_time,
    libc::SYS_unlink,
    335, // uretprobe
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_vfork,
    333, // io_pgetevents
    libc::SYS_arch_prctl,
    libc::SYS_modify_ldt,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[
    38,  // renameat, and so on: of include/uapi/asm-generic/unistd.h, not all of which the libc crate names
    84,  // sync_file_range
    163, // getrlimit
    164, // setrlimit
    292, // io_pgetevents
];

/// The personalities that are allowed: PER_LINUX, PER_LINUX32, each with or without UNAME26, and the query.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The address families from 12 up that are allowed.
const FAMILIES: [u64; 25] =
    [13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 39, 41, 42, 43, 44, 45];

/// The filters, to be installed one after the other. The kernel obeys the strictest answer; of two error numbers it gives that
/// of the filter installed last, so ENOSYS comes before the list's EPERM (seccomp(2)).
pub struct Filters([BpfProgram; 2]);

impl Filters {
    /// Compiles them. No kernel is asked.
    pub fn new() -> Result<Self> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for call in ALLOWED.iter().chain(ALLOWED_HERE) {
            rules.insert(*call, Vec::new());
        }
        let word = SeccompCmpArgLen::Dword;
        let rule = |size, op, value| SeccompRule::new(vec![SeccompCondition::new(0, size, op, value)?]);
        let none = rule(SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(NAMESPACES), 0)?;
        rules.insert(libc::SYS_clone, vec![none]);
        let personalities = PERSONALITIES.iter().map(|&value| rule(word.clone(), SeccompCmpOp::Eq, value));
        rules.insert(libc::SYS_personality, personalities.collect::<Result<_, _>>()?);
        // AF_VSOCK knows no network namespace; AF_ALG and the like reach much of the kernel.
        let families = FAMILIES.iter().map(|&value| rule(word.clone(), SeccompCmpOp::Eq, value));
        let mut families: Vec<_> = families.collect::<Result<_, _>>()?;
        families.push(rule(word.clone(), SeccompCmpOp::Lt, 12)?);
        rules.insert(libc::SYS_socket, families);
        let arch = std::env::consts::ARCH.try_into().context("no system call filter for this machine")?;
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let refused = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?;
        Ok(Self([refused.try_into()?, unknown_calls()]))
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
            use nix::sys::socket::AddressFamily;
            let socket = |family| {
                let kind = nix::sys::socket::SockType::SeqPacket;
                nix::sys::socket::socket(family, kind, nix::sys::socket::SockFlag::empty(), None).map(drop)
            };
            assert_eq!(socket(AddressFamily::Alg), Err(nix::errno::Errno::EPERM));
            assert_eq!(socket(AddressFamily::Vsock), Err(nix::errno::Errno::EPERM));
            socket(AddressFamily::Unix).unwrap();
            std::fs::read("/proc/self/status").unwrap();
            // The C library tries clone3 first, and goes on with clone after ENOSYS alone.
            std::thread::spawn(|| ()).join().unwrap();
            std::process::Command::new("true").status().unwrap();
        })
        .join()
        .unwrap();
    }
}
