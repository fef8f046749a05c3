//! The front door of the dual-write engine, one a worker: plan, gate, lane, stores.
//!
//! A request of a route without a follower goes straight to a link of this worker. One of a dual route goes to the lane of
//! its key, on the worker that `lane_of` names, and everything the lane orders is carried out there. What must not run
//! inside a lane (a transaction, a script, a command with keys in several lanes) runs on the leader between
//! [`Engine::begin`] and [`Guard::finish`](crate::dual::Guard::finish), which resync the keys afterwards.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use slab::Slab;
use tokio::sync::{mpsc, oneshot};

use crate::command::{self, CommandSpec};
use crate::dual::audience::Audience;
use crate::dual::channels::{Channels, Subscribing, answer_after_turn};
use crate::dual::copy::Dumped;
use crate::dual::copying::Copying;
use crate::dual::desk::Desk;
use crate::dual::effect::Question;
use crate::dual::gate::Ticket;
use crate::dual::install::{self, Pause, Stage};
use crate::dual::journal::Journal;
use crate::dual::lane::{Lane, Mode, Order, Outcome, Work};
use crate::dual::message::{Message, Peers, Way};
use crate::dual::operation::{LaneOp, LaneReply, Standing};
use crate::dual::passing::{Asker, Passing};
use crate::dual::probe::{Probes, Timing};
use crate::dual::recent::Recent;
use crate::dual::shadow::Shadowing;
use crate::dual::slow_log::SlowLog;
use crate::dual::subscriptions::SubscriptionLoad;
use crate::dual::tally::{Tally, Unanswered, Wrote};
use crate::dual::traffic::{Traffic, TrafficBook};
use crate::resp::refusal::Refusal;
use crate::resp::reply::Protocol;
use crate::resp::request::Request;
use crate::routing::{Key, Plan, Side, Table};
use crate::seldom::Seldom;
use crate::slot;
use crate::store::{LinkError, Reply, StoreSide, Stores, Waiter};

/// Keys that one lane remembers as whole on both stores: 16 bytes each, so 16 MiB a worker and an unsynced route.
const PRESENT_KEYS_MAX: usize = 1 << 20;
/// Diverged keys that one lane remembers one by one; above it the whole route is in doubt.
const DIVERGED_KEYS_MAX: usize = 50_000;
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

/// Who asks: the database that its keys are in, what the reply is wanted in, and where it goes.
pub struct Caller {
    pub db: u32,
    pub protocol: Protocol,
    pub to: ReplyTo,
}

/// A destination for [`Engine::call`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Standalone {
        db: u32,
    },
    Slot(u16),
    Node(Arc<str>),
    /// The proxy that holds the lease.
    Peer {
        db: u32,
    },
}

impl Target {
    /// The store that it belongs to; `None`: another proxy.
    fn side(&self) -> Option<Side> {
        match self {
            Self::Standalone { .. } => Some(Side::Standalone),
            Self::Slot(_) | Self::Node(_) => Some(Side::Cluster),
            Self::Peer { .. } => None,
        }
    }
}

