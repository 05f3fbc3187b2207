//! Requests made from descriptors: valid in every field that a method may look at first, so that only
//! the ids decide.

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};
use proto::MethodPolicy;

use crate::support::{PASSWORD, unique};

/// A small document that can be imported.
const DOCUMENT: &str = r#"{"openapi":"3.0.0","info":{"title":"t","version":"1"},
    "servers":[{"url":"https://x.example"}],"paths":{"/a":{"get":{"responses":{}}}}}"#;

/// The parts of requests that are filled in; all others stay empty.
const PARTS: [&str; 6] = ["api", "deployments", "definition", "manifest", "form", "payload"];

/// One id of each kind.
#[derive(Debug, Clone)]
pub(crate) struct Ids {
    pub(crate) organization: String,
    pub(crate) project: String,
    pub(crate) user: String,
    pub(crate) api: String,
    pub(crate) revision: String,
    pub(crate) gateway: String,
    pub(crate) token: String,
    pub(crate) deployment: String,
    pub(crate) session: String,
    pub(crate) personal_token: String,
    pub(crate) service_account: String,
    pub(crate) key: String,
    pub(crate) passkey: String,
    pub(crate) identity: String,
    /// Of a device: what a person enters.
    pub(crate) user_code: String,
}

impl Ids {
    /// Ids of nothing.
    pub(crate) fn nowhere() -> Self {
        let ids = service_kit::Ids::new(service_kit::Clock::system());
        Self {
            organization: ids.next(),
            project: ids.next(),
            user: ids.next(),
            api: ids.next(),
            revision: ids.next(),
            gateway: ids.next(),
            token: ids.next(),
            deployment: ids.next(),
            session: ids.next(),
            personal_token: ids.next(),
            service_account: ids.next(),
            key: ids.next(),
            passkey: ids.next(),
            identity: ids.next(),
            user_code: "BCDF-GHJK".to_owned(),
        }
    }

    /// The id for a field such as `api_id` or `deployment_ids`.
    fn of(&self, field: &FieldDescriptor) -> Option<&str> {
        let name = field.name();
        if name == "user_code" {
            return Some(&self.user_code);
        }
        let stem = name.strip_suffix("_id").or_else(|| name.strip_suffix("_ids"))?;
        Some(match stem {
            "token" if field.parent_message().package_name() == "tollgate.auth.v1" => &self.personal_token,
            "organization" => &self.organization,
            "project" => &self.project,
            "user" => &self.user,
            "api" | "artifact" => &self.api,
            "revision" => &self.revision,
            "gateway" => &self.gateway,
            "token" => &self.token,
            "deployment" => &self.deployment,
            "session" => &self.session,
            "service_account" => &self.service_account,
            "key" => &self.key,
            "passkey" => &self.passkey,
            "identity" => &self.identity,
            _ => return None,
        })
    }
}

/// Whether a method's request names something that belongs to somebody.
pub(crate) fn names_something(method: &MethodPolicy) -> bool {
    let ids = Ids::nowhere();
    method.descriptor.input().fields().any(|field| ids.of(&field).is_some() && is_text(&field))
}

/// A request of the method, encoded.
pub(crate) fn request(method: &MethodPolicy, ids: &Ids) -> Bytes {
    filled(&method.descriptor.input(), ids).encode_to_vec().into()
}

fn is_text(field: &FieldDescriptor) -> bool {
    field.kind() == Kind::String
}

fn filled(descriptor: &MessageDescriptor, ids: &Ids) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        let value = match field.kind() {
            Kind::String => text(&field, ids).map(Value::String),
            Kind::Bytes if descriptor.full_name() == "google.api.HttpBody" => {
                Some(Value::Bytes(DOCUMENT.into()))
            }
            Kind::Message(part) if PARTS.contains(&field.name()) => Some(Value::Message(filled(&part, ids))),
            _ => None,
        };
        if let Some(value) = value {
            let value = if field.is_list() { Value::List(vec![value]) } else { value };
            message.set_field(&field, value);
        }
    }
    message
}

/// A valid text for a field; nothing where empty is as good.
fn text(field: &FieldDescriptor, ids: &Ids) -> Option<String> {
    if let Some(id) = ids.of(field) {
        // In an API these are set by the server.
        return Some(id.to_owned());
    }
    Some(match field.name() {
        "name" => unique("n"),
        "display_name" => "A Name".to_owned(),
        "context" => format!("/{}", unique("c")),
        "version" => "1.0".to_owned(),
        "handle" => unique("h"),
        "vhost" => "a.example.com".to_owned(),
        "content_type" => "application/json".to_owned(),
        "role" => "viewer".to_owned(),
        "scopes" => "*:read".to_owned(),
        "type" => "custom.x".to_owned(),
        "client_id" => "tollgate-cli".to_owned(),
        "provider" => "local".to_owned(),
        "code" => "000000".to_owned(),
        "email" => format!("{}@example.com", unique("u")),
        "password" | "current_password" => PASSWORD.to_owned(),
        "new_password" => unique("a new password"),
        _ => return None,
    })
}

#[test]
fn ids_and_valid_values_are_filled_in() {
    let method =
        proto::Contract::get().method("/tollgate.project.v1.DeploymentService/DeployRevision").unwrap();
    let ids = Ids::nowhere();
    let made = proto::project::DeployRevisionRequest::decode(request(method, &ids)).unwrap();
    assert_eq!((made.api_id, made.revision_id), (ids.api, ids.revision.clone()));
    let target = &made.deployments[0];
    assert_eq!((&target.gateway_id, &target.revision_id), (&ids.gateway, &ids.revision));
    assert!(names_something(method));
}
