//! Rules that hold for the whole contract, and a readable copy of it (`contract.txt`), so that every
//! change of the contract shows in a review. `UPDATE_EXPECT=1` writes the copy anew.

use std::{collections::HashMap, fmt::Write as _, path::Path, sync::LazyLock};

use prost_reflect::{
    Cardinality, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    ServiceDescriptor,
};
use proto::{Access, Contract, HttpBinding, MethodPolicy, Proof, docs::comment};

/// Lists that are short by nature and come whole: a gateway's tokens are few.
const WHOLE_LISTS: &[&str] = &["/tollgate.gateway.v1.GatewayService/ListTokens"];

/// What changes something once and takes no `Idempotency-Key`: logins and their factors, which have secrets of their
/// own that count once, or are simply done again.
const WITHOUT_KEY: &[&str] = &[
    "/tollgate.auth.v1.AuthService/ChangePassword",
    "/tollgate.auth.v1.AuthService/Logout",
    "/tollgate.auth.v1.DeviceService/DecideDeviceAuthorization",
    "/tollgate.auth.v1.ProviderService/StartProviderLink",
    "/tollgate.auth.v1.SecondFactorService/ConfirmTotp",
    "/tollgate.auth.v1.SecondFactorService/RenewRecoveryCodes",
    "/tollgate.auth.v1.SecondFactorService/StartPasskeyRegistration",
    "/tollgate.auth.v1.SecondFactorService/StartTotp",
    "/tollgate.auth.v1.SessionService/Reauthenticate",
];

/// With comments.
fn documented() -> &'static Contract {
    static CONTRACT: LazyLock<Contract> = LazyLock::new(Contract::documented);
    &CONTRACT
}

fn services() -> Vec<ServiceDescriptor> {
    let mut services: Vec<_> = documented().pool().services().filter(|s| ours(s.full_name())).collect();
    services.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    services
}

fn messages() -> Vec<MessageDescriptor> {
    let mut messages: Vec<_> = documented()
        .pool()
        .all_messages()
        .filter(|message| ours(message.full_name()) && !message.is_map_entry())
        .collect();
    messages.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    messages
}

fn enums() -> Vec<EnumDescriptor> {
    let mut enums: Vec<_> = documented().pool().all_enums().filter(|e| ours(e.full_name())).collect();
    enums.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    enums
}

fn ours(full_name: &str) -> bool {
    full_name.starts_with("tollgate.")
}

/// Every RPC, by its path.
fn methods() -> Vec<&'static MethodPolicy> {
    let mut methods: Vec<_> = documented().methods().filter(|method| ours(&method.path[1..])).collect();
    methods.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(methods.len() > 40, "the contract is there");
    methods
}

fn bindings() -> Vec<(&'static MethodPolicy, &'static HttpBinding)> {
    methods()
        .into_iter()
        .flat_map(|method| method.http.iter().map(move |binding| (method, binding)))
        .collect()
}

/// Fails with all findings at once.
fn none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

#[test]
fn everything_is_documented() {
    let mut bare = Vec::new();
    let mut check = |name: &str, text: String| {
        let sentence =
            text.chars().next().is_some_and(|c| c.is_uppercase() || c == '`') && text.ends_with('.');
        if !sentence {
            bare.push(format!("{name} needs a comment that is a sentence; it has {text:?}"));
        }
    };
    for service in services() {
        check(service.full_name(), comment(&service.parent_file(), service.path()));
        for method in service.methods() {
            check(method.full_name(), comment(&method.parent_file(), method.path()));
        }
    }
    for message in messages() {
        check(message.full_name(), comment(&message.parent_file(), message.path()));
        for field in message.fields() {
            check(field.full_name(), comment(&message.parent_file(), field.path()));
        }
        for oneof in message.oneofs().filter(|oneof| !oneof.is_synthetic()) {
            check(oneof.full_name(), comment(&message.parent_file(), oneof.path()));
        }
    }
    for item in enums() {
        check(item.full_name(), comment(&item.parent_file(), item.path()));
        for value in item.values() {
            check(value.full_name(), comment(&item.parent_file(), value.path()));
        }
    }
    none(bare);
}

