use std::collections::HashMap;

use prost::Message as _;
use prost_reflect::{DynamicMessage, ReflectMessage as _, Value};
use proto::{
    Contract,
    project::{
        Api, ApiKeySecurity, ApiRateLimiting, AuthorizationCodeGrant, BackendRef, BackendService,
        BackendTimeout, CircuitBreaker, ClientCredentialsGrant, Cors, CreateApiRequest, Endpoint,
        GetApiRequest, GrantTypes, HealthCheck, ImplicitGrant, ListApisRequest, LoadBalance, Mtls,
        Oauth2Security, Operation, OperationAuthentication, OperationRequest, PasswordGrant, PolicyRef,
        Security, UpdateApiRequest,
        api::{LifeCycleStatus, Type},
        api_rate_limiting::TimeUnit,
    },
};

use crate::harness::Service;

pub(crate) const CERT: &str = "-----BEGIN CERTIFICATE-----\nY2VydA==\n-----END CERTIFICATE-----\n";

/// An API in which every field that a client may set is set.
pub(crate) fn full_api(key: &str) -> Api {
    Api {
        name: "Pet Store".to_owned(),
        display_name: "The Pet Store".to_owned(),
        description: "Pets,\nof all kinds: \"quoted\" — ünïcödé 🐕".to_owned(),
        context: "/pets/{tenant}".to_owned(),
        version: "v1.2-beta_3".to_owned(),
        provider: "Zoo & Co".to_owned(),
        life_cycle_status: LifeCycleStatus::Published.into(),
        has_thumbnail: true,
        is_default_version: true,
        r#type: Type::Graphql.into(),
        transport: vec!["https".to_owned(), "wss".to_owned()],
        mtls: Some(full_mtls(key)),
        security: Some(full_security()),
        cors: Some(Cors {
            enabled: true,
            allow_origins: "https://a.example, https://*.b.example:8443".to_owned(),
            allow_methods: "GET, POST".to_owned(),
            allow_headers: "authorization, x-request-id".to_owned(),
            expose_headers: "*".to_owned(),
            max_age: 600,
            allow_credentials: true,
        }),
        backend_services: vec![full_backend(key), small_backend()],
        api_rate_limiting: Some(ApiRateLimiting {
            enabled: true,
            rate_limit_count: 1_000,
            rate_limit_time_unit: TimeUnit::Hour.into(),
            stop_on_quota_reach: true,
        }),
        operations: vec![full_operation("GET"), full_operation("POST")],
        ..Api::default()
    }
}

fn full_mtls(key: &str) -> Mtls {
    Mtls {
        enabled: true,
        enforce_if_client_cert_present: true,
        verify_client: true,
        client_cert: CERT.to_owned(),
        client_key: key.to_owned(),
        ca_cert: CERT.to_owned(),
    }
}

fn full_security() -> Security {
    let callback_url = "https://app.example/callback?x=1".to_owned();
    Security {
        enabled: true,
        api_key: Some(ApiKeySecurity {
            enabled: true,
            header: "X-API-Key".to_owned(),
            query: "apikey".to_owned(),
            cookie: "key".to_owned(),
        }),
        oauth2: Some(Oauth2Security {
            grant_types: Some(GrantTypes {
                authorization_code: Some(AuthorizationCodeGrant {
                    enabled: true,
                    callback_url: callback_url.clone(),
                }),
                implicit: Some(ImplicitGrant { enabled: true, callback_url }),
                password: Some(PasswordGrant { enabled: true }),
                client_credentials: Some(ClientCredentialsGrant { enabled: true }),
            }),
            scopes: vec!["read:pets".to_owned(), "write:pets".to_owned()],
        }),
    }
}

fn full_backend(key: &str) -> BackendService {
    BackendService {
        name: "main".to_owned(),
        is_default: true,
        endpoints: vec![Endpoint {
            url: "https://pets.example:8443/v1?x=y".to_owned(),
            description: "the first".to_owned(),
            health_check: Some(HealthCheck {
                enabled: true,
                interval: 10,
                timeout: 2,
                unhealthy_threshold: 3,
                healthy_threshold: 4,
            }),
            weight: 70,
            mtls: Some(full_mtls(key)),
        }],
        timeout: Some(BackendTimeout { connect: 1_000, read: 30_000, write: 5_000 }),
        retries: 3,
        load_balance: Some(LoadBalance { algorithm: "weighted".to_owned(), failover: true }),
        circuit_breaker: Some(CircuitBreaker {
            enabled: true,
            max_connections: 100,
            max_pending_requests: 50,
            max_requests: 200,
            max_retries: 5,
        }),
    }
}

fn small_backend() -> BackendService {
    let endpoint = Endpoint { url: "http://10.0.0.7".to_owned(), ..Endpoint::default() };
    BackendService { name: "spare".to_owned(), endpoints: vec![endpoint], ..BackendService::default() }
}

