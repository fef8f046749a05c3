//! The control thread and the job that walks: what they do is decided by the real adoption, the real judge and the real marks.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use cutover::dual::install::{Adoption, Step, Which};
use cutover::dual::knowledge::{self, Doubt, Mark};
use cutover::dual::{remembered, verdict};
use cutover::routing::flip::{self, Flip};
use cutover::routing::{Ack, Coverage, Phase, RouteName, RoutingSpec, Side, Table};

use crate::Key;
use crate::worker::{Message, Waiter};
use crate::world::{Bug, World};

/// An adoption on its way.
#[derive(Debug)]
struct Running {
    adoption: Adoption,
    flips: Vec<Flip>,
    old: Arc<Table>,
    new: Arc<Table>,
    /// The workers that have not answered yet; `None`: nobody was asked.
    awaited: Option<BTreeSet<usize>>,
}

/// What a walk does with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// What the standalone has is brought over to a leader that may lack it.
    Touch,
    /// What the leader has is copied.
    Copy,
    /// What only the follower has is copied, which deletes it.
    Sweep,
}

/// The job: see `jobs/backfill.rs`.
#[derive(Debug)]
pub struct Walk {
    number: u64,
    pub todo: VecDeque<(Pass, Key)>,
    pass: Pass,
    marks: HashMap<RouteName, Mark>,
    open: usize,
    failed: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Control {
    pub table: Arc<Table>,
    file: RoutingSpec,
    /// The file that was adopted or refused last.
    considered: RoutingSpec,
    running: Option<Running>,
    adoptions: u64,
    walks: u64,
    pub walk: Option<Walk>,
    /// At the end nothing new is begun, and no store refuses anything.
    is_ending: bool,
}

impl Control {
    pub fn new(table: Arc<Table>, file: RoutingSpec) -> Self {
        Self {
            table,
            considered: file.clone(),
            file,
            running: None,
            adoptions: 0,
            walks: 0,
            walk: None,
            is_ending: false,
        }
    }

    pub fn file(&self) -> &RoutingSpec {
        &self.file
    }

    pub fn considers(&mut self, is_ending: bool) {
        self.is_ending = is_ending;
    }

    pub fn is_hostile(&self) -> bool {
        !self.is_ending
    }

    /// Whether no adoption is on its way.
    pub fn is_quiet(&self) -> bool {
        self.running.is_none()
    }

    /// The file is adopted or refused, and every dual route is synced.
    pub fn is_at_rest(&self) -> bool {
        let is_synced = |dual: &Arc<cutover::routing::DualState>| dual.is_synced();
        self.running.is_none()
            && self.walk.is_none()
            && self.file == self.considered
            && self.table.routes().iter().filter_map(|route| route.dual.as_ref()).all(is_synced)
    }

    pub fn start_again(&mut self, table: Arc<Table>) {
        (self.running, self.walk) = (None, None);
        self.considered = self.file.clone();
        self.table = table;
    }

    /// A worker has drained, or has the table.
    pub fn answered(&mut self, adoption: u64, worker: usize) {
        if adoption == self.adoptions
            && let Some(running) = &mut self.running
            && let Some(awaited) = &mut running.awaited
        {
            awaited.remove(&worker);
        }
    }

    pub fn walk_told(&mut self, number: u64, outcome: Result<(), ()>) {
        if let Some(walk) = &mut self.walk
            && walk.number == number
        {
            walk.open -= 1;
            walk.failed |= outcome.is_err();
        }
    }
}

impl World {
    /// The operator saves the file: a line comes, goes, gets another phase or another end, or the acknowledgement changes.
    pub fn edit(&mut self) {
        let mut file = self.control.considered.clone();
        let other = |rng: &mut fastrand::Rng, phase: Phase| {
            let near: Vec<Phase> = Phase::ALL.into_iter().filter(|other| other.is_neighbour(phase)).collect();
            match rng.u32(..8) {
                0 => Phase::ALL[rng.usize(..4)],
                1..3 => near[0],
                _ => near[near.len() - 1],
            }
        };
        let rng = &mut self.rng;
        match rng.u32(..12) {
            0 => file.ack = if file.ack == Ack::Leader { Ack::Both } else { Ack::Leader },
            1 => file.new_providers = other(rng, file.new_providers),
            2 if file.ranges.is_empty() => {
                let (first, last) = [(5, 9), (7, 7), (8, 12)][rng.usize(..3)];
                file.ranges.push((
                    first,
                    last,
                    if rng.bool() { file.new_providers } else { other(rng, file.new_providers) },
                ));
            }
            2 => file.ranges.clear(),
            3 if !file.ranges.is_empty() => {
                let (first, last) = [(5, 9), (7, 7), (8, 12)][rng.usize(..3)];
                file.ranges[0] = (first, last, file.ranges[0].2);
            }
            4 if !file.ranges.is_empty() => file.ranges[0].2 = other(rng, file.ranges[0].2),
            5 => {
                let id = ["7", "8"][rng.usize(..2)];
                let phase = self.control.table.provider_route(id.as_bytes()).phase;
                let before = file.providers.len();
                file.providers.retain(|(known, _)| known != id);
                if file.providers.len() == before {
                    file.providers.push((id.into(), phase));
                }
            }
            6 => {
                // The first parts, a step apart or not, as a share that grows or shrinks.
                let (parts, phase) = ([0, 50, 95, 100][rng.usize(..4)], other(rng, file.new_providers));
                file.share = (0..parts).map(|part| (part, phase)).collect();
            }
            _ => {
                let number = rng.usize(..file.providers.len().max(1));
                if let Some((_, phase)) = file.providers.get_mut(number) {
                    *phase = other(rng, *phase);
                }
            }
        }
        self.control.file = file;
    }

