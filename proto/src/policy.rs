//! What the descriptors say of each RPC beyond its types: policy, HTTP bindings, retry safety.

use std::{collections::HashSet, sync::LazyLock, time::Duration};

use foldhash::HashMap;
use http::uri::PathAndQuery;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, MethodDescriptor, Value};

use crate::google::api::{HttpRule, http_rule::Pattern};

pub use crate::common::{
    Cache,
    policy::{Access, Proof, RateClass},
};

/// A request without a policy of its own may be this large.
pub const DEFAULT_MAX_REQUEST_BYTES: usize = 1024 * 1024;

/// A call without a policy of its own may take this long.
pub const DEFAULT_MAX_DEADLINE: Duration = Duration::from_secs(15);

/// The whole contract.
#[derive(Debug)]
pub struct Contract {
    pool: DescriptorPool,
    methods: HashMap<String, MethodPolicy>,
}

/// Everything that hops enforce for one RPC.
#[derive(Debug, Clone)]
pub struct MethodPolicy {
    /// The gRPC path, `/package.Service/Method`.
    pub path: String,
    /// The same for whoever calls it.
    pub target: PathAndQuery,
    /// The method's descriptor: its types and comments.
    pub descriptor: MethodDescriptor,
    /// Whether there may be several requests.
    pub client_streaming: bool,
    /// Whether there may be several answers.
    pub server_streaming: bool,
    /// What the caller must prove; `AccessUnspecified` is refused everywhere.
    pub access: Access,
    /// The permission, `resource:action`; empty when the call needs none.
    pub permission: String,
    /// The class of calls that share a rate limit.
    pub rate_class: RateClass,
    /// The longest time of a call; `None` for streams.
    pub max_deadline: Option<Duration>,
    /// Services that may call directly. The edge may call all but SERVICE methods.
    pub peers: Vec<String>,
    /// The largest request.
    pub max_request_bytes: usize,
    /// The `Location` of what was created; empty when the method creates nothing.
    pub location: String,
    /// For how long anybody may keep the answer, in seconds; 0 for not at all. Only of PUBLIC methods.
    pub cache_max_age_s: u32,
    /// How the user of a USER method must have proven who they are.
    pub proof: Proof,
    /// REST answers 202: the answer does not tell what comes of it.
    pub accepted: bool,
    /// Whether REST passes our cookies in and out.
    pub cookies: bool,
    /// May be sent again after any failure, cached, sent as GET.
    pub no_side_effects: bool,
    /// May be sent again after any failure.
    pub idempotent: bool,
    /// Takes an `Idempotency-Key`: a USER method with one request and one answer that creates or causes something once.
    pub takes_key: bool,
    /// How the edge keeps its answers. Only of methods with one request and one answer.
    pub cache: Option<Cache>,
    /// Where the method lies in REST; the first is the one to show.
    pub http: Vec<HttpBinding>,
}

/// One HTTP method and path template that reaches an RPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpBinding {
    /// The HTTP method.
    pub verb: String,
    /// The path template (AIP-127).
    pub template: String,
    /// The request field that the body maps to; `*` for the whole request; empty for none.
    pub body: String,
    /// The response field that becomes the body; empty for the whole response.
    pub response_body: String,
}

impl Contract {
    /// The contract that this build was compiled with, without its comments.
    pub fn get() -> &'static Self {
        static CONTRACT: LazyLock<Contract> =
            LazyLock::new(|| Contract::read(crate::BARE_DESCRIPTORS).expect("descriptors of this build"));
        &CONTRACT
    }

    /// The same with comments, which take 1.7 MB: for whoever drops it when they are read.
    pub fn documented() -> Self {
        Self::read(crate::DESCRIPTORS).expect("descriptors of this build")
    }

    /// Reads a contract from compiled descriptors; fails when they cannot be read.
    pub fn read(descriptors: &[u8]) -> Result<Self, prost_reflect::DescriptorError> {
        let pool = DescriptorPool::decode(descriptors)?;
        let methods = pool
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>())
            .map(|method| {
                let policy = MethodPolicy::read(&pool, method);
                (policy.path.clone(), policy)
            })
            .collect();
        Ok(Self { pool, methods })
    }

    /// The policy of a gRPC path, `/package.Service/Method`.
    pub fn method(&self, path: &str) -> Option<&MethodPolicy> {
        self.methods.get(path)
    }

    /// Every RPC, in no order.
    pub fn methods(&self) -> impl Iterator<Item = &MethodPolicy> {
        self.methods.values()
    }

    /// All descriptors.
    pub fn pool(&self) -> &DescriptorPool {
        &self.pool
    }
}

