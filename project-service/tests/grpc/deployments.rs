mod ends;
mod many;
mod wanted;

use std::{sync::Arc, time::Duration};

use project_service::domain::access::Role;
use proto::{
    gateway::NewEvent,
    project::{
        Api, ApisExistRequest, CreateApiRequest, CreateRevisionRequest, DeleteApiRequest,
        DeployRevisionRequest, Deployment, DeploymentReport, DeploymentStatus, DeploymentTarget,
        DesiredDeployment, GetArtifactsRequest, GetArtifactsResponse, ListDeploymentsRequest,
        ListDesiredRequest, ListRevisionsRequest, ReportDeploymentsRequest, UndeployRevisionRequest,
        desired_state_service_client::DesiredStateServiceClient,
    },
    time::Timestamp,
};
use serde_json::Value;
use service_kit::{client::Upstream, testing::TestDatabase};
use tonic::{Code, Status};

use crate::{
    fake_gateways::FakeGateways,
    harness::{Service, User, fields, refused},
};

/// What a test needs of one organization.
struct World {
    service: Arc<Service>,
    gateways: FakeGateways,
    owner: User,
    organization: String,
    project: String,
}

impl World {
    async fn new(service: Arc<Service>, gateways: FakeGateways) -> Self {
        let (owner, organization, project) = service.owner().await;
        Self { service, gateways, owner, organization: organization.id, project }
    }

    fn gateway(&self, connected: bool) -> String {
        self.gateways.add(&self.service, &self.organization, connected)
    }

    async fn api(&self, name: &str) -> String {
        let api: Api = serde_json::from_value(serde_json::json!({
            "name": name, "context": format!("/{name}"), "version": "1.0.0",
            "backend-services": [{"name": "default", "isDefault": true,
                "endpoints": [{"url": "https://pets.test/v1"}]}],
            "operations": [{"name": "list", "request": {"method": "GET", "path": "/pets"}}],
        }))
        .unwrap();
        let new = CreateApiRequest { project_id: self.project.clone(), api: Some(api) };
        self.owner.apis(&self.service).create_api(new).await.unwrap().into_inner().id
    }

    async fn deploy(
        &self,
        api: &str,
        revision: &str,
        targets: Vec<DeploymentTarget>,
    ) -> Result<Vec<Deployment>, Status> {
        deploy(&self.service, &self.owner, api, revision, targets).await
    }

    async fn undeploy(
        &self,
        api: &str,
        revision: &str,
        targets: Vec<DeploymentTarget>,
    ) -> Result<Vec<Deployment>, Status> {
        let request = UndeployRevisionRequest {
            api_id: api.to_owned(),
            revision_id: revision.to_owned(),
            deployments: targets,
        };
        let answer = self.owner.deployments(&self.service).undeploy_revision(request).await?;
        Ok(answer.into_inner().deployments)
    }

    async fn list(&self, api: &str) -> Vec<Deployment> {
        let request = ListDeploymentsRequest { api_id: api.to_owned(), ..Default::default() };
        self.owner.deployments(&self.service).list_deployments(request).await.unwrap().into_inner().list
    }

    async fn revisions(&self, api: &str) -> Vec<(String, u32)> {
        let request = ListRevisionsRequest { api_id: api.to_owned(), limit: Some(100), offset: 0 };
        let page = self.owner.apis(&self.service).list_revisions(request).await.unwrap().into_inner();
        page.list.into_iter().map(|revision| (revision.id, revision.number)).collect()
    }

    fn desired_state(&self) -> DesiredStateServiceClient<Upstream> {
        DesiredStateServiceClient::new(self.service.channel_of("gateway-service"))
    }

    async fn report(&self, deployment: &Deployment, action: &str, status: DeploymentStatus, reason: &str) {
        let report = DeploymentReport {
            deployment_id: deployment.id.clone(),
            gateway_id: deployment.gateway_id.clone(),
            status: status.into(),
            reason: reason.to_owned(),
            reported_at: Some(Timestamp::from_unix_ms(1_766_000_000_000)),
            action: action.to_owned(),
        };
        let reports = ReportDeploymentsRequest { reports: vec![report] };
        self.desired_state().report_deployments(reports).await.unwrap();
    }

