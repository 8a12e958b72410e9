//! Kernel settings under /proc/sys. Those of `net` belong to the network namespace of the calling thread, so for a
//! container's: `netns.run(|| sysctl::set(..))`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::error::{Error, Result};
use crate::route::Family;

/// The key of a setting of one interface: `net/ipv4/conf/IFNAME/KEY`. Slashes, because an interface's name may hold dots.
pub fn conf(family: Family, ifname: &str, key: &str) -> String {
    format!("{}/{ifname}/{key}", conf_dir(family))
}

fn conf_dir(family: Family) -> &'static str {
    match family {
        Family::V4 => "net/ipv4/conf",
        Family::V6 => "net/ipv6/conf",
    }
}

/// To look up paths in a directory.
const O_DIR: OFlag = OFlag::O_CLOEXEC.union(OFlag::O_DIRECTORY).union(OFlag::O_PATH);

/// The file of a setting, named with slashes (`net/ipv4/conf/eth0.5/arp_notify`) or dots (`net.ipv4.ip_forward`). As with
/// sysctl(8) the first separator decides, and the other character stands for itself: `net.ipv4.conf.eth0/5.arp_notify`.
///
/// # Errors
/// [`Error::Invalid`] when the name would lead out of /proc/sys.
pub fn path(key: &str) -> Result<PathBuf> {
    let dotted = key.find(['.', '/']).is_some_and(|at| key.as_bytes()[at] == b'.');
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    let relative: String = if dotted { key.chars().map(swap).collect() } else { key.to_owned() };
    let odd = |part: &str| part.is_empty() || part == "." || part == "..";
    if relative.split('/').any(odd) || relative.contains('\0') {
        let why = "is no name of a setting, as in net.ipv4.ip_forward".into();
        return Err(Error::Invalid { what: "sysctl", value: key.to_owned(), why });
    }
    Ok(PathBuf::from("/proc/sys").join(relative))
}

/// The value of a setting, without the end of line.
pub fn get(key: &str) -> Result<String> {
    let text = fs::read_to_string(path(key)?).map_err(|error| failed("read", key, error))?;
    Ok(text.trim_end().to_owned())
}

/// Gives a setting a value; true when it had another. One that has the value already is not written, so that a read-only
/// /proc/sys that is set right is no hindrance.
pub fn set(key: &str, value: &str) -> Result<bool> {
    if get(key)? == value {
        return Ok(false);
    }
    let write = || {
        fs::OpenOptions::new().write(true).open(path(key).unwrap_or_default())?.write_all(value.as_bytes())
    };
    write().map_err(|error| failed(&format!("write {value:?} to"), key, error))?;
    Ok(true)
}

/// Gives a setting a value without looking at the one that it has: for those of a link that was made just now.
///
/// # Errors
/// As [`set`]; that the kernel has no such setting is none.
pub fn write_if_there(key: &str, value: &str) -> Result<()> {
    let write = |path| fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes());
    match write(path(key)?).map_err(|error| failed(&format!("write {value:?} to"), key, error)) {
        Err(error) if error.is_missing() => Ok(()),
        outcome => outcome,
    }
}

/// The settings of the interfaces of one network namespace, in the family `net.ipv4.conf` or `net.ipv6.conf`, whatever namespace
/// the thread is in later. Looking anything up below /proc/sys/net takes longer the more namespaces have done so (they
/// share one directory cache), which is paid once here.
#[derive(Debug)]
pub struct InterfaceConf {
    dir: OwnedFd,
    family: Family,
}

impl InterfaceConf {
    /// Opens those of the thread's network namespace; `None` when the kernel has none of this family.
    ///
    /// # Errors
    /// They cannot be looked up.
    pub fn open(family: Family) -> Result<Option<InterfaceConf>> {
        let key = conf_dir(family);
        match open(&path(key)?, O_DIR, Mode::empty()) {
            Err(nix::Error::ENOENT) => Ok(None),
            opened => {
                let dir = opened.map_err(|errno| failed("look up", key, errno.into()))?;
                Ok(Some(InterfaceConf { dir, family }))
            }
        }
    }

