//! Says when an answer was made (RFC 9110 §6.6.1).

use std::cell::RefCell;

use http::{HeaderMap, HeaderValue, header};
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use service_kit::Clock;

/// Adds the time to the headers of an answer. It is written once a second.
pub(crate) fn add(clock: &Clock, headers: &mut HeaderMap) {
    thread_local! {
        static LAST: RefCell<(i64, HeaderValue)> = const { RefCell::new((-1, HeaderValue::from_static(""))) };
    }
    let now = clock.now_ms() / 1_000;
    let date = LAST.with_borrow_mut(|(second, text)| {
        if *second != now {
            (*second, *text) = (now, text_of(now));
        }
        text.clone()
    });
    headers.insert(header::DATE, date);
}

fn text_of(second: i64) -> HeaderValue {
    let time = Timestamp::from_second(second).unwrap_or_default();
    let text = DateTimePrinter::new().timestamp_to_rfc9110_string(&time);
    text.ok().and_then(|text| text.try_into().ok()).unwrap_or_else(|| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use service_kit::Clock;

    #[test]
    fn dates_are_those_of_http() {
        let clock = Clock::fixed(784_111_777_999);
        let mut headers = HeaderMap::new();
        super::add(&clock, &mut headers);
        assert_eq!(headers["date"], "Sun, 06 Nov 1994 08:49:37 GMT");
        clock.advance_ms(1);
        super::add(&clock, &mut headers);
        assert_eq!(headers["date"], "Sun, 06 Nov 1994 08:49:38 GMT");
    }
}
