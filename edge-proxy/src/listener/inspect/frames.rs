//! Counts the frames of HTTP/2 that make work and carry nothing.
//!
//! h2 bounds what it keeps (streams, headers, CONTINUATION, resets that nobody has looked at); what it answers
//! or drops at once it takes without end. No client that works comes near these numbers.

use tokio::time::Instant;

/// A budget: so many at once, and so many more each second.
#[derive(Debug)]
struct Budget {
    left: f64,
    most: f64,
    per_second: f64,
    at: Option<Instant>,
}

/// The frames of one connection.
#[derive(Debug)]
pub(super) struct Frames {
    header: [u8; 9],
    have: usize,
    /// Bytes of the frame under way that have not come yet.
    payload: usize,
    settings: Budget,
    resets: Budget,
    idle: Budget,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            header: [0; 9],
            have: 0,
            payload: 0,
            settings: Budget::new(100.0, 1.0),
            // Calls that were begun and given up; nghttp2 has the same numbers.
            resets: Budget::new(1_000.0, 33.0),
            idle: Budget::new(10_000.0, 1_000.0),
        }
    }
}

impl Frames {
    /// Goes on with these bytes; fails with the name of what there is too much of.
    pub(super) fn see(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let skipped = self.payload.min(bytes.len());
                self.payload -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let take = (self.header.len() - self.have).min(bytes.len());
            self.header[self.have..self.have + take].copy_from_slice(&bytes[..take]);
            self.have += take;
            bytes = &bytes[take..];
            if self.have == self.header.len() {
                self.have = 0;
                self.frame()?;
            }
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<(), &'static str> {
        let [a, b, c, kind, flags, ..] = self.header;
        self.payload = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let is_empty = self.payload == 0;
        let is_end = flags & 1 == 1;
        match kind {
            0x0 if is_empty && !is_end => self.idle.take("empty DATA"),
            0x2 => self.idle.take("PRIORITY"),
            0x3 => self.resets.take("RST_STREAM"),
            0x4 => self.settings.take("SETTINGS"),
            0x6 => self.idle.take("PING"),
            0x9 if is_empty => self.idle.take("empty CONTINUATION"),
            0x0 | 0x1 | 0x5 | 0x7..=0x9 => Ok(()),
            _ => self.idle.take("unknown frames"),
        }
    }
}

impl Budget {
    fn new(most: f64, per_second: f64) -> Self {
        Self { left: most, most, per_second, at: None }
    }

    fn take(&mut self, name: &'static str) -> Result<(), &'static str> {
        let now = Instant::now();
        let elapsed = self.at.map_or(0.0, |at| (now - at).as_secs_f64());
        self.left = (self.left + elapsed * self.per_second).min(self.most) - 1.0;
        self.at = Some(now);
        if self.left < 0.0 { Err(name) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Frames;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// How many of a frame pass, given to it in pieces of this size.
    fn passes(frame: &[u8], size: usize, most: usize) -> usize {
        let mut frames = Frames::default();
        (0..most).take_while(|_| frame.chunks(size).all(|piece| frames.see(piece).is_ok())).count()
    }

    #[tokio::test(start_paused = true)]
    async fn floods_end_and_work_does_not() {
        for size in [1, 5, 9, 100] {
            assert_eq!(passes(&frame(4, 0, &[0; 6]), size, 20_000), 100);
            assert_eq!(passes(&frame(3, 0, &[0; 4]), size, 20_000), 1_000);
            assert_eq!(passes(&frame(6, 0, &[6; 8]), size, 20_000), 10_000);
            assert_eq!(passes(&frame(0, 0, &[]), size, 20_000), 10_000);
            assert_eq!(passes(&frame(0x77, 0, &[1]), size, 20_000), 10_000);
            // Data, heads, windows, and the end of a stream.
            for work in [frame(0, 0, &[6; 30]), frame(0, 1, &[]), frame(1, 4, &[4; 20]), frame(8, 0, &[0; 4])]
            {
                assert_eq!(passes(&work, size, 20_000), 20_000);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_slowly_is_no_flood() {
        let mut frames = Frames::default();
        for _ in 0..100 {
            for _ in 0..100 {
                frames.see(&frame(6, 0, &[0; 8])).unwrap();
            }
            for _ in 0..10 {
                frames.see(&frame(3, 0, &[0; 4])).unwrap();
            }
            tokio::time::advance(Duration::from_millis(400)).await;
        }
    }
}
