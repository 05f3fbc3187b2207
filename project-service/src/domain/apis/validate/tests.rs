use proptest::prelude::{ProptestConfig, any, proptest};
use proto::project::{
    Api, ApiKeySecurity, ApiRateLimiting, AuthorizationCodeGrant, BackendRef, BackendService, BackendTimeout,
    Cors, Endpoint, GrantTypes, HealthCheck, ImplicitGrant, LoadBalance, Mtls, Oauth2Security, Operation,
    OperationAuthentication, OperationRequest, PolicyRef, Security,
};

use super::accept;

fn endpoint(url: &str) -> Endpoint {
    Endpoint { url: url.to_owned(), ..Endpoint::default() }
}

fn operation(method: &str, path: &str) -> Operation {
    let request =
        OperationRequest { method: method.to_owned(), path: path.to_owned(), ..OperationRequest::default() };
    Operation { request: Some(request), ..Operation::default() }
}

/// A good API with one of everything.
fn good() -> Api {
    Api {
        name: "Pets".to_owned(),
        context: "/pets".to_owned(),
        version: "v1".to_owned(),
        mtls: Some(Mtls::default()),
        security: Some(Security {
            api_key: Some(ApiKeySecurity::default()),
            oauth2: Some(Oauth2Security {
                grant_types: Some(GrantTypes {
                    authorization_code: Some(AuthorizationCodeGrant::default()),
                    implicit: Some(ImplicitGrant::default()),
                    ..GrantTypes::default()
                }),
                scopes: vec!["a".to_owned()],
            }),
            ..Security::default()
        }),
        cors: Some(Cors::default()),
        backend_services: vec![BackendService {
            name: "main".to_owned(),
            endpoints: vec![Endpoint {
                health_check: Some(HealthCheck::default()),
                mtls: Some(Mtls::default()),
                ..endpoint("https://pets.example")
            }],
            timeout: Some(BackendTimeout::default()),
            load_balance: Some(LoadBalance::default()),
            ..BackendService::default()
        }],
        api_rate_limiting: Some(ApiRateLimiting::default()),
        operations: vec![operation("GET", "/a"), operation("POST", "/a")],
        ..Api::default()
    }
}

/// The fields that an API breaks rules with.
fn broken(mut api: Api) -> Vec<String> {
    match accept(&mut api, None) {
        Ok(()) => Vec::new(),
        Err(error) => error.violations().iter().map(|violation| violation.field.clone()).collect(),
    }
}

#[track_caller]
fn expect(expected: &[&str], change: impl FnOnce(&mut Api)) {
    let mut api = good();
    change(&mut api);
    assert_eq!(broken(api), expected);
}

fn request(api: &mut Api) -> &mut OperationRequest {
    api.operations[0].request.as_mut().unwrap()
}

#[test]
fn the_good_one_is_good() {
    expect(&[], |_| ());
}

#[test]
fn names() {
    for bad in "~!@#;:%^*()+={}|\\<>\"',&$[]/\0\n".chars() {
        expect(&["name"], |api| {
            api.display_name = "x".to_owned();
            api.name = format!("a{bad}b");
        });
    }
    for good in ["a", "Pets 2.0 - büro_x?", &"n".repeat(128)] {
        expect(&[], |api| api.name = good.to_owned());
    }
    expect(&["name"], |api| api.name = " ".to_owned());
    expect(&["name", "displayName"], |api| api.name = "n".repeat(129));
    expect(&["displayName"], |api| api.display_name = "\u{7}".to_owned());
    expect(&[], |api| api.description = "é\n".repeat(16_383));
    expect(&["description"], |api| api.description = "é".repeat(32_767));
    expect(&["description"], |api| api.description = "\0".to_owned());
    expect(&[], |api| api.provider = "p".repeat(200));
    expect(&["provider"], |api| api.provider = "p".repeat(201));
}

