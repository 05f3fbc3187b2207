//! `google.protobuf.Timestamp` whose JSON form is RFC 3339 in UTC with milliseconds and `Z`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time, as on the wire: seconds and nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Message)]
pub struct Timestamp {
    /// Seconds since the epoch.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds within the second, never negative.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    /// From milliseconds since the epoch, the form that the stores keep.
    pub fn from_unix_ms(ms: i64) -> Self {
        Self {
            seconds: ms.div_euclid(1_000),
            nanos: i32::try_from(ms.rem_euclid(1_000)).unwrap_or(0) * 1_000_000,
        }
    }

    /// Milliseconds since the epoch; finer parts are cut off.
    pub fn unix_ms(&self) -> i64 {
        self.seconds.saturating_mul(1_000).saturating_add(i64::from(self.nanos / 1_000_000))
    }

    /// RFC 3339, UTC, milliseconds: `2026-08-22T10:00:00.123Z`. `None` outside years 1 to 9999.
    pub fn to_rfc3339(&self) -> Option<String> {
        let time = jiff::Timestamp::from_millisecond(self.unix_ms()).ok()?;
        Some(format!("{time:.3}"))
    }

    /// Reads any RFC 3339 time.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        text.parse::<jiff::Timestamp>().ok().map(|time| Self::from_unix_ms(time.as_millisecond()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text =
            self.to_rfc3339().ok_or_else(|| serde::ser::Error::custom("time outside years 1 to 9999"))?;
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        Self::parse_rfc3339(&text)
            .ok_or_else(|| de::Error::custom("not an RFC 3339 time such as 2026-08-22T10:00:00.123Z"))
    }
}

#[cfg(test)]
mod tests {
    use super::Timestamp;

    #[test]
    fn json_is_utc_with_milliseconds() {
        let json = serde_json::to_string(&Timestamp::from_unix_ms(1_766_000_000_007)).unwrap();
        assert_eq!(json, "\"2025-12-17T19:33:20.007Z\"");
        let offset: Timestamp = serde_json::from_str("\"2025-12-17T20:33:20.007+01:00\"").unwrap();
        assert_eq!(offset.unix_ms(), 1_766_000_000_007);
        assert!(serde_json::from_str::<Timestamp>("\"yesterday\"").is_err());
    }

    #[test]
    fn times_before_the_epoch_keep_positive_nanoseconds() {
        let before = Timestamp::from_unix_ms(-1);
        assert_eq!((before.seconds, before.nanos), (-1, 999_000_000));
        assert_eq!(before.unix_ms(), -1);
    }
}
