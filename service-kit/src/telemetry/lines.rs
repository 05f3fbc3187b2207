//! Log lines on their way to stderr. Those about single requests are many, and go out together, a moment later: one
//! write for each would cost more than the line. All others go out at once, and after what waits.

use std::{
    io::{self, Write as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

/// The target of lines about single requests.
pub const ACCESS: &str = "access";

/// How long a line waits for others, at most.
const PATIENCE: Duration = Duration::from_millis(100);
/// How much waits, at most.
const ENOUGH: usize = 32 * 1024;

/// The way to stderr. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Vec<u8>>,
    /// Something waits.
    begun: Notify,
}

/// One line.
#[derive(Debug)]
pub(super) struct Line<'l> {
    lines: &'l Lines,
    may_wait: bool,
}

impl Lines {
    fn waiting(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what waits.
    pub(super) fn flush(&self) -> io::Result<()> {
        write(&mut self.waiting())
    }

    /// Writes again and again what has waited long enough.
    pub(super) async fn keep_going(self) {
        loop {
            self.0.begun.notified().await;
            tokio::time::sleep(PATIENCE).await;
            // Nobody is left to hear that stderr is closed.
            let _ = self.flush();
        }
    }
}

fn write(waiting: &mut Vec<u8>) -> io::Result<()> {
    let written = io::stderr().lock().write_all(waiting);
    waiting.clear();
    written
}

impl<'l> MakeWriter<'l> for Lines {
    type Writer = Line<'l>;

    fn make_writer(&'l self) -> Line<'l> {
        Line { lines: self, may_wait: false }
    }

    fn make_writer_for(&'l self, metadata: &Metadata<'_>) -> Line<'l> {
        Line { lines: self, may_wait: metadata.target() == ACCESS }
    }
}

impl io::Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.lines.waiting();
        let is_first = waiting.is_empty();
        waiting.extend_from_slice(line);
        if !self.may_wait || waiting.len() >= ENOUGH {
            write(&mut waiting)?;
        } else if is_first {
            self.lines.0.begun.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::{ENOUGH, Line, Lines};

    #[test]
    fn lines_wait_for_others_and_not_for_ever() {
        let lines = Lines::default();
        let write = |may_wait, text: &str| {
            Line { lines: &lines, may_wait }.write_all(text.as_bytes()).unwrap();
            lines.waiting().len()
        };
        assert_eq!((write(true, "one\n"), write(true, "two\n")), (4, 8));
        assert_eq!(write(false, "a warning comes after what waits, and with it\n"), 0);
        let line = format!("{}\n", "x".repeat(1_023));
        assert!((1..ENOUGH / 1_024).all(|number| write(true, &line) == number * 1_024));
        assert_eq!(write(true, &line), 0);
    }
}