/// Whoever waits for a store's answer.
pub enum EngineWaiter {
    /// A request on a route without a follower.
    Direct {
        engine: Rc<Inner>,
        to: ReplyTo,
        ticket: Ticket,
    },
    /// The same, where the reply names keys as the cluster calls them. In a box: all waiters are as large as the largest.
    Renamed {
        engine: Rc<Inner>,
        to: ReplyTo,
        asked: Box<(Ticket, u32, Request, &'static CommandSpec)>,
    },
    /// A message, whose receivers are counted.
    Published {
        engine: Rc<Inner>,
        to: ReplyTo,
        asked: Box<(Ticket, Request, Target)>,
    },
    /// A command that goes the short way through its lane, and the same on its way to the follower.
    Passed {
        engine: Rc<Inner>,
        asker: Asker,
        passing: Passing,
    },
    Repeated {
        engine: Rc<Inner>,
        passing: Passing,
    },
    /// Somebody on this worker awaits the reply.
    Once {
        sender: oneshot::Sender<Result<Bytes, LinkError>>,
        may_be_refused: bool,
    },
    /// A PING that is timed.
    Probe(Rc<Timing>),
    /// A step of a lane operation.
    Led {
        engine: Rc<Inner>,
        op: usize,
    },
    Asked {
        engine: Rc<Inner>,
        op: usize,
        question: Question,
    },
    Followed {
        engine: Rc<Inner>,
        op: usize,
        /// The lane remembers its key, so a client may wait for it.
        is_awaited: bool,
    },
    Checked {
        engine: Rc<Inner>,
        op: usize,
        is_awaited: bool,
    },
    /// A read that was repeated on the follower.
    Shadowed {
        engine: Rc<Inner>,
        op: usize,
    },
}

// It is moved in and out of a link's queue with each request.
const _: () = assert!(size_of::<EngineWaiter>() <= 48);

impl Waiter for EngineWaiter {
    fn complete(self, request: Bytes, outcome: Result<Reply<'_>, LinkError>) {
        if let Err(error) = &outcome {
            self.note_lost(error);
        }
        match self {
            Self::Direct { engine, to, ticket } => {
                engine.pause.sessions.leave(ticket);
                to.port.deliver(to.seq, outcome.map_err(|error| refusal_of(&error)));
            }
            Self::Passed { engine, asker, passing } => engine.passed(request, (asker, passing), outcome),
            Self::Repeated { engine, passing } => engine.repeated(request, passing, outcome),
            Self::Renamed { engine, to, asked } => {
                let (ticket, db, request, spec) = *asked;
                engine.pause.sessions.leave(ticket);
                let own = |reply| engine.own_reply(db, spec, &request, reply);
                let outcome = outcome.map_err(|error| refusal_of(&error)).map(own);
                to.port.deliver(to.seq, outcome);
            }
            Self::Published { engine, to, asked } => {
                let (ticket, request, target) = *asked;
                engine.pause.sessions.leave(ticket);
                let outcome = outcome.map_err(|error| refusal_of(&error)).map(|reply| {
                    match engine.heard(&target, &request, reply.bytes()) {
                        Some(counted) => Reply::Whole(counted),
                        None => reply,
                    }
                });
                to.port.deliver(to.seq, outcome);
            }
            Self::Once { sender, .. } => {
                // Nobody waits any more when the caller was cancelled; the answer is then of no use to anyone.
                let _ = sender.send(outcome.map(|reply| reply.to_bytes()));
            }
            Self::Probe(timing) => timing.answered(outcome.map(drop)),
            Self::Led { engine, op } => engine.led(op, outcome),
            Self::Asked { engine, op, question } => engine.asked(op, question, outcome),
            Self::Followed { engine, op, .. } => engine.followed(op, outcome),
            Self::Checked { engine, op, .. } => engine.checked(op, outcome),
            Self::Shadowed { engine, op } => engine.shadowed(op, outcome),
        }
    }

    // What has begun is brought to its end: only that keeps the stores equal.
    fn may_be_refused(&self) -> bool {
        match self {
            Self::Once { may_be_refused, .. } => *may_be_refused,
            Self::Direct { .. } | Self::Renamed { .. } | Self::Published { .. } => true,
            Self::Passed { .. } | Self::Led { .. } => true,
            _ => false,
        }
    }

