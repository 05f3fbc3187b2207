//! The rules: what an account, a password, a session and a signing key are. No gRPC and no SQL here.

pub(crate) mod accounts;
pub(crate) mod email;
pub(crate) mod hashing;
pub(crate) mod keys;
pub(crate) mod password;
pub(crate) mod pruning;
pub(crate) mod refresh_token;
pub(crate) mod sessions;
pub(crate) mod throttle;
