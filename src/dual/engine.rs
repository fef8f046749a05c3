//! The front door of the dual-write engine, one a worker: plan, gate, lane, stores.
//!
//! A request of a route without a follower goes straight to a link of this worker. One of a dual route goes to the lane of
//! its key, on the worker that `lane_of` names, and everything the lane orders is carried out there. What must not run
//! inside a lane (a transaction, a script, a command with keys in several lanes) runs on the leader between
//! [`Engine::begin`] and [`Guard::finish`], which resync the keys afterwards.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use slab::Slab;
use tokio::sync::{mpsc, oneshot};

use crate::command::CommandSpec;
use crate::dual::effect::{self, Form};
use crate::dual::gate::{Gate, Ticket};
use crate::dual::journal::Journal;
use crate::dual::lane::{Fetched, Lane, Mode, Order, Outcome, Work};
use crate::resp::refusal::Refusal;
use crate::resp::reply::{self, Protocol};
use crate::resp::request::Request;
use crate::routing::{Coverage, DualState, Phase, Side, Table};
use crate::store::{LinkError, Reply, Stores, Waiter};
use crate::{resp, slot};

/// Keys that one lane remembers as whole on both stores: 16 bytes each, so 16 MiB a worker and an unsynced route.
const PRESENT_KEYS_MAX: usize = 1 << 20;
/// Diverged keys that one lane remembers one by one; above it the whole route is in doubt.
const DIVERGED_KEYS_MAX: usize = 100_000;
/// Repairs begun at a tick (every 50 ms), so that a follower that comes back is not drowned.
const REPAIRS_PER_TICK: usize = 200;

/// Tables that are remembered for scans which began under them.
const TABLES_MAX: usize = 8;

/// Where the answer to a request goes: the session's queue of replies.
pub trait ReplyPort {
    /// Gives the answer of the request that the session numbered `seq`. Called once for each.
    fn deliver(&self, seq: u64, outcome: Result<Reply<'_>, Refusal>);
}

/// See [`ReplyPort`].
#[derive(Clone)]
pub struct ReplyTo {
    pub port: Rc<dyn ReplyPort>,
    pub seq: u64,
}

/// What happens with the requests for one key under one table.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names the provider, prefix or rest for the gate; the same in every table.
    pub route_hash: u64,
    pub phase: Phase,
    pub leader: Side,
    pub follower: Option<Side>,
    pub dual: Option<Arc<DualState>>,
    /// The hash of the table's line that covers the key: what a flip of a range or a default closes.
    line_hash: u64,
}

impl Plan {
    fn mode(&self) -> Mode {
        mode(self.phase, self.dual.as_deref())
    }

    /// Whether keys have to be held while a command runs outside of their lanes.
    pub fn is_first_touch(&self) -> bool {
        self.follower.is_some() && self.mode() == Mode::FirstTouch
    }
}

fn mode(phase: Phase, dual: Option<&DualState>) -> Mode {
    match dual.map(DualState::coverage) {
        Some(Coverage::StandaloneOnly) if phase == Phase::DualCluster => Mode::FirstTouch,
        Some(Coverage::Both) => Mode::Mirror { synced: !dual.is_some_and(DualState::is_in_doubt) },
        _ => Mode::Mirror { synced: false },
    }
}

/// A destination for [`Engine::call`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Standalone { db: u32 },
    Slot(u16),
    Node(Arc<str>),
}

/// Whoever waits for a store's answer.
pub enum EngineWaiter {
    /// A request on a route without a follower.
    Direct { engine: Rc<Inner>, to: ReplyTo, ticket: Ticket },
    /// Somebody on this worker awaits the reply.
    Once(oneshot::Sender<Result<Bytes, LinkError>>),
    /// A step of a lane operation.
    Led { engine: Rc<Inner>, op: usize },
    Expiry { engine: Rc<Inner>, op: usize },
    Followed { engine: Rc<Inner>, op: usize },
}

impl Waiter for EngineWaiter {
    fn complete(self, outcome: Result<Reply<'_>, LinkError>) {
        match self {
            Self::Direct { engine, to, ticket } => {
                engine.sessions.leave(ticket);
                to.port.deliver(to.seq, outcome.map_err(|error| refusal_of(&error)));
            }
            Self::Once(sender) => {
                // Nobody waits any more when the caller was cancelled; the answer is then of no use to anyone.
                let _ = sender.send(outcome.map(|reply| reply.to_bytes()));
            }
            Self::Led { engine, op } => engine.led(op, outcome),
            Self::Expiry { engine, op } => engine.expiry(op, outcome),
            Self::Followed { engine, op } => engine.followed(op, outcome),
        }
    }
}

/// What the application is told when a store did not answer.
pub fn refusal_of(error: &LinkError) -> Refusal {
    match error {
        LinkError::Down(_) | LinkError::Overflow | LinkError::Redirects => Refusal::StoreDown,
        LinkError::Lost | LinkError::TimedOut => Refusal::UnknownOutcome,
    }
}

/// An operation in the lane, from arrival to the follower's answer.
struct LaneOp {
    key: Bytes,
    request: Option<Request>,
    form: Form,
    protocol: Protocol,
    follow: bool,
    overwrite: bool,
    leader: Side,
    generation: u32,
    /// First-touch writes answer when both have it: the leader's reply waits here.
    holds_reply: bool,
    led: Option<Result<Bytes, LinkError>>,
    awaits_expiry: bool,
    expiry: Option<i64>,
    to: LaneReply,
    ticket: Ticket,
    /// The lane will say `Reply` for it.
    in_lane: bool,
}

enum LaneReply {
    Local(ReplyTo),
    Remote { worker: usize, id: usize },
    Done(oneshot::Sender<Result<(), Refusal>>),
    Granted(Option<oneshot::Sender<Result<(), Refusal>>>, Option<oneshot::Sender<Result<(), Refusal>>>),
    Nobody,
}

