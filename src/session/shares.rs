//! How much each route may ask for: requests and bytes a second, so that one tenant's flood does not starve the others.
//! Shared by the workers, and asked only where `[limits]` sets something. What is too much is refused at once and did not run.
//! Bytes are those of requests; how much a store answers is not counted.
//!
//! A bucket holds what one second brings; a request that finds it empty is refused, one that is larger than what is left
//! passes and leaves a debt. A request for keys of several routes needs, and takes, the share of each.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::routing::{RouteName, Table};

/// What a bucket can save up: one second's worth.
const BURST_NS: u64 = 1_000_000_000;
/// Providers that are limited by the line for all, and are remembered one by one; those that have asked for nothing lately
/// are forgotten for new ones.
const REMEMBERED_MAX: usize = 100_000;
/// No request keeps its route waiting for longer: a day.
const DEBT_NS_MAX: u64 = 86_400 * BURST_NS;

/// A line of `[limits]`; 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    pub requests_per_second: u64,
    pub bytes_per_second: u64,
}

/// When what was let through will have been earned, in nanoseconds since the start; one value each, so that relaxed
/// ordering is enough.
#[derive(Debug, Default)]
struct Bucket {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Bucket {
    /// What there is too little of.
    fn lacks(&self, limit: Limit, now: u64) -> Option<&'static str> {
        let is_empty = |rate, earned: &AtomicU64| rate != 0 && earned.load(Ordering::Relaxed) >= now + BURST_NS;
        match limit {
            limit if is_empty(limit.requests_per_second, &self.requests) => Some("requests"),
            limit if is_empty(limit.bytes_per_second, &self.bytes) => Some("bytes"),
            _ => None,
        }
    }

    /// Two workers that saw the last of it both take; the next one pays for that.
    fn take(&self, limit: Limit, bytes: u64, now: u64) {
        for (earned, rate, cost) in
            [(&self.requests, limit.requests_per_second, 1), (&self.bytes, limit.bytes_per_second, bytes)]
        {
            if rate == 0 {
                continue;
            }
            let price = u128::from(cost) * u128::from(BURST_NS) / u128::from(rate);
            let price = u64::try_from(price).unwrap_or(DEBT_NS_MAX).min(DEBT_NS_MAX);
            let pay = |earned: u64| Some(earned.max(now) + price);
            earned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).expect("the closure always has a value");
        }
    }

    fn is_full(&self, now: u64) -> bool {
        self.requests.load(Ordering::Relaxed) <= now && self.bytes.load(Ordering::Relaxed) <= now
    }
}

/// See the module. Replaced as a whole, so that a new file begins with full buckets.
#[derive(Debug)]
pub struct Shares {
    began: Instant,
    providers: HashMap<Box<[u8]>, (Limit, Bucket)>,
    /// Of prefixes and the other keys: few.
    lines: Vec<(RouteName, Limit, Bucket)>,
    each: Limit,
    /// By the hash of the id, which may be as long as a key; seeded, so that nobody can choose whose bucket is met.
    hasher: RandomState,
    /// Held for a look-up; nothing waits inside.
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    buckets: HashMap<u64, Arc<Bucket>>,
    swept_at: u64,
}

impl Shares {
    /// `each`: for every provider without a line of its own.
    pub fn new(named: impl IntoIterator<Item = (RouteName, Limit)>, each: Limit) -> Self {
        let (mut providers, mut lines) = (HashMap::new(), Vec::new());
        for (name, limit) in named {
            match name {
                RouteName::Provider(id) => drop(providers.insert(id.as_bytes().into(), (limit, Bucket::default()))),
                name => lines.push((name, limit, Bucket::default())),
            }
        }
        Self { began: Instant::now(), providers, lines, each, hasher: RandomState::new(), seen: Mutex::default() }
    }

    /// Whether anything is limited.
    pub fn is_set(&self) -> bool {
        !self.providers.is_empty() || !self.lines.is_empty() || self.each != Limit::default()
    }

