//! Reports: what gateways say whose link carries frames in one direction only.

use proto::{
    gateway::{DeploymentAck, EventAck, GatewayFrame, ReportRequest, gateway_frame::Frame},
    time::Timestamp,
};
use service_kit::{Result, field::Checks};

use crate::events;

/// The most acknowledgements of each kind in a report.
const MOST: usize = 100;

/// Fails with every rule that a report breaks. On a stream the same would be ignored; here somebody waits to
/// hear of it.
pub(crate) fn check(report: &ReportRequest) -> Result<()> {
    let mut checks = Checks::new();
    checks.id("connectionId", &report.connection_id);
    let few = format!("must be at most {MOST}");
    checks.that(report.deployment_acks.len() <= MOST, "deploymentAcks", &few);
    checks.that(report.event_acks.len() <= MOST, "eventAcks", &few);
    for (at, ack) in report.deployment_acks.iter().take(MOST).enumerate() {
        check_deployment(&mut checks, &|field| format!("deploymentAcks[{at}].{field}"), ack);
    }
    for (at, ack) in report.event_acks.iter().take(MOST).enumerate() {
        check_event(&mut checks, &|field| format!("eventAcks[{at}].{field}"), ack);
    }
    if let Some(beat) = &report.heartbeat {
        let hash = &beat.state_hash;
        let is_hash = hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        checks.that(
            hash.is_empty() || is_hash,
            "heartbeat.stateHash",
            "must be a SHA-256 in lower-case hexadecimal",
        );
    }
    checks.done()
}

fn check_deployment(checks: &mut Checks, field: &dyn Fn(&str) -> String, ack: &DeploymentAck) {
    let kinds: Vec<String> = events::resources().iter().map(|kind| format!("`{kind}`")).collect();
    let kinds = kinds.join(" or ");
    let answers = events::answered_by(&ack.resource_type, &ack.action).is_some();
    let is_time = ack.performed_at.is_empty() || Timestamp::parse_rfc3339(&ack.performed_at).is_some();
    checks
        .id(&field("deploymentId"), &ack.deployment_id)
        .that(
            answers,
            &field("action"),
            &format!("must be `deploy` or `undeploy`, of a `resourceType` that is {kinds}"),
        )
        .that(
            matches!(ack.status.as_str(), "success" | "failed"),
            &field("status"),
            "must be `success` or `failed`",
        )
        .that(is_time, &field("performedAt"), "must be an RFC 3339 time such as 2026-08-22T10:00:00.123Z")
        .length(&field("errorCode"), &ack.error_code, 0, 128);
}

fn check_event(checks: &mut Checks, field: &dyn Fn(&str) -> String, ack: &EventAck) {
    checks
        .length(&field("nonce"), &ack.nonce, 1, 64)
        .length(&field("errorCode"), &ack.error_code, 0, 128)
        .length(&field("errorMessage"), &ack.error_message, 0, 1_024);
}

/// The frames that a report stands for, in the order in which a stream would have them. There is always one: a
/// report is a sign of life.
pub(crate) fn frames(report: ReportRequest) -> impl Iterator<Item = GatewayFrame> {
    let deployments = report.deployment_acks.into_iter().map(Frame::DeploymentAck);
    let events = report.event_acks.into_iter().map(Frame::EventAck);
    let beat = Frame::Heartbeat(report.heartbeat.unwrap_or_default());
    deployments.chain(events).chain([beat]).map(|frame| GatewayFrame { frame: Some(frame) })
}

#[cfg(test)]
mod tests {
    use proto::gateway::{DeploymentAck, EventAck, Heartbeat, ReportRequest, gateway_frame::Frame};

    use super::{check, frames};

    const ID: &str = "0198f0c5-0000-7000-8000-000000000000";

    fn good() -> ReportRequest {
        let deployment = DeploymentAck {
            deployment_id: ID.into(),
            artifact_id: ID.into(),
            resource_type: "api".into(),
            action: "deploy".into(),
            status: "success".into(),
            performed_at: "2026-08-22T10:00:00.123Z".into(),
            error_code: String::new(),
        };
        let event = EventAck { revision: 7, nonce: "n".into(), ..EventAck::default() };
        ReportRequest {
            connection_id: ID.into(),
            deployment_acks: vec![deployment; 100],
            event_acks: vec![event; 100],
            heartbeat: Some(Heartbeat { revision: 7, state_hash: "0a".repeat(32) }),
        }
    }

    #[test]
    fn every_broken_rule_is_named() {
        check(&good()).unwrap();
        type Change = fn(&mut ReportRequest);
        let cases: [(Change, &str); 11] = [
            (|report| report.connection_id.clear(), "connectionId"),
            (|report| report.deployment_acks.push(DeploymentAck::default()), "deploymentAcks"),
            (|report| report.event_acks.push(EventAck::default()), "eventAcks"),
            (|report| report.deployment_acks[3].deployment_id = "x".into(), "deploymentAcks[3].deploymentId"),
            (|report| report.deployment_acks[99].action = "explode".into(), "deploymentAcks[99].action"),
            (|report| report.deployment_acks[0].status.clear(), "deploymentAcks[0].status"),
            (|report| report.deployment_acks[1].performed_at = "now".into(), "deploymentAcks[1].performedAt"),
            (|report| report.event_acks[2].nonce.clear(), "eventAcks[2].nonce"),
            (|report| report.event_acks[2].error_message = "x".repeat(1_025), "eventAcks[2].errorMessage"),
            (|report| report.event_acks[0].error_code = "x".repeat(129), "eventAcks[0].errorCode"),
            (
                |report| report.heartbeat = Some(Heartbeat { revision: 0, state_hash: "0A".repeat(32) }),
                "heartbeat.stateHash",
            ),
        ];
        for (change, field) in cases {
            let mut report = good();
            change(&mut report);
            let error = check(&report).unwrap_err();
            let fields: Vec<&str> = error.violations().iter().map(|one| one.field.as_str()).collect();
            assert_eq!(fields, [field]);
        }
    }

    #[test]
    fn every_report_is_a_sign_of_life() {
        let all: Vec<Frame> = frames(good()).filter_map(|frame| frame.frame).collect();
        assert_eq!(all.len(), 201);
        assert!(matches!((&all[0], &all[100]), (Frame::DeploymentAck(_), Frame::EventAck(_))));
        assert!(matches!(&all[200], Frame::Heartbeat(beat) if beat.revision == 7));
        let empty = ReportRequest { connection_id: ID.into(), ..ReportRequest::default() };
        assert_eq!(frames(empty).count(), 1);
    }
}
