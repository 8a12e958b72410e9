//! Bodies in and out: JSON, problems with their status, and work that goes on when the one who asked has left.

use crate::caller::Caller;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use ovl_api::wire::{Problem, ProblemKind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;

/// A body that could not be read.
pub type BadBody = BytesRejection;

/// An answer with a value.
pub fn json<T: Serialize>(result: Result<T, Problem>) -> Response {
    match result {
        Ok(value) => with_body(StatusCode::OK, &value),
        Err(problem) => self::problem(&problem),
    }
}

/// An answer that says no more than that it is done.
pub fn empty(result: Result<(), Problem>) -> Response {
    match result {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(problem) => self::problem(&problem),
    }
}

/// A problem, with its status.
pub fn problem(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    with_body(status, problem)
}

fn with_body(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(mut body) => {
            body.push(b'\n');
            (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// A request's body as what it should be. The problem names the field that is wrong.
pub fn parsed<T: DeserializeOwned>(body: Result<Bytes, BadBody>) -> Result<T, Problem> {
    let body = body.map_err(|error| {
        let message = format!("the request's body cannot be read, or has more than 1 MiB ({error})");
        Problem::new(ProblemKind::Invalid, message)
    })?;
    let mut deserializer = serde_json::Deserializer::from_slice(&body);
    let value: T = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let why = error.inner();
        if !why.is_data() || path == "." {
            // Not JSON at all, or a field that is missing or unknown: the error names it.
            let field = why.to_string().split('`').nth(1).map(str::to_owned).filter(|_| why.is_data());
            let message = format!("the request's body: {why}");
            return Problem { kind: ProblemKind::Invalid, field, message };
        }
        Problem::invalid(&path, format!("{path}: {why}"))
    })?;
    deserializer.end().map_err(|error| {
        Problem::new(ProblemKind::Invalid, format!("the request's body has something after its end: {error}"))
    })?;
    Ok(value)
}

/// As [`whole`], unless the one who asked has left before it is begun.
pub async fn asked<T: Send + 'static>(
    caller: Caller,
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    whole(async move {
        caller.waits().inspect_err(|problem| tracing::warn!("{problem}"))?;
        work.await
    })
    .await
}

/// Does something to its end, also when the one who asked hangs up in the middle, which would otherwise drop the future
/// wherever it waits.
pub async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(_) => Err(Problem::new(ProblemKind::NotReady, "the agent ends")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovl_api::wire::{Attach, NetworkCreate};

    fn refused<T: DeserializeOwned + std::fmt::Debug>(body: &'static str) -> Problem {
        parsed::<T>(Ok(Bytes::from_static(body.as_bytes()))).unwrap_err()
    }

    #[test]
    fn a_bad_body_is_refused_by_the_name_of_the_field() {
        let cases = [
            (r#"{"name":"x","subnets":["10.0.0.0/16","10.1.0.0/33"]}"#, Some("subnets[1]"), "subnets[1]"),
            (r#"{"name":"x","vni":"7"}"#, Some("vni"), "vni: invalid type: string \"7\""),
            (r#"{"name":"x","colour":1}"#, Some("colour"), "unknown field `colour`, expected one of `name`"),
            (r#"{"vni":7}"#, Some("name"), "missing field `name`"),
            (r#"{"name":"x","encap":"gre"}"#, Some("encap"), "expected `vxlan` or `direct`"),
            (r#"{"name":"x"#, None, "EOF while parsing"),
            ("", None, "EOF while parsing"),
            (r#"{"name":"x"} {}"#, None, "after its end"),
        ];
        for (body, field, message) in cases {
            let problem = refused::<NetworkCreate>(body);
            assert_eq!(problem.kind, ProblemKind::Invalid);
            assert_eq!(problem.field.as_deref(), field, "{body}: {problem:?}");
            assert!(problem.message.contains(message), "{body}: {problem:?}");
        }
        let problem =
            refused::<Attach>(r#"{"network":"ov","container":"c","ifname":"e","veth":"v","ips":["x"]}"#);
        assert_eq!(problem.field.as_deref(), Some("ips[0]"));
    }
}