    /// Takes the share of a request for these keys, or says what there is too little of; then nothing is taken.
    pub fn take<'k>(
        &self,
        table: &Table,
        keys: impl Iterator<Item = &'k [u8]>,
        bytes: usize,
    ) -> Result<(), &'static str> {
        self.take_at(table, keys, bytes as u64, self.began.elapsed().as_nanos() as u64)
    }

    fn take_at<'k>(
        &self,
        table: &Table,
        keys: impl Iterator<Item = &'k [u8]>,
        bytes: u64,
        now: u64,
    ) -> Result<(), &'static str> {
        let (mut ids, mut lines) = (BTreeSet::new(), BTreeSet::new());
        for key in keys {
            match table.provider_of(key) {
                Some(id) => drop(ids.insert(id)),
                None if self.lines.is_empty() => {}
                None => {
                    let route = &table.route_of(key).0.name;
                    lines.extend(self.lines.iter().position(|(name, ..)| name == route));
                }
            }
        }
        let mut seen = Vec::new();
        let mut shares: Vec<(Limit, &Bucket)> = Vec::with_capacity(ids.len() + lines.len());
        for id in ids {
            match self.providers.get(id) {
                Some((limit, bucket)) => shares.push((*limit, bucket)),
                None if self.each != Limit::default() => seen.push(self.of(id, now)),
                None => {}
            }
        }
        shares.extend(seen.iter().map(|bucket| (self.each, bucket.as_ref())));
        shares.extend(lines.into_iter().map(|line| (self.lines[line].1, &self.lines[line].2)));
        if let Some(what) = shares.iter().find_map(|(limit, bucket)| bucket.lacks(*limit, now)) {
            return Err(what);
        }
        shares.iter().for_each(|(limit, bucket)| bucket.take(*limit, bytes, now));
        Ok(())
    }

    fn of(&self, id: &[u8], now: u64) -> Arc<Bucket> {
        let hash = self.hasher.hash_one(id);
        let mut seen = self.seen.lock();
        if let Some(bucket) = seen.buckets.get(&hash) {
            return bucket.clone();
        }
        // Once a second at most: a flood of new ids must not make each of them pay for a look at all.
        if seen.buckets.len() >= REMEMBERED_MAX && now >= seen.swept_at + BURST_NS {
            seen.swept_at = now;
            seen.buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        let bucket = Arc::new(Bucket::default());
        // Where all are busy a new one is let through unremembered: memory is bounded, and nobody is locked out.
        if seen.buckets.len() < REMEMBERED_MAX {
            seen.buckets.insert(hash, bucket.clone());
        }
        bucket
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::sample_spec;

    const SECOND: u64 = BURST_NS;

    #[test]
    fn a_route_gets_its_share_and_no_more_and_others_are_not_asked() {
        let table = Table::build(&sample_spec(), 1, None);
        let limit = Limit { requests_per_second: 10, bytes_per_second: 0 };
        let shares = Shares::new([(RouteName::Provider("7".into()), limit)], Limit::default());
        let passed = |key: &str, now| {
            (0..100).filter(|_| shares.take_at(&table, [key.as_bytes()].into_iter(), 1, now).is_ok()).count()
        };
        assert_eq!([passed("provider:7:a", 0), passed("provider:7:b", 0), passed("provider:8:a", 0)], [10, 0, 100]);
        assert_eq!(passed("provider:7:a", SECOND / 2), 5);
        assert_eq!(passed("provider:7:a", 60 * SECOND), 10, "no more than a second's worth is saved up");
    }

    #[test]
    fn each_provider_has_its_own_share_and_bytes_leave_a_debt() {
        let table = Table::build(&sample_spec(), 1, None);
        let shares = Shares::new([], Limit { requests_per_second: 0, bytes_per_second: 100 });
        let take = |key: &str, bytes, now| shares.take_at(&table, [key.as_bytes()].into_iter(), bytes, now);
        assert_eq!(take("provider:7:a", 1_000, 0), Ok(()));
        assert_eq!(take("provider:7:a", 1, 5 * SECOND), Err("bytes"));
        assert_eq!(take("provider:8:a", 1, 5 * SECOND), Ok(()));
        assert_eq!(take("provider:7:a", 1, 10 * SECOND), Ok(()));
        assert_eq!(take("no provider", 1_000_000, 0), Ok(()));
        assert!(shares.is_set() && !Shares::new([], Limit::default()).is_set());
    }

    #[test]
    fn a_request_for_keys_of_several_routes_takes_of_each_once_or_of_none() {
        let table = Table::build(&sample_spec(), 1, None);
        let limit = |requests_per_second| Limit { requests_per_second, bytes_per_second: 0 };
        let lines = [
            (RouteName::Provider("7".into()), limit(2)),
            (RouteName::Provider("8".into()), limit(4)),
            (RouteName::Prefix("asgi:".into()), limit(4)),
            (RouteName::OtherKeys, limit(4)),
        ];
        let shares = Shares::new(lines, Limit::default());
        let take = |keys: &[&str]| shares.take_at(&table, keys.iter().map(|key| key.as_bytes()), 1, 0).is_ok();
        let all = ["provider:8:a", "provider:7:a", "provider:8:b", "asgi:a", "x", "asgi:b", "y"];
        assert_eq!([take(&all), take(&all), take(&all), take(&all)], [true, true, false, false]);
        for key in ["provider:8:a", "asgi:a", "x"] {
            assert_eq!(
                [take(&[key]), take(&[key]), take(&[key])],
                [true, true, false],
                "{key} paid for what ran, twice"
            );
        }
    }

    #[test]
    fn providers_beyond_those_that_are_remembered_pass_and_those_that_rest_are_forgotten() {
        let table = Table::build(&sample_spec(), 1, None);
        let shares = Shares::new([], Limit { requests_per_second: 1, bytes_per_second: 0 });
        let take = |id: usize, now| {
            let key = format!("provider:{id}:a");
            shares.take_at(&table, [key.as_bytes()].into_iter(), 1, now)
        };
        assert!((0..REMEMBERED_MAX).all(|id| take(id, 1).is_ok()));
        assert_eq!((take(0, 1), take(REMEMBERED_MAX, 1), take(REMEMBERED_MAX, 1)), (Err("requests"), Ok(()), Ok(())));
        assert_eq!(shares.seen.lock().buckets.len(), REMEMBERED_MAX);
        assert_eq!((take(REMEMBERED_MAX, 2 * SECOND), take(REMEMBERED_MAX, 2 * SECOND)), (Ok(()), Err("requests")));
        assert_eq!(shares.seen.lock().buckets.len(), 1);
    }

    #[test]
    fn a_debt_has_an_end() {
        let table = Table::build(&sample_spec(), 1, None);
        let shares = Shares::new([], Limit { requests_per_second: 0, bytes_per_second: 1 });
        let take = |now| shares.take_at(&table, [&b"provider:7:a"[..]].into_iter(), u64::MAX, now);
        assert_eq!(take(0), Ok(()));
        assert_eq!((take(DEBT_NS_MAX - SECOND), take(DEBT_NS_MAX)), (Err("bytes"), Ok(())));
    }
}
