//! Which providers, prefixes and other keys the application asks for, and how often.
//!
//! Exact counts of each route would cost a look-up a request. So a worker takes samples: the first `LEVEL` requests of
//! each quarter of a second are all noted, then every second one, every fourth, and so on, each standing for as many as were
//! passed over. Little traffic is counted exactly, much traffic well enough, and a request costs a decrement and a branch: a
//! quarter of a second of 50,000 requests takes some 2,000 samples, each a look-up in a map. The gate's cells would cost
//! less, but routes share them, and they name nobody. A provider that asks once among many others may be missed.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::routing::{RouteName, Table};

/// Samples of one density.
const LEVEL: u32 = 256;
/// How often a worker tells the book what it has noted.
const TELL: Duration = Duration::from_millis(250);
/// Names that are remembered: of 10,000 providers all, of made-up ones no more than some MiB.
const SEEN_MAX: usize = 20_000;
/// Longer names are not noted; they would be memory for whoever sends them.
const NAME_BYTES_MAX: usize = 128;
/// When the book is full, names that nobody asked for in this time make room.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// A rate is that of the last whole seconds, this many.
const WINDOW: u64 = 5;
/// Seconds that are counted one by one: the window, the current one, and a power of two for the index.
const BUCKETS: usize = 8;

#[derive(Default)]
struct Noted {
    name: Option<RouteName>,
    requests: u64,
    refusals: u64,
}

/// The samples of one worker; see the module.
pub struct Traffic {
    /// Requests until the next sample.
    left: Cell<u32>,
    /// How many requests the next sample stands for, on average.
    stride: Cell<u32>,
    taken: Cell<u32>,
    noted: RefCell<HashMap<u64, Noted>>,
    told: Cell<Instant>,
    book: Arc<TrafficBook>,
}

impl Traffic {
    /// `book`: the one of all workers.
    pub fn new(book: Arc<TrafficBook>) -> Self {
        Self {
            left: Cell::new(1),
            stride: Cell::new(1),
            taken: Cell::new(0),
            noted: RefCell::new(HashMap::new()),
            told: Cell::new(Instant::now()),
            book,
        }
    }

    /// Counts a request for a key; `route_hash` is that of [`Table::route_of`].
    #[inline]
    pub fn count(&self, table: &Table, key: &[u8], route_hash: u64) {
        let left = self.left.get().wrapping_sub(1);
        self.left.set(left);
        if left == 0 {
            self.sample(table, key, route_hash);
        }
    }

    #[cold]
    fn sample(&self, table: &Table, key: &[u8], route_hash: u64) {
        let stride = self.stride.get();
        self.note(table, key, route_hash, |noted| noted.requests += u64::from(stride));
        self.taken.set(self.taken.get() + 1);
        if self.taken.get().is_multiple_of(LEVEL) {
            self.stride.set((stride * 2).min(1 << 16));
        }
        // A random gap: a client that repeats a pattern must not be sampled at the same place of it each time.
        self.left.set(if self.stride.get() == 1 { 1 } else { fastrand::u32(1..2 * self.stride.get()) });
    }

    /// Counts a request that the proxy had to refuse because its keys are not in one place. Rare, so each is noted.
    pub fn refuse(&self, table: &Table, key: &[u8]) {
        let route_hash = table.route_of(key).1;
        self.note(table, key, route_hash, |noted| noted.refusals += 1);
    }

    fn note(&self, table: &Table, key: &[u8], route_hash: u64, add: impl FnOnce(&mut Noted)) {
        let mut noted = self.noted.borrow_mut();
        if noted.len() >= SEEN_MAX && !noted.contains_key(&route_hash) {
            return;
        }
        let entry = noted.entry(route_hash).or_default();
        if entry.name.is_none() {
            entry.name = name_of(table, key);
        }
        add(entry);
    }

    /// Tells the book, when it is time.
    pub fn tick(&self, now: Instant) {
        if now.duration_since(self.told.get()) < TELL {
            return;
        }
        self.told.set(now);
        // Each quarter of a second begins with exact counts.
        self.stride.set(1);
        self.left.set(1);
        self.taken.set(0);
        let noted = std::mem::take(&mut *self.noted.borrow_mut());
        if !noted.is_empty() {
            self.book.add(noted, now);
        }
    }
}

/// The provider in a key, also where no line names it; else the prefix or the rest.
fn name_of(table: &Table, key: &[u8]) -> Option<RouteName> {
    match table.provider_of(key) {
        None => Some(table.route_of(key).0.name.clone()),
        Some(id) if id.len() > NAME_BYTES_MAX => None,
        Some(id) => std::str::from_utf8(id).ok().map(|id| RouteName::Provider(id.to_string())),
    }
}

struct Entry {
    name: Arc<RouteName>,
    requests: u64,
    refusals: u64,
    first: u64,
    last: u64,
    seconds: [u64; BUCKETS],
}

impl Entry {
    /// Counts requests in a second; those in between had none.
    fn add(&mut self, second: u64, requests: u64) {
        for passed in (self.last + 1..=second).take(BUCKETS) {
            self.seconds[passed as usize % BUCKETS] = 0;
        }
        // More seconds than buckets have passed: the loop has emptied all of them.
        self.last = self.last.max(second);
        self.seconds[second as usize % BUCKETS] += requests;
        self.requests += requests;
    }

    fn per_second(&self, second: u64) -> f64 {
        let whole = (second - self.first.min(second)).min(WINDOW);
        if whole == 0 {
            return self.seconds[second as usize % BUCKETS] as f64;
        }
        let in_window = (second - whole..second).filter(|at| *at <= self.last && self.last - at < BUCKETS as u64);
        in_window.map(|at| self.seconds[at as usize % BUCKETS]).sum::<u64>() as f64 / whole as f64
    }
}

