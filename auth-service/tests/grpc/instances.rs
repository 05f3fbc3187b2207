//! Two instances on one PostgreSQL agree.

use proto::auth::LogoutRequest;
use service_kit::testing::TestDatabase;

use crate::{
    database::number,
    harness::{Client, PASSWORD, Setup, login, refresh, refusal, sign_up, with_token},
};

const JANE: &str = "jane@example.com";

/// Two instances' clients, with an account.
async fn two(setup: &Setup) -> [(service_kit::server::Running, Client); 2] {
    let (one, two) = (Box::pin(setup.launch()).await, Box::pin(setup.launch()).await);
    let [a, b] = [&one, &two].map(|running| Client::new(setup.upstream_to(running, "edge-proxy")));
    a.clone().sign_up(sign_up(JANE)).await.unwrap();
    [(one, a), (two, b)]
}

#[tokio::test]
async fn of_refreshes_at_two_instances_one_succeeds() {
    let setup = Setup::new(TestDatabase::postgres());
    let [(_one, a), (_two, b)] = two(&setup).await;
    let pair = login(&a, JANE, PASSWORD).await.unwrap();
    let tries: Vec<_> = (0..50)
        .map(|at| {
            let (client, token) = ([&a, &b][at % 2].clone(), pair.refresh_token.clone());
            tokio::spawn(async move { refresh(&client, &token).await })
        })
        .collect();
    let mut won = Vec::new();
    for attempt in tries {
        match attempt.await.unwrap() {
            Ok(pair) => won.push(pair),
            Err(error) => assert_eq!(error.reason(), "INVALID_GRANT", "{error}"),
        }
    }
    assert_eq!(won.len(), 1);
    for client in [&a, &b] {
        assert_eq!(refusal(refresh(client, &won[0].refresh_token).await).1, "INVALID_GRANT");
    }
}

#[tokio::test]
async fn failures_at_two_instances_are_counted_together() {
    let setup = Setup::new(TestDatabase::postgres());
    let [(_one, a), (_two, b)] = two(&setup).await;
    let tries: Vec<_> = (0..16)
        .map(|at| {
            let client = [&a, &b][at % 2].clone();
            tokio::spawn(async move { login(&client, JANE, "not-her-password").await.unwrap_err() })
        })
        .collect();
    for attempt in tries {
        assert!(["INVALID_CREDENTIALS", "BUSY"].contains(&attempt.await.unwrap().reason()));
    }
    for client in [&a, &b] {
        assert_eq!(refusal(login(client, JANE, PASSWORD).await).1, "INVALID_CREDENTIALS");
    }
    assert_eq!(number(&setup, "SELECT CAST(failures AS TEXT) FROM login_throttles").await, 6);
    setup.clock.advance_ms(1_000);
    login(&b, JANE, PASSWORD).await.unwrap();
    // Forgiven at one is forgiven at the other.
    for client in [&a, &b, &a, &b, &a] {
        login(client, JANE, "not-her-password").await.unwrap_err();
    }
    login(&a, JANE, PASSWORD).await.unwrap();
}

#[tokio::test]
async fn a_logout_at_one_instance_ends_the_session_at_the_other() {
    let setup = Setup::new(TestDatabase::postgres());
    let [(_one, a), (_two, b)] = two(&setup).await;
    let (here, there) = (login(&a, JANE, PASSWORD).await.unwrap(), login(&b, JANE, PASSWORD).await.unwrap());
    let here = refresh(&b, &here.refresh_token).await.unwrap();
    a.clone().logout(with_token(&here.access_token, LogoutRequest {})).await.unwrap();
    for client in [&a, &b] {
        assert_eq!(refusal(refresh(client, &here.refresh_token).await).1, "INVALID_GRANT");
    }
    refresh(&a, &there.refresh_token).await.unwrap();
}
