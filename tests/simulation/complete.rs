//! The small configurations, completely: two clients at two workers, one key whose lane is at the first, a flip each way, a
//! crash, an outage of a link, a walk. Every order of events is tried; the transitions are those of the real lane, the
//! real steps of an adoption and the real judge.
//!
//! `KINDS=6 cargo test --test simulation every_order` gives the clients more kinds of commands to choose from.

use std::fmt::{self, Write};
use std::hash::{Hash, Hasher};

use cutover::dual::install::{Adoption, Stage, Step, Which};
use cutover::dual::lane::{Fetched, Lane, Mode, Order, Outcome, Work};
use cutover::routing::flip::{self, Flip, RouteFacts};
use cutover::routing::{Ack, Coverage, Phase, Plan, RouteName, Side, Table};
use stateright::{Checker, Model, Property};

use crate::Key;
use crate::truth::Command;
use crate::worker::place;
use crate::world::spec;

type Value = Option<Vec<u32>>;

/// The real lane, told apart by what it shows of itself: it holds one key.
#[derive(Clone, Debug)]
struct OneKeyLane(Lane<u8>);

struct Into<'h, H>(&'h mut H);

impl<H: Hasher> Write for Into<'_, H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

impl Hash for OneKeyLane {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        write!(Into(hasher), "{:?}", self.0).expect("a hasher takes everything");
    }
}

