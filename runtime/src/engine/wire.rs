//! What goes over a container's attach.sock: frames of one byte kind, four bytes length (big-endian) and the payload.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The longest payload, in bytes.
pub const LIMIT: usize = 64 * 1024;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Client: what it wants; always its first frame. With output, and the window size (rows, columns; 0: none).
    Hello { output: bool, rows: u16, columns: u16 },
    /// Client: input for the container.
    Input(Vec<u8>),
    /// Client: there will be no more input.
    InputEnd,
    /// Client: the window has this size (rows, columns).
    Resize { rows: u16, columns: u16 },
    /// Client: a signal for the container's process.
    Signal(i32),
    /// Supervisor: output.
    Output(Vec<u8>),
    /// Supervisor: output to standard error.
    Errors(Vec<u8>),
    /// Supervisor: the process ended with this code; always the last frame.
    Exit(i32),
}

impl Frame {
    /// The frame as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let pair = |first: &[u8], a: u16, b: u16| [first, &a.to_be_bytes(), &b.to_be_bytes()].concat();
        let (kind, payload) = match self {
            Self::Hello { output, rows, columns } => (b'h', pair(&[u8::from(*output)], *rows, *columns)),
            Self::Input(bytes) => (b'i', bytes.clone()),
            Self::InputEnd => (b'e', Vec::new()),
            Self::Resize { rows, columns } => (b'w', pair(&[], *rows, *columns)),
            Self::Signal(signal) => (b's', signal.to_be_bytes().to_vec()),
            Self::Output(bytes) => (b'1', bytes.clone()),
            Self::Errors(bytes) => (b'2', bytes.clone()),
            Self::Exit(code) => (b'x', code.to_be_bytes().to_vec()),
        };
        let mut bytes = vec![kind];
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// The length of the payload that follows these five bytes.
    pub fn payload_length(header: [u8; 5]) -> io::Result<usize> {
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > LIMIT {
            return Err(io::Error::other("a frame on attach.sock is too long"));
        }
        Ok(length)
    }

    /// The frame of these bytes.
    pub fn decode(header: [u8; 5], payload: Vec<u8>) -> io::Result<Self> {
        let number = || Some(i32::from_be_bytes(payload.as_slice().try_into().ok()?));
        let pair = |at: usize| {
            let bytes: [u8; 4] = payload.get(at..)?.try_into().ok()?;
            Some((u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]])))
        };
        let frame = match header[0] {
            b'h' => pair(1).map(|(rows, columns)| Self::Hello { output: payload[0] != 0, rows, columns }),
            b'e' => Some(Self::InputEnd),
            b'w' => pair(0).map(|(rows, columns)| Self::Resize { rows, columns }),
            b's' => number().map(Self::Signal),
            b'x' => number().map(Self::Exit),
            b'i' => Some(Self::Input(payload)),
            b'1' => Some(Self::Output(payload)),
            b'2' => Some(Self::Errors(payload)),
            _ => None,
        };
        frame.ok_or_else(|| io::Error::other("a frame on attach.sock makes no sense"))
    }

    /// Writes it.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        to.write_all(&self.encode())
    }

    /// Reads one; none at the end.
    pub fn read(mut from: impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; 5];
        match from.read_exact(&mut header) {
            Err(e) if matches!(e.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                return Ok(None);
            }
            other => other?,
        }
        let mut payload = vec![0; Self::payload_length(header)?];
        from.read_exact(&mut payload)?;
        Self::decode(header, payload).map(Some)
    }
}

/// Listens on `dir`/attach.sock, which only root may use.
pub fn listen(dir: &Path) -> io::Result<UnixListener> {
    with_short_path(dir, UnixListener::bind)
}

/// Connects to `dir`/attach.sock.
pub fn connect(dir: &Path) -> io::Result<UnixStream> {
    with_short_path(dir, UnixStream::connect)
}

/// A socket's path has at most 107 bytes, and an id alone has 64: so it goes by way of an open directory.
fn with_short_path<T>(dir: &Path, f: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let open = File::open(dir)?;
    f(PathBuf::from(format!("/proc/self/fd/{}/attach.sock", open.as_raw_fd())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
        prop_oneof![
            any::<(bool, u16, u16)>().prop_map(|(output, rows, columns)| Frame::Hello {
                output,
                rows,
                columns
            }),
            any::<(u16, u16)>().prop_map(|(rows, columns)| Frame::Resize { rows, columns }),
            bytes().prop_map(Frame::Input),
            bytes().prop_map(Frame::Output),
            bytes().prop_map(Frame::Errors),
            any::<i32>().prop_map(Frame::Signal),
            any::<i32>().prop_map(Frame::Exit),
            Just(Frame::InputEnd),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(all in proptest::collection::vec(frames(), 0..8)) {
            let mut bytes = Vec::new();
            for frame in &all {
                frame.write(&mut bytes).unwrap();
            }
            let mut reader = bytes.as_slice();
            for frame in all {
                prop_assert_eq!(Frame::read(&mut reader).unwrap(), Some(frame));
            }
            prop_assert_eq!(Frame::read(&mut reader).unwrap(), None);
        }

        #[test]
        fn nonsense_is_an_error_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut reader = bytes.as_slice();
            while let Ok(Some(_)) = Frame::read(&mut reader) {}
        }
    }

    #[test]
    fn a_socket_works_at_a_path_longer_than_sockets_may_have() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(120));
        std::fs::create_dir(&long).unwrap();
        let _listener = listen(&long).unwrap();
        connect(&long).unwrap();
    }
}
