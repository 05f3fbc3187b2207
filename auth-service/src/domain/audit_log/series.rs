//! The files that heads are exported to: one a day, together one series of lines that follow each other.
//! Several processes may append to one folder; each waits for its turn.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    iter,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use service_kit::secret_file;

use super::{
    heads::{self, rfc3339},
    key::{AuditKey, PublicJwk},
};
use crate::store::audit_log::Head;

/// The file with the public key.
const KEY_FILE: &str = "audit-key.json";
/// Locked while a process appends.
const LOCK_FILE: &str = ".lock";
/// No line is longer, in bytes.
const MAX_LINE: u64 = 4_096;

/// A folder of heads.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    folder: PathBuf,
}

/// A line, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: PathBuf,
    /// From 1.
    pub(crate) line: usize,
    pub(crate) text: String,
}

impl Series {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Makes the folder, readable for its owner only, with the public key in it. An error when it holds
    /// the heads of another key.
    pub(crate) fn prepare(&self, key: &PublicJwk) -> anyhow::Result<()> {
        let folder = self.folder.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .with_context(|| format!("cannot make the folder {folder}"))?;
        let file = self.folder.join(KEY_FILE);
        if !file.exists() {
            secret_file::create_once(&file, &serde_json::to_string(key)?)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        anyhow::ensure!(
            PublicJwk::read(&file)? == *key,
            "{folder} holds the heads of another key; begin another folder"
        );
        Ok(())
    }

    /// Appends heads. They are on disk when this returns.
    pub(crate) fn append(&self, heads: &[Head], key: &AuditKey, at_ms: i64) -> anyhow::Result<()> {
        let lock = self.folder.join(LOCK_FILE);
        let lock = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(lock)?;
        // Held until the file is dropped at the end.
        lock.lock().context("cannot lock the folder of heads")?;

        let files = self.files()?;
        let mut previous = self.end(&files)?;
        let mut text = String::new();
        for head in heads {
            let line = heads::line(head, at_ms, previous, key)?;
            previous = heads::hash_of(line.as_bytes());
            text.push_str(&line);
            text.push('\n');
        }
        // A clock that was put back does not put lines before older ones.
        let today = self.folder.join(format!("heads-{}.jsonl", &rfc3339(at_ms)[..10]));
        let file = files.last().filter(|last| **last > today).unwrap_or(&today);
        let mut open = OpenOptions::new().create(true).append(true).mode(0o600).open(file)?;
        open.write_all(text.as_bytes())?;
        open.sync_all()?;
        File::open(&self.folder)?.sync_all()?;
        Ok(())
    }

    /// Every line in order. Of one that is being written at this moment only whole ones are told.
    pub(crate) fn lines(&self) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Place>> + use<>> {
        let files = self.files()?;
        let last = files.last().cloned();
        Ok(files.into_iter().flat_map(move |file| {
            let is_last = last.as_ref() == Some(&file);
            lines_of(file, is_last)
        }))
    }

    /// Whether there is a folder.
    pub(crate) fn exists(&self) -> bool {
        self.folder.is_dir()
    }

    /// The files, oldest first.
    fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let name = self.folder.display();
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder).with_context(|| format!("cannot read the folder {name}"))? {
            let file = entry?.file_name();
            if file.to_str().is_some_and(is_heads_file) {
                files.push(self.folder.join(file));
            }
        }
        files.sort();
        Ok(files)
    }

    /// The `previous` of the next line. A line that a crash cut off is removed: it was never counted as
    /// exported.
    fn end(&self, files: &[PathBuf]) -> anyhow::Result<String> {
        for file in files.iter().rev() {
            let mut open = OpenOptions::new().read(true).write(true).open(file)?;
            let length = open.seek(SeekFrom::End(0))?;
            let tail = length.min(2 * MAX_LINE);
            open.seek(SeekFrom::End(-i64::try_from(tail)?))?;
            let mut bytes = Vec::new();
            open.read_to_end(&mut bytes)?;
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            anyhow::ensure!(whole > 0 || tail == length, "{}: a line is too long", file.display());
            if whole < bytes.len() {
                tracing::warn!(file = %file.display(), "a head that was cut off is removed");
                open.set_len(length - u64::try_from(bytes.len() - whole)?)?;
            }
            if let Some(line) = bytes[..whole].split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()) {
                return Ok(heads::hash_of(line));
            }
        }
        Ok(heads::beginning())
    }
}

/// `heads-2026-08-22.jsonl`.
fn is_heads_file(name: &str) -> bool {
    name.strip_prefix("heads-")
        .and_then(|rest| rest.strip_suffix(".jsonl"))
        .is_some_and(|day| day.len() == 10 && day.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'))
}

fn lines_of(file: PathBuf, is_last: bool) -> Box<dyn Iterator<Item = anyhow::Result<Place>>> {
    let problem = format!("cannot read {}", file.display());
    let open = match File::open(&file) {
        Ok(open) => open,
        Err(error) => return Box::new(iter::once(Err(anyhow::Error::new(error).context(problem)))),
    };
    let (mut reader, mut line) = (BufReader::new(open), 0);
    Box::new(iter::from_fn(move || {
        line += 1;
        let mut bytes = Vec::new();
        match reader.by_ref().take(2 * MAX_LINE).read_until(b'\n', &mut bytes) {
            Err(error) => return Some(Err(anyhow::Error::new(error).context(problem.clone()))),
            Ok(0) => return None,
            Ok(_) => {}
        }
        let whole = bytes.pop_if(|byte| *byte == b'\n').is_some();
        // Without an end in the last file: somebody is writing it.
        let being_written =
            !whole && is_last && bytes.len() < usize::try_from(MAX_LINE).unwrap_or(usize::MAX);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (!being_written).then(|| Ok(Place { file: file.clone(), line, text }))
    }))
}
