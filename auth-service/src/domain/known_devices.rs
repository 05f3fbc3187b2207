//! Devices that have logged in before (OWASP device cookies): each keeps a token, and with it a count of
//! failed logins of its own, so that nobody else's guesses can lock its owner out.

/// How many devices of an account are known; the one that was not used for the longest time makes room.
pub(crate) const MOST: usize = 20;

/// For how long a device is known after a login, in seconds.
pub(crate) const LIFETIME: u32 = 365 * 24 * 3_600;

/// Devices last used before this are known no more.
pub(crate) fn known_since(now: i64) -> i64 {
    now - i64::from(LIFETIME) * 1_000
}
