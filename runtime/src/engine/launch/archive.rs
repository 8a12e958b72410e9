//! The unpacking of an archive, which may be anyone's, with little memory.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Read, Seek};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use tar::EntryType;

use super::place::{self, Links, Make};
use crate::engine::tree;

/// Bytes of an entry's header with its long names and extended attributes, which are read into memory: as in Go's archive/tar,
/// and so in Docker, 1 MiB.
const HEADER: u64 = 1 << 20;
/// Bytes of a name, as in the kernel (PATH_MAX).
const NAME: usize = 4096;

/// Unpacks an archive, gzipped or not, to `rootfs`, which is there when all of it is.
///
/// # Errors
/// It is no archive, an entry leads out of it, has more than 1 MiB of header or a name of more than 4096 bytes, or cannot be
/// written.
pub fn unpack(archive: &Path, rootfs: &Path) -> Result<()> {
    let partial = rootfs.with_extension("partial");
    let unpack = || -> Result<()> {
        let mut file = base::file::open_regular(archive)?;
        let mut magic = [0; 2];
        let size = file.read(&mut magic)?;
        file.rewind()?;
        let reader: Box<dyn Read> = match magic {
            [0x1f, 0x8b] if size == 2 => Box::new(flate2::read::GzDecoder::new(io::BufReader::new(file))),
            _ => Box::new(io::BufReader::with_capacity(1 << 18, file)),
        };
        tree::remove(&partial)?;
        fs::create_dir_all(&partial)?;
        entries(reader, &partial)?;
        fs::rename(&partial, rootfs)?;
        Ok(())
    };
    unpack().with_context(|| {
        format!("--rootfs {}: cannot unpack it (a tar archive, gzipped or not)", archive.display())
    })
}

/// As `tar::Archive::unpack`, which keeps all directories' headers in memory until the end, and reads names of any length.
fn entries(reader: impl Read, to: &Path) -> Result<()> {
    let left = Rc::new(Cell::new(HEADER));
    let mut archive = tar::Archive::new(Bounded { reader, left: Rc::clone(&left) });
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_overwrite(true);
    let to = fs::canonicalize(to)?;
    let mut directories: BTreeMap<PathBuf, u64> = BTreeMap::new();
    let mut entries = archive.entries()?;
    loop {
        left.set(HEADER);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry?;
        if entry.path_bytes().len().max(entry.link_name_bytes().map_or(0, |name| name.len())) > NAME {
            bail!("invalid name of an entry: expected at most {NAME} bytes");
        }
        left.set(u64::MAX);
        let is_unpacked = entry.unpack_in(&to)?;
        match entry.header().entry_type() {
            EntryType::Directory if is_unpacked => {
                // However often an archive has it.
                let names = |part: &Component<'_>| matches!(part, Component::Normal(_));
                let path: PathBuf = entry.path()?.components().filter(names).collect();
                if let Ok(mtime) = entry.header().mtime() {
                    directories.insert(path, mtime);
                }
            }
            // Holes have no end; what a file of them has in the archive is passed over with the next header.
            EntryType::GNUSparse if is_unpacked => continue,
            EntryType::GNUSparse => bail!("invalid name of an entry: it leads out of the archive"),
            _ => {}
        }
        io::copy(&mut entry, &mut io::sink())?;
    }
    // What was unpacked into a directory changed its time.
    let root = place::root(&to)?;
    for (path, mtime) in directories.iter().rev() {
        let Ok(directory) = place::open_in(root.as_fd(), path, Links::Refuse, Make::Nothing) else {
            continue;
        };
        let Some(time) = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(*mtime)) else { continue };
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let _ = fs::File::open(path).and_then(|directory| directory.set_modified(time));
    }
    Ok(())
}

/// A reader of so many bytes until it is given more.
struct Bounded<R> {
    reader: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            let why = format!("invalid header of an entry: expected at most {HEADER} bytes");
            return Err(io::Error::new(ErrorKind::InvalidData, why));
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let size = self.reader.read(&mut buffer[..most])?;
        if left != u64::MAX {
            self.left.set(left - size as u64);
        }
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of a file with a name of so many bytes in a header of this type before it.
    fn with_name(kind: EntryType, bytes: usize) -> Vec<u8> {
        let mut builder =
            tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best()));
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(bytes as u64);
        header.set_cksum();
        builder.append(&header, io::repeat(b'a').take(bytes as u64)).unwrap();
        header.set_entry_type(EntryType::Regular);
        header.set_size(2);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, "x", &b"hi"[..]).unwrap();
        builder.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn archive_with_long_header_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let kinds = [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader];
        for (case, kind) in kinds.into_iter().enumerate() {
            for bytes in [3000, 5000, 64 << 20] {
                fs::write(at("a.tgz"), with_name(kind, bytes)).unwrap();
                let unpacked = unpack(&at("a.tgz"), &at(&format!("{case}-{bytes}")));
                let error = unpacked.map_err(|error| format!("{error:#}")).err().unwrap_or_default();
                // A component of a name has 255 bytes at most, and these are none of extended attributes.
                let expected = match (bytes, kind) {
                    (3000, EntryType::GNULongName) => "long",
                    (3000, _) | (5000, EntryType::XHeader) => "",
                    (5000, _) => "4096 bytes",
                    _ => "1048576 bytes",
                };
                assert!(error.contains(expected), "{kind:?} {bytes}: {error}");
                assert_eq!(error.is_empty(), expected.is_empty(), "{kind:?} {bytes}: {error}");
            }
        }
    }

    #[test]
    fn archive_keeps_times_of_directories_and_files_longer_than_a_header() {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = tar::Builder::new(fs::File::create(dir.path().join("a.tar")).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o500);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(0);
        builder.append_data(&mut header, "d/", io::empty()).unwrap();
        header.set_entry_type(EntryType::Regular);
        for (name, size) in [("d/big", 5 << 20), ("d/small", 1)] {
            header.set_size(size);
            builder.append_data(&mut header, name, io::repeat(b'x').take(size)).unwrap();
        }
        // A directory with data, which is passed over.
        header.set_entry_type(EntryType::Directory);
        header.set_size(5 << 20);
        builder.append_data(&mut header, "e/", io::repeat(b'x').take(5 << 20)).unwrap();
        builder.into_inner().unwrap();
        let root = dir.path().join("root");
        unpack(&dir.path().join("a.tar"), &root).unwrap();
        assert_eq!(fs::metadata(root.join("d/big")).unwrap().len(), 5 << 20);
        let meta = fs::metadata(root.join("d")).unwrap();
        assert_eq!(meta.modified().unwrap(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
        assert!(root.join("e").is_dir());
    }

    #[test]
    fn an_archive_is_unpacked_gzipped_or_not_and_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        builder.append_data(&mut header, "bin/x", &b"hi"[..]).unwrap();
        let plain = builder.into_inner().unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gz, &plain).unwrap();
        for (name, bytes) in [("a.tar", plain.clone()), ("a.tgz", gz.finish().unwrap())] {
            fs::write(dir.path().join(name), bytes).unwrap();
            let to = dir.path().join(format!("root-{name}"));
            unpack(&dir.path().join(name), &to).unwrap();
            assert_eq!(fs::read(to.join("bin/x")).unwrap(), b"hi");
        }
        fs::write(dir.path().join("bad"), "x".repeat(2000)).unwrap();
        assert!(unpack(&dir.path().join("bad"), &dir.path().join("r")).is_err());
        assert!(!dir.path().join("r").exists());
    }
}
