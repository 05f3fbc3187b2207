//! The routes that answer with what the platform has, and the forms of artifacts.

use proto::{
    gateway::{
        FetchApiRequest, FetchBatchRequest, GetSecretValueRequest, ListApiKeysRequest,
        ListApiSubscriptionsRequest, ListGatewayDeploymentsRequest, ListSecretsRequest,
        ListSubscriptionPlansRequest, PutManifestRequest,
    },
    google::api::HttpBody,
    project::{Artifact, DesiredDeployment},
    time::Timestamp,
};
use tonic::{Code, Request};

use crate::{
    gateway::TestGateway,
    harness::{World, reason, until, with_key, worlds},
};

fn accepting<T>(token: &str, accept: &str, message: T) -> Request<T> {
    let mut request = with_key(token, message);
    request.metadata_mut().insert("tollgate-client-accept", accept.parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_platform_has_none_of_is_an_empty_list() {
    for world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        let token = token.token.as_str();
        let secrets = ListSecretsRequest { include_values: true };
        let secrets = world.internal().list_secrets(with_key(token, secrets)).await.unwrap().into_inner();
        assert_eq!((secrets.list.len(), secrets.count), (0, 0));
        let value = GetSecretValueRequest { handle: "h".into() };
        let status = world.internal().get_secret_value(with_key(token, value)).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        let plans = with_key(token, ListSubscriptionPlansRequest {});
        assert!(world.internal().list_subscription_plans(plans).await.unwrap().into_inner().plans.is_empty());
        let keys = async |collection: &str| {
            let request = ListApiKeysRequest { collection: collection.into(), issuer: "i".into() };
            let answer = world.internal().list_api_keys(with_key(token, request)).await;
            answer.map(|answer| answer.into_inner().keys.len()).map_err(|status| status.code())
        };
        for known in ["", "apis", "websub-apis", "webbroker-apis", "llm-providers", "llm-proxies"] {
            assert_eq!(keys(known).await, Ok(0), "{known}");
        }
        assert_eq!(keys("deployments").await, Err(Code::NotFound));
        let status = world.internal().list_secrets(Request::new(ListSecretsRequest::default())).await;
        assert_eq!(status.unwrap_err().code(), Code::Unauthenticated);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_are_told_to_gateways_with_the_api() {
    for world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        let (here, elsewhere) = (world.ids.next(), world.ids.next());
        let artifact =
            |api_id: &str| Artifact { api_id: api_id.into(), deployment_id: world.ids.next(), yaml: vec![] };
        world.project.artifacts.lock().unwrap().extend([artifact(&here), artifact(&elsewhere)]);
        let desired = DesiredDeployment { api_id: here.clone(), ..DesiredDeployment::default() };
        world.project.desired.lock().unwrap().push(desired);
        let list = async |api_id: &str| {
            let request = with_key(&token.token, ListApiSubscriptionsRequest { api_id: api_id.into() });
            let answer = world.internal().list_api_subscriptions(request).await;
            answer.map(|answer| answer.into_inner().subscriptions.len()).map_err(|status| status.code())
        };
        assert_eq!(list(&here).await, Ok(0));
        assert_eq!(list(&elsewhere).await, Err(Code::PermissionDenied));
        for unknown in [world.ids.next().as_str(), "local-api", ""] {
            assert_eq!(list(unknown).await, Err(Code::NotFound), "{unknown}");
        }
        // Nothing is proven: a gateway must not give up.
        world.project.set_down(true);
        assert_eq!(list(&here).await, Err(Code::Unavailable));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_comes_in_the_form_that_is_asked_for() {
    for world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        let token = token.token.as_str();
        let known = Artifact {
            api_id: world.ids.next(),
            deployment_id: world.ids.next(),
            yaml: b"kind: RestApi\n".to_vec(),
        };
        world.project.artifacts.lock().unwrap().push(known.clone());
        let fetch = async |accept: &str| {
            let request = FetchApiRequest { api_id: known.api_id.clone() };
            world
                .internal()
                .fetch_api(accepting(token, accept, request))
                .await
                .map(tonic::Response::into_inner)
        };
        for yaml in
            ["application/yaml", "application/x-yaml", "text/yaml", "application/zip;q=0.1, text/yaml"]
        {
            let body = fetch(yaml).await.unwrap();
            assert_eq!(
                (body.content_type.as_str(), body.data),
                ("application/yaml", known.yaml.clone()),
                "{yaml}"
            );
        }
        for zip in ["application/zip", "*/*", "", "application/json, */*;q=0.1"] {
            let body = fetch(zip).await.unwrap();
            assert_eq!(
                (body.content_type.as_str(), &body.data[..2]),
                ("application/zip", &b"PK"[..]),
                "{zip}"
            );
        }
        let status = fetch("application/json").await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "NOT_ACCEPTABLE"));
        assert!(status.message().contains("application/zip"), "{status:?}");

        let batch = async |accept: &str| {
            let request = FetchBatchRequest { deployment_ids: vec![known.deployment_id.clone()] };
            world.internal().fetch_batch(accepting(token, accept, request)).await
        };
        for good in ["application/x-tar+gzip", "*/*", "application/*"] {
            assert_eq!(batch(good).await.unwrap().into_inner().content_type, "application/x-tar+gzip");
        }
        assert_eq!(reason(&batch("application/zip").await.unwrap_err()), "NOT_ACCEPTABLE");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_begins_after_a_time() {
    for world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        let at = |ms: i64| Some(Timestamp::from_unix_ms(1_766_000_000_000 + ms));
        let desired = |ms| DesiredDeployment {
            api_id: world.ids.next(),
            deployment_id: world.ids.next(),
            deployed: true,
            requested_at: at(ms),
            ..DesiredDeployment::default()
        };
        *world.project.desired.lock().unwrap() = vec![desired(1), desired(2), desired(3)];
        for (since, count) in [(None, 3), (at(0), 3), (at(1), 2), (at(2), 1), (at(3), 0)] {
            let request = with_key(&token.token, ListGatewayDeploymentsRequest { since });
            let list = world.internal().list_gateway_deployments(request).await.unwrap().into_inner();
            assert_eq!(list.deployments.len(), count, "{since:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_tells_the_version_of_the_live_connection() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let _link = TestGateway::connect(&world, &token.token).await;
        put_manifest(&world, &gateway.id, &token.token).await;
        until("the connection has it", async || versions(&world).await == ["1.3.0"]).await;
    }
}

async fn put_manifest(world: &World, gateway_id: &str, token: &str) {
    let data = br#"{"version":"1.3.0","functionalityType":"ai","policies":null}"#.to_vec();
    let manifest = Some(HttpBody { content_type: "application/json".into(), data });
    let request = PutManifestRequest { gateway_id: gateway_id.into(), manifest };
    world.internal().put_manifest(with_key(token, request)).await.unwrap();
}

async fn versions(world: &World) -> Vec<String> {
    const SQL: &str = "SELECT version FROM connections";
    match world.database().await {
        service_kit::db::Database::Sqlite(pool) => {
            sqlx::query_scalar(SQL).fetch_all(pool.read()).await.unwrap()
        }
        service_kit::db::Database::Postgres(pool) => {
            sqlx::query_scalar(SQL).fetch_all(pool.read()).await.unwrap()
        }
    }
}