    async fn status(&self, api: &str) -> (DeploymentStatus, String) {
        let list = self.list(api).await;
        assert_eq!(list.len(), 1, "{list:?}");
        (list[0].status(), list[0].status_reason.clone())
    }

    /// What a gateway on `default.test` is to run.
    async fn desired(&self, gateway: &str) -> Vec<DesiredDeployment> {
        let request = ListDesiredRequest { gateway_id: gateway.to_owned(), vhost: "default.test".to_owned() };
        self.desired_state().list_desired(request).await.unwrap().into_inner().deployments
    }

    async fn artifacts(&self, gateway: &str, ids: &[&str], api: &str) -> GetArtifactsResponse {
        let request = GetArtifactsRequest {
            gateway_id: gateway.to_owned(),
            deployment_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            api_id: api.to_owned(),
        };
        self.desired_state().get_artifacts(request).await.unwrap().into_inner()
    }
}

async fn deploy(
    service: &Service,
    user: &User,
    api: &str,
    revision: &str,
    targets: Vec<DeploymentTarget>,
) -> Result<Vec<Deployment>, Status> {
    let request = DeployRevisionRequest {
        api_id: api.to_owned(),
        revision_id: revision.to_owned(),
        deployments: targets,
    };
    Ok(user.deployments(service).deploy_revision(request).await?.into_inner().deployments)
}

fn to(gateway: &str) -> DeploymentTarget {
    DeploymentTarget { gateway_id: gateway.to_owned(), ..DeploymentTarget::default() }
}

fn payload(event: &NewEvent) -> Value {
    serde_json::from_str(&event.payload_json).unwrap()
}

fn answer<T>(answer: Result<T, Status>) -> Result<tonic::Response<T>, Status> {
    answer.map(tonic::Response::new)
}

