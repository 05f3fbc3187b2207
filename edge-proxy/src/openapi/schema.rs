//! JSON schemas of messages and enums, as proto3 JSON writes them.

use std::collections::{BTreeMap, HashMap};

use prost_reflect::{DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use proto::docs::comment;
use serde_json::{Map, Value, json};

pub(super) const TIMESTAMP: &str = "google.protobuf.Timestamp";
pub(super) const EMPTY: &str = "google.protobuf.Empty";
const STRUCT: &str = "google.protobuf.Struct";

/// The schemas that have been referred to, and the names of all that may be.
#[derive(Debug)]
pub(super) struct Schemas {
    names: HashMap<String, String>,
    made: BTreeMap<String, Value>,
}

impl Schemas {
    /// No schema yet. Names are short where that is unique in the whole contract.
    pub(super) fn new(pool: &DescriptorPool) -> Self {
        let messages = pool.all_messages().map(|m| (m.full_name().to_owned(), m.package_name().to_owned()));
        let enums = pool.all_enums().map(|e| (e.full_name().to_owned(), e.package_name().to_owned()));
        let all: Vec<(String, String)> =
            messages.chain(enums).filter(|(name, _)| name.starts_with("tollgate.")).collect();
        let short = |(name, package): &(String, String)| name[package.len() + 1..].replace('.', "");
        let mut seen: HashMap<String, usize> = HashMap::new();
        for entry in &all {
            *seen.entry(short(entry)).or_default() += 1;
        }
        let names = all.iter().map(|entry| match short(entry) {
            name if seen[&name] == 1 => (entry.0.clone(), name),
            _ => (entry.0.clone(), entry.0.clone()),
        });
        Self { names: names.collect(), made: BTreeMap::new() }
    }

    /// All that was referred to.
    pub(super) fn into_components(self) -> impl Iterator<Item = (String, Value)> {
        self.made.into_iter()
    }

    /// A message: a reference to its schema, which is made when it is not there.
    pub(super) fn message(&mut self, message: &MessageDescriptor) -> Value {
        match message.full_name() {
            TIMESTAMP => json!({"type": "string", "format": "date-time"}),
            EMPTY => json!({"type": "object"}),
            STRUCT => json!({"type": "object", "additionalProperties": true}),
            full => {
                let name = self.name(full);
                if !self.made.contains_key(&name) {
                    // The entry comes first: a message may hold itself.
                    self.made.insert(name.clone(), Value::Null);
                    let schema = self.object(message, &[]);
                    self.made.insert(name.clone(), schema);
                }
                reference(&name)
            }
        }
    }

    /// A message's own schema, without some of its fields.
    pub(super) fn object(&mut self, message: &MessageDescriptor, without: &[&str]) -> Value {
        let file = message.parent_file();
        let mut properties = Map::new();
        for field in message.fields().filter(|field| !without.contains(&field.name())) {
            let mut schema = self.value(&field);
            schema["description"] = comment(&file, field.path()).into();
            properties.insert(field.json_name().to_owned(), schema);
        }
        json!({
            "type": "object",
            "description": comment(&file, message.path()),
            "properties": properties,
        })
    }

    /// A field's value.
    pub(super) fn value(&mut self, field: &FieldDescriptor) -> Value {
        match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                json!({"type": "object", "additionalProperties": self.value(&entry.map_entry_value_field())})
            }
            kind if field.is_list() => json!({"type": "array", "items": self.single(&kind)}),
            kind => self.single(&kind),
        }
    }

    fn single(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::Message(message) => self.message(message),
            Kind::Enum(item) => self.choice(item),
            Kind::Bool => json!({"type": "boolean"}),
            Kind::String => json!({"type": "string"}),
            Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
            Kind::Double | Kind::Float => json!({"type": "number"}),
            Kind::Uint32 | Kind::Fixed32 => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({"type": "integer", "format": "int32"}),
            // JSON numbers are doubles to most readers: 64 bits travel as text.
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => json!({"type": "string", "format": "int64"}),
            Kind::Uint64 | Kind::Fixed64 => json!({"type": "string", "format": "uint64"}),
        }
    }

    fn choice(&mut self, item: &EnumDescriptor) -> Value {
        let name = self.name(item.full_name());
        let file = item.parent_file();
        let values: Vec<String> = item.values().map(|value| value.name().to_owned()).collect();
        let meanings = item.values().map(|v| format!("- `{}`: {}", v.name(), comment(&file, v.path())));
        let text = format!("{}\n\n{}", comment(&file, item.path()), meanings.collect::<Vec<_>>().join("\n"));
        self.made
            .entry(name.clone())
            .or_insert_with(|| json!({"type": "string", "enum": values, "description": text}));
        reference(&name)
    }

    fn name(&self, full: &str) -> String {
        self.names.get(full).cloned().unwrap_or_else(|| full.to_owned())
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// Schemas of what does not come from the contract.
pub(super) fn fixed() -> Map<String, Value> {
    let text = |text: &str| json!({"type": "string", "description": text});
    let object = |description: &str, required: &[&str], properties: Value| json!({"type": "object", "description": description, "required": required, "properties": properties});
    let violation = object(
        "A rule that a field breaks.",
        &["field", "message"],
        json!({
            "field": text("The field's JSON path, such as `operations[3].request.path`."),
            "message": text("The rule, without the field's name: `is required`."),
        }),
    );
    let problem = object(
        "Why a request failed (RFC 9457).",
        &["type", "title", "status", "detail", "instance", "code", "reason"],
        json!({
            "type": text("The kind of problem, a URI."),
            "title": text("The kind of problem in words."),
            "status": {"type": "integer", "description": "The HTTP status."},
            "detail": text("What went wrong this time."),
            "instance": text("The path of the request."),
            "code": text("The gRPC code: `INVALID_ARGUMENT`."),
            "reason": text("A constant that programs may test: `INVALID_FIELD`."),
            "errors": {"type": "array", "items": violation, "description": "The fields that break rules."},
            "traceId": text("The request's trace, for support."),
        }),
    );
    let internal = object(
        "Why a gateway's request failed.",
        &["code", "message", "description"],
        json!({
            "code": {"type": "integer", "description": "The HTTP status."},
            "message": text("The status in words."),
            "description": text("What went wrong this time."),
        }),
    );
    let refusal = object(
        "Why a gateway's connection was refused.",
        &["status", "code", "message"],
        json!({
            "status": {"const": "error"},
            "code": text("A constant: `UNAUTHORIZED`, `TOO_MANY_REQUESTS`, `SERVICE_UNAVAILABLE`."),
            "message": text("What went wrong this time."),
        }),
    );
    let health = object(
        "Whether the services are up.",
        &["status", "services"],
        json!({
            "status": {"type": "string", "enum": ["ok", "degraded"]},
            "services": {"type": "object", "additionalProperties": {"type": "string", "enum": ["up", "down"]}},
        }),
    );
    Map::from_iter([
        ("Problem".to_owned(), problem),
        ("InternalError".to_owned(), internal),
        ("LinkRefusal".to_owned(), refusal),
        ("Health".to_owned(), health),
    ])
}