impl PartialEq for OneKeyLane {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

/// What is on a link of the lane's worker.
#[derive(Clone, Debug, PartialEq, Hash)]
enum Item {
    Lead { op: u8, follow: bool },
    Effect { op: u8 },
    Dump { generation: u32 },
    Restore { value: Value, generation: u32 },
    FetchDump { generation: u32 },
    FetchRestore { value: Value, generation: u32 },
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct Op {
    id: u8,
    /// `None`: the walk's.
    client: Option<u8>,
    command: Command,
    leader: Side,
    generation: u32,
    in_lane: bool,
    is_lost: bool,
    /// What was possible before it ran.
    ran: Option<Vec<Value>>,
    result: Value,
}

/// What the journal on disk says of the key.
#[derive(Clone, Copy, Debug, PartialEq, Hash)]
enum OnDisk {
    Nothing,
    Diverged,
    /// A removal follows that is not synced.
    MaybeRemoved,
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct Walk {
    op: u8,
    mark: (Phase, u32, u32),
    is_touch: bool,
    is_done: bool,
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct State {
    lane: OneKeyLane,
    /// What each worker and the control thread plan by, and what the state file says.
    tables: [Phase; 2],
    phase: Phase,
    saved: (Phase, Coverage),
    since: u32,
    coverage: Coverage,
    in_doubt: bool,
    generation: u32,
    ack: Ack,
    adoption: Option<(Adoption, Phase, [bool; 2])>,
    closed_sessions: [bool; 2],
    closed_lanes: bool,
    stores: [Value; 2],
    links: [Vec<Item>; 2],
    /// Requests of the second worker on their way to the lane.
    inbox: Vec<u8>,
    ops: Vec<Op>,
    dump: Value,
    journaling: bool,
    journal: OnDisk,
    possible: Vec<Value>,
    asked: [u8; 2],
    flips: [bool; 2],
    crashed: bool,
    broke: bool,
    walks: u8,
    walk: Option<Walk>,
    wrong: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Ask(u8, Command),
    Hear,
    Serve(Side),
    Journal,
    Repair,
    /// A link breaks behind so many items that were taken.
    Break(Side, usize),
    /// The same for both, and everything is forgotten. True: a removal from the journal is lost.
    Crash(usize, usize, bool),
    Flip,
    Close(usize),
    Install(usize),
    Open(usize),
    /// A step that concerns the control thread alone, or the end of one.
    Go,
    GiveUp,
    Walk,
    Conclude,
}

/// What is tried, and what is done wrong on purpose.
#[derive(Clone)]
struct Small {
    /// Commands of each client.
    commands: u8,
    walks: u8,
    gives_up: bool,
    kinds: Vec<fn(u32) -> Command>,
    opens_one_by_one: bool,
    forgets_the_journal: bool,
}

fn key() -> Key {
    Key::copied(0, b"provider:7:a")
}

impl State {
    fn mode(&self, phase: Phase) -> Mode {
        if phase == Phase::DualCluster && self.coverage == Coverage::StandaloneOnly {
            return Mode::FirstTouch;
        }
        let synced = self.coverage == Coverage::Both && !self.in_doubt;
        if self.ack == Ack::Both { Mode::Both { synced } } else { Mode::Mirror { synced } }
    }

    fn lane_mode(&self) -> Mode {
        self.mode(self.tables[0])
    }

    fn is_installing(&self) -> bool {
        self.tables != [self.phase; 2]
    }

    fn is_busy(&self) -> bool {
        self.lane.0.is_busy(|_| true)
    }

    fn fail(&mut self, wrong: &'static str) {
        self.wrong = self.wrong.or(Some(wrong));
    }

    fn set_in_doubt(&mut self, in_doubt: bool) {
        self.generation += u32::from(in_doubt);
        self.in_doubt = in_doubt;
    }

    /// What must hold whenever nothing is half done.
    fn look(&mut self) {
        if self.is_installing() || self.wrong.is_some() {
            return;
        }
        let leader = &self.stores[place(self.phase.leader())];
        if self.mode(self.phase) != Mode::FirstTouch && !self.possible.contains(leader) {
            return self.fail("the leader has what nobody wrote");
        }
        let is_known = !self.ops.is_empty() || self.lane.0.sizes().1 > 0 || self.is_busy();
        let is_synced = self.coverage == Coverage::Both && !self.in_doubt;
        if is_synced && !is_known && self.stores[0] != self.stores[1] {
            self.fail("the stores differ and nobody knows");
        }
    }

    fn op(&mut self, id: u8) -> Option<&mut Op> {
        self.ops.iter_mut().find(|op| op.id == id)
    }

    fn arrive(&mut self, id: u8, client: Option<u8>, command: Command, work: Work) {
        let (mode, generation, leader) = (self.lane_mode(), self.generation, self.tables[0].leader());
        let op =
            Op { id, client, command, leader, generation, in_lane: false, is_lost: false, ran: None, result: None };
        self.ops.push(op);
        let mut orders = Vec::new();
        let in_lane = self.lane.0.arrive(&key(), id, work, mode, generation, &mut orders);
        self.op(id).expect("just put in").in_lane = in_lane;
        self.carry_out(orders);
    }

    fn carry_out(&mut self, orders: Vec<Order<u8>>) {
        let generation = self.generation;
        let leader = self.tables[0].leader();
        for order in orders {
            match order {
                Order::Lead { op, follow } => {
                    let side = self.op(op).map_or(leader, |op| op.leader);
                    self.links[place(side)].push(Item::Lead { op, follow });
                }
                Order::Follow { op } => {
                    let side = self.op(op).map_or(leader, |op| op.leader).other();
                    self.links[place(side)].push(Item::Effect { op });
                }
                Order::Dump { .. } => self.links[place(leader)].push(Item::Dump { generation }),
                Order::Restore { .. } => {
                    let value = self.dump.take();
                    self.links[place(leader.other())].push(Item::Restore { value, generation });
                }
                Order::Fetch { .. } => self.links[place(leader.other())].push(Item::FetchDump { generation }),
                Order::Journal { .. } => self.journaling = true,
                Order::Reply { op } => self.end(op, true),
                Order::Unavailable { op } => self.end(op, false),
                Order::Granted { .. } | Order::Diverged { .. } => {}
                Order::Repaired { .. } if self.journal == OnDisk::Diverged => self.journal = OnDisk::MaybeRemoved,
                Order::Repaired { .. } => {}
            }
        }
    }

    /// The lane is done with an operation, and its client is told.
    fn end(&mut self, id: u8, good: bool) {
        let Some(index) = self.ops.iter().position(|op| op.id == id) else { return };
        let op = self.ops.remove(index);
        let is_strict = op.in_lane && op.client.is_some() && op.ran.is_some() && !op.is_lost;
        if is_strict && self.stores[0] != self.stores[1] && self.journal != OnDisk::Diverged {
            self.fail("answered before both stores or the journal had it");
        }
        if let Some(walk) = self.walk.as_mut().filter(|walk| walk.op == id) {
            walk.is_done = true;
            if !good {
                self.walk = None;
            }
        }
    }

    /// What an item does to a store; gives what it answers.
    fn apply(&mut self, side: Side, item: &Item) -> Value {
        let before = self.stores[place(side)].clone();
        match item {
            Item::Lead { op, .. } => {
                let command = self.op(*op)?.command;
                let is_blind = command.work() == Work::Overwrite;
                if !is_blind && !self.possible.contains(&before) {
                    self.fail("a command finds what nobody wrote");
                }
                let after = command.apply(&before);
                let earlier = std::mem::replace(&mut self.possible, vec![after.clone()]);
                let ran = if is_blind { earlier } else { vec![before.clone()] };
                let op = self.op(*op).expect("looked at above");
                (op.ran, op.result) = (Some(ran), after.clone());
                self.stores[place(side)] = after;
            }
            Item::Effect { op } => {
                let op = self.op(*op)?;
                let after = match op.command {
                    Command::Count(_) => op.result.clone(),
                    command => command.apply(&before),
                };
                self.stores[place(side)] = after.clone();
                return after;
            }
            Item::Restore { value, .. } => self.stores[place(side)] = value.clone(),
            Item::FetchRestore { value, .. } if before.is_none() => self.stores[place(side)] = value.clone(),
            Item::Dump { .. } | Item::FetchDump { .. } | Item::FetchRestore { .. } => {}
        }
        before
    }

    fn hear(&mut self, item: Item, outcome: Outcome, value: Value) {
        let (mut orders, key) = (Vec::new(), key());
        match item {
            Item::Lead { op: id, follow } => {
                let Some(op) = self.op(id) else { return };
                op.is_lost = outcome == Outcome::Doubt;
                let (in_lane, generation) = (op.in_lane, op.generation);
                if in_lane || follow || outcome == Outcome::Doubt {
                    self.lane.0.led(&key, id, follow, outcome, generation, &mut orders);
                }
                let goes_on =
                    in_lane || orders.iter().any(|order| matches!(order, Order::Follow { op: next } if *next == id));
                self.carry_out(orders);
                if !goes_on {
                    self.ops.retain(|op| op.id != id);
                }
                return;
            }
            Item::Effect { op: id } => {
                let Some(op) = self.op(id) else { return };
                let (in_lane, generation) = (op.in_lane, op.generation);
                let whole = matches!(op.command.work(), Work::Overwrite | Work::Resolve);
                let tells = matches!(op.command, Command::Append(_));
                let length = |value: &Value| value.as_ref().map(Vec::len);
                let agrees = outcome != Outcome::Done || !tells || length(&value) == length(&op.result);
                let outcome = if agrees { outcome } else { Outcome::Doubt };
                self.lane.0.followed(&key, id, outcome, whole, generation, &mut orders);
                self.carry_out(orders);
                if !in_lane {
                    self.ops.retain(|op| op.id != id);
                }
                return;
            }
            Item::Dump { generation } => {
                self.dump = value;
                self.lane.0.dumped(&key, outcome, generation, &mut orders);
            }
            Item::Restore { generation, .. } => self.lane.0.restored(&key, outcome, generation, &mut orders),
            Item::FetchDump { generation } => match (outcome, value) {
                (Outcome::Done, Some(value)) => {
                    let item = Item::FetchRestore { value: Some(value), generation };
                    return self.links[place(self.tables[0].leader())].push(item);
                }
                (Outcome::Done, None) => self.lane.0.fetched(&key, Fetched::Unproven, generation, &mut orders),
                _ => self.lane.0.fetched(&key, Fetched::Failed, generation, &mut orders),
            },
            Item::FetchRestore { generation, .. } => {
                let fetched = match (outcome, value) {
                    (Outcome::Done, None) => Fetched::Brought,
                    (Outcome::Done, Some(_)) => Fetched::Unproven,
                    _ => Fetched::Failed,
                };
                self.lane.0.fetched(&key, fetched, generation, &mut orders);
            }
        }
        self.carry_out(orders);
    }

    /// Nobody hears of a write: in first-touch mode either may come out.
    fn maybe(&mut self, id: u8) {
        if self.lane_mode() == Mode::FirstTouch
            && let Some(ran) = self.op(id).and_then(|op| op.ran.take())
        {
            self.possible.extend(ran);
            self.possible.sort();
            self.possible.dedup();
        }
    }

    fn crash(&mut self, small: &Small, taken: [usize; 2], removal_is_lost: bool) {
        for side in [Side::Standalone, Side::Cluster] {
            let items: Vec<Item> = self.links[place(side)].drain(..).collect();
            for item in &items[..taken[place(side)]] {
                self.apply(side, item);
            }
        }
        let open: Vec<u8> = self.ops.iter().map(|op| op.id).collect();
        open.into_iter().for_each(|id| self.maybe(id));
        self.lane = OneKeyLane(Lane::new(2));
        self.ops.clear();
        self.inbox.clear();
        (self.dump, self.journaling, self.walk, self.adoption) = (None, false, None, None);
        (self.closed_sessions, self.closed_lanes, self.crashed) = ([false; 2], false, true);
        (self.phase, self.coverage) = self.saved;
        self.tables = [self.phase; 2];
        self.set_in_doubt(true);
        self.journal = match self.journal {
            OnDisk::MaybeRemoved if removal_is_lost => OnDisk::Diverged,
            OnDisk::Diverged => OnDisk::Diverged,
            _ => OnDisk::Nothing,
        };
        if self.journal == OnDisk::Diverged && !small.forgets_the_journal {
            let mut orders = Vec::new();
            self.lane.0.recover(&key(), &mut orders);
            self.carry_out(orders);
        }
    }

    fn judged(&self, to: Phase) -> bool {
        let facts = RouteFacts {
            coverage: Some(self.coverage),
            divergence: self.lane.0.sizes().1 as u64,
            in_doubt: self.in_doubt,
            ..RouteFacts::default()
        };
        let flip = Flip::of(RouteName::Provider("7".into()), self.phase, to);
        flip::judge(&[flip], |_| facts, |_| false).is_ok()
    }

    fn step(&self) -> Option<Step> {
        self.adoption.as_ref().map(|(adoption, ..)| adoption.step())
    }

    /// What an adoption waits for.
    fn is_over(&self) -> bool {
        match self.step() {
            Some(Step::Close(Stage::Sessions)) => {
                let has_open = self.ops.iter().any(|op| op.client == Some(1)) || !self.inbox.is_empty();
                self.closed_sessions == [true; 2] && !has_open
            }
            Some(Step::Close(Stage::Lanes)) => self.closed_lanes && self.ops.is_empty() && !self.is_busy(),
            Some(Step::Install(_) | Step::Open(_)) => {
                self.adoption.as_ref().is_some_and(|(.., done)| *done == [true; 2])
            }
            _ => true,
        }
    }

    fn done(&mut self, succeeded: bool) {
        if let Some((adoption, _, done)) = &mut self.adoption {
            adoption.done(succeeded);
            *done = [false; 2];
        }
    }

    /// The control thread does what concerns itself.
    fn go(&mut self) {
        let Some((adoption, to, _)) = self.adoption else { return };
        match adoption.step() {
            Step::Judge => return self.done(self.judged(to)),
            Step::Commit => self.saved = (to, self.coverage),
            Step::Open(Which::New) => {
                self.phase = to;
                self.since += 1;
                self.flips[usize::from(to == Phase::DualStandalone)] = true;
            }
            Step::Over(_) => return self.adoption = None,
            _ => {}
        }
        self.done(true);
    }
}

impl Model for Small {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let lane = OneKeyLane(Lane::new(2));
        let mut states = Vec::new();
        for (phase, coverage) in [
            (Phase::DualStandalone, Coverage::StandaloneOnly),
            (Phase::DualCluster, Coverage::StandaloneOnly),
            (Phase::DualStandalone, Coverage::Both),
            (Phase::DualCluster, Coverage::Both),
        ] {
            for ack in [Ack::Leader, Ack::Both] {
                for value in [None, Some(vec![99])] {
                    let other = if coverage == Coverage::Both { value.clone() } else { None };
                    states.push(State {
                        lane: lane.clone(),
                        tables: [phase; 2],
                        phase,
                        saved: (phase, coverage),
                        since: 0,
                        coverage,
                        in_doubt: false,
                        generation: 1,
                        ack,
                        adoption: None,
                        closed_sessions: [false; 2],
                        closed_lanes: false,
                        stores: [value.clone(), other],
                        links: [Vec::new(), Vec::new()],
                        inbox: Vec::new(),
                        ops: Vec::new(),
                        dump: None,
                        journaling: false,
                        journal: OnDisk::Nothing,
                        possible: vec![value],
                        asked: [0; 2],
                        flips: [false; 2],
                        crashed: false,
                        broke: false,
                        walks: 0,
                        walk: None,
                        wrong: None,
                    });
                }
            }
        }
        states
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.wrong.is_some() {
            return;
        }
        for client in 0..2u8 {
            let asked = state.asked[usize::from(client)];
            let number = u32::from(client * 8 + asked);
            let may = asked < self.commands && !state.closed_sessions[usize::from(client)];
            actions.extend(self.kinds.iter().filter(|_| may).map(|kind| Action::Ask(client, kind(number))));
        }
        actions.extend((!state.inbox.is_empty()).then_some(Action::Hear));
        for side in [Side::Standalone, Side::Cluster] {
            let link = &state.links[place(side)];
            actions.extend((!link.is_empty()).then_some(Action::Serve(side)));
            if !state.broke && !link.is_empty() {
                actions.extend((0..=link.len()).map(|taken| Action::Break(side, taken)));
            }
        }
        actions.extend(state.journaling.then_some(Action::Journal));
        let (exceptional, diverged) = state.lane.0.sizes();
        let may_repair = diverged > 0 && !state.is_busy() && exceptional > 0 && !state.closed_lanes;
        actions.extend(may_repair.then_some(Action::Repair));
        if !state.crashed {
            for standalone in 0..=state.links[0].len() {
                let crash = |cluster| Action::Crash(standalone, cluster, false);
                actions.extend((0..=state.links[1].len()).map(crash));
            }
            if state.journal == OnDisk::MaybeRemoved {
                actions.push(Action::Crash(0, 0, true));
            }
        }
        let may_walk = state.walk.is_none() && state.walks < self.walks && !state.closed_lanes;
        actions.extend(may_walk.then_some(Action::Walk));
        let may_conclude = state.walk.as_ref().is_some_and(|walk| walk.is_done) && state.adoption.is_none();
        actions.extend(may_conclude.then_some(Action::Conclude));
        let Some((adoption, _, done)) = &state.adoption else {
            let is_up = state.phase == Phase::DualStandalone;
            let to = if is_up { Phase::DualCluster } else { Phase::DualStandalone };
            let may = !state.flips[usize::from(!is_up)] && state.judged(to);
            actions.extend(may.then_some(Action::Flip));
            return;
        };
        match adoption.step() {
            Step::Close(Stage::Sessions) => {
                actions.extend((0..2).filter(|worker| !state.closed_sessions[*worker]).map(Action::Close));
                actions.extend(self.gives_up.then_some(Action::GiveUp));
            }
            Step::Close(Stage::Lanes) if !state.closed_lanes => actions.push(Action::Close(0)),
            Step::Close(Stage::Lanes) => actions.extend(self.gives_up.then_some(Action::GiveUp)),
            Step::Install(_) => actions.extend((0..2).filter(|worker| !done[*worker]).map(Action::Install)),
            Step::Open(_) => actions.extend((0..2).filter(|worker| !done[*worker]).map(Action::Open)),
            _ => {}
        }
        if self.opens_one_by_one && matches!(adoption.step(), Step::Install(Which::New)) {
            let closed = |worker: &usize| done[*worker] && state.closed_sessions[*worker];
            actions.extend((0..2).filter(closed).map(Action::Open));
        }
        actions.extend(state.is_over().then_some(Action::Go));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Ask(client, command) => {
                let id = client * 8 + state.asked[usize::from(client)];
                state.asked[usize::from(client)] += 1;
                if client == 0 {
                    state.arrive(id, Some(client), command, command.work());
                } else {
                    // The kind is known by the number until the lane hears of it.
                    state.inbox.push(id);
                    state.inbox.push(self.kinds.iter().position(|kind| kind(id.into()) == command)? as u8);
                }
            }
            Action::Hear => {
                let (id, kind) = (state.inbox.remove(0), state.inbox.remove(0));
                let command = self.kinds[usize::from(kind)](id.into());
                state.arrive(id, Some(1), command, command.work());
            }
            Action::Serve(side) => {
                let item = state.links[place(side)].remove(0);
                let value = state.apply(side, &item);
                state.hear(item, Outcome::Done, value);
            }
            Action::Journal => {
                (state.journaling, state.journal) = (false, OnDisk::Diverged);
                let (mut orders, generation) = (Vec::new(), state.generation);
                state.lane.0.journaled(&key(), generation, &mut orders);
                state.carry_out(orders);
            }
            Action::Repair => {
                let (mut orders, mode) = (Vec::new(), state.lane_mode());
                state.lane.0.repair(1, |_| Some(mode), &mut orders);
                state.carry_out(orders);
            }
            Action::Break(side, taken) => {
                state.broke = true;
                let items: Vec<Item> = state.links[place(side)].drain(..).collect();
                for item in &items[..taken] {
                    state.apply(side, item);
                }
                for item in items {
                    if let Item::Lead { op, .. } = item {
                        state.maybe(op);
                    }
                    state.hear(item, Outcome::Doubt, None);
                }
            }
            Action::Crash(standalone, cluster, lost) => state.crash(self, [standalone, cluster], lost),
            Action::Flip => {
                let is_up = state.phase == Phase::DualStandalone;
                let to = if is_up { Phase::DualCluster } else { Phase::DualStandalone };
                state.adoption = Some((Adoption::begin(true, false), to, [false; 2]));
            }
            Action::Close(worker) => match state.step()? {
                Step::Close(Stage::Sessions) => state.closed_sessions[worker] = true,
                _ => state.closed_lanes = true,
            },
            Action::Install(worker) => {
                let (adoption, to, done) = state.adoption.as_mut()?;
                done[worker] = true;
                if adoption.step() == Step::Install(Which::New) {
                    state.tables[worker] = *to;
                }
            }
            Action::Open(worker) => {
                let is_early = matches!(state.step()?, Step::Install(_));
                if let (false, Some((.., done))) = (is_early, &mut state.adoption) {
                    done[worker] = true;
                }
                state.closed_sessions[worker] = false;
                state.closed_lanes &= worker != 0;
            }
            Action::Go => state.go(),
            Action::GiveUp => {
                state.flips = [true; 2];
                state.done(false);
            }
            Action::Walk => {
                state.walks += 1;
                let (op, mode, generation) = (100 + state.walks, state.lane_mode(), state.generation);
                let is_touch = mode == Mode::FirstTouch;
                let mark = (state.phase, state.since, generation);
                state.walk = Some(Walk { op, mark, is_touch, is_done: false });
                if is_touch {
                    state.arrive(op, None, Command::Read, Work::Touch);
                } else {
                    let leader = state.tables[0].leader();
                    state.ops.push(Op {
                        id: op,
                        client: None,
                        command: Command::Read,
                        leader,
                        generation,
                        in_lane: true,
                        is_lost: false,
                        ran: None,
                        result: None,
                    });
                    let mut orders = Vec::new();
                    state.lane.0.resync(&key(), op, mode, generation, &mut orders);
                    state.carry_out(orders);
                }
            }
            Action::Conclude => {
                let walk = state.walk.take()?;
                let is_as_marked = walk.mark == (state.phase, state.since, state.generation);
                if is_as_marked && walk.is_touch {
                    state.coverage = Coverage::Both;
                    if !state.in_doubt {
                        state.set_in_doubt(true);
                    }
                } else if is_as_marked && state.lane.0.sizes().1 == 0 {
                    (state.coverage, state.in_doubt) = (Coverage::Both, false);
                }
                state.saved = (state.phase, state.coverage);
            }
        }
        state.look();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is lost, resurrected or unknown", |_, state: &State| state.wrong.is_none()),
            Property::sometimes("a flip each way, a crash and an outage", |_, state: &State| {
                state.since == 2 && state.crashed && state.broke
            }),
        ]
    }
}

const ALL: [fn(u32) -> Command; 6] =
    [|_| Command::Delete, Command::Put, Command::Set, Command::Script, Command::Count, Command::Append];

fn wrongs(small: Small) -> (Option<&'static str>, usize) {
    let checker = small.checker().threads(2).spawn_dfs().join();
    let wrong = checker.discovery("nothing is lost, resurrected or unknown");
    let wrong = wrong.map(|path| {
        println!("{:?}", path.clone().into_actions());
        path.last_state().wrong.expect("that is what was discovered")
    });
    if wrong.is_none() {
        checker.assert_properties();
    }
    (wrong, checker.unique_state_count())
}

impl Small {
    fn of(commands: u8, walks: u8, kinds: &[fn(u32) -> Command]) -> Self {
        let kinds = kinds.to_vec();
        Self { commands, walks, gives_up: false, kinds, opens_one_by_one: false, forgets_the_journal: false }
    }
}

#[track_caller]
fn assert_right(small: Small) {
    let began = std::time::Instant::now();
    let (wrong, states) = wrongs(small);
    println!("{states} states in {:?}", began.elapsed());
    assert_eq!(wrong, None);
}

#[test]
fn every_order_of_two_clients_commands_flips_a_crash_and_an_outage_is_right() {
    let commands = crate::number("COMMANDS").unwrap_or(1) as u8;
    let kinds = crate::number("KINDS").unwrap_or(3) as usize;
    assert_right(Small::of(commands, 0, &ALL[..kinds]));
}

#[test]
fn every_order_of_a_walk_flips_that_are_given_up_a_crash_and_an_outage_is_right() {
    assert_right(Small { gives_up: true, ..Small::of(0, 2, &[]) });
}

#[test]
fn a_search_of_all_orders_finds_what_is_done_wrong_on_purpose() {
    let small = Small::of(1, 0, &ALL);
    assert!(wrongs(Small { opens_one_by_one: true, ..small.clone() }).0.is_some(), "a worker that goes on too soon");
    assert!(wrongs(Small { forgets_the_journal: true, ..small }).0.is_some(), "a journal that is not read");
}

/// The model says by itself how the stores of a route stand to each other; here it is compared with what the program says.
#[test]
fn the_modes_of_the_model_are_those_of_the_program() {
    let small = Small::of(0, 0, &[]);
    for mut state in small.init_states() {
        let table = Table::build(&spec(&[("7", state.phase)], &[], Phase::Standalone, state.ack), 1, None);
        let plan = Plan::of_key(&table, &key());
        let dual = plan.dual.as_ref().expect("a dual phase");
        dual.set_coverage(state.coverage);
        for in_doubt in [false, true] {
            dual.set_in_doubt(in_doubt);
            state.in_doubt = in_doubt;
            assert_eq!(state.mode(state.phase), Mode::of(&plan), "{state:?}");
        }
    }
}
