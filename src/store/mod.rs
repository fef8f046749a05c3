//! One side, over the network: links to nodes, the slot map, redirects. A store knows no phase and no route.
//!
//! A worker has one link to each node and database, whatever the protocol of its clients: the protocol is switched in
//! band (`HELLO 2|3` in front of a request that wants the other one), so a link stays a FIFO for all of them and a reply is
//! never converted.

pub mod client_list;
mod cluster;
mod connect;
mod fence;
pub mod link;
mod loss;
mod overload;
pub mod private_link;
pub mod rdb;
pub mod slot_map;
mod stopwatch;
mod stores;
pub mod topology;

use std::time::Duration;

use bytes::Bytes;

use crate::secret::Secret;

pub use fence::{Fence, Role};
pub use loss::Loss;
pub use private_link::{PrivateLink, PrivateLinks};
pub use slot_map::SlotMap;
pub use stopwatch::{SlowLimit, SlowRequest, Stopwatch};
pub use stores::{StoreSide, Stores, StoresConfig};

/// Why a store gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The node can't be reached; nothing was sent.
    #[error("the node cannot be reached: {0}")]
    Down(String),
    /// The link broke after the request was sent: whether it ran is not known.
    #[error("the link broke while the reply was awaited")]
    Lost,
    /// No answer in time: whether it ran is not known.
    #[error("no reply in time")]
    TimedOut,
    /// The link's queue is full; nothing was sent.
    #[error("the queue of the link is full")]
    Overflow,
    /// The node's answers are late and stay so; nothing was sent.
    #[error("the node has more to do than it can")]
    Overloaded,
    /// Redirected or put off until the deadline; nothing ran.
    #[error("redirected too often")]
    Redirects,
    /// The node reads its data from disk and took nothing until the deadline; nothing ran.
    #[error("the node is loading its data")]
    Loading,
}

impl LinkError {
    /// Whether the command may have been executed all the same.
    pub fn may_have_run(&self) -> bool {
        match self {
            Self::Lost | Self::TimedOut => true,
            Self::Down(_) | Self::Overflow | Self::Overloaded | Self::Redirects | Self::Loading => false,
        }
    }
}

/// One whole reply.
#[derive(Debug)]
pub enum Reply<'a> {
    /// Borrowed from the link's buffer: to be copied.
    Small(&'a [u8]),
    /// On its own; may be kept without a copy.
    Whole(Bytes),
}

impl Reply<'_> {
    /// The frame.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Whole(bytes) => bytes,
        }
    }

    /// The frame, kept.
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Self::Small(bytes) => Bytes::copy_from_slice(bytes),
            Self::Whole(bytes) => bytes.clone(),
        }
    }
}

/// Whoever waits for the answer to a request. Called exactly once, on the worker's thread, from inside the link's read
/// loop or from `submit` itself when nothing could be sent; it may submit further requests.
pub trait Waiter: 'static {
    /// Takes the answer, and the request back that it answers.
    fn complete(self, request: Bytes, outcome: Result<Reply<'_>, LinkError>);
    /// The request may be refused where the store has more to do than it can: a client asked for it and nothing of it has run.
    fn may_be_refused(&self) -> bool {
        false
    }
    /// Somebody waits for the answer. What nobody waits for goes out a few turns later under load, with more of its kind.
    fn is_urgent(&self) -> bool {
        true
    }
}

/// How to reach and greet a node.
#[derive(Clone, Debug, Default)]
pub struct Login {
    pub user: Option<String>,
    pub password: Option<Secret>,
}

/// Time limits of a store's links.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a connection and its greeting.
    pub connect: Duration,
    /// For a reply; after it the link is closed and everything on it is of unknown outcome.
    pub reply: Duration,
    /// How long a request may wait for a store that is down, moving or failing over before it is refused.
    pub patience: Duration,
    /// How late replies may be before further requests are refused; zero: no matter how late.
    pub queue: Duration,
}
