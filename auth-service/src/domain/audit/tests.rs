use proptest::prelude::*;
use service_kit::{ClientInfo, Clock, Ids};

use super::{Action, Chain, Event, GENESIS, Journal, Recorded, Shard, hex, link};

const USER: &str = "0198f0c5-0000-7000-8000-000000000001";

fn sign_up() -> Event {
    Event {
        chain: Chain::User(USER.to_owned()),
        id: "0198f0c5-0000-7000-8000-00000000000a".to_owned(),
        at: 1_766_000_000_000,
        action: Action::SignUp,
        success: true,
        reason: String::new(),
        actor_id: USER.to_owned(),
        target_id: String::new(),
        address: "2001:db8::7".to_owned(),
        device: "9f86d081884c7d659a2feaa0c55ad015".to_owned(),
        request_id: "01a1".to_owned(),
    }
}

/// Made with another implementation (Python's json and hashlib). It must never change: logs that were
/// written once are verified for ever.
#[test]
fn a_known_chain() {
    let first = sign_up().canonical(1);
    let hash = link(&GENESIS, &first);
    assert_eq!(
        first,
        r#"["user:0198f0c5-0000-7000-8000-000000000001",1,"0198f0c5-0000-7000-8000-00000000000a",1766000000000,"auth.signup",true,"","0198f0c5-0000-7000-8000-000000000001","","2001:db8::7","9f86d081884c7d659a2feaa0c55ad015","01a1"]"#
    );
    assert_eq!(hex(&hash), "8d94de6556effcddf8b981c565f62357e46896d91dd4843a0ca873022984825a");

    let second = Event {
        id: "0198f0c5-0000-7000-8000-00000000000b".to_owned(),
        at: 1_766_000_000_123,
        action: Action::Login,
        actor_id: String::new(),
        address: "198.51.100.7".to_owned(),
        device: String::new(),
        request_id: String::new(),
        ..sign_up()
    };
    let second = second.failed("wrong \"pass\\word\"\n\u{1} é").canonical(2);
    let hash = link(&hash, &second);
    assert_eq!(hex(&hash), "b51dde69a19252ceff1eeaff2c1887c44f5fd556465f9069b08039f697c825d0");
}

#[test]
fn events_say_what_is_known_of_the_client() {
    let clock = Clock::fixed(1_766_000_000_000);
    let journal = Journal::new(clock.clone(), Ids::new(clock));
    let nobody = journal.event(Chain::System, Action::Login, &ClientInfo::default());
    assert_eq!((nobody.address.as_str(), nobody.device.as_str()), ("", ""));
    let client = ClientInfo {
        address: "::ffff:192.0.2.7".parse().ok(),
        device: "test".to_owned(),
        request_id: "r1".to_owned(),
    };
    let event = journal.event(Chain::System, Action::Login, &client);
    // The first half of the SHA-256 of `test`.
    assert_eq!(event.device, "9f86d081884c7d659a2feaa0c55ad015");
    assert_eq!((event.address.as_str(), event.request_id.as_str()), ("192.0.2.7", "r1"));
    assert!(event.success && event.id > nobody.id && event.at == 1_766_000_000_000);
}

fn any_event() -> impl Strategy<Value = Event> {
    let chain = prop_oneof![
        "[0-9a-f-]{0,8}".prop_map(Chain::User),
        "[0-9a-f-]{0,8}".prop_map(Chain::Organization),
        any::<[u8; 32]>().prop_map(|hash| Chain::Nobody(Shard::of(&hash))),
        Just(Chain::System)
    ];
    let action = prop_oneof![Just(Action::Login), Just(Action::Logout), Just(Action::KeyRevoke)];
    let texts = proptest::array::uniform7(any::<String>());
    (chain, action, any::<i64>(), any::<bool>(), texts).prop_map(|(chain, action, at, success, texts)| {
        let [id, reason, actor_id, target_id, address, device, request_id] = texts;
        Event { chain, id, at, action, success, reason, actor_id, target_id, address, device, request_id }
    })
}

/// The event with one of its parts changed.
fn changed(event: &Event, part: usize, by: &str) -> Event {
    let mut other = event.clone();
    let texts = [
        &mut other.id,
        &mut other.reason,
        &mut other.actor_id,
        &mut other.target_id,
        &mut other.address,
        &mut other.device,
        &mut other.request_id,
    ];
    match part {
        0 => other.at = other.at.wrapping_add(1),
        1 => other.success = !other.success,
        2 => other.action = Action::TokenRevoke,
        3 => other.chain = Chain::Organization(format!("{}{by}", other.chain.name())),
        part => texts.into_iter().nth(part - 4).expect("seven texts").push_str(by),
    }
    other
}

proptest! {
    #[test]
    fn a_change_of_any_part_changes_the_hash(
        event in any_event(), sequence in 1_i64.., previous: [u8; 32], part in 0_usize..11, by in ".{1,3}",
        bit in 0_usize..256,
    ) {
        let hash = link(&previous, &event.canonical(sequence));
        prop_assert_ne!(link(&previous, &changed(&event, part, &by).canonical(sequence)), hash);
        prop_assert_ne!(link(&previous, &event.canonical(sequence.wrapping_sub(1))), hash);
        let mut other = previous;
        other[bit / 8] ^= 1 << (bit % 8);
        prop_assert_ne!(link(&other, &event.canonical(sequence)), hash);
    }

    /// Nothing can be moved from one part into its neighbour.
    #[test]
    fn what_is_written_is_read_back(event in any_event(), sequence: i64) {
        let read = Recorded::read(&event.canonical(sequence)).unwrap();
        let Event { chain, id, at, action, success, reason, actor_id, target_id, address, device, request_id } =
            event;
        let (chain, action) = (chain.name(), action.name().to_owned());
        prop_assert_eq!(read, Recorded {
            chain, sequence, id, at, action, success, reason, actor_id, target_id, address, device, request_id,
        });
    }
}