#[tokio::test]
async fn a_deploy_cuts_a_revision_and_tells_each_gateway() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let (one, two, api) = (world.gateway(true), world.gateway(false), world.api("pets").await);
        let named = DeploymentTarget {
            name: "blue".to_owned(),
            vhost: "api.pets.test".to_owned(),
            display_on_devportal: true,
            ..to(&two)
        };
        let made = world.deploy(&api, "", vec![to(&one), named]).await.unwrap();
        assert_eq!(made.len(), 2);
        let revisions = world.revisions(&api).await;
        assert_eq!(revisions.len(), 1, "one revision for all targets of a request");
        for deployment in &made {
            assert_eq!(deployment.status(), DeploymentStatus::Pending);
            assert_eq!((&deployment.api_id, &deployment.revision_id), (&api, &revisions[0].0));
            let counts = (deployment.live_gateway_count, deployment.deployed_gateway_count);
            assert_eq!((counts, deployment.failed_gateway_count), ((1, 0), 0));
            assert!(deployment.deployed_time.is_some() && deployment.success_deployed_time.is_none());
        }
        assert_eq!((&made[0].gateway_id, &made[1].gateway_id), (&one, &two), "in the order of the request");
        assert_eq!((made[1].name.as_str(), made[1].vhost.as_str()), ("blue", "api.pets.test"));
        assert!(made[1].display_on_devportal);

        let events = world.gateways.events(2).await;
        for (event, deployment) in events.iter().zip(&made) {
            assert_eq!(event.r#type, "api.deployed");
            assert_eq!((&event.gateway_id, &event.artifact_id), (&deployment.gateway_id, &api));
            assert_eq!(event.deployment_id, deployment.id);
            let payload = payload(event);
            assert_eq!(payload["apiId"], Value::from(api.clone()));
            assert_eq!(payload["deploymentId"], Value::from(deployment.id.clone()));
            assert_eq!(payload["revisionId"], Value::from(deployment.revision_id.clone()));
            assert_eq!(payload["environment"], "production");
        }
        assert_eq!(payload(&events[0])["vhost"], "default.test");
        assert_eq!(payload(&events[1])["vhost"], "api.pets.test");
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_deployed_changes_nothing() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let (gateway, api) = (world.gateway(true), world.api("pets").await);
        let elsewhere = world.gateways.add(&world.service, &world.service.ids.next(), true);
        let unknown = world.deploy(&api, "", vec![to(&gateway), to(&elsewhere)]).await;
        assert_eq!(fields(&refused(answer(unknown), Code::InvalidArgument)), ["deployments[1].gatewayId"]);
        let bad = DeploymentTarget { vhost: "no host".to_owned(), ..to("x") };
        let bad = refused(answer(world.deploy(&api, "", vec![bad]).await), Code::InvalidArgument);
        assert_eq!(fields(&bad), ["deployments[0].gatewayId", "deployments[0].vhost"]);
        let none = refused(answer(world.deploy(&api, "", vec![]).await), Code::InvalidArgument);
        assert_eq!(fields(&none), ["deployments"]);
        let twice = world.deploy(&api, "", vec![to(&gateway), to(&gateway)]).await;
        assert_eq!(fields(&refused(answer(twice), Code::InvalidArgument)), ["deployments[1].gatewayId"]);
        let other_revision = world.service.ids.next();
        let revision = world.deploy(&api, &other_revision, vec![to(&gateway)]).await;
        assert_eq!(fields(&refused(answer(revision), Code::InvalidArgument)), ["revisionId"]);
        let target = DeploymentTarget { revision_id: other_revision, ..to(&gateway) };
        let revision = refused(answer(world.deploy(&api, "", vec![target]).await), Code::InvalidArgument);
        assert_eq!(fields(&revision), ["deployments[0].revisionId"]);

        let empty = world.service.api(&world.owner, &world.project, "empty").await.id;
        let refusal = world.deploy(&empty, "", vec![to(&gateway)]).await;
        let refusal = refused(answer(refusal), Code::FailedPrecondition);
        assert_eq!(refusal.reason(), "NOT_DEPLOYABLE");
        assert_eq!(fields(&refusal), ["operations", "backend-services"]);

        for id in [&api, &empty] {
            assert!(world.revisions(id).await.is_empty() && world.list(id).await.is_empty());
        }
        assert_eq!(world.gateways.calls(), 0);
    })
    .await;
}

#[tokio::test]
async fn without_a_gateway_service_nothing_is_written() {
    for database in TestDatabase::both() {
        let service = Arc::new(Service::start(database).await);
        let world = World::new(service, FakeGateways::default()).await;
        let (gateway, api) = (world.gateway(true), world.api("pets").await);
        refused(answer(world.deploy(&api, "", vec![to(&gateway)]).await), Code::Unavailable);
        assert!(world.revisions(&api).await.is_empty());
        assert!(world.list(&api).await.is_empty(), "a list is useful without knowing who is connected");
    }
}

#[tokio::test]
async fn only_those_who_may_deploy_do() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let (gateway, api) = (world.gateway(true), world.api("pets").await);
        let service = &world.service;
        let stranger = service.user();
        let targets = || vec![to(&gateway)];
        refused(answer(deploy(service, &stranger, &api, "", targets()).await), Code::NotFound);
        let viewer = service.member(&world.organization, Role::Viewer).await;
        refused(answer(deploy(service, &viewer, &api, "", targets()).await), Code::PermissionDenied);
        let reader = service.user_with_scope(&world.owner.id, "apis:read");
        refused(answer(deploy(service, &reader, &api, "", targets()).await), Code::PermissionDenied);
        let developer = service.member(&world.organization, Role::Developer).await;
        deploy(service, &developer, &api, "", targets()).await.unwrap();
        let request = ListDeploymentsRequest { api_id: api.clone(), ..Default::default() };
        refused(stranger.deployments(service).list_deployments(request.clone()).await, Code::NotFound);
        assert_eq!(
            viewer.deployments(service).list_deployments(request).await.unwrap().into_inner().count,
            1
        );
        let mut edge = DesiredStateServiceClient::new(service.channel_of("edge-proxy"));
        let reports = edge.report_deployments(ReportDeploymentsRequest::default()).await;
        refused(reports, Code::PermissionDenied);
    })
    .await;
}

