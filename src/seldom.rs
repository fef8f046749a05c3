//! A log line that something may repeat a thousand times a second: said at once, then now and then, with a count.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(10);

/// One such line of one thread.
#[derive(Debug, Default)]
pub struct Seldom {
    said: Cell<Option<Instant>>,
    left_out: Cell<u64>,
}

impl Seldom {
    /// Whether to say it now; then how often it was not said since the last time.
    pub fn is_time(&self, now: Instant) -> Option<u64> {
        if self.said.get().is_some_and(|said| now.saturating_duration_since(said) < PAUSE) {
            self.left_out.set(self.left_out.get() + 1);
            return None;
        }
        self.said.set(Some(now));
        Some(self.left_out.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_at_once_and_the_others_are_counted() {
        let (seldom, begin) = (Seldom::default(), Instant::now());
        let at = |seconds| seldom.is_time(begin + Duration::from_secs(seconds));
        assert_eq!([at(0), at(1), at(9), at(10), at(19), at(300)], [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
