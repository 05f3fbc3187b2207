//! A client of the public API: REST with JSON, as a browser or a script would call it.
//!
//! It knows no rule of the platform: whoever calls it judges the answers.

use anyhow::Context as _;
use bytes::Bytes;
use reqwest::{
    Method, RequestBuilder, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use serde_json::Value;

use crate::trust::Trust;

/// The longest that any answer may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// A client of one suite, with or without an access token.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    trust: Trust,
    token: Option<String>,
    headers: HeaderMap,
}

/// An answer, whatever it says.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The request in short, `POST /api/v1/auth/login`: for messages.
    pub request: String,
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as it came.
    pub body: Bytes,
}

impl Client {
    /// A client of the suite at `url` (`https://localhost:8443`), without a token.
    pub fn new(url: &str, trust: &Trust) -> anyhow::Result<Self> {
        let base: Url = url.parse().with_context(|| format!("{url} is not a URL"))?;
        anyhow::ensure!(base.scheme() == "https" && base.has_host(), "{url} is not an https URL");
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(trust.client_config(&["h2", "http/1.1"]))
            .no_proxy()
            .timeout(PATIENCE)
            .build()?;
        Ok(Self { http, base, trust: trust.clone(), token: None, headers: HeaderMap::new() })
    }

    /// The same client with an access token.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// The same client with one more header on each request; a second value of a name is added.
    ///
    /// # Errors
    /// When the name or the value is none of a header.
    pub fn with_header(&self, name: &str, value: &str) -> anyhow::Result<Self> {
        let mut headers = self.headers.clone();
        headers.append(name.parse::<HeaderName>()?, value.parse::<HeaderValue>()?);
        Ok(Self { headers, ..self.clone() })
    }

    /// The suite's address.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// Whom the client believes.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The access token.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Sends a request without a body.
    pub async fn get(&self, path: &str) -> anyhow::Result<Reply> {
        self.send(Method::GET, path, "", Bytes::new()).await
    }

    /// Sends a request that deletes.
    pub async fn delete(&self, path: &str) -> anyhow::Result<Reply> {
        self.send(Method::DELETE, path, "", Bytes::new()).await
    }

    /// Posts JSON.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Reply> {
        self.send(Method::POST, path, "application/json", body.to_string()).await
    }

    /// Puts JSON.
    pub async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Reply> {
        self.send(Method::PUT, path, "application/json", body.to_string()).await
    }

    /// Sends any bytes under any media type; no `Content-Type` when it is empty.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        media_type: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Reply> {
        let mut request =
            self.http.request(method.clone(), self.base.join(path)?).headers(self.headers.clone());
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if !media_type.is_empty() {
            request = request.header(CONTENT_TYPE, media_type).body(body.into());
        }
        self.reply(format!("{method} {path}"), request).await
    }

    /// A request with these headers and no token of a user: what gateways send.
    pub fn bare(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<RequestBuilder> {
        let request = self.http.request(method, self.base.join(path)?);
        Ok(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
    }

    /// The answer to a request, whatever it says; `name` is the request in short.
    pub async fn reply(&self, name: String, request: RequestBuilder) -> anyhow::Result<Reply> {
        let response = request.send().await.with_context(|| format!("{name}: no answer"))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.with_context(|| format!("{name}: the answer broke off"))?;
        Ok(Reply { request: name, status, headers, body })
    }
}

impl Reply {
    /// The body as JSON; `null` when it is empty.
    pub fn json(&self) -> anyhow::Result<Value> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{}: {} with a body that is not JSON", self.request, self.status))
    }

    /// The body as text, for messages.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The JSON body of an answer that must have this status; else an error with what came instead.
    pub fn expect(&self, status: u16) -> anyhow::Result<Value> {
        anyhow::ensure!(
            self.status == status,
            "{}: expected {status}, got {}: {}",
            self.request,
            self.status,
            self.text()
        );
        self.json()
    }

    /// The answer's status when it is one of `wanted`, else the first of them: for [`Self::expect`].
    pub fn status_of(&self, wanted: &[u16]) -> u16 {
        if wanted.contains(&self.status) {
            return self.status;
        }
        wanted.first().copied().unwrap_or(200)
    }

    /// A header's value; empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// The text at a JSON pointer (`/list/0/id`) of an answer; an error when it is not there.
pub fn text_at<'a>(value: &'a Value, pointer: &str) -> anyhow::Result<&'a str> {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .with_context(|| format!("the answer has no text at {pointer}: {value}"))
}

/// The list at a JSON pointer of an answer; an error when it is not there.
pub fn list_at<'a>(value: &'a Value, pointer: &str) -> anyhow::Result<&'a Vec<Value>> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .with_context(|| format!("the answer has no list at {pointer}: {value}"))
}
