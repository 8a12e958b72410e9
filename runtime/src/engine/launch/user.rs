//! Whom `--user` means, by the container's own /etc/passwd and /etc/group.

use std::io::{self, ErrorKind};
use std::path::Path;

use super::place;
use base::file;
use nix::fcntl::OFlag;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

/// A user as the kernel and the environment know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Supplementary groups' numbers, the primary group first.
    pub groups: Vec<u32>,
    /// For $HOME.
    pub home: String,
}

/// Reads the container's own list of users or groups; one that is missing is empty.
///
/// # Errors
/// It is no regular file of the container, or longer than [`file::LIMIT`].
pub fn read(path: &Path) -> Result<String, String> {
    match read_bytes(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(String::new()),
        Err(error) => Err(format!("cannot read the container's {}: {error}", path.display())),
    }
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let file = place::open_file(path, OFlag::O_RDONLY | file::WITHOUT_WAITING)?;
    let file = file::check_regular(file.into())?;
    // A read of /proc/kmsg would take messages from the host's log. This process still has the host's rights.
    if fstatfs(&file)?.filesystem_type() == PROC_SUPER_MAGIC {
        return Err(io::Error::new(ErrorKind::InvalidInput, "expected a file outside of /proc"));
    }
    file::read_all(file, file::LIMIT)
}

/// Finds `user[:group]`, each a name or a number; none is root. As Docker does, a number needs no entry, and a group that
/// is given replaces the supplementary ones.
pub fn resolve(wanted: Option<&str>, passwd: &str, group: &str) -> Result<User, String> {
    let wanted = wanted.filter(|w| !w.is_empty()).unwrap_or("0");
    let (name, group_name) = match wanted.split_once(':') {
        Some((name, group)) => {
            (if name.is_empty() { "0" } else { name }, (!group.is_empty()).then_some(group))
        }
        None => (wanted, None),
    };
    let number: Option<u32> = name.parse().ok();
    let entry = entries(passwd).find(|f| f.first() == Some(&name)).or_else(|| {
        entries(passwd).find(|f| number.is_some() && f.get(2).and_then(|uid| uid.parse().ok()) == number)
    });
    let field = |at: usize| entry.as_ref().and_then(|f| f.get(at)).copied();
    let uid = match (field(2).and_then(|uid| uid.parse().ok()), number) {
        (Some(uid), _) | (None, Some(uid)) => uid,
        (None, None) => {
            return Err(format!("unable to find user {name}: no matching entries in passwd file"));
        }
    };
    let home = field(5).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();
    let mut gid = field(3).and_then(|gid| gid.parse().ok()).unwrap_or(0);
    let mut groups = Vec::new();
    if let Some(wanted) = group_name {
        let listed = entries(group).find(|f| f.first() == Some(&wanted));
        let listed = listed.and_then(|f| f.get(2).and_then(|gid| gid.parse().ok()));
        gid = listed
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| format!("unable to find group {wanted}: no matching entries in group file"))?;
    } else if let Some(name) = field(0) {
        for entry in entries(group) {
            let member = entry.get(3).is_some_and(|members| members.split(',').any(|m| m == name));
            if let (true, Some(gid)) = (member, entry.get(2).and_then(|gid| gid.parse().ok())) {
                groups.push(gid);
            }
        }
    }
    // The primary group too, as Docker does (CVE-2022-36109): a program that changes its group keeps this one.
    groups.retain(|group| *group != gid);
    groups.insert(0, gid);
    Ok(User { uid, gid, groups, home })
}

fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(|l| l.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# no\n\nwww:x:33:34::/var/www:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\naudio:x:29:root,www\nbackup:x:70:www\n";

    #[test]
    fn without_a_user_it_is_root_with_its_groups() {
        let user = resolve(None, PASSWD, GROUP).unwrap();
        assert_eq!(user, User { uid: 0, gid: 0, groups: vec![0, 29], home: "/root".into() });
    }

    #[test]
    fn a_name_brings_its_group_groups_and_home() {
        let user = resolve(Some("www"), PASSWD, GROUP).unwrap();
        assert_eq!(user, User { uid: 33, gid: 34, groups: vec![34, 29, 70], home: "/var/www".into() });
        assert_eq!(resolve(Some("33"), PASSWD, GROUP).unwrap(), user);
    }

    #[test]
    fn a_number_needs_no_entry() {
        let user = resolve(Some("1000:70"), PASSWD, GROUP).unwrap();
        assert_eq!(user, User { uid: 1000, gid: 70, groups: vec![70], home: "/".into() });
        assert_eq!(resolve(Some("www:audio"), PASSWD, GROUP).unwrap().gid, 29);
        assert_eq!(resolve(None, "", "").unwrap().uid, 0);
    }

    #[test]
    fn an_unknown_name_is_an_error_that_names_it() {
        assert!(resolve(Some("nobody"), PASSWD, GROUP).unwrap_err().contains("user nobody"));
        assert!(resolve(Some("www:nogroup"), PASSWD, GROUP).unwrap_err().contains("group nogroup"));
    }
}
