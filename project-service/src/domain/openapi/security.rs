//! Security schemes and requirements of a document: who may call an operation, and how clients prove it.

use std::collections::BTreeSet;

use proto::project::{
    ApiKeySecurity, AuthorizationCodeGrant, ClientCredentialsGrant, GrantTypes, ImplicitGrant,
    Oauth2Security, Operation, OperationAuthentication, PasswordGrant, Security,
};

use super::{document::Node, mapping::percent_decoded};

/// The security schemes that a document declares, by name.
#[derive(Debug)]
pub(super) struct Schemes<'n>(Vec<(&'n str, &'n Node)>);

impl<'n> Schemes<'n> {
    /// The schemes of a document; one that refers to another stands for it.
    pub(super) fn read(root: &'n Node) -> Self {
        let declared = root.get("components").and_then(|components| components.get("securitySchemes"));
        let Some(declared) = declared else { return Self(Vec::new()) };
        let resolve = |scheme: &'n Node| match scheme.text("$ref") {
            Some(reference) => {
                let name = reference.strip_prefix("#/components/securitySchemes/")?;
                declared.get(&percent_decoded(name).replace("~1", "/").replace("~0", "~"))
            }
            None => Some(scheme),
        };
        let schemes = declared.entries().iter();
        Self(schemes.filter_map(|(name, scheme)| Some((name.as_str(), resolve(scheme)?))).collect())
    }

    /// What a list of requirements asks of a caller: authentication unless it is empty or one of them
    /// asks for nothing, and the scopes of its OAuth 2 and OpenID Connect schemes.
    pub(super) fn authentication(&self, security: Option<&Node>) -> OperationAuthentication {
        let requirements = security.map_or(&[][..], Node::items);
        let required = !requirements.is_empty() && requirements.iter().all(|one| !one.entries().is_empty());
        let mut scopes: Vec<String> = Vec::new();
        for (name, asked) in requirements.iter().flat_map(Node::entries) {
            if !self.has_scopes(name) {
                continue;
            }
            for scope in asked.items().iter().filter_map(Node::as_text) {
                if !scopes.iter().any(|known| known == scope) {
                    scopes.push(scope.to_owned());
                }
            }
        }
        OperationAuthentication { required, scopes }
    }

    /// How clients may authenticate; nothing when the document declares no scheme that the model knows.
    pub(super) fn offered(&self, operations: &[Operation]) -> Option<Security> {
        let (api_key, oauth2) = (self.api_key(), self.oauth2());
        if api_key.is_none() && oauth2.is_none() {
            return None;
        }
        let asks = |operation: &Operation| {
            let request = operation.request.as_ref();
            request.and_then(|request| request.authentication.as_ref()).is_some_and(|asked| asked.required)
        };
        Some(Security { enabled: operations.iter().any(asks), api_key, oauth2 })
    }

    fn has_scopes(&self, name: &str) -> bool {
        let scheme = self.0.iter().find(|(known, _)| *known == name);
        scheme.is_some_and(|(_, scheme)| matches!(scheme.text("type"), Some("oauth2" | "openIdConnect")))
    }

    fn of_type(&self, kind: &str) -> impl Iterator<Item = &'n Node> {
        self.0.iter().map(|(_, scheme)| *scheme).filter(move |scheme| scheme.text("type") == Some(kind))
    }

    fn api_key(&self) -> Option<ApiKeySecurity> {
        let mut security = ApiKeySecurity { enabled: true, ..ApiKeySecurity::default() };
        let mut found = false;
        for scheme in self.of_type("apiKey") {
            let place = match scheme.text("in") {
                Some("header") => &mut security.header,
                Some("query") => &mut security.query,
                Some("cookie") => &mut security.cookie,
                _ => continue,
            };
            // The model has room for one name in each place: the first that the document declares.
            if let (true, Some(name)) = (place.is_empty(), scheme.text("name")) {
                name.clone_into(place);
                found = true;
            }
        }
        found.then_some(security)
    }

    fn oauth2(&self) -> Option<Oauth2Security> {
        let flows: Vec<&Node> = self.of_type("oauth2").filter_map(|scheme| scheme.get("flows")).collect();
        let offers = |flow: &str| flows.iter().any(|flows| flows.get(flow).is_some());
        let scopes: BTreeSet<String> = flows
            .iter()
            .flat_map(|flows| flows.entries())
            .filter_map(|(_, flow)| flow.get("scopes"))
            .flat_map(|scopes| scopes.entries().iter().map(|(scope, _)| scope.clone()))
            .collect();
        (!flows.is_empty()).then(|| Oauth2Security {
            grant_types: Some(GrantTypes {
                authorization_code: offers("authorizationCode")
                    .then(|| AuthorizationCodeGrant { enabled: true, ..AuthorizationCodeGrant::default() }),
                implicit: offers("implicit")
                    .then(|| ImplicitGrant { enabled: true, ..ImplicitGrant::default() }),
                password: offers("password").then_some(PasswordGrant { enabled: true }),
                client_credentials: offers("clientCredentials")
                    .then_some(ClientCredentialsGrant { enabled: true }),
            }),
            scopes: scopes.into_iter().collect(),
        })
    }
}
