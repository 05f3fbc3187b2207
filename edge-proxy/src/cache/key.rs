//! Who asked what: the key of an answer.

use std::borrow::Cow;

use bytes::Bytes;
use http::HeaderMap;
use proto::{Access, MethodPolicy};
use service_kit::AuthContext;
use sha2::{Digest as _, Sha256};

/// The hash of everything that an answer depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

/// A call whose answer may be kept.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) policy: &'static MethodPolicy,
    /// Who asks; nobody for PUBLIC methods.
    pub(crate) caller: Option<&'a AuthContext>,
    /// What the bytes of the answer depend on besides the message: protocol, codec, chosen forms. Nothing else may
    /// have a part in it.
    pub(crate) form: &'a [&'a [u8]],
    /// Whether `Accept` is one of them.
    pub(crate) by_accept: bool,
    /// The request message.
    pub(crate) message: Bytes,
    /// The ids in the path, as they stand there.
    pub(crate) named: &'a [&'a str],
    /// The headers of the request.
    pub(crate) headers: &'a HeaderMap,
}

impl Ask<'_> {
    /// Each part with its length before it, so that no two askings run into one another.
    pub(super) fn key(&self) -> Key {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(self.policy.path.as_bytes());
        match self.caller.map(AuthContext::claims) {
            // Scopes only narrow what is allowed, but they do: a narrower token must not find what a wider one got.
            Some(claims) => {
                [&claims.sub, &claims.sid, &claims.scope].iter().for_each(|text| part(text.as_bytes()));
            }
            None => part(b"anybody"),
        }
        self.form.iter().for_each(|form| part(form));
        part(&self.message);
        Key(hash.finalize().into())
    }

    /// Whether answers to it may be kept at all: never those of a user to somebody who is none.
    pub(super) fn is_sound(&self) -> bool {
        (self.policy.access == Access::User) == self.caller.is_some()
    }

    /// The user's name for [`super::Changes`].
    pub(super) fn own(&self) -> Option<String> {
        self.caller.map(|caller| super::changes::own(caller.user_id()))
    }

    /// What a client must vary its own copy by.
    pub(super) fn vary(&self) -> Option<&'static str> {
        match (self.caller.is_some(), self.by_accept) {
            (true, true) => Some("authorization, accept"),
            (true, false) => Some("authorization"),
            (false, true) => Some("accept"),
            (false, false) => None,
        }
    }

    /// How long clients may keep a copy: nobody but the caller, and never without asking, because hints reach the
    /// edge and not them.
    pub(super) fn cache_control(&self) -> Cow<'static, str> {
        match (self.policy.access, self.policy.cache_max_age_s) {
            (Access::Public, 0) => "public, no-cache".into(),
            (Access::Public, seconds) => format!("public, max-age={seconds}").into(),
            _ => "private, no-cache".into(),
        }
    }
}

#[cfg(test)]
impl Key {
    pub(super) fn of_test(number: u8) -> Self {
        Self([number; 32])
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use bytes::Bytes;
    use http::HeaderMap;
    use proto::Contract;
    use service_kit::{AuthContext, token::Claims};

    use super::Ask;

    fn caller(sub: &str, sid: &str, scope: &str) -> AuthContext {
        AuthContext::new(Arc::new(Claims {
            iss: String::new(),
            sub: sub.into(),
            aud: String::new(),
            exp: 0,
            iat: 0,
            nbf: None,
            jti: String::new(),
            client_id: String::new(),
            sid: sid.into(),
            scope: scope.into(),
            auth_time: 0,
            amr: Vec::new(),
        }))
    }

    #[test]
    fn whatever_differs_makes_another_key() {
        let method = |name: &str| Contract::get().method(&format!("/tollgate.project.v1.{name}")).unwrap();
        let headers = HeaderMap::new();
        let mut keys = HashSet::new();
        let mut count = 0;
        for name in ["ApiService/GetApi", "ApiService/ListApis"] {
            for who in [["u", "s", "*"], ["v", "s", "*"], ["u", "t", "*"], ["u", "s", ""], ["us", "", "*"]] {
                for form in [&[b"json" as &[u8]][..], &[b"js", b"on"], &[]] {
                    for message in ["", "a", "json"] {
                        let caller = caller(who[0], who[1], who[2]);
                        let ask = Ask {
                            policy: method(name),
                            caller: Some(&caller),
                            form,
                            by_accept: false,
                            message: Bytes::from_static(message.as_bytes()),
                            named: &[],
                            headers: &headers,
                        };
                        count += 1;
                        keys.insert(ask.key());
                        assert_eq!(ask.key(), ask.key());
                        // A user's method is never asked for nobody.
                        assert!(ask.is_sound() && !Ask { caller: None, ..ask }.is_sound());
                    }
                }
            }
        }
        assert_eq!(keys.len(), count);
    }
}
