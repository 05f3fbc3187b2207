//! Tollgate as it runs: auth-service and gateway-service, edges with all their layers, the cheap service in the
//! place of project-service.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use suite::{
    client::{Client, text_at},
    trust::Trust,
};

use crate::{
    OTHER_CORE, PROXY_CORE, ROLE,
    case::{Case, Kind, Proxy},
    certs, free_ports,
    process::Process,
};

const PASSWORD: &str = "correct horse battery staple";

/// What differs between the edges that are measured.
const EDGES: [(&str, &[&str]); 3] = [
    ("edge", &["cache.enabled=false"]),
    ("edge, no access log", &["cache.enabled=false", "telemetry.log=warn"]),
    ("edge, kept answers", &[]),
];

/// Nobody is refused for calling often.
const LIMITS: [&str; 6] = [
    "limits.credential_per_minute=1000000",
    "limits.address_per_minute=100000000",
    "limits.user_per_minute=100000000",
    "limits.token_per_minute=100000000",
    "limits.heavy_per_minute=100000000",
    "limits.connections_per_address=100000",
];

/// What all proxies share.
pub(crate) struct Tollgate {
    /// The folder of the development CA.
    pub(crate) ca: String,
    pub(crate) backend_tls: String,
    pub(crate) backend_plain: String,
    /// An access token.
    pub(crate) token: String,
    /// The keys that verify it, as a JWK set.
    pub(crate) keys: String,
    _services: Vec<Process>,
    folder: tempfile::TempDir,
}

impl Tollgate {
    /// Starts everything behind the proxies, and the edges; signs somebody in.
    pub(crate) async fn start(binary: &Path, edge: &Path) -> (Self, Vec<Proxy>) {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        let ca = here.join("data/tls");
        service_kit::tls::DevCa::load_or_create(&ca).unwrap();
        certs::write(&ca, here);
        let ca = ca.to_str().unwrap().to_owned();

        let [backend_tls, backend_plain, auth, gateway] = free_ports::<4>();
        let me = std::env::current_exe().unwrap();
        let environment =
            [(ROLE, "backend"), ("CA", &ca), ("OVER_TLS", &backend_tls), ("PLAIN", &backend_plain)];
        let backend = Process::start("backend", OTHER_CORE, here, &me, &[""; 0], &environment);
        let backend = backend.listens(&backend_plain, here).await;
        let to = |upstream: &str, address: &str| format!("upstreams.{upstream}.address=\"{address}\"");
        let mut services = vec![backend];
        for (name, address, settings) in [
            ("auth-service", &auth, [to("project", &backend_tls), "account.verify_email=false".into()]),
            ("gateway-service", &gateway, [to("project", &backend_tls), to("auth", &auth)]),
        ] {
            let process = serve(binary, &[name], here, name, OTHER_CORE, address, &settings);
            services.push(process.listens(address, here).await);
        }

        let mut edges = Vec::new();
        for (name, own) in EDGES {
            let [tls, plain] = free_ports::<2>();
            let mut settings = vec![to("project", &backend_tls), to("auth", &auth), to("gateway", &gateway)];
            settings.push(format!("plain_listen=\"{plain}\""));
            settings.extend(LIMITS.iter().chain(own).map(ToString::to_string));
            // As it runs by itself: a program of its own, with its own allocator.
            let process = serve(edge, &[], here, name, PROXY_CORE, &tls, &settings);
            let process = process.listens(&plain, here).await;
            let cases = match name {
                "edge" => vec![
                    Case::new(name, Kind::Rest, false, &plain),
                    Case::new(name, Kind::Rest, true, &tls),
                    Case::new(name, Kind::RestH1, false, &plain),
                    Case::new(name, Kind::Grpc, false, &plain),
                    Case::new(name, Kind::Grpc, true, &tls),
                ],
                "edge, kept answers" => vec![Case::new(name, Kind::Rest, false, &plain).noted("")],
                _ => {
                    [Kind::Rest, Kind::Grpc].map(|kind| Case::new(name, kind, false, &plain).noted("")).into()
                }
            };
            edges.push((tls, Proxy { name, process, cases }));
        }

        let trust = Trust::from_ca_file(&suite::ca_file(&here.join("data"))).unwrap();
        let port = edges[0].0.rsplit_once(':').unwrap().1;
        let client = Client::new(&format!("https://localhost:{port}"), &trust).unwrap();
        let post = async |path: &str, body: Value, status: u16| {
            client.post(path, &body).await.unwrap().expect(status).unwrap()
        };
        let account = json!({"email": "bench@example.com", "password": PASSWORD, "name": "Bench"});
        post("/api/v1/auth/signup", account, 201).await;
        let login = json!({"email": "bench@example.com", "password": PASSWORD});
        let login = post("/api/v1/auth/login", login, 200).await;
        let token = text_at(&login, "/accessToken").unwrap().to_owned();
        let keys = client.get("/.well-known/jwks.json").await.unwrap().expect(200).unwrap().to_string();
        let edges = edges.into_iter().map(|(_, edge)| edge).collect();
        (Self { ca, backend_tls, backend_plain, token, keys, _services: services, folder }, edges)
    }

    /// Where files of the bench go.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A file there.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }
}

/// One service of Tollgate, as a process of its own: a program of its own, or the one that is told which.
fn serve(
    program: &Path,
    service: &[&str],
    folder: &Path,
    name: &'static str,
    core: &str,
    listen: &str,
    settings: &[String],
) -> Process {
    let [admin] = free_ports::<1>();
    let told = service.iter().flat_map(|service| ["serve", service]);
    let mut arguments: Vec<String> = told.map(String::from).collect();
    for setting in
        [format!("listen=\"{listen}\""), format!("admin_listen=\"{admin}\"")].iter().chain(settings)
    {
        arguments.extend([String::from("--set"), setting.clone()]);
    }
    Process::start(name, core, folder, program, &arguments, &[])
}
