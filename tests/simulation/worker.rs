//! One worker as the simulation plays it: the sessions, the links and the inbox are the world's, what is decided is decided
//! by the real lane, the real gates and the real pause.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use cutover::dual::gate::Ticket;
use cutover::dual::install::{Pause, Stage};
use cutover::dual::lane::{Lane, Outcome};
use cutover::routing::{Plan, Side, Table};

use crate::Key;
use crate::truth::{Command, Ran, Value};

/// What the engine knows of a copy: under which generation it began, and its ticket in the lanes' gate.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    pub generation: u32,
    pub leader: Side,
    pub ticket: Ticket,
}

/// What travels on a link.
#[derive(Clone, Debug)]
pub enum Item {
    /// A command of a route without a follower.
    Direct {
        op: usize,
    },
    Lead {
        op: usize,
        follow: bool,
    },
    Effect {
        op: usize,
    },
    Dump {
        key: Key,
        copy: Copy,
    },
    Restore {
        key: Key,
        value: Value,
        number: u64,
        copy: Copy,
    },
    FetchDump {
        key: Key,
        copy: Copy,
    },
    FetchRestore {
        key: Key,
        value: Value,
        copy: Copy,
    },
    /// A command that runs outside of the lanes.
    Outside {
        guard: usize,
    },
}

/// What a store says to an item.
#[derive(Clone, Debug)]
pub struct Answer {
    pub item: Item,
    pub outcome: Outcome,
    pub value: Value,
    /// For a dump: the newest command on a leader when it was taken.
    pub number: u64,
}

/// Who hears of the end of a copy, a touch or a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiter {
    /// The walk of that number.
    Walk(u64),
    Guard {
        worker: usize,
        guard: usize,
    },
}

/// What workers, jobs and the control thread say to a worker.
#[derive(Clone, Debug)]
pub enum Message {
    /// A request for a lane here, from that worker.
    Lane {
        op: usize,
        worker: usize,
    },
    Reply {
        op: usize,
    },
    Resync {
        key: Key,
        done: Option<Waiter>,
    },
    Touch {
        key: Key,
        done: Waiter,
    },
    Lend {
        key: Key,
        done: Waiter,
    },
    Return {
        key: Key,
        outcome: Outcome,
        done: Waiter,
    },
    Hold {
        key: Key,
        guard: Waiter,
    },
    Release {
        key: Key,
        outcome: Outcome,
        done: Waiter,
    },
    Journaled {
        key: Key,
    },
    Recover {
        key: Key,
    },
    Close {
        stage: Stage,
        routes: HashSet<u64>,
        all: bool,
        adoption: u64,
    },
    Install {
        table: Arc<Table>,
        adoption: u64,
    },
    Open,
}

/// What stands behind an operation in a lane.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// A client's request, which came from that worker.
    Request { worker: usize },
    /// A copy or a touch.
    Copy(Option<Waiter>),
    /// A key that is held; who waits for its release.
    Hold { granted: Option<Waiter>, released: Option<Waiter> },
}

/// One operation in a lane, or a request on its way.
#[derive(Clone, Debug)]
pub struct Op {
    pub key: Key,
    pub command: Command,
    pub purpose: Purpose,
    /// Which client asked, and where the request stands among its own.
    pub order: (usize, u64),
    pub leader: Side,
    pub generation: u32,
    pub in_lane: bool,
    /// If it ran on the leader.
    pub ran: Option<Ran>,
    /// What the leader answered to a `Count`.
    pub result: Value,
    /// Its client gets an error that says nothing.
    pub is_lost: bool,
    pub ticket: Ticket,
}

/// What a guarded command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A script or a transaction that appends to each of its keys.
    Append(u32),
    /// RENAME of the first key to the last.
    Rename,
}

/// A command outside of the lanes.
#[derive(Clone, Debug)]
pub struct Guarded {
    pub client: usize,
    pub deed: Deed,
    pub keys: Vec<Key>,
    pub plans: Vec<Plan>,
    pub tickets: Vec<Ticket>,
    /// Keys of dual routes that are still to be held, touched or noted.
    pub todo: VecDeque<Key>,
    /// Whether it keeps its keys from others in first-touch mode.
    pub holds: bool,
    pub held: Vec<Key>,
    pub resync: Vec<Key>,
    pub shared: Vec<Key>,
    pub lent: Vec<Key>,
    /// Answers that are awaited at the end.
    pub waits: usize,
    pub outcome: Outcome,
    pub ran: Vec<(Key, Ran)>,
    pub is_ending: bool,
}

/// See the module.
pub struct Worker {
    pub table: Arc<Table>,
    /// A drain is told with the number of its adoption.
    pub pause: Pause<u64, Message>,
    pub lane: Lane<usize>,
    pub inbox: VecDeque<Message>,
    /// By side.
    pub links: [VecDeque<Item>; 2],
    pub answers: [VecDeque<Answer>; 2],
    pub ops: BTreeMap<usize, Op>,
    /// Requests that wait for another worker's lane, and those of routes without a follower.
    pub sent: BTreeMap<usize, Op>,
    pub guards: BTreeMap<usize, Guarded>,
    pub dumps: BTreeMap<Key, (Value, u64)>,
    /// What guards of this worker are told.
    pub told: VecDeque<(usize, Result<(), ()>)>,
}

impl Worker {
    pub fn new(table: Arc<Table>) -> Self {
        Self {
            table,
            pause: Pause::default(),
            lane: Lane::new(2),
            inbox: VecDeque::new(),
            links: Default::default(),
            answers: Default::default(),
            ops: BTreeMap::new(),
            sent: BTreeMap::new(),
            guards: BTreeMap::new(),
            dumps: BTreeMap::new(),
            told: VecDeque::new(),
        }
    }

    pub fn plan(&self, key: &Key) -> Plan {
        Plan::of_key(&self.table, key)
    }

    pub fn is_idle(&self) -> bool {
        self.inbox.is_empty()
            && self.told.is_empty()
            && self.links.iter().all(VecDeque::is_empty)
            && self.answers.iter().all(VecDeque::is_empty)
    }

    /// Whether anything that is under way here concerns the key.
    pub fn knows_of(&self, key: &Key) -> bool {
        let names = |message: &Message| match message {
            Message::Resync { key: of, .. }
            | Message::Touch { key: of, .. }
            | Message::Lend { key: of, .. }
            | Message::Return { key: of, .. }
            | Message::Hold { key: of, .. }
            | Message::Release { key: of, .. }
            | Message::Journaled { key: of }
            | Message::Recover { key: of } => of == key,
            _ => false,
        };
        self.ops.values().any(|op| op.key == *key)
            || self.lane.diverged().any(|diverged| diverged == key)
            || self.lane.is_busy(|busy| busy == key)
            || self.guards.values().any(|guard| guard.keys.contains(key))
            || self.inbox.iter().any(names)
    }

    /// What is left when nothing is under way.
    pub fn leftovers(&self) -> Option<String> {
        let counts = [
            ("ops", self.ops.len()),
            ("requests sent", self.sent.len()),
            ("guards", self.guards.len()),
            ("dumps", self.dumps.len()),
            ("keys in the lane", self.lane.sizes().0),
            ("counted in sessions", self.pause.sessions.in_flight() as usize),
            ("counted in lanes", self.pause.lanes.in_flight() as usize),
        ];
        let left: Vec<String> =
            counts.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")).collect();
        (!left.is_empty()).then(|| left.join(", "))
    }
}

/// The place of a side in an array.
pub fn place(side: Side) -> usize {
    usize::from(side == Side::Cluster)
}
