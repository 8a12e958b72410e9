//! The agent's API: HTTP/1.1 with JSON, the rows of [`ovl_api::wire`]'s table.

mod listen;
pub mod public;
mod reply;

pub use listen::unix;
pub use reply::problem as refuse;

use crate::caller::Caller;
use crate::engine::Engine;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{Method, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use ovl_api::wire::{Problem, ProblemKind};
use reply::{empty, json, parsed};
use serde::Deserialize;
use std::sync::Arc;

/// How many bytes a request's body may have.
const MAX_BODY: usize = 1 << 20;

type Shared = State<Arc<Engine>>;

/// All of the API.
pub fn full(engine: Arc<Engine>) -> Router {
    let routes = Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .route("/v1/status", get(status))
        .route("/v1/networks", get(networks).post(create_network))
        .route("/v1/networks/{name}", get(network_detail).delete(remove_network))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{name}", axum::routing::delete(remove_node))
        .route("/v1/attach", post(attach))
        .route("/v1/detach", post(detach))
        .route("/v1/gc", post(gc))
        .route("/v1/sync", post(sync))
        .route("/v1/accept", post(accept));
    finish(routes, engine)
}

/// What is served over TCP: nothing that changes or tells much.
pub fn metrics_alone(engine: Arc<Engine>) -> Router {
    finish(Router::new().route("/healthz", get(healthz)).route("/metrics", get(metrics)), engine)
}

fn finish(routes: Router<Arc<Engine>>, engine: Arc<Engine>) -> Router {
    routes
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_path)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(engine)
}

async fn no_such_path(method: Method, uri: Uri) -> Response {
    let message = format!("there is no {method} {} in this agent's API", uri.path());
    reply::problem(&Problem::new(ProblemKind::NotFound, message))
}

async fn healthz(State(engine): Shared) -> Response {
    json(engine.ready().map(|()| "ready"))
}

async fn metrics(State(engine): Shared) -> Response {
    let text = engine.metrics_text();
    ([(header::CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], text).into_response()
}

#[derive(Deserialize)]
struct StatusQuery {
    network: Option<String>,
}

async fn status(State(engine): Shared, Query(query): Query<StatusQuery>) -> Response {
    if let Some(network) = &query.network
        && let Err(problem) = engine.available(network).await
    {
        return reply::problem(&problem);
    }
    json(Ok(engine.status()))
}

async fn networks(State(engine): Shared) -> Response {
    json(engine.networks().await)
}

async fn create_network(
    State(engine): Shared,
    caller: Caller,
    body: Result<Bytes, reply::BadBody>,
) -> Response {
    match parsed(body) {
        Ok(create) => json(reply::asked(caller, async move { engine.create_network(&create).await }).await),
        Err(problem) => reply::problem(&problem),
    }
}

async fn network_detail(State(engine): Shared, Path(name): Path<String>) -> Response {
    json(engine.network_detail(&name).await)
}

async fn remove_network(State(engine): Shared, caller: Caller, Path(name): Path<String>) -> Response {
    empty(reply::asked(caller, async move { engine.remove_network(&name).await }).await)
}

async fn nodes(State(engine): Shared) -> Response {
    json(engine.nodes().await)
}

#[derive(Deserialize)]
struct RemoveQuery {
    force: Option<String>,
}

async fn remove_node(
    State(engine): Shared,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Response {
    let force = match query.force.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            let message = format!("force {other:?}: must be true or false");
            return reply::problem(&Problem::invalid("force", message));
        }
    };
    empty(reply::asked(caller, async move { engine.remove_node(&name, force).await }).await)
}

async fn attach(State(engine): Shared, caller: Caller, body: Result<Bytes, reply::BadBody>) -> Response {
    match parsed(body) {
        Ok(ask) => json(reply::whole(async move { engine.attach(&ask, &caller).await }).await),
        Err(problem) => reply::problem(&problem),
    }
}

async fn detach(State(engine): Shared, caller: Caller, body: Result<Bytes, reply::BadBody>) -> Response {
    match parsed(body) {
        Ok(ask) => empty(reply::whole(async move { engine.detach(&ask, &caller).await }).await),
        Err(problem) => reply::problem(&problem),
    }
}

async fn gc(State(engine): Shared, caller: Caller, body: Result<Bytes, reply::BadBody>) -> Response {
    match parsed(body) {
        Ok(ask) => json(reply::asked(caller, async move { engine.gc(&ask).await }).await),
        Err(problem) => reply::problem(&problem),
    }
}

async fn sync(State(engine): Shared) -> Response {
    json(engine.sync().await)
}

async fn accept(State(engine): Shared, caller: Caller) -> Response {
    empty(caller.waits().and_then(|()| engine.accept()))
}
