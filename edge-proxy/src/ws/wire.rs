//! The JSON of the link's contract, in both directions.

use std::borrow::Cow;

use proto::{
    gateway::{Connected, DeploymentAck, Event},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ack<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    gateway_id: &'a str,
    connection_id: &'a str,
    timestamp: Timestamp,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    payload: &'a RawValue,
    timestamp: Timestamp,
    correlation_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_id: &'a str,
}

#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AckPayload {
    deployment_id: String,
    #[serde(default)]
    artifact_id: String,
    #[serde(default)]
    resource_type: String,
    action: String,
    status: String,
    #[serde(default)]
    performed_at: String,
    #[serde(default)]
    error_code: Option<String>,
}

/// Why a message of a gateway is not understood.
#[derive(Debug)]
pub(super) enum NotUnderstood {
    /// Not JSON, or not of this shape.
    Malformed(serde_json::Error),
    /// JSON with a type that means nothing here; cut to a length that fits a log.
    UnknownType(String),
}

/// The first message of a socket.
pub(super) fn connection_ack(connected: &Connected) -> serde_json::Result<String> {
    serde_json::to_string(&Ack {
        kind: "connection.ack",
        gateway_id: &connected.gateway_id,
        connection_id: &connected.connection_id,
        timestamp: connected.timestamp.unwrap_or_default(),
    })
}

/// An event; the payload's JSON stays as it is. Fails when that is no JSON.
pub(super) fn event(event: &Event) -> serde_json::Result<String> {
    serde_json::to_string(&Envelope {
        kind: &event.r#type,
        payload: serde_json::from_str(&event.payload_json)?,
        timestamp: event.timestamp.unwrap_or_default(),
        correlation_id: &event.correlation_id,
        user_id: &event.user_id,
    })
}

/// The one message that gateways send.
pub(super) fn deployment_ack(text: &str) -> Result<DeploymentAck, NotUnderstood> {
    let incoming: Incoming<'_> = serde_json::from_str(text).map_err(NotUnderstood::Malformed)?;
    if incoming.kind != "deployment.ack" {
        return Err(NotUnderstood::UnknownType(incoming.kind.chars().take(64).collect()));
    }
    let payload = incoming.payload.map_or("null", RawValue::get);
    let ack: AckPayload = serde_json::from_str(payload).map_err(NotUnderstood::Malformed)?;
    Ok(DeploymentAck {
        deployment_id: ack.deployment_id,
        artifact_id: ack.artifact_id,
        resource_type: ack.resource_type,
        action: ack.action,
        status: ack.status,
        performed_at: ack.performed_at,
        error_code: ack.error_code.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use proto::{
        gateway::{Connected, Event},
        time::Timestamp,
    };

    use super::{NotUnderstood, connection_ack, deployment_ack, event};

    #[test]
    fn messages_are_those_of_the_contract() {
        let connected = Connected {
            gateway_id: "g".into(),
            connection_id: "c".into(),
            timestamp: Some(Timestamp::from_unix_ms(1_766_000_000_007)),
            ..Connected::default()
        };
        assert_eq!(
            connection_ack(&connected).unwrap(),
            r#"{"type":"connection.ack","gatewayId":"g","connectionId":"c","timestamp":"2025-12-17T19:33:20.007Z"}"#
        );
        let deployed = Event {
            r#type: "api.deployed".into(),
            payload_json: r#"{"apiId":"a", "n":1.50,"é":"\u00e9"}"#.into(),
            timestamp: connected.timestamp,
            correlation_id: "x".into(),
            ..Event::default()
        };
        // The payload is not read and written again: its spaces and escapes stay.
        let head = r#"{"type":"api.deployed","payload":{"apiId":"a", "n":1.50,"é":"\u00e9"}"#;
        let tail = r#","timestamp":"2025-12-17T19:33:20.007Z","correlationId":"x""#;
        assert_eq!(event(&deployed).unwrap(), format!("{head}{tail}}}"));
        let by_user = Event { user_id: "admin".into(), ..deployed.clone() };
        assert_eq!(event(&by_user).unwrap(), format!("{head}{tail},\"userId\":\"admin\"}}"));
        for bad in ["", "{", "{} {}", "nonsense"] {
            assert!(event(&Event { payload_json: bad.into(), ..deployed.clone() }).is_err(), "{bad}");
        }
    }

    #[test]
    fn acknowledgements_are_read_and_the_rest_is_not() {
        let text = r#"{"type":"deployment.ack","payload":{"deploymentId":"d","artifactId":"a","resourceType":"api",
            "action":"undeploy","status":"failed","performedAt":"2026-08-22T10:00:00.123Z",
            "errorCode":"DEPLOYMENT_ID_MISMATCH","later":{"x":1}},"more":[]}"#;
        let ack = deployment_ack(text).unwrap();
        assert_eq!((ack.deployment_id.as_str(), ack.artifact_id.as_str()), ("d", "a"));
        assert_eq!((ack.action.as_str(), ack.status.as_str()), ("undeploy", "failed"));
        assert_eq!(ack.performed_at, "2026-08-22T10:00:00.123Z");
        assert_eq!(ack.error_code, "DEPLOYMENT_ID_MISMATCH");
        let short = r#"{"type":"deployment.ack","payload":{"deploymentId":"d","action":"deploy","status":"success","errorCode":null}}"#;
        assert_eq!(deployment_ack(short).unwrap().error_code, "");
        for bad in [
            "",
            "[]",
            "7",
            "{}",
            "{\"type\":7}",
            "{\"type\":\"deployment.ack\"}",
            r#"{"type":"deployment.ack","payload":[]}"#,
            r#"{"type":"deployment.ack","payload":{"deploymentId":1}}"#,
        ] {
            assert!(matches!(deployment_ack(bad), Err(NotUnderstood::Malformed(_))), "{bad}");
        }
        let unknown = format!(r#"{{"type":"{}"}}"#, "ä".repeat(1_000));
        assert!(
            matches!(deployment_ack(&unknown), Err(NotUnderstood::UnknownType(kind)) if kind.len() == 128)
        );
    }
}
