//! What browsers keep for us: cookies that no script reads and no other site sends.
//!
//! The edge passes them on as metadata, both ways, and checks where a request with one comes from.

use secrecy::{ExposeSecret as _, SecretString};
use service_kit::Error;
use tonic::{
    Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
};

/// The refresh token.
pub(super) const REFRESH: &str = "__Host-tollgate-refresh";
/// The device token.
pub(super) const DEVICE: &str = "__Host-tollgate-device";

/// The value of a cookie of a request. Two of one name are as good as none: nobody can say which is ours.
pub(super) fn read(metadata: &MetadataMap, name: &str) -> Option<SecretString> {
    let lines = metadata.get_all("cookie").iter().filter_map(|line| line.to_str().ok());
    let mut values = lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(key, value)| *key == name && !value.is_empty())
        .map(|(_, value)| value);
    match (values.next(), values.next()) {
        (Some(value), None) => Some(SecretString::from(value)),
        _ => None,
    }
}

/// Tells a browser to keep a cookie for so many seconds.
pub(super) fn set(metadata: &mut MetadataMap, name: &str, value: &SecretString, max_age: u32) {
    append(metadata, name, value.expose_secret(), max_age);
}

/// Tells a browser to forget a cookie.
pub(super) fn clear(metadata: &mut MetadataMap, name: &str) {
    append(metadata, name, "", 0);
}

/// The error, which also clears a cookie.
pub(super) fn clearing(error: Error, name: &str) -> Status {
    let mut status = Status::from(error);
    clear(status.metadata_mut(), name);
    status
}

fn append(metadata: &mut MetadataMap, name: &str, value: &str, max_age: u32) {
    let line = format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={max_age}");
    // Tokens are base64url: they are always a value.
    if let Ok(mut line) = MetadataValue::<Ascii>::try_from(line) {
        line.set_sensitive(true);
        metadata.append("set-cookie", line);
    }
}

#[cfg(test)]
mod tests {
    use secrecy::{ExposeSecret as _, SecretString};
    use tonic::metadata::MetadataMap;

    use super::{DEVICE, REFRESH, clear, read, set};

    fn cookies(lines: &[&'static str]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for line in lines {
            metadata.append("cookie", line.parse().unwrap());
        }
        metadata
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let found = |lines: &[&'static str]| {
            read(&cookies(lines), REFRESH).map(|value| value.expose_secret().to_owned())
        };
        assert_eq!(found(&["a=1; __Host-tollgate-refresh=x-_=;b=2"]).as_deref(), Some("x-_="));
        assert_eq!(found(&["a=1", "__Host-tollgate-refresh=x"]).as_deref(), Some("x"));
        for none in [
            "",
            "__Host-tollgate-refresh",
            "__Host-tollgate-refresh=",
            "__host-tollgate-refresh=x",
            "x__Host-tollgate-refresh=x",
            "__Host-tollgate-device=x",
            "a=\"__Host-tollgate-refresh=x\"",
            "__Host-tollgate-refresh=x; __Host-tollgate-refresh=y",
        ] {
            assert_eq!(found(&[none]), None, "{none}");
        }
        assert_eq!(found(&["__Host-tollgate-refresh=x", "__Host-tollgate-refresh=x"]), None);
    }

    #[test]
    fn cookies_are_set_beside_each_other_and_print_no_secret() {
        let mut metadata = MetadataMap::new();
        set(&mut metadata, DEVICE, &SecretString::from("canary"), 7);
        clear(&mut metadata, REFRESH);
        let lines: Vec<_> =
            metadata.get_all("set-cookie").iter().map(|line| line.to_str().unwrap()).collect();
        assert_eq!(
            lines,
            [
                "__Host-tollgate-device=canary; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=7",
                "__Host-tollgate-refresh=; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=0",
            ]
        );
        assert!(!format!("{metadata:?}").contains("canary"));
    }
}