/// What workers say to each other and what the control thread and its jobs say to them.
pub enum Message {
    Lane(Box<RemoteOp>),
    Reply { id: usize, outcome: Result<Bytes, Refusal> },
    Resync { key: Bytes, done: Option<oneshot::Sender<Result<(), Refusal>>> },
    Touch { key: Bytes, done: oneshot::Sender<Result<(), Refusal>> },
    Hold { key: Bytes, granted: oneshot::Sender<Result<(), Refusal>> },
    Release { key: Bytes, outcome: Outcome, done: oneshot::Sender<Result<(), Refusal>> },
    Journaled { key: Bytes },
    Recover { key: Bytes },
    /// Closes the sessions' or the lanes' gate and answers when it is drained.
    Close { stage: Stage, routes: Vec<u64>, all: bool, drained: oneshot::Sender<()> },
    /// Adopts a table (or keeps the old one) and opens both gates.
    Open { table: Arc<Table> },
    Stop,
}

/// Which of a worker's gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Sessions,
    Lanes,
}

/// A request on its way to the lane of its key on another worker.
pub struct RemoteOp {
    request: Request,
    spec: &'static CommandSpec,
    key: Bytes,
    protocol: Protocol,
    worker: usize,
    id: usize,
}

/// A handle to every worker's inbox. Unbounded: each message stands for a request that its session's pipeline bound, or
/// for a job's own bound of keys in flight.
#[derive(Clone)]
pub struct Peers(pub Arc<Vec<mpsc::UnboundedSender<Message>>>);

impl Peers {
    /// The worker whose lane owns the key.
    pub fn lane_of(&self, key: &[u8]) -> usize {
        if self.0.len() == 1 { 0 } else { crc32fast::hash(key) as usize % self.0.len() }
    }

    /// Sends to one worker; a worker that has ended drops it, and with it whatever waits for an answer.
    pub fn send(&self, worker: usize, message: Message) {
        let _ = self.0[worker].send(message);
    }

    /// Copies a key from leader to follower through its lane.
    pub async fn resync(&self, key: Bytes) -> Result<(), Refusal> {
        let (done, ended) = oneshot::channel();
        self.send(self.lane_of(&key), Message::Resync { key, done: Some(done) });
        ended.await.unwrap_or(Err(Refusal::UnknownOutcome))
    }

    /// Brings a key of a first-touch route over to the leader.
    pub async fn touch(&self, key: Bytes) -> Result<(), Refusal> {
        let (done, ended) = oneshot::channel();
        self.send(self.lane_of(&key), Message::Touch { key, done });
        ended.await.unwrap_or(Err(Refusal::UnknownOutcome))
    }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Rc<Inner>);

/// What all clones of an engine share.
pub struct Inner {
    worker: usize,
    table: RefCell<Arc<Table>>,
    /// The newest is last; for scans that began under an older one.
    tables: RefCell<VecDeque<Arc<Table>>>,
    stores: Stores<EngineWaiter>,
    db: u32,
    sessions: Gate,
    lanes: Gate,
    lane: RefCell<Lane<usize>>,
    ops: RefCell<Slab<LaneOp>>,
    /// The last dump of each key whose copy is in flight.
    dumps: RefCell<HashMap<Bytes, Option<(Bytes, i64)>>>,
    remote: RefCell<Slab<(ReplyTo, Ticket)>>,
    peers: Peers,
    journal: Arc<Journal>,
    opened: tokio::sync::Notify,
    closing: tokio::sync::Notify,
    drains: RefCell<Vec<(Stage, oneshot::Sender<()>)>>,
    stopping: Cell<bool>,
    stop: tokio::sync::Notify,
}

/// What an engine is made of.
pub struct EngineParts {
    pub worker: usize,
    pub table: Arc<Table>,
    pub stores: Stores<EngineWaiter>,
    /// The database of the standalone that moves.
    pub db: u32,
    pub peers: Peers,
    pub journal: Arc<Journal>,
}

impl Engine {
    /// The engine of one worker.
    pub fn new(parts: EngineParts) -> Self {
        Self(Rc::new(Inner {
            worker: parts.worker,
            tables: RefCell::new(VecDeque::from([parts.table.clone()])),
            table: RefCell::new(parts.table),
            stores: parts.stores,
            db: parts.db,
            sessions: Gate::default(),
            lanes: Gate::default(),
            lane: RefCell::new(Lane::new(PRESENT_KEYS_MAX)),
            ops: RefCell::new(Slab::new()),
            dumps: RefCell::new(HashMap::new()),
            remote: RefCell::new(Slab::new()),
            peers: parts.peers,
            journal: parts.journal,
            opened: tokio::sync::Notify::new(),
            closing: tokio::sync::Notify::new(),
            drains: RefCell::new(Vec::new()),
            stopping: Cell::new(false),
            stop: tokio::sync::Notify::new(),
        }))
    }

    /// The table under which requests are planned now.
    pub fn table(&self) -> Arc<Table> {
        self.0.table.borrow().clone()
    }

    /// The newest table that `is` names, of those that were adopted last.
    pub fn past_table(&self, is: impl Fn(&Table) -> bool) -> Option<Arc<Table>> {
        self.0.tables.borrow().iter().rev().find(|table| is(table)).cloned()
    }

    /// The stores of this worker.
    pub fn stores(&self) -> &Stores<EngineWaiter> {
        &self.0.stores
    }

    /// The database of the standalone that moves.
    pub fn db(&self) -> u32 {
        self.0.db
    }

