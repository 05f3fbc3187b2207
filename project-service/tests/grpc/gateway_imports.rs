//! APIs that gateways hand over.

use proto::{
    project::{
        ApisExistRequest, ArtifactImport, DeleteApiRequest, DeployRevisionRequest, DeploymentStatus,
        DeploymentTarget, GetApiRequest, GetArtifactsRequest, ImportArtifactsRequest, ImportedArtifact,
        ListDeploymentsRequest, ListDesiredRequest, ListRevisionsRequest,
        desired_state_service_client::DesiredStateServiceClient,
    },
    time::Timestamp,
};
use serde_json::{Value, json};
use service_kit::client::Upstream;
use tonic::Code;

use crate::{
    fake_gateways::FakeGateways,
    harness::{Service, fields, refused},
};

/// When the gateway says that it deployed what it hands over.
const AT: i64 = 1_766_000_000_007;

fn configuration(project: &str, name: &str) -> Value {
    json!({
        "apiVersion": "gateway.api-platform.wso2.com/v1",
        "kind": "RestApi",
        "metadata": {
            "name": format!("{name}-handle"),
            "annotations": {"gateway.api-platform.wso2.com/project-id": project}
        },
        "spec": {
            "displayName": name,
            "version": "v1.0",
            "context": format!("/{name}"),
            "upstream": {"main": {"url": "https://weather.test"}},
            "policies": [{"name": "jwt-auth", "version": "v1"}],
            "operations": [{"method": "GET", "path": "/a", "policies": [{"name": "cors", "version": "v1"}]}]
        }
    })
}

fn artifact(dpid: &str, configuration: &Value, deployed: bool) -> ImportedArtifact {
    ImportedArtifact {
        dpid: dpid.to_owned(),
        configuration_json: configuration.to_string(),
        deployed,
        deployed_at: Some(Timestamp::from_unix_ms(AT)),
    }
}

fn client(service: &Service) -> DesiredStateServiceClient<Upstream> {
    DesiredStateServiceClient::new(service.channel_of("gateway-service"))
}

async fn import(
    service: &Service,
    organization: &str,
    gateway: &str,
    artifacts: Vec<ImportedArtifact>,
) -> Vec<ArtifactImport> {
    let request = ImportArtifactsRequest {
        organization_id: organization.to_owned(),
        gateway_id: gateway.to_owned(),
        artifacts,
    };
    client(service).import_artifacts(request).await.unwrap().into_inner().artifacts
}

async fn yaml(service: &Service, gateway: &str, api: &str) -> Option<Value> {
    let request = GetArtifactsRequest {
        gateway_id: gateway.to_owned(),
        api_id: api.to_owned(),
        ..GetArtifactsRequest::default()
    };
    let found = client(service).get_artifacts(request).await.unwrap().into_inner().artifacts;
    found.first().map(|artifact| serde_norway::from_slice(&artifact.yaml).unwrap())
}

