//! How all workers go from one table to the next: the order of the steps, which the control thread takes, and what a worker
//! lets through meanwhile. Pure; [`adopt`](crate::dual::adopt) and the engine carry it out.
//!
//! ```text
//!  begin ─► prepare ─► close sessions ─► close lanes ─► turn ─► judge ─► commit ─► install new ─► open ─► settle
//!              │             │                │            │       │         │
//!              │             └────────────────┴────────────┴───────┴─────────┴──► turn back ─► install old ─► open
//!              └──────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! What takes the disk long is done while nothing is closed. Every step but the last is over when all workers have answered, or fails. Sessions are closed first, because what they
//! have begun still has to get through the lanes. A table is on every worker before any is opened: one that went on sooner
//! could send a request into a lane that follows the old table.

use std::cell::RefCell;
use std::collections::HashSet;

use crate::dual::gate::Gate;
use crate::dual::lane::Lane;
use crate::routing::{Key, Plan, Table};

/// Which of a worker's gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    Sessions,
    Lanes,
}

/// Which table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    Old,
    New,
}

/// What the control thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Writes what the state file is to say, not yet as what counts.
    Prepare,
    /// Has each worker close a gate; over when nothing of the routes is in flight behind any of them.
    Close(Stage),
    /// Has each subscriber on the side of that table.
    Turn(Which),
    /// Looks at the facts once more: effects that failed meanwhile count.
    Judge,
    /// Makes what was prepared count.
    Commit,
    /// Has each worker take the table; over when all have it.
    Install(Which),
    /// Opens the gates of all. Nobody answers.
    Open(Which),
    /// Tidies the state file.
    Settle,
    /// The table is adopted, or nothing has changed.
    Over(Which),
}

/// What an adoption has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Adoption {
    step: Step,
    closes: bool,
    turns: bool,
}

impl Adoption {
    /// `closes`: keys of some route change how they are served; `turns`: the channels go to the other side.
    pub fn begin(closes: bool, turns: bool) -> Self {
        Self { step: Step::Prepare, closes: closes || turns, turns }
    }

    /// What is to be done now.
    pub fn step(&self) -> Step {
        self.step
    }

    /// It is done, or could not be.
    pub fn done(&mut self, succeeded: bool) {
        self.step = match self.step {
            // Some may have been closed before the adoption began.
            Step::Prepare if !succeeded => Step::Open(Which::Old),
            Step::Prepare if self.closes => Step::Close(Stage::Sessions),
            // Nothing has to wait: no request is led elsewhere.
            Step::Prepare => Step::Commit,
            Step::Close(_) if !succeeded => Step::Install(Which::Old),
            Step::Close(Stage::Sessions) => Step::Close(Stage::Lanes),
            Step::Close(Stage::Lanes) if self.turns => Step::Turn(Which::New),
            Step::Close(Stage::Lanes) => Step::Judge,
            Step::Turn(Which::New) if succeeded => Step::Judge,
            Step::Judge if succeeded => Step::Commit,
            Step::Commit if succeeded => Step::Install(Which::New),
            // Whoever went over comes back; nothing was published there.
            Step::Turn(Which::New) | Step::Judge | Step::Commit if self.turns => Step::Turn(Which::Old),
            Step::Turn(_) | Step::Judge | Step::Commit => Step::Install(Which::Old),
            Step::Install(which) => Step::Open(which),
            Step::Open(Which::New) => Step::Settle,
            Step::Settle => Step::Over(Which::New),
            Step::Open(Which::Old) => Step::Over(Which::Old),
            Step::Over(which) => Step::Over(which),
        }
    }
}

/// The two gates of a worker and what waits for them. `D`: whom to tell of a drain, `M`: what may wait for the opening.
#[derive(Debug)]
pub struct Pause<D, M> {
    pub sessions: Gate,
    pub lanes: Gate,
    drains: RefCell<Vec<(Stage, D)>>,
    /// What jobs ask of lanes that are closed; no more than the jobs' own bounds of keys in flight.
    deferred: RefCell<Vec<M>>,
}

impl<D, M> Default for Pause<D, M> {
    fn default() -> Self {
        Self {
            sessions: Gate::default(),
            lanes: Gate::default(),
            drains: RefCell::default(),
            deferred: RefCell::default(),
        }
    }
}

impl<D, M> Pause<D, M> {
    fn gate(&self, stage: Stage) -> &Gate {
        match stage {
            Stage::Sessions => &self.sessions,
            Stage::Lanes => &self.lanes,
        }
    }

