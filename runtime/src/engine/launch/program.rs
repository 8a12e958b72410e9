//! The last steps of a process on its way to the user's program, the same for a container's first process and for `exec`:
//! user, capabilities, filter, terminal, working directory, and the search for the program.

use std::ffi::CString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{
    AccessFlags, Gid, Uid, access, chown, dup2_stderr, dup2_stdin, dup2_stdout, execve, fchown,
};

use super::place::{self, Links, Make};
use super::report::Reporter;
use super::seccomp::Filters;
use super::{caps, user};
use crate::engine::{Failure, sys};

/// Docker's PATH for containers that set none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to run.
pub struct Program<'a> {
    /// It and its arguments.
    pub command: &'a [String],
    /// Its environment as asked for, the later before the earlier.
    pub env: Vec<String>,
    /// Its working directory; empty: `/`.
    pub workdir: &'a str,
    /// `user[:group]`.
    pub user: Option<&'a str>,
    /// For $HOSTNAME.
    pub hostname: &'a str,
    /// Where its input and output go.
    pub stdio: Stdio,
    /// The host's null device (see [`open_null`](super::open_null)): that of the container may be anything.
    pub null: OwnedFd,
    /// What it may not do.
    pub filters: &'a Filters,
    /// Whether it ends with the process that made it.
    pub dies_with_parent: bool,
}

/// A process's standard input and output.
pub enum Stdio {
    /// Pipes; without one for input that is /dev/null.
    Pipes(Option<OwnedFd>, OwnedFd, OwnedFd),
    /// A new terminal of the container, whose master is handed over, with this size (rows, columns) if it is known.
    Terminal(Option<(u16, u16)>),
    /// /dev/null.
    Nothing,
}

impl Program<'_> {
    /// Becomes the program. Called in the container's namespaces, with its root. Returns only the error.
    pub fn run(self, report: &Reporter) -> anyhow::Error {
        match self.prepare_and_exec(report) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn prepare_and_exec(self, report: &Reporter) -> Result<std::convert::Infallible> {
        let read = |path| user::read(Path::new(path)).map_err(|message| Failure { code: 126, message });
        let user = user::resolve(self.user, &read("/etc/passwd")?, &read("/etc/group")?)
            .map_err(|message| Failure { code: 126, message })?;
        let is_terminal = matches!(self.stdio, Stdio::Terminal(_));
        self.stdio.take(&self.null, &user, report)?;
        drop(self.null);
        // Nothing of the host stays open: not for the program, and not for a working directory of /proc/self/fd/N.
        sys::close_all_but(report.as_fd()).context("cannot close the host's files")?;
        enter(self.workdir, &user)?;
        let env = environment(&self.env, &user.home, self.hostname, is_terminal);
        caps::become_user(&user)?;
        prctl::set_no_new_privs().context("cannot set no_new_privs")?;
        if self.dies_with_parent {
            // A change of user cleared it.
            prctl::set_pdeathsig(Signal::SIGKILL).context("cannot tie the process to its supervisor")?;
            if report.is_orphaned() {
                sys::exit_now(1);
            }
        }
        self.filters.install()?;
        Err(exec(self.command, &env))
    }
}

impl Stdio {
    fn take(self, null: &OwnedFd, user: &user::User, report: &Reporter) -> Result<()> {
        let owner = Some(Uid::from_raw(user.uid));
        let null = || null.try_clone().context("cannot copy /dev/null");
        let (input, output, errors) = match self {
            Self::Terminal(size) => {
                let slave = terminal(user, size, report)?;
                (slave.try_clone()?, slave.try_clone()?, slave)
            }
            Self::Nothing => (null()?, null()?, null()?),
            Self::Pipes(input, output, errors) => {
                // So that it can open its own /dev/stdout.
                for pipe in [&output, &errors].into_iter().chain(&input) {
                    fchown(pipe, owner, None).context("cannot give the pipes to the user")?;
                }
                (input.map_or_else(null, Ok)?, output, errors)
            }
        };
        dup2_stdin(&input).context("standard input")?;
        dup2_stdout(&output).context("standard output")?;
        dup2_stderr(&errors).context("standard error")?;
        Ok(())
    }
}

/// A new terminal of the container's own devpts, made the controlling one, its master handed over.
fn terminal(user: &user::User, size: Option<(u16, u16)>, report: &Reporter) -> Result<OwnedFd> {
    let master = place::open_file(Path::new("/dev/ptmx"), OFlag::O_RDWR | OFlag::O_NOCTTY)
        .context("cannot open /dev/ptmx")?;
    sys::unlock_terminal(master.as_fd()).context("cannot unlock the terminal")?;
    if let Some((rows, columns)) = size {
        sys::set_window_size(master.as_fd(), rows, columns).context("cannot set the terminal's size")?;
    }
    let slave = sys::terminal_peer(master.as_fd()).context("cannot open the terminal's other end")?;
    // Group 5 is tty, as devpts is mounted.
    fchown(&slave, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(5)))
        .context("cannot own the terminal")?;
    let root = place::root(Path::new("/")).context("cannot open the root")?;
    let console = |make| place::open_in(root.as_fd(), Path::new("/dev/console"), Links::Refuse, make);
    if console(Make::Nothing).is_err() {
        let console = console(Make::File).context("cannot make /dev/console")?;
        let tree = sys::clone_tree(slave.as_fd(), false).context("cannot bind /dev/console")?;
        sys::move_mount(tree.as_fd(), console.as_fd()).context("cannot bind /dev/console")?;
    }
    report.terminal(&master);
    sys::set_controlling_terminal(slave.as_fd()).context("cannot take the terminal")?;
    Ok(slave)
}

