//! Tokens of gateways.

use std::collections::HashSet;

use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{Config, TestCaseError, TestRunner},
};
use proto::gateway::{
    ArtifactsExistRequest, GatewayToken, ListTokensRequest, RevokeTokenRequest, RotateTokenRequest,
    RotateTokenResponse,
};
use service_kit::testing::TestDatabase;
use tonic::{Code, Request};

use crate::harness::{ADMIN, World, fields, quick, reason, with_key, worlds};

async fn list(world: &World, gateway_id: &str) -> Vec<GatewayToken> {
    let request = ListTokensRequest { gateway_id: gateway_id.into() };
    let answer = world.registry().list_tokens(world.by(ADMIN, request)).await.unwrap().into_inner();
    assert_eq!(answer.count as usize, answer.list.len());
    answer.list
}

fn revoke(gateway_id: &str, token_id: &str) -> RevokeTokenRequest {
    RevokeTokenRequest { gateway_id: gateway_id.into(), token_id: token_id.into() }
}

async fn code_with(world: &World, token: &str) -> Code {
    let request = with_key(token, ArtifactsExistRequest::default());
    world.internal().artifacts_exist(request).await.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_rotations_at_once_leave_two_tokens() {
    for world in worlds().await {
        let gateway = world.register("edge-1").await;
        let mut rotations = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (mut registry, gateway_id) = (world.registry(), gateway.id.clone());
            let request = world.by(ADMIN, RotateTokenRequest { gateway_id });
            rotations.spawn(async move { registry.rotate_token(request).await });
        }
        let (mut made, mut refused) = (Vec::new(), 0);
        while let Some(outcome) = rotations.join_next().await {
            match outcome.unwrap() {
                Ok(answer) => made.push(answer.into_inner()),
                Err(status) => {
                    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
                    assert_eq!(reason(&status), "TOKEN_LIMIT");
                    refused += 1;
                }
            }
        }
        assert_eq!((made.len(), refused), (2, 18));
        let secrets: HashSet<&str> = made.iter().map(|token| token.token.as_str()).collect();
        assert_eq!(secrets.len(), 2);
        for token in &made {
            assert!(token.token.starts_with("tggw_") && token.message.contains("Store the token now"));
            assert_eq!(code_with(&world, &token.token).await, Code::Ok);
        }
        assert_eq!(list(&world, &gateway.id).await.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_dead_and_makes_room() {
    for world in worlds().await {
        let (gateway, first) = world.gateway("edge-1").await;
        let second = world.rotate(&gateway.id).await.unwrap();
        let mut registry = world.registry();
        for _ in 0..2 {
            registry.revoke_token(world.by(ADMIN, revoke(&gateway.id, &first.id))).await.unwrap();
        }
        assert_eq!(code_with(&world, &first.token).await, Code::Unauthenticated);
        assert_eq!(code_with(&world, &second.token).await, Code::Ok);
        let third = world.rotate(&gateway.id).await.unwrap();
        let listed = list(&world, &gateway.id).await;
        let states: Vec<(&str, &str)> =
            listed.iter().map(|token| (token.id.as_str(), token.status.as_str())).collect();
        assert_eq!(states, [(&*third.id, "active"), (&*second.id, "active"), (&*first.id, "revoked")]);
        assert!(listed[2].revoked_at.is_some() && listed[0].revoked_at.is_none());
        assert!(listed[0].last_used_at.is_none());
        assert_eq!(listed[1].last_used_at.unwrap().unix_ms() % 60_000, 0, "used, to the minute");

        let other = world.register("edge-2").await;
        for unknown in [revoke(&gateway.id, &world.ids.next()), revoke(&other.id, &second.id)] {
            let status = registry.revoke_token(world.by(ADMIN, unknown)).await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound);
        }
        let status = registry.revoke_token(world.by(ADMIN, revoke("x", "y"))).await.unwrap_err();
        assert_eq!(fields(&status), ["gatewayId", "tokenId"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_good_token_opens_the_door() {
    for world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        let mut changed = token.token.clone().into_bytes();
        let last = changed.len() - 1;
        changed[last] = if changed[last] == b'0' { b'1' } else { b'0' };
        let unknown = {
            let (text, _) = service_kit::opaque::issue("gw");
            secrecy::ExposeSecret::expose_secret(&text).to_owned()
        };
        for bad in ["", "tggw_", std::str::from_utf8(&changed).unwrap(), &unknown] {
            assert_eq!(code_with(&world, bad).await, Code::Unauthenticated, "{bad}");
        }
        let none = world.internal().artifacts_exist(Request::new(ArtifactsExistRequest::default())).await;
        assert_eq!(none.unwrap_err().code(), Code::Unauthenticated);
        let mut two = with_key(&token.token, ArtifactsExistRequest::default());
        two.metadata_mut().append("api-key", token.token.parse().unwrap());
        let status = world.internal().artifacts_exist(two).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_database_is_no_proof_against_a_token() {
    for world in worlds().await {
        let (_, token) = world.gateway("edge-1").await;
        world.execute("ALTER TABLE gateway_tokens RENAME TO elsewhere").await;
        assert_eq!(code_with(&world, &token.token).await, Code::Unavailable);
        assert_eq!(code_with(&world, "tggw_nonsense").await, Code::Unauthenticated, "no database needed");
        world.execute("ALTER TABLE elsewhere RENAME TO gateway_tokens").await;
        assert_eq!(code_with(&world, &token.token).await, Code::Ok);
    }
}

/// Something that happens to the tokens of two gateways; `second` says to which one.
#[derive(Debug, Clone)]
enum Step {
    Rotate { second: bool },
    Revoke { second: bool, token: Index },
    Present(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any::<bool>().prop_map(|second| Step::Rotate { second }),
        3 => any::<(bool, Index)>().prop_map(|(second, token)| Step::Revoke { second, token }),
        2 => any::<Index>().prop_map(Step::Present),
    ]
}

/// What must be true of a token.
struct Model {
    made: RotateTokenResponse,
    second: bool,
    active: bool,
}

/// Two gateways whose tokens are compared with a model after each step.
async fn live(world: &World, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let name = world.ids.next().replace('-', "")[12..].to_owned();
    let gateways = [world.register(&format!("a{name}")).await, world.register(&format!("b{name}")).await];
    let mut model: Vec<Model> = Vec::new();
    for step in steps {
        match step {
            Step::Rotate { second } => {
                let active = model.iter().filter(|token| token.active && token.second == second).count();
                match world.rotate(&gateways[usize::from(second)].id).await {
                    Ok(made) => {
                        prop_assert!(active < 2, "a third token");
                        model.push(Model { made, second, active: true });
                    }
                    Err(status) => {
                        prop_assert_eq!((active, reason(&status)), (2, "TOKEN_LIMIT".to_owned()));
                    }
                }
            }
            Step::Revoke { second, token } if !model.is_empty() => {
                let at = token.index(model.len());
                let token = &mut model[at];
                let request = world.by(ADMIN, revoke(&gateways[usize::from(second)].id, &token.made.id));
                let code =
                    world.registry().revoke_token(request).await.map_or_else(|s| s.code(), |_| Code::Ok);
                // A token is revoked through its own gateway, as often as one likes.
                let own = token.second == second;
                prop_assert_eq!(code, if own { Code::Ok } else { Code::NotFound });
                token.active &= !own;
            }
            Step::Present(token) if !model.is_empty() => {
                let token = token.get(&model);
                let expected = if token.active { Code::Ok } else { Code::Unauthenticated };
                prop_assert_eq!(code_with(world, &token.made.token).await, expected);
            }
            Step::Revoke { .. } | Step::Present(_) => {}
        }
        for (second, gateway) in [false, true].into_iter().zip(&gateways) {
            let listed: Vec<(String, bool)> = list(world, &gateway.id)
                .await
                .into_iter()
                .map(|token| (token.id, token.status == "active"))
                .collect();
            let mine = model.iter().rev().filter(|token| token.second == second);
            let expected: Vec<(String, bool)> =
                mine.map(|token| (token.made.id.clone(), token.active)).collect();
            prop_assert_eq!(listed, expected);
        }
    }
    Ok(())
}

#[test]
fn whatever_happens_to_tokens_a_gateway_has_two_at_most() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::start(TestDatabase::sqlite(), quick()));
    let mut runner = TestRunner::new(Config {
        cases: 24,
        max_shrink_iters: 100,
        failure_persistence: None,
        ..Config::default()
    });
    let steps = prop::collection::vec(step(), 1..40);
    runner.run(&steps, |steps| runtime.block_on(live(&world, steps))).unwrap();
}
