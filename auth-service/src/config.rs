//! The settings of auth-service; `config.default.toml` documents them.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive, path::PathBuf};

use anyhow::Context as _;
use secrecy::SecretString;
use serde::Deserialize;
use service_kit::{
    client::UpstreamConfig, db::DatabaseConfig, idempotency::IdempotencyConfig, telemetry::TelemetryConfig,
    tls::TlsConfig, token::TokenConfig,
};
use url::Url;

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `HOST:PORT` of the gRPC port.
    pub listen: String,
    /// `HOST:PORT` of the admin port.
    pub admin_listen: String,
    /// Whether to offer gRPC reflection.
    pub reflection: bool,
    /// Who this process is.
    pub tls: TlsConfig,
    /// Where accounts are kept.
    pub database: DatabaseConfig,
    /// The keys of callers.
    pub idempotency: IdempotencyConfig,
    /// What access tokens say.
    pub token: TokenConfig,
    /// Where the other services are.
    pub upstreams: UpstreamsConfig,
    /// How signing keys are kept and follow each other.
    pub keys: KeysConfig,
    /// What sign-up asks for, and where links lead.
    pub account: AccountConfig,
    /// How mail leaves.
    pub mail: MailConfig,
    /// The rules of passwords and the cost of their hashes.
    pub password: PasswordConfig,
    /// The cost of failed logins.
    pub throttle: ThrottleConfig,
    /// How long sessions and their tokens live.
    pub session: SessionConfig,
    /// Passkeys.
    pub passkeys: PasskeyConfig,
    /// OpenID Connect providers, by the id that they have in paths.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// The audit log.
    pub audit: AuditConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

/// The `[keys]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysConfig {
    /// The file with the key that encrypts signing keys, and other secrets that we must read, at rest.
    pub sealing_key_file: PathBuf,
    /// Seconds that a key signs before the next one does.
    pub rotate_after: u32,
    /// Seconds between the publication of a key and its first use.
    pub publish_ahead: u32,
}

/// The `[upstreams]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamsConfig {
    /// project-service: what a caller may do in an organization.
    pub project: UpstreamConfig,
}

/// The `[account]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountConfig {
    /// Whether an account counts only once its address is verified.
    pub verify_email: bool,
    /// Where the application is that mailed links lead to: no header of a request decides that.
    pub public_url: String,
}

/// The `[mail]` section: SMTP when there is a URL, a folder otherwise.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailConfig {
    /// `smtps://USER:PASSWORD@HOST` or `smtp://HOST:PORT?tls=required`.
    pub smtp_url: SecretString,
    /// The folder that takes `.eml` files when there is no SMTP server.
    pub folder: PathBuf,
    /// The sender.
    pub from: String,
    /// Seconds until a letter that the server refused for now is tried again.
    pub retry_after: u32,
}

/// The `[passkeys]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasskeyConfig {
    /// The domain that passkeys belong to.
    pub rp_id: String,
    /// The exact origins of the applications that use them.
    pub origins: Vec<String>,
}

/// One of `[providers]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// What to show.
    pub name: String,
    /// The issuer, as its discovery document says it.
    pub issuer: String,
    /// Our id at the provider.
    pub client_id: String,
    /// Our secret at the provider.
    pub client_secret: SecretString,
    /// Where the provider sends the browser back to.
    pub redirect_url: String,
    /// The scopes to ask for besides `openid`.
    pub scopes: Vec<String>,
}

/// The `[audit]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// The folder that signed heads are written to; keep it on other storage than the database.
    pub heads_folder: PathBuf,
    /// The file with the key that signs heads; beside the sealing key when it is empty.
    pub signing_key_file: PathBuf,
    /// Seconds between two exports of heads.
    pub export_every: u32,
}

/// The `[password]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasswordConfig {
    /// The fewest code points of a new password.
    pub min_length: usize,
    /// A file of passwords to refuse, one a line; empty for none but those compiled in.
    pub blocklist_file: PathBuf,
    /// argon2id: memory in KiB.
    pub memory_kib: u32,
    /// argon2id: passes over the memory.
    pub iterations: u32,
    /// argon2id: lanes.
    pub parallelism: u32,
}

/// The `[throttle]` section. Times are seconds.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThrottleConfig {
    /// How many failures in a row cost no wait.
    pub free_failures: u32,
    /// The longest wait.
    pub max_wait: u32,
    /// When failures are forgotten, counted from the last.
    pub forget_after: u32,
}