#[tokio::test]
async fn an_artifact_becomes_an_api_that_runs_already() {
    Service::on_both(async |service| {
        let (owner, organization, project) = service.owner().await;
        let gateway = service.ids.next();
        let (running, stopped) = (configuration(&project, "weather"), configuration(&project, "stopped"));
        let artifacts = || vec![artifact("g-1", &running, true), artifact("g-2", &stopped, false)];
        let made = import(&service, &organization.id, &gateway, artifacts()).await;
        assert_eq!(made.iter().map(|one| one.dpid.as_str()).collect::<Vec<_>>(), ["g-1", "g-2"]);
        assert!(made.iter().all(|one| one.error.is_empty()), "{made:?}");
        assert_eq!(
            (made[0].event_type.as_str(), made[1].event_type.as_str()),
            ("api.deployed", "api.undeployed")
        );
        assert_eq!(made[0].performed_at, Some(Timestamp::from_unix_ms(AT)));
        let payload: Value = serde_json::from_str(&made[0].payload_json).unwrap();
        assert_eq!(
            (&payload["apiId"], &payload["deploymentId"]),
            (&json!(made[0].api_id), &json!(made[0].deployment_id))
        );

        // The API is one like any other.
        let api = GetApiRequest { api_id: made[0].api_id.clone() };
        let api = owner.apis(&service).get_api(api).await.unwrap().into_inner();
        assert_eq!(
            (api.name.as_str(), api.context.as_str(), api.version.as_str()),
            ("weather", "/weather", "v1.0")
        );
        assert_eq!((api.project_id.as_str(), api.operations.len()), (project.as_str(), 1));
        let revisions = ListRevisionsRequest { api_id: api.id.clone(), ..Default::default() };
        let revisions = owner.apis(&service).list_revisions(revisions).await.unwrap().into_inner().list;
        assert_eq!(revisions.len(), 1);
        let state = async |api: &str| {
            let list = ListDeploymentsRequest { api_id: api.to_owned(), ..Default::default() };
            let mut list =
                owner.deployments(&service).list_deployments(list).await.unwrap().into_inner().list;
            assert_eq!(list.len(), 1);
            list.remove(0)
        };
        let deployment = state(&api.id).await;
        assert_eq!(
            (deployment.status(), &deployment.id),
            (DeploymentStatus::Deployed, &made[0].deployment_id)
        );
        assert_eq!(deployment.success_deployed_time, Some(Timestamp::from_unix_ms(AT)));
        assert_eq!((&deployment.gateway_id, &deployment.revision_id), (&gateway, &revisions[0].id));
        assert_eq!(state(&made[1].api_id).await.status(), DeploymentStatus::Undeployed);
        let desired = ListDesiredRequest { gateway_id: gateway.clone(), vhost: String::new() };
        let desired = client(&service).list_desired(desired).await.unwrap().into_inner().deployments;
        assert_eq!(desired.iter().map(|one| one.deployed).collect::<Vec<_>>(), [true, false]);

        // Its artifact has what protects it.
        let read = yaml(&service, &gateway, &api.id).await.unwrap();
        assert_eq!(read["metadata"]["name"], "weather-handle");
        for part in ["policies", "operations"] {
            assert_eq!(read["spec"][part], running["spec"][part]);
        }
        assert_eq!(yaml(&service, &gateway, &made[1].api_id).await, None, "it is not to run");

        // Again, in another order and changed meanwhile, is the same.
        let mut again = artifacts();
        again[0].configuration_json = configuration(&project, "renamed").to_string();
        again.reverse();
        let mut again = import(&service, &organization.id, &gateway, again).await;
        again.reverse();
        assert_eq!(again, made);
    })
    .await;
}

#[tokio::test]
async fn a_new_revision_keeps_what_the_gateway_had() {
    FakeGateways::on_both(async |service, gateways| {
        let (owner, organization, project) = service.owner().await;
        let (first, second) =
            (gateways.add(&service, &organization.id, true), gateways.add(&service, &organization.id, true));
        let given = configuration(&project, "weather");
        let made = import(&service, &organization.id, &first, vec![artifact("g-1", &given, true)]).await;
        let target = DeploymentTarget { gateway_id: second.clone(), ..DeploymentTarget::default() };
        let request = DeployRevisionRequest {
            api_id: made[0].api_id.clone(),
            deployments: vec![target],
            ..DeployRevisionRequest::default()
        };
        owner.deployments(&service).deploy_revision(request).await.unwrap();
        let events = gateways.events(1).await;
        assert_eq!(events.len(), 1, "the import told nobody");
        assert_eq!(events[0].gateway_id, second);
        let read = yaml(&service, &second, &made[0].api_id).await.unwrap();
        assert_eq!(read["spec"]["policies"], given["spec"]["policies"]);
    })
    .await;
}

