//! Traces leave the process when it is told where to: one tree for one request, over all services.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind},
};
use serde_json::json;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, async_trait};

use crate::support::{Account, Process, client, config_file, unique, wait_for};

/// A collector: every span, with the name of the process that it came from.
#[derive(Clone, Default)]
pub(crate) struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let name = attributes.into_iter().find(|attribute| attribute.key == "service.name");
            let name = name.and_then(|name| text_of(name.value?.value?)).unwrap_or_default();
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| (name.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// A collector on a port of its own, and where it is.
    pub(crate) async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let service = TraceServiceServer::new(collector.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, endpoint)
    }

    /// All that was exported, as text, and how many spans it is.
    pub(crate) fn text(&self) -> (String, usize) {
        let spans = self.0.lock().unwrap();
        (format!("{spans:?}"), spans.len())
    }

    fn span(&self, trace: &[u8], name: &str) -> Option<(String, Span)> {
        let spans = self.0.lock().unwrap();
        spans.iter().find(|(_, span)| span.trace_id == trace && span.name == name).cloned()
    }
}

fn text_of(value: Value) -> Option<String> {
    match value {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    found.and_then(|found| text_of(found.value.clone()?.value?)).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spans_of_a_request_form_one_tree() {
    let (collector, endpoint) = Collector::start().await;
    let folder = tempfile::tempdir().unwrap();
    // Lines are turned off: traces do not depend on them.
    let telemetry = format!("[edge.telemetry]\nlog = \"error\"\notlp_endpoint = \"{endpoint}\"\n");
    let process = Process::start(folder.path(), &config_file(folder.path(), &telemetry)).await;
    let account = Account::new(&client(&process.url, &suite::ca_file(&folder.path().join("data")))).await;
    let body = json!({"organizationId": account.organization, "name": unique("g"), "displayName": "G"});
    account.client.post("/api/v1/gateways", &body).await.unwrap().expect(201).unwrap();
    let problem = account.client.post("/api/v1/gateways", &body).await.unwrap().expect(409).unwrap();
    let trace = hex(problem["traceId"].as_str().unwrap());

    let (process_name, root) =
        wait_for("the edge's span", async || collector.span(&trace, "POST /api/v1/gateways")).await;
    let register = "tollgate.gateway.v1.GatewayService/RegisterGateway";
    let (_, call) = wait_for("the service's span", async || collector.span(&trace, register)).await;
    assert_eq!(process_name, "tollgate");
    assert!(root.parent_span_id.is_empty(), "{root:?}");
    assert_eq!(call.parent_span_id, root.span_id, "{call:?}");
    assert!([root.kind, call.kind].iter().all(|kind| *kind == SpanKind::Server as i32));
    assert_eq!(attribute(&root, "http.response.status_code"), "409");
    assert_eq!(attribute(&root, "http.route"), "/api/v1/gateways");
    // All services are one process here: the span says whose it is.
    assert_eq!(attribute(&call, "service"), "gateway-service");
    assert_eq!(attribute(&call, "rpc.response.status_code"), "ALREADY_EXISTS");

    // The call of a service by a service hangs below that of its caller.
    let check = "tollgate.project.v1.AccessService/Check";
    let checks: Vec<Span> = {
        let spans = collector.0.lock().unwrap();
        let spans = spans.iter().map(|(_, span)| span);
        spans.filter(|span| span.name == check).cloned().collect()
    };
    assert!(!checks.is_empty(), "no {check}");
    for check in checks {
        let spans = collector.0.lock().unwrap();
        let parent = spans.iter().find(|(_, span)| span.span_id == check.parent_span_id);
        let (_, parent) = parent.expect("the parent is there");
        assert_eq!(
            (&parent.trace_id, attribute(parent, "service").as_str()),
            (&check.trace_id, "gateway-service")
        );
    }
    assert_eq!(process.terminate().await, Some(0));
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
