//! A stand-in for project-service: a real server under mutual TLS that knows roles, keeps the memberships
//! that it is told, and can refuse.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use proto::project::{
    CheckRequest, CheckResponse, ListMembershipsRequest, ListMembershipsResponse, PutServiceAccountRequest,
    RemoveServiceAccountRequest,
    access_service_server::{AccessService, AccessServiceServer},
    check_response::Decision,
};
use service_kit::{
    Clock, Error, Kind,
    admin::Readiness,
    server::{GrpcServer, Listeners, Running},
    shutdown::Tasks,
    testing::Signer,
    tls::Identity,
    token::Verifier,
};
use tokio::sync::Notify;
use tonic::{Request, Response, Status, async_trait, service::Routes};

use crate::harness::Auth;

/// The stand-in; clones share what it knows.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeProjects {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// By user and organization: the role, and whether it holds every permission.
    roles: HashMap<(String, String), (&'static str, bool)>,
    /// By service account: the role.
    members: BTreeMap<String, String>,
    /// What the next calls about service accounts are answered.
    refusals: Vec<Kind>,
    calls: usize,
}

impl FakeProjects {
    /// Starts the stand-in, and the service again so that it asks it.
    pub(crate) async fn beside(auth: Auth) -> (Auth, Self, Running) {
        let fake = Self::default();
        let server = GrpcServer {
            name: "project-service",
            identity: Identity::load(&auth.config.tls, "project-service").unwrap(),
            verifier: Verifier::new(Signer::config(), Arc::new(Signer::new()), Clock::system()),
            routes: Routes::new(AccessServiceServer::new(fake.clone())),
            tasks: Tasks::new(),
            readiness: Readiness::new(),
            reflection: false,
        };
        let running =
            server.serve(Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap()).await.unwrap();
        let address = running.addr.to_string();
        (auth.restart(|config| config.upstreams.project.address = address).await, fake, running)
    }

    /// Gives a user a role, which holds every permission or none but that to see the organization.
    pub(crate) fn join(&self, user_id: &str, organization_id: &str, role: &'static str, may: bool) {
        let membership = (user_id.to_owned(), organization_id.to_owned());
        self.state.lock().unwrap().roles.insert(membership, (role, may));
    }

    /// Answers the next calls about service accounts so, the first of these first.
    pub(crate) fn refuse(&self, refusals: &[Kind]) {
        self.state.lock().unwrap().refusals = refusals.iter().rev().copied().collect();
    }

    /// How many calls about service accounts there were.
    pub(crate) fn calls(&self) -> usize {
        self.state.lock().unwrap().calls
    }

    /// Waits until service accounts have these roles, and no others are members.
    pub(crate) async fn until_members(&self, expected: &[(&str, &str)]) {
        let expected = expected.iter().map(|(id, role)| ((*id).to_owned(), (*role).to_owned())).collect();
        self.until(|state| state.members == expected && state.refusals.is_empty()).await;
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) {
        let there = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                // Counts from here on, also for what changes before it is awaited.
                changed.as_mut().enable();
                if holds(&self.state.lock().unwrap()) {
                    return;
                }
                changed.await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(30), there).await;
        assert!(in_time.is_ok(), "never so: {:?}", self.state.lock().unwrap());
    }

    fn change(&self, change: impl FnOnce(&mut State)) -> Result<Response<()>, Status> {
        let mut state = self.state.lock().unwrap();
        state.calls += 1;
        let answer = match state.refusals.pop() {
            Some(kind) => Err(Error::new(kind, "AS_TOLD", "as told").into()),
            None => {
                change(&mut state);
                Ok(Response::new(()))
            }
        };
        self.changed.notify_waiters();
        answer
    }
}

#[async_trait]
impl AccessService for FakeProjects {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let CheckRequest { user_id, organization_id, .. } = request.into_inner();
        let state = self.state.lock().unwrap();
        let (decision, role) = match state.roles.get(&(user_id, organization_id)) {
            None => (Decision::Hidden, ""),
            Some((role, true)) => (Decision::Allowed, *role),
            Some((role, false)) => (Decision::Denied, *role),
        };
        Ok(Response::new(CheckResponse { decision: decision.into(), role: role.to_owned() }))
    }

    async fn list_memberships(
        &self,
        _: Request<ListMembershipsRequest>,
    ) -> Result<Response<ListMembershipsResponse>, Status> {
        Err(Status::permission_denied("not for auth-service"))
    }

    async fn put_service_account(
        &self,
        request: Request<PutServiceAccountRequest>,
    ) -> Result<Response<()>, Status> {
        let PutServiceAccountRequest { service_account_id, role, .. } = request.into_inner();
        self.change(|state| drop(state.members.insert(service_account_id, role)))
    }

    async fn remove_service_account(
        &self,
        request: Request<RemoveServiceAccountRequest>,
    ) -> Result<Response<()>, Status> {
        let id = request.into_inner().service_account_id;
        self.change(|state| drop(state.members.remove(&id)))
    }
}