#[test]
fn contexts() {
    for good in ["a", "/", "/a/b", "/{tenant}/a", &"c".repeat(232), &format!("/{}", "c".repeat(231))] {
        expect(&[], |api| api.context = good.to_owned());
    }
    for bad in [
        "",
        " ",
        "/a b",
        "/a?b",
        "/a#b",
        "/a%20b",
        "//",
        "/a//b",
        "//a",
        "/..",
        "/a/./b",
        "/a\\b",
        "/a\u{a0}b",
        &"c".repeat(233),
        &format!("/{}", "c".repeat(232)),
    ] {
        expect(&["context"], |api| api.context = bad.to_owned());
    }
}

#[test]
fn what_is_stored_may_be_sent_back() {
    let mut api = Api { context: "c".repeat(232), ..good() };
    accept(&mut api, None).unwrap();
    let stored = api.clone();
    assert_eq!(stored.context.len(), 233);
    accept(&mut api, Some(&stored)).unwrap();
    assert_eq!(api, stored, "the kept form is kept as it is");
    assert_eq!(broken(stored), ["context"], "and is one too long for a new API");
}

#[test]
fn versions() {
    for good in ["1", "v1.2.3-rc_1", &"1".repeat(30)] {
        expect(&[], |api| api.version = good.to_owned());
    }
    for bad in ["", "1 0", "1/0", "1\u{2003}0", "{v}", ".", "..", &"1".repeat(31)] {
        expect(&["version"], |api| api.version = bad.to_owned());
    }
}