impl MethodPolicy {
    fn read(pool: &DescriptorPool, descriptor: MethodDescriptor) -> Self {
        let options = descriptor.options();
        let policy: crate::common::Policy =
            extension(pool, &options, "tollgate.common.v1.policy").unwrap_or_default();
        let rule: Option<HttpRule> = extension(pool, &options, "google.api.http");
        let level = match options.get_field_by_name("idempotency_level").as_deref() {
            Some(Value::EnumNumber(level)) => *level,
            _ => 0,
        };
        let (client_streaming, server_streaming) =
            (descriptor.is_client_streaming(), descriptor.is_server_streaming());
        let streaming = client_streaming || server_streaming;
        let path = format!("/{}/{}", descriptor.parent_service().full_name(), descriptor.name());
        let creates = !policy.location.is_empty() || policy.takes_key;
        Self {
            // Names of protobuf are letters, digits, `_` and `.`.
            target: path.parse().unwrap_or_else(|_| PathAndQuery::from_static("/")),
            path,
            access: policy.access(),
            rate_class: policy.rate_class(),
            proof: policy.proof(),
            accepted: policy.accepted,
            cookies: policy.cookies,
            // What may be sent again anyway needs no key, and without a caller there is nobody whose key it is.
            takes_key: creates && policy.access() == Access::User && level == 0 && !streaming,
            permission: policy.permission,
            max_deadline: (!streaming).then(|| match policy.max_deadline_ms {
                0 => DEFAULT_MAX_DEADLINE,
                ms => Duration::from_millis(u64::from(ms)),
            }),
            peers: policy.peers,
            max_request_bytes: match policy.max_request_bytes {
                0 => DEFAULT_MAX_REQUEST_BYTES,
                bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
            },
            location: policy.location,
            cache_max_age_s: policy.cache_max_age_s,
            cache: policy.cache.filter(|_| level == 1 && !streaming),
            no_side_effects: level == 1,
            idempotent: level == 1 || level == 2,
            http: rule.map(bindings).unwrap_or_default(),
            client_streaming,
            server_streaming,
            descriptor,
        }
    }

    /// The package that owns the method: `tollgate.auth.v1`.
    pub fn package(&self) -> &str {
        let service = self.path[1..].split('/').next().unwrap_or_default();
        service.rsplit_once('.').map_or("", |(package, _)| package)
    }

    /// Whether a request can hold a map. Its entries have no order, so equal requests may differ in their bytes.
    pub fn asks_with_maps(&self) -> bool {
        holds_map(&self.descriptor.input(), &mut HashSet::new())
    }

    /// Whether a service may call the method directly.
    pub fn admits_peer(&self, service: &str) -> bool {
        (self.access != Access::Service && service == "edge-proxy")
            || self.peers.iter().any(|peer| peer == service)
    }
}

fn holds_map(message: &MessageDescriptor, seen: &mut HashSet<String>) -> bool {
    seen.insert(message.full_name().to_owned())
        && message.fields().any(|field| {
            field.is_map() || matches!(field.kind(), Kind::Message(inner) if holds_map(&inner, seen))
        })
}

fn extension<T: prost::Message + Default>(
    pool: &DescriptorPool,
    options: &DynamicMessage,
    name: &str,
) -> Option<T> {
    let extension = pool.get_extension_by_name(name)?;
    if !options.has_extension(&extension) {
        return None;
    }
    match options.get_extension(&extension).as_ref() {
        Value::Message(message) => T::decode(message.encode_to_vec().as_slice()).ok(),
        _ => None,
    }
}

fn bindings(mut rule: HttpRule) -> Vec<HttpBinding> {
    let more = std::mem::take(&mut rule.additional_bindings);
    std::iter::once(rule).chain(more).filter_map(binding).collect()
}

fn binding(rule: HttpRule) -> Option<HttpBinding> {
    let (verb, template) = match rule.pattern? {
        Pattern::Get(path) => ("GET".to_owned(), path),
        Pattern::Put(path) => ("PUT".to_owned(), path),
        Pattern::Post(path) => ("POST".to_owned(), path),
        Pattern::Delete(path) => ("DELETE".to_owned(), path),
        Pattern::Patch(path) => ("PATCH".to_owned(), path),
        Pattern::Custom(custom) => (custom.kind, custom.path),
    };
    Some(HttpBinding { verb, template, body: rule.body, response_body: rule.response_body })
}
