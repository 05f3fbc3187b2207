//! The neighbours: an auth-service that knows one key, and a project-service that can be told what to say.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proto::{
    auth::{
        GetJwksRequest, Jwk, Jwks,
        key_service_server::{KeyService, KeyServiceServer},
    },
    project::{
        ApisExistRequest, ApisExistResponse, Artifact, CheckRequest, CheckResponse, DeploymentReport,
        DesiredDeployment, GetArtifactsRequest, GetArtifactsResponse, ListDesiredRequest,
        ListDesiredResponse, ListMembershipsRequest, ListMembershipsResponse, ReportDeploymentsRequest,
        access_service_server::{AccessService, AccessServiceServer},
        check_response::Decision,
        desired_state_service_server::{DesiredStateService, DesiredStateServiceServer},
    },
};
use serde_json::json;
use service_kit::{
    Clock,
    admin::Readiness,
    server::{GrpcServer, Listeners, Running},
    shutdown::Tasks,
    tls::DevCa,
    token::{KeySource, TokenConfig, Verifier},
};
use tonic::{Request, Response, Status, service::Routes};

pub(crate) const ISSUER: &str = "https://tollgate.test";

/// Signs access tokens, and tells the key.
#[derive(Debug, Clone)]
pub(crate) struct Signer(Arc<EcdsaKeyPair>);

impl Signer {
    pub(crate) fn new() -> Self {
        Self(Arc::new(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()))
    }

