//! The status of an answer, however broken what tells it. tonic takes a message that cannot be decoded for another
//! code, and panics at details that are no base64; gRPC wants the code to count whatever else cannot be read.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use tonic::Status;

const MESSAGE: HeaderName = Status::GRPC_MESSAGE;
const DETAILS: HeaderName = Status::GRPC_STATUS_DETAILS;

/// What counts as base64 in metadata: padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Makes what tells a status readable: details that are none go, a message is written as far as it can be read.
pub(super) fn mend(headers: &mut HeaderMap) {
    if headers.get(DETAILS).is_some_and(|details| BASE64.decode(details.as_bytes()).is_err()) {
        headers.remove(DETAILS);
    }
    if let Some(message) = headers.get(MESSAGE)
        && percent_decode(message.as_bytes()).decode_utf8().is_err()
    {
        let text = percent_decode(message.as_bytes()).decode_utf8_lossy();
        let text = utf8_percent_encode(&text, NON_ALPHANUMERIC).to_string();
        headers.insert(MESSAGE, HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("")));
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use proptest::prelude::*;
    use tonic::{Code, Status};

    use super::mend;

    fn read(message: &[u8], details: &[u8]) -> Status {
        let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).unwrap();
        let mut headers = HeaderMap::from_iter([
            ("grpc-status".parse().unwrap(), value(b"5")),
            ("grpc-message".parse().unwrap(), value(message)),
            ("grpc-status-details-bin".parse().unwrap(), value(details)),
        ]);
        mend(&mut headers);
        Status::from_header_map(&headers).unwrap()
    }

    #[test]
    fn the_code_counts_whatever_else_cannot_be_read() {
        for (message, expected) in [
            (&b"no such thing"[..], "no such thing"),
            (b"caf%C3%A9", "caf\u{e9}"),
            (b"caf%E9", "caf\u{fffd}"),
            (b"caf\xe9", "caf\u{fffd}"),
            (b"100%", "100%"),
            (b"%zz%4", "%zz%4"),
        ] {
            for (details, length) in [(&b"AAEC"[..], 3), (b"AAE", 2), (b"AAE=", 2), (b"!!!", 0), (b"A", 0)] {
                let status = read(message, details);
                assert_eq!((status.code(), status.message()), (Code::NotFound, expected), "{message:?}");
                assert_eq!(status.details().len(), length, "{details:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(
            message in "[ -~\u{80}-\u{ff}]{0,40}",
            details in "[ -~]{0,40}",
        ) {
            let status = read(message.as_bytes(), details.as_bytes());
            prop_assert_eq!(status.code(), Code::NotFound);
        }
    }
}
