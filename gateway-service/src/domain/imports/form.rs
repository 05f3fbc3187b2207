//! The body of an import: `multipart/form-data` with a zip and the number of its entries.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use multer::{Constraints, Multipart, SizeLimit};
use service_kit::{Error, Result};

/// The largest zip.
const MAX_ZIP: u64 = 32 * 1024 * 1024;
/// The largest other part.
const MAX_PART: u64 = 64 * 1024;

/// The parts of an import.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// A zip.
    pub(super) artifacts: Bytes,
    /// How many artifacts are said to be in it.
    pub(super) total: Option<usize>,
}

/// Reads the parts that there must be; others are passed over.
pub(super) async fn read(content_type: &str, body: Bytes) -> Result<Form> {
    let boundary = multer::parse_boundary(content_type)
        .map_err(|_| Error::field("form", "must be multipart/form-data with a boundary"))?;
    let limits = SizeLimit::new().per_field(MAX_PART).for_field("artifacts", MAX_ZIP);
    let body = stream::iter([Ok::<_, Infallible>(body)]);
    let mut parts = Multipart::with_constraints(body, boundary, Constraints::new().size_limit(limits));
    let (mut artifacts, mut total) = (None, None);
    while let Some(part) = parts.next_field().await.map_err(unreadable)? {
        let name = part.name().unwrap_or_default().to_owned();
        let slot = match name.as_str() {
            "artifacts" => &mut artifacts,
            "total" => &mut total,
            _ => continue,
        };
        if slot.is_some() {
            return Err(Error::field(name, "must not be there twice"));
        }
        *slot = Some(part.bytes().await.map_err(unreadable)?);
    }
    let artifacts = artifacts.ok_or_else(|| Error::field("artifacts", "is required: a zip"))?;
    let number = |text: Bytes| std::str::from_utf8(&text).ok()?.trim().parse().ok();
    let total = total
        .map(|text| number(text).ok_or_else(|| Error::field("total", "must be the number of artifacts")))
        .transpose()?;
    Ok(Form { artifacts, total })
}

fn unreadable(error: multer::Error) -> Error {
    match error {
        multer::Error::FieldSizeExceeded { limit, field_name } => {
            let field = field_name.unwrap_or_else(|| "form".to_owned());
            Error::field(field, format!("must have at most {limit} bytes"))
        }
        error => Error::field("form", format!("cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{Form, MAX_PART, MAX_ZIP, read};

    const TYPE: &str = "multipart/form-data; boundary=x";

    fn body(parts: &[(&str, &[u8])]) -> Bytes {
        let mut body = Vec::new();
        for (name, data) in parts {
            let head = format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
            body.extend([head.as_bytes(), *data, b"\r\n".as_slice()].concat());
        }
        body.extend(b"--x--\r\n");
        body.into()
    }

    async fn field(content_type: &str, body: Bytes) -> String {
        read(content_type, body).await.unwrap_err().violations()[0].field.clone()
    }

    #[tokio::test]
    async fn the_parts_are_found_in_any_order() {
        let form = read(TYPE, body(&[("total", b"2"), ("note", b"n"), ("artifacts", b"zip")])).await.unwrap();
        assert_eq!(form, Form { artifacts: Bytes::from_static(b"zip"), total: Some(2) });
        assert_eq!(read(TYPE, body(&[("artifacts", b"")])).await.unwrap().total, None);
    }

    #[tokio::test]
    async fn what_is_wrong_is_named() {
        let good = body(&[("artifacts", b"zip")]);
        for content_type in ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=x"] {
            assert_eq!(field(content_type, good.clone()).await, "form", "{content_type}");
        }
        assert_eq!(field(TYPE, good.slice(..good.len() - 8)).await, "form");
        assert_eq!(field(TYPE, Bytes::new()).await, "form");
        assert_eq!(field(TYPE, body(&[("total", b"1")])).await, "artifacts");
        assert_eq!(field(TYPE, body(&[("artifacts", b"a"), ("artifacts", b"b")])).await, "artifacts");
        for total in ["", "-1", "one", "1.5", "\u{661}"] {
            assert_eq!(field(TYPE, body(&[("artifacts", b"a"), ("total", total.as_bytes())])).await, "total");
        }
        let long = vec![b' '; usize::try_from(MAX_PART).unwrap() + 1];
        assert_eq!(field(TYPE, body(&[("artifacts", b"a"), ("total", &long)])).await, "total");
        let large = vec![b' '; usize::try_from(MAX_ZIP).unwrap() + 1];
        assert_eq!(field(TYPE, body(&[("artifacts", &large)])).await, "artifacts");
    }

    proptest! {
        #[test]
        fn no_body_breaks_the_reader(data in prop::collection::vec(any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let read = runtime.block_on(read(TYPE, data.into()));
            prop_assert!(read.is_err() || read.is_ok_and(|form| form.total.is_none()));
        }
    }
}
