//! Rules of operations.

use std::collections::HashSet;

use proto::project::{BackendService, Operation, OperationRequest, PolicyRef};

use super::{DESCRIPTION, rules::Scope};

const OPERATIONS: usize = 2_000;
const POLICIES: usize = 50;
const PARAMS: usize = 100;

/// The methods that an operation may have.
pub(super) const METHODS: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"];

pub(super) fn check(scope: &mut Scope<'_>, operations: &[Operation], backends: &[BackendService]) {
    scope.at_most("operations", operations.len(), OPERATIONS);
    let backends: HashSet<&str> = backends.iter().map(|backend| backend.name.as_str()).collect();
    let mut known = HashSet::new();
    for (i, operation) in operations.iter().enumerate().take(OPERATIONS) {
        let mut scope = scope.inside(&format!("operations[{i}]"));
        scope.line("name", &operation.name, 0, 256);
        scope.text("description", &operation.description, DESCRIPTION);
        let Some(request) = &operation.request else {
            scope.that(false, "request", "is required");
            continue;
        };
        let new = known.insert((request.method.as_str(), request.path.as_str()));
        let mut scope = scope.inside("request");
        scope.that(new, "path", "must be unique together with the method");
        check_request(&mut scope, request, &backends);
    }
}

fn check_request(scope: &mut Scope<'_>, request: &OperationRequest, backends: &HashSet<&str>) {
    let method = request.method.as_str();
    if method.is_empty() {
        scope.that(false, "method", "is required");
    } else {
        let rule = "must be GET, POST, PUT, DELETE, PATCH, HEAD or OPTIONS";
        scope.that(METHODS.contains(&method), "method", rule);
    }
    check_path(scope, &request.path);
    check_backends(scope, request, backends);
    if let Some(authentication) = &request.authentication {
        scope.inside("authentication").scopes("scopes", &authentication.scopes);
    }
    policies(scope, "requestPolicies", &request.request_policies);
    policies(scope, "responsePolicies", &request.response_policies);
}

fn check_path(scope: &mut Scope<'_>, path: &str) {
    scope.line("path", path, 1, 2_048);
    if !path.is_empty() {
        scope.that(path.starts_with('/'), "path", "must start with a slash");
        let plain = !path.contains(|c: char| c.is_whitespace() || matches!(c, '?' | '#'));
        scope.that(plain, "path", "must not contain spaces, ? or #");
    }
}

fn check_backends(scope: &mut Scope<'_>, request: &OperationRequest, backends: &HashSet<&str>) {
    scope.at_most("backend-services", request.backend_services.len(), 100);
    let mut named = HashSet::new();
    for (i, backend) in request.backend_services.iter().enumerate().take(100) {
        let mut scope = scope.inside(&format!("backend-services[{i}]"));
        let name = backend.name.as_str();
        scope.that(backends.contains(name), "name", "must be the name of a backend service of the API");
        scope.that(named.insert(name), "name", "must not appear twice");
        scope.up_to("weight", backend.weight, 100);
    }
}

fn policies(scope: &mut Scope<'_>, list: &str, policies: &[PolicyRef]) {
    scope.at_most(list, policies.len(), POLICIES);
    for (i, policy) in policies.iter().enumerate().take(POLICIES) {
        let mut scope = scope.inside(&format!("{list}[{i}]"));
        scope.line("name", &policy.name, 1, 128);
        scope.at_most("params", policy.params.len(), PARAMS);
        for (name, value) in &policy.params {
            let named = (1..=128).contains(&name.chars().count()) && !name.chars().any(char::is_control);
            if named {
                scope.text(&format!("params.{name}"), value, 8_192);
            } else {
                scope.that(
                    false,
                    "params",
                    "must have names of 1 to 128 characters without control characters",
                );
            }
        }
    }
}
