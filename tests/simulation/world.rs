//! Two stores, a link to each, one lane, and what clients were told.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use cutover::dual::gate::{Gate, Ticket};
use cutover::dual::lane::{Fetched, Lane, Mode, Order, Outcome, Work};
use cutover::routing::{Ack, Coverage, Phase, Side};
use fastrand::Rng;

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
}

/// A value is the list of the writes that made it; none: the key is absent.
type Value = Option<Vec<u32>>;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Read,
    Set(u32),
    Append(u32),
    /// As INCR: the leader's answer is the whole value.
    Count(u32),
    /// As a script that appends: only a copy repeats it.
    Script(u32),
    Delete,
}

impl Command {
    fn work(self) -> Work {
        match self {
            Self::Read => Work::Read,
            Self::Set(_) | Self::Delete => Work::Overwrite,
            Self::Append(_) => Work::Update,
            Self::Count(_) => Work::Resolve,
            Self::Script(_) => Work::Opaque,
        }
    }

    fn apply(self, before: &Value) -> Value {
        match self {
            Self::Read => before.clone(),
            Self::Set(id) => Some(vec![id]),
            Self::Append(id) | Self::Count(id) | Self::Script(id) => {
                let mut value = before.clone().unwrap_or_default();
                value.push(id);
                Some(value)
            }
            Self::Delete => None,
        }
    }
}

/// What travels on a link.
#[derive(Clone, Debug)]
enum Item {
    Lead { op: usize, follow: bool },
    Effect { op: usize },
    Dump { key: Bytes },
    Restore { key: Bytes, value: Value },
    FetchDump { key: Bytes },
    FetchRestore { key: Bytes, value: Value },
}

/// One operation in the lane.
#[derive(Clone, Debug)]
struct Op {
    key: Bytes,
    command: Command,
    /// For a walk of the backfill, not a client.
    is_walk: bool,
    in_lane: bool,
    /// What was possible before it ran on the leader, if it did and nobody was told yet.
    before: Vec<Value>,
    /// What the leader answered to a `Count`.
    result: Value,
    /// Its client gets an error that says nothing.
    is_lost: bool,
    ticket: Ticket,
}

/// See the module.
pub struct World {
    rng: Rng,
    bug: Bug,
    lane: Lane<usize>,
    gate: Gate,
    phase: Phase,
    coverage: Coverage,
    in_doubt: bool,
    acks: Ack,
    generation: u32,
    stores: HashMap<Side, BTreeMap<Bytes, Vec<u32>>>,
    links: HashMap<Side, VecDeque<Item>>,
    follower_down: bool,
    ops: BTreeMap<usize, Op>,
    dumps: HashMap<Bytes, Value>,
    journal: BTreeSet<Bytes>,
    journaling: VecDeque<Bytes>,
    diverged: BTreeSet<Bytes>,
    /// What a client may see now.
    possible: BTreeMap<Bytes, Vec<Value>>,
    /// A backfill: what is still to be walked, and what is in flight of it.
    walk: Option<Walk>,
    next: usize,
    /// An answer that came too early.
    early: Option<String>,
    story: Vec<String>,
}

#[derive(Debug)]
struct Walk {
    left: Vec<Bytes>,
    open: usize,
    failed: bool,
    is_touch: bool,
}

const KEYS: u8 = 3;
const ROUTE: u64 = 7;