#[test]
fn every_rpc_says_who_may_call_it() {
    let mut wrong = Vec::new();
    for method in methods() {
        let path = &method.path;
        match method.access {
            Access::Unspecified => wrong.push(format!("{path} has no policy")),
            Access::User if !is_permission(&method.permission) => {
                wrong.push(format!("{path}: {:?} is not `resource:action`", method.permission));
            }
            Access::Public | Access::Gateway | Access::Service if !method.permission.is_empty() => {
                wrong.push(format!("{path}: only USER methods have a permission"));
            }
            Access::Service if method.peers.is_empty() => wrong.push(format!("{path} admits no peer")),
            Access::Public | Access::Gateway | Access::Service if method.proof != Proof::Any => {
                wrong.push(format!("{path}: only users prove who they are"));
            }
            Access::Service if !method.http.is_empty() => {
                wrong.push(format!("{path} is for services and must not lie in REST"));
            }
            _ => {}
        }
        for peer in &method.peers {
            // The edge may call all others anyway.
            let edge = peer == "edge-proxy" && method.access == Access::Service;
            if !peer.ends_with("-service") && !edge {
                wrong.push(format!("{path}: the peer {peer} is not a service"));
            }
        }
    }
    none(wrong);
}

fn is_permission(text: &str) -> bool {
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    text.split_once(':').is_some_and(|(resource, action)| word(resource) && word(action))
}

#[test]
fn rest_paths_lie_where_they_should() {
    let mut wrong = Vec::new();
    for (method, HttpBinding { template, verb, .. }) in bindings() {
        if !template.starts_with("/api/") && template != "/.well-known/jwks.json" {
            wrong.push(format!("{template} is neither below /api/ nor the key set"));
        }
        // The statistics are for operators; the requirements name their path.
        let internal = template.starts_with("/api/internal/v1/") && template != "/api/internal/v1/stats";
        if internal != (method.access == Access::Gateway) {
            wrong.push(format!("{template}: /api/internal/v1/ is for GATEWAY methods, and they for it"));
        }
        if verb == "GET" && !method.no_side_effects {
            wrong.push(format!("GET {template} must have no side effects"));
        }
        if ["PUT", "DELETE"].contains(&verb.as_str()) && !method.idempotent {
            wrong.push(format!("{verb} {template} must be idempotent"));
        }
    }
    for method in methods() {
        let first = method.http.first().map(|binding| binding.template.as_str());
        if first.is_some_and(|template| !is_versioned(template)) {
            wrong.push(format!("{}: the first path must not be an alias", method.path));
        }
    }
    none(wrong);
}

fn is_versioned(template: &str) -> bool {
    template.starts_with("/api/v1/")
        || template.starts_with("/api/internal/v1/")
        || !template.starts_with("/api/")
}

#[test]
fn no_two_rpcs_share_a_rest_path() {
    let mut seen: HashMap<(String, &str), &str> = HashMap::new();
    let mut twice = Vec::new();
    for (method, binding) in bindings() {
        let shape: Vec<&str> =
            binding.template.split('/').map(|part| if part.starts_with('{') { "{}" } else { part }).collect();
        if let Some(other) = seen.insert((shape.join("/"), &binding.verb), &method.path) {
            twice.push(format!("{} {}: {other} and {}", binding.verb, binding.template, method.path));
        }
    }
    none(twice);
}

