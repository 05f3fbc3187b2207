use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::{collection::vec, prelude::*};
use service_kit::{
    Clock, Ids,
    db::Database,
    seal::Sealer,
    testing::TestDatabase,
    token::{Claims, LEEWAY},
};

use super::{
    KeyRing, KeyState, Revoked, SealedKey, SigningKeys,
    schedule::{self, Due, RETIRED_MS, Terms},
};
use crate::{
    config::KeysConfig,
    domain::audit::Journal,
    store::{self, Stores},
};

const START: i64 = 1_766_000_000_000;
const AHEAD: i64 = 600_000;
const AFTER: i64 = 1_200_000;
const TERMS: Terms = Terms { rotate_after: AFTER, publish_ahead: AHEAD };

/// What the instances of a service share.
pub(crate) struct World {
    pub(crate) stores: Stores,
    sealer: Sealer,
    pub(crate) clock: Clock,
    _database: TestDatabase,
}

impl World {
    pub(crate) async fn new(database: TestDatabase) -> Self {
        let open = Database::open(&database.config, &sqlx::migrate!()).await.unwrap();
        let (sealer, clock) = (Sealer::new(&[7; 32]).unwrap(), Clock::fixed(START));
        Self { stores: store::open(&open), sealer, clock, _database: database }
    }

    pub(crate) fn keys(&self) -> SigningKeys {
        let journal = Journal::new(self.clock.clone(), Ids::new(self.clock.clone()));
        let config =
            KeysConfig { sealing_key_file: "unused".into(), rotate_after: 1_200, publish_ahead: 600 };
        SigningKeys::new(&self.stores.keys, &self.sealer, &self.clock, &journal, &config)
    }

    pub(crate) async fn instance(&self) -> KeyRing {
        KeyRing::load(self.keys()).await.unwrap()
    }
}

fn claims(now_ms: i64) -> Claims {
    let iat = now_ms / 1_000;
    let text = || "x".to_owned();
    Claims {
        iss: text(),
        sub: text(),
        aud: text(),
        exp: iat + 900,
        iat,
        nbf: None,
        jti: text(),
        client_id: text(),
        sid: text(),
        scope: text(),
        auth_time: iat,
        amr: vec![text()],
    }
}

/// The key that an instance signs with now.
fn signs(ring: &KeyRing, now: i64) -> String {
    let token = ring.sign(&claims(now)).unwrap();
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&header).unwrap();
    header["kid"].as_str().unwrap().to_owned()
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Time passes, and both instances look at the database again.
    Wait(i64),
    /// A moment passes in which one of them does not look.
    Moment(usize),
    Rotate,
    /// The key at this place of the list.
    Revoke(usize),
    Restart(usize),
    Sign(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_i64..900_000).prop_map(Step::Wait),
        1 => (AFTER..40 * AFTER).prop_map(Step::Wait),
        4 => (0_usize..2).prop_map(Step::Moment),
        3 => Just(Step::Rotate),
        1 => (0_usize..6).prop_map(Step::Revoke),
        1 => (0_usize..2).prop_map(Step::Restart),
        8 => (0_usize..2).prop_map(Step::Sign),
    ]
}

/// What must hold, checked after every step.
struct Model {
    world: World,
    instances: [KeyRing; 2],
    /// Which instance has not looked since a key was revoked.
    unaware: [bool; 2],
    /// Key and the last second at which a token that it signed is good.
    tokens: Vec<(String, i64)>,
    /// When each key was made.
    made: BTreeMap<String, i64>,
    /// Those that had to sign without notice.
    hasty: BTreeSet<String>,
    revoked: BTreeSet<String>,
}

impl Model {
    async fn new() -> Self {
        let world = World::new(TestDatabase::sqlite()).await;
        let instances = [world.instance().await, world.instance().await];
        let hasty = BTreeSet::from([signs(&instances[0], START)]);
        let (tokens, made, revoked) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
        Self { world, instances, unaware: [false; 2], tokens, made, hasty, revoked }
    }

