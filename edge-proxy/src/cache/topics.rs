//! Which changes an answer depends on: the topics of its method, filled with what the request or the answer says.

use bytes::Bytes;
use prost_reflect::{DynamicMessage, Value};
use proto::MethodPolicy;

use crate::routes::table::variables;

/// The names that an answer is known by: filled as far as `value` knows the fields, cut where it does not.
pub(super) fn filled<'t>(
    topics: &'t [String],
    value: impl Fn(&str) -> Option<String> + 't,
) -> impl Iterator<Item = (String, Option<&'t str>)> + 't {
    topics.iter().map(move |topic| {
        let mut name = String::with_capacity(topic.len() + 40);
        let mut rest = topic.as_str();
        while let Some((before, (field, after))) =
            rest.split_once('{').and_then(|(before, after)| Some((before, after.split_once('}')?)))
        {
            name.push_str(before);
            // A dot in an id would make it look like another subject: no such subject is ever said.
            match value(field).filter(|value| !value.is_empty() && !value.contains('.')) {
                Some(value) => name.push_str(&value),
                None => return (name, Some(field)),
            }
            rest = after;
        }
        name.push_str(rest);
        (name, None)
    })
}

/// The text fields of a request.
pub(super) fn of_request(policy: &MethodPolicy, message: Bytes) -> impl Fn(&str) -> Option<String> + use<> {
    let message = DynamicMessage::decode(policy.descriptor.input(), message).ok();
    move |field| match message.as_ref()?.get_field_by_name(field)?.as_ref() {
        Value::String(text) => Some(text.clone()),
        _ => None,
    }
}

/// The ids in a message that the path of its method names over REST.
pub(crate) fn named(policy: &MethodPolicy, message: &Bytes) -> Vec<String> {
    let value = of_request(policy, message.clone());
    let paths = policy.http.iter().filter_map(|binding| variables(&binding.template).ok());
    paths.flatten().filter_map(|variable| value(variable.name)).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message as _;
    use proto::{
        Contract,
        project::{GetApiRequest, ListApisRequest},
    };

    use super::{filled, named, of_request};

    fn names(topics: &[&str], project: &str) -> Vec<String> {
        let policy = Contract::get().method("/tollgate.project.v1.ApiService/ListApis").unwrap();
        let request = ListApisRequest { project_id: project.into(), limit: Some(3), ..Default::default() };
        let topics: Vec<String> = topics.iter().map(|text| (*text).to_owned()).collect();
        let value = of_request(policy, Bytes::from(request.encode_to_vec()));
        filled(&topics, value).map(|(name, _)| name).collect()
    }

    #[test]
    fn a_topic_is_filled_or_ends_where_nobody_says_more() {
        let topics =
            ["changed.project.{project_id}", "org.{project_id}.x", "changed.", "a.{limit}.b", "a.{nope}"];
        assert_eq!(names(&topics, "p1"), ["changed.project.p1", "org.p1.x", "changed.", "a.", "a."]);
        for nobody in ["", "p.1"] {
            assert_eq!(names(&topics, nobody), ["changed.project.", "org.", "changed.", "a.", "a."]);
        }
    }

    #[test]
    fn a_message_names_what_its_path_would() {
        let policy = Contract::get().method("/tollgate.project.v1.ApiService/GetApi").unwrap();
        let request = GetApiRequest { api_id: "a1".into() };
        assert_eq!(named(policy, &request.encode_to_vec().into()), ["a1"]);
        assert!(named(policy, &Bytes::from_static(b"\xff")).is_empty());
    }
}