#[test]
fn rest_paths_name_fields_that_exist() {
    let mut wrong = Vec::new();
    for (method, binding) in bindings() {
        let at = format!("{} {}", binding.verb, binding.template);
        let (input, output) = (method.descriptor.input(), method.descriptor.output());
        for variable in variables(&binding.template) {
            let field = input.get_field_by_name(variable);
            if !field.is_some_and(|field| field.kind() == Kind::String && !field.is_list()) {
                wrong.push(format!("{at}: {variable} is not a string field of {}", input.full_name()));
            }
        }
        if !["", "*"].contains(&binding.body.as_str()) && !names_message(&input, &binding.body) {
            wrong.push(format!("{at}: the body {} is not a message field", binding.body));
        }
        if !binding.response_body.is_empty() && !names_message(&output, &binding.response_body) {
            wrong.push(format!("{at}: the response body {} is not a message field", binding.response_body));
        }
        if binding.body.is_empty() == ["POST", "PUT", "PATCH"].contains(&binding.verb.as_str()) {
            wrong.push(format!("{at}: POST, PUT and PATCH have a body, others have none"));
        }
        for variable in location_variables(method) {
            if output.get_field_by_json_name(variable).is_none() {
                wrong.push(format!(
                    "{at}: the location's {variable} is not a field of {}",
                    output.full_name()
                ));
            }
        }
    }
    none(wrong);
}

fn variables(template: &str) -> impl Iterator<Item = &str> {
    template.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn location_variables(method: &MethodPolicy) -> impl Iterator<Item = &str> {
    variables(&method.location)
}

fn names_message(message: &MessageDescriptor, field: &str) -> bool {
    message.get_field_by_name(field).is_some_and(|field| matches!(field.kind(), Kind::Message(_)))
}

#[test]
fn what_is_kept_says_when_it_changed() {
    let mut wrong = Vec::new();
    for method in methods() {
        let Some(cache) = &method.cache else { continue };
        let path = &method.path;
        if !matches!(method.access, Access::User | Access::Public) || method.cookies || cache.max_age_s == 0 {
            wrong.push(format!("{path} cannot be kept"));
        }
        // Somebody's rights change with what they are rights to.
        if method.access == Access::User && cache.topics.is_empty() {
            wrong.push(format!("{path} says no topics"));
        }
        for topic in &cache.topics {
            let (input, output) = (method.descriptor.input(), method.descriptor.output());
            let text = |message: &MessageDescriptor, name: &str| {
                message.get_field_by_name(name).is_some_and(|f| f.kind() == Kind::String && !f.is_list())
            };
            for name in topic.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
                if !text(&input, name) && !text(&output, name) {
                    wrong.push(format!("{path}: nothing says the {name} of {topic}"));
                }
            }
            if !topic.starts_with("changed.") {
                wrong.push(format!("{path}: nobody hears of {topic}"));
            }
        }
    }
    none(wrong);
}

#[test]
fn what_creates_takes_a_key() {
    let mut wrong = Vec::new();
    for method in methods() {
        let path = &method.path;
        let streams = method.descriptor.is_client_streaming() || method.descriptor.is_server_streaming();
        let once = method.access == Access::User && !method.idempotent && !streams;
        let exempt = WITHOUT_KEY.contains(&path.as_str());
        if method.takes_key && (!once || exempt || method.cookies) {
            wrong.push(format!("{path} takes a key that it has no use for"));
        }
        if once && !method.takes_key && !exempt {
            wrong.push(format!("{path} changes something once and takes no key"));
        }
    }
    none(wrong);
}

#[test]
fn lists_come_in_pages() {
    let mut wrong = Vec::new();
    let listed = |method: &MethodPolicy| method.descriptor.name().starts_with("List");
    for method in methods().into_iter().filter(|method| method.access == Access::User && listed(method)) {
        let (input, output) = (method.descriptor.input(), method.descriptor.output());
        let whole = WHOLE_LISTS.contains(&method.path.as_str());
        for (message, field) in [(&input, "limit"), (&input, "offset"), (&output, "pagination")] {
            if message.get_field_by_name(field).is_some() == whole {
                wrong.push(format!("{}: {field} of {}", method.path, message.full_name()));
            }
        }
        for field in ["count", "list"] {
            if output.get_field_by_name(field).is_none() {
                wrong.push(format!("{}: {} has no {field}", method.path, output.full_name()));
            }
        }
    }
    none(wrong);
}

