//! What gateways fetch over HTTPS, and what they say of themselves.

use std::io::{Cursor, Read as _};

use proto::{
    gateway::{
        ArtifactsExistRequest, FetchApiRequest, FetchBatchRequest, GetGatewayRequest,
        ListGatewayDeploymentsRequest, PutManifestRequest,
    },
    google::api::HttpBody,
    project::{Artifact, DesiredDeployment},
    time::Timestamp,
};
use tonic::Code;

use crate::{
    gateway::{TestGateway, performed_at},
    harness::{ADMIN, World, fields, until, with_key, worlds},
};

fn artifact(world: &World, yaml: &str) -> Artifact {
    Artifact { api_id: world.ids.next(), deployment_id: world.ids.next(), yaml: yaml.to_owned().into_bytes() }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_artifact_is_a_zip() {
    for world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        let known = artifact(&world, "kind: RestApi\n");
        world.project.artifacts.lock().unwrap().push(known.clone());
        let fetch = |api_id: &str| with_key(&token.token, FetchApiRequest { api_id: api_id.into() });
        let body = world.internal().fetch_api(fetch(&known.api_id)).await.unwrap().into_inner();
        assert_eq!(body.content_type, "application/zip");
        let mut archive = zip::ZipArchive::new(Cursor::new(body.data)).unwrap();
        assert_eq!(archive.len(), 1);
        let mut entry = archive.by_index(0).unwrap();
        assert_eq!(entry.name().unwrap(), format!("api-{}.yaml", known.api_id));
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        assert_eq!(text, "kind: RestApi\n");

        for unknown in [world.ids.next().as_str(), "../../etc/passwd", ""] {
            let status = world.internal().fetch_api(fetch(unknown)).await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound);
        }
        world.project.set_down(true);
        let status = world.internal().fetch_api(fetch(&known.api_id)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "a gateway must not take this for an answer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_artifacts_are_a_tar_gz() {
    for world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        let known = [artifact(&world, "a: 1\n"), artifact(&world, &"b: 2\n".repeat(100_000))];
        world.project.artifacts.lock().unwrap().extend(known.clone());
        let fetch =
            |deployment_ids: Vec<String>| with_key(&token.token, FetchBatchRequest { deployment_ids });
        let mut ids: Vec<String> = known.iter().map(|artifact| artifact.deployment_id.clone()).collect();
        ids.extend([world.ids.next(), "\0".into()]);
        let body = world.internal().fetch_batch(fetch(ids)).await.unwrap().into_inner();
        assert_eq!(body.content_type, "application/x-tar+gzip");
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(Cursor::new(body.data)));
        let mut read = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let (path, mut text) = (entry.path().unwrap().display().to_string(), String::new());
            entry.read_to_string(&mut text).unwrap();
            read.push((path, text));
        }
        let expected: Vec<(String, String)> = known
            .iter()
            .map(|a| {
                let path = format!("{}/api-{}.yaml", a.deployment_id, a.api_id);
                (path, String::from_utf8(a.yaml.to_vec()).unwrap())
            })
            .collect();
        assert_eq!(read, expected);
        for bad in [vec![], vec![world.ids.next(); 51]] {
            let status = world.internal().fetch_batch(fetch(bad)).await.unwrap_err();
            assert_eq!(fields(&status), ["deploymentIds"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_has_the_time_that_the_gateway_knows() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let event = world.deploy(&gateway.id, &world.ids.next());
        let desired = |api_id: &str, deployment_id: &str, deployed| DesiredDeployment {
            api_id: api_id.into(),
            deployment_id: deployment_id.into(),
            revision_id: "r".into(),
            deployed,
            requested_at: Some(Timestamp::from_unix_ms(1_766_000_000_007)),
            ..DesiredDeployment::default()
        };
        let gone = world.ids.next();
        *world.project.desired.lock().unwrap() =
            vec![desired(&event.artifact_id, &event.deployment_id, true), desired(&gone, &gone, false)];
        let list = async |since: Option<Timestamp>| {
            let request = with_key(&token.token, ListGatewayDeploymentsRequest { since });
            world.internal().list_gateway_deployments(request).await.unwrap().into_inner().deployments
        };
        world.append(vec![event.clone()]).await;
        let before = list(None).await;
        assert_eq!(before, list(None).await, "the same question has the same answer");
        assert_eq!((before[0].state.as_str(), before[0].kind.as_str()), ("DEPLOYED", "RestApi"));
        assert_eq!(
            (before[1].state.as_str(), before[1].deployed_at),
            ("UNDEPLOYED", Some(Timestamp::from_unix_ms(1_766_000_000_007)))
        );

        let mut link = TestGateway::connect(&world, &token.token).await;
        let sent = link.event().await;
        assert!(performed_at(&sent) > before[0].deployed_at.unwrap().to_rfc3339().unwrap());
        link.ack(&sent, None).await;
        until("it is acknowledged", async || world.project.reported(&event.deployment_id).len() == 2).await;
        // Another connection, another sending: the time that the gateway acknowledged stays.
        drop(link);
        let after = list(None).await;
        assert_eq!(after[0].deployed_at.unwrap().to_rfc3339().unwrap(), performed_at(&sent));
        assert_ne!(after[0].etag, before[0].etag);
        assert_eq!(after[1], before[1]);
        assert_eq!(list(Some(Timestamp::from_unix_ms(1_766_000_000_007))).await, [after[0].clone()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_follows_a_gateway_that_performs_an_event_twice() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let event = world.deploy(&gateway.id, &world.ids.next());
        *world.project.desired.lock().unwrap() = vec![DesiredDeployment {
            api_id: event.artifact_id.clone(),
            deployment_id: event.deployment_id.clone(),
            deployed: true,
            ..DesiredDeployment::default()
        }];
        let listed = async || {
            let request = with_key(&token.token, ListGatewayDeploymentsRequest { since: None });
            let list = world.internal().list_gateway_deployments(request).await.unwrap().into_inner();
            list.deployments[0].deployed_at.unwrap().to_rfc3339().unwrap()
        };
        world.append(vec![event.clone()]).await;
        let mut old = TestGateway::connect(&world, &token.token).await;
        let first = old.event().await;
        // The answer and the next sending cross on the way.
        let mut new = TestGateway::connect(&world, &token.token).await;
        let second = new.event().await;
        old.ack(&first, None).await;
        until("the first counts", async || listed().await == performed_at(&first)).await;
        new.ack(&second, None).await;
        until("the gateway now knows the second", async || listed().await == performed_at(&second)).await;
        old.ack(&first, None).await;
        new.only(&world, &gateway.id).await;
        assert_eq!(listed().await, performed_at(&second), "it never goes back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_exist_or_not_in_the_order_of_the_question() {
    for world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        let known = artifact(&world, "");
        world.project.artifacts.lock().unwrap().push(known.clone());
        let ask = |artifact_ids: Vec<String>| with_key(&token.token, ArtifactsExistRequest { artifact_ids });
        let asked = vec![world.ids.next(), known.api_id.clone(), "local-api".into()];
        let answer = world.internal().artifacts_exist(ask(asked.clone())).await.unwrap().into_inner();
        let said: Vec<(String, bool)> =
            answer.artifacts.into_iter().map(|artifact| (artifact.artifact_id, artifact.exists)).collect();
        assert_eq!(said, asked.into_iter().zip([false, true, false]).collect::<Vec<_>>());
        let status = world.internal().artifacts_exist(ask(vec![String::new(); 1_001])).await.unwrap_err();
        assert_eq!(fields(&status), ["artifactIds"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_tells_the_version_of_the_tokens_gateway() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let other = world.register("edge-2").await;
        let put = async |json: &str| {
            let manifest = Some(HttpBody {
                content_type: "application/json".into(),
                data: json.to_owned().into_bytes(),
            });
            let request = PutManifestRequest { gateway_id: other.id.clone(), manifest };
            world.internal().put_manifest(with_key(&token.token, request)).await
        };
        put(r#"{"version":"1.2.0","functionalityType":"ai","policies":[{"name":"cors"}]}"#).await.unwrap();
        let version = async |id: &str| {
            let request = world.by(ADMIN, GetGatewayRequest { gateway_id: id.into() });
            world.registry().get_gateway(request).await.unwrap().into_inner().version
        };
        assert_eq!(version(&gateway.id).await, "1.2.0");
        assert_eq!(version(&other.id).await, "", "the path names nobody");
        for bad in ["", "{", "[]", r#"{"version":{}}"#] {
            let status = put(bad).await.unwrap_err();
            assert_eq!(
                (status.code(), fields(&status)),
                (Code::InvalidArgument, vec!["manifest".to_owned()])
            );
        }
        let long = format!(r#"{{"version":"{}"}}"#, "1".repeat(65));
        assert_eq!(fields(&put(&long).await.unwrap_err()), ["manifest.version"]);
        assert_eq!(version(&gateway.id).await, "1.2.0");
    }
}