    fn now(&self) -> i64 {
        self.world.clock.now_ms()
    }

    async fn look(&mut self, at: usize) {
        self.instances[at].refresh().await.unwrap();
        self.unaware[at] = false;
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Wait(ms) => {
                self.world.clock.advance_ms(ms);
                self.look(0).await;
                self.look(1).await;
            }
            Step::Moment(at) => {
                self.world.clock.advance_ms(1_000);
                self.look(at).await;
            }
            Step::Rotate => {
                let waits = self.state(KeyState::Waiting).await > 0;
                let rotated = self.world.keys().rotate().await;
                assert_eq!(rotated.is_err(), waits, "{rotated:?}");
            }
            Step::Revoke(at) => {
                let keys = self.world.keys().list().await.unwrap();
                let key = &keys[at % keys.len()];
                match self.world.keys().revoke(&key.kid).await.unwrap() {
                    Revoked::ReplacedBy(kid) => {
                        assert_eq!(key.state, KeyState::Signing);
                        self.hasty.insert(kid);
                    }
                    Revoked::Apart => {
                        assert!(matches!(key.state, KeyState::Waiting | KeyState::Retired), "{key:?}");
                    }
                    Revoked::Before => assert_eq!(key.state, KeyState::Revoked),
                }
                self.revoked.insert(key.kid.clone());
                self.unaware = [true; 2];
            }
            Step::Restart(at) => {
                self.instances[at] = self.world.instance().await;
                self.unaware[at] = false;
            }
            Step::Sign(at) => self.sign(at),
        }
        self.check().await;
    }

    fn sign(&mut self, at: usize) {
        let now = self.now();
        let kid = signs(&self.instances[at], now);
        if self.unaware == [false; 2] {
            assert!(self.made.get(&kid).is_some_and(|made| now - made >= AHEAD) || self.hasty.contains(&kid));
            // The other one, although it may not have looked for a moment.
            assert_eq!(signs(&self.instances[1 - at], now), kid);
            assert!(!self.revoked.contains(&kid));
        }
        self.tokens.push((kid, now / 1_000 + 900 + LEEWAY));
    }

    async fn check(&mut self) {
        let now = self.now();
        for key in self.world.keys().list().await.unwrap() {
            self.made.insert(key.kid, key.created_at);
        }
        assert_eq!(self.state(KeyState::Signing).await, 1);
        assert!(self.state(KeyState::Retired).await <= 3 && self.state(KeyState::Waiting).await <= 1);
        for (instance, _) in self.instances.iter().zip(self.unaware).filter(|(_, unaware)| !unaware) {
            let (names, public) = (instance.names(), instance.public());
            assert!(names.iter().eq(public.iter().map(|key| &key.kid)));
            assert!(names.iter().all(|kid| !self.revoked.contains(kid)));
            for (kid, until) in &self.tokens {
                let alive = now / 1_000 <= *until && !self.revoked.contains(kid);
                assert!(!alive || names.contains(kid), "{kid} is good until {until}");
            }
        }
    }

    async fn state(&self, state: KeyState) -> usize {
        self.world.keys().list().await.unwrap().iter().filter(|key| key.state == state).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// One key signs at every moment, it was known long before, and its tokens verify as long as they live.
    #[test]
    fn keys_follow_each_other(steps in vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut model = Model::new().await;
            for step in steps {
                Box::pin(model.take(step)).await;
            }
        });
    }
}

fn key(generation: i64, activates_at: i64, revoked_at: Option<i64>) -> SealedKey {
    SealedKey {
        kid: generation.to_string(),
        sealed: Vec::new(),
        generation,
        activates_at,
        created_at: activates_at,
        revoked_at,
    }
}