/// Enters the working directory, which is made when it is missing, as Docker makes it.
fn enter(workdir: &str, user: &user::User) -> Result<()> {
    let workdir = Path::new(if workdir.is_empty() { "/" } else { workdir });
    if !workdir.exists() && fs::create_dir_all(workdir).is_ok() {
        let _ = chown(workdir, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)));
    }
    let failure = |why: String| Failure {
        code: 126,
        message: format!("unable to start container process: chdir to cwd ({:?}): {why}", workdir.display()),
    };
    std::env::set_current_dir(workdir).map_err(|e| failure(describe(&e)))?;
    // A directory outside of the root has no path here ("(unreachable)…").
    match nix::unistd::getcwd() {
        Ok(here) if here.is_absolute() => Ok(()),
        _ => Err(failure("it is outside of the container".into()).into()),
    }
}

/// The environment: defaults, then what was asked for; a name is there once, with its last value.
pub fn environment(asked: &[String], home: &str, hostname: &str, terminal: bool) -> Vec<String> {
    let mut all = vec![format!("PATH={PATH}"), format!("HOSTNAME={hostname}")];
    if terminal {
        all.push("TERM=xterm".into());
    }
    let name = |var: &str| var.split('=').next().unwrap_or_default().to_owned();
    for var in asked {
        all.retain(|v| name(v) != name(var));
        // Without a value it is taken away, as Docker does.
        if var.contains('=') {
            all.push(var.clone());
        }
    }
    if !all.iter().any(|v| v.starts_with("HOME=")) {
        all.push(format!("HOME={home}"));
    }
    all
}

fn exec(command: &[String], env: &[String]) -> anyhow::Error {
    let Some(name) = command.first() else { return failure(127, "no command").into() };
    let path = env.iter().find_map(|v| v.strip_prefix("PATH=")).unwrap_or_default();
    let found = match find(name, path) {
        Ok(found) => found,
        Err(failure) => return failure.into(),
    };
    let strings =
        |all: &[String]| all.iter().map(|s| CString::new(s.as_str())).collect::<Result<Vec<_>, _>>();
    let file = CString::new(found.to_string_lossy().as_bytes());
    let (file, args, vars) = match (file, strings(command), strings(env)) {
        (Ok(file), Ok(args), Ok(vars)) => (file, args, vars),
        _ => return failure(126, "a NUL byte in the command or its environment").into(),
    };
    sys::reset_signals();
    let Err(errno) = execve(&file, &args, &vars);
    let code = if matches!(errno, Errno::ENOENT | Errno::ENOTDIR) { 127 } else { 126 };
    failure(code, &format!("exec {}: {}", found.display(), describe(&errno.into()))).into()
}

/// The program's file, found as Docker finds it, or Docker's words for why not.
fn find(name: &str, path: &str) -> Result<PathBuf, Failure> {
    if name.contains('/') {
        return match check(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Err(failure(127, &format!("exec: {name:?}: stat {name}: {}", describe(&e))))
            }
            Err(e) => Err(failure(126, &format!("exec: {name:?}: {}", describe(&e)))),
        };
    }
    let mut denied = false;
    for dir in path.split(':').filter(|_| !name.is_empty()) {
        let file = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match check(&file) {
            Ok(()) => return Ok(file),
            Err(e) => denied |= e.kind() == ErrorKind::PermissionDenied,
        }
    }
    match denied {
        true => Err(failure(126, &format!("exec: {name:?}: permission denied"))),
        false => Err(failure(127, &format!("exec: {name:?}: executable file not found in $PATH"))),
    }
}

fn check(file: &Path) -> io::Result<()> {
    let meta = fs::metadata(file)?;
    if meta.is_dir() {
        return Err(io::Error::from(ErrorKind::IsADirectory));
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::from(ErrorKind::PermissionDenied));
    }
    Ok(access(file, AccessFlags::X_OK)?)
}

fn failure(code: u8, what: &str) -> Failure {
    Failure { code, message: format!("unable to start container process: {what}") }
}

/// The error in the C library's words, in lower case, as Docker shows it.
fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => Errno::from_raw(errno).desc().to_lowercase(),
        None => error.kind().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_goes_before_the_defaults() {
        let env = environment(
            &["A=1".into(), "PATH=/x".into(), "A=2".into(), "HOSTNAME".into()],
            "/root",
            "h",
            true,
        );
        assert_eq!(env, ["TERM=xterm", "PATH=/x", "A=2", "HOME=/root"]);
    }

    #[test]
    fn a_program_that_cannot_be_found_is_127_and_one_that_cannot_be_executed_126() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("data"), "").unwrap();
        let path = format!("/nowhere:{}", dir.path().display());
        let missing = find("nosuch", &path).unwrap_err();
        assert_eq!(missing.code, 127);
        assert!(missing.message.ends_with(r#"exec: "nosuch": executable file not found in $PATH"#));
        assert_eq!(find("data", &path).unwrap_err().code, 126);
        assert_eq!(
            find("/etc", "").unwrap_err().message,
            r#"unable to start container process: exec: "/etc": is a directory"#
        );
        assert_eq!(find("/nowhere/x", "").unwrap_err().code, 127);
        assert_eq!(find("sh", "/nowhere:/bin").unwrap(), Path::new("/bin/sh"));
    }
}