    /// Closes a gate; see [`Gate::close`]. `drained` comes out of [`Pause::drained`].
    pub fn close(&self, stage: Stage, routes: HashSet<u64>, all: bool, drained: D) {
        self.gate(stage).close(routes, all);
        self.drains.borrow_mut().push((stage, drained));
    }

    /// Whom to tell that nothing of the closed routes is in flight any more.
    ///
    /// A copy that began anew after the closing counts in the gate's other half; the lane knows of it. Were it still under
    /// way at the flip, it could put an older value over a newer one.
    pub fn drained<O: Clone + PartialEq>(&self, table: &Table, lane: &Lane<O>) -> Vec<D> {
        let mut drains = self.drains.borrow_mut();
        if drains.is_empty() {
            return Vec::new();
        }
        let is_over = |stage: Stage| {
            let is_busy = || lane.is_busy(|key| self.is_lane_closed(table, key));
            self.gate(stage).is_drained() && (stage == Stage::Sessions || !is_busy())
        };
        let (over, open) = drains.drain(..).partition(|(stage, _)| is_over(*stage));
        *drains = open;
        over.into_iter().map(|(_, drained)| drained).collect()
    }

    /// Whether new requests under this plan have to wait.
    pub fn is_gated(&self, plan: &Plan) -> bool {
        self.sessions.is_closed(plan.route_hash) || self.sessions.is_closed(plan.line_hash)
    }

    /// Whether the key's route is in the second half of a flip: nothing new begins in its lane.
    pub fn is_lane_closed(&self, table: &Table, key: &Key) -> bool {
        if !self.lanes.has_closed() {
            return false;
        }
        let plan = Plan::of_key(table, key);
        self.lanes.is_closed(plan.route_hash) || self.lanes.is_closed(plan.line_hash)
    }

    /// Whether repairs may begin: during a flip nothing new begins in a lane.
    pub fn may_repair(&self) -> bool {
        !self.lanes.has_closed()
    }

    /// Keeps what comes after the flip.
    pub fn defer(&self, message: M) {
        self.deferred.borrow_mut().push(message);
    }

    /// Lets everything go on; gives what waited.
    pub fn open(&self) -> Vec<M> {
        self.drains.borrow_mut().clear();
        self.sessions.open();
        self.lanes.open();
        self.deferred.take()
    }
}

/// Counts the diverged keys of a lane where they belong now: the line that covers a key may be another one, or another's heir.
pub fn recount<O: Clone + PartialEq>(lane: &Lane<O>, old: &Table, new: &Table) {
    for key in lane.diverged() {
        let (before, now) = (Plan::of_key(old, key).dual, Plan::of_key(new, key).dual);
        let is_same = match (&before, &now) {
            (Some(before), Some(now)) => std::sync::Arc::ptr_eq(before, now),
            (before, now) => before.is_none() && now.is_none(),
        };
        if !is_same {
            before.inspect(|dual| dual.add_divergence(-1));
            now.inspect(|dual| dual.add_divergence(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(mut adoption: Adoption, fails_at: Option<Step>) -> Vec<Step> {
        let mut steps = Vec::new();
        while !matches!(adoption.step(), Step::Over(_)) {
            steps.push(adoption.step());
            adoption.done(Some(adoption.step()) != fails_at);
        }
        steps.push(adoption.step());
        steps
    }

    #[test]
    fn whatever_fails_the_old_table_is_installed_and_everything_is_opened() {
        use Step::*;
        use Which::*;
        let (sessions, lanes) = (Close(Stage::Sessions), Close(Stage::Lanes));
        let all = [Prepare, sessions, lanes, Turn(New), Judge, Commit, Install(New), Open(New), Settle, Over(New)];
        assert_eq!(steps(Adoption::begin(true, true), None), all);
        assert_eq!(steps(Adoption::begin(true, true), Some(Prepare)), [Prepare, Open(Old), Over(Old)]);
        for (number, step) in all[..6].iter().enumerate().skip(1) {
            let mut wanted = all[..=number].to_vec();
            wanted.extend((number >= 3).then_some(Turn(Old)));
            wanted.extend([Install(Old), Open(Old), Over(Old)]);
            assert_eq!(steps(Adoption::begin(true, true), Some(*step)), wanted, "{step:?}");
        }
        let without = steps(Adoption::begin(true, false), Some(Commit));
        assert_eq!(without, [Prepare, sessions, lanes, Judge, Commit, Install(Old), Open(Old), Over(Old)]);
        let unclosed = [Prepare, Commit, Install(New), Open(New), Settle, Over(New)];
        assert_eq!(steps(Adoption::begin(false, false), None), unclosed);
    }
}
