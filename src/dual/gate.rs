//! The pause of one route: what is in flight, and the wait until nothing is.
//!
//! Pure. A worker has two gates, one for its sessions and one for its lanes. A request is counted in under a *ticket* and
//! counted out by it. Counts are kept in a small array by route hash, so that counting costs an add; routes that share a
//! cell only make a drain wait for each other's requests. A command that concerns all keys has a cell that every drain looks
//! at. Each drain begins an epoch with counts of its own, in which nothing is counted yet: it waits for requests older than
//! itself only, however busy the others that share its cell are. Epochs are few and used again when they are empty: a
//! request may outlast several drains that did not wait for it, or gave up.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

/// Cells an epoch: 16 KiB of counters, and of 100 routes in traffic hardly any share one.
const CELLS: usize = 4096;
/// Epochs: one that goes on, one that is drained, and two of requests that are slower than a flip.
const EPOCHS: usize = 4;
/// Counters of an epoch: the cells, and the one of the commands that concern all routes.
const COUNTS: usize = CELLS + 1;

/// Proof of having been counted in; hand it to [`Gate::leave`] exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u16);

/// See the module.
#[derive(Debug)]
pub struct Gate {
    counts: Vec<Cell<u32>>,
    epoch: Cell<usize>,
    /// Whether the drain waits for requests of the epoch that goes on, too: there was no empty one.
    waits_for_own: Cell<bool>,
    closed: RefCell<Option<HashSet<u64>>>,
    entered: Cell<u64>,
    is_closing: Cell<bool>,
    waits_for_all: Cell<bool>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            counts: vec![Cell::new(0); EPOCHS * COUNTS],
            epoch: Cell::new(0),
            waits_for_own: Cell::new(false),
            closed: RefCell::new(None),
            entered: Cell::new(0),
            is_closing: Cell::new(false),
            waits_for_all: Cell::new(false),
        }
    }
}

impl Gate {
    /// Counts a request of the route in.
    pub fn enter(&self, route_hash: u64) -> Ticket {
        self.enter_cell(cell_of(route_hash))
    }

    /// Counts in a command that concerns all routes: no flip is over before it is.
    pub fn enter_whole(&self) -> Ticket {
        self.enter_cell(CELLS)
    }

    fn enter_cell(&self, cell: usize) -> Ticket {
        let cell = self.epoch.get() * COUNTS + cell;
        self.counts[cell].set(self.counts[cell].get() + 1);
        self.entered.set(self.entered.get() + 1);
        Ticket(cell as u16)
    }

    /// Counts it out.
    pub fn leave(&self, ticket: Ticket) {
        let cell = &self.counts[usize::from(ticket.0)];
        debug_assert!(cell.get() > 0, "a ticket is used once");
        cell.set(cell.get().saturating_sub(1));
    }

    /// Whether new requests of the route have to wait.
    #[inline]
    pub fn is_closed(&self, route_hash: u64) -> bool {
        self.is_closing.get() && self.closed.borrow().as_ref().is_some_and(|routes| routes.contains(&route_hash))
    }

    /// Whether any route is closed.
    #[inline]
    pub fn has_closed(&self) -> bool {
        self.is_closing.get()
    }

    /// Closes the gate for these routes and begins a new epoch; see [`Gate::is_drained`].
    ///
    /// `all`: the routes stand for many providers (a range, `new_providers`), whose requests were counted in under hashes
    /// of their own; the drain then waits for every older request.
    pub fn close(&self, routes: HashSet<u64>, all: bool) {
        let is_empty = |epoch: &usize| self.counts_of(*epoch).iter().all(|count| count.get() == 0);
        let next = (0..EPOCHS).filter(|epoch| *epoch != self.epoch.get()).find(is_empty);
        self.waits_for_own.set(next.is_none());
        self.epoch.set(next.unwrap_or(self.epoch.get()));
        self.waits_for_all.set(all);
        *self.closed.borrow_mut() = Some(routes);
        self.is_closing.set(true);
    }

    /// Whether nothing of the closed routes is in flight that was counted in before the gate was closed.
    pub fn is_drained(&self) -> bool {
        let closed = self.closed.borrow();
        let is_over = |counts: &[Cell<u32>]| match &*closed {
            _ if self.waits_for_all.get() => counts.iter().all(|count| count.get() == 0),
            None => counts[CELLS].get() == 0,
            Some(routes) => counts[CELLS].get() == 0 && routes.iter().all(|route| counts[cell_of(*route)].get() == 0),
        };
        let is_older = |epoch: &usize| *epoch != self.epoch.get() || self.waits_for_own.get();
        (0..EPOCHS).filter(is_older).all(|epoch| is_over(self.counts_of(epoch)))
    }

    fn counts_of(&self, epoch: usize) -> &[Cell<u32>] {
        &self.counts[epoch * COUNTS..(epoch + 1) * COUNTS]
    }

    /// Lets the routes go on.
    pub fn open(&self) {
        *self.closed.borrow_mut() = None;
        self.is_closing.set(false);
    }

    /// How many requests were ever counted in.
    pub fn entered(&self) -> u64 {
        self.entered.get()
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> u64 {
        self.counts.iter().map(|cell| u64::from(cell.get())).sum()
    }
}

fn cell_of(route_hash: u64) -> usize {
    (route_hash as usize) % CELLS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_waits_for_older_requests_of_its_route_only() {
        let gate = Gate::default();
        let (old, other) = (gate.enter(7), gate.enter(8));
        gate.close(HashSet::from([7]), false);
        assert!(gate.is_closed(7) && !gate.is_closed(8));
        let sharing = gate.enter(7 + CELLS as u64);
        assert!(!gate.is_drained());
        gate.leave(old);
        assert!(gate.is_drained(), "neither the other route nor one that shares the cell delays it");
        gate.leave(sharing);
        gate.leave(other);
        gate.open();
        let whole = gate.enter_whole();
        gate.close(HashSet::from([9]), false);
        assert!(!gate.is_drained(), "a command that concerns all keys delays every flip");
        gate.leave(whole);
        assert!(gate.is_drained());
        gate.open();
        assert!(!gate.is_closed(7));
        assert_eq!(gate.in_flight(), 0);
    }

    #[test]
    fn a_request_that_outlasts_other_drains_is_waited_for_by_its_own() {
        let gate = Gate::default();
        let close = |route| gate.close(HashSet::from([route]), false);
        let slow = gate.enter(7);
        close(7);
        assert!(!gate.is_drained());
        // The flip is given up, and tried again.
        gate.open();
        close(7);
        assert!(!gate.is_drained(), "it is as old as before");
        // Flips of others, more than there are epochs, each with a slow request of its own.
        let mut others = Vec::new();
        for other in 20..20 + 2 * EPOCHS as u64 {
            gate.open();
            others.push(gate.enter(other));
            close(other);
            assert!(!gate.is_drained());
            gate.open();
            close(9);
            assert!(gate.is_drained(), "nothing of it is in flight");
        }
        gate.open();
        close(7);
        assert!(!gate.is_drained());
        gate.leave(slow);
        assert!(gate.is_drained());
        others.into_iter().for_each(|other| gate.leave(other));
        assert_eq!(gate.in_flight(), 0);
    }
}