#[test]
fn keys_begin_and_end_to_the_millisecond() {
    let two = [key(1, 0, None), key(2, AFTER, None)];
    let signer = |keys: &[SealedKey], now| schedule::signer(keys, now).unwrap().generation;
    assert_eq!((signer(&two, AFTER - 1), signer(&two, AFTER)), (1, 2));
    let end = AFTER + RETIRED_MS;
    assert_eq!((RETIRED_MS, schedule::verifying(&two, end - 1).count()), (1_270_000, 2));
    assert_eq!(
        (schedule::verifying(&two, end).count(), schedule::over(&two, end)),
        (1, vec!["1".to_owned()])
    );

    let one = &two[..1];
    assert_eq!(schedule::due(&[], TERMS, 7), Some(Due { generation: 1, activates_at: 7 }));
    assert_eq!(schedule::due(one, TERMS, AFTER - AHEAD - 1), None);
    let next = Due { generation: 2, activates_at: AFTER };
    assert_eq!(schedule::due(one, TERMS, AFTER - AHEAD), Some(next));
    assert_eq!(schedule::due(&two, TERMS, AFTER - AHEAD), None);
}

#[test]
fn a_key_that_was_revoked_before_its_time_ends_nothing() {
    let keys = [key(1, 0, None), key(2, AFTER, Some(1))];
    let late = 10 * AFTER;
    assert_eq!(schedule::signer(&keys, late).unwrap().generation, 1);
    assert!(schedule::over(&keys, late).is_empty());
    let due = schedule::due(&keys, TERMS, late).unwrap();
    assert_eq!((due.generation, due.activates_at), (3, late + AHEAD));
}

#[test]
fn a_clock_that_is_behind_signs_all_the_same() {
    assert_eq!(schedule::signer(&[key(1, 1_000, None)], 0).unwrap().generation, 1);
    let replaced = [key(1, 0, Some(999)), key(2, 1_000, None)];
    assert_eq!(schedule::signer(&replaced, 0).unwrap().generation, 2);
}

/// Both of two keys are found to be in wrong hands at once, by two operators.
#[tokio::test]
async fn however_many_are_revoked_at_once_one_signs() {
    for database in TestDatabase::both() {
        let world = World::new(database).await;
        let ring = world.instance().await;
        for _ in 0..10 {
            world.keys().rotate().await.unwrap();
            let before = world.keys().list().await.unwrap();
            let good: Vec<_> =
                before.iter().filter(|key| key.state != KeyState::Revoked).map(|key| &key.kid).collect();
            let (one, two) = (world.keys(), world.keys());
            let (one, two) = tokio::join!(one.revoke(good[0]), two.revoke(good[1]));
            one.unwrap();
            two.unwrap();
            ring.refresh().await.unwrap();
            let after = world.keys().list().await.unwrap();
            let live: Vec<_> = after.iter().filter(|key| key.state != KeyState::Revoked).collect();
            let [live] = live.as_slice() else { panic!("one key is left: {after:?}") };
            assert_eq!((live.state, signs(&ring, START)), (KeyState::Signing, live.kid.clone()));
        }
    }
}

#[tokio::test]
async fn of_many_that_rotate_at_once_one_does() {
    for database in TestDatabase::both() {
        let world = Arc::new(World::new(database).await);
        world.instance().await;
        let tries: Vec<_> = (0..8)
            .map(|_| {
                tokio::spawn({
                    let world = world.clone();
                    async move { world.keys().rotate().await }
                })
            })
            .collect();
        let mut done = 0;
        for attempt in tries {
            match attempt.await.unwrap() {
                Ok(key) => {
                    done += 1;
                    assert_eq!((key.generation, key.activates_at), (2, START + AHEAD));
                }
                Err(error) => assert_eq!(error.reason(), "KEY_WAITING"),
            }
        }
        assert_eq!((done, world.keys().list().await.unwrap().len()), (1, 2));
        assert_eq!(world.keys().revoke("nobody").await.unwrap_err().kind(), service_kit::Kind::NotFound);
    }
}
