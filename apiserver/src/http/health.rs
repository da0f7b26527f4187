//! `/healthz`, `/livez`, `/readyz`: named checks, one by one or all together.

use futures::future::BoxFuture;
use http::{Response, StatusCode};

use super::Query;
use super::body::{self, Body};

/// A named question about the server's state.
pub struct Check {
    pub name: &'static str,
    /// Whether a failure means that a restart would help: only those are in `/livez`.
    pub liveness: bool,
    /// The error is for the log and for single checks.
    pub run: Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
}

impl Check {
    pub fn new(
        name: &'static str,
        liveness: bool,
        run: impl Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync + 'static,
    ) -> Self {
        Self { name, liveness, run: Box::new(run) }
    }
}

/// Answers `/readyz`, `/readyz/etcd` and the like; `None` when no such check exists.
pub(super) async fn answer(checks: &[Check], path: &str, query: &Query) -> Option<Response<Body>> {
    let (endpoint, single) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    let mut wanted = checks.iter().filter(|check| endpoint == "readyz" || check.liveness);
    if !single.is_empty() {
        let check = wanted.find(|check| check.name == single)?;
        return Some(match (check.run)().await {
            Ok(()) => body::text(StatusCode::OK, "ok"),
            Err(why) => body::text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n")),
        });
    }
    let mut excluded: Vec<&str> = query.all("exclude").collect();
    let mut lines = Vec::new();
    let mut failed = false;
    for check in wanted {
        if let Some(position) = excluded.iter().position(|name| *name == check.name) {
            excluded.remove(position);
            lines.push(format!("[+]{} excluded: ok", check.name));
            continue;
        }
        match (check.run)().await {
            Ok(()) => lines.push(format!("[+]{} ok", check.name)),
            Err(why) => {
                tracing::debug!(check = check.name, why, "a health check failed");
                failed = true;
                // The reason may name internals, and anybody may ask.
                lines.push(format!("[-]{} failed: reason withheld", check.name));
            }
        }
    }
    if !excluded.is_empty() {
        let names: Vec<String> = excluded.iter().map(|name| format!("{name:?}")).collect();
        lines.push(format!("warn: some health checks cannot be excluded: no matches for {}", names.join(", ")));
    }
    if failed {
        let text = format!("{}\n{endpoint} check failed\n", lines.join("\n"));
        return Some(body::text(StatusCode::INTERNAL_SERVER_ERROR, text));
    }
    if query.get("verbose").is_some() {
        return Some(body::text(StatusCode::OK, format!("{}\n{endpoint} check passed\n", lines.join("\n"))));
    }
    Some(body::text(StatusCode::OK, "ok"))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[track_caller]
    fn check(path: &str, query: &str, expected: Option<(u16, &str)>) {
        let checks = [
            Check::new("ping", true, || Box::pin(async { Ok(()) })),
            Check::new("etcd", false, || Box::pin(async { Err("lost".to_owned()) })),
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = runtime.block_on(async {
            let response = answer(&checks, path, &Query::parse(query)).await?;
            let code = response.status().as_u16();
            Some((code, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()))
        });
        assert_eq!(found.as_ref().map(|(code, text)| (*code, text.as_str())), expected, "{path}?{query}");
    }

    #[test]
    fn checks_answer_together_and_alone() {
        check("/livez", "", Some((200, "ok")));
        check("/livez", "verbose", Some((200, "[+]ping ok\nlivez check passed\n")));
        check("/readyz", "", Some((500, "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n")));
        check("/readyz", "exclude=etcd", Some((200, "ok")));
        check("/readyz/ping", "", Some((200, "ok")));
        check("/readyz/etcd", "", Some((500, "internal server error: lost\n")));
        check("/readyz/other", "", None);
        check("/livez/etcd", "", None);
    }
}
