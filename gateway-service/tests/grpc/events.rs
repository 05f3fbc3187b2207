//! Types of events: what the platform and operators may send.

use proto::{
    Struct, Value,
    gateway::{NewEvent, SendEventRequest, SendEventResponse},
    value::Kind,
};
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    gateway::{TestGateway, payload},
    harness::{ADMIN, World, fields, reason, worlds},
};

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

fn fields_of(pairs: &[(&str, Kind)]) -> Struct {
    Struct { fields: pairs.iter().map(|(name, kind)| ((*name).to_owned(), value(kind.clone()))).collect() }
}

fn custom(gateway_id: &str, name: &str) -> SendEventRequest {
    SendEventRequest {
        gateway_id: gateway_id.into(),
        r#type: format!("custom.{name}"),
        payload: Some(fields_of(&[("n", Kind::NumberValue(7.0))])),
        ..SendEventRequest::default()
    }
}

async fn send(world: &World, request: SendEventRequest) -> Result<SendEventResponse, Status> {
    Ok(world.operations().send_event(world.by(ADMIN, request)).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_010_operators_send_events_of_their_own() {
    for world in worlds().await {
        let (gateway, token) = world.gateway("edge-1").await;
        let list = proto::ListValue { values: vec![value(Kind::NullValue(0)), value(Kind::BoolValue(true))] };
        let inner = fields_of(&[("half", Kind::NumberValue(0.5)), ("list", Kind::ListValue(list))]);
        let request = SendEventRequest {
            payload: Some(fields_of(&[
                ("whole", Kind::NumberValue(-3.0)),
                ("text", Kind::StringValue("ä\u{0}".into())),
                ("inner", Kind::StructValue(inner)),
            ])),
            ..custom(&gateway.id, "cache.purge")
        };
        let sent = send(&world, request).await.unwrap();
        assert!(service_kit::id::is_id(&sent.event_id) && !sent.connected, "it waits");
        let mut link = TestGateway::connect(&world, &token.token).await;
        let event = link.event().await;
        assert_eq!((event.r#type.as_str(), event.user_id.as_str()), ("custom.cache.purge", ADMIN));
        let wanted = json!({"whole": -3, "text": "ä\u{0}", "inner": {"half": 0.5, "list": [null, true]}});
        assert_eq!(payload(&event), wanted);
        assert!(!event.payload_json.contains("-3.0"), "{}", event.payload_json);

        // The platform's type that operators may send.
        let config = SendEventRequest {
            r#type: "gateway.config.updated".into(),
            payload: Some(fields_of(&[
                ("configType", Kind::StringValue("routing".into())),
                ("action", Kind::StringValue("reload".into())),
            ])),
            event_id: "mine-1".into(),
            ..custom(&gateway.id, "")
        };
        let sent = send(&world, config.clone()).await.unwrap();
        assert_eq!((sent.event_id.as_str(), sent.connected), ("mine-1", true));
        let event = link.event().await;
        assert_eq!((event.r#type.as_str(), event.user_id.as_str()), ("gateway.config.updated", ""));

        // A repeat changes nothing; the same id for another gateway is another event.
        assert_eq!(send(&world, config.clone()).await.unwrap(), sent);
        link.only(&world, &gateway.id).await;
        let (other, other_token) = world.gateway("edge-2").await;
        let mut other_link = TestGateway::connect(&world, &other_token.token).await;
        assert!(send(&world, SendEventRequest { gateway_id: other.id, ..config }).await.unwrap().connected);
        assert_eq!(other_link.event().await.r#type, "gateway.config.updated");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fr_011_what_is_wrong_with_an_event_is_named() {
    for world in worlds().await {
        let (gateway, _) = world.gateway("edge-1").await;
        let refused = async |change: &dyn Fn(&mut SendEventRequest)| -> (Code, Vec<String>) {
            let mut request = custom(&gateway.id, "x");
            change(&mut request);
            let status = send(&world, request).await.unwrap_err();
            (status.code(), fields(&status))
        };
        let invalid = |field: &str| (Code::InvalidArgument, vec![field.to_owned()]);
        // Only the platform says what runs.
        for bad in
            ["", "api.deployed", "apikey.created", "custom.", "custom.Big", "custom.a b", "gateway.config"]
        {
            assert_eq!(refused(&|request| request.r#type = bad.into()).await, invalid("type"), "{bad}");
        }
        assert_eq!(refused(&|request| request.gateway_id = "x".into()).await, invalid("gatewayId"));
        assert_eq!(refused(&|request| request.payload = None).await, invalid("payload"));
        assert_eq!(refused(&|request| request.key = "k".repeat(65)).await, invalid("key"));
        assert_eq!(refused(&|request| request.key = "\n".into()).await, invalid("key"));
        assert_eq!(refused(&|request| request.event_id = "e".repeat(65)).await, invalid("eventId"));
        let infinite = fields_of(&[("n", Kind::NumberValue(f64::INFINITY))]);
        assert_eq!(refused(&|request| request.payload = Some(infinite.clone())).await, invalid("payload"));
        let large = fields_of(&[("x", Kind::StringValue("x".repeat(1024 * 1024)))]);
        assert_eq!(refused(&|request| request.payload = Some(large.clone())).await, invalid("payload"));
        let config = refused(&|request| {
            request.r#type = "gateway.config.updated".into();
            request.key = "mine".into();
            request.payload = Some(fields_of(&[("action", Kind::BoolValue(true))]));
        });
        let (_, named) = config.await;
        assert_eq!(named, ["payload.configType", "payload.action", "key"]);

        // The platform's own are checked alike.
        let key = |payload: serde_json::Value| NewEvent {
            payload_json: payload.to_string(),
            ..world.event(&gateway.id, "", "", "apikey.revoked")
        };
        let good = key(json!({"apiId": "a1", "keyName": "k1"}));
        let events = vec![good.clone(), key(json!({"apiId": 7}))];
        let request = proto::gateway::AppendEventsRequest { events };
        let status = world.delivery().append_events(request).await.unwrap_err();
        assert_eq!(fields(&status), ["events[1].payloadJson.apiId", "events[1].payloadJson.keyName"]);
        world.append(vec![good]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_events_of_operators_wait_for_one_gateway() {
    for world in worlds().await {
        let (gateway, _) = world.gateway("edge-1").await;
        world.append(vec![world.deploy(&gateway.id, &world.ids.next())]).await;
        // As if 500 had been sent.
        let numbers: Vec<NewEvent> = (0..500)
            .map(|_| NewEvent { payload_json: "{}".into(), ..world.event(&gateway.id, "", "", "custom.x") })
            .collect();
        world.append(numbers[1..].to_vec()).await;
        let last = SendEventRequest { event_id: world.ids.next(), ..custom(&gateway.id, "last") };
        send(&world, last.clone()).await.unwrap();
        let status = send(&world, custom(&gateway.id, "more")).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "EVENT_BACKLOG"));
        // One that is there already is no more.
        send(&world, last).await.unwrap();
        // Another gateway's are its own.
        let (other, _) = world.gateway("edge-2").await;
        send(&world, custom(&other.id, "more")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_events_have_only_so_many_keys_on_one_gateway() {
    for world in worlds().await {
        let (gateway, _) = world.gateway("edge-1").await;
        let events: Vec<NewEvent> = (0..500)
            .map(|_| NewEvent { payload_json: "{}".into(), ..world.event(&gateway.id, "", "", "custom.x") })
            .collect();
        world.append(events).await;
        // As if each had had a key, and was done long ago.
        world.execute("UPDATE gateway_events SET state = 'acked', event_key = 'custom:k' || revision").await;
        let keyed = |key: &str| SendEventRequest { key: key.to_owned(), ..custom(&gateway.id, "x") };
        let status = send(&world, keyed("new")).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "EVENT_BACKLOG"));
        assert!(status.message().contains("500 keys"), "{}", status.message());
        // What takes the place of another needs none, and what stands alone leaves.
        send(&world, keyed("k7")).await.unwrap();
        send(&world, custom(&gateway.id, "alone")).await.unwrap();
    }
}