/// The `[session]` section. Times are seconds.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionConfig {
    /// How long an access token lives.
    pub access_lifetime: u32,
    /// How long an unused refresh token lives.
    pub refresh_idle: u32,
    /// How long a session lives, however busy.
    pub lifetime: u32,
    /// For how long a refresh token that comes again gets the same answer, and not the end of its session.
    pub refresh_grace: u32,
}

impl Config {
    /// Where the key is that signs heads of the audit log.
    pub(crate) fn audit_key_file(&self) -> PathBuf {
        let file = &self.audit.signing_key_file;
        if file.as_os_str().is_empty() {
            self.keys.sealing_key_file.with_file_name("audit-signing.key")
        } else {
            file.clone()
        }
    }

    /// Refuses what would weaken passwords, or would make tokens that nobody accepts.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let (password, session) = (&self.password, &self.session);
        let min_length = u32::try_from(password.min_length).unwrap_or(u32::MAX);
        within("password.min_length", min_length, 8..=64)?;
        within("password.memory_kib", password.memory_kib, 19_456..=crate::domain::hashing::MAX_MEMORY_KIB)?;
        within("password.iterations", password.iterations, 2..=crate::domain::hashing::MAX_ITERATIONS)?;
        within("password.parallelism", password.parallelism, 1..=crate::domain::hashing::MAX_PARALLELISM)?;
        within("mail.retry_after", self.mail.retry_after, 1..=3_600)?;
        crate::delivery::check(&self.mail)?;
        check_public_url(&self.account.public_url)?;
        // A throttle that forgets before it has locked is none.
        within("throttle.max_wait", self.throttle.max_wait, 1..=86_400)?;
        within("throttle.forget_after", self.throttle.forget_after, self.throttle.max_wait..=604_800)?;
        within("throttle.free_failures", self.throttle.free_failures, 1..=100)?;
        within("keys.publish_ahead", self.keys.publish_ahead, 600..=86_400)?;
        within("keys.rotate_after", self.keys.rotate_after, 2 * self.keys.publish_ahead..=7_776_000)?;
        for (id, provider) in &self.providers {
            crate::domain::providers::check(id, provider)?;
        }
        within("audit.export_every", self.audit.export_every, 1..=3_600)?;
        within("session.access_lifetime", session.access_lifetime, 300..=900)?;
        within("session.lifetime", session.lifetime, session.access_lifetime..=31_536_000)?;
        within("session.refresh_grace", session.refresh_grace, 0..=10)?;
        within("session.refresh_idle", session.refresh_idle, session.access_lifetime..=session.lifetime)?;
        crate::domain::second_factors::check(&self.passkeys)
    }
}

/// Links are made by adding to it, and nobody on the way may read them.
fn check_public_url(text: &str) -> anyhow::Result<()> {
    let url = Url::parse(text).context("account.public_url is not a URL")?;
    let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    anyhow::ensure!(
        plain && url.password().is_none(),
        "account.public_url must have no user, query or fragment"
    );
    anyhow::ensure!(
        url.scheme() == "https" || (url.scheme() == "http" && is_loopback(&url)),
        "account.public_url must be https:// (or http:// on this machine)"
    );
    Ok(())
}

