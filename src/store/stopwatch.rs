//! How long a store takes, and which requests took too long.
//!
//! A link notes the time once for each write, which carries a batch of requests, and looks at the clock once for each read.
//! So a request is timed from the write that carried it, and costs nothing of its own: only one that took longer than the
//! limit is looked at, and kept for the log of slow commands.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::histogram::Counted;

/// Slow requests that are kept until the log takes them, every 25 ms or so; the others are only counted.
const KEPT_MAX: usize = 16;

/// From which time on a request counts as slow. A reload may change it while links run.
#[derive(Debug, Default)]
pub struct SlowLimit(AtomicU64);

impl SlowLimit {
    /// `None`: no request is slow.
    pub fn set(&self, limit: Option<Duration>) {
        let micros = limit.map_or(0, |limit| (limit.as_micros() as u64).max(1));
        self.0.store(micros, Ordering::Relaxed);
    }

    fn get(&self) -> Option<Duration> {
        let micros = self.0.load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }
}

/// A request that took long.
#[derive(Clone, Debug)]
pub struct SlowRequest {
    pub node: Arc<str>,
    pub request: Bytes,
    pub took: Duration,
}

/// What the links of one store and worker have in common.
#[derive(Debug)]
pub struct Stopwatch {
    /// From a batch's write to the answer of its last request.
    pub latency: Counted,
    limit: Arc<SlowLimit>,
    kept: RefCell<Vec<SlowRequest>>,
    slow: Cell<u64>,
}

impl Stopwatch {
    pub fn new(limit: Arc<SlowLimit>) -> Self {
        Self { latency: Counted::default(), limit, kept: RefCell::default(), slow: Cell::new(0) }
    }

    /// Notes a slow request.
    pub fn note(&self, node: &Arc<str>, request: &Bytes, took: Duration) {
        self.slow.set(self.slow.get() + 1);
        let mut kept = self.kept.borrow_mut();
        if kept.len() < KEPT_MAX {
            kept.push(SlowRequest { node: node.clone(), request: request.clone(), took });
        }
    }

    /// Slow requests since the start.
    pub fn slow(&self) -> u64 {
        self.slow.get()
    }

    /// Takes those that were kept.
    pub fn take_slow(&self) -> Vec<SlowRequest> {
        std::mem::take(&mut self.kept.borrow_mut())
    }
}

#[derive(Clone, Copy, Debug)]
struct Batch {
    /// Number of its last request.
    last: u64,
    written: Instant,
}

/// The batches of one link that are not wholly answered. No more than there are requests without an answer.
#[derive(Debug, Default)]
pub struct Batches(RefCell<VecDeque<Batch>>);

impl Batches {
    /// The requests up to number `last` are written; nothing happens where no new one is among them.
    pub fn write(&self, last: u64) {
        let mut batches = self.0.borrow_mut();
        if batches.back().is_none_or(|batch| batch.last < last) {
            batches.push_back(Batch { last, written: Instant::now() });
        }
    }

    /// The number up to which requests that are answered `now` are slow; 0: none is.
    pub fn slow_until(&self, now: Instant, watch: &Stopwatch) -> u64 {
        let Some(limit) = watch.limit.get() else { return 0 };
        let batches = self.0.borrow();
        let is_slow = |batch: &Batch| now.saturating_duration_since(batch.written) >= limit;
        match batches.front() {
            Some(oldest) if is_slow(oldest) => batches[batches.partition_point(is_slow) - 1].last,
            _ => 0,
        }
    }

    /// How long ago the batch of request `number` was written.
    pub fn age(&self, number: u64, now: Instant) -> Duration {
        let batches = self.0.borrow();
        let batch = batches.get(batches.partition_point(|batch| batch.last < number));
        batch.map_or(Duration::ZERO, |batch| now.saturating_duration_since(batch.written))
    }

    /// All requests up to number `answered` are answered.
    pub fn answer(&self, answered: u64, now: Instant, watch: &Stopwatch) {
        let mut batches = self.0.borrow_mut();
        while batches.front().is_some_and(|batch| batch.last <= answered)
            && let Some(batch) = batches.pop_front()
        {
            watch.latency.observe(now.saturating_duration_since(batch.written));
        }
    }

    /// The link ended; what was on it is not timed.
    pub fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::Summed;

    fn watch(limit_ms: u64) -> Stopwatch {
        let limit = Arc::new(SlowLimit::default());
        limit.set((limit_ms > 0).then(|| Duration::from_millis(limit_ms)));
        Stopwatch::new(limit)
    }

    fn batches(of: &[(u64, u64)], begin: Instant) -> Batches {
        let batch = |(last, ms): &(u64, u64)| Batch { last: *last, written: begin + Duration::from_millis(*ms) };
        Batches(RefCell::new(of.iter().map(batch).collect()))
    }

    #[test]
    fn requests_are_slow_by_the_write_that_carried_them() {
        let begin = Instant::now();
        let batches = batches(&[(3, 0), (5, 40), (9, 80)], begin);
        let at = |ms| begin + Duration::from_millis(ms);
        let slow = watch(50);
        assert_eq!([49, 50, 89, 90, 200].map(|ms| batches.slow_until(at(ms), &slow)), [0, 3, 3, 5, 9]);
        assert_eq!(batches.slow_until(at(1_000), &watch(0)), 0);
        assert_eq!([1, 3, 4, 9].map(|number| batches.age(number, at(100)).as_millis()), [100, 100, 60, 20]);
    }

    #[test]
    fn a_batch_is_timed_when_its_last_request_is_answered() {
        let begin = Instant::now();
        let (batches, watch, all) = (batches(&[(3, 0), (5, 40)], begin), watch(0), Summed::default());
        let count = |answered, ms| {
            batches.answer(answered, begin + Duration::from_millis(ms), &watch);
            watch.latency.publish(&all);
            (all.read().count, (all.read().sum_seconds * 1e3).round() as u64)
        };
        assert_eq!([count(2, 10), count(4, 20), count(4, 25), count(5, 50)], [(0, 0), (1, 20), (1, 20), (2, 30)]);
        batches.write(5);
        batches.write(5);
        batches.write(6);
        assert_eq!(batches.0.borrow().len(), 2);
        batches.clear();
        assert_eq!(count(9, 99).0, 2);
    }

    #[test]
    fn more_slow_requests_than_are_kept_are_counted() {
        let watch = watch(1);
        for _ in 0..KEPT_MAX + 3 {
            watch.note(&"node".into(), &Bytes::from_static(b"x"), Duration::from_secs(1));
        }
        assert_eq!(
            (watch.slow(), watch.take_slow().len(), watch.take_slow().len()),
            (KEPT_MAX as u64 + 3, KEPT_MAX, 0)
        );
    }
}
