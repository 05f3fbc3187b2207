//! How deployments end: removals that fail, gateways that go.

use super::*;

#[tokio::test]
async fn a_removal_that_failed_can_be_asked_for_again() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let (gateway, api) = (world.gateway(true), world.api("pets").await);
        let made = world.deploy(&api, "", vec![to(&gateway)]).await.unwrap().remove(0);
        world.report(&made, "deploy", DeploymentStatus::Deployed, "").await;
        world.undeploy(&api, "", vec![to(&gateway)]).await.unwrap();
        world.report(&made, "undeploy", DeploymentStatus::Failed, "GATEWAY_PROCESSING_ERROR").await;
        let again = world.undeploy(&api, "", vec![to(&gateway)]).await.unwrap().remove(0);
        assert_eq!((&again.id, again.status()), (&made.id, DeploymentStatus::Undeploying));
        assert_eq!(again.status_reason, "");
        let events = world.gateways.events(3).await;
        assert_eq!((events[2].r#type.as_str(), &events[2].deployment_id), ("api.undeployed", &made.id));
        assert_ne!(events[1].id, events[2].id);
        world.report(&made, "undeploy", DeploymentStatus::Undeployed, "").await;
        let done =
            refused(answer(world.undeploy(&api, "", vec![to(&gateway)]).await), Code::FailedPrecondition);
        assert_eq!(done.reason(), "NOT_DEPLOYED");
    })
    .await;
}

#[tokio::test]
async fn a_deleted_gateway_takes_its_deployments_with_it() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let (gone, kept, api) = (world.gateway(true), world.gateway(true), world.api("pets").await);
        let made = world.deploy(&api, "", vec![to(&gone), to(&kept)]).await.unwrap();
        for deployment in &made {
            world.report(deployment, "deploy", DeploymentStatus::Deployed, "").await;
        }
        for _ in 0..2 {
            world.report(&made[0], "delete", DeploymentStatus::Failed, "GATEWAY_DELETED").await;
            let mut list = world.list(&api).await;
            list.sort_by_key(|deployment| deployment.gateway_id != gone);
            let states: Vec<_> = list.iter().map(|one| (one.status(), one.status_reason.as_str())).collect();
            assert_eq!(
                states,
                [(DeploymentStatus::Failed, "GATEWAY_DELETED"), (DeploymentStatus::Deployed, "")]
            );
        }
        // Nobody is to run it there any more; the other gateway still is.
        world.undeploy(&api, "", vec![to(&kept)]).await.unwrap();
        let delete = DeleteApiRequest { api_id: api.clone() };
        world.owner.apis(&world.service).delete_api(delete).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_gateway_takes_one_api_of_a_name_and_version() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let (gateway, other) = (world.gateway(true), world.gateway(true));
        let first = world.api("pets").await;
        let api: Api = serde_json::from_value(serde_json::json!({
            "name": "pets", "context": "/elsewhere", "version": "1.0.0-SNAPSHOT",
            "backend-services": [{"name": "default", "endpoints": [{"url": "https://pets.test/v1"}]}],
            "operations": [{"request": {"method": "GET", "path": "/pets"}}],
        }))
        .unwrap();
        let new = CreateApiRequest { project_id: world.project.clone(), api: Some(api) };
        let second = world.owner.apis(&world.service).create_api(new).await.unwrap().into_inner().id;
        world.deploy(&first, "", vec![to(&gateway)]).await.unwrap();
        world.deploy(&first, "", vec![to(&gateway)]).await.unwrap();
        let both = || vec![to(&other), to(&gateway)];
        let taken = refused(answer(world.deploy(&second, "", both()).await), Code::FailedPrecondition);
        assert_eq!((taken.reason(), fields(&taken)), ("NOT_DEPLOYABLE", vec!["deployments[1].gatewayId"]));
        world.undeploy(&first, "", vec![to(&gateway)]).await.unwrap();
        world.deploy(&second, "", both()).await.unwrap();
    })
    .await;
}
