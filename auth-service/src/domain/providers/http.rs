//! How providers are asked: HTTPS only, judged by the public roots, no redirect followed, bounded in time
//! and size. What a provider's documents name is asked by the same rules, so that they open no door inside.

use std::{fmt, net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse, http::Response};
use reqwest::{StatusCode, Url, redirect::Policy};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::OnceCell;

/// The longest that an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer in bytes.
const MOST: usize = 1024 * 1024;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum HttpError {
    /// An address that is not asked.
    Address,
    /// The provider did not answer, or broke off.
    Silent(reqwest::Error),
    /// The provider is not well.
    Unwell(StatusCode),
    /// The answer is larger than any that makes sense.
    TooLarge,
    /// We cannot ask at all.
    Ours(anyhow::Error),
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => write!(f, "an address that is not asked: neither https nor on this machine"),
            Self::Silent(error) => write!(f, "no answer: {error}"),
            Self::Unwell(status) => write!(f, "answered {status}"),
            Self::TooLarge => write!(f, "an answer of more than {MOST} bytes"),
            Self::Ours(error) => write!(f, "cannot ask: {error:#}"),
        }
    }
}

impl std::error::Error for HttpError {}

/// Asks one provider.
#[derive(Debug)]
pub(super) struct HttpClient {
    client: OnceCell<reqwest::Client>,
    plain: bool,
}

impl HttpClient {
    /// A client that asks over HTTPS, and with `plain` over HTTP on this machine too.
    pub(super) fn new(plain: bool) -> Self {
        Self { client: OnceCell::new(), plain }
    }

    /// Whether it asks over HTTP on this machine too.
    pub(super) fn plain(&self) -> bool {
        self.plain
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let url: Url = parts.uri.to_string().parse().map_err(|_| HttpError::Address)?;
        if !may_ask(&url, self.plain) {
            return Err(HttpError::Address);
        }
        let client = self.client.get_or_try_init(async || build()).await.map_err(HttpError::Ours)?;
        let request = client.request(parts.method, url).headers(parts.headers).body(body);
        let mut response = request.send().await.map_err(HttpError::Silent)?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(HttpError::Unwell(status));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(HttpError::Silent)? {
            if body.len() + chunk.len() > MOST {
                return Err(HttpError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        let mut answer = Response::new(body);
        *answer.status_mut() = status;
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        Ok(answer)
    }
}

impl<'c> AsyncHttpClient<'c> for HttpClient {
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}

/// Whether an address may be asked: over HTTPS, or with `plain` over HTTP on this machine.
pub(super) fn may_ask(url: &Url, plain: bool) -> bool {
    let scheme_fits = url.scheme() == "https" || (plain && url.scheme() == "http" && is_loopback(url));
    scheme_fits && url.has_host() && url.username().is_empty() && url.password().is_none()
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn build() -> anyhow::Result<reqwest::Client> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(Policy::none())
        .referer(false)
        .no_proxy()
        .timeout(PATIENCE)
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::may_ask;

    #[test]
    fn addresses_are_https_or_on_this_machine() {
        for good in ["https://a.example/x", "https://127.0.0.1", "https://10.0.0.1:8443/realms/x"] {
            assert!(may_ask(&good.parse().unwrap(), false), "{good}");
        }
        for local in ["http://localhost:1/x", "http://127.0.0.1", "http://[::1]:9"] {
            let url = local.parse().unwrap();
            assert!(may_ask(&url, true) && !may_ask(&url, false), "{local}");
        }
        for bad in [
            "http://a.example",
            "http://169.254.169.254/latest",
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example",
            "https://user@a.example",
            "https://user:pass@a.example",
            "file:///etc/passwd",
            "gopher://localhost",
        ] {
            assert!(!may_ask(&bad.parse().unwrap(), true), "{bad}");
        }
    }
}
