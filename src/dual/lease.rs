//! Who may do dual writes, where several proxies stand before the same stores: the one that holds the lease. Pure.
//!
//! Each store keeps a record: who holds the lease, and until when by that store's own clock. The holder renews it on every
//! store that it reaches, and holds it as long as one of them has it, so that a store that is down stops nobody. Whoever wants
//! to take it needs both, for the holder may be renewing on the one that the other cannot see; a store that cannot be reached
//! counts as free only after a whole lease without it. A record that is absent was never there, or was flushed away under a
//! holder that writes it again: where another proxy is connected, a whole lease is waited for too.
//!
//! ```text
//!   not wanted ──► nothing            another's record lives ──► follow it (a holder gives way first)
//!   wanted ──► take, where nobody has it ──► renew ──► release, when no route is dual any more
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::dual::state::Snapshot;
use crate::routing::Phase;

/// What a store keeps of the lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Of the proxy, whichever process it is: from its state directory.
    pub id: String,
    /// What the process's connections to the stores are called.
    pub connections: String,
    /// Where it serves clients.
    pub url: String,
    /// By the store's own clock, in milliseconds since 1970.
    pub until_ms: u64,
    /// It ended when both stores had everything.
    pub released: bool,
    /// Of the newest [`Tables`]; grows with each change.
    pub number: u64,
}

/// The holder's table, as the other proxies are to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    pub number: u64,
    pub now: Phases,
    /// What it is about to become.
    pub next: Option<Phases>,
    /// `next` counts from here on: everything that was in flight is on both stores.
    pub committed: bool,
}

impl Tables {
    /// The one by which the stores are to be read if the holder is gone.
    pub fn valid(&self) -> &Phases {
        self.next.as_ref().filter(|_| self.committed).unwrap_or(&self.now)
    }
}

/// One of its tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases {
    pub snapshot: Snapshot,
    pub pubsub: Phase,
}

impl Phases {
    /// Whether some route needs the lease.
    pub fn has_dual(&self) -> bool {
        self.snapshot.routes.iter().any(|route| route.phase.is_dual())
    }
}

/// What was found on a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Unreachable,
    /// No record; whether this proxy is the only one that is connected.
    Absent {
        is_alone: bool,
    },
    /// A record, and the time by the store's clock.
    Found {
        record: Record,
        now_ms: u64,
    },
}

impl Seen {
    fn record(&self) -> Option<&Record> {
        match self {
            Self::Found { record, .. } => Some(record),
            Self::Unreachable | Self::Absent { .. } => None,
        }
    }

    /// The record of another proxy that holds the lease.
    fn holder(&self, own: &str) -> Option<&Record> {
        match self {
            Self::Found { record, now_ms } => {
                Some(record).filter(|record| record.id != own && !record.released && record.until_ms > *now_ms)
            }
            Self::Unreachable | Self::Absent { .. } => None,
        }
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is neither held nor wanted.
    Nothing,
    /// `former`: the newest record that is not this process's own.
    Take {
        former: Option<Record>,
    },
    Renew,
    Release,
    Follow(Record),
    /// This proxy held it, and another does.
    GiveWay(Record),
    /// There is no record, and there may have been one: whoever wrote it may write it again.
    Stay(&'static str),
    /// Nobody is known to hold it, and it cannot be taken yet.
    Wait(&'static str),
}

/// Whether this proxy has the lease, and whether it needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    pub is_held: bool,
    pub is_wanted: bool,
}

/// How free a store is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Freedom {
    /// Nobody else can have it anywhere: who would, would have had to do without this store for a whole lease.
    Sure,
    /// Nobody has it here.
    Ended,
    NotYet,
    Unreachable,
}

/// See the module.
#[derive(Debug)]
pub struct Lease {
    id: String,
    lasts: Duration,
    /// Since when each store has been without a record, and since when it could not be reached.
    absent_since: [Option<Duration>; 2],
    away_since: [Option<Duration>; 2],
    looked_at: Duration,
}

impl Lease {
    /// Of the proxy with that id.
    pub fn new(id: String, lasts: Duration) -> Self {
        Self { id, lasts, absent_since: [None; 2], away_since: [None; 2], looked_at: Duration::ZERO }
    }