    /// Whether the program is ending, so that sessions close when they have answered.
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.get()
    }

    /// What would happen with a request for this key now.
    pub fn plan(&self, key: &[u8]) -> Plan {
        plan_of(&self.0.table.borrow(), key)
    }

    /// Whether new requests under this plan have to wait for a flip.
    pub fn is_gated(&self, plan: &Plan) -> bool {
        self.0.sessions.is_closed(plan.route_hash) || self.0.sessions.is_closed(plan.line_hash)
    }

    /// Whether any route is closed; the cheap question before `is_gated`.
    #[inline]
    pub fn has_closed(&self) -> bool {
        self.0.sessions.has_closed()
    }

    /// Waits until the gate of some route closes, or the program ends; ask `is_gated` then.
    pub async fn closing(&self) {
        self.0.closing.notified().await;
    }

    /// Waits until the gates are open again; plan anew afterwards.
    pub async fn opened(&self) {
        self.0.opened.notified().await;
    }

    /// Whether [`Engine::submit`] takes these keys in one piece: one key, or several that share a plan without a
    /// follower and, on the cluster, a slot.
    pub fn is_simple(&self, keys: &[&[u8]]) -> bool {
        let Some(first) = keys.first() else { return true };
        let table = self.0.table.borrow();
        if keys.len() == 1 || table.all_standalone() {
            return true;
        }
        let leader = plan_of(&table, first).leader;
        let wanted = slot::of(first);
        keys.iter().all(|key| {
            let plan = plan_of(&table, key);
            plan.follower.is_none() && plan.leader == leader && (leader == Side::Standalone || slot::of(key) == wanted)
        })
    }

    /// Sends a request whose keys `is_simple` accepted, under the plan of its first key; without a key to the standalone.
    /// The gate is the caller's to look at, before.
    pub fn submit(&self, request: Request, spec: &'static CommandSpec, keys: &[usize], protocol: Protocol, to: ReplyTo) {
        let inner = &self.0;
        let Some(&first) = keys.first() else {
            let ticket = inner.sessions.enter(0);
            let waiter = EngineWaiter::Direct { engine: inner.clone(), to, ticket };
            return inner.stores.standalone(inner.db, request.bytes(), Some(protocol), waiter);
        };
        let (route_hash, leader, follower) = {
            let table = inner.table.borrow();
            let (route, hash) = table.route_of(request.arg(first));
            (hash, route.phase.leader(), route.phase.follower())
        };
        let ticket = inner.sessions.enter(route_hash);
        if follower.is_some() {
            return inner.to_lane(request, spec, first, protocol, to, ticket);
        }
        let waiter = EngineWaiter::Direct { engine: inner.clone(), to, ticket };
        match leader {
            Side::Standalone => inner.stores.standalone(inner.db, request.bytes(), Some(protocol), waiter),
            Side::Cluster => {
                let slot = slot::of(request.arg(first));
                inner.stores.cluster(slot, request.bytes(), Some(protocol), waiter);
            }
        }
    }

    /// Sends a request to another database of the standalone, which does not move.
    pub fn submit_elsewhere(&self, db: u32, request: &Bytes, protocol: Protocol, to: ReplyTo) {
        let ticket = self.0.sessions.enter(0);
        let waiter = EngineWaiter::Direct { engine: self.0.clone(), to, ticket };
        self.0.stores.standalone(db, request, Some(protocol), waiter);
    }

    /// Sends a request that belongs to no route (PUBLISH) to a slot of the cluster.
    pub fn submit_slot(&self, slot: u16, request: &Bytes, protocol: Protocol, to: ReplyTo) {
        let ticket = self.0.sessions.enter(0);
        let waiter = EngineWaiter::Direct { engine: self.0.clone(), to, ticket };
        self.0.stores.cluster(slot, request, Some(protocol), waiter);
    }

    /// One request, awaited, on a link of this worker. It is not counted in: wrap it into a [`Guard`] where keys are touched.
    pub async fn call(&self, target: &Target, request: &Bytes, protocol: Protocol) -> Result<Bytes, LinkError> {
        self.0.call(target, request, 1, protocol).await
    }

    /// MULTI … EXEC as one piece; gives the last of the `replies`.
    pub async fn call_batch(
        &self,
        target: &Target,
        request: &Bytes,
        replies: u32,
        protocol: Protocol,
    ) -> Result<Bytes, LinkError> {
        self.0.call(target, request, replies, protocol).await
    }

    /// Counts in a command that runs outside of the lanes, and holds its keys where their route is in first-touch mode.
    /// Waits while a route is gated. Every way out of the command must go through [`Guard::finish`]; a guard that is
    /// dropped (its client went away) takes its keys for changed.
    pub async fn begin(&self, keys: &[Bytes]) -> Result<Guard, Refusal> {
        self.begin_with(keys, Hold::Yes).await
    }

    /// The same for a command that waits for others to write: its keys are brought over but not held.
    pub async fn begin_blocking(&self, keys: &[Bytes]) -> Result<Guard, Refusal> {
        self.begin_with(keys, Hold::No).await
    }

    async fn begin_with(&self, keys: &[Bytes], hold: Hold) -> Result<Guard, Refusal> {
        let mut plans;
        loop {
            plans = keys.iter().map(|key| self.plan(key)).collect::<Vec<_>>();
            if !plans.iter().any(|plan| self.is_gated(plan)) {
                break;
            }
            self.opened().await;
        }
        let tickets = plans.iter().map(|plan| self.0.sessions.enter(plan.route_hash)).collect();
        let mut dual: Vec<(Bytes, bool)> = keys
            .iter()
            .zip(&plans)
            .filter(|(_, plan)| plan.follower.is_some())
            .map(|(key, plan)| (key.clone(), plan.is_first_touch()))
            .collect();
        // In one order for everybody, so that two commands never wait for each other.
        dual.sort();
        dual.dedup();
        let mut guard = Guard { engine: self.clone(), tickets, plans, resync: Vec::new(), shared: Vec::new(), held: Vec::new(), over: false };
        for (key, first_touch) in dual {
            if !first_touch || hold == Hold::No {
                if first_touch && let Err(refusal) = self.0.peers.touch(key.clone()).await {
                    guard.finish(Outcome::Refused).await;
                    return Err(refusal);
                }
                if first_touch { guard.shared.push(key) } else { guard.resync.push(key) }
                continue;
            }
            let (granted, wait) = oneshot::channel();
            self.0.peers.send(self.0.peers.lane_of(&key), Message::Hold { key: key.clone(), granted });
            match wait.await.unwrap_or(Err(Refusal::UnknownOutcome)) {
                Ok(()) => guard.held.push(key),
                Err(refusal) => {
                    guard.finish(Outcome::Refused).await;
                    return Err(refusal);
                }
            }
        }
        Ok(guard)
    }

    /// Has a diverged key in the journal, on disk.
    async fn journaled(&self, key: Bytes) {
        let (written, wait) = oneshot::channel();
        self.0.journal.add(key, move || {
            let _ = written.send(());
        });
        // The journal's thread ends with the program only.
        let _ = wait.await;
    }

    /// Waits until the program is told to end. One caller.
    pub async fn stopped(&self) {
        self.0.stop.notified().await;
    }

    /// Takes what other workers, jobs and the control thread say, until all of them are gone.
    pub async fn run_inbox(&self, mut inbox: mpsc::UnboundedReceiver<Message>) {
        while let Some(message) = inbox.recv().await {
            if matches!(message, Message::Stop) {
                self.0.stopping.set(true);
                self.0.stop.notify_one();
                self.0.opened.notify_waiters();
                self.0.closing.notify_waiters();
            } else {
                self.0.clone().hear(message);
            }
        }
    }

    /// Repairs and drains; the worker calls it every 50 ms, and after each turn while something drains.
    pub fn tick(&self) {
        self.0.repair();
        self.0.look_at_drains();
    }

    /// What this worker is doing.
    pub fn load(&self) -> Load {
        let (exceptional_keys, diverged_keys) = self.0.lane.borrow().sizes();
        Load {
            in_flight: self.0.sessions.in_flight() + self.0.lanes.in_flight(),
            requests: self.0.sessions.entered(),
            lane_operations: self.0.lanes.entered(),
            exceptional_keys: exceptional_keys as u64,
            diverged_keys: diverged_keys as u64,
        }
    }
}

