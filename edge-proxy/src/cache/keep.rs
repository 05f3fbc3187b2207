//! An answer as it is kept, and how it becomes one.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use prost_reflect::{DynamicMessage, Value};
use proto::{MethodPolicy, policy::Cache as Rule};
use serde_json::value::RawValue;
use service_kit::Error;

use super::{
    Cache,
    changes::Tag,
    etag,
    key::Key,
    topics::{filled, of_request},
};
use crate::{layers::Response, rescue::Refusal};

/// What an entry takes besides its body: tags, headers, the map around it.
const OVERHEAD: usize = 512;

/// Marks an answer that says more than its body does: only who asked may have it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unshared;

/// An answer.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) content_type: HeaderValue,
    pub(super) body: Bytes,
    pub(super) etag: HeaderValue,
    /// When its service was asked.
    pub(super) at_ms: i64,
    /// The moment to compare changes with.
    began: u64,
    tags: Box<[Tag]>,
}

/// What came of a call.
pub(super) enum Made {
    /// An answer that can be given to each who asked the same.
    Kept(Arc<Kept>),
    /// One that only who asked may have.
    Other(Response),
}

/// What is needed to make an answer of a call.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) cache: Arc<Cache>,
    pub(super) policy: &'static MethodPolicy,
    pub(super) rule: &'static Rule,
    pub(super) key: Key,
    pub(super) message: Bytes,
    /// The names that are known before the answer.
    pub(super) tags: Vec<Tag>,
    /// Whether to keep it.
    pub(super) stores: bool,
}

impl Kept {
    pub(super) fn weight(&self) -> u32 {
        u32::try_from(self.body.len() + OVERHEAD).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
impl Kept {
    pub(super) fn of_test(content_type: HeaderValue) -> Self {
        let (body, etag) = (Bytes::new(), content_type.clone());
        Self { content_type, body, etag, at_ms: 0, began: 0, tags: Box::default() }
    }
}

impl Cache {
    /// Whether something changed that makes an answer wrong.
    pub(super) fn is_wrong(&self, kept: &Kept) -> bool {
        self.changes.since(kept.began, &kept.tags)
    }
}

impl Recipe {
    /// The names of what an answer depends on, as far as its request says.
    pub(super) fn names(&self) -> impl Iterator<Item = Tag> {
        let value = of_request(self.policy, self.message.clone());
        filled(&self.rule.topics, value).map(|(name, _)| self.cache.changes.tag(&name))
    }

    /// Makes the call, and keeps its answer where that may be.
    pub(super) async fn make(
        self,
        call: impl Future<Output = Result<Response, Refusal>>,
    ) -> Result<Made, Refusal> {
        // Before the call: whatever changes from now on makes its answer wrong.
        let (began, at_ms) = (self.cache.changes.now(), self.cache.clock.now_ms());
        let response = call.await?;
        let plain = response.status() == StatusCode::OK
            && !response.headers().contains_key(header::SET_COOKIE)
            && response.extensions().get::<Unshared>().is_none();
        let Some(content_type) = response.headers().get(header::CONTENT_TYPE).filter(|_| plain).cloned()
        else {
            return Ok(Made::Other(response));
        };
        let body = response.into_body().collect().await.map_err(Error::from)?.to_bytes();
        let etag = etag::strong(&content_type, &body);
        let tags = self.tags_of(&content_type, &body);
        let kept = Arc::new(Kept { content_type, body, etag, at_ms, began, tags });
        let Some(store) = &self.cache.kept else { return Ok(Made::Kept(kept)) };
        if self.stores && kept.body.len() <= self.cache.max_entry_bytes && !self.cache.is_wrong(&kept) {
            store.insert(self.key, kept.clone());
            metrics::gauge!("tollgate_cache_bytes").set(store.weighted_size() as f64);
        }
        Ok(Made::Kept(kept))
    }

    fn tags_of(&self, content_type: &HeaderValue, body: &Bytes) -> Box<[Tag]> {
        let request = of_request(self.policy, self.message.clone());
        let answer = of_answer(self.policy, content_type, body);
        let names = filled(&self.rule.topics, |field| request(field).or_else(|| answer(field)));
        let names = names.map(|(name, _)| self.cache.changes.tag(&name));
        self.tags.iter().copied().chain(names).collect()
    }
}

/// The text fields of an answer, in either of the forms that messages are answered in.
fn of_answer<'a>(
    policy: &'static MethodPolicy,
    content_type: &HeaderValue,
    body: &'a Bytes,
) -> impl Fn(&str) -> Option<String> + 'a {
    let is = |name: &[u8]| content_type.as_bytes().starts_with(name);
    let (json, protobuf) = (is(b"application/json"), is(b"application/proto"));
    move |field| {
        let output = policy.descriptor.output();
        let field = output.get_field_by_name(field)?;
        if json {
            let members: HashMap<&str, &RawValue> = serde_json::from_slice(body).ok()?;
            return serde_json::from_str(members.get(field.json_name())?.get()).ok();
        }
        let message = protobuf.then(|| DynamicMessage::decode(output, body.clone()).ok()).flatten()?;
        match message.get_field(&field).as_ref() {
            Value::String(text) => Some(text.clone()),
            _ => None,
        }
    }
}
