//! Files that a user or a container has made, read without trust in what they are.

use std::fs::File;
use std::io::{self, Error, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::makedev;

/// Bytes that are enough for every list, configuration and key: 8 MiB.
pub const LIMIT: u64 = 8 << 20;

/// Opens a regular file for reading, or the null device, which is as an empty one (`--config /dev/null`). Any other file is an
/// error at once: nothing waits for the writer of a FIFO.
///
/// # Errors
/// The file cannot be opened, or is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    check_regular(File::options().read(true).custom_flags(WITHOUT_WAITING.bits()).open(path)?)
}

/// Flags with which a file that may be anything is opened: nothing waits, and no terminal becomes the controlling one.
pub const WITHOUT_WAITING: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_NOCTTY);

/// Checks that an open file is as [`open_regular`] opens it.
///
/// # Errors
/// It is any other.
pub fn check_regular(file: File) -> io::Result<File> {
    let meta = file.metadata()?;
    // Character device 1:3 (Documentation/admin-guide/devices.txt).
    let is_null = meta.file_type().is_char_device() && meta.rdev() == makedev(1, 3);
    if !meta.is_file() && !is_null {
        return Err(Error::new(ErrorKind::InvalidInput, "expected a regular file"));
    }
    Ok(file)
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open_regular`], or the file is longer.
pub fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_all(open_regular(path)?, limit)
}

/// Reads the rest of an open file, at most `limit` bytes.
///
/// # Errors
/// The file cannot be read, or is longer.
pub fn read_all(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("expected at most {limit} bytes")));
    }
    Ok(bytes)
}

/// Reads a regular file of at most [`LIMIT`] bytes of UTF-8.
///
/// # Errors
/// As [`read_regular`], or the file is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read_regular(path, LIMIT)?)
        .map_err(|_| Error::new(ErrorKind::InvalidData, "expected UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "12345").unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("zero")).unwrap();
        assert_eq!(read_regular(&at("file"), 5).unwrap(), b"12345");
        assert_eq!(read_text(&at("file")).unwrap(), "12345");
        assert_eq!(read_text(Path::new("/dev/null")).unwrap(), "");
        assert!(read_regular(&at("file"), 4).is_err());
        for name in ["fifo", "socket", "zero", ".", "missing"] {
            assert!(read_text(&at(name)).is_err(), "{name}");
        }
    }
}
