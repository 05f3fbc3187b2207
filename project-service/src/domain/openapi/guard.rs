//! Looks at a YAML text before the YAML reader does, and refuses what would cost it too much.
//!
//! The reader loads a whole document as events, and does work for each open `[` and `{` at each token:
//! 10 MiB of `[` would keep it busy for hours. This guard bounds the depth of flow collections and the
//! number of values beforehand. It refuses; it never judges YAML: an error in the text is the reader's.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The deepest nesting of `[` and `{`.
const MAX_DEPTH: usize = 64;
/// The most places at which a value may start. Documents of 10 MiB as people write them have a third of it.
const MAX_VALUES: usize = 1_000_000;
/// The longest run of digits: what a number of that length costs, it costs at each alias.
const MAX_DIGITS: usize = 4_096;
/// How often the text may be looked at for nesting, all in all.
const MAX_PASSES: usize = 32;

/// How many values the text may hold at most, or the rule that it breaks.
pub(super) fn check(text: &str) -> Result<usize, String> {
    let bytes = text.as_bytes();
    let (mut values, mut digits) = (1_usize, 0_usize);
    let mut left = bytes.len().saturating_mul(MAX_PASSES);
    for (at, byte) in bytes.iter().enumerate() {
        let blank_next = space(bytes, at + 1) > 0 || at + 1 == bytes.len();
        values += usize::from(match byte {
            b'[' | b'{' | b',' | b'\n' | b'\r' => true,
            b'-' | b'?' | b':' => blank_next,
            _ => false,
        });
        digits = if byte.is_ascii_digit() || b".+-eE".contains(byte) { digits + 1 } else { 0 };
        if digits > MAX_DIGITS {
            return Err("must not hold a number of thousands of digits".to_owned());
        }
        if matches!(byte, b'[' | b'{') && may_open(bytes, at) {
            left = Flow { bytes, at }.walk(left)?;
        }
    }
    if values > MAX_VALUES {
        return Err(format!("must not hold more than {MAX_VALUES} values"));
    }
    Ok(values)
}

/// One document is read at a time: each may take some hundred MiB for a moment.
pub(super) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Outside of flow collections one can start only after white space, or at the start of the text.
fn may_open(bytes: &[u8], at: usize) -> bool {
    at == 0 || matches!(bytes[at - 1], b' ' | b'\t' | b'\n' | b'\r') || bytes[at - 1] >= 0x80
}

/// How many bytes of white space or line break are at a position; none at the end of the text.
fn space(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at..).unwrap_or_default() {
        [b' ' | b'\t' | b'\n' | b'\r', ..] => 1,
        // NEL, LS and PS are line breaks in YAML 1.1.
        [0xC2, 0x85, ..] => 2,
        [0xE2, 0x80, 0xA8 | 0xA9, ..] => 3,
        _ => 0,
    }
}

/// Follows what would be a flow collection if one started here, by the rules of the YAML scanner. In
/// prose it may follow nonsense, which does no harm: only nesting without end is refused.
#[derive(Debug)]
struct Flow<'t> {
    bytes: &'t [u8],
    at: usize,
}

