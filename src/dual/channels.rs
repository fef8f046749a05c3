//! The store on which all channels meet, and its flip: publishers wait, every subscriber subscribes on the new side and has
//! what the old one still sent, and only then is anything published there. So no message is lost or doubled.
//!
//! A message that is sent after somebody's SUBSCRIBE reaches it, as with one Redis, although the SUBSCRIBE may lie unread at
//! another worker, or may first have to open a connection: what is published waits for a turn of every worker, and then for
//! the SUBSCRIBEs that were read by then. Many messages share one such round.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::dual::engine::{Engine, EngineWaiter, Inner, ReplyTo};
use crate::dual::message::Message;
use crate::resp::refusal::Refusal;
use crate::resp::reply::Protocol;
use crate::routing::Side;
use crate::slot;

/// The gate's name for everything that is published; no route has it, for routes' names are hashed.
pub const PUBLISHED: u64 = 1;
/// Bytes of messages that may wait for a flip, a worker; beyond it publishers are refused.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// How long a message waits for a SUBSCRIBE that is not confirmed: as long as a connection may take.
const SUBSCRIBE_PATIENCE: Duration = Duration::from_secs(2);

/// SUBSCRIBEs of all workers that were read and are not confirmed yet.
#[derive(Default)]
pub struct Subscribing {
    /// How many there are: the cheap question.
    count: AtomicUsize,
    /// Their numbers, and the next one. Held for a change or a look only.
    open: Mutex<(BTreeSet<u64>, u64)>,
    confirmed: Notify,
}

impl Subscribing {
    fn is_any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    fn next(&self) -> u64 {
        self.open.lock().1
    }

    fn is_any_before(&self, number: u64) -> bool {
        self.is_any() && self.open.lock().0.first().is_some_and(|first| *first < number)
    }

    /// Waits until every SUBSCRIBE before `number` is confirmed, or too long.
    async fn wait_before(&self, number: u64, until: Instant) {
        loop {
            let confirmed = self.confirmed.notified();
            if !self.is_any_before(number) || tokio::time::timeout_at(until, confirmed).await.is_err() {
                return;
            }
        }
    }
}

/// A SUBSCRIBE that is not confirmed; confirmed or given up when dropped.
pub struct Unconfirmed {
    subscribing: Arc<Subscribing>,
    number: u64,
}

impl Drop for Unconfirmed {
    fn drop(&mut self) {
        self.subscribing.open.lock().0.remove(&self.number);
        self.subscribing.count.fetch_sub(1, Ordering::AcqRel);
        self.subscribing.confirmed.notify_waiters();
    }
}

/// What waits for its round, or for the end of a flip.
struct Published {
    request: Bytes,
    slot: u16,
    protocol: Protocol,
    to: ReplyTo,
}

/// The channels of one worker.
pub struct Channels {
    /// Where subscribers are to be.
    side: Cell<Side>,
    /// How many are on the standalone and on the cluster.
    seats: [Cell<usize>; 2],
    turned: Notify,
    done: RefCell<Option<oneshot::Sender<()>>>,
    waiting: RefCell<VecDeque<Published>>,
    waiting_bytes: Cell<usize>,
    /// Whether a task sends what waits.
    is_sending: Cell<bool>,
    subscribing: Arc<Subscribing>,
}

impl Channels {
    pub(super) fn new(side: Side, subscribing: Arc<Subscribing>) -> Self {
        Self {
            subscribing,
            is_sending: Cell::new(false),
            side: Cell::new(side),
            seats: Default::default(),
            turned: Notify::new(),
            done: RefCell::new(None),
            waiting: RefCell::new(VecDeque::new()),
            waiting_bytes: Cell::new(0),
        }
    }

    fn seats(&self, side: Side) -> &Cell<usize> {
        &self.seats[usize::from(side == Side::Cluster)]
    }

    /// Asks all subscribers over to a side; `done` is told when the last is there.
    pub(super) fn turn(&self, side: Side, done: oneshot::Sender<()>) {
        self.side.set(side);
        *self.done.borrow_mut() = Some(done);
        self.turned.notify_waiters();
        self.look();
    }

    fn look(&self) {
        if self.seats(self.side.get().other()).get() == 0
            && let Some(done) = self.done.borrow_mut().take()
        {
            // The adoption may have given up by now.
            let _ = done.send(());
        }
    }
}

/// A subscriber's place on a side; gives it up when dropped.
pub struct Seat {
    engine: Engine,
    side: Side,
}

impl Seat {
    /// The side of the subscriber's connection.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Whether the subscriber has to go over to the other side.
    pub fn is_behind(&self) -> bool {
        self.side != self.engine.0.channels.side.get()
    }

    /// The subscriber is on the side where all are to be.
    pub fn go_over(&mut self) {
        let channels = &self.engine.0.channels;
        channels.seats(self.side).set(channels.seats(self.side).get() - 1);
        self.side = channels.side.get();
        channels.seats(self.side).set(channels.seats(self.side).get() + 1);
        channels.look();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let channels = &self.engine.0.channels;
        channels.seats(self.side).set(channels.seats(self.side).get() - 1);
        channels.look();
    }
}