#[tokio::test]
async fn one_bad_artifact_keeps_no_other_out() {
    Service::on_both(async |service| {
        let (owner, organization, project) = service.owner().await;
        let (_, _, elsewhere) = service.owner().await;
        let gateway = service.ids.next();
        let taken = service.api(&owner, &project, "taken").await;
        let mut clash = configuration(&project, "taken");
        clash["spec"]["version"] = json!(taken.version);
        let mut kind = configuration(&project, "k");
        kind["kind"] = json!("LlmProvider");
        let mut late = artifact("late", &configuration(&project, "late"), true);
        late.deployed_at = Some(Timestamp::from_unix_ms(253_402_300_799_000));
        let mut never = artifact("never", &configuration(&project, "never"), true);
        never.deployed_at = None;
        let artifacts = vec![
            artifact("", &configuration(&project, "a"), true),
            artifact(&"x".repeat(129), &configuration(&project, "a"), true),
            artifact("kind", &kind, true),
            artifact("elsewhere", &configuration(&elsewhere, "b"), true),
            artifact("nowhere", &configuration(&service.ids.next(), "b"), true),
            artifact("clash", &clash, true),
            late,
            never,
            ImportedArtifact { configuration_json: "{".into(), ..artifact("json", &Value::Null, true) },
            artifact("good", &configuration(&project, "good"), true),
            artifact("twin", &configuration(&project, "good"), true),
        ];
        let answers = import(&service, &organization.id, &gateway, artifacts).await;
        let expected = [
            "dpid is required",
            "dpid must have 1 to 128 characters",
            "configuration.kind must be RestApi",
            "configuration.metadata.annotations[gateway.api-platform.wso2.com/project-id] must be the id",
            "configuration.metadata.annotations[gateway.api-platform.wso2.com/project-id] must be the id",
            "configuration.spec.displayName together with the others belongs to another API",
            "deployedAt must not be more than a day ahead",
            "deployedAt must be a time after 1970",
            "configuration cannot be read",
            "",
            "configuration.spec.displayName together with the others belongs to another API",
        ];
        for (answer, expected) in answers.iter().zip(expected) {
            assert_eq!(answer.error.is_empty(), expected.is_empty(), "{answer:?}");
            assert!(answer.error.starts_with(expected), "{answer:?}");
            assert_eq!(answer.api_id.is_empty(), answer.deployment_id.is_empty());
        }
        assert_eq!(answers.len(), expected.len());
        let good = answers[9].api_id.clone();
        let ask = ApisExistRequest { organization_id: organization.id.clone(), api_ids: vec![good.clone()] };
        assert_eq!(client(&service).apis_exist(ask).await.unwrap().into_inner().api_ids, [good]);

        let mut request = ImportArtifactsRequest {
            organization_id: organization.id.clone(),
            gateway_id: gateway.clone(),
            artifacts: vec![artifact("a", &Value::Null, true); 101],
        };
        let error = refused(client(&service).import_artifacts(request.clone()).await, Code::InvalidArgument);
        assert_eq!(fields(&error), ["artifacts"]);
        request.artifacts.clear();
        request.gateway_id = "g".into();
        let error = refused(client(&service).import_artifacts(request).await, Code::InvalidArgument);
        assert_eq!(fields(&error), ["gatewayId"]);
    })
    .await;
}

#[tokio::test]
async fn imports_at_once_make_one_api() {
    Service::on_both(async |service| {
        let (_, organization, project) = service.owner().await;
        let gateway = service.ids.next();
        let artifacts: Vec<_> = (0..20)
            .map(|n| artifact(&format!("g-{n}"), &configuration(&project, &format!("api{n}")), true))
            .collect();
        let mut backwards = artifacts.clone();
        backwards.reverse();
        let (one, mut two) = tokio::join!(
            import(&service, &organization.id, &gateway, artifacts),
            import(&service, &organization.id, &gateway, backwards),
        );
        two.reverse();
        assert!(one.iter().all(|one| one.error.is_empty()), "{one:?}");
        assert_eq!(one, two);
    })
    .await;
}

#[tokio::test]
async fn an_imported_api_that_was_deleted_is_imported_anew() {
    Service::on_both(async |service| {
        let (owner, organization, project) = service.owner().await;
        let gateway = service.ids.next();
        let artifacts = || vec![artifact("g-1", &configuration(&project, "weather"), false)];
        let first = import(&service, &organization.id, &gateway, artifacts()).await;
        let gone = DeleteApiRequest { api_id: first[0].api_id.clone() };
        owner.apis(&service).delete_api(gone).await.unwrap();
        let second = import(&service, &organization.id, &gateway, artifacts()).await;
        assert!(second[0].error.is_empty() && second[0].api_id != first[0].api_id, "{second:?}");
    })
    .await;
}
