//! The rules of the API model, all of them collected, each with the JSON path of its field.

mod backends;
mod operations;
mod rules;
mod security;
#[cfg(test)]
mod tests;

use proto::project::{
    Api, ApiRateLimiting,
    api::{LifeCycleStatus, Type},
    api_rate_limiting::TimeUnit,
};
use service_kit::{Result, field::Checks};

use self::rules::{FORBIDDEN_RULE, Scope, has_forbidden};
use super::normalize::normalize;

/// The longest description of an API or an operation, in characters.
const DESCRIPTION: usize = 32_766;

/// Brings an API into the form in which it is kept, and checks it. `stored` is what it replaces.
pub(super) fn accept(api: &mut Api, stored: Option<&Api>) -> Result<()> {
    let mut checks = Checks::new();
    // The limit counts what was sent, before a slash is added; what is stored may be sent back.
    let context = api.context.trim();
    if stored.is_none_or(|stored| stored.context != context) {
        checks.length("context", context, 1, 232);
    }
    normalize(api);
    let mut scope = Scope::root(&mut checks);
    naming(&mut scope, api);
    enums(&mut scope, api);
    transport(&mut scope, &api.transport);
    if let Some(mtls) = &api.mtls {
        security::mtls(&mut scope.inside("mtls"), mtls);
    }
    if let Some(rules) = &api.security {
        security::security(&mut scope.inside("security"), rules);
    }
    if let Some(cors) = &api.cors {
        security::cors(&mut scope.inside("cors"), cors);
    }
    if let Some(limit) = &api.api_rate_limiting {
        rate_limit(&mut scope.inside("api-rate-limiting"), limit);
    }
    backends::check(&mut scope, &api.backend_services);
    operations::check(&mut scope, &api.operations, &api.backend_services);
    checks.done()
}

fn naming(scope: &mut Scope<'_>, api: &Api) {
    scope.line("name", &api.name, 1, 128);
    scope.that(!has_forbidden(&api.name), "name", FORBIDDEN_RULE);
    scope.line("displayName", &api.display_name, 0, 128);
    scope.text("description", &api.description, DESCRIPTION);
    scope.line("provider", &api.provider, 0, 200);
    context(scope, &api.context);
    scope.line("version", &api.version, 1, 30);
    let plain = !has_forbidden(&api.version) && !api.version.contains(char::is_whitespace);
    scope.that(plain, "version", "must not contain spaces or any of ~!@#;:%^*()+={}|\\<>\"',&$[]/");
    scope.that(!matches!(api.version.as_str(), "." | ".."), "version", "must not be a relative path");
}

/// Checks a context that has its leading slash. Braces and slashes are its syntax.
fn context(scope: &mut Scope<'_>, context: &str) {
    let bad =
        |c: char| c.is_whitespace() || c == '?' || (has_forbidden_char(c) && !matches!(c, '/' | '{' | '}'));
    scope.that(
        !context.chars().any(bad),
        "context",
        "must not contain spaces or any of ?~!@#;:%^*()+=|\\<>\"',&$[]",
    );
    scope.printable("context", context);
    let segments = context.strip_prefix('/').unwrap_or(context);
    let path_like = segments.is_empty() || segments.split('/').all(|part| !matches!(part, "" | "." | ".."));
    scope.that(path_like, "context", "must not have empty or relative segments");
}

fn has_forbidden_char(c: char) -> bool {
    rules::FORBIDDEN.contains(c)
}

fn enums(scope: &mut Scope<'_>, api: &Api) {
    scope.that(
        LifeCycleStatus::try_from(api.life_cycle_status).is_ok(),
        "lifeCycleStatus",
        "must be STAGED, CREATED, PUBLISHED, DEPRECATED, RETIRED or BLOCKED",
    );
    scope.that(
        Type::try_from(api.r#type).is_ok(),
        "type",
        "must be HTTP, WS, SOAPTOREST, SOAP, GRAPHQL, WEBSUB, SSE, WEBHOOK or ASYNC",
    );
}

fn transport(scope: &mut Scope<'_>, transport: &[String]) {
    for (i, name) in transport.iter().enumerate().take(5) {
        let field = format!("transport[{i}]");
        let known = matches!(name.as_str(), "http" | "https" | "ws" | "wss");
        scope.that(known, &field, "must be http, https, ws or wss");
        scope.that(!transport[..i].contains(name), &field, "must not appear twice");
    }
    scope.that(transport.len() <= 4, "transport", "must have at most 4 entries");
}

fn rate_limit(scope: &mut Scope<'_>, limit: &ApiRateLimiting) {
    scope.that(!limit.enabled || limit.rate_limit_count > 0, "rateLimitCount", "must be at least 1");
    scope.that(
        TimeUnit::try_from(limit.rate_limit_time_unit).is_ok(),
        "rateLimitTimeUnit",
        "must be SECOND, MINUTE, HOUR or DAY",
    );
}