/// What the application asked for of one provider, prefix, or the other keys.
#[derive(Clone, Debug)]
pub struct Seen {
    pub name: Arc<RouteName>,
    pub requests: u64,
    pub per_second: f64,
    /// Requests that were refused because their keys are not in one place.
    pub refusals: u64,
}

/// What all workers have noted. The lock guards the map; nothing waits inside it, and a worker takes it four times a second.
pub struct TrafficBook {
    began: Instant,
    entries: Mutex<HashMap<u64, Entry>>,
}

impl Default for TrafficBook {
    fn default() -> Self {
        Self { began: Instant::now(), entries: Mutex::new(HashMap::new()) }
    }
}

impl TrafficBook {
    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs()
    }

    fn add(&self, noted: HashMap<u64, Noted>, now: Instant) {
        let second = self.second(now);
        let mut entries = self.entries.lock();
        if entries.len() + noted.len() > SEEN_MAX {
            entries.retain(|_, entry| second - entry.last.min(second) < FORGET_AFTER.as_secs());
        }
        for (hash, Noted { name, requests, refusals }) in noted {
            let Some(name) = name else { continue };
            if entries.len() >= SEEN_MAX && !entries.contains_key(&hash) {
                continue;
            }
            let new = || Entry {
                name: Arc::new(name),
                requests: 0,
                refusals: 0,
                first: second,
                last: second,
                seconds: [0; BUCKETS],
            };
            let entry = entries.entry(hash).or_insert_with(new);
            entry.add(second, requests);
            entry.refusals += refusals;
        }
    }

    /// All of them, in no order.
    pub fn seen(&self, now: Instant) -> Vec<Seen> {
        let second = self.second(now);
        let entries = self.entries.lock();
        let view = |entry: &Entry| Seen {
            name: entry.name.clone(),
            requests: entry.requests,
            per_second: entry.per_second(second),
            refusals: entry.refusals,
        };
        entries.values().map(view).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::sample_spec;

    fn table() -> Table {
        Table::build(&sample_spec(), 1, None)
    }

    fn count(traffic: &Traffic, table: &Table, key: &str, times: u32) {
        let hash = table.route_of(key.as_bytes()).1;
        (0..times).for_each(|_| traffic.count(table, key.as_bytes(), hash));
    }

    fn requests(book: &TrafficBook, now: Instant, name: &str) -> u64 {
        book.seen(now).iter().find(|seen| seen.name.to_string() == name).map_or(0, |seen| seen.requests)
    }

    #[test]
    fn little_traffic_is_counted_exactly_and_much_of_it_well() {
        let (table, book) = (table(), Arc::new(TrafficBook::default()));
        let traffic = Traffic::new(book.clone());
        let later = |ms| book.began + Duration::from_millis(ms);
        for (key, times) in [("provider:42:a", 7), ("provider:9:a", 3), ("asgi:x", 2), ("else", 1)] {
            count(&traffic, &table, key, times);
        }
        traffic.tick(later(400));
        for (name, times) in [("42", 7), ("9", 3), ("asgi:", 2), ("other_keys", 1)] {
            assert_eq!(requests(&book, later(400), name), times, "{name}");
        }
        fastrand::seed(1);
        for _ in 0..100_000 {
            count(&traffic, &table, "provider:42:a", 3);
            count(&traffic, &table, "provider:9:a", 1);
        }
        assert!(traffic.taken.get() < 4_000, "{} samples of 400,000 requests", traffic.taken.get());
        traffic.tick(later(800));
        let (much, less) = (requests(&book, later(800), "42") as f64, requests(&book, later(800), "9") as f64);
        assert!((much / 300_000.0 - 1.0).abs() < 0.2 && (less / 100_000.0 - 1.0).abs() < 0.2, "{much} {less}");
    }

    #[test]
    fn a_rate_is_that_of_the_last_seconds_and_ends_with_the_traffic() {
        let (table, book) = (table(), Arc::new(TrafficBook::default()));
        let traffic = Traffic::new(book.clone());
        let rate = |at: f64| book.seen(book.began + Duration::from_secs_f64(at))[0].per_second;
        for quarter in 1..=40 {
            count(&traffic, &table, "provider:42:a", 25);
            traffic.tick(book.began + Duration::from_millis(quarter * 260));
        }
        assert!((rate(10.5) - 100.0).abs() < 15.0, "{}", rate(10.5));
        assert_eq!(rate(17.0), 0.0);
        assert_eq!(rate(500.0), 0.0);
    }

    #[test]
    fn refusals_are_counted_one_by_one_and_names_have_a_bound() {
        let (table, book) = (table(), Arc::new(TrafficBook::default()));
        let traffic = Traffic::new(book.clone());
        traffic.refuse(&table, b"provider:42:a");
        let long = format!("provider:{}:a", "x".repeat(NAME_BYTES_MAX + 1));
        count(&traffic, &table, &long, 1);
        for id in 0..SEEN_MAX + 10 {
            count(&traffic, &table, &format!("provider:id{id}:a"), 1);
            traffic.left.set(1);
        }
        traffic.tick(book.began + Duration::from_secs(1));
        let seen = book.seen(book.began + Duration::from_secs(1));
        assert!(seen.len() <= SEEN_MAX && !seen.iter().any(|seen| seen.name.to_string().starts_with('x')));
        assert_eq!(seen.iter().find(|seen| seen.name.to_string() == "42").map(|seen| seen.refusals), Some(1));
    }
}
