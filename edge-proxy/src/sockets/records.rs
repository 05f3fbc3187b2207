//! The messages of a socket: Connect's envelopes as binary messages, or the same in JSON as text.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use service_kit::Error;
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};
use tonic::{Code, Status};

use crate::{
    connect::{Codecs, Format},
    envelope,
    rescue::{self, Refusal},
};

/// What a client says.
#[derive(Debug)]
pub(super) enum Said {
    /// A message of the call, as a gRPC frame.
    Message(Bytes),
    /// There are no more.
    End,
}

/// Why something that a client says is no record.
#[derive(Debug)]
pub(super) enum Fault {
    /// The socket is closed with this code: who speaks so does not know the framing.
    Framing(CloseCode, &'static str),
    /// The call fails: the message is not what the method takes.
    Message(Refusal),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record<'a> {
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    end: Option<&'a RawValue>,
}

/// Reads a text or binary message.
pub(super) fn read(said: Message, format: Format, codecs: &Codecs, limit: usize) -> Result<Said, Fault> {
    let message = match (format, said) {
        (Format::Json, Message::Text(text)) => match of_text(&text)? {
            Some(message) => message,
            None => return Ok(Said::End),
        },
        (Format::Proto, Message::Binary(bytes)) => match of_bytes(bytes, limit)? {
            Some(message) => message,
            None => return Ok(Said::End),
        },
        (Format::Json, _) => return Err(Fault::Framing(CloseCode::Unsupported, "messages are text here")),
        (Format::Proto, _) => return Err(Fault::Framing(CloseCode::Unsupported, "messages are binary here")),
    };
    if message.len() > limit {
        return Err(Fault::Message(crate::body::too_large(limit)));
    }
    let message = codecs.read(message).map_err(Fault::Message)?;
    let frame = envelope::wrap(0, &message);
    frame.map(Said::Message).map_err(|_| Fault::Message(crate::body::too_large(limit)))
}

fn of_text(text: &str) -> Result<Option<Bytes>, Fault> {
    match serde_json::from_str(text) {
        Ok(Record { message: Some(message), end: None }) => Ok(Some(message.get().to_owned().into())),
        Ok(Record { message: None, end: Some(_) }) => Ok(None),
        _ => Err(Fault::Framing(CloseCode::Invalid, "a record is {\"message\": …} or {\"end\": {}}")),
    }
}

fn of_bytes(bytes: Bytes, limit: usize) -> Result<Option<Bytes>, Fault> {
    let mut rest = BytesMut::from(bytes);
    let taken = envelope::take(&mut rest, limit);
    match taken {
        Err(envelope::TooLarge) => Err(Fault::Message(crate::body::too_large(limit))),
        Ok(Some((0, message))) if rest.is_empty() => Ok(Some(message)),
        Ok(Some((envelope::END, _))) if rest.is_empty() => Ok(None),
        Ok(_) => Err(Fault::Framing(CloseCode::Invalid, "a message is one envelope, not compressed")),
    }
}

/// A message of the service.
pub(super) fn message(message: Bytes, format: Format, codecs: &Codecs) -> Result<Message, Error> {
    let message = codecs.write(message)?;
    match format {
        Format::Proto => {
            let too_large = |_| Error::internal(anyhow::anyhow!("a message is too large"));
            envelope::wrap(0, &message).map(Message::Binary).map_err(too_large)
        }
        Format::Json => text("message", &message),
    }
}

/// The record that ends a call, as Connect ends a stream.
pub(super) fn end(status: &Status, trailers: &HeaderMap, format: Format) -> Message {
    let json = rescue::connect::end(Some(status), trailers);
    match format {
        Format::Proto => Message::Binary(envelope::wrap(envelope::END, &json).unwrap_or_default()),
        Format::Json => text("end", &json).unwrap_or_else(|_| Message::text("{\"end\":{}}")),
    }
}

fn text(name: &str, json: &[u8]) -> Result<Message, Error> {
    let json = std::str::from_utf8(json).map_err(Error::internal)?;
    Ok(Message::text(format!("{{\"{name}\":{json}}}")))
}

/// The code that a socket is closed with after its last record. The record says more; this is for those who look
/// at nothing else: whether to come back.
pub(super) fn close_code(status: &Status) -> CloseCode {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => CloseCode::Policy,
        Code::Unavailable | Code::ResourceExhausted => CloseCode::Again,
        Code::Internal | Code::Unknown | Code::DataLoss => CloseCode::Error,
        _ => CloseCode::Normal,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use proto::{Contract, gateway::GatewayFrame};
    use service_kit::Error;
    use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};
    use tonic::Status;

