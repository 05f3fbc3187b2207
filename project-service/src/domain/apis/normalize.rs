//! Puts an API into the form in which it is kept: defaults filled in, the context with its slash, what
//! only the server says removed. Never refuses anything: the rules are in [`super::validate`].

use proto::project::{
    Api,
    api::{LifeCycleStatus, Type},
    api_rate_limiting::TimeUnit,
};

pub(super) fn normalize(api: &mut Api) {
    for text in [&mut api.name, &mut api.display_name, &mut api.version, &mut api.provider] {
        trim(text);
    }
    if api.display_name.is_empty() {
        api.display_name.clone_from(&api.name);
    }
    api.context = context(&api.context);
    if api.transport.is_empty() {
        api.transport = vec!["http".to_owned(), "https".to_owned()];
    }
    if api.life_cycle_status == i32::from(LifeCycleStatus::Unspecified) {
        api.set_life_cycle_status(LifeCycleStatus::Created);
    }
    if api.r#type == i32::from(Type::Unspecified) {
        api.set_type(Type::Http);
    }
    if let Some(limit) = &mut api.api_rate_limiting
        && limit.rate_limit_time_unit == i32::from(TimeUnit::Unspecified)
    {
        limit.set_rate_limit_time_unit(TimeUnit::Minute);
    }
    for balance in api.backend_services.iter_mut().filter_map(|backend| backend.load_balance.as_mut()) {
        if balance.algorithm.is_empty() {
            "round-robin".clone_into(&mut balance.algorithm);
        }
    }
    clear_output(api);
}

/// The base path with one leading slash and none at the end; empty stays empty.
fn context(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() {
        return String::new();
    }
    let inner = text.strip_prefix('/').unwrap_or(text);
    // `//` has an empty segment, which is refused later and not hidden here.
    format!("/{}", inner.strip_suffix('/').filter(|rest| !rest.is_empty()).unwrap_or(inner))
}

fn clear_output(api: &mut Api) {
    api.id.clear();
    api.created_at = None;
    api.updated_at = None;
    api.is_revision = false;
    api.revisioned_api_id.clear();
    api.revision_id = 0;
}

fn trim(text: &mut String) {
    let trimmed = text.trim();
    if trimmed.len() != text.len() {
        *text = trimmed.to_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::context;

    #[test]
    fn contexts_have_a_leading_slash_and_none_at_the_end() {
        for (given, kept) in
            [("a", "/a"), ("/a", "/a"), ("/a/b/", "/a/b"), ("a/", "/a"), ("/", "/"), (" /a ", "/a"), ("", "")]
        {
            assert_eq!(context(given), kept, "{given:?}");
        }
        assert_eq!((context("//"), context("//a")), ("//".to_owned(), "//a".to_owned()));
    }
}
