//! Where the instances of a service are: a list in the settings, a name that is looked up again and again,
//! or a file that is watched.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};

/// More instances than this are a mistake.
const MOST: usize = 256;

/// The largest file that is read.
const MOST_BYTES: u64 = 64 * 1024;

/// How long a name server may take.
const LOOKUP: Duration = Duration::from_secs(5);

/// Where addresses come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// The settings.
    List(Vec<String>),
    /// All addresses of a name: `HOST:PORT`.
    Dns(String),
    /// `HOST:PORT` lines.
    File(PathBuf),
}

impl Source {
    /// Reads the setting `upstreams.NAME.address`.
    pub(super) fn parse(service: &str, text: &str) -> anyhow::Result<Self> {
        let name = service.strip_suffix("-service").unwrap_or(service);
        let what = || {
            format!("upstreams.{name}.address must be HOST:PORT, or several with commas between: {text:?}")
        };
        if let Some(address) = text.strip_prefix("dns:") {
            return Ok(Self::Dns(checked(address.trim()).with_context(what)?));
        }
        if let Some(path) = text.strip_prefix("file:") {
            ensure!(!path.is_empty(), "upstreams.{name}.address names no file: {text:?}");
            return Ok(Self::File(path.into()));
        }
        let list: anyhow::Result<_> = text.split(',').map(|one| checked(one.trim())).collect();
        Ok(Self::List(list.with_context(what)?))
    }

    /// Whether the addresses may change.
    pub(super) fn changes(&self) -> bool {
        !matches!(self, Self::List(_))
    }

    /// The addresses as they are known without waiting. A file must be good from the start; a name may
    /// have to be looked up first.
    pub(super) fn first(&self, service: &str) -> anyhow::Result<Vec<String>> {
        match self {
            Self::List(list) => Ok(list.clone()),
            Self::Dns(_) => Ok(Vec::new()),
            Self::File(path) => {
                let name = service.strip_suffix("-service").unwrap_or(service);
                read(path).with_context(|| format!("upstreams.{name}.address: {}", path.display()))
            }
        }
    }

    /// The addresses as they are now.
    pub(super) async fn now(&self) -> anyhow::Result<Vec<String>> {
        match self {
            Self::List(list) => Ok(list.clone()),
            Self::Dns(address) => {
                let found = tokio::time::timeout(LOOKUP, tokio::net::lookup_host(address)).await??;
                // Sorted: the order of answers changes, and means nothing.
                let addresses: BTreeSet<String> = found.map(|address| address.to_string()).collect();
                ensure!(!addresses.is_empty(), "{address} has no addresses");
                Ok(addresses.into_iter().take(MOST).collect())
            }
            Self::File(path) => {
                let path = path.clone();
                tokio::task::spawn_blocking(move || read(&path)).await?
            }
        }
    }
}

/// A list in a file, which is small, so that it is read rather than watched: what counts is what it says.
fn read(path: &std::path::Path) -> anyhow::Result<Vec<String>> {
    let bytes = std::fs::metadata(path)?.len();
    ensure!(bytes <= MOST_BYTES, "a list of instances has at most {MOST_BYTES} bytes, this has {bytes}");
    lines(&std::fs::read_to_string(path)?)
}

/// One `HOST:PORT` a line; empty lines and what follows `#` say nothing.
fn lines(text: &str) -> anyhow::Result<Vec<String>> {
    let mut addresses = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let address = checked(line).with_context(|| format!("line {}", number + 1))?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    ensure!(!addresses.is_empty(), "the list names no instance");
    ensure!(addresses.len() <= MOST, "the list names more than {MOST} instances");
    Ok(addresses)
}

/// An address that can be called.
fn checked(text: &str) -> anyhow::Result<String> {
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let port = parts.and_then(|(_, port)| port.parse::<u16>().ok());
    let is_authority = text.parse::<http::uri::Authority>().is_ok_and(|parsed| parsed.port_u16() == port);
    ensure!(port.is_some() && is_authority && !text.contains('@'), "{text:?} is no HOST:PORT");
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Source, checked, lines};

    fn parse(text: &str) -> Result<Source, String> {
        Source::parse("auth-service", text).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_kinds_are_told_apart() {
        assert_eq!(parse("a:1, b:2").unwrap(), Source::List(vec!["a:1".into(), "b:2".into()]));
        assert_eq!(parse("[::1]:9000").unwrap(), Source::List(vec!["[::1]:9000".into()]));
        assert_eq!(parse("dns:auth.local:9000").unwrap(), Source::Dns("auth.local:9000".into()));
        assert_eq!(parse("file:/etc/auth").unwrap(), Source::File("/etc/auth".into()));
        for bad in
            ["", "a", "a:", ":1", "a:99999", "a:1,,b:2", "dns:a", "dns:", "file:", "u@a:1", "a b:1", "a:1/x"]
        {
            assert!(parse(bad).unwrap_err().contains("upstreams.auth.address"), "{bad}");
        }
    }

    #[test]
    fn a_list_is_good_or_refused_as_a_whole() {
        assert_eq!(lines("# ours\n a:1 \n\nb:2 # the other\na:1\n").unwrap(), ["a:1", "b:2"]);
        for bad in ["", "# none", "a:1\nnonsense\n", "a:1 b:2"] {
            lines(bad).unwrap_err();
        }
        assert!(format!("{:#}", lines("a:1\nb\n").unwrap_err()).contains("line 2"));
        let many: String = (0..300).map(|port| format!("a:{port}\n")).collect();
        lines(&many).unwrap_err();
        checked("127.0.0.1:9000").unwrap();
    }

    #[tokio::test]
    async fn a_file_is_read_anew_and_a_name_is_looked_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        let source = Source::File(path.clone());
        let error = format!("{:#}", source.first("auth-service").unwrap_err());
        assert!(error.contains("upstreams.auth.address"), "{error}");
        std::fs::write(&path, "a:1\n").unwrap();
        assert_eq!(source.first("auth-service").unwrap(), ["a:1"]);
        std::fs::write(&path, "b:1\n").unwrap();
        assert_eq!(source.now().await.unwrap(), ["b:1"]);
        let name = Source::Dns("localhost:9000".into());
        assert!(name.changes() && name.first("auth-service").unwrap().is_empty());
        let found = name.now().await.unwrap();
        assert!(found.iter().any(|address| address == "127.0.0.1:9000" || address == "[::1]:9000"));
    }
}