    /// `now`: any clock that only goes on.
    pub fn decide(&mut self, now: Duration, need: Need, seen: &[Seen; 2]) -> Next {
        if now.saturating_sub(self.looked_at) > self.lasts / 2 {
            // Who did not look knows nothing of the time between: a holder may have come and gone again.
            (self.absent_since, self.away_since) = ([None; 2], [None; 2]);
        }
        self.looked_at = now;
        for (side, seen) in seen.iter().enumerate() {
            let note = |since: &mut Option<Duration>, holds: bool| *since = holds.then(|| since.unwrap_or(now));
            note(&mut self.absent_since[side], matches!(seen, Seen::Absent { .. }));
            note(&mut self.away_since[side], *seen == Seen::Unreachable);
        }
        let holder = seen.iter().filter_map(|seen| seen.holder(&self.id)).max_by_key(|record| record.number);
        let is_reached = seen.iter().any(|seen| *seen != Seen::Unreachable);
        match (holder, need) {
            (Some(holder), Need { is_held: true, .. }) => Next::GiveWay(holder.clone()),
            (Some(holder), _) => Next::Follow(holder.clone()),
            (None, Need { is_held: false, is_wanted: false }) => Next::Nothing,
            (None, _) if !is_reached => Next::Wait("neither store can be reached"),
            (None, Need { is_held: true, is_wanted: false }) => Next::Release,
            (None, Need { is_held: true, is_wanted: true }) => Next::Renew,
            (None, Need { is_held: false, is_wanted: true }) => self.take(now, seen),
        }
    }

