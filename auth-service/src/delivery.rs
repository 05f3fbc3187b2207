//! Delivers mail from the outbox: to an SMTP server, or into a folder of `.eml` files.
//!
//! Letters may hold links that are secrets. They are opened here, on their way out; no log says more of
//! one than its id.

mod smtp;

use std::{
    collections::HashSet,
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use async_trait::async_trait;
use lettre::{
    Message,
    message::{
        Body, Mailbox,
        header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue},
    },
};
use secrecy::ExposeSecret as _;
use service_kit::{
    Clock, Error, Result,
    outbox::{Entries, Entry, Relay, Sink},
    secret_file,
    shutdown::Tasks,
};
use tokio::sync::Mutex;

use crate::{
    config::MailConfig,
    domain::{
        Shared,
        mail::{Envelope, Letter, Mailroom, TOPIC, written_at},
    },
    store::mail::MailStore,
};
use smtp::{Line, Reply, Server};

/// How long a letter is worth trying: no link in one is good for longer.
const MAX_AGE_MS: i64 = 24 * 3_600 * 1_000;

/// Refuses settings with which no letter would leave, or would leave in clear.
pub(crate) fn check(config: &MailConfig) -> anyhow::Result<()> {
    sender(&config.from)?;
    route(config).map(drop)
}

/// Starts to deliver what is in the outbox, and to bring back what was put aside.
pub(crate) fn spawn(tasks: &Tasks, shared: &Shared, queue: Arc<dyn Entries>) -> anyhow::Result<()> {
    let config = &shared.config.mail;
    let route = route(config)?;
    if let Route::Folder(folder) = &route {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("mail.folder: cannot make {}", folder.display()))?;
        tracing::warn!(folder = %folder.display(), "no mail.smtp_url: letters go into a folder");
    }
    let delivery = Delivery {
        route,
        from: sender(&config.from)?,
        mailroom: shared.mailroom.clone(),
        store: shared.stores.mail.clone(),
        clock: shared.clock.clone(),
        done: Mutex::default(),
    };
    Relay::spawn(tasks, TOPIC, queue, Arc::new(delivery), shared.mail_nudge.clone());

    let every = Duration::from_secs(config.retry_after.into());
    let (store, nudge, stop) = (shared.stores.mail.clone(), shared.mail_nudge.clone(), tasks.stopping());
    tasks.spawn("mail that was put aside", async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = stop.cancelled() => return Ok(()),
            }
            match store.bring_back().await {
                Ok(0) => {}
                Ok(_) => nudge.now(),
                Err(error) => tracing::warn!(%error, "cannot bring back mail that was put aside"),
            }
        }
    });
    Ok(())
}

#[derive(Debug)]
enum Route {
    Server(Server),
    Folder(PathBuf),
}

/// What became of a letter.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Sent,
    PutAside,
    Dropped,
    /// It was to nobody: written so that an address without an account takes the same work.
    Nobody,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::PutAside => "put-aside",
            Self::Dropped => "dropped",
            Self::Nobody => "nobody",
        }
    }
}

/// Where the relay delivers to.
#[derive(Debug)]
struct Delivery {
    route: Route,
    from: Mailbox,
    mailroom: Mailroom,
    store: Arc<dyn MailStore>,
    clock: Clock,
    /// The positions of what is done, of a batch that may come again because the rest of it was not.
    done: Mutex<HashSet<i64>>,
}

#[async_trait]
impl Sink for Delivery {
    /// Fails only when no letter can leave; one that is refused holds up no other.
    async fn deliver(&self, entries: &[Entry]) -> Result<()> {
        let mut done = self.done.lock().await;
        done.retain(|position| entries.iter().any(|entry| entry.position == *position));
        let mut line = None;
        for entry in entries {
            if done.contains(&entry.position) {
                continue;
            }
            let outcome = self.deliver_one(entry, &mut line).await?;
            metrics::counter!("tollgate_mail_total", "outcome" => outcome.name()).increment(1);
            done.insert(entry.position);
        }
        if let Some(line) = line {
            line.quit().await;
        }
        Ok(())
    }
}

impl Delivery {
    async fn deliver_one(&self, entry: &Entry, line: &mut Option<Line>) -> Result<Outcome> {
        let letter = match self.mailroom.open(&entry.id, &entry.payload) {
            Ok(letter) => letter,
            Err(error) => {
                tracing::error!(letter = entry.id, %error, "a letter cannot be opened: dropped");
                return Ok(Outcome::Dropped);
            }
        };
        if letter.is_to_nobody() {
            return Ok(Outcome::Nobody);
        }
        let Some(message) = self.message(&entry.id, letter) else {
            tracing::warn!(letter = entry.id, "a letter has no address that mail knows: dropped");
            return Ok(Outcome::Dropped);
        };
        match &self.route {
            Route::Folder(folder) => write(folder, &entry.id, &message).await.map(|()| Outcome::Sent),
            Route::Server(server) => self.send(server, entry, &message, line).await,
        }
    }

