//! When a store has more to do than it can.
//!
//! Where requests come faster than they are answered, a queue only makes every answer late, until nobody waits for it any
//! more. So a link whose answers stay late takes no more requests than its node answers within the limit, and refuses the
//! others before they are sent, until less is asked again. A store that stood still for once is not meant. Its answers are
//! late as well, but not for long, and who asks meanwhile is better served by waiting.
//!
//! How late an answer will be that is asked for now is more than how late the answers are that come now, for the queue was
//! shorter when these were asked for: it is what waits, times what an answer has taken of late.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// For how long answers must have been late.
const STANDING: Duration = Duration::from_millis(100);
/// For how long less than half of what is taken must have waited, before all is taken again.
const CALM: Duration = Duration::from_secs(1);
/// Over what time an answer's pace is taken.
const LATELY: Duration = Duration::from_millis(100);
/// The estimate counts up to so many times of what the answers that come have waited: after a pause of the store it means
/// little, and nobody asks for so many times of what a store can do.
const TIMES_MAX: u32 = 8;
/// So many requests are taken in any case: they go out in one write.
const TAKEN_MIN: usize = 32;
/// Between two lines in the log.
const QUIET: Duration = Duration::from_secs(10);

/// Whether one link is overloaded.
#[derive(Debug)]
pub struct Overload {
    /// Answers that take longer are late; zero: none is.
    limit: Duration,
    /// How many requests may wait; all that come, unless it is overloaded.
    taken_max: Cell<usize>,
    /// When answers came last, if something was left to answer.
    busy_since: Cell<Option<Instant>>,
    /// Seconds an answer, of late.
    pace: Cell<f64>,
    late_since: Cell<Option<Instant>>,
    calm_since: Cell<Option<Instant>>,
    told: Cell<Option<Instant>>,
}

/// What the log is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    Overloaded,
    CaughtUp,
}

