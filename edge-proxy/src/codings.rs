//! Content codings (RFC 9110 §8.4): gzip, br and zstd, of whole bodies and of single messages.
//!
//! What is inflated has a bound of its own: a few bytes may stand for gigabytes.

use std::io::{self, Read, Write as _};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use service_kit::{Error, Kind};

use crate::rescue::Refusal;

/// What can be read and written, as `Accept-Encoding` and its like say it.
pub(crate) const SUPPORTED: HeaderValue = HeaderValue::from_static("gzip, br, zstd");

/// Reason of a coding that nobody here knows.
pub(crate) const UNSUPPORTED: &str = "UNSUPPORTED_ENCODING";

/// The largest window of zstd over HTTP, 8 MiB (RFC 9659): a reader needs as much memory.
const ZSTD_WINDOW_LOG: u32 = 23;

/// Up to here a body is inflated where it is read; larger ones would hold up the other calls of a thread.
const INLINE: usize = 1024 * 1024;

/// One coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

/// Why something cannot be inflated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// More bytes than the limit.
    TooLarge,
    /// Not of this coding, or cut off.
    Malformed,
}

impl Coding {
    /// The coding of this name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match () {
            () if is("gzip") || is("x-gzip") => Some(Self::Gzip),
            () if is("br") => Some(Self::Brotli),
            () if is("zstd") => Some(Self::Zstd),
            () => None,
        }
    }

    /// Its registered name.
    pub(crate) fn name(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        })
    }

    /// The first coding of a list that there is; of a list with weights, one of weight 0 is none.
    pub(crate) fn first_of(list: &str) -> Option<Self> {
        list.split(',').find_map(|item| {
            let mut parts = item.split(';').map(str::trim);
            let name = parts.next()?;
            let refused = parts.any(|part| part.strip_prefix("q=").is_some_and(is_zero));
            Self::of(name).filter(|_| !refused)
        })
    }

    /// What the bytes stand for, at most `limit` bytes of it.
    pub(crate) fn inflate(self, bytes: &[u8], limit: usize) -> Result<Bytes, Fault> {
        // An empty body has no coding, whatever its header says.
        if bytes.is_empty() {
            return Ok(Bytes::new());
        }
        let most = limit as u64 + 1;
        let mut plain = Vec::with_capacity(bytes.len().saturating_mul(3).min(limit));
        match self {
            Self::Gzip => flate2::read::MultiGzDecoder::new(bytes).take(most).read_to_end(&mut plain),
            Self::Brotli => brotli::Decompressor::new(bytes, 4_096).take(most).read_to_end(&mut plain),
            Self::Zstd => zstd_reader(bytes).and_then(|reader| reader.take(most).read_to_end(&mut plain)),
        }
        .map_err(|_| Fault::Malformed)?;
        if plain.len() > limit { Err(Fault::TooLarge) } else { Ok(plain.into()) }
    }

    /// The bytes in this coding. Fast rather than small: it is done for each call.
    pub(crate) fn deflate(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let out = Vec::with_capacity(bytes.len() / 2);
        match self {
            Self::Gzip => {
                let mut writer = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
                writer.write_all(bytes)?;
                writer.finish()
            }
            Self::Brotli => {
                let mut writer = brotli::CompressorWriter::new(out, 4_096, 3, 20);
                writer.write_all(bytes)?;
                writer.flush()?;
                Ok(writer.into_inner())
            }
            Self::Zstd => zstd::encode_all(bytes, 1),
        }
    }
}

fn zstd_reader(bytes: &[u8]) -> io::Result<impl Read> {
    let mut reader = zstd::Decoder::with_buffer(bytes)?;
    reader.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(reader)
}

fn is_zero(weight: &str) -> bool {
    weight.parse::<f32>().is_ok_and(|weight| weight == 0.0)
}

/// The coding that a header names; `None` for none or `identity`, and what it says otherwise.
pub(crate) fn named(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Coding>, String> {
    let mut values = headers.get_all(name).iter();
    let text = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.to_str().unwrap_or("?").trim(),
        (Some(_), Some(_)) => "more than one",
    };
    if text.is_empty() || text.eq_ignore_ascii_case("identity") {
        return Ok(None);
    }
    Coding::of(text).map(Some).ok_or_else(|| text.chars().take(64).collect())
}

