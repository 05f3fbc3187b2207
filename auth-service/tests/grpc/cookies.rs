//! What browsers keep: the refresh token and the device token as cookies.

use proto::auth::{LoginRequest, LogoutRequest, RefreshRequest, TokenPair};
use service_kit::{Error, Kind};
use tonic::{Request, Response, Status, metadata::MetadataMap};

use crate::harness::{Auth, PASSWORD, login, on_both, refresh, with_token};

const JANE: &str = "jane@example.com";
const REFRESH: &str = "__Host-tollgate-refresh";
const DEVICE: &str = "__Host-tollgate-device";
/// What follows a value.
const KEPT: &str = "; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=";

fn cookie_login(password: &str) -> LoginRequest {
    LoginRequest { email: JANE.into(), password: password.into(), cookie: true, ..LoginRequest::default() }
}

fn with_cookie<T>(cookie: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("cookie", cookie.parse().unwrap());
    request
}

/// The value and the seconds of a cookie that is set.
fn set(metadata: &MetadataMap, name: &str) -> Option<(String, u64)> {
    let lines: Vec<&str> = metadata.get_all("set-cookie").iter().map(|line| line.to_str().unwrap()).collect();
    let line = lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    let (value, seconds) = line.split_once(KEPT).unwrap_or_else(|| panic!("{lines:?}"));
    Some((value.to_owned(), seconds.parse().unwrap()))
}

/// The refresh token and the device token of an answer that has no secret in its body.
fn kept(response: Response<TokenPair>) -> (String, String) {
    let (refresh, idle) = set(response.metadata(), REFRESH).unwrap();
    let (device, year) = set(response.metadata(), DEVICE).unwrap();
    assert_eq!((idle, year, refresh.len(), device.len()), (1_209_600, 31_536_000, 43, 43));
    let body = response.into_inner();
    assert!(body.refresh_token.is_empty() && body.device_token.is_empty() && !body.access_token.is_empty());
    (refresh, device)
}

fn refusal(status: Status) -> (Option<(String, u64)>, Error) {
    (set(status.metadata(), REFRESH), Error::from(status))
}

#[tokio::test]
async fn a_browser_logs_in_refreshes_and_logs_out_with_cookies() {
    on_both(async |auth: Auth| {
        let mut client = auth.client();
        auth.user(JANE).await;
        let (first, _) = kept(client.login(cookie_login(PASSWORD)).await.unwrap());

        let cookie = format!("theme=dark; {REFRESH}={first}");
        let answer = client.refresh(with_cookie(&cookie, RefreshRequest::default())).await.unwrap();
        let (second, _) = set(answer.metadata(), REFRESH).unwrap();
        assert!(second != first && set(answer.metadata(), DEVICE).is_none());
        let body = answer.into_inner();
        assert!(body.refresh_token.is_empty() && body.device_token.is_empty());

        let mut request = with_cookie(&format!("{REFRESH}={second}"), LogoutRequest {});
        let bearer = format!("Bearer {}", body.access_token);
        request.metadata_mut().insert("authorization", bearer.parse().unwrap());
        let answer = client.logout(request).await.unwrap();
        assert_eq!(set(answer.metadata(), REFRESH), Some((String::new(), 0)));

        let cookie = format!("{REFRESH}={second}");
        let status = client.refresh(with_cookie(&cookie, RefreshRequest::default())).await.unwrap_err();
        let (cleared, error) = refusal(status);
        assert_eq!((error.kind(), error.reason()), (Kind::Unauthenticated, "INVALID_GRANT"));
        assert_eq!(cleared, Some((String::new(), 0)));
    })
    .await;
}

#[tokio::test]
async fn a_token_is_in_one_place_and_answered_there() {
    on_both(async |auth: Auth| {
        let mut client = auth.client();
        let (_, pair) = auth.user(JANE).await;
        let token = pair.refresh_token;
        // Both places: whichever is meant, nothing happens to the token.
        let both = RefreshRequest { refresh_token: token.clone() };
        let status = client.refresh(with_cookie(&format!("{REFRESH}={token}"), both)).await.unwrap_err();
        let (cleared, error) = refusal(status);
        assert_eq!((error.kind(), cleared), (Kind::InvalidArgument, None));
        assert_eq!(error.violations()[0].field, "refreshToken");
        // Neither, and two of one name.
        for cookie in ["theme=dark".to_owned(), format!("{REFRESH}={token}; {REFRESH}=x")] {
            let status = client.refresh(with_cookie(&cookie, RefreshRequest::default())).await.unwrap_err();
            assert_eq!(refusal(status).1.violations()[0].field, "refreshToken");
        }
        // In the body: the answer sets no cookie, and neither do a refusal and a logout.
        let sent = RefreshRequest { refresh_token: token.clone() };
        let answer = client.refresh(sent.clone()).await.unwrap();
        assert!(set(answer.metadata(), REFRESH).is_none() && !answer.get_ref().refresh_token.is_empty());
        assert_eq!(refusal(client.refresh(sent).await.unwrap_err()).0, None);
        let other = login(&client, JANE, PASSWORD).await.unwrap();
        let answer = client.logout(with_token(&other.access_token, LogoutRequest {})).await.unwrap();
        assert!(set(answer.metadata(), REFRESH).is_none());
        // A token that came in a body is good as a cookie: they are the same thing.
        let third = login(&client, JANE, PASSWORD).await.unwrap();
        let cookie = format!("{REFRESH}={}", third.refresh_token);
        let answer = client.refresh(with_cookie(&cookie, RefreshRequest::default())).await.unwrap();
        refresh(&client, &set(answer.metadata(), REFRESH).unwrap().0).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_browser_is_known_by_its_device_cookie() {
    on_both(async |auth: Auth| {
        let mut client = auth.client();
        auth.user(JANE).await;
        let (_, device) = kept(client.login(cookie_login(PASSWORD)).await.unwrap());
        for _ in 0..6 {
            client.login(cookie_login("not-her-password")).await.unwrap_err();
        }
        client.login(cookie_login(PASSWORD)).await.unwrap_err();
        let cookie = format!("{DEVICE}={device}");
        // A refusal keeps the cookie, for it is still good.
        let wrong = with_cookie(&cookie, cookie_login("not-her-password"));
        let status = client.login(wrong).await.unwrap_err();
        assert!(status.metadata().get("set-cookie").is_none());
        let answer = client.login(with_cookie(&cookie, cookie_login(PASSWORD))).await.unwrap();
        assert_ne!(kept(answer).1, device);
    })
    .await;
}
