//! The store on which all channels meet, and its flip: publishers wait, every subscriber subscribes on the new side and has
//! what the old one still sent, and only then is anything published there. So no message is lost or doubled.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use crate::dual::engine::{Engine, EngineWaiter, Inner, ReplyTo};
use crate::resp::refusal::Refusal;
use crate::resp::reply::Protocol;
use crate::routing::Side;
use crate::slot;

/// The gate's name for everything that is published; no route has it, for routes' names are hashed.
pub const PUBLISHED: u64 = 1;
/// Bytes of messages that may wait for a flip, a worker; beyond it publishers are refused.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// What waits for the end of a flip.
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
}

impl Channels {
    pub(super) fn new(side: Side) -> Self {
        Self {
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
        let (request, slot) = (request.clone(), slot::of(channel));
        let published = Published { request, slot, protocol, to };
        let channels = &self.0.channels;
        if !self.holds_publishers() {
            return self.0.publish(published);
        }
        let bytes = channels.waiting_bytes.get() + published.request.len();
        if bytes > WAITING_BYTES_MAX {
            return published.to.port.deliver(published.to.seq, Err(Refusal::StoreDown));
        }
        channels.waiting_bytes.set(bytes);
        channels.waiting.borrow_mut().push_back(published);
    }
}

impl Inner {
    fn publish(self: &std::rc::Rc<Self>, published: Published) {
        let Published { request, slot, protocol, to } = published;
        let ticket = self.sessions.enter(PUBLISHED);
        let waiter = EngineWaiter::Direct { engine: self.clone(), to, ticket };
        let side = self.table.borrow().pubsub().leader();
        match side {
            Side::Standalone => self.stores.standalone(self.db, &request, Some(protocol), waiter),
            Side::Cluster => self.stores.cluster(slot, &request, Some(protocol), waiter),
        }
    }

    /// The gates are open: what waited goes out in its order.
    pub(super) fn publish_waiting(self: &std::rc::Rc<Self>) {
        self.channels.waiting_bytes.set(0);
        for published in self.channels.waiting.take() {
            self.publish(published);
        }
    }
}