    fn is_urgent(&self) -> bool {
        match self {
            Self::Repeated { .. } | Self::Shadowed { .. } => false,
            Self::Followed { is_awaited, .. } | Self::Checked { is_awaited, .. } => *is_awaited,
            _ => true,
        }
    }
}

impl EngineWaiter {
    /// Notes a request that may have run, or may run yet; whoever awaits one notes it himself.
    #[cold]
    fn note_lost(&self, error: &LinkError) {
        let (Self::Direct { engine, .. }
        | Self::Renamed { engine, .. }
        | Self::Published { engine, .. }
        | Self::Passed { engine, .. }
        | Self::Repeated { engine, .. }
        | Self::Led { engine, .. }
        | Self::Asked { engine, .. }
        | Self::Followed { engine, .. }
        | Self::Checked { engine, .. }
        | Self::Shadowed { engine, .. }) = self
        else {
            return;
        };
        if error.may_have_run() {
            engine.tally.note_lost();
        }
    }
}

/// What the application is told when a store did not answer.
pub fn refusal_of(error: &LinkError) -> Refusal {
    match error {
        LinkError::Down(_) | LinkError::Redirects => Refusal::StoreDown,
        LinkError::Overflow | LinkError::Overloaded => Refusal::Overloaded,
        // Client libraries know the word, and wait.
        LinkError::Loading => Refusal::Verbatim("LOADING Redis is loading the dataset in memory".into()),
        LinkError::Lost | LinkError::TimedOut => Refusal::UnknownOutcome,
    }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Engine(pub(super) Rc<Inner>);

/// A request about one key, ready for its store.
pub(super) struct Addressed {
    pub(super) to: Target,
    pub(super) request: Bytes,
}

/// What all clones of an engine share.
pub struct Inner {
    pub(super) worker: usize,
    pub(super) table: RefCell<Arc<Table>>,
    /// The newest is last; for scans that began under an older one.
    pub(super) tables: RefCell<VecDeque<Arc<Table>>>,
    pub(super) stores: Stores<EngineWaiter>,
    pub(super) db: u32,
    pub(super) pause: Pause<oneshot::Sender<()>, Message>,
    pub(super) lane: RefCell<Lane<usize>>,
    pub(super) ops: RefCell<Slab<LaneOp>>,
    /// A list for the lane's next orders, kept so that an operation allocates none.
    pub(super) spare: Cell<Vec<Order<usize>>>,
    /// What is known of each key whose copy is in flight.
    pub(super) dumps: RefCell<HashMap<Key, Dumped>>,
    /// Keys of jobs that are not copied the plain way; no more than the jobs' own bounds of keys in flight.
    pub(super) ways: RefCell<HashMap<Key, Way>>,
    pub(super) copying: Arc<Copying>,
    pub(super) tally: Rc<Tally>,
    pub(super) recent: Arc<Recent>,
    pub(super) shadowing: Arc<Shadowing>,
    pub(super) shadow_told: Seldom,
    pub(super) remote: RefCell<Slab<(ReplyTo, Ticket)>>,
    pub(super) peers: Peers,
    pub(super) channels: Channels,
    pub(super) journal: Arc<Journal>,
    pub(super) traffic: Traffic,
    pub(super) probes: Probes,
    slow_log: SlowLog,
    /// About copies that a store refuses.
    pub(super) complaints: Seldom,
    /// Told of requests that wait for the routes that are closed.
    asked_for: RefCell<Option<Arc<tokio::sync::Notify>>>,
    pub(super) desk: Arc<Desk>,
    /// Told when another proxy holds the lease, or this one.
    pub(super) leased: tokio::sync::Notify,
    pub(super) opened: tokio::sync::Notify,
    pub(super) closing: tokio::sync::Notify,
    pub(super) stopping: Cell<bool>,
    pub(super) stop: tokio::sync::Notify,
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
    pub copying: Arc<Copying>,
    pub recent: Arc<Recent>,
    pub shadowing: Arc<Shadowing>,
    pub traffic: Arc<TrafficBook>,
    /// Whether the log of slow commands names keys.
    pub slow_keys: Arc<AtomicBool>,
    /// Shared by all workers, as is the audience.
    pub subscribing: Arc<Subscribing>,
    pub audience: Arc<Audience>,
    pub desk: Arc<Desk>,
}

impl Engine {
    /// The engine of one worker.
    pub fn new(parts: EngineParts) -> Self {
        let channels = Channels::new(parts.table.pubsub().leader(), parts.subscribing, parts.audience);
        Self(Rc::new(Inner {
            worker: parts.worker,
            tables: RefCell::new(VecDeque::from([parts.table.clone()])),
            table: RefCell::new(parts.table),
            stores: parts.stores,
            db: parts.db,
            pause: Pause::default(),
            lane: RefCell::new(Lane::new(PRESENT_KEYS_MAX)),
            ops: RefCell::new(Slab::new()),
            spare: Cell::new(Vec::new()),
            dumps: RefCell::new(HashMap::new()),
            ways: RefCell::new(HashMap::new()),
            copying: parts.copying,
            tally: Rc::default(),
            recent: parts.recent,
            shadowing: parts.shadowing,
            shadow_told: Seldom::default(),
            remote: RefCell::new(Slab::new()),
            peers: parts.peers,
            channels,
            journal: parts.journal,
            traffic: Traffic::new(parts.traffic),
            probes: Probes::default(),
            slow_log: SlowLog::new(parts.slow_keys),
            complaints: Seldom::default(),
            asked_for: RefCell::new(None),
            desk: parts.desk,
            leased: tokio::sync::Notify::new(),
            opened: tokio::sync::Notify::new(),
            closing: tokio::sync::Notify::new(),
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

    /// Whether a database moves; the others are the standalone's.
    #[inline]
    pub fn is_moving(&self, db: u32) -> bool {
        self.0.table.borrow().databases().is_moving(db)
    }

    /// Whether the program is ending, so that sessions close when they have answered.
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.get()
    }

    /// What would happen with a request for this key now.
    pub fn plan(&self, key: &Key) -> Plan {
        self.plan_of(key.db, &key.name)
    }

    /// The same for the name of a key in a database.
    pub fn plan_of(&self, db: u32, name: &[u8]) -> Plan {
        Plan::of(&self.0.table.borrow(), db, name)
    }

    /// Whether new requests under this plan have to wait for a flip.
    pub fn is_gated(&self, plan: &Plan) -> bool {
        let is_gated = self.0.pause.is_gated(plan);
        if is_gated && let Some(asked_for) = &*self.0.asked_for.borrow() {
            asked_for.notify_one();
        }
        is_gated
    }

    /// Whether any route is closed; the cheap question before `is_gated`.
    #[inline]
    pub fn has_closed(&self) -> bool {
        self.0.pause.sessions.has_closed()
    }

    /// Waits until the gate of some route closes, or the program ends; ask `is_gated` then.
    pub async fn closing(&self) {
        self.0.closing.notified().await;
    }

    /// Waits until the gates are open again; plan anew afterwards.
    pub async fn opened(&self) {
        self.0.opened.notified().await;
    }

    /// The slot of a key on the cluster.
    pub fn slot_of(&self, key: &Key) -> u16 {
        self.0.table.borrow().slot_of(key.db, &key.name)
    }

    /// A request from a connection with database `db`, as its target is to get it.
    pub fn request_for(&self, target: &Target, db: u32, spec: &CommandSpec, request: &Request) -> Bytes {
        match target {
            Target::Standalone { .. } | Target::Peer { .. } => request.bytes().clone(),
            Target::Slot(_) | Target::Node(_) => self.0.table.borrow().cluster_request(db, spec, request),
        }
    }

    /// A target's reply as the application is to get it.
    pub fn reply_from(&self, target: &Target, db: u32, spec: &CommandSpec, request: &Request, frame: Bytes) -> Bytes {
        match target {
            Target::Standalone { .. } | Target::Peer { .. } => frame,
            Target::Slot(_) | Target::Node(_) => self.0.own_reply(db, spec, request, Reply::Whole(frame)).to_bytes(),
        }
    }

    /// Whether [`Engine::submit`] takes these keys in one piece: one key, or several that share a plan without a
    /// follower and, on the cluster, a slot.
    pub fn is_simple(&self, request: &Request, places: &[(usize, u32)]) -> bool {
        let table = self.0.table.borrow();
        let Some((&(first, db), rest)) = places.split_first() else { return true };
        if rest.is_empty() || table.all_standalone() {
            return true;
        }
        let leader = Plan::of(&table, db, request.arg(first)).leader;
        let slot = |index, db| table.slot_of(db, request.arg(index));
        let wanted = (leader == Side::Cluster).then(|| slot(first, db));
        places.iter().all(|(index, db)| {
            let plan = Plan::of(&table, *db, request.arg(*index));
            plan.follower.is_none() && plan.leader == leader && wanted.is_none_or(|wanted| slot(*index, *db) == wanted)
        })
    }

    /// Sends a request whose keys `is_simple` accepted, under the plan of its first key; without a key, or from a database
    /// that does not move, to the standalone. The gate is the caller's to look at, before.
    pub fn submit(&self, request: Request, spec: &'static CommandSpec, places: &[(usize, u32)], caller: Caller) {
        let inner = &self.0;
        let Some(&(first, db)) = places.first() else {
            return self.submit_elsewhere(spec, request.into_bytes(), caller);
        };
        let (route_hash, leader, standing, is_renamed) = {
            let table = inner.table.borrow();
            if !table.databases().is_moving(db) {
                drop(table);
                return self.submit_elsewhere(spec, request.into_bytes(), caller);
            }
            let (route, hash) = table.route_of(request.arg(first));
            inner.traffic.count(&table, request.arg(first), hash);
            let standing = route.phase.follower().map(|_| Standing::of(&table, route, hash));
            (hash, route.phase.leader(), standing, table.is_renamed())
        };
        let ticket = inner.pause.sessions.enter(route_hash);
        if let Some(standing) = standing {
            return inner.to_lane((request, spec, first), standing, caller, ticket);
        }
        inner.tally.note(leader, spec);
        if is_renamed && leader == Side::Cluster {
            return inner.submit_renamed(request, spec, places, caller, ticket);
        }
        let Caller { db, protocol, to } = caller;
        let waiter = EngineWaiter::Direct { engine: inner.clone(), to, ticket };
        match leader {
            Side::Standalone => inner.stores.standalone(db, request.into_bytes(), Some(protocol), waiter),
            Side::Cluster => {
                let slot = slot::of(request.arg(first));
                inner.stores.cluster(slot, request.into_bytes(), Some(protocol), waiter);
            }
        }
    }

    /// Sends a request to a database of the standalone, whatever its keys.
    pub fn submit_elsewhere(&self, spec: &CommandSpec, request: Bytes, caller: Caller) {
        self.0.tally.note(Side::Standalone, spec);
        let Caller { db, protocol, to } = caller;
        let ticket = self.0.pause.sessions.enter(0);
        let waiter = EngineWaiter::Direct { engine: self.0.clone(), to, ticket };
        self.0.stores.standalone(db, request, Some(protocol), waiter);
    }

    /// One request, awaited, on a link of this worker. It is not counted in: wrap it into a [`Guard`](crate::dual::Guard) where keys are touched.
    pub async fn call(&self, target: &Target, request: &Bytes, protocol: Protocol) -> Result<Bytes, LinkError> {
        self.0.call(target, request, 1, Wrote::in_request(request), protocol, true).await
    }

    /// MULTI … EXEC as one piece; gives the last of the `replies`. `wrote`: what its commands count for.
    pub async fn call_batch(
        &self,
        target: &Target,
        request: &Bytes,
        replies: u32,
        wrote: Wrote,
        protocol: Protocol,
    ) -> Result<Bytes, LinkError> {
        self.0.call(target, request, replies, wrote, protocol, true).await
    }

    /// Counts what is about to be sent on a connection of one client's own. `None`: not to a store.
    pub fn count_sent(&self, target: &Target, wrote: Wrote) -> Option<Unanswered> {
        target.side().map(|side| self.0.tally.open(side, wrote))
    }

    /// Waits until the program is told to end. One caller.
    pub async fn stopped(&self) {
        self.0.stop.notified().await;
    }

    /// Waits until everything was heard that this worker has been told by now.
    pub async fn caught_up(&self, deadline: std::time::Instant) {
        let (done, turned) = oneshot::channel();
        self.0.peers.send(self.0.worker, Message::Turned { done });
        let _ = tokio::time::timeout_at(deadline.into(), turned).await;
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
        self.0.follow_primaries();
        let now = std::time::Instant::now();
        self.0.traffic.tick(now);
        self.0.slow_log.tick(&self.0.stores, &self.0.table.borrow(), now);
    }

    /// Notes that a request for a key was refused because its keys are not in one place.
    pub fn note_refused(&self, key: &Key) {
        self.0.traffic.refuse(&self.0.table.borrow(), &key.name);
    }

    /// What this worker is doing.
    pub fn load(&self) -> Load {
        let (exceptional_keys, diverged_keys) = self.0.lane.borrow().sizes();
        Load {
            in_flight: self.0.pause.sessions.in_flight() + self.0.pause.lanes.in_flight(),
            requests: self.0.pause.sessions.entered(),
            lane_operations: self.0.pause.lanes.entered(),
            exceptional_keys: exceptional_keys as u64,
            diverged_keys: diverged_keys as u64,
            held_bytes: self.0.stores.held_bytes(),
            queued_standalone: self.0.stores.queued_bytes(StoreSide::Standalone),
            queued_cluster: self.0.stores.queued_bytes(StoreSide::Cluster),
            subscriptions: self.0.channels.subscriptions.load(),
            slow_standalone: self.0.stores.watch(StoreSide::Standalone).slow(),
            slow_cluster: self.0.stores.watch(StoreSide::Cluster).slow(),
        }
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
    /// [`Stores::held_bytes`].
    pub held_bytes: u64,
    /// [`Stores::queued_bytes`].
    pub queued_standalone: u64,
    pub queued_cluster: u64,
    pub subscriptions: SubscriptionLoad,
    /// Requests that the store took long for, since the start.
    pub slow_standalone: u64,
    pub slow_cluster: u64,
}

impl Inner {
    pub(super) async fn call(
        &self,
        target: &Target,
        request: &Bytes,
        replies: u32,
        wrote: Wrote,
        protocol: Protocol,
        may_be_refused: bool,
    ) -> Result<Bytes, LinkError> {
        let unanswered = target.side().map(|side| self.tally.open(side, wrote));
        let (sender, receiver) = oneshot::channel();
        let (waiter, protocol) = (EngineWaiter::Once { sender, may_be_refused }, Some(protocol));
        match target {
            Target::Standalone { db } => self.stores.standalone_batch(*db, request.clone(), replies, protocol, waiter),
            Target::Slot(slot) => self.stores.cluster_batch(*slot, request.clone(), replies, protocol, waiter),
            Target::Node(address) => self.stores.node(address, request.clone(), protocol, waiter),
            Target::Peer { db } => self.stores.peer(*db, request.clone(), replies, protocol, waiter),
        }
        let answer = receiver.await.unwrap_or(Err(LinkError::Lost));
        if let Some(unanswered) = unanswered
            && answer.as_ref().err().is_none_or(|error| !error.may_have_run())
        {
            unanswered.answered();
        }
        answer
    }

    /// A request about one key, which is argument `index`, as a side is to get it.
    pub(super) fn address(&self, side: Side, (key, index): (&Key, usize), request: Bytes) -> Addressed {
        if side == Side::Standalone {
            return Addressed { to: Target::Standalone { db: key.db }, request };
        }
        let table = self.table.borrow();
        let whole = table.is_renamed().then(|| Request::parse(request.clone())).flatten();
        let request = whole.map_or(request, |whole| table.rename(&whole, &[(index, key.db)]));
        Addressed { to: Target::Slot(table.slot_of(key.db, &key.name)), request }
    }

    /// Sends it, if this proxy may do dual writes.
    pub(super) fn send(&self, addressed: Addressed, protocol: Option<Protocol>, waiter: EngineWaiter) {
        let Addressed { to, request } = addressed;
        if !self.stores.fence().is_holder() {
            let error = LinkError::Down("this proxy does not hold the lease of the dual routes".into());
            return waiter.complete(request, Err(error));
        }
        match to {
            Target::Standalone { db } => self.stores.standalone(db, request, protocol, waiter),
            Target::Slot(slot) => self.stores.cluster(slot, request, protocol, waiter),
            Target::Node(address) => self.stores.node(&address, request, protocol, waiter),
            Target::Peer { db } => self.stores.peer(db, request, 1, protocol, waiter),
        }
    }

    fn submit_renamed(
        self: &Rc<Self>,
        request: Request,
        spec: &'static CommandSpec,
        places: &[(usize, u32)],
        caller: Caller,
        ticket: Ticket,
    ) {
        let Caller { db, protocol, to } = caller;
        let (slot, renamed) = {
            let table = self.table.borrow();
            let (first, first_db) = places[0];
            (table.slot_of(first_db, request.arg(first)), table.cluster_request(db, spec, &request))
        };
        let engine = self.clone();
        let waiter = match command::tells_keys(spec) {
            true => EngineWaiter::Renamed { engine, to, asked: Box::new((ticket, db, request, spec)) },
            false => EngineWaiter::Direct { engine, to, ticket },
        };
        self.stores.cluster(slot, renamed, Some(protocol), waiter);
    }

    /// A reply of the cluster with the application's names in it.
    pub(super) fn own_reply<'r>(&self, db: u32, spec: &CommandSpec, request: &Request, reply: Reply<'r>) -> Reply<'r> {
        match self.table.borrow().own_reply(db, spec, request, reply.bytes()) {
            Some(renamed) => Reply::Whole(renamed),
            None => reply,
        }
    }

    pub(super) fn write_journal(self: &Rc<Self>, key: Key) {
        let (peers, worker, written) = (self.peers.clone(), self.worker, key.clone());
        self.journal.add(key, move || peers.send(worker, Message::Journaled { key: written }));
    }

    fn hear(self: Rc<Self>, message: Message) {
        match message {
            Message::Lane(op) => {
                self.arrive_from_afar(*op);
            }
            Message::Reply { id, outcome } => {
                let (to, ticket) = self.remote.borrow_mut().remove(id);
                self.pause.sessions.leave(ticket);
                to.port.deliver(to.seq, outcome.map(Reply::Whole));
            }
            // What a job asks for in the midst of a flip comes after it; a command's own copies are older than the closing.
            Message::Resync { ref key, done: Some(_), .. } | Message::Touch { ref key, .. }
                if self.is_lane_closed(key) =>
            {
                self.pause.defer(message);
            }
            Message::Resync { key, way, done } => {
                self.choose_way(&key, way);
                self.copy(key, done, Lane::resync);
            }
            Message::Touch { key, way, done } => {
                self.choose_way(&key, way);
                self.enter_lane(self.standing(&key), key, None, Work::Touch, LaneReply::Done(done));
            }
            Message::Lend { key, done } => {
                self.enter_lane(self.standing(&key), key, None, Work::Lend, LaneReply::Done(done));
            }
            Message::Return { key, outcome, done }
                if outcome == Outcome::Refused || self.plan(&key).follower.is_none() =>
            {
                self.lane.borrow_mut().give_back(&key, 1);
                done.map(|done| done.send(Ok(())));
            }
            Message::Return { key, done, .. } => self.copy(key, done, Lane::give_back_changed),
            Message::Hold { key, granted } => {
                let to = LaneReply::Granted(Some(granted), None);
                self.enter_lane(self.standing(&key), key, None, Work::Hold, to);
            }
            Message::Release { key, outcome, done } => self.release(key, outcome, done),
            Message::Journaled { key } => {
                let generation = self.generation(&key);
                self.with_lane(|lane, orders| lane.journaled(&key, generation, orders));
            }
            // The route has left its dual phase since.
            Message::Recover { key } if self.plan(&key).follower.is_none() => self.journal.remove(&key),
            Message::Recover { key } => {
                self.with_lane(|lane, orders| lane.recover(&key, orders));
            }
            Message::Watch { routes, all, asked_for, drained } => {
                self.asked_for.replace(Some(asked_for));
                self.close(Stage::Sessions, routes, all, drained);
            }
            Message::Close { stage, routes, all, drained } => {
                self.asked_for.take();
                self.close(stage, routes, all, drained);
            }
            Message::Turned { done } => answer_after_turn(done),
            Message::Turn { side, done } => self.turn(side, done),
            Message::Tally { done } => {
                // An operation of a lane may wait for both stores.
                let in_flight = self.pause.sessions.in_flight() + 2 * self.pause.lanes.in_flight();
                // Nobody waits any more where the looker gave up.
                let _ = done.send(self.tally.sent(in_flight));
            }
            Message::Install { table, done } => {
                self.install(table);
                // The adoption waits for it unless the program ends.
                let _ = done.send(());
            }
            Message::Open => self.open(),
            Message::Lease => {
                self.leased.notify_waiters();
                self.closing.notify_waiters();
            }
            Message::Stop => {}
        }
    }

    pub(super) fn plan(&self, key: &Key) -> Plan {
        Plan::of_key(&self.table.borrow(), key)
    }

    pub(super) fn generation(&self, key: &Key) -> u32 {
        self.plan(key).generation()
    }

    fn close(&self, stage: Stage, routes: HashSet<u64>, all: bool, drained: oneshot::Sender<()>) {
        self.pause.close(stage, routes, all, drained);
        self.closing.notify_waiters();
        self.look_at_drains();
    }

    fn look_at_drains(&self) {
        for drained in self.pause.drained(&self.table.borrow(), &self.lane.borrow()) {
            // The adoption may have given up by now.
            let _ = drained.send(());
        }
    }

    fn is_lane_closed(&self, key: &Key) -> bool {
        self.pause.is_lane_closed(&self.table.borrow(), key)
    }

    fn install(&self, table: Arc<Table>) {
        let old = self.table.replace(table.clone());
        install::recount(&self.lane.borrow(), &old, &table);
        let mut tables = self.tables.borrow_mut();
        if tables.back().is_some_and(|newest| newest.version() != table.version()) {
            tables.push_back(table.clone());
        }
        if tables.len() > TABLES_MAX {
            tables.pop_front();
        }
    }

    fn open(self: &Rc<Self>) {
        let table = self.table.borrow().clone();
        // A route without a follower has nothing that could diverge, and the next time that it has one all is found anew.
        let gone = self.lane.borrow_mut().forget(|key| Plan::of_key(&table, key).follower.is_none());
        gone.iter().for_each(|key| self.journal.remove(key));
        if !gone.is_empty() {
            tracing::info!(
                keys = gone.len(),
                "routes left their dual phase; that these keys differed does not matter any more"
            );
        }
        self.asked_for.take();
        for message in self.pause.open() {
            self.clone().hear(message);
        }
        self.publish_waiting();
        self.opened.notify_waiters();
    }

    pub(super) fn count_divergence(&self, key: &Key, by: i64) {
        let Some(dual) = Plan::of_key(&self.table.borrow(), key).dual else { return };
        dual.add_divergence(by);
        if by > 0 && self.lane.borrow().sizes().1 > DIVERGED_KEYS_MAX {
            self.give_up_counting();
        }
    }

    /// Too many keys have diverged to remember them one by one: their routes are in doubt as a whole, and walked when both
    /// stores answer. What is in the journal stays: of that clients were told.
    fn give_up_counting(&self) {
        // First the doubt, so that no flip finds neither it nor the keys.
        self.stores.doubt();
        let table = self.table.borrow();
        let forgotten = self.lane.borrow_mut().forget(|key| {
            let plan = Plan::of_key(&table, key);
            let Some(dual) = plan.dual.as_ref().filter(|_| matches!(Mode::of(&plan), Mode::Mirror { .. })) else {
                return false;
            };
            if !dual.is_in_doubt() {
                dual.set_in_doubt(true);
            }
            dual.add_divergence(-1);
            true
        });
        if !forgotten.is_empty() {
            tracing::error!(
                keys = forgotten.len(),
                "more diverged keys than are remembered one by one; their routes are in doubt as a whole until a backfill has gone through them, which begins by itself"
            );
        }
    }
}
