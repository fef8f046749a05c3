//! Whether this process may write what one process alone may write, until when, and where else it goes.
//!
//! The permission is a lease that somebody else renews in time ([`Fence::hold`]). A process that was stopped (SIGSTOP, a
//! machine that was paused) finds out too late: so a link asks before each write to its socket, and where the lease has ended
//! unnoticed nothing that was queued goes out. Both clocks are looked at: one stands still while a machine is paused, the
//! other may be set back. Where no lease is needed no clock is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;

use crate::store::link::Endpoint;

/// What this process may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Everything: it holds the lease, or none is needed.
    Holds,
    /// What needs no lease; nobody is known to hold it.
    Waits,
    /// What needs no lease; the rest goes to the one that holds it.
    Follows,
    /// Nothing: what needs the lease is not known, so all of it goes there.
    Defers,
}

/// No lease is needed, or none is held.
const NO_END: u64 = u64::MAX;

/// See the module. Written by the control thread, read by all workers.
#[derive(Debug)]
pub struct Fence {
    base: Instant,
    role: AtomicU8,
    until_ms: AtomicU64,
    until_wall_ms: AtomicU64,
    ends: AtomicU32,
    peer: ArcSwapOption<Endpoint>,
}

impl Default for Fence {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            role: AtomicU8::new(Role::Holds as u8),
            until_ms: AtomicU64::new(NO_END),
            until_wall_ms: AtomicU64::new(NO_END),
            ends: AtomicU32::new(0),
            peer: ArcSwapOption::empty(),
        }
    }
}

impl Fence {
    /// As far as was noticed.
    #[inline]
    pub fn role(&self) -> Role {
        match self.role.load(Ordering::Acquire) {
            0 => Role::Holds,
            1 => Role::Waits,
            2 => Role::Follows,
            _ => Role::Defers,
        }
    }

    /// Whether it may write everything, as far as was noticed.
    #[inline]
    pub fn is_holder(&self) -> bool {
        self.role() == Role::Holds
    }

    /// The same by the clocks, for what goes out at once on a connection of its own.
    pub fn is_holder_now(&self) -> bool {
        self.check();
        self.is_holder()
    }

    /// Whether it holds a lease that ends by itself, and for how much longer.
    pub fn remaining(&self) -> Option<Duration> {
        let until = self.until_ms.load(Ordering::Acquire);
        let left = || Duration::from_millis(until).saturating_sub(self.base.elapsed());
        (until != NO_END && self.is_holder()).then(left)
    }

    /// Where what needs the lease goes.
    pub fn peer(&self) -> Option<Arc<Endpoint>> {
        self.peer.load_full()
    }

    /// Looks at the clocks. What this gives grows with each lease that ended while it was needed: what was queued before must
    /// not go out.
    #[inline]
    pub fn check(&self) -> u32 {
        if self.until_ms.load(Ordering::Acquire) != NO_END && self.is_over() {
            self.end(Role::Waits, None);
        }
        self.ends()
    }

    fn is_over(&self) -> bool {
        let passed = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX);
        passed >= self.until_ms.load(Ordering::Acquire)
            || wall_ms(SystemTime::now()) >= self.until_wall_ms.load(Ordering::Acquire)
    }

    /// How many leases ended while they were needed.
    pub fn ends(&self) -> u32 {
        self.ends.load(Ordering::Acquire)
    }

    /// It holds the lease until that long after `asked`, when it was asked for.
    pub fn hold(&self, asked: (Instant, SystemTime), lasts: Duration) {
        let until = asked.0.saturating_duration_since(self.base) + lasts;
        self.until_wall_ms.store(wall_ms(asked.1 + lasts), Ordering::Release);
        self.until_ms.store(u64::try_from(until.as_millis()).unwrap_or(NO_END - 1), Ordering::Release);
        self.peer.store(None);
        self.role.store(Role::Holds as u8, Ordering::Release);
    }

    /// No lease is needed from now on: nothing that needs one is in flight.
    pub fn free(&self) {
        self.until_ms.store(NO_END, Ordering::Release);
        self.peer.store(None);
        self.role.store(Role::Holds as u8, Ordering::Release);
    }

    /// It holds none. `peer`: where what needs it goes.
    pub fn end(&self, role: Role, peer: Option<Endpoint>) {
        self.peer.store(peer.map(Arc::new));
        self.role.store(role as u8, Ordering::Release);
        // Whoever is first counts it: another thread may have noticed at the same time.
        if self.until_ms.swap(NO_END, Ordering::AcqRel) != NO_END {
            self.ends.fetch_add(1, Ordering::AcqRel);
        }
    }
}

fn wall_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> (Instant, SystemTime) {
        (Instant::now(), SystemTime::now())
    }

    #[test]
    fn a_lease_that_ended_unnoticed_is_found_by_either_clock_and_counted_once() {
        let fence = Fence::default();
        assert!(fence.is_holder_now() && fence.remaining().is_none(), "none is needed");
        fence.hold(now(), Duration::from_secs(60));
        assert_eq!((fence.check(), fence.is_holder_now()), (0, true));
        fence.hold(now(), Duration::ZERO);
        assert!(fence.is_holder(), "nobody has looked at the clocks yet");
        assert!(!fence.is_holder_now());
        assert_eq!((fence.check(), fence.check()), (1, 1));
        fence.hold((Instant::now(), SystemTime::UNIX_EPOCH), Duration::from_secs(60));
        assert_eq!(fence.check(), 2, "a machine that was paused: only the wall clock has gone on");
        fence.hold((Instant::now(), SystemTime::now() + Duration::from_secs(3600)), Duration::ZERO);
        assert_eq!(fence.check(), 3, "a wall clock that was set back");
    }

    #[test]
    fn giving_up_what_was_not_needed_cuts_nothing_off() {
        let fence = Fence::default();
        fence.end(Role::Follows, None);
        assert_eq!((fence.check(), fence.role()), (0, Role::Follows));
        fence.hold(now(), Duration::from_secs(60));
        fence.free();
        assert_eq!((fence.check(), fence.role()), (0, Role::Holds));
    }
}