    use super::{Codecs, Fault, Format, Said, close_code, end, message, read};

    fn codecs(format: Format) -> Codecs {
        let policy = Contract::get().method("/tollgate.gateway.v1.GatewayLink/Connect").unwrap();
        Codecs::of(policy, format).unwrap()
    }

    fn said(format: Format, message: Message) -> Result<Said, Fault> {
        read(message, format, &codecs(format), 20)
    }

    #[test]
    fn both_framings_say_the_same() {
        let json = said(Format::Json, Message::text(r#"{"message":{"heartbeat":{}}}"#)).unwrap();
        let Said::Message(frame) = json else { panic!("{json:?}") };
        let read = <GatewayFrame as prost::Message>::decode(&frame[5..]).unwrap();
        assert!(read.frame.is_some());
        let bytes = said(Format::Proto, Message::Binary(frame.clone())).unwrap();
        assert!(matches!(bytes, Said::Message(other) if other == frame));
        for (format, message) in [
            (Format::Json, Message::text(r#"{"end":{}}"#)),
            (Format::Proto, Message::Binary(vec![2, 0, 0, 0, 0].into())),
            (Format::Proto, Message::Binary(b"\x02\0\0\0\x02{}".to_vec().into())),
        ] {
            assert!(matches!(said(format, message), Ok(Said::End)));
        }
    }

    #[test]
    fn what_is_no_record_closes_and_what_is_no_message_fails() {
        for (format, message, code) in [
            (Format::Json, Message::text("{}"), CloseCode::Invalid),
            (Format::Json, Message::text("[]"), CloseCode::Invalid),
            (Format::Json, Message::text(r#"{"message":{},"end":{}}"#), CloseCode::Invalid),
            (Format::Json, Message::text(r#"{"massage":{}}"#), CloseCode::Invalid),
            (Format::Json, Message::Binary(vec![0; 5].into()), CloseCode::Unsupported),
            (Format::Proto, Message::text(r#"{"end":{}}"#), CloseCode::Unsupported),
            (Format::Proto, Message::Binary(vec![].into()), CloseCode::Invalid),
            (Format::Proto, Message::Binary(vec![1, 0, 0, 0, 0].into()), CloseCode::Invalid),
            (Format::Proto, Message::Binary(vec![0, 0, 0, 0, 0, 0].into()), CloseCode::Invalid),
            (Format::Proto, Message::Binary(vec![0, 0, 0, 0, 2, 0].into()), CloseCode::Invalid),
        ] {
            let read = said(format, message);
            assert!(matches!(read, Err(Fault::Framing(found, _)) if found == code), "{read:?}");
        }
        for (format, message) in [
            (Format::Json, Message::text(r#"{"message":{"x":1}}"#)),
            (Format::Json, Message::text(format!(r#"{{"message":"{}"}}"#, "x".repeat(30)))),
            (Format::Proto, Message::Binary(vec![0, 0, 0, 0, 21].into())),
        ] {
            assert!(matches!(said(format, message), Err(Fault::Message(_))));
        }
    }

    #[test]
    fn what_the_service_says_is_written_in_both() {
        let frame = bytes::Bytes::new();
        let text = message(frame.clone(), Format::Json, &codecs(Format::Json)).unwrap();
        assert_eq!(text, Message::text(r#"{"message":{}}"#));
        let binary = message(frame, Format::Proto, &codecs(Format::Proto)).unwrap();
        assert_eq!(binary, Message::Binary(vec![0; 5].into()));
        let none = HeaderMap::new();
        assert_eq!(end(&Status::ok(""), &none, Format::Json), Message::text(r#"{"end":{}}"#));
        let failed = end(&Status::aborted("no"), &none, Format::Proto);
        let Message::Binary(failed) = failed else { panic!() };
        assert_eq!((failed[0], &failed[5..]), (2, &br#"{"error":{"code":"aborted","message":"no"}}"#[..]));
    }

    #[test]
    fn the_close_code_says_whether_to_come_back() {
        for (error, code) in [
            (Error::not_found("x"), 1000),
            (Error::unauthenticated("x"), 1008),
            (Error::unavailable("x", anyhow::anyhow!("")), 1013),
            (Error::internal(anyhow::anyhow!("")), 1011),
        ] {
            assert_eq!(u16::from(close_code(&error.into())), code);
        }
        assert_eq!(close_code(&Status::ok("")), CloseCode::Normal);
    }
}