    async fn send(
        &self,
        server: &Server,
        entry: &Entry,
        message: &Message,
        kept: &mut Option<Line>,
    ) -> Result<Outcome> {
        let mut line = match kept.take() {
            Some(line) => line,
            None => server.connect().await.map_err(unavailable)?,
        };
        let reply = line.send(message.envelope(), &message.formatted()).await.map_err(unavailable)?;
        let too_old = written_at(&entry.id).is_none_or(|at| self.clock.now_ms() - at >= MAX_AGE_MS);
        match reply {
            Reply::Taken => {
                *kept = Some(line);
                Ok(Outcome::Sent)
            }
            Reply::Later(code) if !too_old => {
                tracing::info!(letter = entry.id, code, "a letter was refused for now: put aside");
                let (id, payload) = (entry.id.clone(), entry.payload.clone());
                self.store.put_aside(&Envelope { id, payload }).await?;
                Ok(Outcome::PutAside)
            }
            Reply::Later(code) | Reply::Never(code) => {
                tracing::warn!(letter = entry.id, code, "a letter was refused: dropped");
                Ok(Outcome::Dropped)
            }
        }
    }

    /// The letter as it travels; nothing when its address is none.
    fn message(&self, id: &str, letter: Letter) -> Option<Message> {
        // Whoever wrote it: a subject is one line.
        let subject: String = letter.subject.chars().filter(|c| !c.is_control()).take(150).collect();
        let body = body(letter.text);
        let written = u64::try_from(written_at(id)?).ok()?;
        let automatic = HeaderName::new_from_ascii_str("Auto-Submitted");
        Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, letter.to.parse().ok()?))
            .subject(subject)
            .date(SystemTime::UNIX_EPOCH + Duration::from_millis(written))
            // The same each time that it is sent, so that a repeat can be told.
            .message_id(Some(format!("<{id}@{}>", self.from.email.domain())))
            .raw_header(HeaderValue::new(automatic, "auto-generated".to_owned()))
            .header(ContentType::TEXT_PLAIN)
            .body(body)
            .ok()
    }
}

/// The text as it is where that is allowed, so that links stay whole for whoever reads the file.
fn body(text: String) -> Body {
    let is_plain =
        text.lines().all(|line| line.len() <= 900 && !line.contains(|c: char| !matches!(c, ' '..='~')));
    if !is_plain {
        return Body::new(text);
    }
    let lines: String = text.lines().flat_map(|line| [line, "\r\n"]).collect();
    Body::dangerous_pre_encoded(lines.into_bytes(), ContentTransferEncoding::SevenBit)
}

fn route(config: &MailConfig) -> anyhow::Result<Route> {
    match config.smtp_url.expose_secret() {
        "" => Ok(Route::Folder(config.folder.clone())),
        url => Ok(Route::Server(Server::parse(url).context("mail.smtp_url")?)),
    }
}

fn sender(text: &str) -> anyhow::Result<Mailbox> {
    let is_line = !text.contains(char::is_control);
    let mailbox = text.parse().ok().filter(|_| is_line);
    mailbox.context("mail.from must be an address such as `Tollgate <no-reply@example.com>`")
}

fn unavailable(error: anyhow::Error) -> Error {
    Error::unavailable(format!("the mail server: {error:#}"), error)
}

/// Writes a letter as a file that only we can read; once, however often it is delivered.
async fn write(folder: &Path, id: &str, message: &Message) -> Result<()> {
    let file = folder.join(format!("{id}.eml"));
    let text = String::from_utf8(message.formatted()).map_err(Error::internal)?;
    let written = tokio::task::spawn_blocking(move || secret_file::create_once(&file, &text)).await;
    written
        .map_err(Error::internal)?
        .map_err(|error| Error::unavailable("cannot write into mail.folder", error))
}

#[cfg(test)]
mod tests {
    use lettre::Address;

    use super::body;

    #[test]
    fn every_address_that_signs_up_can_get_mail() {
        let longest = format!("{}@{}.{}.example", "a".repeat(64), "b".repeat(63), "c".repeat(60));
        for email in
            ["a@b.co", "Jane.Doe+x@mail.example.com", "o'neil@xn--bcher-kva.example", "x_y@1.example"]
                .into_iter()
                .chain(["!#$%&'*+/=?^_`{|}~-@example.com", &longest])
        {
            assert!(email.parse::<Address>().is_ok(), "{email}");
        }
    }

    #[test]
    fn links_stay_whole_and_nothing_strange_is_sent_as_it_is() {
        let link = format!("https://example.com/#token={}", "x".repeat(300));
        let sent = |text: &str| String::from_utf8(body(text.to_owned()).into_vec()).unwrap();
        assert_eq!(sent(&format!("a\n{link}\n")), format!("a\r\n{link}\r\n"));
        for strange in ["ü", "a\u{0}b", "a\rb", &"x".repeat(2_000)] {
            let sent = sent(strange);
            assert!(sent.is_ascii() && sent.lines().all(|line| line.len() < 100), "{sent:?}");
        }
    }
}
