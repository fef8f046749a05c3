//! Several workers, their clients, two stores, a disk, the control thread and a walk: everything around the pure parts, in any
//! order of events. What must hold is looked at after each.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use cutover::dual::install::recount;
use cutover::dual::journal;
use cutover::dual::lane::{AskForCopy, Fetched, Lane, Mode, Order, Outcome, Work};
use cutover::dual::remembered;
use cutover::dual::state::{Memory, Snapshot};
use cutover::routing::{Ack, ClusterKeys, Databases};
use cutover::routing::{Pattern, Patterns, Phase, Plan, RoutingSpec, Side, Table};
use fastrand::Rng;

use crate::Key;
use crate::control::{Control, Walk};
use crate::truth::{Command, Truth, Value};
use crate::worker::{Answer, Copy, Deed, Guarded, Item, Message, Op, Purpose, Waiter, Worker, place};

/// What is done wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    None,
    /// The follower gets effects in another order than the leader the writes.
    OrderSwapped,
    /// What was known of single keys is believed after a restart.
    PresenceTrusted,
    /// The journal is not read at a restart.
    TombstoneLost,
    /// An unclean stop puts nothing in doubt.
    DoubtForgotten,
    /// A worker goes on under the new table while others have the old one.
    OpenedOneByOne,
    /// The drain of the lanes does not wait for copies that began anew.
    CopyOutlivesDrain,
    /// What a walk found out is written down beside an adoption.
    KnowledgeBesideFlip,
    /// Diverged keys stay counted where they were when another line takes them over.
    CountLeftBehind,
    /// A worker ends while others still have something for its lane.
    EndedOneByOne,
    /// The clean end of the last run stays on the disk where the table was edited in a way that is refused.
    CleanWhileRunning,
    /// The stale keys of an earlier stay on the cluster are forgotten where the table was edited while the program was down.
    StaleForgotten,
}

/// A client's request.
#[derive(Clone, Debug)]
enum Request {
    Keyed { key: Key, command: Command, number: u64 },
    Outside { keys: Vec<Key>, deed: Deed, holds: bool },
}

/// A client: what it has sent and its session has not taken up yet, and how many answers are open.
#[derive(Debug, Default)]
struct Client {
    worker: usize,
    queue: VecDeque<Request>,
    open: usize,
    /// A command outside of the lanes runs; everything behind it waits.
    is_busy: bool,
    sent: u64,
}

/// What outlives a crash.
#[derive(Debug, Default)]
pub struct Disk {
    /// The journal's bytes, of which the first so many are synced.
    journal: Vec<u8>,
    synced: usize,
    pub state: Option<Snapshot>,
    pub memory: Memory,
}

impl Disk {
    pub fn save(&mut self, snapshot: Snapshot) {
        self.memory.note(&snapshot);
        self.state = Some(snapshot);
    }
}

/// See the module.
pub struct World {
    pub rng: Rng,
    weather: Weather,
    pub bug: Bug,
    pub keys: Vec<Key>,
    pub workers: Vec<Worker>,
    clients: Vec<Client>,
    pub truth: Truth,
    pub control: Control,
    pub disk: Disk,
    /// What the journal's thread has not written yet; a worker waits for an addition.
    journaling: VecDeque<(u8, Key, Option<usize>)>,
    down: [bool; 2],
    /// What goes on an eighth as often as all else.
    slow: (usize, Ready),
    next: usize,
    /// An answer that came too early.
    early: Option<String>,
    /// Whether the story is kept: telling takes longer than doing.
    is_told: bool,
    story: Vec<String>,
}

/// What can happen in a step.
#[derive(Clone, Copy, Debug)]
enum Event {
    Ask,
    TakeUp,
    GoOn,
    WriteJournal,
    Tick,
    Lose,
    /// A store goes away or comes back.
    Fall,
    Crash,
    Stop,
    Edit,
    Leave,
    Control,
    Walk,
}

/// How often each of them happens. Every seed draws its own: what takes three rare things close to each other is common where
/// those are frequent and others are missing (Groce et al., "Swarm Testing", ISSTA 2012).
struct Weather {
    events: Vec<(Event, u32)>,
    /// The keys that are used: what two clients do to the same one is where it hurts.
    keys: Vec<usize>,
}

impl Weather {
    fn draw(rng: &mut Rng) -> Self {
        let mut of = |event, usual: u32, factors: &[u32]| (event, usual * factors[rng.usize(..factors.len())]);
        let events = vec![
            of(Event::Ask, 360, &[1]),
            of(Event::TakeUp, 400, &[1]),
            of(Event::GoOn, 1_560, &[1]),
            of(Event::WriteJournal, 80, &[1]),
            of(Event::Tick, 160, &[1, 1, 2]),
            of(Event::Lose, 16, &[0, 1, 1, 4]),
            of(Event::Fall, 8, &[0, 1, 1, 4]),
            of(Event::Crash, 2, &[0, 1, 1, 4]),
            of(Event::Stop, 1, &[0, 1, 1, 4]),
            of(Event::Edit, 32, &[1, 1, 3]),
            of(Event::Leave, 8, &[0, 1]),
            of(Event::Control, 368, &[1, 1, 2]),
            of(Event::Walk, 192, &[0, 1, 1]),
        ];
        let keys = [&[0, 1, 2][..], &[0, 1, 2], &[0, 2]][rng.usize(..3)].to_vec();
        Self { events, keys }
    }

    fn pick(&self, rng: &mut Rng) -> Event {
        let mut left = rng.u32(..self.events.iter().map(|(_, weight)| weight).sum::<u32>());
        let here = self.events.iter().find(|(_, weight)| {
            let is_here = left < *weight;
            left = left.saturating_sub(*weight);
            is_here
        });
        here.expect("the sum of all weights bounds the pick").0
    }
}

/// What can go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ready {
    Link,
    Answer,
    Inbox,
    Told,
}

const WORKERS: usize = 3;
const CLIENTS: usize = 4;
/// Requests that a client sends without waiting.
const PIPELINE: usize = 3;

pub fn spec(providers: &[(&str, Phase)], ranges: &[(u64, u64, Phase)], new_providers: Phase, ack: Ack) -> RoutingSpec {
    RoutingSpec {
        keys: Patterns(vec![Pattern::parse("provider:{provider}:*").expect("a pattern")]),
        new_providers,
        other_keys: Phase::Standalone,
        pubsub: Phase::Standalone,
        ack,
        cluster_keys: ClusterKeys::Same,
        databases: Databases { main: 0, prefixes: vec![(1, "db1:".into())] },
        prefixes: Vec::new(),
        providers: providers.iter().map(|(id, phase)| (id.to_string(), *phase)).collect(),
        ranges: ranges.to_vec(),
        share: Vec::new(),
        force: Vec::new(),
    }
}