fn plan_of(table: &Table, key: &[u8]) -> Plan {
    let (route, route_hash) = table.route_of(key);
    Plan {
        route_hash,
        phase: route.phase,
        leader: route.phase.leader(),
        follower: route.phase.follower(),
        dual: route.dual.clone(),
        line_hash: route.hash,
    }
}

/// What a worker is doing: see [`Engine::load`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests, commands in lanes and copies that are not answered yet.
    pub in_flight: u64,
    /// Requests sent to a store or a lane since the start.
    pub requests: u64,
    /// Commands and copies that went through this worker's lane since the start.
    pub lane_operations: u64,
    /// Keys of which the lane has to remember something.
    pub exceptional_keys: u64,
    pub diverged_keys: u64,
}

/// Whether keys in first-touch mode are kept from others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    Yes,
    No,
}

/// A command that runs outside of the lanes; see [`Engine::begin`].
pub struct Guard {
    engine: Engine,
    tickets: Vec<Ticket>,
    /// The plan of each key, in the order given to [`Engine::begin`].
    pub plans: Vec<Plan>,
    /// Copied in their lanes' time.
    resync: Vec<Bytes>,
    /// First-touch keys that others may use meanwhile: copied before the client hears of it.
    shared: Vec<Bytes>,
    held: Vec<Bytes>,
    over: bool,
}

impl Guard {
    /// Ends the command. `Done` and `Doubt`: its keys may have changed and are copied; first-touch keys before this
    /// returns, the others in their lanes' time.
    pub async fn finish(mut self, outcome: Outcome) {
        let shared = std::mem::take(&mut self.shared);
        for wait in self.end(outcome) {
            // A holder's keys are copied or in the journal when this comes.
            let _ = wait.await;
        }
        if outcome != Outcome::Refused {
            for key in shared {
                if self.engine.0.peers.resync(key.clone()).await.is_err() {
                    self.engine.journaled(key).await;
                }
            }
        }
        self.leave();
    }

    fn end(&mut self, outcome: Outcome) -> Vec<oneshot::Receiver<Result<(), Refusal>>> {
        self.over = true;
        let peers = &self.engine.0.peers;
        if outcome != Outcome::Refused {
            for key in self.resync.drain(..).chain(self.shared.drain(..)) {
                peers.send(peers.lane_of(&key), Message::Resync { key, done: None });
            }
        }
        let release = |key: Bytes| {
            let (done, ended) = oneshot::channel();
            peers.send(peers.lane_of(&key), Message::Release { key, outcome, done });
            ended
        };
        self.held.drain(..).map(release).collect()
    }

    fn leave(&mut self) {
        for ticket in self.tickets.drain(..) {
            self.engine.0.sessions.leave(ticket);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.over {
            drop(self.end(Outcome::Doubt));
        }
        self.leave();
    }
}

impl Inner {
    async fn call(&self, target: &Target, request: &Bytes, replies: u32, protocol: Protocol) -> Result<Bytes, LinkError> {
        let (sender, receiver) = oneshot::channel();
        let (waiter, protocol) = (EngineWaiter::Once(sender), Some(protocol));
        match target {
            Target::Standalone { db } => self.stores.standalone_batch(*db, request, replies, protocol, waiter),
            Target::Slot(slot) => self.stores.cluster_batch(*slot, request, replies, protocol, waiter),
            Target::Node(address) => self.stores.node(address, request, protocol, waiter),
        }
        receiver.await.unwrap_or(Err(LinkError::Lost))
    }