impl Engine {
    /// A seat for a new subscriber, on the side where all are to be.
    pub fn take_seat(&self) -> Seat {
        let channels = &self.0.channels;
        let side = channels.side.get();
        channels.seats(side).set(channels.seats(side).get() + 1);
        Seat { engine: self.clone(), side }
    }

    /// Counts in a SUBSCRIBE that was just read, until what this returns is dropped.
    pub fn begin_subscribe(&self) -> Unconfirmed {
        let subscribing = self.0.channels.subscribing.clone();
        subscribing.count.fetch_add(1, Ordering::AcqRel);
        let number = {
            let mut open = subscribing.open.lock();
            let number = open.1;
            open.1 += 1;
            open.0.insert(number);
            number
        };
        Unconfirmed { subscribing, number }
    }

    /// Waits until the SUBSCRIBEs that were sent before are confirmed.
    pub async fn subscribed(&self) {
        self.0.subscribed().await;
    }

    /// Waits until subscribers are asked over; ask [`Seat::is_behind`] then.
    pub async fn turned(&self) {
        self.0.channels.turned.notified().await;
    }

    /// Whether publishers have to wait.
    pub fn holds_publishers(&self) -> bool {
        self.has_closed() && self.0.sessions.is_closed(PUBLISHED)
    }

    /// Publishes, or asks about channels, on the store where they meet; during their flip when it is over. `channel` names the
    /// node of a cluster that is asked, which matters for shard channels only.
    pub fn publish(&self, request: &Bytes, channel: &[u8], protocol: Protocol, to: ReplyTo) {
        let channels = &self.0.channels;
        let (request, slot) = (request.clone(), slot::of(channel));
        let is_alone = self.0.peers.0.len() == 1 && !channels.subscribing.is_any();
        if is_alone && !self.holds_publishers() && channels.waiting.borrow().is_empty() {
            return self.0.publish(request, slot, protocol, to);
        }
        let published = Published { request, slot, protocol, to };
        let bytes = channels.waiting_bytes.get() + published.request.len();
        if bytes > WAITING_BYTES_MAX {
            return published.to.port.deliver(published.to.seq, Err(Refusal::StoreDown));
        }
        channels.waiting_bytes.set(bytes);
        channels.waiting.borrow_mut().push_back(published);
        self.0.publish_waiting();
    }
}

impl Inner {
    fn publish(self: &Rc<Self>, request: Bytes, slot: u16, protocol: Protocol, to: ReplyTo) {
        let ticket = self.sessions.enter(PUBLISHED);
        let waiter = EngineWaiter::Direct { engine: self.clone(), to, ticket };
        let side = self.table.borrow().pubsub().leader();
        match side {
            Side::Standalone => self.stores.standalone(self.db, &request, Some(protocol), waiter),
            Side::Cluster => self.stores.cluster(slot, &request, Some(protocol), waiter),
        }
    }

    /// Sends what waits in its order, unless a flip holds it up or a task does so already.
    pub(super) fn publish_waiting(self: &Rc<Self>) {
        if self.channels.waiting.borrow().is_empty() || self.channels.is_sending.replace(true) {
            return;
        }
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            engine.send_waiting().await;
            engine.channels.is_sending.set(false);
        });
    }

    /// A turn of every worker, in which what lies in its sockets is read, and then the end of all SUBSCRIBEs that were.
    async fn subscribed(&self) {
        let until = Instant::now() + SUBSCRIBE_PATIENCE;
        let others = (0..self.peers.0.len()).filter(|worker| *worker != self.worker);
        let ask = |worker| {
            let (done, turned) = oneshot::channel();
            self.peers.send(worker, Message::Turned { done });
            turned
        };
        let turns: Vec<_> = others.map(ask).collect();
        for turn in turns {
            // A worker that has ended has no subscribers.
            let _ = tokio::time::timeout_at(until, turn).await;
        }
        self.channels.subscribing.wait_before(self.channels.subscribing.next(), until).await;
    }

    async fn send_waiting(self: &Rc<Self>) {
        loop {
            let round = self.channels.waiting.borrow().len();
            if round == 0 {
                return;
            }
            self.subscribed().await;
            if self.sessions.is_closed(PUBLISHED) {
                // Whoever opens the gate begins again.
                return;
            }
            for _ in 0..round {
                let Some(published) = self.channels.waiting.borrow_mut().pop_front() else { return };
                let Published { request, slot, protocol, to } = published;
                self.channels.waiting_bytes.set(self.channels.waiting_bytes.get() - request.len());
                self.publish(request, slot, protocol, to);
            }
        }
    }
}

/// Answers when this worker has read what lay in its sockets: a task that yields is woken behind those that the sockets wake.
pub(super) fn answer_after_turn(done: oneshot::Sender<()>) {
    tokio::task::spawn_local(async move {
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        // The publisher may have waited long enough.
        let _ = done.send(());
    });
}
