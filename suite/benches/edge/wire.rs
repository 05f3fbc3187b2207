//! What goes over the wire: the one call that is measured, in gRPC's frames.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;
use proto::project::{GetOrganizationRequest, Organization};

/// The organization that is asked for; nobody looks whether it exists.
pub(crate) const ORGANIZATION: &str = "01980000-0000-7000-8000-000000000001";

/// The method.
pub(crate) const METHOD: &str = "/tollgate.project.v1.OrganizationService/GetOrganization";

/// The same in REST.
pub(crate) fn path() -> String {
    format!("/api/v1/organizations/{ORGANIZATION}")
}

/// A message with its prefix.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap());
    message.encode(&mut frame).unwrap();
    frame.freeze()
}

pub(crate) fn request(organization: &str) -> Bytes {
    frame(&GetOrganizationRequest { organization_id: organization.to_owned() })
}

/// The answer to every call.
pub(crate) fn answer() -> Bytes {
    let time = Some(proto::time::Timestamp::from_unix_ms(1_760_000_000_000));
    frame(&Organization {
        id: ORGANIZATION.into(),
        handle: "bench".into(),
        name: "Bench".into(),
        role: "owner".into(),
        created_at: time,
        updated_at: time,
    })
}
