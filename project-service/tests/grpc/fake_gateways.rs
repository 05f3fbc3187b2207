//! A stand-in for gateway-service: a real server under mutual TLS that knows some gateways, keeps the
//! events that it gets, and can fail.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use proto::gateway::{
    AppendEventsRequest, AppendEventsResponse, NewEvent, ResolveGatewaysRequest, ResolveGatewaysResponse,
    ResolvedGateway,
    delivery_service_server::{DeliveryService, DeliveryServiceServer},
};
use service_kit::{
    Clock,
    admin::Readiness,
    server::{GrpcServer, Listeners, Running},
    shutdown::Tasks,
    testing::{Signer, TestDatabase},
    token::Verifier,
};
use tokio::sync::Notify;
use tonic::{Request, Response, Status, service::Routes};

use crate::harness::Service;

/// The stand-in; clones share what it knows.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeGateways {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    gateways: Vec<(String, ResolvedGateway)>,
    gone: HashSet<String>,
    events: Vec<NewEvent>,
    known: HashSet<String>,
    calls: usize,
    failures: usize,
    failed: bool,
}

impl FakeGateways {
    /// The service on each kind of database, with a stand-in that it reaches.
    pub(crate) async fn on_both<F: Future<Output = ()>>(test: impl Fn(Arc<Service>, Self) -> F) {
        for database in TestDatabase::both() {
            let listeners = Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap();
            let address = listeners.main.local_addr().unwrap().to_string();
            let service = Service::start_with(database, &address).await;
            let fake = Self::default();
            let running = fake.serve(&service, listeners).await;
            test(Arc::new(service), fake).await;
            running.shutdown().await;
        }
    }

    /// Serves on sockets, as a service of the same mesh.
    pub(crate) async fn serve(&self, service: &Service, listeners: Listeners) -> Running {
        let server = GrpcServer {
            name: "gateway-service",
            identity: service.ca.identity("gateway-service").unwrap(),
            verifier: Verifier::new(Signer::config(), Arc::new(service.signer.clone()), Clock::system()),
            routes: Routes::new(DeliveryServiceServer::new(self.clone())),
            tasks: Tasks::new(),
            readiness: Readiness::new(),
            reflection: false,
        };
        server.serve(listeners).await.unwrap()
    }

    /// A gateway of an organization; its id.
    pub(crate) fn add(&self, service: &Service, organization_id: &str, connected: bool) -> String {
        let gateway = ResolvedGateway {
            id: service.ids.next(),
            name: "gateway".to_owned(),
            vhost: "default.test".to_owned(),
            functionality_type: "regular".to_owned(),
            connected,
        };
        let id = gateway.id.clone();
        self.state.lock().unwrap().gateways.push((organization_id.to_owned(), gateway));
        id
    }

    /// A gateway is deleted, but only after it was found once more.
    pub(crate) fn delete(&self, gateway_id: &str) {
        self.state.lock().unwrap().gone.insert(gateway_id.to_owned());
    }

    /// The next deliveries fail: in turn after the events were kept, and before.
    pub(crate) fn fail(&self, times: usize) {
        self.state.lock().unwrap().failures = times;
    }

    /// How often events were delivered.
    pub(crate) fn calls(&self) -> usize {
        self.state.lock().unwrap().calls
    }

    /// The events so far, each once and in order, once there are `count`.
    pub(crate) async fn events(&self, count: usize) -> Vec<NewEvent> {
        self.until(|state| state.events.len() >= count).await
    }

    /// The events so far, once they were delivered without a failure after all that were asked for.
    pub(crate) async fn events_after_failures(&self, count: usize) -> Vec<NewEvent> {
        self.until(|state| state.events.len() >= count && state.failures == 0 && !state.failed).await
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) -> Vec<NewEvent> {
        let there = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                // Counts from here on, also for what changes before it is awaited.
                changed.as_mut().enable();
                {
                    let state = self.state.lock().unwrap();
                    if holds(&state) {
                        return state.events.clone();
                    }
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), there).await.expect("events within 30 s")
    }
}

#[async_trait]
impl DeliveryService for FakeGateways {
    async fn resolve_gateways(
        &self,
        request: Request<ResolveGatewaysRequest>,
    ) -> Result<Response<ResolveGatewaysResponse>, Status> {
        let asked = request.into_inner();
        let wanted: HashSet<String> = asked.gateway_ids.into_iter().collect();
        let state = self.state.lock().unwrap();
        let found = state.gateways.iter().filter(|(organization, gateway)| {
            *organization == asked.organization_id && wanted.contains(&gateway.id)
        });
        let gateways = found.map(|(_, gateway)| gateway.clone()).collect();
        Ok(Response::new(ResolveGatewaysResponse { gateways }))
    }

    async fn append_events(
        &self,
        request: Request<AppendEventsRequest>,
    ) -> Result<Response<AppendEventsResponse>, Status> {
        let mut state = self.state.lock().unwrap();
        state.calls += 1;
        state.failed = state.failures > 0;
        if state.failed && state.failures.is_multiple_of(2) {
            state.failures -= 1;
            return Err(Status::unavailable("not now"));
        }
        let mut unknown_gateway_event_ids = Vec::new();
        for event in request.into_inner().events {
            if state.gone.contains(&event.gateway_id) {
                unknown_gateway_event_ids.push(event.id);
            } else if state.known.insert(event.id.clone()) {
                state.events.push(event);
            }
        }
        self.changed.notify_waiters();
        if state.failed {
            state.failures -= 1;
            return Err(Status::unavailable("gone in the middle of an answer"));
        }
        Ok(Response::new(AppendEventsResponse { unknown_gateway_event_ids }))
    }
}
