//! Service accounts, their keys, and what project-service is told of them.

use proto::auth::{
    CreateServiceAccountKeyRequest, CreateServiceAccountRequest, CreatedServiceAccountKey,
    DeleteServiceAccountRequest, GetProfileRequest, GetServiceAccountRequest, ListServiceAccountKeysRequest,
    ListServiceAccountsRequest, ListTokensRequest, RevokeServiceAccountKeyRequest, ServiceAccount,
    service_account_service_client::ServiceAccountServiceClient, token_service_client::TokenServiceClient,
};
use serde_json::json;
use service_kit::{Error, Ids, Kind, client::Upstream, opaque};

use crate::{
    fake_projects::FakeProjects,
    harness::{Auth, START, answer, fields, on_both, refusal, with_token},
    opaque_tokens::{DAY_MS, claims, exchange, rows},
};

/// A service between its neighbour and an administrator of an organization.
struct World {
    auth: Auth,
    projects: FakeProjects,
    organization: String,
    /// The administrator's id and access token.
    admin: (String, String),
}

/// Runs a test on both kinds of database.
async fn in_world(test: impl AsyncFn(&mut World)) {
    on_both(async |auth: Auth| {
        let (auth, projects, running) = FakeProjects::beside(auth).await;
        let (user, pair) = auth.user("jane@example.com").await;
        let organization = Ids::new(auth.clock.clone()).next();
        projects.join(&user.id, &organization, "admin", true);
        let mut world = World { auth, projects, organization, admin: (user.id, pair.access_token) };
        test(&mut world).await;
        running.shutdown().await;
    })
    .await;
}

impl World {
    fn client(&self) -> ServiceAccountServiceClient<Upstream> {
        ServiceAccountServiceClient::new(self.auth.upstream("edge-proxy"))
    }

    /// Somebody else with a role; the access token.
    async fn member(&self, email: &str, role: &'static str, may: bool) -> String {
        let (user, pair) = self.auth.user(email).await;
        self.projects.join(&user.id, &self.organization, role, may);
        pair.access_token
    }

    async fn create_by(&self, access: &str, name: &str, role: &str) -> Result<ServiceAccount, Error> {
        let request = CreateServiceAccountRequest {
            organization_id: self.organization.clone(),
            name: name.into(),
            role: role.into(),
        };
        answer(self.client().create_service_account(with_token(access, request)).await)
    }

    async fn create(&self, name: &str, role: &str) -> Result<ServiceAccount, Error> {
        self.create_by(&self.admin.1, name, role).await
    }

    async fn key(&self, id: &str, scopes: &[&str]) -> Result<CreatedServiceAccountKey, Error> {
        let request = CreateServiceAccountKeyRequest {
            service_account_id: id.into(),
            name: " deploy ".into(),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            expires_in_days: Some(7),
        };
        answer(self.client().create_service_account_key(with_token(&self.admin.1, request)).await)
    }

    async fn list(&self, limit: u32, offset: u32) -> (Vec<String>, u32) {
        let organization_id = self.organization.clone();
        let request = ListServiceAccountsRequest { organization_id, limit: Some(limit), offset };
        let request = with_token(&self.admin.1, request);
        let page = answer(self.client().list_service_accounts(request).await).unwrap();
        assert_eq!(page.count as usize, page.list.len());
        (page.list.into_iter().map(|account| account.name).collect(), page.pagination.unwrap().total)
    }

    async fn list_keys(&self, id: &str) -> Vec<String> {
        let request = ListServiceAccountKeysRequest { service_account_id: id.into(), ..Default::default() };
        let request = with_token(&self.admin.1, request);
        let page = answer(self.client().list_service_account_keys(request).await).unwrap();
        assert_eq!((page.count, page.pagination.unwrap().total), (page.list.len() as u32, page.count));
        page.list.into_iter().map(|key| key.id).collect()
    }

    async fn revoke_key(&self, id: &str, key_id: &str) -> Result<(), Error> {
        let request = RevokeServiceAccountKeyRequest { service_account_id: id.into(), key_id: key_id.into() };
        answer(self.client().revoke_service_account_key(with_token(&self.admin.1, request)).await)
    }

