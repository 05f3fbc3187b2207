//! Deployments to as many gateways as one request may name.

use super::*;

/// The most gateways of one request.
const MOST: usize = 1_000;

impl World {
    async fn report_all(&self, deployments: &[Deployment], action: &str, status: DeploymentStatus) {
        let report = |deployment: &Deployment| DeploymentReport {
            deployment_id: deployment.id.clone(),
            gateway_id: deployment.gateway_id.clone(),
            status: status.into(),
            reason: if status == DeploymentStatus::Failed {
                "OUT_OF_MEMORY".to_owned()
            } else {
                String::new()
            },
            reported_at: Some(Timestamp::from_unix_ms(1_766_000_000_000)),
            action: action.to_owned(),
        };
        let reports = ReportDeploymentsRequest { reports: deployments.iter().map(report).collect() };
        self.desired_state().report_deployments(reports).await.unwrap();
    }

    async fn page(&self, api: &str, offset: u32) -> proto::project::ListDeploymentsResponse {
        let request = ListDeploymentsRequest { api_id: api.to_owned(), limit: Some(100), offset };
        self.owner.deployments(&self.service).list_deployments(request).await.unwrap().into_inner()
    }
}

fn counts(deployment: &Deployment) -> (u32, u32, u32) {
    (deployment.live_gateway_count, deployment.deployed_gateway_count, deployment.failed_gateway_count)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_deploys_to_a_thousand_gateways_and_back() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let api = world.api("pets").await;
        let ids: Vec<String> = (0..MOST).map(|at| world.gateway(at % 4 == 0)).collect();
        let targets = || ids.iter().map(|id| to(id)).collect::<Vec<_>>();
        let made = world.deploy(&api, "", targets()).await.unwrap();
        assert_eq!(
            made.iter().map(|one| &one.gateway_id).collect::<Vec<_>>(),
            ids.iter().collect::<Vec<_>>()
        );
        assert!(made.iter().all(|one| counts(one) == (250, 0, 0) && one.revision_id == made[0].revision_id));
        let events = world.gateways.events(MOST).await;
        let told: Vec<_> = events.iter().map(|event| (&event.gateway_id, &event.deployment_id)).collect();
        assert_eq!(told, made.iter().map(|one| (&one.gateway_id, &one.id)).collect::<Vec<_>>(), "in order");
        world.report_all(&made[..500], "deploy", DeploymentStatus::Delivered).await;
        world.report_all(&made[..490], "deploy", DeploymentStatus::Deployed).await;
        world.report_all(&made[490..500], "deploy", DeploymentStatus::Failed).await;
        let page = world.page(&api, 900).await;
        assert_eq!((page.count, page.pagination.unwrap().total), (100, 1_000));
        assert!(page.list.iter().all(|one| counts(one) == (250, 490, 10)));
        let mut states = std::collections::HashMap::<_, usize>::new();
        for offset in (0..1_000).step_by(100) {
            for one in world.page(&api, offset).await.list {
                assert_eq!(one.status_reason.is_empty(), one.status() != DeploymentStatus::Failed, "{one:?}");
                *states.entry(one.status()).or_default() += 1;
            }
        }
        let expected = [
            (DeploymentStatus::Deployed, 490),
            (DeploymentStatus::Failed, 10),
            (DeploymentStatus::Pending, 500),
        ];
        assert_eq!(states, expected.into());

        // A second deploy takes the place of the first, also where that never arrived.
        let second = world.deploy(&api, "", targets()).await.unwrap();
        assert!(second.iter().all(|one| counts(one) == (250, 0, 0)));
        world.report_all(&made[500..], "deploy", DeploymentStatus::Deployed).await;
        world.report_all(&second[..500], "deploy", DeploymentStatus::Deployed).await;
        world.report_all(&second[500..], "deploy", DeploymentStatus::Deployed).await;
        assert_eq!(world.page(&api, 0).await.list.iter().map(counts).next(), Some((250, 1_000, 0)));
        let gone = world.undeploy(&api, &second[0].revision_id, targets()).await.unwrap();
        let same = gone.iter().zip(&second).all(|(gone, second)| gone.id == second.id);
        assert!(same && gone.iter().all(|one| one.status() == DeploymentStatus::Undeploying));
        let events = world.gateways.events(3 * MOST).await;
        assert!(events[2 * MOST..].iter().all(|event| event.r#type == "api.undeployed"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_gateways_all_or_none_and_not_one_more() {
    FakeGateways::on_both(async |service, gateways| {
        let world = World::new(service, gateways).await;
        let api = world.api("pets").await;
        let mut ids: Vec<String> = (0..=MOST).map(|_| world.gateway(false)).collect();
        let targets = |ids: &[String]| ids.iter().map(|id| to(id)).collect::<Vec<_>>();
        for answered in
            [world.deploy(&api, "", targets(&ids)).await, world.undeploy(&api, "", targets(&ids)).await]
        {
            let refusal = refused(answer(answered), Code::InvalidArgument);
            assert_eq!(fields(&refusal), ["deployments"]);
            assert!(refusal.message().contains("1000"), "{refusal}");
        }
        ids.pop();
        world.deploy(&api, "", targets(&ids[..MOST - 1])).await.unwrap();
        let last = world.undeploy(&api, "", targets(&ids)).await;
        assert_eq!(fields(&refused(answer(last), Code::FailedPrecondition)), ["deployments[999].gatewayId"]);
        let page = world.page(&api, 0).await;
        assert!(page.list.iter().all(|one| one.status() == DeploymentStatus::Pending), "nothing was undone");
        ids[500] = world.service.ids.next();
        let unknown = refused(answer(world.deploy(&api, "", targets(&ids)).await), Code::InvalidArgument);
        assert_eq!(fields(&unknown), ["deployments[500].gatewayId"]);
        assert_eq!(world.page(&api, 0).await.pagination.unwrap().total, 999);
    })
    .await;
}