#[test]
fn the_contract_is_as_reviewed() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract.txt");
    let now = render();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&file, &now).unwrap();
    }
    let reviewed = std::fs::read_to_string(&file).unwrap_or_default();
    if let Some((line, (was, is))) =
        reviewed.lines().zip(now.lines()).enumerate().find(|(_, (was, is))| was != is)
    {
        panic!("contract.txt:{}: {was:?} is now {is:?}; review, then UPDATE_EXPECT=1", line + 1);
    }
    assert_eq!(reviewed.len(), now.len(), "the contract has grown or shrunk; review, then UPDATE_EXPECT=1");
}

fn render() -> String {
    let mut text = String::from("# Written by tests/contract.rs with UPDATE_EXPECT=1.\n");
    for service in services() {
        let _ = writeln!(text, "\nservice {}", service.full_name());
        for method in service.methods() {
            render_method(&mut text, &method);
        }
    }
    for message in messages() {
        let _ = writeln!(text, "\nmessage {}", message.full_name());
        for field in message.fields() {
            let (number, name, json) = (field.number(), field.name(), field.json_name());
            let _ = writeln!(text, "  {number} {name}: {} \"{json}\"", type_of(&field));
        }
    }
    for item in enums() {
        let _ = writeln!(text, "\nenum {}", item.full_name());
        for value in item.values() {
            let _ = writeln!(text, "  {} {}", value.number(), value.name());
        }
    }
    text
}

fn render_method(text: &mut String, method: &MethodDescriptor) {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let policy = documented().method(&path).expect("a policy for each method");
    let stream = |is: bool| if is { "stream " } else { "" };
    let _ = writeln!(
        text,
        "  {}({}{}) returns ({}{})",
        method.name(),
        stream(method.is_client_streaming()),
        method.input().full_name(),
        stream(method.is_server_streaming()),
        method.output().full_name(),
    );
    let mut facts = vec![policy.access.as_str_name().to_owned()];
    facts.extend((!policy.permission.is_empty()).then(|| policy.permission.clone()));
    facts.extend((!policy.peers.is_empty()).then(|| format!("from {}", policy.peers.join(" "))));
    facts.push(policy.rate_class.as_str_name().to_owned());
    facts.extend((policy.proof != Proof::Any).then(|| policy.proof.as_str_name().to_owned()));
    facts.extend(policy.accepted.then(|| "accepted".to_owned()));
    facts.extend(policy.cookies.then(|| "cookies".to_owned()));
    facts.extend(policy.cache.as_ref().map(|cache| {
        let times = [cache.max_age_s, cache.stale_while_revalidate_s, cache.stale_if_error_s];
        let [fresh, revalidating, broken] = times;
        format!("kept {fresh}+{revalidating}+{broken} s until {}", cache.topics.join(" "))
    }));
    facts.extend(policy.max_deadline.map(|deadline| format!("{} ms", deadline.as_millis())));
    facts.push(format!("{} bytes", policy.max_request_bytes));
    facts.extend(policy.takes_key.then(|| "takes a key".to_owned()));
    facts.push(if policy.no_side_effects {
        "no side effects".to_owned()
    } else if policy.idempotent {
        "idempotent".to_owned()
    } else {
        "once".to_owned()
    });
    let _ = writeln!(text, "    {}", facts.join(", "));
    for HttpBinding { verb, template, body, response_body } in &policy.http {
        let _ = write!(text, "    {verb} {template}");
        for (name, value) in
            [("body", body), ("response_body", response_body), ("location", &policy.location)]
        {
            if !value.is_empty() {
                let _ = write!(text, " {name}={value}");
            }
        }
        text.push('\n');
    }
}

fn type_of(field: &FieldDescriptor) -> String {
    let name = match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
            return format!("map<{}, {}>", type_of(&key), type_of(&value));
        }
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(item) => item.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    };
    match field.cardinality() {
        Cardinality::Repeated => format!("repeated {name}"),
        _ if field.containing_oneof().is_some_and(|oneof| oneof.is_synthetic()) => format!("optional {name}"),
        _ => name,
    }
}