    fn side_call(self: &Rc<Self>, side: Side, key: &[u8], request: &Bytes, protocol: Option<Protocol>, waiter: EngineWaiter) {
        match side {
            Side::Standalone => self.stores.standalone(self.db, request, protocol, waiter),
            Side::Cluster => self.stores.cluster(slot::of(key), request, protocol, waiter),
        }
    }

    /// Sends a request of a dual route to the lane of its key, here or on another worker.
    fn to_lane(
        self: &Rc<Self>,
        request: Request,
        spec: &'static CommandSpec,
        first: usize,
        protocol: Protocol,
        to: ReplyTo,
        ticket: Ticket,
    ) {
        let key = Bytes::copy_from_slice(request.arg(first));
        let owner = self.peers.lane_of(&key);
        if owner == self.worker {
            self.sessions.leave(ticket);
            return self.arrive(request, spec, key, protocol, LaneReply::Local(to));
        }
        let id = self.remote.borrow_mut().insert((to, ticket));
        let op = RemoteOp { request, spec, key, protocol, worker: self.worker, id };
        self.peers.send(owner, Message::Lane(Box::new(op)));
    }

    /// A command arrives in the lane of its key.
    fn arrive(
        self: &Rc<Self>,
        request: Request,
        spec: &'static CommandSpec,
        key: Bytes,
        protocol: Protocol,
        to: LaneReply,
    ) {
        let outline = effect::outline(spec, &request);
        self.enter_lane(key, Some((request, outline.form, protocol)), outline.work, to);
    }

    fn enter_lane(self: &Rc<Self>, key: Bytes, command: Option<(Request, Form, Protocol)>, work: Work, to: LaneReply) {
        let plan = plan_of(&self.table.borrow(), &key);
        let mode = plan.mode();
        let generation = plan.dual.as_ref().map_or(0, |dual| dual.generation());
        let ticket = self.lanes.enter(plan.route_hash);
        let (request, form, protocol) = match command {
            Some((request, form, protocol)) => (Some(request), form, protocol),
            None => (None, Form::Same, Protocol::Resp2),
        };
        let op = self.ops.borrow_mut().insert(LaneOp {
            key: key.clone(),
            request,
            form,
            protocol,
            follow: false,
            overwrite: work == Work::Overwrite,
            leader: plan.leader,
            generation,
            holds_reply: false,
            led: None,
            awaits_expiry: false,
            expiry: None,
            to,
            ticket,
            in_lane: false,
        });
        let mut orders = Vec::new();
        let in_lane = self.lane.borrow_mut().arrive(&key, op, work, mode, generation, &mut orders);
        if in_lane {
            let entry = &mut self.ops.borrow_mut()[op];
            (entry.in_lane, entry.holds_reply) = (true, true);
        }
        self.carry_out(orders);
    }

    /// Does what the lane ordered, in its order.
    fn carry_out(self: &Rc<Self>, orders: Vec<Order<usize>>) {
        for order in orders {
            match order {
                Order::Lead { op, follow } => self.lead(op, follow),
                Order::Follow { op } => self.follow(op),
                Order::Dump { key } => self.dump(key),
                Order::Restore { key } => self.restore(key),
                Order::Fetch { key } => self.fetch(key),
                Order::Journal { key } => self.write_journal(key),
                Order::Reply { op } => self.finish(op, Ok(())),
                Order::Unavailable { op } => self.finish(op, Err(Refusal::StoreDown)),
                Order::Granted { op } => self.grant(op),
                Order::Diverged { key } => self.count_divergence(&key, 1),
                Order::Repaired { key } => {
                    self.count_divergence(&key, -1);
                    self.journal.remove(&key);
                }
            }
        }
    }

    fn lead(self: &Rc<Self>, op: usize, follow: bool) {
        let (leader, key, bytes, protocol, expiry) = {
            let mut ops = self.ops.borrow_mut();
            let entry = &mut ops[op];
            entry.follow = follow;
            entry.awaits_expiry = follow && entry.form.asks_expiry();
            let Some(request) = &entry.request else { return };
            (entry.leader, entry.key.clone(), request.bytes().clone(), entry.protocol, entry.awaits_expiry)
        };
        self.side_call(leader, &key, &bytes, Some(protocol), EngineWaiter::Led { engine: self.clone(), op });
        if expiry {
            let ask = effect::command(&[b"PEXPIRETIME", &key]);
            self.side_call(leader, &key, &ask, None, EngineWaiter::Expiry { engine: self.clone(), op });
        }
    }

    fn led(self: &Rc<Self>, op: usize, outcome: Result<Reply<'_>, LinkError>) {
        let waits = {
            let mut ops = self.ops.borrow_mut();
            let entry = &mut ops[op];
            if !entry.holds_reply {
                let to = std::mem::replace(&mut entry.to, LaneReply::Nobody);
                let answer = match &outcome {
                    Ok(reply) => Ok(Bytes::copy_from_slice(reply.bytes())),
                    Err(error) => Err(error.clone()),
                };
                entry.led = Some(answer);
                drop(ops);
                self.answer(to, outcome.map_err(|error| refusal_of(&error)));
                self.ops.borrow()[op].awaits_expiry
            } else {
                entry.led = Some(outcome.map(|reply| reply.to_bytes()));
                entry.awaits_expiry
            }
        };
        // With an expiry to come the lane hears of the answer when both are there; the link keeps the order.
        if !waits {
            self.tell_led(op);
        }
    }

    fn expiry(self: &Rc<Self>, op: usize, outcome: Result<Reply<'_>, LinkError>) {
        let expiry = outcome.ok().and_then(|reply| reply::integer(reply.bytes()));
        if let Some(entry) = self.ops.borrow_mut().get_mut(op) {
            entry.expiry = expiry;
            if expiry.is_none() && matches!(entry.led, Some(Ok(_))) {
                // The write is known and its time is not: only a copy can tell.
                entry.led = Some(Err(LinkError::Lost));
            }
        }
        self.tell_led(op);
    }