impl Flow<'_> {
    /// Goes to the end of the collection, or to the first error in it. Returns what is left of `steps`.
    fn walk(mut self, steps: usize) -> Result<usize, String> {
        let (start, mut depth) = (self.at, 0_usize);
        while let Some(byte) = self.peek() {
            match byte {
                b'[' | b'{' => {
                    depth += 1;
                    self.at += 1;
                }
                b']' | b'}' => {
                    depth -= 1;
                    self.at += 1;
                }
                _ if !self.token(byte) => break,
                _ => {}
            }
            if depth > MAX_DEPTH {
                return Err(format!("must not be nested deeper than {MAX_DEPTH} levels"));
            }
            if depth == 0 {
                break;
            }
        }
        let walked = self.at - start;
        steps.checked_sub(walked).ok_or_else(|| "must not hold so many brackets without an end".to_owned())
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Steps over one token or space that is no bracket; false where the scanner would give up.
    fn token(&mut self, byte: u8) -> bool {
        let spaces = space(self.bytes, self.at);
        if spaces > 0 {
            self.at += spaces;
            return true;
        }
        match byte {
            b',' | b'?' | b':' => self.at += 1,
            b'-' if space(self.bytes, self.at + 1) > 0 => self.at += 1,
            b'#' => self.comment(),
            b'"' => return self.quoted(),
            b'\'' => self.skip_to(b'\''),
            b'&' | b'*' => {
                self.at += 1;
                self.skip_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
                return !matches!(self.peek(), Some(b'[' | b'{'));
            }
            b'!' => {
                let verbatim = self.bytes.get(self.at + 1) == Some(&b'<');
                let end = move |byte| if verbatim { byte == b'>' } else { b",[]{}".contains(&byte) };
                self.skip_while(|byte| !end(byte) && !matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x80..));
                self.at += usize::from(verbatim && self.peek() == Some(b'>'));
                return !matches!(self.peek(), Some(b'[' | b'{' | b']' | b'}'));
            }
            b'|' | b'>' | b'%' | b'@' | b'`' => return false,
            _ => return self.plain(),
        }
        true
    }

    fn skip_while(&mut self, holds: impl Fn(u8) -> bool) {
        let rest = &self.bytes[self.at..];
        self.at += rest.iter().position(|byte| !holds(*byte)).unwrap_or(rest.len());
    }

    fn comment(&mut self) {
        while self.peek().is_some_and(|byte| !matches!(byte, b'\n' | b'\r'))
            && space(self.bytes, self.at) <= 1
        {
            self.at += 1;
        }
    }

    /// From a quote to behind the next one. A doubled quote is two strings here, which ends at the same place.
    fn skip_to(&mut self, quote: u8) {
        self.at += 1;
        self.skip_while(|byte| byte != quote);
        self.at = (self.at + 1).min(self.bytes.len());
    }

    fn quoted(&mut self) -> bool {
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += if byte == b'\\' { 2 } else { 1 };
            if byte == b'"' {
                return true;
            }
        }
        self.at = self.bytes.len();
        false
    }

    /// A plain scalar of one or more words.
    fn plain(&mut self) -> bool {
        let mut word_start = false;
        while let Some(byte) = self.peek() {
            let spaces = space(self.bytes, self.at);
            if spaces > 0 {
                (self.at, word_start) = (self.at + spaces, true);
                continue;
            }
            match (byte, self.bytes.get(self.at + 1)) {
                (b'#', _) if word_start => return true,
                (b',' | b'[' | b']' | b'{' | b'}', _) => return true,
                (b':', Some(b',' | b'?' | b'[' | b']' | b'{' | b'}')) => return false,
                (b':', None) => return true,
                (b':', _) if space(self.bytes, self.at + 1) > 0 => return true,
                _ => (self.at, word_start) = (self.at + 1, false),
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::Deserialize as _;

    use super::{MAX_DEPTH, check};

    /// Whether the reader itself finds nesting without end.
    fn is_deep(text: &str) -> bool {
        let read = serde_norway::Value::deserialize(serde_norway::Deserializer::from_str(text));
        read.is_err_and(|error| error.to_string().contains("recursion limit"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(1_000)))]

        /// The guard must follow the reader into every trick of its scanner. `?` is left out: the reader
        /// loses the bracket behind one, but only after its scanner, where the cost is, has seen it; and
        /// `*`, because an alias within its own anchor has no end without any bracket.
        #[test]
        fn what_the_reader_finds_deep_the_guard_refuses(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "[", "[", "[", "{", "{", "]", "}", ",", ", ", ":", ": ", " ", " ", "\n", "\t",
                    "'", "''", "\"", "\\", "\\\"", "#", " #", "a", "b c", "-", "- ", "!", "!t ", "!<x> ", "&a ",
                    "|", ">", "%", "\u{85}", "\u{2028}", "\u{a0}", "---", "...", "é",
                ]),
                1..9,
            ),
            start in proptest::sample::select(vec!["[", "k: [", "- {a: [", "k: 'it''s'\nl: [", "k: |\n  '\nl: ["]),
        ) {
            let text = format!("{start}{}", parts.concat().repeat(200));
            prop_assert!(!is_deep(&text) || check(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn nesting_is_found_however_it_is_hidden() {
        let deep = |open: &str| open.repeat(MAX_DEPTH + 1);
        for text in [
            deep("["),
            deep("{a: "),
            deep("[? "),
            format!("a: {}", deep("[")),
            format!("a: |\n  it's text\nb: {}", deep("[")),
            format!("a: \"]\" \nb: {}", deep("[\"]\", ")),
            format!("b: {}", deep("[']', ")),
            format!("b: {}", deep("[it's, 'a]', ")),
            format!("b: {}", deep("[ # ]\n ")),
            format!("b: {}", deep("[ # \u{a0}]\n ")),
            format!("b: {}", deep("[ !<]> x, ")),
            format!("b: {}", deep("[ !t' x, ")),
            format!("b: {}", deep("[\"\\\"]\", ")),
            format!("b: {}", deep("[a: 'it''s ]', ")),
            format!("\u{feff}{}", deep("[")),
            format!("- {}", deep("[&a x, ")),
            format!("b: foo # don't\nc: {}", deep("[")),
        ] {
            assert!(check(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn documents_as_people_write_them_pass() {
        let text = "a: [b, {c: d}, \"[[\", '[[']\nb: |\n  - [ ] one\n  - [ two\nc: it's [fine]\n".repeat(200);
        assert!(check(&text).is_ok());
    }

    #[test]
    fn unclosed_brackets_do_not_make_the_guard_slow() {
        let text = "- [ 'a\n".repeat(200_000);
        assert!(check(&text).is_err());
        assert!(check(&"- ".repeat(1_100_000)).is_err());
        assert!(check(&format!("a: {}", "9".repeat(5_000))).is_err());
    }
}