fn full_operation(method: &str) -> Operation {
    let policy = |name: &str| PolicyRef {
        name: name.to_owned(),
        params: HashMap::from([("header".to_owned(), "x".to_owned()), ("value".to_owned(), String::new())]),
    };
    Operation {
        name: format!("{method} pet"),
        description: "One pet.\nOr none.".to_owned(),
        request: Some(OperationRequest {
            method: method.to_owned(),
            path: "/pets/{id}".to_owned(),
            backend_services: vec![
                BackendRef { name: "main".to_owned(), weight: 80 },
                BackendRef { name: "spare".to_owned(), weight: 20 },
            ],
            authentication: Some(OperationAuthentication {
                required: true,
                scopes: vec!["read:pets".to_owned()],
            }),
            request_policies: vec![policy("set-header"), policy("log")],
            response_policies: vec![policy("remove-header")],
        }),
    }
}

/// Names every field of a message, and of the first of each list in it, that is not set.
fn unset(message: &DynamicMessage, path: &str, found: &mut Vec<String>) {
    for field in message.descriptor().fields() {
        let path = format!("{path}.{}", field.name());
        if !message.has_field(&field) {
            found.push(path);
            continue;
        }
        let value = message.get_field(&field);
        match value.as_ref() {
            Value::Message(inner) => unset(inner, &path, found),
            Value::List(list) => {
                if let Some(Value::Message(inner)) = list.first() {
                    unset(inner, &path, found);
                }
            }
            _ => {}
        }
    }
}

#[test]
fn the_full_api_is_full() {
    let descriptor = Contract::get().pool().get_message_by_name("tollgate.project.v1.Api").unwrap();
    let bytes = full_api(CERT).encode_to_vec();
    let mut found = Vec::new();
    unset(&DynamicMessage::decode(descriptor, bytes.as_slice()).unwrap(), "", &mut found);
    let output = [
        ".id",
        ".project_id",
        ".created_at",
        ".updated_at",
        ".is_revision",
        ".revisioned_api_id",
        ".revision_id",
    ];
    assert_eq!(found, output, "a field of the model is not in the round trip");
}

#[tokio::test]
async fn every_field_is_read_back() {
    Service::on_both(async |service| {
        let (owner, organization, project) = service.owner().await;
        let mut client = owner.apis(&service);
        let sent = full_api("");
        let new = CreateApiRequest { project_id: project.clone(), api: Some(sent.clone()) };
        let made = client.create_api(new).await.unwrap().into_inner();
        let expected = Api {
            id: made.id.clone(),
            project_id: project.clone(),
            created_at: made.created_at,
            updated_at: made.created_at,
            ..sent
        };
        assert!(service_kit::id::is_id(&made.id) && made.created_at.is_some());
        assert_eq!(made, expected);
        let get = GetApiRequest { api_id: made.id.clone() };
        assert_eq!(client.get_api(get.clone()).await.unwrap().into_inner(), expected);
        let list = ListApisRequest { project_id: project, ..Default::default() };
        let summary = Api { backend_services: vec![], operations: vec![], ..expected.clone() };
        assert_eq!(client.list_apis(list).await.unwrap().into_inner().list, [summary]);
        // A second service on the same database reads the same.
        let stored = service.stores().await.apis.api(&made.id).await.unwrap().unwrap();
        assert_eq!((stored.api, stored.organization_id), (expected.clone(), organization.id));

        // What was read may be sent back, and changes nothing but the time.
        let change = UpdateApiRequest { api_id: made.id.clone(), api: Some(expected.clone()) };
        let mut changed = client.update_api(change).await.unwrap().into_inner();
        assert!(changed.updated_at >= expected.updated_at);
        assert_eq!(client.get_api(get).await.unwrap().into_inner(), changed);
        changed.updated_at = expected.updated_at;
        assert_eq!(changed, expected);
    })
    .await;
}

#[tokio::test]
async fn what_is_left_out_gets_its_default() {
    Service::on_both(async |service| {
        let (owner, _, project) = service.owner().await;
        let api = Api {
            name: "Small".to_owned(),
            context: "small/".to_owned(),
            version: "1".to_owned(),
            api_rate_limiting: Some(ApiRateLimiting::default()),
            backend_services: vec![BackendService {
                load_balance: Some(LoadBalance::default()),
                ..small_backend()
            }],
            // Only the server says these.
            id: service.ids.next(),
            is_revision: true,
            revisioned_api_id: service.ids.next(),
            revision_id: 7,
            created_at: Some(proto::time::Timestamp::from_unix_ms(1)),
            project_id: project.clone(),
            ..Api::default()
        };
        let brought = api.id.clone();
        let new = CreateApiRequest { project_id: String::new(), api: Some(api) };
        let made = owner.apis(&service).create_api(new).await.unwrap().into_inner();
        assert_ne!(made.id, brought);
        assert!(made.created_at.unwrap().unix_ms() > 1);
        assert_eq!((made.display_name.as_str(), made.context.as_str()), ("Small", "/small"));
        assert_eq!(made.life_cycle_status(), LifeCycleStatus::Created);
        assert_eq!(made.r#type(), Type::Http);
        assert_eq!(made.transport, ["http", "https"]);
        assert_eq!(made.api_rate_limiting.unwrap().rate_limit_time_unit(), TimeUnit::Minute);
        assert_eq!(made.backend_services[0].load_balance.as_ref().unwrap().algorithm, "round-robin");
        assert!(!made.is_revision && made.revisioned_api_id.is_empty() && made.revision_id == 0);
        assert_eq!(made.project_id, project);
    })
    .await;
}