    fn tell_led(self: &Rc<Self>, op: usize) {
        let (key, follow, outcome, generation, in_lane) = {
            let ops = self.ops.borrow();
            let entry = &ops[op];
            let outcome = match &entry.led {
                Some(Ok(reply)) if reply::is_error(reply) => Outcome::Refused,
                Some(Ok(reply)) if entry.follow && self.effect_of(entry, reply).is_none() => Outcome::Refused,
                Some(Ok(_)) => Outcome::Done,
                Some(Err(error)) if !error.may_have_run() => Outcome::Refused,
                _ => Outcome::Doubt,
            };
            (entry.key.clone(), entry.follow, outcome, entry.generation, entry.in_lane)
        };
        let is_read = !in_lane && !follow && outcome != Outcome::Doubt;
        let mut orders = Vec::new();
        if !is_read {
            self.lane.borrow_mut().led(&key, op, follow, outcome, generation, &mut orders);
        }
        let goes_on = in_lane || orders.iter().any(|order| matches!(order, Order::Follow { op: following } if *following == op));
        self.carry_out(orders);
        if !goes_on {
            self.forget(op);
        }
    }

    fn effect_of(&self, entry: &LaneOp, reply: &[u8]) -> Option<Bytes> {
        let request = entry.request.as_ref()?;
        effect::effect(request, entry.form, &entry.key, reply, entry.expiry)
    }

    fn follow(self: &Rc<Self>, op: usize) {
        let (side, key, bytes, protocol) = {
            let ops = self.ops.borrow();
            let entry = &ops[op];
            let reply = match &entry.led {
                Some(Ok(reply)) => reply.clone(),
                _ => Bytes::new(),
            };
            let Some(bytes) = self.effect_of(entry, &reply) else { return };
            (entry.leader.other(), entry.key.clone(), bytes, entry.protocol)
        };
        let waiter = EngineWaiter::Followed { engine: self.clone(), op };
        self.side_call(side, &key, &bytes, Some(protocol), waiter);
    }

    fn followed(self: &Rc<Self>, op: usize, outcome: Result<Reply<'_>, LinkError>) {
        let (key, outcome, whole, generation, in_lane) = {
            let ops = self.ops.borrow();
            let entry = &ops[op];
            let same = entry.form == Form::Same;
            let outcome = match (&outcome, &entry.led) {
                (Ok(reply), _) if reply::is_error(reply.bytes()) => Outcome::Refused,
                (Ok(reply), Some(Ok(led))) if same && !effect::agrees(led, reply.bytes()) => Outcome::Doubt,
                (Ok(_), _) => Outcome::Done,
                (Err(_), _) => Outcome::Doubt,
            };
            (entry.key.clone(), outcome, entry.overwrite, entry.generation, entry.in_lane)
        };
        let mut orders = Vec::new();
        self.lane.borrow_mut().followed(&key, op, outcome, whole, generation, &mut orders);
        self.carry_out(orders);
        if !in_lane {
            self.forget(op);
        }
    }

    fn dump(self: &Rc<Self>, key: Bytes) {
        let Some((plan, ticket)) = self.count_copy(&key) else { return };
        let generation = plan.dual.as_ref().map_or(0, |dual| dual.generation());
        let engine = self.clone();
        // Both are appended now, behind whatever was sent before; only the answers are awaited.
        let (payload, expiry) = self.ask_dump(plan.leader, &key);
        tokio::task::spawn_local(async move {
            let outcome = engine.keep_dump(&key, payload, expiry).await;
            let mut orders = Vec::new();
            engine.lane.borrow_mut().dumped(&key, outcome, generation, &mut orders);
            engine.carry_out(orders);
            engine.lanes.leave(ticket);
        });
    }

    fn ask_dump(self: &Rc<Self>, side: Side, key: &[u8]) -> (Answer, Answer) {
        let ask = |command: &[u8]| {
            let (sender, receiver) = oneshot::channel();
            self.side_call(side, key, &effect::command(&[command, key]), None, EngineWaiter::Once(sender));
            receiver
        };
        (ask(b"DUMP"), ask(b"PEXPIRETIME"))
    }

    async fn keep_dump(&self, key: &Bytes, payload: Answer, expiry: Answer) -> Outcome {
        let (Ok(Ok(payload)), Ok(Ok(expiry))) = (payload.await, expiry.await) else { return Outcome::Doubt };
        if reply::is_error(&payload) {
            tracing::warn!(reply = %String::from_utf8_lossy(&payload[..payload.len().min(120)]), "the leader refused DUMP; the key stays diverged");
            return Outcome::Doubt;
        }
        let dump = match (reply::is_null(&payload), reply::bulk(&payload), reply::integer(&expiry)) {
            (true, ..) => None,
            // It expired between the two: absent is right.
            (_, _, Some(-2)) => None,
            (_, Some(body), Some(at)) => Some((payload.slice_ref(body), at)),
            _ => return Outcome::Doubt,
        };
        self.dumps.borrow_mut().insert(key.clone(), dump);
        Outcome::Done
    }

