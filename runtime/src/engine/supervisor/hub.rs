//! Who is attached to the container: output goes to all of them, and what they send goes to the container.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::{JoinHandle, spawn_local};

use crate::engine::sys;
use crate::engine::wire::Frame;

/// How many pieces of output may wait for a client. Beyond, the container waits for it, as with Docker.
const BEHIND: usize = 64;
/// How long a client that does not read is waited for at the end.
const PATIENCE: Duration = Duration::from_secs(2);

/// The attached clients and the ways to the container.
pub struct Hub {
    clients: RefCell<Vec<Client>>,
    writers: RefCell<Vec<JoinHandle<()>>>,
    input: RefCell<Option<Sender<Vec<u8>>>>,
    exit: RefCell<Option<i32>>,
    terminal: Option<OwnedFd>,
    pidfd: OwnedFd,
}

struct Client {
    output: bool,
    frames: Sender<Rc<Vec<u8>>>,
}

impl Hub {
    /// Nobody is attached yet. `input` leads to the container's standard input, when it has one.
    pub fn new(pidfd: OwnedFd, terminal: Option<OwnedFd>, input: Option<Sender<Vec<u8>>>) -> Rc<Self> {
        Rc::new(Self {
            clients: RefCell::default(),
            writers: RefCell::default(),
            input: RefCell::new(input),
            exit: RefCell::default(),
            terminal,
            pidfd,
        })
    }

    /// Sends a signal to the container's first process.
    pub fn signal(&self, signal: i32) {
        // A process that has just ended needs none.
        let _ = sys::pidfd_send_signal(self.pidfd.as_fd(), signal);
    }

    /// Output for all clients that want it. Waits for those that are behind.
    pub async fn output(&self, frame: &Frame) {
        let bytes = Rc::new(frame.encode());
        let all: Vec<_> =
            self.clients.borrow().iter().filter(|c| c.output).map(|c| c.frames.clone()).collect();
        for frames in all {
            let _ = frames.send(Rc::clone(&bytes)).await;
        }
        self.clients.borrow_mut().retain(|client| !client.frames.is_closed());
    }

    /// Tells all clients, and those to come, that the process has ended.
    pub async fn exited(&self, code: i32) {
        *self.exit.borrow_mut() = Some(code);
        let bytes = Rc::new(Frame::Exit(code).encode());
        // Letting go of the senders ends the writers.
        let clients = std::mem::take(&mut *self.clients.borrow_mut());
        for client in clients {
            let _ = tokio::time::timeout(PATIENCE, client.frames.send(Rc::clone(&bytes))).await;
        }
    }

    /// Waits until all clients have what was sent to them.
    pub async fn flushed(&self) {
        let writers = std::mem::take(&mut *self.writers.borrow_mut());
        for writer in writers {
            let _ = tokio::time::timeout(PATIENCE, writer).await;
        }
    }

    /// Takes a client whose first frame, [`Frame::Hello`], has been read already (with output) or not.
    pub fn attach(self: &Rc<Self>, stream: UnixStream, greeted: bool) {
        let hub = Rc::clone(self);
        let (mut read, mut write) = stream.into_split();
        if greeted {
            // At once: not a byte of output may pass by.
            let frames = self.join(true);
            self.writers.borrow_mut().push(spawn_local(async move { relay(frames, &mut write).await }));
            spawn_local(async move { hub.listen(&mut read).await });
            return;
        }
        spawn_local(async move {
            if let Some(Frame::Hello { output, rows, columns }) = read_frame(&mut read).await {
                hub.resize(rows, columns);
                let frames = hub.join(output);
                let writer = spawn_local(async move { relay(frames, &mut write).await });
                hub.writers.borrow_mut().push(writer);
                hub.listen(&mut read).await;
            }
        });
    }

    /// A new client's frames. One that comes after the end is told so.
    fn join(&self, output: bool) -> Receiver<Rc<Vec<u8>>> {
        let (frames, receiver) = channel(BEHIND);
        match *self.exit.borrow() {
            Some(code) => {
                let _ = frames.try_send(Rc::new(Frame::Exit(code).encode()));
            }
            None => self.clients.borrow_mut().push(Client { output, frames }),
        }
        receiver
    }

    /// Does what a client says until it leaves.
    async fn listen(&self, read: &mut (impl AsyncReadExt + Unpin)) {
        while let Some(frame) = read_frame(read).await {
            match frame {
                Frame::Input(bytes) => {
                    let input = self.input.borrow().clone();
                    if let Some(input) = input {
                        let _ = input.send(bytes).await;
                    }
                }
                // A terminal has no end of input but the key for it.
                Frame::InputEnd if self.terminal.is_none() => drop(self.input.take()),
                Frame::Resize { rows, columns } => self.resize(rows, columns),
                Frame::Signal(signal) => self.signal(signal),
                _ => {}
            }
        }
    }

    fn resize(&self, rows: u16, columns: u16) {
        if let (Some(terminal), 1.., 1..) = (&self.terminal, rows, columns) {
            let _ = sys::set_window_size(terminal.as_fd(), rows, columns);
        }
    }
}

async fn relay(mut frames: Receiver<Rc<Vec<u8>>>, write: &mut (impl AsyncWriteExt + Unpin)) {
    while let Some(frame) = frames.recv().await {
        if write.write_all(&frame).await.is_err() {
            return;
        }
    }
}

async fn read_frame(read: &mut (impl AsyncReadExt + Unpin)) -> Option<Frame> {
    let mut header = [0; 5];
    read.read_exact(&mut header).await.ok()?;
    let mut payload = vec![0; Frame::payload_length(header).ok()?];
    read.read_exact(&mut payload).await.ok()?;
    Frame::decode(header, payload).ok()
}
