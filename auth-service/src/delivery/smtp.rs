//! One SMTP server, and a line to it. Whether a refusal is about a letter, or about all, is told apart
//! here: lettre's own transport connects and sends in one step, and so could drop a letter because of a
//! wrong password of ours.

use std::{future::Future, time::Duration};

use anyhow::{Context as _, anyhow, bail, ensure};
use lettre::{
    address::Envelope,
    transport::smtp::{
        Error,
        authentication::{Credentials, Mechanism},
        client::{AsyncSmtpConnection, TlsParameters},
        extension::ClientId,
    },
};
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use crate::config::is_loopback;

/// How long the server may take to answer one letter, or to be ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// Refusals that are about us and not about a letter: closing down, and nobody who may send.
const ABOUT_US: [u16; 5] = [421, 530, 534, 535, 538];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Security {
    /// On this machine only.
    Plain,
    StartTls,
    Tls,
}

/// Where letters go to.
#[derive(Debug)]
pub(super) struct Server {
    host: String,
    port: u16,
    security: Security,
    /// What we call ourselves.
    hello: ClientId,
    user: Option<(String, SecretString)>,
}

/// A connection that is ready for letters.
pub(super) struct Line(AsyncSmtpConnection);

/// What the server said to a letter, with its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    Taken,
    Later(u16),
    Never(u16),
}

impl Server {
    /// Reads `smtps://USER:PASSWORD@HOST`, `smtp://…?tls=required`, or `smtp://` to this machine. A path
    /// is what we call ourselves. No error repeats the text: it holds a password.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let url = Url::parse(text).context("it is not a URL")?;
        let host = url.host_str().filter(|host| !host.is_empty()).context("it names no host")?;
        let (security, port) = match (url.scheme(), url.query()) {
            ("smtps", None) => (Security::Tls, 465),
            ("smtp", Some("tls=required")) => (Security::StartTls, 587),
            ("smtp", None) if is_loopback(&url) => (Security::Plain, 25),
            ("smtp", None) => bail!("smtp:// without ?tls=required is for this machine only"),
            _ => bail!("it must be smtps://HOST or smtp://HOST?tls=required"),
        };
        let decode = |part: &str| percent_decode_str(part).decode_utf8().map(|text| text.into_owned());
        let user = match (url.username(), url.password()) {
            ("", None) => None,
            (user, Some(password)) if !user.is_empty() => {
                Some((decode(user)?, SecretString::from(decode(password)?)))
            }
            _ => bail!("it must have both a user and a password, or neither"),
        };
        let hello = match url.path().trim_matches('/') {
            "" => ClientId::default(),
            name => ClientId::Domain(name.to_owned()),
        };
        ensure!(url.fragment().is_none(), "it must have no fragment");
        // An IPv6 address is connected to without its brackets.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: url.port().unwrap_or(port), security, hello, user })
    }

    /// Connects and authenticates.
    pub(super) async fn connect(&self) -> anyhow::Result<Line> {
        in_time(async {
            let tls = || TlsParameters::new(self.host.clone());
            let at_once = if self.security == Security::Tls { Some(tls()?) } else { None };
            let server = (self.host.as_str(), self.port);
            let mut connection =
                AsyncSmtpConnection::connect_tokio1(server, Some(PATIENCE), &self.hello, at_once, None)
                    .await?;
            if self.security == Security::StartTls {
                connection.starttls(tls()?, &self.hello).await?;
            }
            if let Some((user, password)) = &self.user {
                let credentials = Credentials::new(user.clone(), password.expose_secret().to_owned());
                connection.auth(&[Mechanism::Plain, Mechanism::Login], &credentials).await?;
            }
            Ok(Line(connection))
        })
        .await?
        .context("cannot connect")
    }
}

impl Line {
    /// Sends a letter. After any reply but [`Reply::Taken`] the line is closed. What the server says in words
    /// may name the address: no error repeats it.
    pub(super) async fn send(&mut self, envelope: &Envelope, text: &[u8]) -> anyhow::Result<Reply> {
        match in_time(self.0.send(envelope, text)).await? {
            Ok(_) => Ok(Reply::Taken),
            Err(error) => match error.status().map(u16::from) {
                Some(code) if ABOUT_US.contains(&code) => Err(anyhow!("it answers {code}")),
                Some(code) if error.is_transient() => Ok(Reply::Later(code)),
                Some(code) => Ok(Reply::Never(code)),
                // What the server cannot take whatever we do.
                None if error.is_client() => Ok(Reply::Never(0)),
                None => Err(anyhow!("the connection broke")),
            },
        }
    }

    /// Says goodbye. What was sent is sent, whatever the answer.
    pub(super) async fn quit(mut self) {
        let _ = in_time(self.0.quit()).await;
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, Error>>) -> anyhow::Result<Result<T, Error>> {
    tokio::time::timeout(PATIENCE, work).await.context("it does not answer")
}
