//! What a request says about caches: `Cache-Control` (RFC 9111 §5.2.1), and `Pragma` where there is none.

use http::{HeaderMap, header};

/// What a client wants of a cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Directives {
    /// Ask the service.
    pub(super) no_cache: bool,
    /// Keep nothing of it.
    pub(super) no_store: bool,
    /// Nothing that is older, in seconds.
    pub(super) max_age_s: Option<u32>,
    /// Also what is no longer fresh, for so long, in seconds.
    pub(super) max_stale_s: Option<u32>,
    /// Nothing that is not fresh for so long, in seconds.
    pub(super) min_fresh_s: Option<u32>,
    /// Do not ask the service.
    pub(super) only_if_cached: bool,
}

impl Directives {
    /// Reads the headers of a request. What is not known is no directive; a number that is none is 0, the strictest.
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let mut read = Self::default();
        if !headers.contains_key(header::CACHE_CONTROL) {
            read.no_cache = headers.get(header::PRAGMA).is_some_and(|value| {
                value.as_bytes().split(|byte| *byte == b',').any(|part| is(part, b"no-cache"))
            });
            return read;
        }
        for value in headers.get_all(header::CACHE_CONTROL) {
            let text = String::from_utf8_lossy(value.as_bytes());
            for part in text.split(',') {
                read.directive(part.trim());
            }
        }
        read
    }

    fn directive(&mut self, part: &str) {
        let (name, value) =
            part.split_once('=').map_or((part, ""), |(name, value)| (name.trim(), value.trim()));
        let seconds = || {
            let digits = value.trim_matches('"');
            let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            // RFC 9111 §1.2.2: what is too large is as large as can be.
            Some(if number { digits.parse().unwrap_or(u32::MAX) } else { 0 })
        };
        match name.to_ascii_lowercase().as_str() {
            "no-cache" => self.no_cache = true,
            "no-store" => self.no_store = true,
            "only-if-cached" => self.only_if_cached = true,
            "max-age" => self.max_age_s = seconds().min(self.max_age_s.or(Some(u32::MAX))),
            // The one that allows more: without a number anything, with nonsense nothing.
            "max-stale" => {
                let most = if part.contains('=') { seconds() } else { Some(u32::MAX) };
                self.max_stale_s = most.min(self.max_stale_s.or(most));
            }
            "min-fresh" => {
                let number = !value.is_empty() && value.trim_matches('"').bytes().all(|b| b.is_ascii_digit());
                self.min_fresh_s = if number { seconds() } else { Some(u32::MAX) };
            }
            _ => {}
        }
    }
}

fn is(part: &[u8], name: &[u8]) -> bool {
    part.trim_ascii().eq_ignore_ascii_case(name)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header};

    use super::Directives;

    fn read(lines: &[&str]) -> Directives {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::CACHE_CONTROL, HeaderValue::from_str(line).unwrap());
        }
        Directives::read(&headers)
    }

    #[test]
    fn directives_are_read_from_all_lines_in_any_case() {
        let expected =
            Directives { no_cache: true, max_age_s: Some(5), only_if_cached: true, ..Directives::default() };
        assert_eq!(read(&["No-Cache, x=1", " ONLY-IF-CACHED ,max-age=5"]), expected);
        assert_eq!(read(&["no-store,, min-fresh=\"7\""]).min_fresh_s, Some(7));
        // Twice: the stricter. A number that is none: the strictest.
        assert_eq!(read(&["max-age=9, max-age=3, max-age=4"]).max_age_s, Some(3));
        assert_eq!(read(&["max-age=99999999999"]).max_age_s, Some(u32::MAX));
        for bad in ["max-age", "max-age=", "max-age=-1", "max-age=1s"] {
            assert_eq!(read(&[bad]).max_age_s, Some(0), "{bad}");
        }
        assert_eq!(read(&["min-fresh=x"]).min_fresh_s, Some(u32::MAX));
        for (lines, expected) in [
            (&["max-stale"][..], Some(u32::MAX)),
            (&["max-stale=60"], Some(60)),
            (&["max-stale", "Max-Stale=\"9\", max-stale=20"], Some(9)),
            (&["max-stale="], Some(0)),
            (&["max-stale=ever"], Some(0)),
            (&["max-stalex"], None),
        ] {
            assert_eq!(read(lines).max_stale_s, expected, "{lines:?}");
        }
        assert_eq!(read(&["nonsense, no-cachex, =, ="]), Directives::default());
    }

    #[test]
    fn pragma_counts_only_where_nothing_else_is_said() {
        let mut headers = HeaderMap::from_iter([(header::PRAGMA, HeaderValue::from_static("x, No-Cache"))]);
        assert!(Directives::read(&headers).no_cache);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=1"));
        assert!(!Directives::read(&headers).no_cache);
    }
}