#[test]
fn enums_and_transports() {
    expect(&["lifeCycleStatus", "type"], |api| (api.life_cycle_status, api.r#type) = (7, -1));
    expect(&["transport[1]"], |api| api.transport = vec!["http".to_owned(), "http".to_owned()]);
    expect(&["transport[0]"], |api| api.transport = vec!["HTTP".to_owned()]);
    expect(&["api-rate-limiting.rateLimitTimeUnit"], |api| {
        api.api_rate_limiting.as_mut().unwrap().rate_limit_time_unit = 9;
    });
    expect(&["api-rate-limiting.rateLimitCount"], |api| {
        api.api_rate_limiting.as_mut().unwrap().enabled = true;
    });
}

#[test]
fn certificates_and_keys() {
    let block = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    let chain = block("CERTIFICATE").repeat(3);
    for (cert, key) in [(chain.as_str(), block("PRIVATE KEY")), ("", block("EC PRIVATE KEY"))] {
        expect(&[], |api| {
            let mtls = api.mtls.as_mut().unwrap();
            (mtls.client_cert, mtls.ca_cert, mtls.client_key) = (cert.to_owned(), cert.to_owned(), key);
        });
    }
    let long = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----", "A".repeat(65_536));
    for bad in [
        "x",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nA\0A\n-----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\n-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----",
        &block("CERTIFICATE"),
        &(block("PRIVATE KEY") + "rest"),
        &long,
    ] {
        expect(&["mtls.clientKey"], |api| api.mtls.as_mut().unwrap().client_key = bad.to_owned());
        expect(&["backend-services[0].endpoints[0].mtls.clientKey"], |api| {
            let endpoint = &mut api.backend_services[0].endpoints[0];
            endpoint.mtls.as_mut().unwrap().client_key = bad.to_owned();
        });
    }
    expect(&["mtls.clientCert", "mtls.caCert"], |api| {
        let mtls = api.mtls.as_mut().unwrap();
        (mtls.client_cert, mtls.ca_cert) = (block("PRIVATE KEY"), "x".to_owned());
    });
}

#[test]
fn security() {
    let security = |api: &mut Api| api.security.clone().unwrap();
    expect(&["security.apiKey.header", "security.apiKey.query", "security.apiKey.cookie"], |api| {
        let mut changed = security(api);
        let key = changed.api_key.as_mut().unwrap();
        (key.header, key.query, key.cookie) = ("a b".to_owned(), "a;b".to_owned(), "é".to_owned());
        api.security = Some(changed);
    });
}

#[test]
fn callbacks_and_scopes() {
    let with = |url: &str, scope: &str| {
        let (url, scope) = (url.to_owned(), scope.to_owned());
        move |api: &mut Api| {
            let oauth2 = api.security.as_mut().unwrap().oauth2.as_mut().unwrap();
            oauth2.scopes = vec!["a".to_owned(), scope];
            let grants = oauth2.grant_types.as_mut().unwrap();
            grants.implicit.as_mut().unwrap().callback_url.clone_from(&url);
            grants.authorization_code.as_mut().unwrap().callback_url = url;
        }
    };
    expect(&[], with("https://app.example/cb", "read:pets"));
    expect(&[], with("app.example://cb", "b"));
    let both = [
        "security.oauth2.grantTypes.authorizationCode.callbackUrl",
        "security.oauth2.grantTypes.implicit.callbackUrl",
    ];
    for bad in ["/cb", "javascript:alert(1)", "https://a b", "data:text/html,x"] {
        expect(&both, with(bad, "b"));
    }
    expect(&["security.oauth2.scopes[1]"], with("", "a b"));
    expect(&["security.oauth2.scopes[1]"], with("", ""));
}

#[test]
fn cross_origin_rules() {
    let with = |origins: &str, methods: &str, headers: &str, credentials: bool| {
        let cors = Cors {
            allow_origins: origins.to_owned(),
            allow_methods: methods.to_owned(),
            allow_headers: headers.to_owned(),
            expose_headers: headers.to_owned(),
            allow_credentials: credentials,
            ..Cors::default()
        };
        move |api: &mut Api| api.cors = Some(cors)
    };
    expect(&[], with("*", "*", "*", false));
    expect(&[], with("https://a.example , http://*.b.example:81", "GET,PATCH", "x-a, x-b", true));
    expect(&["cors.allowCredentials"], with("*", "", "", true));
    expect(&["cors.allowCredentials"], with("https://a.example, * ", "", "", true));
    let headers = ["cors.allowHeaders", "cors.exposeHeaders"];
    expect(&headers, with("", "", "a:b", false));
    expect(&["cors.allowMethods"], with("", "get", "", false));
    for bad in ["a.example", "https://a.example/", "https://u@a.example", "https://", "https://a,,https://b"]
    {
        expect(&["cors.allowOrigins"], with(bad, "", "", false));
    }
}

#[test]
fn urls_of_endpoints() {
    for good in [
        "http://a",
        "HTTPS://a.example:8443/x?y=z",
        "http://[::1]:80/",
        "http://10.0.0.1",
        "http://münchen.example",
    ] {
        expect(&[], |api| api.backend_services[0].endpoints[0].url = good.to_owned());
    }
    for bad in [
        "",
        "a",
        "//a",
        "/a",
        "ftp://a",
        "http://",
        "http:a",
        "http:///a",
        "http://?a",
        "http://a b",
        "https:\\\\a",
        "http://a#b",
        "http://u:p@a",
        "http://u@a",
        "http://{host}/",
        "javascript:x",
        "ws://a",
        "http://a:99999",
        &format!("http://{}", "a".repeat(2_048)),
    ] {
        let found = {
            let mut api = good();
            api.backend_services[0].endpoints[0].url = bad.to_owned();
            broken(api)
        };
        assert!(!found.is_empty(), "{bad}");
        assert!(
            found.iter().all(|field| field == "backend-services[0].endpoints[0].url"),
            "{bad}: {found:?}"
        );
    }
}

#[test]
fn backends() {
    expect(&["backend-services[0].endpoints"], |api| api.backend_services[0].endpoints.clear());
    expect(&["backend-services[0].name"], |api| api.backend_services[0].name.clear());
    expect(&["backend-services[1].name", "backend-services[1].isDefault"], |api| {
        api.backend_services[0].is_default = true;
        let twin = api.backend_services[0].clone();
        api.backend_services.push(twin);
    });
    expect(&["backend-services[0].endpoints[1].url"], |api| {
        api.backend_services[0].endpoints.push(endpoint("https://pets.example"));
    });
    expect(
        &[
            "backend-services[0].retries",
            "backend-services[0].timeout.read",
            "backend-services[0].loadBalance.algorithm",
            "backend-services[0].endpoints[0].weight",
            "backend-services[0].endpoints[0].healthCheck.interval",
        ],
        |api| {
            let backend = &mut api.backend_services[0];
            backend.retries = 11;
            backend.timeout.as_mut().unwrap().read = 3_600_001;
            backend.load_balance.as_mut().unwrap().algorithm = "best".to_owned();
            backend.endpoints[0].weight = 101;
            backend.endpoints[0].health_check.as_mut().unwrap().interval = 86_401;
        },
    );
    expect(&["backend-services"], |api| {
        api.backend_services = (0..101)
            .map(|i| BackendService {
                name: format!("b{i}"),
                endpoints: vec![endpoint("http://a")],
                ..BackendService::default()
            })
            .collect();
    });
    expect(&["backend-services[0].endpoints"], |api| {
        api.backend_services[0].endpoints = (0..101).map(|i| endpoint(&format!("http://a{i}"))).collect();
    });
}

#[test]
fn operations() {
    expect(&["operations[0].request"], |api| api.operations[0].request = None);
    expect(&["operations[2].request.path"], |api| api.operations.push(operation("GET", "/a")));
    for bad in ["get", "TRACE", "FOO", ""] {
        expect(&["operations[0].request.method"], |api| request(api).method = bad.to_owned());
    }
    for bad in ["", "a", "/a b", "/a?b", "/a#b", &format!("/{}", "a".repeat(2_048))] {
        expect(&["operations[0].request.path"], |api| request(api).path = bad.to_owned());
    }
    expect(&["operations[0].name", "operations[0].description"], |api| {
        api.operations[0].name = "n".repeat(257);
        api.operations[0].description = "d".repeat(32_767);
    });
    expect(&["operations"], |api| {
        api.operations = (0..2_001).map(|i| operation("GET", &format!("/{i}"))).collect();
    });
    expect(&["operations[0].request.authentication.scopes[0]"], |api| {
        let authentication = OperationAuthentication { scopes: vec!["a b".to_owned()], required: true };
        request(api).authentication = Some(authentication);
    });
}

#[test]
fn operations_name_existing_backends_once() {
    let refers = |names: &[&str], weight: u32| {
        let refers: Vec<BackendRef> =
            names.iter().map(|name| BackendRef { name: (*name).to_owned(), weight }).collect();
        move |api: &mut Api| request(api).backend_services = refers
    };
    expect(&[], refers(&["main"], 100));
    expect(&["operations[0].request.backend-services[0].name"], refers(&["Main"], 0));
    expect(&["operations[0].request.backend-services[1].name"], refers(&["main", "main"], 0));
    expect(&["operations[0].request.backend-services[0].weight"], refers(&["main"], 101));
}

#[test]
fn policies() {
    let with = |name: &str, key: &str, value: &str| {
        let params = [(key.to_owned(), value.to_owned())].into();
        let policy = PolicyRef { name: name.to_owned(), params };
        move |api: &mut Api| {
            request(api).request_policies = vec![policy.clone()];
            request(api).response_policies = vec![policy];
        }
    };
    let both = |field: &str| {
        ["requestPolicies", "responsePolicies"].map(|list| format!("operations[0].request.{list}[0].{field}"))
    };
    expect(&[], with("set-header", "name", "x\ny"));
    for (field, name, key, value) in [
        ("name", "", "k", "v"),
        ("params", "p", "", "v"),
        ("params", "p", "a\0", "v"),
        ("params.k", "p", "k", "\0"),
        ("params.k", "p", "k", &"v".repeat(8_193)),
    ] {
        let expected = both(field);
        expect(&expected.each_ref().map(String::as_str), with(name, key, value));
    }
    expect(&["operations[0].request.requestPolicies"], |api| {
        let policy = PolicyRef { name: "p".to_owned(), ..PolicyRef::default() };
        request(api).request_policies = vec![policy; 51];
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// Whatever is accepted is in its final form: it is accepted again and stays as it is.
    #[test]
    fn accepting_twice_changes_nothing(name in any::<String>(), context in "[ -~é]{0,12}", version in "[ -~]{0,6}") {
        let mut api = Api { name, context, version, ..good() };
        if accept(&mut api, None).is_ok() {
            let once = api.clone();
            assert!(accept(&mut api, Some(&once)).is_ok());
            assert_eq!(api, once);
            assert!(once.context.starts_with('/') && !once.name.is_empty());
        }
    }
}
