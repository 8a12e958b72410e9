//! The TCP server for metrics: whoever reaches its port, it costs the agent's API nothing.
//!
//! It has a thread of its own and a fixed number of connections. A connection carries one request, whose head must come at
//! once. When all connections are in use, a new one takes the place of the oldest, so idle ones keep no scraper out.

use anyhow::{Context, Result};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use net::firewall::mark_service;
use socket2::{Domain, Socket, Type};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// Connections at a time.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a request's head may take, from the connection's begin.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may last, with the answer.
const CONNECTION: Duration = Duration::from_secs(30);
/// The pause after a connection that cannot be accepted, as when no file descriptor is left.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Listens on a TCP address; containers of internal networks do not reach it.
///
/// # Errors
/// It is in use, or none of this host's.
pub fn listen(address: SocketAddr) -> Result<std::net::TcpListener> {
    let listen = || -> io::Result<_> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        mark_service(&socket);
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    listen().with_context(|| format!("--metrics-listen {address}"))
}

/// Serves on a thread of its own until `end`. What is returned is ready once it has ended.
///
/// # Errors
/// The thread cannot be started.
pub fn serve(
    listener: std::net::TcpListener,
    app: Router,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<oneshot::Receiver<()>> {
    let (ended, is_ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the runtime of the metrics")?;
    let serve = move || {
        if let Err(error) = runtime.block_on(accept(listener, app, end)) {
            tracing::error!("--metrics-listen: {error:#}");
        }
        let _ = ended.send(());
    };
    std::thread::Builder::new().name("metrics".to_owned()).spawn(serve).context("start a thread")?;
    Ok(is_ended)
}

async fn accept(listener: std::net::TcpListener, app: Router, end: impl Future<Output = ()>) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    tokio::pin!(end);
    loop {
        let accepted = tokio::select! {
            () = &mut end => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            sleep(PAUSE).await;
            continue;
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= MAX_CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let connection = tokio::spawn(timeout(CONNECTION, answer(stream, app.clone())));
        connections.push_back(connection.abort_handle());
    }
}

/// Answers one request. Its sender learns of a failure by the connection's end.
async fn answer(stream: TcpStream, app: Router) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(false);
    let _ = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app)).await;
}
