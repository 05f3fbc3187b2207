//! What is measured of calls to services, named as OpenTelemetry's conventions have it.

use std::{
    sync::{PoisonError, RwLock},
    time::Duration,
};

use foldhash::HashMap;
use metrics::{Histogram, Label, histogram};
use tonic::Code;

/// The durations of calls to one instance. Handles are kept: to find one by its labels takes longer than
/// to use it.
pub(super) struct Measures {
    address: String,
    port: String,
    durations: RwLock<HashMap<(&'static str, i32), Histogram>>,
}

impl std::fmt::Debug for Measures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Measures").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Measures {
    pub(super) fn new(address: &str) -> Self {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Self { address: host.to_owned(), port: port.to_owned(), durations: RwLock::default() }
    }

    /// A call has ended with this.
    pub(super) fn call(&self, method: &'static str, code: Code, elapsed: Duration) {
        let key = (method, code as i32);
        let known = self.durations.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let duration = known.unwrap_or_else(|| {
            let mut durations = self.durations.write().unwrap_or_else(PoisonError::into_inner);
            durations.entry(key).or_insert_with(|| self.duration(method, code)).clone()
        });
        duration.record(elapsed.as_secs_f64());
    }

    fn duration(&self, method: &'static str, code: Code) -> Histogram {
        let name = service_kit::telemetry::code_name(code);
        let mut labels = vec![
            Label::new("rpc_system_name", "grpc"),
            Label::new("rpc_method", method),
            Label::new("rpc_status_code", name),
            Label::new("server_address", self.address.clone()),
            Label::new("server_port", self.port.clone()),
        ];
        // Of a client, everything but OK is an error.
        if code != Code::Ok {
            labels.push(Label::new("error_type", name));
        }
        histogram!("rpc_client_call_duration_seconds", labels)
    }
}