    /// Gives settings of an interface values, without looking at those that they have; what the kernel does not have is skipped.
    ///
    /// # Errors
    /// A setting is refused; those before it have their value.
    pub fn write(&self, ifname: &str, values: &[(&str, &str)]) -> Result<()> {
        let key = conf(self.family, ifname, "");
        let dir = match openat(&self.dir, ifname, O_DIR, Mode::empty()) {
            Err(nix::Error::ENOENT) => return Ok(()),
            opened => opened.map_err(|errno| failed("look up", &key, errno.into()))?,
        };
        for (name, value) in values {
            let write = || {
                let file = openat(&dir, *name, OFlag::O_CLOEXEC | OFlag::O_WRONLY, Mode::empty())?;
                File::from(file).write_all(value.as_bytes())
            };
            match write() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                written => written.map_err(|error| {
                    failed(&format!("write {value:?} to"), &format!("{key}{name}"), error)
                })?,
            }
        }
        Ok(())
    }
}

/// As [`set`], and false when the kernel has no such setting, as without IPv6.
pub fn set_if_there(key: &str, value: &str) -> Result<bool> {
    match set(key, value) {
        Err(error) if error.is_missing() => Ok(false),
        result => result,
    }
}

/// Keeps an interface from taking routes and addresses from router advertisements; true when it took them before. A container
/// at the other end could make itself the host's default router otherwise (CVE-2020-10749).
///
/// # Errors
/// As [`set`]; a kernel without IPv6 is none.
pub fn ignore_routers(ifname: &str) -> Result<bool> {
    let off = |key| set_if_there(&conf(Family::V6, ifname, key), "0");
    Ok(off("accept_ra")? | off("autoconf")?)
}

fn failed(verb: &str, key: &str, error: io::Error) -> Error {
    Error::io(format!("{verb} the setting {key}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testns;

    #[test]
    fn names_with_dots_and_slashes() {
        let text = |key: &str| path(key).unwrap().display().to_string();
        assert_eq!(text("net.ipv4.ip_forward"), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(text("net.ipv4.conf.eth0/5.rp_filter"), "/proc/sys/net/ipv4/conf/eth0.5/rp_filter");
        assert_eq!(text(&conf(Family::V6, "eth0.5", "mtu")), "/proc/sys/net/ipv6/conf/eth0.5/mtu");
        for wrong in ["", "net/../kernel", "/etc/passwd", "net..x", "net.ipv4.", "../x"] {
            assert!(path(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn settings_are_written_from_another_namespace() {
        testns::in_fresh(|| {
            let own = InterfaceConf::open(Family::V6).unwrap().unwrap();
            let read = |key| get(&conf(Family::V6, "lo", key)).unwrap();
            let before = read("accept_ra");
            let other = testns::another();
            let others = other.run(|| InterfaceConf::open(Family::V6)).unwrap().unwrap().unwrap();
            others.write("lo", &[("accept_ra", "2"), ("no_such_thing", "1"), ("autoconf", "0")]).unwrap();
            assert_eq!(read("accept_ra"), before);
            let there = other.run(|| (read("accept_ra"), read("autoconf"))).unwrap();
            assert_eq!(there, ("2".into(), "0".into()));
            own.write("lo", &[("accept_ra", "0")]).unwrap();
            assert_eq!(
                (read("accept_ra"), other.run(|| read("accept_ra")).unwrap()),
                ("0".into(), "2".into())
            );
            own.write("nothing", &[("accept_ra", "0")]).unwrap();
            let wrong = own.write("lo", &[("accept_ra", "x")]).unwrap_err().to_string();
            assert!(wrong.contains("net/ipv6/conf/lo/accept_ra"), "{wrong}");
        });
    }

    #[test]
    fn a_setting_is_written_once_and_in_this_namespace_only() {
        testns::in_fresh(|| {
            let key = conf(Family::V4, "lo", "rp_filter");
            assert!(set(&key, "2").unwrap());
            assert!(!set(&key, "2").unwrap());
            assert_eq!(get("net.ipv4.conf.lo.rp_filter").unwrap(), "2");
            let other = testns::another().run(|| get(&key)).unwrap().unwrap();
            assert_ne!(other, "2");
            assert!(get("net.ipv4.no_such_thing").unwrap_err().is_missing());
            assert!(!set_if_there("net.ipv4.no_such_thing", "1").unwrap());
            assert!(set(&key, "nonsense").unwrap_err().to_string().contains("conf/lo/rp_filter"));
        });
    }
}