    fn restore(self: &Rc<Self>, key: Bytes) {
        let Some((plan, ticket)) = self.count_copy(&key) else { return };
        let generation = plan.dual.as_ref().map_or(0, |dual| dual.generation());
        let command = match self.dumps.borrow_mut().remove(&key).flatten() {
            Some((payload, expiry)) => restore_command(&key, &payload, expiry, Replace::Yes),
            None => effect::command(&[b"DEL", &key]),
        };
        let (sender, receiver) = oneshot::channel();
        self.side_call(plan.leader.other(), &key, &command, None, EngineWaiter::Once(sender));
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            let outcome = match receiver.await {
                Ok(Ok(reply)) if !reply::is_error(&reply) => Outcome::Done,
                Ok(Ok(reply)) => {
                    tracing::warn!(reply = %String::from_utf8_lossy(&reply), side = %plan.leader.other(), "the follower refused a copy; the key stays diverged");
                    Outcome::Refused
                }
                _ => Outcome::Doubt,
            };
            let mut orders = Vec::new();
            engine.lane.borrow_mut().restored(&key, outcome, generation, &mut orders);
            engine.carry_out(orders);
            engine.lanes.leave(ticket);
        });
    }

    /// First touch: DUMP on the follower, RESTORE without REPLACE on the leader.
    fn fetch(self: &Rc<Self>, key: Bytes) {
        let Some((plan, ticket)) = self.count_copy(&key) else { return };
        let generation = plan.dual.as_ref().map_or(0, |dual| dual.generation());
        let (payload, expiry) = self.ask_dump(plan.leader.other(), &key);
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            let fetched = engine.bring_over(&key, plan.leader, payload, expiry).await;
            let mut orders = Vec::new();
            engine.lane.borrow_mut().fetched(&key, fetched, generation, &mut orders);
            engine.carry_out(orders);
            engine.lanes.leave(ticket);
        });
    }

    async fn bring_over(self: &Rc<Self>, key: &Bytes, leader: Side, payload: Answer, expiry: Answer) -> Fetched {
        if self.keep_dump(key, payload, expiry).await != Outcome::Done {
            return Fetched::Failed;
        }
        let Some((payload, expiry)) = self.dumps.borrow_mut().remove(key).flatten() else { return Fetched::Unproven };
        let command = restore_command(key, &payload, expiry, Replace::No);
        let (sender, receiver) = oneshot::channel();
        self.side_call(leader, key, &command, None, EngineWaiter::Once(sender));
        match receiver.await {
            Ok(Ok(reply)) if !reply::is_error(&reply) => Fetched::Brought,
            Ok(Ok(reply)) if resp::reply::error_word(&reply) == b"BUSYKEY" => Fetched::Unproven,
            Ok(Ok(reply)) => {
                tracing::warn!(reply = %String::from_utf8_lossy(&reply), "the leader refused a key at its first touch");
                Fetched::Failed
            }
            _ => Fetched::Failed,
        }
    }

    /// Copies count in the lanes' gate. `None`: the route lost its follower, so there is nothing to copy to.
    fn count_copy(self: &Rc<Self>, key: &Bytes) -> Option<(Plan, Ticket)> {
        let plan = plan_of(&self.table.borrow(), key);
        if plan.follower.is_none() {
            self.lane.borrow_mut().abandon(key);
            return None;
        }
        let ticket = self.lanes.enter(plan.route_hash);
        Some((plan, ticket))
    }

    fn write_journal(self: &Rc<Self>, key: Bytes) {
        let (peers, worker, written) = (self.peers.clone(), self.worker, key.clone());
        self.journal.add(key, move || peers.send(worker, Message::Journaled { key: written }));
    }

    /// The lane is done with an operation.
    fn finish(self: &Rc<Self>, op: usize, outcome: Result<(), Refusal>) {
        let Some(mut entry) = self.ops.borrow_mut().try_remove(op) else { return };
        self.lanes.leave(entry.ticket);
        let to = std::mem::replace(&mut entry.to, LaneReply::Nobody);
        match to {
            LaneReply::Done(done) | LaneReply::Granted(Some(done), _) | LaneReply::Granted(None, Some(done)) => {
                let _ = done.send(outcome);
            }
            LaneReply::Granted(None, None) | LaneReply::Nobody => {}
            to => match (outcome, entry.led) {
                (Ok(()), Some(Ok(reply))) => self.answer(to, Ok(Reply::Whole(reply))),
                (Ok(()), Some(Err(error))) => self.answer(to, Err(refusal_of(&error))),
                (Ok(()), None) => self.answer(to, Err(Refusal::UnknownOutcome)),
                (Err(refusal), _) => self.answer(to, Err(refusal)),
            },
        }
    }

    fn forget(&self, op: usize) {
        if let Some(entry) = self.ops.borrow_mut().try_remove(op) {
            self.lanes.leave(entry.ticket);
        }
    }

    fn answer(&self, to: LaneReply, outcome: Result<Reply<'_>, Refusal>) {
        match to {
            LaneReply::Local(to) => to.port.deliver(to.seq, outcome),
            LaneReply::Remote { worker, id } => {
                let outcome = outcome.map(|reply| reply.to_bytes());
                self.peers.send(worker, Message::Reply { id, outcome });
            }
            LaneReply::Done(_) | LaneReply::Granted(..) | LaneReply::Nobody => {}
        }
    }

    fn grant(&self, op: usize) {
        if let Some(LaneOp { to: LaneReply::Granted(granted, _), .. }) = self.ops.borrow_mut().get_mut(op)
            && let Some(granted) = granted.take()
        {
            // A holder that went away releases by its guard.
            let _ = granted.send(Ok(()));
        }
    }

    fn hear(self: Rc<Self>, message: Message) {
        match message {
            Message::Lane(op) => {
                let RemoteOp { request, spec, key, protocol, worker, id } = *op;
                self.arrive(request, spec, key, protocol, LaneReply::Remote { worker, id });
            }
            Message::Reply { id, outcome } => {
                let (to, ticket) = self.remote.borrow_mut().remove(id);
                self.sessions.leave(ticket);
                to.port.deliver(to.seq, outcome.map(Reply::Whole));
            }
            Message::Resync { key, done } => self.resync(key, done),
            Message::Touch { key, done } => self.enter_lane(key, None, Work::Touch, LaneReply::Done(done)),
            Message::Hold { key, granted } => {
                self.enter_lane(key, None, Work::Hold, LaneReply::Granted(Some(granted), None));
            }
            Message::Release { key, outcome, done } => self.release(key, outcome, done),
            Message::Journaled { key } => {
                let generation = self.generation(&key);
                let mut orders = Vec::new();
                self.lane.borrow_mut().journaled(&key, generation, &mut orders);
                self.carry_out(orders);
            }
            Message::Recover { key } => {
                let mut orders = Vec::new();
                self.lane.borrow_mut().recover(&key, &mut orders);
                self.carry_out(orders);
            }
            Message::Close { stage, routes, all, drained } => {
                let gate = self.gate(stage);
                gate.close(routes.into_iter().collect(), all);
                self.closing.notify_waiters();
                self.drains.borrow_mut().push((stage, drained));
                self.look_at_drains();
            }
            Message::Open { table } => self.open(table),
            Message::Stop => {}
        }
    }

    fn resync(self: &Rc<Self>, key: Bytes, done: Option<oneshot::Sender<Result<(), Refusal>>>) {
        let plan = plan_of(&self.table.borrow(), &key);
        if plan.follower.is_none() {
            if let Some(done) = done {
                let _ = done.send(Ok(()));
            }
            return;
        }
        let to = done.map_or(LaneReply::Nobody, LaneReply::Done);
        let op = self.ops.borrow_mut().insert(LaneOp {
            key: key.clone(),
            request: None,
            form: Form::Same,
            protocol: Protocol::Resp2,
            follow: false,
            overwrite: false,
            leader: plan.leader,
            generation: 0,
            ticket: self.lanes.enter(plan.route_hash),
            holds_reply: true,
            led: None,
            awaits_expiry: false,
            expiry: None,
            to,
            in_lane: true,
        });
        let mut orders = Vec::new();
        let generation = plan.dual.as_ref().map_or(0, |dual| dual.generation());
        self.lane.borrow_mut().resync(&key, op, plan.mode(), generation, &mut orders);
        self.carry_out(orders);
    }

    fn release(self: &Rc<Self>, key: Bytes, outcome: Outcome, done: oneshot::Sender<Result<(), Refusal>>) {
        let holder = self.lane.borrow().holder(&key);
        if holder.is_none() {
            // Granted after the route had left first-touch mode, where nothing is held.
            if outcome == Outcome::Refused {
                let _ = done.send(Ok(()));
                return;
            }
            return self.resync(key, Some(done));
        }
        if let Some(op) = holder
            && let Some(LaneOp { to: LaneReply::Granted(_, waits), .. }) = self.ops.borrow_mut().get_mut(op)
        {
            *waits = Some(done);
        }
        let generation = self.generation(&key);
        let mut orders = Vec::new();
        self.lane.borrow_mut().release(&key, outcome, generation, &mut orders);
        self.carry_out(orders);
    }

    fn generation(&self, key: &[u8]) -> u32 {
        plan_of(&self.table.borrow(), key).dual.map_or(0, |dual| dual.generation())
    }

    fn gate(&self, stage: Stage) -> &Gate {
        match stage {
            Stage::Sessions => &self.sessions,
            Stage::Lanes => &self.lanes,
        }
    }

    fn look_at_drains(&self) {
        let mut drains = self.drains.borrow_mut();
        let mut index = 0;
        while index < drains.len() {
            if self.gate(drains[index].0).is_drained() {
                let _ = drains.swap_remove(index).1.send(());
            } else {
                index += 1;
            }
        }
    }

    fn open(self: &Rc<Self>, table: Arc<Table>) {
        self.drains.borrow_mut().clear();
        *self.table.borrow_mut() = table.clone();
        let mut tables = self.tables.borrow_mut();
        if tables.back().is_some_and(|newest| newest.version() != table.version()) {
            tables.push_back(table.clone());
        }
        if tables.len() > TABLES_MAX {
            tables.pop_front();
        }
        drop(tables);
        // A route without a follower has nothing that could diverge.
        let gone = self.lane.borrow_mut().forget(|key| plan_of(&table, key).follower.is_none());
        if gone > 0 {
            tracing::info!(keys = gone, "routes left their dual phase; what was diverged of them is forgotten");
        }
        self.sessions.open();
        self.lanes.open();
        self.opened.notify_waiters();
    }

    fn count_divergence(&self, key: &[u8], by: i64) {
        let Some(dual) = plan_of(&self.table.borrow(), key).dual else { return };
        dual.add_divergence(by);
        if by > 0 && self.lane.borrow().sizes().1 > DIVERGED_KEYS_MAX {
            dual.set_in_doubt(true);
            tracing::error!("more diverged keys than are remembered one by one; the whole route is in doubt until a backfill has gone through it");
        }
    }

    /// Begins repairs where both stores can be reached.
    fn repair(self: &Rc<Self>) {
        if self.lane.borrow().sizes().1 == 0 || !(self.stores.is_up(crate::store::StoreSide::Standalone) && self.stores.is_up(crate::store::StoreSide::Cluster)) {
            return;
        }
        let table = self.table.borrow().clone();
        let mut orders = Vec::new();
        let mode = |key: &Bytes| {
            let plan = plan_of(&table, key);
            plan.follower.map(|_| plan.mode())
        };
        self.lane.borrow_mut().repair(REPAIRS_PER_TICK, mode, &mut orders);
        self.carry_out(orders);
    }
}

/// An answer that is still to come.
type Answer = oneshot::Receiver<Result<Bytes, LinkError>>;

/// Whether RESTORE may overwrite.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Replace {
    Yes,
    No,
}

fn restore_command(key: &[u8], payload: &[u8], expiry: i64, replace: Replace) -> Bytes {
    let mut digits = itoa::Buffer::new();
    let at = digits.format(expiry.max(0)).as_bytes();
    let mut args: Vec<&[u8]> = vec![b"RESTORE", key, at, payload, b"ABSTTL"];
    if replace == Replace::Yes {
        args.push(b"REPLACE");
    }
    let mut out = BytesMut::with_capacity(payload.len() + key.len() + 96);
    resp::write::command(&mut out, &args);
    out.freeze()
}
