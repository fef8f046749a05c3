//! What workers say to each other, and what the control thread and its jobs say to them.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::command::CommandSpec;
use crate::dual::install::Stage;
use crate::dual::lane::Outcome;
use crate::dual::tally::Sent;
use crate::resp::refusal::Refusal;
use crate::resp::reply::Protocol;
use crate::resp::request::Request;
use crate::routing::{Key, Side, Table};

/// What workers say to each other and what the control thread and its jobs say to them.
pub enum Message {
    Lane(Box<RemoteOp>),
    Reply {
        id: usize,
        outcome: Result<Bytes, Refusal>,
    },
    Resync {
        key: Key,
        way: Way,
        done: Option<oneshot::Sender<Result<(), Refusal>>>,
    },
    Touch {
        key: Key,
        way: Way,
        done: oneshot::Sender<Result<(), Refusal>>,
    },
    /// Brings a key over and keeps it known as such until `Return`; see [`Work::Lend`](crate::dual::lane::Work).
    Lend {
        key: Key,
        done: oneshot::Sender<Result<(), Refusal>>,
    },
    /// Gives a lent key back. `Done` and `Doubt`: it may have changed and is copied, and `done` hears of the end.
    Return {
        key: Key,
        outcome: Outcome,
        done: Option<oneshot::Sender<Result<(), Refusal>>>,
    },
    Hold {
        key: Key,
        granted: oneshot::Sender<Result<(), Refusal>>,
    },
    Release {
        key: Key,
        outcome: Outcome,
        done: oneshot::Sender<Result<(), Refusal>>,
    },
    Journaled {
        key: Key,
    },
    Recover {
        key: Key,
    },
    /// Closes the sessions' gate and answers when it is drained; whatever is asked of the routes from then on is told.
    Watch {
        routes: HashSet<u64>,
        all: bool,
        asked_for: Arc<Notify>,
        drained: oneshot::Sender<()>,
    },
    /// Closes the sessions' or the lanes' gate and answers when it is drained.
    Close {
        stage: Stage,
        routes: HashSet<u64>,
        all: bool,
        drained: oneshot::Sender<()>,
    },
    /// Is answered when the worker has read what lies in its sockets.
    Turned {
        done: oneshot::Sender<()>,
    },
    /// Asks all subscribers over to a side, and answers when the last is there.
    Turn {
        side: Side,
        done: oneshot::Sender<()>,
    },
    /// Is answered with what the worker has sent that writes.
    Tally {
        done: oneshot::Sender<Sent>,
    },
    /// Takes a table (or keeps the old one) and answers. The gates stay closed: a worker that went on now could send a
    /// request into a lane that still has the other table.
    Install {
        table: Arc<Table>,
        done: oneshot::Sender<()>,
    },
    /// Opens both gates; every worker has the same table by then.
    Open,
    /// Another proxy holds the lease now, or this one does.
    Lease,
    Stop,
}

/// How a key is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By DUMP and RESTORE.
    Whole,
    /// The same, unless the follower turns out to have it already.
    IfDifferent,
    /// By its type, piece by piece: a large one would hold up everybody on its node.
    InPieces,
}

/// A request on its way to the lane of its key on another worker.
pub struct RemoteOp {
    pub(super) request: Request,
    pub(super) spec: &'static CommandSpec,
    /// Which argument the key is.
    pub(super) first: usize,
    pub(super) key: Key,
    pub(super) protocol: Protocol,
    pub(super) worker: usize,
    pub(super) id: usize,
}

/// A handle to every worker's inbox. Unbounded: each message stands for a request that its session's pipeline bound, or
/// for a job's own bound of keys in flight.
#[derive(Clone)]
pub struct Peers(pub Arc<Vec<mpsc::UnboundedSender<Message>>>);

impl Peers {
    /// The worker whose lane owns the keys of that name.
    pub fn lane_of(&self, name: &[u8]) -> usize {
        if self.0.len() == 1 { 0 } else { crc32fast::hash(name) as usize % self.0.len() }
    }

    /// Sends to one worker; a worker that has ended drops it, and with it whatever waits for an answer.
    pub fn send(&self, worker: usize, message: Message) {
        let _ = self.0[worker].send(message);
    }

    /// Copies a key from leader to follower through its lane.
    pub async fn resync(&self, key: Key) -> Result<(), Refusal> {
        let (done, ended) = oneshot::channel();
        self.send(self.lane_of(&key.name), Message::Resync { key, way: Way::Whole, done: Some(done) });
        ended.await.unwrap_or(Err(Refusal::UnknownOutcome))
    }
}