impl World {
    pub fn new(seed: u64, bug: Bug) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut standalone = BTreeMap::new();
        let mut possible = BTreeMap::new();
        for number in 0..KEYS {
            let key = Bytes::from(vec![b'a' + number]);
            let value = rng.bool().then(|| vec![u32::MAX - u32::from(number)]);
            if let Some(value) = &value {
                standalone.insert(key.clone(), value.clone());
            }
            possible.insert(key, vec![value]);
        }
        Self {
            rng,
            bug,
            lane: Lane::new(2),
            gate: Gate::default(),
            phase: Phase::DualStandalone,
            coverage: Coverage::StandaloneOnly,
            in_doubt: false,
            acks: Ack::Leader,
            generation: 0,
            stores: HashMap::from([(Side::Standalone, standalone), (Side::Cluster, BTreeMap::new())]),
            links: HashMap::from([(Side::Standalone, VecDeque::new()), (Side::Cluster, VecDeque::new())]),
            follower_down: false,
            ops: BTreeMap::new(),
            dumps: HashMap::new(),
            journal: BTreeSet::new(),
            journaling: VecDeque::new(),
            diverged: BTreeSet::new(),
            possible,
            walk: None,
            next: 0,
            early: None,
            story: Vec::new(),
        }
    }

    /// The last things that happened.
    pub fn story(&self) -> String {
        self.story[self
            .story
            .len()
            .saturating_sub(std::env::var("STORY").map_or(60, |text| text.parse().expect("a number")))..]
            .join("\n")
    }

    fn tell(&mut self, what: String) {
        self.story.push(what);
    }

    fn leader(&self) -> Side {
        self.phase.leader()
    }

    fn mode(&self) -> Mode {
        match self.coverage {
            Coverage::StandaloneOnly if self.phase == Phase::DualCluster => Mode::FirstTouch,
            coverage => {
                let synced = coverage == Coverage::Both && !self.in_doubt;
                if self.acks == Ack::Both { Mode::Both { synced } } else { Mode::Mirror { synced } }
            }
        }
    }

    fn key(&mut self) -> Bytes {
        Bytes::from(vec![b'a' + self.rng.u8(..KEYS)])
    }

    /// One thing happens.
    pub fn step(&mut self) -> Result<(), String> {
        match self.rng.u32(..100) {
            0..35 => self.arrive(),
            35..60 => self.serve(Side::Standalone)?,
            60..85 => self.serve(Side::Cluster)?,
            85..88 => self.write_journal(),
            88..90 => self.repair(),
            90..92 => self.lose(Side::Standalone)?,
            92..94 => self.lose(Side::Cluster)?,
            94 => self.follower_down = !self.follower_down,
            95 if self.rng.bool() => self.crash(),
            // A new table, which closes nothing as no route flips.
            95 => {
                self.acks = if self.acks == Ack::Leader { Ack::Both } else { Ack::Leader };
                self.tell(format!("ack = {:?}", self.acks));
            }
            96..98 => self.flip()?,
            _ => self.walk_on(),
        }
        self.check()
    }

    /// Everything that is in flight ends, what diverged is repaired, a whole walk is made: both stores must be equal.
    pub fn settle(&mut self) -> Result<(), String> {
        self.follower_down = false;
        self.gate.open();
        for round in 0..100_000 {
            let is_idle = self.links.values().all(VecDeque::is_empty) && self.journaling.is_empty();
            if is_idle && self.lane.sizes() == (0, 0) && self.ops.is_empty() {
                if self.coverage == Coverage::Both && !self.in_doubt {
                    return self.compare();
                }
                self.walk_on();
            }
            self.serve(Side::Standalone)?;
            self.serve(Side::Cluster)?;
            self.write_journal();
            self.repair();
            if self.walk.is_some() {
                self.walk_on();
            }
            self.check()?;
            if round == 99_999 {
                return Err(format!("it never comes to rest: {:?} {:?}", self.lane.sizes(), self.ops));
            }
        }
        Ok(())
    }

    fn compare(&self) -> Result<(), String> {
        if self.stores[&Side::Standalone] != self.stores[&Side::Cluster] {
            return Err(format!("the stores differ after a walk: {:?}", self.stores));
        }
        for (key, possible) in &self.possible {
            let value = self.stores[&self.leader()].get(key).cloned();
            if !possible.contains(&value) {
                return Err(format!("{key:?} is {value:?}, possible {possible:?}"));
            }
        }
        Ok(())
    }

    /// What must hold at every moment.
    fn check(&self) -> Result<(), String> {
        if let Some(early) = &self.early {
            return Err(early.clone());
        }
        if self.lane.sizes().1 != self.diverged.len() {
            return Err(format!(
                "the lane counts {} diverged keys, told of {}",
                self.lane.sizes().1,
                self.diverged.len()
            ));
        }
        // With one store leading and complete, its value is what clients see.
        if self.mode() != Mode::FirstTouch {
            for (key, possible) in &self.possible {
                let value = self.stores[&self.leader()].get(key).cloned();
                if !possible.contains(&value) {
                    return Err(format!("{key:?} is {value:?} on the leader, possible {possible:?}"));
                }
            }
        }
        Ok(())
    }

    fn arrive(&mut self) {
        if self.gate.is_closed(ROUTE) {
            return;
        }
        let (key, id) = (self.key(), self.next as u32);
        let command = match self.rng.u32(..10) {
            0..2 => Command::Read,
            2..4 => Command::Set(id),
            4..6 => Command::Append(id),
            6 => Command::Count(id),
            7 => Command::Script(id),
            _ => Command::Delete,
        };
        self.tell(format!("arrive {} {key:?} {command:?} in {:?} {:?}", self.next, self.phase, self.mode()));
        self.enter(key, command, false, command.work());
    }

    fn enter(&mut self, key: Bytes, command: Command, is_walk: bool, work: Work) -> usize {
        let op = self.next;
        self.next += 1;
        let ticket = self.gate.enter(ROUTE);
        self.ops.insert(
            op,
            Op {
                key: key.clone(),
                command,
                is_walk,
                in_lane: false,
                before: Vec::new(),
                result: None,
                is_lost: false,
                ticket,
            },
        );
        let mut orders = Vec::new();
        let mode = self.mode();
        let in_lane = self.lane.arrive(&key, op, work, mode, self.generation, &mut orders);
        if let Some(entry) = self.ops.get_mut(&op) {
            entry.in_lane = in_lane;
        }
        self.carry_out(orders);
        op
    }

    fn carry_out(&mut self, orders: Vec<Order<usize>>) {
        let (leader, follower) = (self.leader(), self.leader().other());
        for order in orders {
            self.tell(format!("  {order:?}"));
            match order {
                Order::Lead { op, follow } => self.send(leader, Item::Lead { op, follow }),
                Order::Follow { op } => self.send(follower, Item::Effect { op }),
                Order::Dump { key } => self.send(leader, Item::Dump { key }),
                Order::Restore { key } => {
                    let value = self.dumps.remove(&key).flatten();
                    self.send(follower, Item::Restore { key, value });
                }
                Order::Fetch { key } => self.send(follower, Item::FetchDump { key }),
                Order::Journal { key } => self.journaling.push_back(key),
                Order::Reply { op } => {
                    self.check_reply(op);
                    self.end(op, true);
                }
                Order::Unavailable { op } => self.end(op, false),
                Order::Granted { .. } => {}
                Order::Diverged { key } => drop(self.diverged.insert(key)),
                Order::Repaired { key } => {
                    self.diverged.remove(&key);
                    self.journal.remove(&key);
                }
            }
        }
    }

    /// Whoever waits for both stores hears when both have the write, or the journal says that the follower lacks it.
    fn check_reply(&mut self, op: usize) {
        let Some(entry) = self.ops.get(&op).filter(|entry| entry.in_lane && !entry.is_walk && !entry.is_lost) else {
            return;
        };
        let key = entry.key.clone();
        let is_equal = self.stores[&Side::Standalone].get(&key) == self.stores[&Side::Cluster].get(&key);
        if !is_equal && !self.journal.contains(&key) {
            self.early = Some(format!("{op} on {key:?} was answered before both stores had it: {:?}", self.stores));
        }
    }

    fn send(&mut self, side: Side, item: Item) {
        let link = self.links.get_mut(&side).expect("both sides");
        let swaps = self.bug == Bug::OrderSwapped && side != self.phase.leader() && !link.is_empty();
        if swaps {
            link.push_front(item);
        } else {
            link.push_back(item);
        }
    }

    /// An operation is over and its client is told.
    fn end(&mut self, op: usize, good: bool) {
        let Some(entry) = self.ops.remove(&op) else { return };
        self.gate.leave(entry.ticket);
        if entry.is_walk
            && let Some(walk) = &mut self.walk
        {
            walk.open -= 1;
            walk.failed |= !good;
        }
    }

    /// A store takes the next item of its link.
    fn serve(&mut self, side: Side) -> Result<(), String> {
        if self.follower_down && side != self.leader() {
            return Ok(());
        }
        let Some(item) = self.links.get_mut(&side).and_then(VecDeque::pop_front) else { return Ok(()) };
        self.tell(format!("{side} takes {item:?}"));
        let answer = self.apply(side, &item)?;
        self.hear(item, Outcome::Done, answer);
        Ok(())
    }

    /// What an item does to a store; gives the value that a dump answers.
    fn apply(&mut self, side: Side, item: &Item) -> Result<Value, String> {
        match item {
            Item::Lead { op, .. } => {
                let Some(entry) = self.ops.get_mut(op) else { return Ok(None) };
                let (key, command) = (entry.key.clone(), entry.command);
                let before = self.stores[&side].get(&key).cloned();
                let possible = self.possible.get_mut(&key).expect("every key");
                // An overwrite does not look at what was there.
                if command.work() != Work::Overwrite && !possible.contains(&before) {
                    return Err(format!("{command:?} finds {before:?} in {key:?}, possible {possible:?}"));
                }
                let after = command.apply(&before);
                if command != Command::Read {
                    // If nobody hears of it, what was possible before is so again.
                    let earlier = std::mem::replace(possible, vec![after.clone()]);
                    entry.before = if command.work() == Work::Overwrite { earlier } else { vec![before] };
                    entry.result = after.clone();
                    self.put(side, &key, after);
                } else {
                    *possible = vec![after];
                }
                Ok(None)
            }
            Item::Effect { op } => {
                if let Some(entry) = self.ops.get(op).cloned() {
                    let after = match entry.command {
                        Command::Count(_) => entry.result.clone(),
                        command => command.apply(&self.stores[&side].get(&entry.key).cloned()),
                    };
                    self.put(side, &entry.key, after);
                }
                Ok(None)
            }
            Item::Dump { key } | Item::FetchDump { key } => Ok(self.stores[&side].get(key).cloned()),
            Item::Restore { key, value } => {
                self.put(side, key, value.clone());
                Ok(None)
            }
            Item::FetchRestore { key, value } => {
                // What RESTORE answers: BUSYKEY is the value that was there.
                let before = self.stores[&side].get(key).cloned();
                if before.is_none() {
                    self.put(side, key, value.clone());
                }
                Ok(before)
            }
        }
    }

    fn put(&mut self, side: Side, key: &Bytes, value: Value) {
        let store = self.stores.get_mut(&side).expect("both sides");
        match value {
            Some(value) => drop(store.insert(key.clone(), value)),
            None => drop(store.remove(key)),
        }
    }

    /// The program hears of an item's end.
    fn hear(&mut self, item: Item, outcome: Outcome, answer: Value) {
        let mut orders = Vec::new();
        let generation = self.generation;
        match item {
            Item::Lead { op, follow } => {
                let Some(entry) = self.ops.get_mut(&op) else { return };
                let (key, in_lane, is_read) = (entry.key.clone(), entry.in_lane, entry.command == Command::Read);
                entry.is_lost = outcome == Outcome::Doubt;
                if !in_lane {
                    // The client has its answer, or an error that says nothing.
                    entry.before.clear();
                }
                if !(is_read && !in_lane && outcome != Outcome::Doubt) {
                    self.lane.led(&key, op, follow, outcome, generation, &mut orders);
                }
                let goes_on =
                    in_lane || orders.iter().any(|order| matches!(order, Order::Follow { op: next } if *next == op));
                self.carry_out(orders);
                if !goes_on {
                    self.end(op, true);
                }
                return;
            }
            Item::Effect { op } => {
                let Some(entry) = self.ops.get(&op) else { return };
                let (key, in_lane, whole) =
                    (entry.key.clone(), entry.in_lane, matches!(entry.command.work(), Work::Overwrite | Work::Resolve));
                self.lane.followed(&key, op, outcome, whole, generation, &mut orders);
                self.carry_out(orders);
                if !in_lane {
                    self.end(op, true);
                }
                return;
            }
            Item::Dump { key } => {
                self.dumps.insert(key.clone(), answer);
                self.lane.dumped(&key, outcome, generation, &mut orders);
            }
            Item::Restore { key, .. } => self.lane.restored(&key, outcome, generation, &mut orders),
            Item::FetchDump { key } => match (outcome, answer) {
                (Outcome::Done, Some(value)) => {
                    let leader = self.leader();
                    return self.send(leader, Item::FetchRestore { key, value: Some(value) });
                }
                (Outcome::Done, None) => self.lane.fetched(&key, Fetched::Unproven, generation, &mut orders),
                _ => self.lane.fetched(&key, Fetched::Failed, generation, &mut orders),
            },
            Item::FetchRestore { key, .. } => {
                let fetched = match (outcome, answer) {
                    (Outcome::Done, None) => Fetched::Brought,
                    (Outcome::Done, Some(_)) => Fetched::Unproven,
                    _ => Fetched::Failed,
                };
                self.lane.fetched(&key, fetched, generation, &mut orders);
            }
        }
        self.carry_out(orders);
    }

    fn write_journal(&mut self) {
        let Some(key) = self.journaling.pop_front() else { return };
        self.tell(format!("journal has {key:?}"));
        self.journal.insert(key.clone());
        let mut orders = Vec::new();
        self.lane.journaled(&key, self.generation, &mut orders);
        self.carry_out(orders);
    }

    fn repair(&mut self) {
        if self.follower_down {
            return;
        }
        let mut orders = Vec::new();
        let mode = self.mode();
        self.lane.repair(10, |_| Some(mode), &mut orders);
        self.carry_out(orders);
    }

    /// A link breaks: the store took some of what was on it, and nobody hears which.
    fn lose(&mut self, side: Side) -> Result<(), String> {
        let items: Vec<Item> = self.links.get_mut(&side).expect("both sides").drain(..).collect();
        let taken = self.rng.usize(..=items.len());
        self.tell(format!("the link to the {side} breaks after {taken} of {}", items.len()));
        for item in &items[..taken] {
            self.apply(side, item)?;
        }
        for (number, item) in items.into_iter().enumerate() {
            if let Item::Lead { op, .. } = &item
                && number < taken
            {
                self.maybe(*op);
            }
            self.hear(item, Outcome::Doubt, None);
        }
        Ok(())
    }

    /// A write of which the client hears nothing may have happened or not: in first-touch mode either may come out.
    fn maybe(&mut self, op: usize) {
        let is_first_touch = self.mode() == Mode::FirstTouch;
        let Some(entry) = self.ops.get_mut(&op).filter(|_| is_first_touch) else { return };
        let before = std::mem::take(&mut entry.before);
        self.possible.get_mut(&entry.key).expect("every key").extend(before);
    }

    /// The program is killed: what was on the links may or may not be taken, the lane is gone.
    fn crash(&mut self) {
        self.tell("CRASH".into());
        for side in [Side::Standalone, Side::Cluster] {
            let items: Vec<Item> = self.links.get_mut(&side).expect("both sides").drain(..).collect();
            let taken = self.rng.usize(..=items.len());
            for item in &items[..taken] {
                // A fetch or a copy that ends after the crash is one that ended before it.
                let _ = self.apply(side, item);
            }
        }
        let open: Vec<usize> = self.ops.keys().copied().collect();
        for op in open {
            self.maybe(op);
        }
        self.ops.clear();
        self.dumps.clear();
        self.journaling.clear();
        self.diverged.clear();
        self.walk = None;
        self.gate = Gate::default();
        if self.bug == Bug::PresenceTrusted {
            let keys: Vec<Bytes> = self.possible.keys().cloned().collect();
            keys.iter().for_each(|key| self.lane.abandon(key));
        } else {
            self.lane = Lane::new(2);
        }
        self.in_doubt |= self.bug != Bug::DoubtForgotten;
        if self.bug != Bug::TombstoneLost {
            let mut orders = Vec::new();
            for key in self.journal.clone() {
                self.lane.recover(&key, &mut orders);
            }
            self.carry_out(orders);
        }
    }

    /// The other dual phase, if the facts allow it and nothing is in flight.
    fn flip(&mut self) -> Result<(), String> {
        if !self.gate.has_closed() {
            self.gate.close([ROUTE].into(), false);
            self.tell("close".into());
        }
        if !self.gate.is_drained() || !self.links.values().all(VecDeque::is_empty) || !self.journaling.is_empty() {
            if self.rng.usize(..4) == 0 {
                self.gate.open();
                self.tell("the flip is given up".into());
            }
            return Ok(());
        }
        let may = self.diverged.is_empty() && !self.in_doubt && self.lane.sizes() == (0, 0);
        if may {
            self.phase = if self.phase == Phase::DualStandalone { Phase::DualCluster } else { Phase::DualStandalone };
            // A walk that a flip overtakes proves nothing.
            if let Some(walk) = &mut self.walk {
                walk.failed = true;
            }
            self.tell(format!("FLIP to {:?}", self.phase));
        }
        self.gate.open();
        Ok(())
    }

    /// A backfill begins, goes on or ends.
    fn walk_on(&mut self) {
        let is_first_touch = self.mode() == Mode::FirstTouch;
        let Some(walk) = &mut self.walk else {
            if !self.gate.has_closed() {
                let left = (0..KEYS).map(|number| Bytes::from(vec![b'a' + number])).collect();
                self.walk = Some(Walk { left, open: 0, failed: false, is_touch: is_first_touch });
                self.tell("a walk begins".into());
            }
            return;
        };
        if let Some(key) = walk.left.pop() {
            walk.open += 1;
            let is_touch = walk.is_touch;
            if is_touch {
                self.enter(key, Command::Read, true, Work::Touch);
                return;
            }
            let op = self.next;
            self.next += 1;
            let ticket = self.gate.enter(ROUTE);
            self.ops.insert(
                op,
                Op {
                    key: key.clone(),
                    command: Command::Read,
                    is_walk: true,
                    in_lane: true,
                    before: Vec::new(),
                    result: None,
                    is_lost: false,
                    ticket,
                },
            );
            let (mode, mut orders) = (self.mode(), Vec::new());
            self.lane.resync(&key, op, mode, self.generation, &mut orders);
            self.carry_out(orders);
            return;
        }
        if walk.open > 0 {
            return;
        }
        let good = !walk.failed && self.diverged.is_empty();
        let is_touch = walk.is_touch;
        self.walk = None;
        if !good {
            return self.tell("the walk proved nothing".into());
        }
        if is_touch {
            self.tell("every key was brought over".into());
            if !self.in_doubt {
                self.generation += 1;
            }
            (self.coverage, self.in_doubt) = (Coverage::Both, true);
        } else {
            self.tell("SYNCED".into());
            (self.coverage, self.in_doubt) = (Coverage::Both, false);
        }
    }
}
