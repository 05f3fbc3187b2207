//! Rules of mutual TLS, authentication and cross-origin calls.

use proto::project::{Cors, GrantTypes, Mtls, Security};
use url::Url;

use super::{
    operations::METHODS,
    rules::{Scope, has_plain_host, is_token},
};

/// The most characters of one list of the cross-origin rules.
const CORS_LIST: usize = 8_192;

pub(super) fn mtls(scope: &mut Scope<'_>, mtls: &Mtls) {
    scope.pem("clientCert", &mtls.client_cert, "CERTIFICATE");
    scope.pem("clientKey", &mtls.client_key, "PRIVATE KEY");
    scope.pem("caCert", &mtls.ca_cert, "CERTIFICATE");
}

pub(super) fn security(scope: &mut Scope<'_>, security: &Security) {
    if let Some(key) = &security.api_key {
        let mut scope = scope.inside("apiKey");
        scope.token("header", &key.header, 128);
        scope.token("query", &key.query, 128);
        scope.token("cookie", &key.cookie, 128);
    }
    if let Some(oauth2) = &security.oauth2 {
        let mut scope = scope.inside("oauth2");
        scope.scopes("scopes", &oauth2.scopes);
        if let Some(grants) = &oauth2.grant_types {
            callbacks(&mut scope.inside("grantTypes"), grants);
        }
    }
}

fn callbacks(scope: &mut Scope<'_>, grants: &GrantTypes) {
    if let Some(grant) = &grants.authorization_code {
        scope.callback_url("authorizationCode.callbackUrl", &grant.callback_url);
    }
    if let Some(grant) = &grants.implicit {
        scope.callback_url("implicit.callbackUrl", &grant.callback_url);
    }
}

pub(super) fn cors(scope: &mut Scope<'_>, cors: &Cors) {
    list(
        scope,
        "allowOrigins",
        &cors.allow_origins,
        is_origin,
        "must be origins such as https://example.com, or *",
    );
    let method = |entry: &str| METHODS.contains(&entry);
    list(scope, "allowMethods", &cors.allow_methods, method, "must be HTTP methods in upper case, or *");
    list(scope, "allowHeaders", &cors.allow_headers, is_token, "must be names of headers, or *");
    list(scope, "exposeHeaders", &cors.expose_headers, is_token, "must be names of headers, or *");
    let any_origin = cors.allow_origins.split(',').any(|origin| origin.trim() == "*");
    scope.that(
        !(cors.allow_credentials && any_origin),
        "allowCredentials",
        "must not be set together with the origin *",
    );
}

/// A comma-separated list whose entries are `*` or good.
fn list(scope: &mut Scope<'_>, field: &str, list: &str, good: impl Fn(&str) -> bool, rule: &str) {
    scope.line(field, list, 0, CORS_LIST);
    let all_good = list.split(',').map(str::trim).all(|entry| entry == "*" || good(entry));
    scope.that(list.trim().is_empty() || all_good, field, rule);
}

/// A scheme and a host with an optional port, and nothing after it; one `*.` label is fine.
fn is_origin(text: &str) -> bool {
    let plain = text.replacen("://*.", "://wildcard.", 1);
    text == "null"
        || Url::parse(&plain).is_ok_and(|url| {
            let after = plain.find("://").map_or("", |at| &plain[at + 3..]);
            has_plain_host(&url) && !after.contains(['/', '?', '#', '@', '\\'])
        })
}