    /// The control thread goes on.
    pub fn control_step(&mut self) -> Result<(), String> {
        let Some(running) = &self.control.running else {
            if self.control.file != self.control.considered {
                self.propose();
            }
            return Ok(());
        };
        let (step, flips) = (running.adoption.step(), running.flips.clone());
        let (old, new) = (running.old.clone(), running.new.clone());
        let table = |which| if which == Which::Old { &old } else { &new };
        let adoption = self.control.adoptions;
        let succeeded = match step {
            _ if running.awaited.as_ref().is_some_and(BTreeSet::is_empty) => true,
            Step::Close(_) if running.awaited.is_some() => {
                if self.control.is_ending || self.rng.u32(..50) > 0 {
                    return Ok(());
                }
                self.tell(|| format!("flip_timeout: {step:?}"));
                false
            }
            Step::Install(_) if running.awaited.is_some() => return Ok(()),
            Step::Close(stage) => {
                let closing = flip::closing(flips.iter().chain(&flip::unlearnt(&old, &new)));
                let routes = &closing.hashes;
                self.say_all(|| Message::Close { stage, routes: routes.clone(), all: closing.is_many, adoption });
                return self.await_all();
            }
            Step::Install(which) => {
                let table = table(which).clone();
                self.say_all(|| Message::Install { table: table.clone(), adoption });
                if self.bug != Bug::OpenedOneByOne {
                    return self.await_all();
                }
                self.control.table = table.clone();
                true
            }
            Step::Judge => verdict::judge(&flips, &old, |_| false).is_ok(),
            Step::Prepare => {
                let memory = &self.disk.memory;
                remembered::begin_phases(&flips, &new, |route| memory.has_stale_cluster_keys(route));
                self.rng.u32(..20) > 0
            }
            Step::Commit => {
                let is_full = self.rng.u32(..20) == 0;
                if !is_full {
                    self.disk.save(remembered::snapshot_of(&new, false));
                }
                !is_full
            }
            Step::Open(which) => {
                self.control.table = table(which).clone();
                self.say_all(|| Message::Open);
                true
            }
            Step::Turn(_) | Step::Settle => true,
            Step::Over(_) => {
                self.control.running = None;
                return Ok(());
            }
        };
        self.tell(|| format!("the adoption: {step:?} {succeeded}"));
        // One who went on sooner would answer to the next step.
        self.control.adoptions += 1;
        let running = self.control.running.as_mut().expect("looked at above");
        running.awaited = None;
        running.adoption.done(succeeded);
        Ok(())
    }

    fn await_all(&mut self) -> Result<(), String> {
        let workers = 0..self.workers.len();
        self.control.running.as_mut().expect("an adoption runs").awaited = Some(workers.collect());
        Ok(())
    }

    fn propose(&mut self) {
        let (old, file) = (self.control.table.clone(), self.control.file.clone());
        let new = Arc::new(Table::build(&file, old.version() + 1, Some(&old)));
        let flips = flip::flips(&old, &new);
        let refused = match flip::mixed(&old, &new) {
            Some(reason) => Some(reason),
            None => verdict::judge(&flips, &old, |_| false).err().map(|refused| refused.to_string()),
        };
        if let Some(reason) = refused {
            // What diverged gets its time to be repaired.
            if !self.control.is_ending && self.rng.u32(..4) > 0 && reason.contains("keys may differ") {
                return;
            }
            self.tell(|| format!("refused: {reason}"));
            // What stands in the file is what the table is: a refused one would be tried again after a crash only.
            self.control.considered = file;
            return;
        }
        let told: Vec<String> =
            flips.iter().map(|flip| format!("{} {} to {}", flip.route, flip.from, flip.to)).collect();
        self.tell(|| format!("ADOPTS {told:?}, ack {:?}", file.ack));
        self.control.considered = file;
        let adoption = Adoption::begin(!flips.is_empty() || !flip::unlearnt(&old, &new).is_empty(), false);
        self.control.running = Some(Running { adoption, flips, old, new, awaited: None });
    }