#[tokio::test]
async fn events_leave_in_the_order_of_commits() {
    FakeGateways::on_both(async |service, gateways| {
        let world = Arc::new(World::new(service, gateways).await);
        let (gateway, api) = (world.gateway(true), world.api("pets").await);
        let deploys: Vec<_> = (0..20)
            .map(|_| {
                let (world, gateway, api) = (world.clone(), gateway.clone(), api.clone());
                tokio::spawn(async move { world.deploy(&api, "", vec![to(&gateway)]).await.unwrap() })
            })
            .collect();
        for deploy in deploys {
            deploy.await.unwrap();
        }
        // Revisions are numbered in the order of commits.
        let numbers: std::collections::HashMap<_, _> = world.revisions(&api).await.into_iter().collect();
        let events = world.gateways.events(20).await;
        let order: Vec<u32> =
            events.iter().map(|event| numbers[payload(event)["revisionId"].as_str().unwrap()]).collect();
        assert_eq!(order, (1..=20).collect::<Vec<u32>>());
        let current = world.list(&api).await;
        assert_eq!(current.len(), 1);
        assert_eq!(current[0].id, events[19].deployment_id, "the last one counts");
    })
    .await;
}

#[tokio::test]
async fn events_are_delivered_again_after_a_failure() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let (gateway, api) = (world.gateway(true), world.api("pets").await);
        world.gateways.fail(3);
        let mut expected = Vec::new();
        for _ in 0..5 {
            expected.push(world.deploy(&api, "", vec![to(&gateway)]).await.unwrap()[0].id.clone());
        }
        let last = world.api("last").await;
        expected.push(world.deploy(&last, "", vec![to(&gateway)]).await.unwrap()[0].id.clone());
        let events = world.gateways.events_after_failures(6).await;
        let order: Vec<&String> = events.iter().map(|event| &event.deployment_id).collect();
        assert_eq!(order, expected.iter().collect::<Vec<_>>());
        assert!(world.gateways.calls() > 3);
    })
    .await;
}

