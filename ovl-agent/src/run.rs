//! `ovl-agent run`: the agent's life, from the lock to the signal that ends it.

use crate::config::Config;
use crate::engine::{self, Engine, Settings};
use crate::lock::{self, Lock};
use crate::{api, logging, notify};
use anyhow::{Context, Result};
use net::firewall::nft::{self, Records, Restored};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ovl_store::{Kv, Target};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How long requests that have begun may take when the agent ends.
const FINISH: Duration = Duration::from_secs(5);
/// How long the store may take to hear that the agent ends.
const GOODBYE: Duration = Duration::from_secs(2);
/// How often release notes are looked for that could not be written where the node reads them.
const SAVE_NOTES: Duration = Duration::from_secs(10);
/// How often systemd is told how the agent is, if that has changed.
const TELL: Duration = Duration::from_millis(250);

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// This process may not change the network; another agent has this root or socket; files, sockets or the configured store cannot be used at all.
pub fn run(config: Config) -> Result<()> {
    // An agent that could do nothing would claim addresses all the same.
    ovl_kernel::permitted()?;
    logging::start(config.logging);
    raise_descriptors();
    // Two workers: one answers while the other writes to a local store. Their threads are in this network namespace.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .context("start the runtime")?;
    // Held until nothing of it runs any more.
    let mut lock = None;
    let result = runtime.block_on(serve(config, &mut lock));
    // What still waits for a store that is away is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// Lets this process have as many file descriptors as it may: a soft limit of 1024 is for programs that use `select`.
fn raise_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!("the limit of file descriptors stays at {soft}: {error}");
    }
}

/// Restores at once what another program removes of the rules of containers on bridges and with published ports, which the plugins
/// record in the run directory.
fn keep_rules(run: &Path) {
    let records = match Records::below(&run.join("rules")) {
        Ok(records) => records,
        Err(error) => return tracing::debug!("rules of the packet filter are not restored at once: {error}"),
    };
    let report = |restored: net::Result<Restored>| match restored {
        Ok(restored) => tracing::warn!(
            elements = restored.elements,
            rules = restored.rules,
            "another program removed rules of the packet filter; restored"
        ),
        Err(error) => tracing::warn!("cannot restore the packet filter: {error}"),
    };
    let keep = move || {
        if let Err(error) = nft::keep_forever(&records, &report) {
            tracing::debug!("rules of the packet filter are not restored at once: {error}");
        }
    };
    let thread = std::thread::Builder::new().name("rules".to_owned());
    drop(thread.spawn(keep));
}

/// Moves release notes that were left in memory to where the node reads them.
fn save_notes(run: &Path, agent_root: &Path) {
    if let Err(error) = ovl_api::notes::save(run, agent_root) {
        tracing::warn!("release notes in {} wait: {error}", run.display());
    }
}

async fn serve(config: Config, lock: &mut Option<Lock>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    let open = || async { Kv::open(&config.store).await.context("the store") };
    // Files of etcd's settings are read before anything is made. A local store is in the root, which one agent alone uses.
    let kv = match &config.store {
        Target::Etcd(_) => {
            let kv = open().await?;
            *lock = Some(lock::take(&config.agent_root)?);
            kv
        }
        Target::Local(_) => {
            *lock = Some(lock::take(&config.agent_root)?);
            open().await?
        }
    };
    let store = kv.describe();
    tracing::info!("ovl-agent {} for host {}, {store}", env!("CARGO_PKG_VERSION"), config.node_name);
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    keep_rules(&config.run);
    save_notes(&config.run, &config.agent_root);
    let keep_saving = (config.run.clone(), config.agent_root.clone());
    let saver = tokio::spawn(async move {
        loop {
            sleep(SAVE_NOTES).await;
            save_notes(&keep_saving.0, &keep_saving.1);
        }
    });
    let engine = Arc::new(Engine::new(config.node_name, config.agent_root, store));
    let (stop, stopped) = watch::channel(false);
    let ended = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let mut servers = tokio::task::JoinSet::new();
    let socket = api::unix(&ovl_api::names::socket(&config.run))?;
    servers.spawn(socket.serve(api::full(engine.clone()), ended(stopped.clone())));
    if let Some(address) = config.metrics_listen {
        let app = api::metrics_alone(engine.clone());
        let served = api::public::serve(api::public::listen(address)?, app, ended(stopped.clone()))?;
        servers.spawn(async move { served.await.unwrap_or_default() });
    }
    let closed = match &config.store {
        Target::Etcd(conf) if !config.allow_store_from_containers => conf.hosts(),
        Target::Etcd(_) | Target::Local(_) => Vec::new(),
    };
    let settings = Settings {
        interface: config.interface,
        advertise: config.advertise,
        port: config.port,
        take_over: config.take_over,
        forward_accept: config.forward_accept,
        closed,
    };
    let start = tokio::spawn(engine::start(engine.clone(), settings, kv, stopped));
    let teller = tokio::spawn(tell(engine.clone()));
    let mut thread = None;
    let mut start = Some(start);
    let result = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            started = async { match start.as_mut() { Some(start) => start.await, None => std::future::pending().await } } => {
                start = None;
                match started.context("the engine")? {
                    Ok(worker) => thread = worker,
                    Err(error) => break Err(error),
                }
            }
        }
    };
    teller.abort();
    saver.abort();
    notify::stopping();
    let _ = stop.send(true);
    if timeout(FINISH, async { while servers.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!("some requests did not end within {FINISH:?}");
    }
    if timeout(GOODBYE, engine.stop()).await.is_err() {
        tracing::warn!("the store did not hear that this agent ends; other hosts take it for suspect soon");
    }
    if let Some(thread) = thread {
        let _ = timeout(FINISH, tokio::task::spawn_blocking(|| thread.join())).await;
    }
    if result.is_ok() {
        tracing::info!("ended; containers and the kernel stay as they are");
    }
    result
}

/// Tells systemd: ready after the first synchronisation, or, when that has to wait for the store or the underlay, at once,
/// with the reason; and what changes later.
async fn tell(engine: Arc<Engine>) {
    let mut told: Option<String> = None;
    loop {
        let status = engine.status();
        let records = status.held_records.len();
        let sentence = match (&status.store_error, status.ready, &status.held_back) {
            (_, _, Some(why)) => format!("changes are held back: {why}"),
            (Some(why), true, None) => format!("ready; the store is away: {why}"),
            (Some(why), false, None) => format!("not ready: {why}"),
            (None, true, None) if records > 0 => {
                format!("ready; {records} records of the store are held back")
            }
            (None, true, None) => match &status.notice {
                Some(notice) => format!("ready; {notice}"),
                None => "ready".to_owned(),
            },
            (None, false, None) => String::new(),
        };
        if !sentence.is_empty() && told.as_deref() != Some(&sentence) {
            if told.is_none() {
                notify::ready(&sentence)
            } else {
                notify::status(&sentence)
            }
            told = Some(sentence);
        }
        sleep(TELL).await;
    }
}