/// The coding of a body; 415 with what there is when it is another (RFC 9110 §15.5.16).
pub(crate) fn of_body(headers: &HeaderMap) -> Result<Option<Coding>, Refusal> {
    named(headers, &header::CONTENT_ENCODING).map_err(|found| {
        Refusal::http(StatusCode::UNSUPPORTED_MEDIA_TYPE, UNSUPPORTED, unknown(&found))
            .with_header(header::ACCEPT_ENCODING, SUPPORTED)
    })
}

/// As [`of_body`], for protocols that have a code for it; `accepts` is the header that says what there is.
pub(crate) fn of_call(
    headers: &HeaderMap,
    name: &HeaderName,
    accepts: HeaderName,
) -> Result<Option<Coding>, Refusal> {
    named(headers, name).map_err(|found| {
        let refusal = Refusal::from(Error::new(Kind::Unimplemented, UNSUPPORTED, unknown(&found)));
        refusal.with_header(accepts, SUPPORTED)
    })
}

/// For people: the coding is not known.
pub(crate) fn unknown(found: &str) -> String {
    format!("the coding `{found}` is not known here: gzip, br and zstd are")
}

/// Inflates a whole body; large ones elsewhere.
pub(crate) async fn inflated(coding: Coding, body: Bytes, limit: usize) -> Result<Bytes, Refusal> {
    let plain = if limit <= INLINE {
        coding.inflate(&body, limit)
    } else {
        let work = tokio::task::spawn_blocking(move || coding.inflate(&body, limit));
        work.await.map_err(Error::internal)?
    };
    plain.map_err(|fault| refusal(fault, limit))
}

/// What a caller hears of a body that cannot be inflated.
pub(crate) fn refusal(fault: Fault, limit: usize) -> Refusal {
    match fault {
        Fault::TooLarge => crate::body::too_large(limit),
        Fault::Malformed => Error::new(
            Kind::InvalidArgument,
            "MALFORMED_BODY",
            "the body is not of the coding that it says, or is cut off",
        )
        .into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Coding, Fault};

    const ALL: [Coding; 3] = [Coding::Gzip, Coding::Brotli, Coding::Zstd];

    #[test]
    fn the_limit_is_that_of_the_inflated_size() {
        for coding in ALL {
            let deflated = coding.deflate(&[b'x'; 1_000]).unwrap();
            assert!(deflated.len() < 200, "{coding:?}");
            assert_eq!(coding.inflate(&deflated, 1_000).unwrap().len(), 1_000, "{coding:?}");
            assert_eq!(coding.inflate(&deflated, 999), Err(Fault::TooLarge), "{coding:?}");
            let bomb = coding.deflate(&vec![0; 64 * 1024 * 1024]).unwrap();
            assert_eq!(coding.inflate(&bomb, 1_000), Err(Fault::TooLarge), "{coding:?}");
        }
    }

    #[test]
    fn what_is_cut_off_or_something_else_is_refused() {
        for coding in ALL {
            let mut deflated = coding.deflate(b"some words, and some words").unwrap();
            deflated.truncate(deflated.len() - 3);
            assert_eq!(coding.inflate(&deflated, 1_000), Err(Fault::Malformed), "{coding:?}");
            assert_eq!(coding.inflate(b"no such thing", 1_000), Err(Fault::Malformed), "{coding:?}");
            assert!(coding.inflate(b"", 0).unwrap().is_empty());
        }
    }

    #[test]
    fn a_window_that_needs_much_memory_is_refused() {
        let mut writer = zstd::Encoder::new(Vec::new(), 1).unwrap();
        writer.window_log(27).unwrap();
        std::io::Write::write_all(&mut writer, &[b'x'; 100]).unwrap();
        let deflated = writer.finish().unwrap();
        assert_eq!(Coding::Zstd.inflate(&deflated, 1_000), Err(Fault::Malformed));
    }

    #[test]
    fn the_first_that_there_is_is_taken() {
        for (list, expected) in [
            ("", None),
            ("deflate, snappy", None),
            ("identity,zstd , gzip", Some(Coding::Zstd)),
            ("GZIP", Some(Coding::Gzip)),
            ("br;q=0, gzip;q=0.5", Some(Coding::Gzip)),
        ] {
            assert_eq!(Coding::first_of(list), expected, "{list}");
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(bytes in prop::collection::vec(any::<u8>(), 0..3_000)) {
            for coding in ALL {
                let deflated = coding.deflate(&bytes).unwrap();
                prop_assert_eq!(&coding.inflate(&deflated, bytes.len()).unwrap()[..], &bytes[..]);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for coding in ALL {
                let _ = coding.inflate(&bytes, 100);
            }
        }
    }
}