/// Whether a URL leads to this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    // Schemes that the URL standard does not know keep an address as a name.
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn within(key: &str, value: u32, range: RangeInclusive<u32>) -> anyhow::Result<()> {
    let (min, max) = (range.start(), range.end());
    anyhow::ensure!(range.contains(&value), "{key} is {value}, and must be {min} to {max}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use service_kit::config::Layers;

    use super::Config;

    fn with(key: &str, value: &str) -> anyhow::Result<()> {
        let layers = Layers::new(crate::DEFAULTS, None, "TOLLGATE_AUTH_TEST__")?.set(key, value);
        layers.extract::<Config>()?.check()
    }

    #[test]
    fn the_defaults_are_valid() {
        with("listen", "127.0.0.1:0").unwrap();
    }

    #[test]
    fn what_is_deployed_writes_to_its_volume_and_finds_the_others() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/auth-service.toml");
        let layers = Layers::new(crate::DEFAULTS, Some(&file), "TOLLGATE_AUTH_TEST__").unwrap();
        let config: Config = layers.extract().unwrap();
        config.check().unwrap();
        let key = config.audit_key_file();
        let written = [&config.keys.sealing_key_file, &config.audit.heads_folder, &key, &config.mail.folder];
        assert!(written.iter().all(|path| path.starts_with("/var/lib/tollgate")), "{written:?}");
        assert_eq!(config.upstreams.project.address, "project-service:10000");
    }

    #[test]
    fn providers_are_checked_by_the_name_of_the_key() {
        let check = |id: &str, key: &str, value: &str| {
            let mut layers = Layers::new(crate::DEFAULTS, None, "TOLLGATE_AUTH_TEST__").unwrap();
            for (key, value) in [
                ("name", "Example"),
                ("issuer", "https://accounts.example.com"),
                ("client_id", "tollgate"),
                ("client_secret", "canary"),
                ("redirect_url", "https://app.example.com/signed-in"),
                ("scopes", "[\"email\"]"),
                (key, value),
            ] {
                layers = layers.set(&format!("providers.{id}.{key}"), value);
            }
            layers.extract::<Config>()?.check()
        };
        check("a-1", "issuer", "http://127.0.0.1:4444/realm").unwrap();
        check("x", "issuer", "http://[::1]:4444").unwrap();
        for (id, key, value) in [
            ("Example", "name", "Example"),
            ("x", "name", " "),
            ("x", "issuer", "http://accounts.example.com"),
            ("x", "issuer", "accounts.example.com"),
            ("x", "issuer", "https://user:canary@accounts.example.com"),
            ("x", "issuer", "https://accounts.example.com/?a=b"),
            ("x", "client_id", ""),
            ("x", "redirect_url", "/signed-in"),
            ("x", "redirect_url", "https://app.example.com/#signed-in"),
            ("x", "scopes", "[\"a b\"]"),
            ("x", "unknown", "1"),
        ] {
            let error = check(id, key, value).unwrap_err().to_string();
            assert!(error.contains(&format!("providers.{id}")) && !error.contains("canary"), "{error}");
            assert!(error.contains(key) || id == "Example", "{key}: {error}");
        }
    }

    #[test]
    fn weak_and_impossible_settings_are_named() {
        for (key, value) in [
            ("password.memory_kib", "19455"),
            ("password.iterations", "1"),
            ("password.parallelism", "17"),
            ("password.min_length", "7"),
            ("throttle.free_failures", "0"),
            ("throttle.forget_after", "10"),
            ("session.access_lifetime", "901"),
            ("session.refresh_idle", "2592001"),
            ("session.lifetime", "3"),
            ("session.refresh_grace", "11"),
            ("keys.publish_ahead", "599"),
            ("keys.rotate_after", "600"),
            ("audit.export_every", "0"),
            ("passkeys.rp_id", "example.com"),
            ("passkeys.origins", "[]"),
            ("passkeys.origins", "[\"https://localhost:8443/app\"]"),
            ("session.unknown", "1"),
            ("mail.retry_after", "0"),
            ("mail.from", "nobody in particular"),
            ("mail.from", "A <a@b.example>\r\nBcc: c@d.example"),
            ("mail.smtp_url", "mail.example.com"),
            ("mail.smtp_url", "http://mail.example.com"),
            ("mail.smtp_url", "smtp://mail.example.com"),
            ("mail.smtp_url", "smtp://localhost.example.com:25"),
            ("mail.smtp_url", "smtp://127.0.0.1.example.com:25"),
            ("mail.smtp_url", "smtp://mail.example.com?tls=opportunistic"),
            ("mail.smtp_url", "smtp://mail.example.com?tls=required&tls=opportunistic"),
            ("mail.smtp_url", "smtps://canary-user@mail.example.com"),
            ("account.public_url", "tollgate.example.com"),
            ("account.public_url", "http://tollgate.example.com"),
            ("account.public_url", "https://tollgate.example.com/?x=1"),
            ("account.public_url", "https://user@tollgate.example.com"),
        ] {
            let error = with(key, value).unwrap_err().to_string();
            let last = key.rsplit('.').next().unwrap();
            assert!(error.contains(last), "{key}: {error}");
            assert!(!error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn mail_leaves_encrypted_or_stays_on_this_machine() {
        for url in [
            "",
            "smtps://user:pass%40word@mail.example.com",
            "smtps://mail.example.com:4650/our-name.example.com",
            "smtp://user:word@mail.example.com:587?tls=required",
            "smtp://localhost:25",
            "smtp://127.0.0.1:2525",
            "smtp://[::1]:2525",
        ] {
            with("mail.smtp_url", url).unwrap();
        }
        with("account.public_url", "http://localhost:3000/app").unwrap();
        with("account.public_url", "https://tollgate.example.com/app").unwrap();
    }
}
