//! The time of a log line: `2026-01-31T23:59:59.000001Z`.

use jiff::Timestamp;

/// Remembers the second, which many lines share.
#[derive(Debug, Default)]
pub(super) struct Stamp {
    second: i64,
    /// Everything before the microseconds; empty as long as there was no line.
    text: String,
}

impl Stamp {
    /// Writes a time, in microseconds since 1970.
    pub(super) fn write(&mut self, text: &mut String, micros: i64) {
        let (second, micros) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
        if second != self.second || self.text.is_empty() {
            self.second = second;
            self.text = Timestamp::from_second(second).unwrap_or_default().to_string().replace('Z', ".");
        }
        text.push_str(&self.text);
        // All six digits stand behind the one of the million.
        text.push_str(&itoa::Buffer::new().format(1_000_000 + micros)[1..]);
        text.push('Z');
    }
}

#[cfg(test)]
mod tests {
    use super::Stamp;

    #[test]
    fn seconds_are_remembered_and_microseconds_complete() {
        let (mut stamp, mut text) = (Stamp::default(), String::new());
        for micros in [0, 1, 999_999, 1_000_000, 1_769_903_999_012_345, 1_769_903_999_012_346, -1] {
            stamp.write(&mut text, micros);
            text.push(' ');
        }
        let expected = "1970-01-01T00:00:00.000000Z 1970-01-01T00:00:00.000001Z 1970-01-01T00:00:00.999999Z \
            1970-01-01T00:00:01.000000Z 2026-01-31T23:59:59.012345Z 2026-01-31T23:59:59.012346Z \
            1969-12-31T23:59:59.999999Z ";
        assert_eq!(text, expected);
    }
}
