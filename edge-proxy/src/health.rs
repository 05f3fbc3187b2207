//! `GET /health`: one word for the whole platform, and one for each service behind the edge.
//!
//! Anybody may ask, so a flood of questions must not become a flood of checks.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;
use tokio::{sync::Mutex, time::Instant};

use crate::{Body, upstream::Upstream};

/// The path of the answer.
pub(crate) const PATH: &str = "/health";

/// How long an answer holds.
const FRESH: Duration = Duration::from_secs(1);

/// The last answer.
#[derive(Debug, Default)]
pub(crate) struct Health {
    last: Mutex<Option<(Instant, Arc<Report>)>>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Report {
    status: &'static str,
    services: BTreeMap<&'static str, &'static str>,
}

impl Health {
    /// 200 when every service is up, 503 otherwise; takes a second at most.
    pub(crate) async fn answer(&self, upstreams: &[&Upstream]) -> Response<Body> {
        self.shared(|| check(upstreams)).await.response()
    }

    /// The last report, or a new one when that is too old. Whoever comes while it is made waits for it.
    async fn shared<F: Future<Output = Report>>(&self, make: impl FnOnce() -> F) -> Arc<Report> {
        let mut last = self.last.lock().await;
        match &*last {
            Some((at, report)) if at.elapsed() < FRESH => report.clone(),
            _ => {
                let report = Arc::new(make().await);
                *last = Some((Instant::now(), report.clone()));
                report
            }
        }
    }
}

async fn check(upstreams: &[&Upstream]) -> Report {
    let checks = upstreams.iter().map(|upstream| async move {
        let checked = upstream.check().await;
        if let Err(error) = &checked {
            tracing::debug!(service = upstream.service(), error = format!("{error:#}"), "service is down");
        }
        let name = upstream.service();
        (name.strip_suffix("-service").unwrap_or(name), checked.is_ok())
    });
    Report::of(join_all(checks).await)
}

impl Report {
    fn of(services: Vec<(&'static str, bool)>) -> Self {
        let status = if services.iter().all(|(_, up)| *up) { "ok" } else { "degraded" };
        let word = |up| if up { "up" } else { "down" };
        Self { status, services: services.into_iter().map(|(name, up)| (name, word(up))).collect() }
    }

    fn response(&self) -> Response<Body> {
        let text = serde_json::to_vec(self).unwrap_or_default();
        let mut response = Response::new(Body::new(Full::new(Bytes::from(text))));
        if self.status != "ok" {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use futures_util::future::join_all;
    use http::StatusCode;
    use http_body_util::BodyExt as _;

    use super::{Health, Report};

    #[tokio::test(start_paused = true)]
    async fn a_flood_asks_once_in_a_second() {
        let (health, asked) = (Health::default(), AtomicU32::new(0));
        let make = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(300)).await;
            Report::of(vec![("auth", true)])
        };
        let reports = join_all((0..100).map(|_| health.shared(make))).await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(reports.iter().all(|report| report.status == "ok"));
        tokio::time::advance(Duration::from_millis(999)).await;
        health.shared(make).await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_millis(2)).await;
        health.shared(make).await;
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_leaves_does_not_stop_the_others() {
        let health = Health::default();
        let never = health.shared(std::future::pending);
        assert!(tokio::time::timeout(Duration::from_millis(10), never).await.is_err());
        let report = health.shared(|| async { Report::of(vec![("auth", true)]) }).await;
        assert_eq!(report.status, "ok");
    }

    #[tokio::test]
    async fn one_service_down_degrades_the_whole() {
        let up = Report::of(vec![("auth", true), ("project", true)]).response();
        assert_eq!(up.status(), StatusCode::OK);
        let down = Report::of(vec![("auth", true), ("project", false)]).response();
        assert_eq!(down.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body = down.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, r#"{"status":"degraded","services":{"auth":"up","project":"down"}}"#);
    }
}
