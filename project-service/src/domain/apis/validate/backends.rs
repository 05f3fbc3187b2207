//! Rules of backend services and their endpoints.

use std::collections::HashSet;

use proto::project::{BackendService, Endpoint, HealthCheck};

use super::{rules::Scope, security};

const BACKENDS: usize = 100;
const ENDPOINTS: usize = 100;

/// The longest wait for a backend: an hour, in milliseconds.
const TIMEOUT_MS: u32 = 3_600_000;

/// The longest time of a health check: a day, in seconds.
const DAY: u32 = 86_400;

const ALGORITHMS: [&str; 5] = ["round-robin", "weighted", "least-connections", "random", "ip-hash"];

pub(super) fn check(scope: &mut Scope<'_>, backends: &[BackendService]) {
    scope.at_most("backend-services", backends.len(), BACKENDS);
    let mut names = HashSet::new();
    let mut defaults = 0;
    for (i, backend) in backends.iter().enumerate().take(BACKENDS) {
        let mut scope = scope.inside(&format!("backend-services[{i}]"));
        scope.that(names.insert(&backend.name), "name", "must be unique in the API");
        defaults += u32::from(backend.is_default);
        scope.that(!backend.is_default || defaults == 1, "isDefault", "must be set on one backend only");
        check_backend(&mut scope, backend);
    }
}

fn check_backend(scope: &mut Scope<'_>, backend: &BackendService) {
    scope.line("name", &backend.name, 1, 128);
    scope.up_to("retries", backend.retries, 10);
    if let Some(timeout) = &backend.timeout {
        scope.up_to("timeout.connect", timeout.connect, TIMEOUT_MS);
        scope.up_to("timeout.read", timeout.read, TIMEOUT_MS);
        scope.up_to("timeout.write", timeout.write, TIMEOUT_MS);
    }
    if let Some(balance) = &backend.load_balance {
        scope.that(
            ALGORITHMS.contains(&balance.algorithm.as_str()),
            "loadBalance.algorithm",
            "must be round-robin, weighted, least-connections, random or ip-hash",
        );
    }
    scope.that(!backend.endpoints.is_empty(), "endpoints", "must have at least one entry");
    scope.at_most("endpoints", backend.endpoints.len(), ENDPOINTS);
    let mut urls = HashSet::new();
    for (i, endpoint) in backend.endpoints.iter().enumerate().take(ENDPOINTS) {
        let mut scope = scope.inside(&format!("endpoints[{i}]"));
        // A private key that an update leaves out is found again by the endpoint's URL.
        scope.that(urls.insert(&endpoint.url), "url", "must be unique in the backend");
        check_endpoint(&mut scope, endpoint);
    }
}

fn check_endpoint(scope: &mut Scope<'_>, endpoint: &Endpoint) {
    scope.http_url("url", &endpoint.url);
    scope.text("description", &endpoint.description, 1_024);
    scope.up_to("weight", endpoint.weight, 100);
    if let Some(health) = &endpoint.health_check {
        health_check(&mut scope.inside("healthCheck"), health);
    }
    if let Some(mtls) = &endpoint.mtls {
        security::mtls(&mut scope.inside("mtls"), mtls);
    }
}

fn health_check(scope: &mut Scope<'_>, health: &HealthCheck) {
    scope.up_to("interval", health.interval, DAY);
    scope.up_to("timeout", health.timeout, DAY);
    scope.up_to("unhealthyThreshold", health.unhealthy_threshold, 1_000);
    scope.up_to("healthyThreshold", health.healthy_threshold, 1_000);
}