    async fn delete(&self, id: &str) -> Result<(), Error> {
        let request = DeleteServiceAccountRequest { service_account_id: id.into() };
        answer(self.client().delete_service_account(with_token(&self.admin.1, request)).await)
    }

    /// Every method, as somebody calls it: what they are refused.
    async fn refusals(&self, access: &str, account: &ServiceAccount, key_id: &str) -> Vec<Error> {
        let (mut client, id) = (self.client(), account.id.clone());
        let organization_id = account.organization_id.clone();
        let get = GetServiceAccountRequest { service_account_id: id.clone() };
        let list = ListServiceAccountsRequest { organization_id, ..Default::default() };
        let keys = ListServiceAccountKeysRequest { service_account_id: id.clone(), ..Default::default() };
        let delete = DeleteServiceAccountRequest { service_account_id: id.clone() };
        let create = CreateServiceAccountKeyRequest {
            service_account_id: id.clone(),
            name: "key".into(),
            ..Default::default()
        };
        let revoke = RevokeServiceAccountKeyRequest { service_account_id: id, key_id: key_id.into() };
        vec![
            answer(client.get_service_account(with_token(access, get)).await).unwrap_err(),
            answer(client.list_service_account_keys(with_token(access, keys)).await).unwrap_err(),
            answer(client.create_service_account_key(with_token(access, create)).await).unwrap_err(),
            answer(client.revoke_service_account_key(with_token(access, revoke)).await).unwrap_err(),
            answer(client.delete_service_account(with_token(access, delete)).await).unwrap_err(),
            answer(client.list_service_accounts(with_token(access, list)).await).unwrap_err(),
            self.create_by(access, "another", "viewer").await.unwrap_err(),
        ]
    }
}

#[tokio::test]
async fn a_service_account_lives_from_creation_to_deletion() {
    in_world(async |world: &mut World| {
        let made = world.create(" ci ", "developer").await.unwrap();
        assert_eq!((made.name.as_str(), made.role.as_str()), ("ci", "developer"));
        assert_eq!((&made.organization_id, &made.created_by), (&world.organization, &world.admin.0));
        assert_eq!(made.created_at.unwrap().unix_ms(), START);
        let request = GetServiceAccountRequest { service_account_id: made.id.clone() };
        let request = with_token(&world.admin.1, request);
        assert_eq!(answer(world.client().get_service_account(request).await).unwrap(), made);
        world.projects.until_members(&[(&made.id, "developer")]).await;

        let key = world.key(&made.id, &["apis:deploy", "*:read"]).await.unwrap();
        assert!(opaque::parse("svc", &key.token).is_some(), "{}", key.token);
        let details = key.details.unwrap();
        assert_eq!((&details.id, details.name.as_str()), (&key.id, "deploy"));
        assert_eq!((&key.service_account_id, &details.created_by), (&made.id, &world.admin.0));
        assert_eq!(details.expires_at.unwrap().unix_ms(), START + 7 * DAY_MS);
        let exchanged = exchange(&world.auth, &key.token).await.unwrap();
        let said = claims(&exchanged.access_token);
        assert_eq!((&said["sub"], &said["sid"]), (&json!(made.id), &json!(key.id)));
        assert_eq!((&said["scope"], &said["amr"]), (&json!("apis:deploy *:read"), &json!(["svc"])));
        assert_eq!(said["client_id"], "service-account");

        let other = world.key(&made.id, &[]).await.unwrap();
        assert_eq!(world.list_keys(&made.id).await, [other.id.clone(), key.id.clone()]);
        for _ in 0..2 {
            world.revoke_key(&made.id, &key.id).await.unwrap();
        }
        assert_eq!(refusal(exchange(&world.auth, &key.token).await).1, "INVALID_TOKEN");
        assert_eq!(world.list_keys(&made.id).await, std::slice::from_ref(&other.id));
        exchange(&world.auth, &other.token).await.unwrap();

        world.delete(&made.id).await.unwrap();
        assert_eq!(refusal(exchange(&world.auth, &other.token).await).1, "INVALID_TOKEN");
        assert_eq!(refusal(world.delete(&made.id).await).0, Kind::NotFound);
        assert_eq!(world.list(20, 0).await, (vec![], 0));
        world.projects.until_members(&[]).await;
        for key in [&key.id, &other.id] {
            assert_eq!(rows(&world.auth, "revocations", &[key]).await, 1);
        }
        let chain = format!("organization:{}", world.organization);
        for (action, target) in [
            ("auth.service-account.create", &made.id),
            ("auth.service-account.key.create", &key.id),
            ("auth.service-account.key.create", &other.id),
            ("auth.service-account.key.revoke", &key.id),
            ("auth.service-account.delete", &made.id),
        ] {
            let words = [chain.as_str(), action, target, &world.admin.0];
            assert_eq!(rows(&world.auth, "audit_events", &words).await, 1, "{action}");
        }
    })
    .await;
}

