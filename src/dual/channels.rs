//! The store on which all channels meet: what is published goes there, and waits while `pubsub` flips.
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

use crate::dual::audience::{Audience, Counted};
use crate::dual::engine::{Engine, EngineWaiter, Inner, ReplyTo, Target};
use crate::dual::message::Message;
use crate::dual::subscriptions::{MEETING_SLOT, Subscriptions};
use crate::dual::turn::Turn;
use crate::resp::refusal::Refusal;
use crate::resp::reply::Protocol;
use crate::resp::request::Request;
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
    request: Request,
    protocol: Protocol,
    to: ReplyTo,
}

/// The channels of one worker.
pub struct Channels {
    pub(super) subscriptions: Subscriptions,
    pub(super) turn: Turn,
    waiting: RefCell<VecDeque<Published>>,
    waiting_bytes: Cell<usize>,
    /// Whether a task sends what waits.
    is_sending: Cell<bool>,
    subscribing: Arc<Subscribing>,
}

impl Channels {
    pub(super) fn new(side: Side, subscribing: Arc<Subscribing>, audience: Arc<Audience>) -> Self {
        Self {
            subscriptions: Subscriptions::new(side, audience),
            turn: Turn::new(side),
            waiting: RefCell::new(VecDeque::new()),
            waiting_bytes: Cell::new(0),
            is_sending: Cell::new(false),
            subscribing,
        }
    }
}

impl Engine {
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

    /// Whether publishers have to wait.
    pub fn holds_publishers(&self) -> bool {
        self.has_closed() && self.0.pause.sessions.is_closed(PUBLISHED)
    }

    /// PUBLISH or SPUBLISH on the store where all channels meet; during their flip when it is over.
    pub fn publish(&self, request: Request, protocol: Protocol, to: ReplyTo) {
        let channels = &self.0.channels;
        let is_alone = self.0.peers.0.len() == 1 && !channels.subscribing.is_any();
        if is_alone && !self.holds_publishers() && channels.waiting.borrow().is_empty() {
            return self.0.publish(request, protocol, to);
        }
        let bytes = channels.waiting_bytes.get() + request.bytes().len();
        if bytes > WAITING_BYTES_MAX {
            return to.port.deliver(to.seq, Err(Refusal::StoreDown));
        }
        channels.waiting_bytes.set(bytes);
        channels.waiting.borrow_mut().push_back(Published { request, protocol, to });
        self.0.publish_waiting();
    }

    /// A target's answer to PUBLISH or PUBSUB as the application is to get it.
    pub fn heard(&self, target: &Target, request: &Request, frame: Bytes) -> Bytes {
        self.0.heard(target, request, &frame).unwrap_or(frame)
    }
}

impl Inner {
    fn publish(self: &Rc<Self>, request: Request, protocol: Protocol, to: ReplyTo) {
        let ticket = self.pause.sessions.enter(PUBLISHED);
        let bytes = request.bytes().clone();
        let side = self.table.borrow().pubsub().leader();
        let is_sharded = request.arg(0).eq_ignore_ascii_case(b"SPUBLISH");
        let slot = if is_sharded { slot::of(request.arg(1)) } else { MEETING_SLOT };
        let target = if side == Side::Standalone { Target::Standalone { db: self.db } } else { Target::Slot(slot) };
        let waiter = EngineWaiter::Published { engine: self.clone(), to, asked: Box::new((ticket, request, target)) };
        match side {
            Side::Standalone => self.stores.standalone(self.db, bytes, Some(protocol), waiter),
            Side::Cluster => self.stores.cluster(slot, bytes, Some(protocol), waiter),
        }
    }

    /// See [`Engine::heard`].
    pub(super) fn heard(&self, target: &Target, request: &Request, frame: &[u8]) -> Option<Bytes> {
        let is_sharded = request.arg(0).eq_ignore_ascii_case(b"SPUBLISH");
        let counted = match target {
            // A message published on another primary is counted by its own subscribers only.
            Target::Slot(slot) if !is_sharded => {
                let owner = |slot| self.stores.slot_endpoint(slot).map(|endpoint| endpoint.address);
                if owner(*slot) == owner(MEETING_SLOT) { Counted::WithLinks } else { Counted::WithoutLinks }
            }
            _ => Counted::WithLinks,
        };
        self.channels.subscriptions.audience.answer(request, frame, counted)
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
    pub(super) async fn subscribed(&self) {
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
            if self.pause.sessions.is_closed(PUBLISHED) {
                // Whoever opens the gate begins again.
                return;
            }
            for _ in 0..round {
                let Some(published) = self.channels.waiting.borrow_mut().pop_front() else { return };
                let Published { request, protocol, to } = published;
                self.channels.waiting_bytes.set(self.channels.waiting_bytes.get() - request.bytes().len());
                self.publish(request, protocol, to);
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