#[tokio::test]
async fn a_gateway_that_is_gone_fails_its_deployments() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let (gateway, api) = (world.gateway(true), world.api("pets").await);
        world.gateways.delete(&gateway);
        world.deploy(&api, "", vec![to(&gateway)]).await.unwrap();
        let gone = async {
            while world.status(&api).await != (DeploymentStatus::Failed, "GATEWAY_DELETED".to_owned()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), gone).await.expect("the deployment fails");
        assert_eq!(world.list(&api).await[0].failed_gateway_count, 1);
        // Nobody is to run it any more, so that the API can go.
        let delete = DeleteApiRequest { api_id: api.clone() };
        world.owner.apis(&world.service).delete_api(delete).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn reports_move_the_state() {
    FakeGateways::on_both(async |service, gateways| {
        use DeploymentStatus::{Delivered, Deployed, Failed, Undeployed, Undeploying};
        let world = World::new(service, gateways).await;
        let (gateway, api) = (world.gateway(true), world.api("pets").await);
        let first = world.deploy(&api, "", vec![to(&gateway)]).await.unwrap().remove(0);
        world.report(&first, "deploy", Delivered, "").await;
        assert_eq!(world.status(&api).await, (Delivered, String::new()));
        world.report(&first, "deploy", Failed, "GATEWAY_PROCESSING_ERROR").await;
        assert_eq!(world.status(&api).await, (Failed, "GATEWAY_PROCESSING_ERROR".to_owned()));
        assert_eq!(world.list(&api).await[0].failed_gateway_count, 1);
        world.report(&first, "deploy", Delivered, "").await;
        assert_eq!(world.status(&api).await.0, Failed, "nothing goes back");
        world.report(&first, "deploy", Deployed, "").await;
        let deployed = world.list(&api).await.remove(0);
        assert_eq!((deployed.status(), deployed.status_reason.as_str()), (Deployed, ""));
        assert_eq!(deployed.success_deployed_time.unwrap().unix_ms(), 1_766_000_000_000);
        assert_eq!((deployed.deployed_gateway_count, deployed.failed_gateway_count), (1, 0));

        let second = world.deploy(&api, "", vec![to(&gateway)]).await.unwrap().remove(0);
        assert_ne!(first.id, second.id);
        world.report(&first, "deploy", Failed, "late").await;
        assert_eq!(world.status(&api).await.0, DeploymentStatus::Pending, "not the newest one");
        let stranger = Deployment { gateway_id: world.service.ids.next(), ..second.clone() };
        world.report(&stranger, "deploy", Deployed, "").await;
        world
            .report(&Deployment { id: world.service.ids.next(), ..second.clone() }, "deploy", Deployed, "")
            .await;
        assert_eq!(world.status(&api).await.0, DeploymentStatus::Pending, "not of this gateway, not known");
        world.report(&second, "deploy", Deployed, "").await;

        let gone = world.undeploy(&api, "", vec![to(&gateway)]).await.unwrap().remove(0);
        assert_eq!((&gone.id, gone.status()), (&second.id, Undeploying));
        world.report(&second, "undeploy", Delivered, "").await;
        assert_eq!(world.status(&api).await.0, Undeploying);
        world.report(&second, "deploy", Deployed, "").await;
        assert_eq!(world.status(&api).await.0, Undeploying, "an answer to the deploy before");
        world.report(&second, "undeploy", Failed, "DEPLOYMENT_ID_MISMATCH").await;
        assert_eq!(world.status(&api).await, (Failed, "DEPLOYMENT_ID_MISMATCH".to_owned()));
        world.report(&second, "undeploy", Undeployed, "").await;
        assert_eq!(world.status(&api).await, (Undeployed, String::new()));
    })
    .await;
}

#[tokio::test]
async fn an_undeploy_needs_a_deployment() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let (one, two, api) = (world.gateway(true), world.gateway(true), world.api("pets").await);
        let made = world.deploy(&api, "", vec![to(&one)]).await.unwrap().remove(0);
        let both = refused(
            answer(world.undeploy(&api, "", vec![to(&one), to(&two)]).await),
            Code::FailedPrecondition,
        );
        assert_eq!((both.reason(), fields(&both)), ("NOT_DEPLOYED", vec!["deployments[1].gatewayId"]));
        assert_eq!(world.status(&api).await.0, DeploymentStatus::Pending, "all or none");
        let new = CreateRevisionRequest { api_id: api.clone(), description: String::new() };
        let other = world.owner.apis(&world.service).create_revision(new).await.unwrap().into_inner().id;
        let wrong =
            refused(answer(world.undeploy(&api, &other, vec![to(&one)]).await), Code::FailedPrecondition);
        assert_eq!(wrong.reason(), "NOT_DEPLOYED");
        world.undeploy(&api, &made.revision_id, vec![to(&one)]).await.unwrap();
        let again = refused(answer(world.undeploy(&api, "", vec![to(&one)]).await), Code::FailedPrecondition);
        assert_eq!(again.reason(), "NOT_DEPLOYED");
        let events = world.gateways.events(2).await;
        assert_eq!(events[1].r#type, "api.undeployed");
        assert_eq!(events[1].deployment_id, made.id, "the deployment that it removes");
        assert_eq!(payload(&events[1])["deploymentId"], Value::from(made.id));

        let back = world.deploy(&api, &other, vec![to(&one)]).await.unwrap().remove(0);
        assert_eq!(back.revision_id, other);
        assert_eq!(world.revisions(&api).await.len(), 2, "a revision that is named is not cut again");
    })
    .await;
}

