//! The Unix socket, which is root's alone.

use crate::caller::Peer;
use crate::lock;
use anyhow::{Context, Result, bail};
use axum::Router;
use nix::sys::socket::{getsockopt, sockopt};
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// A Unix socket that is listened at. Its file goes with this.
#[derive(Debug)]
pub struct Listening {
    path: PathBuf,
    listener: Option<UnixListener>,
}

/// Listens at the agent's socket. A file that a dead agent left is replaced.
///
/// # Errors
/// Somebody answers there, or the directory cannot be made or written.
pub fn unix(path: &Path) -> Result<Listening> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    lock::private_dir(dir)?;
    if let Ok(other) = std::os::unix::net::UnixStream::connect(path) {
        let pid = getsockopt(&other, sockopt::PeerCredentials).map(|peer| peer.pid()).unwrap_or_default();
        bail!("an agent answers at {} already: process {pid}", path.display());
    }
    // Under another name first: nobody meets the socket before it is root's alone, and the old one is replaced at once.
    let draft = dir.join(format!(".ovl-agent.{}", std::process::id()));
    let _ = std::fs::remove_file(&draft);
    let listener = UnixListener::bind(&draft).with_context(|| format!("listen at {}", path.display()))?;
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&draft, path))
        .with_context(|| format!("make the socket {}", path.display()))?;
    Ok(Listening { path: path.to_owned(), listener: Some(listener) })
}

impl Listening {
    /// Serves until `end`, and then what has begun.
    pub async fn serve(mut self, app: Router, end: impl Future<Output = ()> + Send + 'static) {
        let Some(listener) = self.listener.take() else { return };
        let path = self.path.clone();
        let end = async move {
            end.await;
            // First the file: who comes now learns at once that there is no agent.
            let _ = std::fs::remove_file(path);
        };
        let app = app.into_make_service_with_connect_info::<Peer>();
        if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(end).await {
            tracing::error!("the API at {} ended: {error}", self.path.display());
        }
    }
}