impl World {
    pub fn new(seed: u64, bug: Bug, is_told: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let weather = Weather::draw(&mut rng);
        // One provider is enough for most of it; the other two show what a line that covers many takes along.
        // Two of them have the same name in two databases.
        let key = |(db, name)| Key::copied(db, format!("provider:{name}").as_bytes());
        let keys: Vec<Key> = [(0, "7:a"), (1, "7:a"), (1, "8:c")].map(key).into();
        let phase = Phase::ALL[rng.usize(..4)];
        let rest = if rng.u32(..3) == 0 { Phase::DualStandalone } else { Phase::Standalone };
        let ack = if rng.u32(..4) == 0 { Ack::Both } else { Ack::Leader };
        let file = spec(&[("7", phase)], &[], rest, ack);
        let table = Arc::new(Table::build(&file, 1, None));
        // At a first start all keys are on the standalone, or, in phase `cluster`, where that says.
        let mut stores = [BTreeMap::new(), BTreeMap::new()];
        for (number, key) in keys.iter().enumerate() {
            let is_moved = table.route_of(&key.name).0.phase == Phase::Cluster;
            if rng.u32(..4) > 0 {
                stores[usize::from(is_moved)].insert(key.clone(), vec![u32::MAX - number as u32]);
            }
        }
        let mut disk = Disk { journal: journal::HEADER.to_vec(), synced: journal::HEADER.len(), ..Disk::default() };
        disk.save(remembered::snapshot_of(&table, false));
        Self {
            rng,
            weather,
            bug,
            truth: Truth::new(&keys, stores),
            keys,
            workers: (0..WORKERS).map(|_| Worker::new(table.clone())).collect(),
            clients: (0..CLIENTS).map(|number| Client { worker: number % WORKERS, ..Client::default() }).collect(),
            control: Control::new(table, file),
            disk,
            journaling: VecDeque::new(),
            down: [false; 2],
            slow: (0, Ready::Inbox),
            next: 0,
            early: None,
            is_told,
            story: Vec::new(),
        }
    }

    /// The last things that happened.
    pub fn story(&self) -> String {
        let lines = std::env::var("STORY").map_or(80, |text| text.parse().expect("a number"));
        self.story[self.story.len().saturating_sub(lines)..].join("\n")
    }

