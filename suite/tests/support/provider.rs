use secrecy::ExposeSecret as _;
use serde_json::json;
use service_kit::Clock;
use suite::client::{Client, text_at};

use super::{
    oidc_server::{Fault, OidcServer, person},
    unique,
};

/// An OpenID Connect provider on loopback; the suite calls it `local`.
pub(crate) struct Provider {
    server: OidcServer,
    /// How the suite proves itself to it.
    pub(crate) client_secret: String,
}

impl Provider {
    pub(crate) async fn start() -> Self {
        let server = OidcServer::start(&Clock::system()).await;
        let client_secret = server.config().client_secret.expose_secret().to_owned();
        Self { server, client_secret }
    }

    /// The suite's settings of it.
    pub(crate) fn settings(&self) -> String {
        let config = self.server.config();
        format!(
            "[auth.providers.local]\nname = {:?}\nissuer = {:?}\nclient_id = {:?}\nclient_secret = {:?}\n\
             redirect_url = {:?}\nscopes = {:?}\n",
            config.name,
            config.issuer,
            config.client_id,
            self.client_secret,
            config.redirect_url,
            config.scopes
        )
    }

    /// Somebody new logs in there, where a start sent the browser; code and state.
    pub(crate) async fn browse(&self, started: &serde_json::Value) -> (String, String) {
        self.server.person(person(&unique("s"), &format!("{}@example.com", unique("u")), true));
        self.server.browse(text_at(started, "/authorizationUrl").unwrap()).await
    }

    /// What it can do wrong when it is asked for tokens.
    pub(crate) fn faults(&self) -> [Fault; 6] {
        [
            Fault::WrongNonce,
            Fault::Expired,
            Fault::SignedBySomebodyElse,
            Fault::NoIdToken,
            Fault::Garbage,
            Fault::Unwell,
        ]
    }

    /// Does something wrong while `call` is under way.
    pub(crate) async fn with_fault<T>(&self, fault: Fault, call: impl Future<Output = T>) -> T {
        self.server.fault(fault);
        let answer = call.await;
        self.server.fault(Fault::None);
        answer
    }

    /// Adds an identity to the client's account; its id.
    pub(crate) async fn link(&self, client: &Client) -> String {
        let path = "/api/v1/auth/providers/local";
        let started = client.post(&format!("{path}/link"), &json!({})).await.unwrap().expect(200).unwrap();
        let (code, state) = self.browse(&started).await;
        let body = json!({"state": state, "code": code, "binding": started["binding"]});
        client.post(&format!("{path}/finish"), &body).await.unwrap().expect(200).unwrap();
        let list = client.get("/api/v1/auth/identities").await.unwrap().expect(200).unwrap();
        text_at(&list, "/list/0/id").unwrap().to_owned()
    }
}