impl Overload {
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            taken_max: Cell::new(usize::MAX),
            busy_since: Cell::new(None),
            pace: Cell::new(0.0),
            late_since: Cell::new(None),
            calm_since: Cell::new(None),
            told: Cell::new(None),
        }
    }

    /// Whether another request is to be refused where so many wait.
    #[inline]
    pub fn refuses(&self, waiting: usize) -> bool {
        waiting >= self.taken_max.get()
    }

    /// So many answers have come. `oldest`: for how long the oldest of the `waiting` has been waiting.
    pub fn answered(&self, count: u64, waiting: usize, oldest: Duration, now: Instant) -> Option<Turned> {
        if self.limit.is_zero() || count == 0 {
            return None;
        }
        let busy_since = self.busy_since.replace((waiting > 0).then_some(now));
        if let Some(since) = busy_since {
            let took = now.saturating_duration_since(since).as_secs_f64();
            let weight = (took / LATELY.as_secs_f64()).min(1.0);
            self.pace.set(self.pace.get() + weight * (took / count as f64 - self.pace.get()));
        }
        if self.taken_max.get() < usize::MAX { self.go_on(waiting, now) } else { self.look(waiting, oldest, now) }
    }

    fn look(&self, waiting: usize, oldest: Duration, now: Instant) -> Option<Turned> {
        let expected = Duration::try_from_secs_f64(self.pace.get() * waiting as f64).unwrap_or(Duration::MAX);
        if oldest.max(expected.min(oldest * TIMES_MAX)) <= self.limit {
            self.late_since.set(None);
            return None;
        }
        let since = self.late_since.get().unwrap_or(now);
        self.late_since.set(Some(since));
        if now.saturating_duration_since(since) < STANDING {
            return None;
        }
        self.bound();
        self.calm_since.set(None);
        let is_new = self.told.get().is_none_or(|told| now.saturating_duration_since(told) >= QUIET);
        is_new.then(|| {
            self.told.set(Some(now));
            Turned::Overloaded
        })
    }

    /// While it is overloaded.
    fn go_on(&self, waiting: usize, now: Instant) -> Option<Turned> {
        self.bound();
        if waiting * 2 > self.taken_max.get() {
            self.calm_since.set(None);
            return None;
        }
        let since = self.calm_since.get().unwrap_or(now);
        self.calm_since.set(Some(since));
        if now.saturating_duration_since(since) < CALM {
            return None;
        }
        self.clear();
        self.told.take().map(|_| Turned::CaughtUp)
    }

    fn bound(&self) {
        let taken = self.limit.as_secs_f64() / self.pace.get().max(1e-9);
        // Far below `usize::MAX`, which would mean that it is not overloaded.
        self.taken_max.set((taken as usize).clamp(TAKEN_MIN, usize::MAX / 4));
    }

    /// Nothing waits: the link ended, or has caught up.
    pub fn clear(&self) {
        self.taken_max.set(usize::MAX);
        self.busy_since.set(None);
        self.late_since.set(None);
        self.calm_since.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    /// A store that answers one request a millisecond but stands still in `pauses`, asked for `asked(ms)` in each
    /// millisecond. Gives how many were taken, how many refused, and the longest wait of one that was taken, in ms.
    fn run(
        limit: Duration,
        until: u64,
        asked: impl Fn(u64) -> u64,
        is_paused: impl Fn(u64) -> bool,
    ) -> (u64, u64, u64) {
        let (overload, begin) = (Overload::new(limit), Instant::now());
        let mut queue = std::collections::VecDeque::new();
        let (mut taken, mut refused, mut longest) = (0, 0, 0);
        for ms in 0..until {
            for _ in 0..asked(ms) {
                if overload.refuses(queue.len()) {
                    refused += 1;
                } else {
                    taken += 1;
                    queue.push_back(ms);
                }
            }
            if is_paused(ms) {
                continue;
            }
            if let Some(since) = queue.pop_front() {
                longest = longest.max(ms - since);
                let oldest = queue.front().map_or(0, |since| ms - since);
                let now = begin + Duration::from_millis(ms);
                overload.answered(1, queue.len(), Duration::from_millis(oldest), now);
            }
        }
        (taken, refused, longest)
    }

    #[test]
    fn what_is_taken_at_twice_and_at_five_times_what_a_store_can_do_is_answered_in_time() {
        for times in [2, 5] {
            let (taken, refused, longest) = run(LIMIT, 20_000, |_| times, |_| false);
            assert!(taken > 18_000, "the store is kept busy: {taken}");
            assert!(refused > (times - 1) * 17_000, "{refused}");
            assert!(longest < 1_000 + 110 * times, "{times} times: {longest} ms");
        }
        let (_, refused, longest) = run(Duration::ZERO, 4_000, |_| 2, |_| false);
        assert!(refused == 0 && longest > 1_900, "without a limit all wait: {longest} ms");
    }

    #[test]
    fn a_store_that_stands_still_for_once_is_not_overloaded() {
        // Half of what it can do, and a pause of three times the limit; then all come back at once.
        let half = |ms: u64| if (2_000..5_000).contains(&ms) { u64::from(ms.is_multiple_of(60)) } else { ms % 2 };
        assert_eq!(run(LIMIT, 10_000, half, |ms| (2_000..5_000).contains(&ms)).1, 0);
        assert_eq!(run(LIMIT, 10_000, |ms| ms % 2, |_| false).1, 0);
    }

    #[test]
    fn the_log_hears_of_it_once_in_a_while() {
        let (overload, begin) = (Overload::new(LIMIT), Instant::now());
        let told = |at: u64, waiting: usize, oldest: u64| {
            overload.answered(1, waiting, Duration::from_millis(oldest), begin + Duration::from_millis(at))
        };
        assert_eq!(
            [told(0, 500, 2_000), told(100, 500, 2_000), told(200, 500, 2_000)],
            [None, Some(Turned::Overloaded), None]
        );
        assert_eq!([told(300, 0, 0), told(1_299, 5, 0), told(1_300, 5, 0)], [None, None, Some(Turned::CaughtUp)]);
        assert_eq!(told(1_400, 0, 0), None);
    }
}