#[tokio::test]
async fn strangers_see_nothing_and_low_roles_may_nothing() {
    in_world(async |world: &mut World| {
        let made = world.create("ci", "viewer").await.unwrap();
        let key = world.key(&made.id, &[]).await.unwrap();
        let (_, stranger) = world.auth.user("b1@example.com").await;
        let absent = ServiceAccount { id: Ids::new(world.auth.clock.clone()).next(), ..made.clone() };
        let garbage = ServiceAccount { id: "\0".into(), organization_id: "\0".into(), ..made.clone() };
        let hidden = world.refusals(&stranger.access_token, &made, &key.id).await;
        assert!(hidden.iter().all(|error| error.kind() == Kind::NotFound), "{hidden:?}");
        for other in [absent, garbage] {
            let same = world.refusals(&stranger.access_token, &other, &key.id).await;
            assert_eq!(format!("{same:?}"), format!("{hidden:?}"));
        }
        let viewer = world.member("v@example.com", "viewer", false).await;
        let denied = world.refusals(&viewer, &made, &key.id).await;
        assert!(denied.iter().all(|error| error.kind() == Kind::PermissionDenied), "{denied:?}");
        exchange(&world.auth, &key.token).await.unwrap();
        assert_eq!(world.list(20, 0).await, (vec!["ci".to_owned()], 1));

        // A key belongs to its account, however well its id is known.
        let other = world.create("cd", "viewer").await.unwrap();
        assert_eq!(refusal(world.revoke_key(&other.id, &key.id).await).0, Kind::NotFound);
        exchange(&world.auth, &key.token).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn nobody_makes_more_than_he_is() {
    in_world(async |world: &mut World| {
        let developer = world.member("d@example.com", "developer", true).await;
        for role in ["developer", "viewer", "consumer"] {
            world.create_by(&developer, role, role).await.unwrap();
        }
        let refused = world.create_by(&developer, "boss", "admin").await;
        assert_eq!(refusal(refused).0, Kind::PermissionDenied);
        for role in ["owner", "", "Admin", "root"] {
            assert_eq!(fields(world.create("bad", role).await), ["role"], "{role}");
        }
        // Nor a key of an account that is above him.
        let boss = world.create("boss", "admin").await.unwrap();
        let request = CreateServiceAccountKeyRequest {
            service_account_id: boss.id.clone(),
            name: "key".into(),
            ..Default::default()
        };
        let refused =
            answer(world.client().create_service_account_key(with_token(&developer, request)).await);
        assert_eq!(refusal(refused).0, Kind::PermissionDenied);
        assert!(world.list_keys(&boss.id).await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn names_are_unique_in_an_organization_and_there_are_a_hundred_at_most() {
    in_world(async |world: &mut World| {
        assert_eq!(fields(world.create("", "king").await), ["name", "role"]);
        assert_eq!(fields(world.create(&"n".repeat(101), "viewer").await), ["name"]);
        world.create("ci", "viewer").await.unwrap();
        let taken = world.create(" ci", "admin").await.unwrap_err();
        assert_eq!((taken.kind(), taken.reason()), (Kind::AlreadyExists, "NAME_TAKEN"));
        assert_eq!(taken.violations()[0].field, "name");
        for at in 1..95 {
            world.create(&format!("n{at}"), "viewer").await.unwrap();
        }
        // Of twenty side by side five find room.
        let tries: Vec<_> = (0..20)
            .map(|at| {
                let organization_id = world.organization.clone();
                let request = CreateServiceAccountRequest {
                    organization_id,
                    name: format!("r{at}"),
                    role: "viewer".into(),
                };
                let (mut client, request) = (world.client(), with_token(&world.admin.1, request));
                tokio::spawn(async move { answer(client.create_service_account(request).await) })
            })
            .collect();
        let mut made = 0;
        for attempt in tries {
            match attempt.await.unwrap() {
                Ok(_) => made += 1,
                Err(error) => assert_eq!(
                    (error.kind(), error.reason()),
                    (Kind::FailedPrecondition, "TOO_MANY_SERVICE_ACCOUNTS")
                ),
            }
        }
        assert_eq!(made, 5);
        let (page, total) = world.list(3, 99).await;
        assert_eq!((page, total), (vec!["ci".to_owned()], 100));
    })
    .await;
}

#[tokio::test]
async fn memberships_arrive_although_project_service_fails() {
    in_world(async |world: &mut World| {
        world.projects.refuse(&[Kind::Unavailable, Kind::Internal, Kind::Unavailable]);
        let first = world.create("first", "viewer").await.unwrap();
        world.projects.until_members(&[(&first.id, "viewer")]).await;
        // What is refused for good stops nothing that comes behind it.
        world.projects.refuse(&[Kind::NotFound]);
        let lost = world.create("lost", "viewer").await.unwrap();
        let last = world.create("last", "admin").await.unwrap();
        world.projects.until_members(&[(&first.id, "viewer"), (&last.id, "admin")]).await;
        let calls = world.projects.calls();
        world.delete(&lost.id).await.unwrap();
        world.delete(&first.id).await.unwrap();
        world.projects.until_members(&[(&last.id, "admin")]).await;
        assert_eq!(world.projects.calls(), calls + 2);
    })
    .await;
}

#[tokio::test]
async fn a_key_makes_no_keys_and_has_no_account_of_a_person() {
    in_world(async |world: &mut World| {
        let made = world.create("ci", "admin").await.unwrap();
        let key = world.key(&made.id, &["*"]).await.unwrap();
        let access = exchange(&world.auth, &key.token).await.unwrap().access_token;
        // As an administrator it reads what it may read.
        world.projects.join(&made.id, &world.organization, "admin", true);
        let request = GetServiceAccountRequest { service_account_id: made.id.clone() };
        let seen = answer(world.client().get_service_account(with_token(&access, request)).await);
        assert_eq!(seen.unwrap(), made);

        let interactive = (Kind::PermissionDenied, "INTERACTIVE_LOGIN_REQUIRED".to_owned());
        assert_eq!(refusal(world.create_by(&access, "twin", "admin").await), interactive);
        let request = CreateServiceAccountKeyRequest {
            service_account_id: made.id.clone(),
            name: "more".into(),
            ..Default::default()
        };
        let refused = answer(world.client().create_service_account_key(with_token(&access, request)).await);
        assert_eq!(refusal(refused), interactive);
        let request = DeleteServiceAccountRequest { service_account_id: made.id.clone() };
        let refused = answer(world.client().delete_service_account(with_token(&access, request)).await);
        assert_eq!(refusal(refused), interactive);

        let profile =
            answer(world.auth.client().get_profile(with_token(&access, GetProfileRequest {})).await);
        assert_eq!(refusal(profile).0, Kind::NotFound);
        let mut tokens = TokenServiceClient::new(world.auth.upstream("edge-proxy"));
        let request = with_token(&access, ListTokensRequest::default());
        assert!(answer(tokens.list_tokens(request).await).unwrap().list.is_empty());
    })
    .await;
}