    /// A backfill begins, goes on or ends.
    pub fn walk_step(&mut self) {
        if self.control.walk.is_none() {
            if self.control.is_ending || self.rng.u32(..12) == 0 {
                self.plan_walk();
            }
            return;
        }
        let walk = self.control.walk.as_mut().expect("looked at above");
        // Each pass is over before the next begins.
        if let Some((pass, key)) = walk.todo.front().cloned()
            && (walk.open == 0 || pass == walk.pass)
        {
            walk.todo.pop_front();
            walk.pass = pass;
            return self.visit(pass, &key);
        }
        if walk.open == 0 {
            self.conclude_walk();
        }
    }

    fn plan_walk(&mut self) {
        let table = self.control.table.clone();
        let dual = table.routes().iter().filter(|route| route.dual.is_some());
        let is_first_touch = |route: &cutover::routing::Route| {
            route.phase == Phase::DualCluster && route.coverage() == Coverage::StandaloneOnly
        };
        let (first_touch, others): (Vec<_>, Vec<_>) = dual.partition(|route| is_first_touch(route));
        let (routes, passes) = match first_touch.is_empty() {
            false => (first_touch, &[Pass::Touch][..]),
            true => (others, &[Pass::Copy, Pass::Sweep][..]),
        };
        if routes.is_empty() {
            return;
        }
        let marks: HashMap<RouteName, Mark> =
            routes.iter().filter_map(|route| Some((route.name.clone(), Mark::of(route)?))).collect();
        let is_own = |key: &&Key| marks.contains_key(&table.route_of(&key.name).0.name);
        let own: Vec<Key> = self.keys.iter().filter(is_own).cloned().collect();
        let todo = passes.iter().flat_map(|pass| own.iter().map(move |key| (*pass, key.clone()))).collect();
        self.control.walks += 1;
        let number = self.control.walks;
        self.begin_walk(Walk { number, todo, pass: passes[0], marks, open: 0, failed: false });
    }

    /// What the walk finds of a key on a store now.
    fn visit(&mut self, pass: Pass, key: &Key) {
        let table = self.control.table.clone();
        let leader = table.route_of(&key.name).0.phase.leader();
        let has = |side| self.truth.value(side, key).is_some();
        let is_due = match pass {
            Pass::Touch => has(Side::Standalone),
            Pass::Copy => has(leader),
            Pass::Sweep => has(leader.other()) && !has(leader),
        };
        if !is_due {
            return;
        }
        let walk = self.control.walk.as_mut().expect("it runs");
        walk.open += 1;
        let done = Waiter::Walk(walk.number);
        let key = key.clone();
        let message = match pass {
            Pass::Touch => Message::Touch { key: key.clone(), done },
            _ => Message::Resync { key: key.clone(), done: Some(done) },
        };
        self.say(&key, message);
    }

    fn conclude_walk(&mut self) {
        let walk = self.control.walk.as_ref().expect("it runs");
        let table = self.control.table.clone();
        if walk.failed {
            self.control.walk = None;
            return self.tell(|| "the walk proved nothing".into());
        }
        let is_touch = walk.pass == Pass::Touch;
        let of = |route: &&cutover::routing::Route| walk.marks.contains_key(&route.name);
        let duals = table.routes().iter().filter(of).filter_map(|route| route.dual.as_ref());
        if !is_touch && duals.map(|dual| dual.divergence()).sum::<u64>() > 0 {
            return;
        }
        // Not beside an adoption, for that one writes down the table that comes.
        if self.control.running.is_some() && self.bug != Bug::KnowledgeBesideFlip {
            return;
        }
        let walk = self.control.walk.take().expect("looked at above");
        let doubt = if is_touch { Doubt::Stays } else { Doubt::Ends };
        let is_as_marked = |route: &&cutover::routing::Route| {
            Mark::of(route).is_some_and(|mark| walk.marks.get(&route.name) == Some(&mark))
        };
        let found: Vec<_> = table.routes().iter().filter(is_as_marked).collect();
        self.tell(|| format!("{:?}: {doubt:?} of doubt", found.iter().map(|route| &route.name).collect::<Vec<_>>()));
        let mut snapshot = remembered::snapshot_of(&table, false);
        for record in &mut snapshot.routes {
            if found.iter().any(|route| route.name == record.route) {
                (record.coverage, record.in_doubt) = (Some(Coverage::Both), doubt == Doubt::Stays);
            }
        }
        self.disk.save(snapshot);
        found.iter().for_each(|route| knowledge::learn(&table, route, Coverage::Both, doubt));
    }
}