    pub fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.is_told {
            self.story.push(what());
        }
    }

    fn lane_of(&self, key: &Key) -> usize {
        self.keys.iter().position(|known| known == key).expect("every key") % WORKERS
    }

    fn generation(&self, plan: &Plan) -> u32 {
        generation_of(self.bug, plan)
    }

    fn number(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    /// One thing happens.
    pub fn step(&mut self) -> Result<(), String> {
        match self.weather.pick(&mut self.rng) {
            Event::Ask => self.ask(),
            Event::TakeUp => self.take_up(),
            Event::GoOn => self.go_on()?,
            Event::WriteJournal => self.write_journal(),
            Event::Tick => self.tick(),
            Event::Lose => self.lose()?,
            Event::Fall => {
                let side = self.rng.usize(..2);
                self.down[side] = !self.down[side];
            }
            Event::Crash => self.crash()?,
            Event::Stop => self.stop()?,
            Event::Edit => self.edit(),
            Event::Leave => self.leave(),
            Event::Control => self.control_step()?,
            Event::Walk => self.walk_step(),
        }
        self.check()
    }

    /// Everything that is in flight ends, what diverged is repaired, whole walks are made: both stores must be equal.
    pub fn settle(&mut self) -> Result<(), String> {
        self.down = [false; 2];
        self.control.considers(true);
        for _ in 0..20_000 {
            for client in 0..CLIENTS {
                self.take_up_of(client);
            }
            for worker in 0..WORKERS {
                for side in [Side::Standalone, Side::Cluster] {
                    self.serve(worker, side)?;
                    self.hear_answer(worker, side);
                }
                self.hear_message(worker);
                self.hear_told(worker);
                self.tick_of(worker);
            }
            self.write_journal();
            self.control_step()?;
            self.walk_step();
            self.check()?;
            let is_quiet = self.workers.iter().all(Worker::is_idle) && self.journaling.is_empty();
            let is_answered = self.clients.iter().all(|client| client.queue.is_empty() && client.open == 0);
            if is_quiet
                && is_answered
                && self.control.is_at_rest()
                && self.workers.iter().all(|w| w.leftovers().is_none())
            {
                return self.compare();
            }
        }
        let left: Vec<_> = self.workers.iter().filter_map(Worker::leftovers).collect();
        Err(format!("it never comes to rest: {left:?} {:?} {:?}", self.clients, self.control))
    }

    fn compare(&self) -> Result<(), String> {
        for key in &self.keys {
            let plan = Plan::of_key(&self.control.table, key);
            if plan.follower.is_some() && !self.truth.is_equal(key) {
                return Err(format!("{key:?} differs after a walk: {}", self.truth.stores()));
            }
            let value = self.truth.value(plan.leader, key);
            if !self.truth.possible(key).contains(&value) {
                return Err(format!("{key:?} is {value:?}, possible {:?}", self.truth.possible(key)));
            }
        }
        Ok(())
    }

    /// What must hold at every moment.
    fn check(&self) -> Result<(), String> {
        if let Some(early) = &self.early {
            return Err(early.clone());
        }
        let table = &self.control.table;
        if self.workers.iter().any(|worker| worker.table.version() != table.version()) {
            return Ok(());
        }
        for key in &self.keys {
            let plan = Plan::of_key(table, key);
            // I1: where one store leads and is complete, its value is what clients see.
            let value = self.truth.value(plan.leader, key);
            if Mode::of(&plan) != Mode::FirstTouch && !self.truth.possible(key).contains(&value) {
                return Err(format!("{key:?} is {value:?} on the leader, possible {:?}", self.truth.possible(key)));
            }
            let Some(dual) = &plan.dual else { continue };
            let is_known = || self.workers.iter().any(|worker| worker.knows_of(key));
            // I5: in a synced route a difference is under way, or remembered.
            if dual.is_synced() && !self.truth.is_equal(key) && !is_known() {
                return Err(format!("{key:?} differs and nobody knows: {}", self.truth.stores()));
            }
            // I3: what the follower has was whole on a leader once. A write that overtakes the copy of a guarded command
            // is one that somebody knows of.
            if !dual.is_in_doubt() && !self.truth.is_whole(plan.leader.other(), key) && !is_known() {
                return Err(format!("{key:?} is a fragment and nobody knows: {}", self.truth.stores()));
            }
        }
        // I5: what is counted is what the lanes remember.
        for route in table.routes() {
            let Some(dual) = &route.dual else { continue };
            let is_own = |key: &&Key| table.route_of(&key.name).0.name == route.name;
            let known: usize = self.workers.iter().map(|worker| worker.lane.diverged().filter(is_own).count()).sum();
            if dual.divergence() != known as u64 {
                return Err(format!("route {} counts {}, the lanes know {known}", route.name, dual.divergence()));
            }
        }
        Ok(())
    }

    fn any_key(&mut self) -> Key {
        let used = &self.weather.keys;
        self.keys[used[self.rng.usize(..used.len())]].clone()
    }

    /// A client sends something.
    fn ask(&mut self) {
        let client = self.rng.usize(..CLIENTS);
        if self.clients[client].queue.len() + self.clients[client].open >= PIPELINE {
            return;
        }
        let id = self.number() as u32;
        self.clients[client].sent += 1;
        let number = self.clients[client].sent;
        let key = self.any_key();
        let command = match self.rng.u32(..12) {
            0..2 => Command::Read,
            2..4 => Command::Set(id),
            4 => Command::Append(id),
            5 => Command::Put(id),
            6 => Command::Count(id),
            7 => Command::Script(id),
            8..10 => Command::Delete,
            _ => {
                let other = self.any_key();
                let deed = if self.rng.u32(..3) == 0 { Deed::Rename } else { Deed::Append(id) };
                let request = Request::Outside { keys: vec![key, other], deed, holds: self.rng.u32(..4) > 0 };
                return self.clients[client].queue.push_back(request);
            }
        };
        self.clients[client].queue.push_back(Request::Keyed { key, command, number });
    }

    fn take_up(&mut self) {
        let client = self.rng.usize(..CLIENTS);
        self.take_up_of(client);
    }

    /// A session takes up the next request, unless it has to wait.
    fn take_up_of(&mut self, client: usize) {
        let worker = self.clients[client].worker;
        if self.clients[client].is_busy {
            return;
        }
        let Some(request) = self.clients[client].queue.front().cloned() else { return };
        let here = &self.workers[worker];
        match request {
            Request::Keyed { key, command, number } => {
                let plan = here.plan(&key);
                if here.pause.is_gated(&plan) {
                    return;
                }
                self.clients[client].queue.pop_front();
                self.clients[client].open += 1;
                let ticket = here.pause.sessions.enter(plan.route_hash);
                let op = self.number();
                let entry =
                    self.op_of(key.clone(), command, Purpose::Request { worker }, &plan, ticket, (client, number));
                self.tell(|| {
                    format!("client {client} asks {op}: {key:?} {command:?}, {} {:?}", plan.phase, Mode::of(&plan))
                });
                let owner = self.lane_of(&key);
                if plan.follower.is_none() {
                    self.workers[worker].sent.insert(op, entry);
                    return self.workers[worker].links[place(plan.leader)].push_back(Item::Direct { op });
                }
                if owner == worker {
                    self.workers[worker].pause.sessions.leave(ticket);
                    return self.enter_lane(owner, op, entry, command.work());
                }
                self.workers[worker].sent.insert(op, entry);
                self.workers[owner].inbox.push_back(Message::Lane { op, worker });
            }
            Request::Outside { keys, deed, holds } => {
                let plans: Vec<Plan> = keys.iter().map(|key| here.plan(key)).collect();
                if self.clients[client].open > 0 || plans.iter().any(|plan| here.pause.is_gated(plan)) {
                    return;
                }
                self.clients[client].queue.pop_front();
                self.clients[client].is_busy = true;
                self.begin_outside(client, keys, plans, deed, holds);
            }
        }
    }

    fn op_of(
        &self,
        key: Key,
        command: Command,
        purpose: Purpose,
        plan: &Plan,
        ticket: cutover::dual::gate::Ticket,
        order: (usize, u64),
    ) -> Op {
        Op {
            key,
            command,
            purpose,
            order,
            leader: plan.leader,
            generation: self.generation(plan),
            in_lane: false,
            ran: None,
            result: None,
            is_lost: false,
            ticket,
        }
    }

    /// An operation arrives in its lane; `entry` gets the lane's own plan and ticket.
    fn enter_lane(&mut self, worker: usize, op: usize, entry: Op, work: Work) {
        let here = &mut self.workers[worker];
        let plan = here.plan(&entry.key);
        let ticket = here.pause.lanes.enter(plan.route_hash);
        let (key, mode, generation) = (entry.key.clone(), Mode::of(&plan), self.generation(&plan));
        let here = &mut self.workers[worker];
        here.ops.insert(op, Op { leader: plan.leader, generation, ticket, ..entry });
        let mut orders = Vec::new();
        let in_lane = here.lane.arrive(&key, op, work, mode, generation, &mut orders);
        here.ops.get_mut(&op).expect("just put in").in_lane = in_lane;
        self.carry_out(worker, orders);
    }

    pub fn carry_out(&mut self, worker: usize, orders: Vec<Order<usize>>) {
        for order in orders {
            self.tell(|| format!("  worker {worker}: {order:?}"));
            match order {
                Order::Lead { op, follow } => {
                    let leader = self.workers[worker].ops[&op].leader;
                    self.send(worker, leader, Item::Lead { op, follow });
                }
                Order::Follow { op } => {
                    let follower = self.workers[worker].ops[&op].leader.other();
                    self.send(worker, follower, Item::Effect { op });
                }
                Order::Dump { key } => self.copy(worker, key, |key, copy| (copy.leader, Item::Dump { key, copy })),
                Order::Restore { key } => {
                    let Some((value, number)) = self.workers[worker].dumps.remove(&key) else { continue };
                    self.copy(worker, key, |key, copy| {
                        (copy.leader.other(), Item::Restore { key, value, number, copy })
                    });
                }
                Order::Fetch { key } => {
                    self.copy(worker, key, |key, copy| (copy.leader.other(), Item::FetchDump { key, copy }));
                }
                Order::Journal { key } => self.journaling.push_back((journal::ADD, key, Some(worker))),
                Order::Reply { op } => {
                    self.check_reply(worker, op);
                    self.finish(worker, op, Ok(()));
                }
                Order::Unavailable { op } => self.finish(worker, op, Err(())),
                Order::Granted { op } => {
                    let granted = match self.workers[worker].ops.get_mut(&op).map(|entry| &mut entry.purpose) {
                        Some(Purpose::Hold { granted, .. }) => granted.take(),
                        _ => None,
                    };
                    granted.into_iter().for_each(|waiter| self.told(waiter, Ok(())));
                }
                Order::Diverged { key } => self.count(worker, &key, 1),
                Order::Repaired { key } => {
                    self.count(worker, &key, -1);
                    self.journaling.push_back((journal::REMOVE, key, None));
                }
            }
        }
    }

    fn count(&mut self, worker: usize, key: &Key, by: i64) {
        let _ = self.workers[worker].plan(key).dual.inspect(|dual| dual.add_divergence(by));
    }

    /// A copy counts in the lanes' gate; without a follower there is nothing to copy to.
    fn copy(&mut self, worker: usize, key: Key, item: impl FnOnce(Key, Copy) -> (Side, Item)) {
        let plan = self.workers[worker].plan(&key);
        if plan.follower.is_none() {
            return self.workers[worker].lane.abandon(&key);
        }
        let ticket = self.workers[worker].pause.lanes.enter(plan.route_hash);
        let (side, item) = item(key, Copy { generation: self.generation(&plan), leader: plan.leader, ticket });
        self.send(worker, side, item);
    }

    fn send(&mut self, worker: usize, side: Side, item: Item) {
        let is_follower = matches!(item, Item::Effect { .. } | Item::Restore { .. });
        let link = &mut self.workers[worker].links[place(side)];
        if self.bug == Bug::OrderSwapped && is_follower && !link.is_empty() {
            return link.push_front(item);
        }
        link.push_back(item);
    }

    /// Whoever waits for both stores hears when both have the write, or the journal says that the follower lacks it.
    fn check_reply(&mut self, worker: usize, op: usize) {
        let Some(entry) = self.workers[worker].ops.get(&op) else { return };
        let is_client = matches!(entry.purpose, Purpose::Request { .. });
        if !entry.in_lane || !is_client || entry.is_lost || entry.ran.is_none() {
            return;
        }
        let (open, _) = journal::recover(&self.disk.journal[..self.disk.synced]);
        let number = entry.ran.as_ref().map_or(0, |ran| ran.number);
        if !self.truth.has_followed(&entry.key, number) && !open.contains(&entry.key) {
            let (key, stores) = (&entry.key, self.truth.stores());
            self.early = Some(format!("{op} on {key:?} was answered before both stores had it: {stores}"));
        }
    }

    /// The lane is done with an operation.
    fn finish(&mut self, worker: usize, op: usize, outcome: Result<(), ()>) {
        let Some(entry) = self.workers[worker].ops.remove(&op) else { return };
        self.workers[worker].pause.lanes.leave(entry.ticket);
        match entry.purpose {
            Purpose::Request { worker: from } => self.answer(worker, from, op, entry.order.0),
            Purpose::Copy(Some(waiter)) => self.told(waiter, outcome),
            Purpose::Hold { granted: Some(waiter), .. } | Purpose::Hold { released: Some(waiter), .. } => {
                self.told(waiter, outcome);
            }
            Purpose::Copy(None) | Purpose::Hold { .. } => {}
        }
    }

    fn answer(&mut self, worker: usize, from: usize, op: usize, client: usize) {
        if worker == from {
            self.clients[client].open -= 1;
        } else {
            self.workers[from].inbox.push_back(Message::Reply { op });
        }
    }

    fn forget(&mut self, worker: usize, op: usize) {
        if let Some(entry) = self.workers[worker].ops.remove(&op) {
            self.workers[worker].pause.lanes.leave(entry.ticket);
        }
    }

    fn told(&mut self, waiter: Waiter, outcome: Result<(), ()>) {
        match waiter {
            Waiter::Walk(number) => self.control.walk_told(number, outcome),
            Waiter::Guard { worker, guard } => self.workers[worker].told.push_back((guard, outcome)),
        }
    }

    /// A store, a worker's inbox or a guard that has something to do goes on.
    fn go_on(&mut self) -> Result<(), String> {
        let mut ready = Vec::new();
        if self.rng.u32(..60) == 0 {
            let kinds = [Ready::Link, Ready::Answer, Ready::Inbox, Ready::Told];
            self.slow = (self.rng.usize(..WORKERS), kinds[self.rng.usize(..4)]);
        }
        let is_slow = self.rng.u32(..8) > 0;
        for (number, worker) in self.workers.iter().enumerate() {
            for side in [Side::Standalone, Side::Cluster] {
                let is_served = !worker.links[place(side)].is_empty() && !self.down[place(side)];
                ready.extend(is_served.then_some((number, side, Ready::Link)));
                ready.extend((!worker.answers[place(side)].is_empty()).then_some((number, side, Ready::Answer)));
            }
            ready.extend((!worker.inbox.is_empty()).then_some((number, Side::Standalone, Ready::Inbox)));
            ready.extend((!worker.told.is_empty()).then_some((number, Side::Standalone, Ready::Told)));
        }
        // What one worker does slowly lets all others run ahead of it.
        let slow = self.slow;
        ready.retain(|(worker, _, what)| !is_slow || (*worker, *what) != slow);
        if ready.is_empty() {
            return Ok(());
        }
        let (worker, side, what) = ready[self.rng.usize(..ready.len())];
        match what {
            Ready::Link => self.serve(worker, side)?,
            Ready::Answer => self.hear_answer(worker, side),
            Ready::Inbox => self.hear_message(worker),
            Ready::Told => self.hear_told(worker),
        }
        Ok(())
    }

    /// A store takes the next item of a link; now and then it refuses what it could do.
    fn serve(&mut self, worker: usize, side: Side) -> Result<(), String> {
        if self.down[place(side)] {
            return Ok(());
        }
        let Some(item) = self.workers[worker].links[place(side)].pop_front() else { return Ok(()) };
        let may_refuse =
            matches!(item, Item::Lead { .. } | Item::Effect { .. } | Item::Restore { .. } | Item::Direct { .. });
        if may_refuse && self.control.is_hostile() && self.rng.u32(..40) == 0 {
            self.tell(|| format!("the {side} refuses {item:?}"));
            let answer = Answer { item, outcome: Outcome::Refused, value: None, number: 0 };
            self.workers[worker].answers[place(side)].push_back(answer);
            return Ok(());
        }
        self.tell(|| format!("the {side} takes {item:?} of worker {worker}"));
        let (value, number) = self.apply(worker, side, &item)?;
        self.workers[worker].answers[place(side)].push_back(Answer { item, outcome: Outcome::Done, value, number });
        Ok(())
    }

    /// What an item does to a store; gives what it answers.
    fn apply(&mut self, worker: usize, side: Side, item: &Item) -> Result<(Value, u64), String> {
        let nothing = Ok((None, 0));
        match item {
            Item::Direct { op } | Item::Lead { op, .. } => {
                let here = &mut self.workers[worker];
                let known =
                    if matches!(item, Item::Direct { .. }) { here.sent.get_mut(op) } else { here.ops.get_mut(op) };
                let Some(entry) = known else { return nothing };
                entry.ran = Some(self.truth.lead(side, &entry.key, entry.command, entry.order)?);
                entry.result = self.truth.value(side, &entry.key);
                nothing
            }
            Item::Effect { op } => {
                let Some(entry) = self.workers[worker].ops.get(op) else { return nothing };
                let after = match entry.command {
                    Command::Count(_) => entry.result.clone(),
                    command => command.apply(&self.truth.value(side, &entry.key)),
                };
                let number = entry.ran.as_ref().map_or(0, |ran| ran.number);
                self.truth.follow(side, &entry.key, number, after.clone())?;
                Ok((after, number))
            }
            Item::Dump { key, .. } | Item::FetchDump { key, .. } => {
                Ok((self.truth.value(side, key), self.truth.number()))
            }
            Item::Restore { key, value, number, .. } => {
                self.truth.follow(side, key, *number, value.clone())?;
                nothing
            }
            Item::FetchRestore { key, value, .. } => Ok((self.truth.bring_over(side, key, value.clone()), 0)),
            Item::Outside { guard } => {
                let Some(guarded) = self.workers[worker].guards.get_mut(guard) else { return nothing };
                let (first, last) = (guarded.keys[0].clone(), guarded.keys[guarded.keys.len() - 1].clone());
                let afters: Vec<(Key, Value)> = match guarded.deed {
                    Deed::Append(id) => {
                        let mut keys = guarded.keys.clone();
                        keys.dedup();
                        let append = |key: Key| {
                            let after = Command::Append(id).apply(&self.truth.value(side, &key));
                            (key, after)
                        };
                        keys.into_iter().map(append).collect()
                    }
                    Deed::Rename if first == last => Vec::new(),
                    Deed::Rename => match self.truth.value(side, &first) {
                        None => Vec::new(),
                        moved => vec![(first, None), (last, moved)],
                    },
                };
                for (key, after) in afters {
                    let ran = self.truth.lead_value(side, &key, after)?;
                    guarded.ran.push((key, ran));
                }
                nothing
            }
        }
    }

    fn hear_answer(&mut self, worker: usize, side: Side) {
        if let Some(answer) = self.workers[worker].answers[place(side)].pop_front() {
            self.hear(worker, answer);
        }
    }

    /// A worker hears what a store answered.
    fn hear(&mut self, worker: usize, Answer { item, outcome, value, number }: Answer) {
        let mut orders = Vec::new();
        let here = &mut self.workers[worker];
        let copy = match item {
            Item::Direct { op } => {
                let Some(entry) = here.sent.remove(&op) else { return };
                here.pause.sessions.leave(entry.ticket);
                self.clients[entry.order.0].open -= 1;
                return;
            }
            Item::Lead { op, follow } => {
                let Some(entry) = here.ops.get_mut(&op) else { return };
                let (key, in_lane, generation) = (entry.key.clone(), entry.in_lane, entry.generation);
                entry.is_lost = outcome == Outcome::Doubt;
                let answered = match entry.purpose {
                    Purpose::Request { worker: from } if !in_lane => Some((from, entry.order.0)),
                    _ => None,
                };
                if in_lane || follow || outcome == Outcome::Doubt {
                    here.lane.led(&key, op, follow, outcome, generation, &mut orders);
                }
                if let Some((from, client)) = answered {
                    self.answer(worker, from, op, client);
                }
                let goes_on =
                    in_lane || orders.iter().any(|order| matches!(order, Order::Follow { op: next } if *next == op));
                self.carry_out(worker, orders);
                if !goes_on {
                    self.forget(worker, op);
                }
                return;
            }
            Item::Effect { op } => {
                let Some(entry) = here.ops.get(&op) else { return };
                let (key, in_lane, generation) = (entry.key.clone(), entry.in_lane, entry.generation);
                let whole = matches!(entry.command.work(), Work::Overwrite | Work::Resolve);
                let length = |value: &Value| value.as_ref().map(Vec::len);
                let tells = matches!(entry.command, Command::Append(_));
                let agrees = outcome != Outcome::Done || !tells || length(&value) == length(&entry.result);
                let outcome = if agrees { outcome } else { Outcome::Doubt };
                here.lane.followed(&key, op, outcome, whole, generation, &mut orders);
                self.carry_out(worker, orders);
                if !in_lane {
                    self.forget(worker, op);
                }
                return;
            }
            Item::Outside { guard } => return self.end_outside(worker, guard, outcome),
            Item::Dump { key, copy } => {
                if outcome == Outcome::Done {
                    here.dumps.insert(key.clone(), (value, number));
                }
                here.lane.dumped(&key, outcome, copy.generation, &mut orders);
                copy
            }
            Item::Restore { key, copy, .. } => {
                here.lane.restored(&key, outcome, copy.generation, &mut orders);
                copy
            }
            Item::FetchDump { key, copy } => {
                let fetched = match (outcome, value) {
                    (Outcome::Done, Some(value)) => {
                        let item = Item::FetchRestore { key, value: Some(value), copy };
                        return self.send(worker, copy.leader, item);
                    }
                    (Outcome::Done, None) => Fetched::Unproven,
                    _ => Fetched::Failed,
                };
                here.lane.fetched(&key, fetched, copy.generation, &mut orders);
                copy
            }
            Item::FetchRestore { key, copy, .. } => {
                let fetched = match (outcome, value) {
                    (Outcome::Done, None) => Fetched::Brought,
                    (Outcome::Done, Some(_)) => Fetched::Unproven,
                    _ => Fetched::Failed,
                };
                here.lane.fetched(&key, fetched, copy.generation, &mut orders);
                copy
            }
        };
        self.carry_out(worker, orders);
        self.workers[worker].pause.lanes.leave(copy.ticket);
    }

    fn hear_message(&mut self, worker: usize) {
        if let Some(message) = self.workers[worker].inbox.pop_front() {
            self.tell(|| format!("worker {worker} hears {}", short(&message)));
            self.take(worker, message);
        }
    }

    fn take(&mut self, worker: usize, message: Message) {
        let here = &mut self.workers[worker];
        let mut orders = Vec::new();
        match message {
            Message::Lane { op, worker: from } => {
                let Some(entry) = self.workers[from].sent.get(&op).cloned() else { return };
                let work = entry.command.work();
                self.enter_lane(worker, op, entry, work);
            }
            Message::Reply { op } => {
                let Some(entry) = here.sent.remove(&op) else { return };
                here.pause.sessions.leave(entry.ticket);
                self.clients[entry.order.0].open -= 1;
            }
            Message::Resync { ref key, done: Some(_) } | Message::Touch { ref key, .. }
                if here.pause.is_lane_closed(&here.table, key) =>
            {
                here.pause.defer(message);
            }
            Message::Resync { key, done } => self.have_copied(worker, key, done, Lane::resync),
            Message::Touch { key, done } => self.enter_for(worker, key, Purpose::Copy(Some(done)), Work::Touch),
            Message::Lend { key, done } => self.enter_for(worker, key, Purpose::Copy(Some(done)), Work::Lend),
            Message::Return { key, outcome, done }
                if outcome == Outcome::Refused || here.plan(&key).follower.is_none() =>
            {
                here.lane.give_back(&key, 1);
                self.told(done, Ok(()));
            }
            Message::Return { key, done, .. } => self.have_copied(worker, key, Some(done), Lane::give_back_changed),
            Message::Hold { key, guard } => {
                let purpose = Purpose::Hold { granted: Some(guard), released: None };
                self.enter_for(worker, key, purpose, Work::Hold);
            }
            Message::Release { key, outcome, done } => {
                let Some(op) = here.lane.holder(&key) else {
                    return match outcome {
                        Outcome::Refused => self.told(done, Ok(())),
                        _ => self.have_copied(worker, key, Some(done), Lane::resync),
                    };
                };
                if let Some(Purpose::Hold { released, .. }) = here.ops.get_mut(&op).map(|entry| &mut entry.purpose) {
                    *released = Some(done);
                }
                let generation = generation_of(self.bug, &here.plan(&key));
                here.lane.release(&key, outcome, generation, &mut orders);
            }
            Message::Journaled { key } => {
                let generation = generation_of(self.bug, &here.plan(&key));
                here.lane.journaled(&key, generation, &mut orders);
            }
            Message::Recover { key } if here.plan(&key).follower.is_none() => {
                self.journaling.push_back((journal::REMOVE, key, None));
            }
            Message::Recover { key } => here.lane.recover(&key, &mut orders),
            Message::Close { stage, routes, all, adoption } => here.pause.close(stage, routes, all, adoption),
            Message::Install { table, adoption } => {
                if self.bug != Bug::CountLeftBehind {
                    recount(&here.lane, &here.table, &table);
                }
                here.table = table;
                self.control.answered(adoption, worker);
            }
            Message::Open => {
                let table = here.table.clone();
                let gone = here.lane.forget(|key| Plan::of_key(&table, key).follower.is_none());
                self.journaling.extend(gone.into_iter().map(|key| (journal::REMOVE, key, None)));
                for message in here.pause.open() {
                    self.take(worker, message);
                }
            }
        }
        self.carry_out(worker, orders);
    }

    fn enter_for(&mut self, worker: usize, key: Key, purpose: Purpose, work: Work) {
        let (op, plan) = (self.number(), self.workers[worker].plan(&key));
        // `enter_lane` gives it a ticket of its own.
        let ticket = self.workers[worker].pause.lanes.enter(plan.route_hash);
        let entry = self.op_of(key, Command::Read, purpose, &plan, ticket, (usize::MAX, 0));
        self.workers[worker].pause.lanes.leave(ticket);
        self.enter_lane(worker, op, entry, work);
    }

    fn have_copied(&mut self, worker: usize, key: Key, done: Option<Waiter>, ask: AskForCopy<usize>) {
        let plan = self.workers[worker].plan(&key);
        if plan.follower.is_none() {
            return done.into_iter().for_each(|waiter| self.told(waiter, Ok(())));
        }
        let op = self.number();
        let ticket = self.workers[worker].pause.lanes.enter(plan.route_hash);
        let entry = self.op_of(key.clone(), Command::Read, Purpose::Copy(done), &plan, ticket, (usize::MAX, 0));
        self.workers[worker].ops.insert(op, Op { in_lane: true, ..entry });
        let mut orders = Vec::new();
        let generation = self.generation(&plan);
        ask(&mut self.workers[worker].lane, &key, op, Mode::of(&plan), generation, &mut orders);
        self.carry_out(worker, orders);
    }

    fn begin_outside(&mut self, client: usize, keys: Vec<Key>, plans: Vec<Plan>, deed: Deed, holds: bool) {
        let worker = self.clients[client].worker;
        let guard = self.number();
        self.tell(|| format!("client {client} begins {guard}: {deed:?} {keys:?} at worker {worker}"));
        let tickets = plans.iter().map(|plan| self.workers[worker].pause.sessions.enter(plan.route_hash)).collect();
        let dual = keys.iter().zip(&plans).filter(|(_, plan)| plan.follower.is_some());
        let mut todo: Vec<Key> = dual.map(|(key, _)| key.clone()).collect();
        todo.sort();
        todo.dedup();
        let guarded = Guarded {
            client,
            deed,
            keys,
            plans,
            tickets,
            todo: todo.into(),
            holds,
            held: Vec::new(),
            resync: Vec::new(),
            shared: Vec::new(),
            lent: Vec::new(),
            waits: 0,
            outcome: Outcome::Refused,
            ran: Vec::new(),
            is_ending: false,
        };
        self.workers[worker].guards.insert(guard, guarded);
        self.prepare_outside(worker, guard);
    }

    /// Takes its keys one after the other, and then runs.
    fn prepare_outside(&mut self, worker: usize, guard: usize) {
        loop {
            let guarded = self.workers[worker].guards.get_mut(&guard).expect("it begins");
            let Some(key) = guarded.todo.front().cloned() else { break };
            let plan = &guarded.plans[guarded.keys.iter().position(|own| *own == key).expect("its own key")];
            let (mode, waiter) = (Mode::of(plan), Waiter::Guard { worker, guard });
            if plan.may_be_fetching() {
                let message = match guarded.holds {
                    true => Message::Hold { key: key.clone(), guard: waiter },
                    false => Message::Lend { key: key.clone(), done: waiter },
                };
                let owner = self.lane_of(&key);
                return self.workers[owner].inbox.push_back(message);
            }
            guarded.todo.pop_front();
            if mode.is_strict() { guarded.shared.push(key) } else { guarded.resync.push(key) }
        }
        let guarded = &self.workers[worker].guards[&guard];
        let leader = guarded.plans[0].leader;
        if guarded.plans.iter().any(|plan| plan.leader != leader) {
            return self.end_outside(worker, guard, Outcome::Refused);
        }
        self.send(worker, leader, Item::Outside { guard });
    }

    /// A guard hears of a key that was granted or touched, or of the end of what it waits for.
    fn hear_told(&mut self, worker: usize) {
        let Some((guard, outcome)) = self.workers[worker].told.pop_front() else { return };
        let Some(guarded) = self.workers[worker].guards.get_mut(&guard) else { return };
        if !guarded.is_ending {
            match (guarded.todo.pop_front(), outcome) {
                (Some(key), Ok(())) if guarded.holds => guarded.held.push(key),
                (Some(key), Ok(())) => guarded.lent.push(key),
                _ => return self.end_outside(worker, guard, Outcome::Refused),
            }
            return self.prepare_outside(worker, guard);
        }
        guarded.waits -= 1;
        // A copy of a shared key that failed has the key in the journal: the lane saw to it.
        self.close_outside(worker, guard);
    }

    /// The command ran, or did not: its keys are copied.
    fn end_outside(&mut self, worker: usize, guard: usize, outcome: Outcome) {
        let Some(guarded) = self.workers[worker].guards.get_mut(&guard) else { return };
        (guarded.outcome, guarded.is_ending) = (outcome, true);
        let (resync, held) = (std::mem::take(&mut guarded.resync), std::mem::take(&mut guarded.held));
        if outcome != Outcome::Refused {
            for key in resync {
                let owner = self.lane_of(&key);
                self.workers[owner].inbox.push_back(Message::Resync { key, done: None });
            }
        }
        let done = Waiter::Guard { worker, guard };
        self.workers[worker].guards.get_mut(&guard).expect("looked at above").waits = held.len();
        for key in held {
            let owner = self.lane_of(&key);
            self.workers[owner].inbox.push_back(Message::Release { key, outcome, done });
        }
        self.close_outside(worker, guard);
    }

    fn close_outside(&mut self, worker: usize, guard: usize) {
        let guarded = self.workers[worker].guards.get_mut(&guard).expect("it ends");
        if guarded.waits > 0 {
            return;
        }
        let (outcome, done) = (guarded.outcome, Waiter::Guard { worker, guard });
        let (mut shared, lent) = (std::mem::take(&mut guarded.shared), std::mem::take(&mut guarded.lent));
        if outcome == Outcome::Refused {
            shared.clear();
        }
        guarded.waits = shared.len() + lent.len();
        let is_over = guarded.waits == 0;
        let resyncs = shared.into_iter().map(|key| Message::Resync { key, done: Some(done) });
        let returns = lent.into_iter().map(|key| Message::Return { key, outcome, done });
        for message in resyncs.chain(returns) {
            let (Message::Resync { key, .. } | Message::Return { key, .. }) = &message else { unreachable!() };
            let owner = self.lane_of(key);
            self.workers[owner].inbox.push_back(message);
        }
        if !is_over {
            return;
        }
        let guarded = self.workers[worker].guards.remove(&guard).expect("looked at above");
        guarded.tickets.into_iter().for_each(|ticket| self.workers[worker].pause.sessions.leave(ticket));
        self.clients[guarded.client].is_busy = false;
    }

    /// A client goes away and another one comes; what it has asked goes on.
    fn leave(&mut self) {
        let client = self.rng.usize(..CLIENTS);
        self.clients[client].queue.clear();
    }

    pub fn write_journal(&mut self) {
        let Some((op, key, worker)) = self.journaling.pop_front() else { return };
        self.disk.journal.extend(journal::frame(op, &key));
        if let Some(worker) = worker {
            self.disk.synced = self.disk.journal.len();
            self.tell(|| format!("the journal has {key:?}"));
            self.workers[worker].inbox.push_back(Message::Journaled { key });
        }
    }

    fn tick(&mut self) {
        let worker = self.rng.usize(..WORKERS);
        self.tick_of(worker);
    }

    fn tick_of(&mut self, worker: usize) {
        let here = &mut self.workers[worker];
        let drained = match self.bug {
            Bug::CopyOutlivesDrain => here.pause.drained(&here.table, &Lane::<usize>::new(0)),
            _ => here.pause.drained(&here.table, &here.lane),
        };
        drained.into_iter().for_each(|adoption| self.control.answered(adoption, worker));
        if self.down == [false; 2] && here.lane.sizes().1 > 0 && here.pause.may_repair() {
            let (table, mut orders) = (here.table.clone(), Vec::new());
            let mode = |key: &Key| {
                let plan = Plan::of_key(&table, key);
                plan.follower.map(|_| Mode::of(&plan))
            };
            here.lane.repair(10, mode, &mut orders);
            self.carry_out(worker, orders);
        }
    }

    /// A link breaks: the store took some of what was on it, and nobody hears which.
    fn lose(&mut self) -> Result<(), String> {
        let worker = self.rng.usize(..WORKERS);
        let side = if self.rng.bool() { Side::Standalone } else { Side::Cluster };
        let answers: Vec<Answer> = self.workers[worker].answers[place(side)].drain(..).collect();
        let items: Vec<Item> = self.workers[worker].links[place(side)].drain(..).collect();
        let taken = self.rng.usize(..=items.len());
        if items.is_empty() && answers.is_empty() {
            return Ok(());
        }
        self.tell(|| format!("worker {worker}'s link to the {side} breaks after {taken} of {}", items.len()));
        for item in &items[..taken] {
            self.apply(worker, side, item)?;
        }
        for item in answers.into_iter().map(|answer| answer.item).chain(items) {
            self.maybe(worker, &item);
            self.hear(worker, Answer { item, outcome: Outcome::Doubt, value: None, number: 0 });
        }
        Ok(())
    }

    /// A write of which the client hears nothing may have happened or not: in first-touch mode either may come out.
    fn maybe(&mut self, worker: usize, item: &Item) {
        let ran = match item {
            Item::Lead { op, .. } => {
                let ran = self.workers[worker]
                    .ops
                    .get_mut(op)
                    .and_then(|entry| Some((entry.key.clone(), entry.ran.clone()?)));
                ran.into_iter().collect()
            }
            Item::Outside { guard } => {
                self.workers[worker].guards.get(guard).map_or(Vec::new(), |guarded| guarded.ran.clone())
            }
            _ => Vec::new(),
        };
        for (key, ran) in ran {
            if Mode::of(&self.workers[worker].plan(&key)) == Mode::FirstTouch {
                self.truth.reopen(&key, ran);
            }
        }
    }

    /// The program is killed: what was on the links may or may not be taken, all memory is gone, and the disk has what was
    /// synced and perhaps more. It starts again with the file as it is now.
    fn crash(&mut self) -> Result<(), String> {
        self.tell(|| "CRASH".into());
        for worker in 0..WORKERS {
            for side in [Side::Standalone, Side::Cluster] {
                let items: Vec<Item> = self.workers[worker].links[place(side)].drain(..).collect();
                let taken = self.rng.usize(..=items.len());
                for item in &items[..taken] {
                    self.apply(worker, side, item)?;
                }
            }
        }
        for worker in 0..WORKERS {
            let open: Vec<usize> = self.workers[worker].ops.keys().copied().collect();
            open.into_iter().for_each(|op| self.maybe(worker, &Item::Lead { op, follow: false }));
            let open: Vec<usize> = self.workers[worker].guards.keys().copied().collect();
            open.into_iter().for_each(|guard| self.maybe(worker, &Item::Outside { guard }));
        }
        if self.rng.bool() {
            // Somebody writes another table while it is down.
            self.edit();
        }
        self.journaling.clear();
        let kept = self.rng.usize(self.disk.synced..=self.disk.journal.len());
        self.disk.journal.truncate(kept);
        self.start_again();
        Ok(())
    }

    /// The program is told to end, and may have been given time enough; and it starts again.
    fn stop(&mut self) -> Result<(), String> {
        self.clients.iter_mut().for_each(|client| client.queue.clear());
        let is_over = |world: &Self| {
            let in_flight = |worker: &Worker| worker.pause.sessions.in_flight() + worker.pause.lanes.in_flight();
            let is_heard = |worker: &Worker| world.bug == Bug::EndedOneByOne || worker.inbox.is_empty();
            let is_over = |worker: &Worker| in_flight(worker) == 0 && is_heard(worker);
            world.workers.iter().all(is_over) && world.control.is_quiet()
        };
        for round in 0..300 {
            self.go_on()?;
            self.write_journal();
            self.tick();
            if round % 16 == 0 && is_over(self) {
                self.tell(|| "ends cleanly".into());
                self.disk.save(remembered::snapshot_of(&self.control.table, true));
                break;
            }
        }
        self.crash()
    }

    /// What the program does first.
    fn start_again(&mut self) {
        let (open, _) = journal::recover(&self.disk.journal);
        self.disk.journal = journal::HEADER.to_vec();
        for key in &open {
            self.disk.journal.extend(journal::frame(journal::ADD, key));
        }
        self.disk.synced = self.disk.journal.len();
        let snapshot = self.disk.state.clone().map(|snapshot| Snapshot {
            clean: snapshot.clean || self.bug == Bug::DoubtForgotten,
            routes: match self.bug {
                Bug::DoubtForgotten => snapshot
                    .routes
                    .into_iter()
                    .map(|mut record| {
                        record.in_doubt = false;
                        record
                    })
                    .collect(),
                _ => snapshot.routes,
            },
            ..snapshot
        });
        let is_stale = |route: &_| self.bug != Bug::StaleForgotten && self.disk.memory.has_stale_cluster_keys(route);
        let (table, refused) = remembered::first_table(snapshot.as_ref(), is_stale, self.control.file());
        self.tell(|| format!("starts again: refused {refused:?}, {:?}", remembered::snapshot_of(&table, false).routes));
        if refused.is_none() || self.bug != Bug::CleanWhileRunning {
            self.disk.save(remembered::snapshot_of(&table, false));
        }
        let table = Arc::new(table);
        for worker in &mut self.workers {
            let old = std::mem::replace(worker, Worker::new(table.clone()));
            if self.bug == Bug::PresenceTrusted {
                worker.lane = old.lane;
                self.keys.iter().for_each(|key| worker.lane.abandon(key));
            }
        }
        for client in &mut self.clients {
            (client.open, client.is_busy) = (0, false);
            client.queue.clear();
        }
        self.control.start_again(table);
        let mut open: Vec<Key> = open.into_iter().collect();
        open.sort();
        for key in open {
            if self.bug != Bug::TombstoneLost {
                let owner = self.lane_of(&key);
                self.workers[owner].inbox.push_back(Message::Recover { key });
            }
        }
    }
}

/// The bug that trusts what was known of single keys trusts it under every generation.
fn generation_of(bug: Bug, plan: &Plan) -> u32 {
    if bug == Bug::PresenceTrusted { 0 } else { plan.generation() }
}

/// A message without the table in it.
fn short(message: &Message) -> String {
    match message {
        Message::Install { table, .. } => format!("Install of table {}", table.version()),
        message => format!("{message:?}"),
    }
}

/// What the control thread and the walk do is in a file of its own.
impl World {
    pub fn say_all(&mut self, message: impl Fn() -> Message) {
        for worker in &mut self.workers {
            worker.inbox.push_back(message());
        }
    }

    pub fn say(&mut self, key: &Key, message: Message) {
        let owner = self.lane_of(key);
        self.workers[owner].inbox.push_back(message);
    }

    pub fn begin_walk(&mut self, walk: Walk) {
        self.tell(|| format!("a walk begins: {:?}", walk.todo));
        self.control.walk = Some(walk);
    }
}
