//! Login, refresh and logout of `AuthService`; `SessionService`.

use std::sync::Arc;

use proto::{
    auth::{
        EndMemberSessionsRequest, EndOtherSessionsRequest, EndSessionRequest, EndedSessions,
        ListSessionsRequest, ListSessionsResponse, LoginRequest, LogoutRequest, ReauthenticateRequest,
        RefreshRequest, SecondFactorChallenge, Session, TokenPair, session_service_server::SessionService,
    },
    time::Timestamp,
};
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{AuthContext, ClientInfo, Error, Kind, page::Page};
use tonic::{Request, Response, async_trait, metadata::MetadataMap};

use super::{Answer, cookies};
use crate::domain::{
    known_devices,
    logins::{Login, Logins},
    sessions::{self, Listed, Outcome, Sessions},
};

/// `tollgate.auth.v1.SessionService`.
#[derive(Debug)]
pub(crate) struct SessionApi {
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) logins: Arc<Logins>,
}

pub(super) async fn login(logins: &Logins, request: Request<LoginRequest>) -> Answer<TokenPair> {
    let client = ClientInfo::of(&request);
    let cookie_device = cookies::read(request.metadata(), cookies::DEVICE);
    let LoginRequest { email, password, device_token, cookie } = request.into_inner();
    let device = if device_token.is_empty() { cookie_device } else { Some(SecretString::from(device_token)) };
    let login = Login { email, password: SecretString::from(password), device };
    let outcome = logins.login(&login, &client).await?;
    Ok(answer(&outcome, cookie))
}

/// A token that came as a cookie is answered with one.
pub(super) async fn refresh(sessions: &Sessions, request: Request<RefreshRequest>) -> Answer<TokenPair> {
    let client = ClientInfo::of(&request);
    let kept = cookies::read(request.metadata(), cookies::REFRESH);
    let sent = SecretString::from(request.into_inner().refresh_token);
    let Some(kept) = kept else {
        return Ok(answer(&Outcome::Pair(sessions.refresh(&sent, &client).await?), false));
    };
    if !sent.expose_secret().is_empty() {
        return Err(Error::field("refreshToken", "must be empty when there is a cookie").into());
    }
    match sessions.refresh(&kept, &client).await {
        Ok(pair) => Ok(answer(&Outcome::Pair(pair), true)),
        Err(error) if error.kind() == Kind::Unauthenticated => {
            Err(cookies::clearing(error, cookies::REFRESH))
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn logout(sessions: &Sessions, request: Request<LogoutRequest>) -> Answer<()> {
    let caller = AuthContext::of(&request)?;
    sessions.logout(&caller, &ClientInfo::of(&request)).await?;
    let mut response = Response::new(());
    if cookies::read(request.metadata(), cookies::REFRESH).is_some() {
        cookies::clear(response.metadata_mut(), cookies::REFRESH);
    }
    Ok(response)
}

#[async_trait]
impl SessionService for SessionApi {
    async fn list_sessions(&self, request: Request<ListSessionsRequest>) -> Answer<ListSessionsResponse> {
        let caller = AuthContext::of(&request)?;
        let request = request.into_inner();
        let page = Page::of(request.limit, request.offset)?;
        let (list, total) = self.sessions.list(&caller, page).await?;
        let list: Vec<Session> =
            list.into_iter().map(|listed| encode_session(listed, caller.session_id())).collect();
        Ok(Response::new(ListSessionsResponse {
            count: u32::try_from(list.len()).unwrap_or(u32::MAX),
            list,
            pagination: Some(page.pagination(total)),
        }))
    }

    async fn end_session(&self, request: Request<EndSessionRequest>) -> Answer<()> {
        let caller = AuthContext::of(&request)?;
        let client = ClientInfo::of(&request);
        self.sessions.end(&caller, &request.get_ref().session_id, &client).await?;
        Ok(Response::new(()))
    }

    async fn end_other_sessions(&self, request: Request<EndOtherSessionsRequest>) -> Answer<EndedSessions> {
        let caller = AuthContext::of(&request)?;
        let ended = self.sessions.end_others(&caller, &ClientInfo::of(&request)).await?;
        Ok(Response::new(EndedSessions { ended }))
    }

    async fn end_member_sessions(&self, request: Request<EndMemberSessionsRequest>) -> Answer<EndedSessions> {
        let caller = AuthContext::of(&request)?;
        let client = ClientInfo::of(&request);
        let EndMemberSessionsRequest { organization_id, user_id } = request.into_inner();
        let ended = self.sessions.end_of_member(&caller, &organization_id, &user_id, &client).await?;
        Ok(Response::new(EndedSessions { ended }))
    }

    async fn reauthenticate(&self, request: Request<ReauthenticateRequest>) -> Answer<TokenPair> {
        let caller = AuthContext::of(&request)?;
        let client = ClientInfo::of(&request);
        let password = SecretString::from(request.into_inner().password);
        let outcome = self.logins.reauthenticate(&caller, &password, &client).await?;
        Ok(answer(&outcome, false))
    }
}

/// The answer to a login: with `cookie` the secrets that a browser keeps are cookies.
pub(super) fn answer(outcome: &Outcome, cookie: bool) -> Response<TokenPair> {
    let mut response = Response::new(match outcome {
        Outcome::Pair(pair) => encode(pair),
        Outcome::Challenge(challenge) => TokenPair {
            second_factor: Some(SecondFactorChallenge {
                challenge: challenge.secret.expose_secret().to_owned(),
                methods: challenge.methods.iter().map(|method| (*method).to_owned()).collect(),
                expires_in: challenge.expires_in,
            }),
            ..TokenPair::default()
        },
    });
    if let (Outcome::Pair(pair), true) = (outcome, cookie) {
        response.get_mut().refresh_token.clear();
        response.get_mut().device_token.clear();
        keep(response.metadata_mut(), pair);
    }
    response
}

fn keep(metadata: &mut MetadataMap, pair: &sessions::TokenPair) {
    if let Some(refresh) = &pair.refresh {
        cookies::set(metadata, cookies::REFRESH, refresh, pair.refresh_expires_in);
    }
    if let Some(device) = &pair.device {
        cookies::set(metadata, cookies::DEVICE, device, known_devices::LIFETIME);
    }
}

fn encode(pair: &sessions::TokenPair) -> TokenPair {
    let text = |secret: &Option<SecretString>| {
        secret.as_ref().map(|secret| secret.expose_secret().to_owned()).unwrap_or_default()
    };
    TokenPair {
        access_token: pair.access.expose_secret().to_owned(),
        refresh_token: text(&pair.refresh),
        token_type: "Bearer".to_owned(),
        expires_in: pair.expires_in,
        device_token: text(&pair.device),
        second_factor: None,
    }
}

fn encode_session(listed: Listed, current: &str) -> Session {
    let Listed { session, address, device, last_used_at } = listed;
    Session {
        current: session.id == current,
        id: session.id,
        client_id: session.client_id,
        methods: session.amr,
        address,
        device,
        created_at: Some(Timestamp::from_unix_ms(session.created_at)),
        last_used_at: Some(Timestamp::from_unix_ms(last_used_at)),
        authenticated_at: Some(Timestamp::from_unix_ms(session.authenticated_at)),
        expires_at: Some(Timestamp::from_unix_ms(session.expires_at)),
    }
}
