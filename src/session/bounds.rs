//! The bounds of clients, which a running proxy changes when its configuration does. Shared by the workers; each value
//! stands for itself, so relaxed ordering is enough, and reading one costs what reading any other field does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::command::{self, chosen::Chosen};
use crate::resp::limits::Limits;
use crate::session::shares::Shares;

/// As the configuration says them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    pub clients_max: usize,
    pub query_bytes_max: usize,
    pub pending_reply_bytes_max: usize,
    /// A client that asks for nothing for so long is closed; zero: never.
    pub idle_timeout: Duration,
    /// What the end of the program leaves clients to have their answers, and followers their effects.
    pub drain_timeout: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Bounds {
    clients_max: AtomicUsize,
    query_bytes_max: AtomicUsize,
    pending_reply_bytes_max: AtomicUsize,
    idle_seconds: AtomicU64,
    drain_ms: AtomicU64,
    has_shares: AtomicBool,
    shares: ArcSwapOption<Shares>,
    /// One for each row of the table: whether the operator wants something of it.
    marks: Box<[AtomicBool]>,
    chosen: ArcSwapOption<Chosen>,
}

impl Bounds {
    /// Begins with these.
    pub fn new(limits: &SessionLimits) -> Self {
        let marks = command::all().iter().map(|_| AtomicBool::new(false)).collect();
        let bounds = Self { marks, ..Self::default() };
        bounds.set(limits);
        bounds
    }

    /// What is read from now on. A client beyond a lower bound is not closed for it, only the next one is not let in.
    pub fn set(&self, limits: &SessionLimits) {
        self.clients_max.store(limits.clients_max, Ordering::Relaxed);
        self.query_bytes_max.store(limits.query_bytes_max, Ordering::Relaxed);
        self.pending_reply_bytes_max.store(limits.pending_reply_bytes_max, Ordering::Relaxed);
        self.idle_seconds.store(limits.idle_timeout.as_millis().div_ceil(1000) as u64, Ordering::Relaxed);
        self.drain_ms.store(limits.drain_timeout.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn clients_max(&self) -> usize {
        self.clients_max.load(Ordering::Relaxed)
    }

    /// Of one request.
    #[inline]
    pub fn requests(&self) -> Limits {
        Limits { query_bytes_max: self.query_bytes_max.load(Ordering::Relaxed), ..Limits::default() }
    }

    #[inline]
    pub fn pending_reply_bytes_max(&self) -> usize {
        self.pending_reply_bytes_max.load(Ordering::Relaxed)
    }

    /// What routes may ask for from now on.
    pub fn set_shares(&self, shares: Shares) {
        let is_set = shares.is_set();
        self.shares.store(Some(Arc::new(shares)));
        self.has_shares.store(is_set, Ordering::Relaxed);
    }

    /// `None`, at the cost of a look, where no route is limited.
    #[inline]
    pub fn shares(&self) -> Option<Arc<Shares>> {
        if self.has_shares.load(Ordering::Relaxed) { self.shares.load_full() } else { None }
    }

    /// Which commands clients may send from now on.
    pub fn set_chosen(&self, chosen: Chosen) {
        let marks: Vec<(usize, bool)> = chosen.marks().collect();
        self.chosen.store(Some(Arc::new(chosen)));
        for (place, is_marked) in marks {
            self.marks[place].store(is_marked, Ordering::Relaxed);
        }
    }

    /// `None`, at the cost of a look, for the rows of the table of which nothing is wanted. A command that was learnt has no
    /// row and is always looked up.
    #[inline]
    pub fn chosen(&self, place: u32) -> Option<Arc<Chosen>> {
        let is_usual = self.marks.get(place as usize).is_some_and(|mark| !mark.load(Ordering::Relaxed));
        if is_usual { None } else { self.chosen.load_full() }
    }

    /// In whole seconds, the shortest being one; 0: never.
    pub fn idle_seconds(&self) -> u64 {
        self.idle_seconds.load(Ordering::Relaxed)
    }

    pub fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_ms.load(Ordering::Relaxed))
    }
}