    pub(crate) fn token(&self, user: &str) -> String {
        let now = Clock::system().now_ms() / 1_000;
        let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": "k1"});
        let claims = json!({"iss": ISSUER, "aud": "tollgate", "sub": user, "exp": now + 600, "iat": now,
            "jti": "j", "client_id": "web", "sid": "s", "scope": "*", "auth_time": now});
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let body = format!("{}.{}", part(header), part(claims));
        let signature = self.0.sign(&aws_lc_rs::rand::SystemRandom::new(), body.as_bytes()).unwrap();
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

#[async_trait]
impl KeyService for Signer {
    async fn get_jwks(&self, _: Request<GetJwksRequest>) -> Result<Response<Jwks>, Status> {
        let point = self.0.public_key().as_ref();
        let key = Jwk {
            kty: "EC".into(),
            crv: "P-256".into(),
            x: URL_SAFE_NO_PAD.encode(&point[1..33]),
            y: URL_SAFE_NO_PAD.encode(&point[33..65]),
            r#use: "sig".into(),
            alg: "ES256".into(),
            kid: "k1".into(),
        };
        Ok(Response::new(Jwks { keys: vec![key] }))
    }
}

/// What the fake project-service knows.
#[derive(Debug, Default)]
pub(crate) struct Project {
    /// Roles by user and organization: `admin` or `viewer`.
    pub(crate) roles: Mutex<HashMap<(String, String), &'static str>>,
    pub(crate) desired: Mutex<Vec<DesiredDeployment>>,
    pub(crate) artifacts: Mutex<Vec<Artifact>>,
    pub(crate) reports: Mutex<Vec<DeploymentReport>>,
    /// How often it was asked for a decision.
    pub(crate) checks: AtomicUsize,
    /// Fails every call.
    pub(crate) down: AtomicBool,
}

impl Project {
    pub(crate) fn join(&self, user: &str, organization: &str, role: &'static str) {
        self.roles.lock().unwrap().insert((user.to_owned(), organization.to_owned()), role);
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// The statuses reported of a deployment, in order.
    pub(crate) fn reported(&self, deployment_id: &str) -> Vec<(i32, String, String)> {
        let reports = self.reports.lock().unwrap();
        reports
            .iter()
            .filter(|report| report.deployment_id == deployment_id)
            .map(|report| (report.status, report.action.clone(), report.reason.clone()))
            .collect()
    }

    fn up(&self) -> Result<(), Status> {
        if self.down.load(Ordering::SeqCst) { Err(Status::internal("as told")) } else { Ok(()) }
    }
}

#[derive(Debug, Clone)]
struct Face(Arc<Project>);

#[async_trait]
impl AccessService for Face {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        self.0.up()?;
        self.0.checks.fetch_add(1, Ordering::SeqCst);
        let asked = request.into_inner();
        let role = self.0.roles.lock().unwrap().get(&(asked.user_id, asked.organization_id)).copied();
        let decision = match role {
            None => Decision::Hidden,
            Some("viewer") if !asked.permission.ends_with(":read") => Decision::Denied,
            Some(_) => Decision::Allowed,
        };
        let role = role.unwrap_or_default().to_owned();
        Ok(Response::new(CheckResponse { decision: decision.into(), role }))
    }

    async fn list_memberships(
        &self,
        request: Request<ListMembershipsRequest>,
    ) -> Result<Response<ListMembershipsResponse>, Status> {
        self.0.up()?;
        let user = request.into_inner().user_id;
        let roles = self.0.roles.lock().unwrap();
        let organization_ids = roles.keys().filter(|(u, _)| *u == user).map(|(_, o)| o.clone()).collect();
        Ok(Response::new(ListMembershipsResponse { organization_ids }))
    }
}

#[async_trait]
impl DesiredStateService for Face {
    async fn report_deployments(
        &self,
        request: Request<ReportDeploymentsRequest>,
    ) -> Result<Response<()>, Status> {
        self.0.up()?;
        self.0.reports.lock().unwrap().extend(request.into_inner().reports);
        Ok(Response::new(()))
    }

    async fn list_desired(
        &self,
        _: Request<ListDesiredRequest>,
    ) -> Result<Response<ListDesiredResponse>, Status> {
        self.0.up()?;
        Ok(Response::new(ListDesiredResponse { deployments: self.0.desired.lock().unwrap().clone() }))
    }

    async fn get_artifacts(
        &self,
        request: Request<GetArtifactsRequest>,
    ) -> Result<Response<GetArtifactsResponse>, Status> {
        self.0.up()?;
        let asked = request.into_inner();
        let mut artifacts = self.0.artifacts.lock().unwrap().clone();
        artifacts.retain(|artifact| {
            asked.deployment_ids.contains(&artifact.deployment_id)
                || (asked.deployment_ids.is_empty() && artifact.api_id == asked.api_id)
        });
        Ok(Response::new(GetArtifactsResponse { artifacts }))
    }

    async fn apis_exist(
        &self,
        request: Request<ApisExistRequest>,
    ) -> Result<Response<ApisExistResponse>, Status> {
        self.0.up()?;
        let artifacts = self.0.artifacts.lock().unwrap();
        let mut api_ids = request.into_inner().api_ids;
        api_ids.retain(|id| artifacts.iter().any(|artifact| artifact.api_id == *id));
        Ok(Response::new(ApisExistResponse { api_ids }))
    }
}

#[derive(Debug)]
struct NoKeys;

#[async_trait]
impl KeySource for NoKeys {
    async fn jwks(&self) -> service_kit::Result<Jwks> {
        Ok(Jwks::default())
    }
}

async fn serve(ca: &DevCa, name: &'static str, routes: Routes) -> Running {
    let config = TokenConfig { issuer: ISSUER.into(), audience: "tollgate".into() };
    let server = GrpcServer {
        name,
        identity: ca.identity(name).unwrap(),
        verifier: Verifier::new(config, Arc::new(NoKeys), Clock::system()),
        routes,
        tasks: Tasks::new(),
        readiness: Readiness::new(),
        reflection: false,
    };
    server.serve(Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap()).await.unwrap()
}

pub(crate) async fn serve_auth(ca: &DevCa, signer: Signer) -> Running {
    serve(ca, "auth-service", Routes::new(KeyServiceServer::new(signer))).await
}

pub(crate) async fn serve_project(ca: &DevCa, project: Arc<Project>) -> Running {
    let face = Face(project);
    let routes =
        Routes::new(AccessServiceServer::new(face.clone())).add_service(DesiredStateServiceServer::new(face));
    serve(ca, "project-service", routes).await
}