#[tokio::test]
async fn gateways_read_what_they_are_to_run() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let (one, two) = (world.gateway(true), world.gateway(true));
        let (pets, shop) = (world.api("pets").await, world.api("shop").await);
        let vhost = DeploymentTarget { vhost: "pets.test".to_owned(), ..to(&one) };
        let first = world.deploy(&pets, "", vec![vhost]).await.unwrap().remove(0);
        let second = world.deploy(&shop, "", vec![to(&one), to(&two)]).await.unwrap();
        world.undeploy(&shop, "", vec![to(&one)]).await.unwrap();

        let desired = world.desired(&one).await;
        let seen: Vec<_> = desired
            .iter()
            .map(|one| (one.api_id.as_str(), one.deployment_id.as_str(), one.deployed))
            .collect();
        assert_eq!(seen, [(&*pets, &*first.id, true), (&*shop, &*second[0].id, false)]);

        let found =
            world.artifacts(&one, &[&first.id, &second[0].id, &second[1].id, "x"], "").await.artifacts;
        let ids: Vec<_> = found.iter().map(|artifact| artifact.deployment_id.as_str()).collect();
        assert_eq!(ids, [&first.id, &second[0].id], "only its own");
        let yaml = String::from_utf8(found[0].yaml.clone()).unwrap();
        for part in ["kind: RestApi", "displayName: pets", "main: pets.test", "url: https://pets.test/v1"] {
            assert!(yaml.contains(part), "{part} is missing in {yaml}");
        }
        let newest = world.artifacts(&one, &[], &pets).await.artifacts;
        assert_eq!((newest.len(), &newest[0].deployment_id), (1, &first.id));
        assert!(world.artifacts(&one, &[], &shop).await.artifacts.is_empty(), "undeployed there");
        assert_eq!(world.artifacts(&two, &[], &shop).await.artifacts.len(), 1);

        let known = vec![pets.clone(), world.service.ids.next(), shop.clone()];
        let request =
            ApisExistRequest { organization_id: world.organization.clone(), api_ids: known.clone() };
        let exist = world.desired_state().apis_exist(request).await.unwrap().into_inner().api_ids;
        assert_eq!(exist, [pets, shop]);
        let request = ApisExistRequest { organization_id: world.service.ids.next(), api_ids: known };
        assert!(world.desired_state().apis_exist(request).await.unwrap().into_inner().api_ids.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_deleted_api_is_taken_from_every_gateway_that_had_it() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let (one, two, api) = (world.gateway(true), world.gateway(true), world.api("pets").await);
        world.deploy(&api, "", vec![to(&one), to(&two)]).await.unwrap();
        world.deploy(&api, "", vec![to(&one)]).await.unwrap();
        world.undeploy(&api, "", vec![to(&two)]).await.unwrap();
        let delete = || DeleteApiRequest { api_id: api.clone() };
        let deployed =
            refused(world.owner.apis(&world.service).delete_api(delete()).await, Code::FailedPrecondition);
        assert_eq!(deployed.reason(), "API_DEPLOYED");
        world.undeploy(&api, "", vec![to(&one)]).await.unwrap();
        world.owner.apis(&world.service).delete_api(delete()).await.unwrap();
        let events = world.gateways.events(7).await;
        assert!(events[..5].iter().all(|event| event.r#type != "api.deleted"));
        let deleted: std::collections::BTreeSet<&str> = events[5..]
            .iter()
            .filter(|event| event.r#type == "api.deleted")
            .map(|e| &*e.gateway_id)
            .collect();
        assert_eq!(deleted, [&*one, &*two].into());
        assert_eq!(payload(&events[6]), serde_json::json!({ "apiId": api }));
        assert!(events[6].deployment_id.is_empty(), "it is not acknowledged");
    })
    .await;
}
