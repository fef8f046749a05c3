//! A histogram of times: one worker counts in cells, the sum of all workers stands in atomics.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in microseconds, as Prometheus asks them to be: the last one, without a bound, is not listed.
/// A Redis on the same network answers in 100 µs; what takes ten seconds runs into the default `reply_timeout`.
pub const BOUNDS_US: [u64; 15] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    10_000_000,
];

const BUCKETS: usize = BOUNDS_US.len() + 1;

/// What one worker has counted since it last told.
#[derive(Debug, Default)]
pub struct Counted {
    buckets: [Cell<u64>; BUCKETS],
    micros: Cell<u64>,
}

impl Counted {
    /// Counts one time.
    #[inline]
    pub fn observe(&self, took: Duration) {
        let micros = took.as_micros() as u64;
        let bucket = &self.buckets[BOUNDS_US.partition_point(|bound| *bound < micros)];
        bucket.set(bucket.get() + 1);
        self.micros.set(self.micros.get() + micros);
    }

    /// Adds what was counted since the last time.
    pub fn publish(&self, summed: &Summed) {
        for (own, all) in self.buckets.iter().zip(&summed.buckets) {
            if own.get() > 0 {
                all.fetch_add(own.take(), Ordering::Relaxed);
            }
        }
        summed.micros.fetch_add(self.micros.take(), Ordering::Relaxed);
    }
}

/// What all workers have counted.
#[derive(Debug, Default)]
pub struct Summed {
    buckets: [AtomicU64; BUCKETS],
    micros: AtomicU64,
}

/// A reading.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// How many took no longer than the bound in seconds, for each bound.
    pub up_to: Vec<(f64, u64)>,
    pub count: u64,
    pub sum_seconds: f64,
}

impl Summed {
    /// As it is now.
    pub fn read(&self) -> Reading {
        let mut count = 0;
        let mut reach = |bucket: &AtomicU64| {
            count += bucket.load(Ordering::Relaxed);
            count
        };
        let up_to = BOUNDS_US.iter().zip(&self.buckets).map(|(bound, bucket)| (*bound as f64 / 1e6, reach(bucket)));
        let up_to = up_to.collect();
        let count = reach(&self.buckets[BUCKETS - 1]);
        Reading { up_to, count, sum_seconds: self.micros.load(Ordering::Relaxed) as f64 / 1e6 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_counted_once_and_a_bound_belongs_to_its_bucket() {
        let (own, all) = (Counted::default(), Summed::default());
        for micros in [0, 100, 101, 3_000, 20_000_000] {
            own.observe(Duration::from_micros(micros));
        }
        own.publish(&all);
        own.publish(&all);
        let reading = all.read();
        assert_eq!(reading.count, 5);
        assert_eq!(reading.up_to[..2], [(0.0001, 2), (0.00025, 3)]);
        assert_eq!(reading.up_to[5], (0.005, 4));
        assert_eq!(reading.up_to.last(), Some(&(10.0, 4)));
        assert!((reading.sum_seconds - 20.003_201).abs() < 1e-9);
    }
}
