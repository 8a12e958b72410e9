//! Kernel settings under /proc/sys. Those of `net` belong to the network namespace of the calling thread, so for a
//! container's: `netns.run(|| sysctl::set(..))`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::error::{Error, Result};
use crate::route::Family;

/// The key of a setting of one interface: `net/ipv4/conf/IFNAME/KEY`. Slashes, because an interface's name may hold dots.
pub fn conf(family: Family, ifname: &str, key: &str) -> String {
    format!("{}/{key}", conf_dir(family, ifname))
}

fn conf_dir(family: Family, ifname: &str) -> String {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("net/{family}/conf/{ifname}")
}

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

/// As [`write_if_there`], for several settings of an interface, each with its value: the path is looked up once, which takes
/// longer the more network namespaces have used theirs.
///
/// # Errors
/// As [`write_if_there`]; those before the one that is refused have their value.
pub fn write_conf(family: Family, ifname: &str, values: &[(&str, &str)]) -> Result<()> {
    let dir_key = conf_dir(family, ifname);
    let flags = OFlag::O_CLOEXEC | OFlag::O_DIRECTORY | OFlag::O_PATH;
    let dir = match open(&path(&dir_key)?, flags, Mode::empty()) {
        Err(nix::Error::ENOENT) => return Ok(()),
        opened => opened.map_err(|errno| failed("look up", &dir_key, errno.into()))?,
    };
    for (key, value) in values {
        let write = || {
            let file = openat(&dir, *key, OFlag::O_CLOEXEC | OFlag::O_WRONLY, Mode::empty())?;
            File::from(file).write_all(value.as_bytes())
        };
        match write() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            written => written
                .map_err(|error| failed(&format!("write {value:?} to"), &conf(family, ifname, key), error))?,
        }
    }
    Ok(())
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