    fn take(&self, now: Duration, seen: &[Seen; 2]) -> Next {
        let is_past = |since: Option<Duration>| since.is_some_and(|since| now.saturating_sub(since) >= self.lasts);
        let freedom = [0, 1].map(|side| match &seen[side] {
            Seen::Unreachable => Freedom::Unreachable,
            Seen::Absent { is_alone: true } => Freedom::Ended,
            Seen::Absent { is_alone: false } if is_past(self.absent_since[side]) => Freedom::Ended,
            Seen::Absent { is_alone: false } => Freedom::NotYet,
            Seen::Found { record, now_ms } if record.id == self.id && record.until_ms > *now_ms => Freedom::Sure,
            Seen::Found { .. } => Freedom::Ended,
        });
        if freedom.contains(&Freedom::NotYet) {
            return Next::Stay("another proxy is connected, and may have held it before a store was flushed");
        }
        let is_away = [0, 1].map(|side| freedom[side] == Freedom::Unreachable && !is_past(self.away_since[side]));
        if is_away.contains(&true) && !freedom.contains(&Freedom::Sure) {
            return Next::Wait("one store cannot be reached, and its holder may be renewing it there");
        }
        let former = seen.iter().filter_map(Seen::record).max_by_key(|record| (record.number, record.id != self.id));
        Next::Take { former: former.cloned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LASTS: Duration = Duration::from_secs(5);

    fn record(id: &str, until_ms: u64, released: bool) -> Record {
        Record { id: id.into(), until_ms, released, ..Record::default() }
    }

    fn found(id: &str, until_ms: u64) -> Seen {
        Seen::Found { record: record(id, until_ms, false), now_ms: 1_000 }
    }

    const ALONE: Seen = Seen::Absent { is_alone: true };
    const BESIDE: Seen = Seen::Absent { is_alone: false };
    const WANTED: Need = Need { is_held: false, is_wanted: true };
    const HELD: Need = Need { is_held: true, is_wanted: true };

    fn decide(lease: &mut Lease, seconds: u64, need: Need, seen: [Seen; 2]) -> Next {
        lease.decide(Duration::from_secs(seconds), need, &seen)
    }

    fn is_taken(next: &Next) -> bool {
        matches!(next, Next::Take { .. })
    }

    #[test]
    fn the_first_takes_it_at_once_and_nobody_while_a_record_lives_on_either_store() {
        let lease = || Lease::new("own".into(), LASTS);
        assert!(is_taken(&decide(&mut lease(), 0, WANTED, [ALONE, ALONE])));
        assert_eq!(decide(&mut lease(), 0, Need { is_wanted: false, ..WANTED }, [ALONE, ALONE]), Next::Nothing);
        for other in [ALONE, BESIDE, Seen::Unreachable, found("b", 900), found("own", 9_000)] {
            for seen in [[found("b", 1_001), other.clone()], [other.clone(), found("b", 1_001)]] {
                for seconds in [0, 100] {
                    let next = decide(&mut lease(), seconds, WANTED, seen.clone());
                    assert!(matches!(&next, Next::Follow(holder) if holder.id == "b"), "{next:?}");
                }
            }
        }
    }

    #[test]
    fn a_record_that_was_flushed_away_is_no_invitation_while_others_are_connected() {
        let mut lease = Lease::new("own".into(), LASTS);
        let next = |lease: &mut Lease, seconds, seen| decide(lease, seconds, WANTED, seen);
        for seconds in [0, 2, 4] {
            assert!(matches!(next(&mut lease, seconds, [BESIDE, BESIDE]), Next::Stay(_)));
        }
        // The holder writes it again, and it is flushed again.
        assert!(matches!(next(&mut lease, 5, [found("b", 2_000), BESIDE]), Next::Follow(_)));
        for seconds in [6, 8, 10] {
            assert!(matches!(next(&mut lease, seconds, [BESIDE, BESIDE]), Next::Stay(_)), "the wait begins anew");
        }
        assert!(matches!(next(&mut lease, 13, [BESIDE, BESIDE]), Next::Stay(_)), "nobody looked for too long");
        for seconds in [15, 17] {
            assert!(matches!(next(&mut lease, seconds, [BESIDE, BESIDE]), Next::Stay(_)));
        }
        assert!(is_taken(&next(&mut lease, 18, [BESIDE, BESIDE])));
    }

    #[test]
    fn a_store_that_cannot_be_reached_is_free_after_a_whole_lease_only() {
        let mut lease = Lease::new("own".into(), LASTS);
        let ended = || [found("b", 900), Seen::Unreachable];
        assert!(matches!(decide(&mut lease, 0, WANTED, ended()), Next::Wait(_)));
        assert!(matches!(decide(&mut lease, 3, WANTED, [found("b", 900), found("b", 2_000)]), Next::Follow(_)));
        for seconds in [5, 7, 9] {
            assert!(matches!(decide(&mut lease, seconds, WANTED, ended()), Next::Wait(_)), "it had been seen alive");
        }
        assert!(is_taken(&decide(&mut lease, 10, WANTED, ended())));
        let mut lease = Lease::new("own".into(), LASTS);
        assert!(is_taken(&decide(&mut lease, 0, WANTED, [found("own", 2_000), Seen::Unreachable])), "a restart");
        for old in [found("own", 900), ALONE] {
            let next = decide(&mut lease, 0, WANTED, [old, Seen::Unreachable]);
            assert!(matches!(next, Next::Wait(_)), "another may have it on the store that is away");
        }
        assert!(matches!(decide(&mut lease, 99, WANTED, [Seen::Unreachable, Seen::Unreachable]), Next::Wait(_)));
    }

    #[test]
    fn a_holder_goes_on_with_one_store_and_gives_way_to_another_s_record_on_any() {
        let mut lease = Lease::new("own".into(), LASTS);
        for other in [Seen::Unreachable, BESIDE, found("b", 900), found("own", 2_000)] {
            assert_eq!(decide(&mut lease, 0, HELD, [found("own", 2_000), other.clone()]), Next::Renew);
            assert_eq!(decide(&mut lease, 0, HELD, [other, BESIDE]), Next::Renew, "flushed away");
        }
        let next = decide(&mut lease, 0, HELD, [found("own", 2_000), found("b", 2_000)]);
        assert!(matches!(next, Next::GiveWay(holder) if holder.id == "b"));
        assert_eq!(decide(&mut lease, 0, Need { is_wanted: false, ..HELD }, [BESIDE, BESIDE]), Next::Release);
    }

    #[test]
    fn what_the_former_holder_left_is_told_and_the_newest_of_it_counts() {
        let mut lease = Lease::new("own".into(), LASTS);
        let old = Seen::Found { record: Record { number: 3, ..record("own", 900, false) }, now_ms: 1_000 };
        let new = Seen::Found { record: Record { number: 4, ..record("b", 0, true) }, now_ms: 1_000 };
        let Next::Take { former: Some(former) } = decide(&mut lease, 0, WANTED, [old, new]) else {
            panic!("it is free");
        };
        assert_eq!((former.id.as_str(), former.released), ("b", true));
    }

    /// Two proxies and two stores with every loss that a seed thinks of: a store that is away for one of them, a flush, a
    /// proxy that is stopped. They never hold it at the same time, where each of them reaches a store that the other one
    /// reaches, too.
    #[test]
    fn two_never_hold_it_at_once() {
        for seed in 0..2_000 {
            let mut world = World::new(seed);
            for _ in 0..400 {
                world.step();
            }
            assert!(world.takings > 0, "seed {seed}: nobody ever held it");
        }
    }

    struct Actor {
        lease: Lease,
        /// Until when it believes to hold it.
        until_ms: u64,
        stopped_until_ms: u64,
    }

    struct World {
        random: fastrand::Rng,
        now_ms: u64,
        stores: [Option<Record>; 2],
        actors: [Actor; 2],
        /// Which store nobody reaches now.
        away: Option<usize>,
        takings: u32,
    }

    impl World {
        fn new(seed: u64) -> Self {
            let actor = |id: &str| Actor { lease: Lease::new(id.into(), LASTS), until_ms: 0, stopped_until_ms: 0 };
            Self {
                random: fastrand::Rng::with_seed(seed),
                now_ms: 1,
                stores: [None, None],
                actors: [actor("a"), actor("b")],
                away: None,
                takings: 0,
            }
        }

        fn step(&mut self) {
            self.now_ms += self.random.u64(1..1_500);
            match self.random.u32(..40) {
                0 => self.stores = [None, None],
                1 => self.stores[self.random.usize(..2)] = None,
                2 => self.away = Some(self.random.usize(..2)),
                3 | 4 => self.away = None,
                5 => self.actors[self.random.usize(..2)].stopped_until_ms = self.now_ms + self.random.u64(..12_000),
                _ => {}
            }
            for number in 0..2 {
                self.act(number);
            }
            let holding = |actor: &&Actor| actor.until_ms > self.now_ms;
            let holders = self.actors.iter().filter(holding).count();
            assert!(holders <= 1, "both hold it at {}", self.now_ms);
        }

        fn act(&mut self, number: usize) {
            let now_ms = self.now_ms;
            let seen = [0, 1].map(|side| match &self.stores[side] {
                _ if self.away == Some(side) => Seen::Unreachable,
                None => Seen::Absent { is_alone: false },
                Some(record) => Seen::Found { record: record.clone(), now_ms },
            });
            let actor = &mut self.actors[number];
            if actor.stopped_until_ms > now_ms {
                return;
            }
            let id = if number == 0 { "a" } else { "b" };
            let need = Need { is_held: actor.until_ms > now_ms, is_wanted: true };
            let next = actor.lease.decide(Duration::from_millis(now_ms), need, &seen);
            match next {
                Next::GiveWay(_) => actor.until_ms = 0,
                Next::Take { .. } | Next::Renew => {
                    let lasts_ms = LASTS.as_millis() as u64;
                    for side in (0..2).filter(|side| self.away != Some(*side)) {
                        self.stores[side] = Some(record(id, now_ms + lasts_ms, false));
                    }
                    self.takings += u32::from(next != Next::Renew);
                    actor.until_ms = now_ms + lasts_ms * 4 / 5;
                }
                _ => {}
            }
        }
    }
}
