//! How the story looks on a terminal: one numbered line for each step, with what came back.

use std::io::Write as _;

use serde_json::Value;

/// The longest that what came back may be.
const WIDTH: usize = 150;

/// Prints numbered steps to stdout.
#[derive(Debug, Default)]
pub(crate) struct Printer {
    step: usize,
}

impl Printer {
    /// Prints a step that succeeded.
    pub(crate) fn step(&mut self, what: &str, got: &str) -> anyhow::Result<()> {
        self.step += 1;
        let mut out = std::io::stdout().lock();
        Ok(writeln!(out, "{:>2}. {what:<42} {}", self.step, shorten(got))?)
    }

    /// Prints a last line.
    pub(crate) fn end(&self, text: &str) -> anyhow::Result<()> {
        Ok(writeln!(std::io::stdout(), "{text}")?)
    }
}

/// Some members of an answer, in one line.
pub(crate) fn brief(status: u16, value: &Value, members: &[&str]) -> String {
    let shown: Vec<String> = members
        .iter()
        .filter_map(|name| value.get(*name).map(|member| format!("{name}: {}", shorten_member(member))))
        .collect();
    if shown.is_empty() { status.to_string() } else { format!("{status} {{{}}}", shown.join(", ")) }
}

fn shorten_member(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() > 44 => {
            format!("{}…", text.chars().take(20).collect::<String>())
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= WIDTH {
        return text.to_owned();
    }
    format!("{}…", text.chars().take(WIDTH).collect::<String>())
}
