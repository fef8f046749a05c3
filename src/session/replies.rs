//! The answers of one client, in the order of its requests.
//!
//! The answer to the oldest open request goes straight into the out-buffer; one that is early waits in its slot. The
//! worker's flusher writes each buffer once a turn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;

use crate::dual::ReplyPort;
use crate::resp::refusal::Refusal;
use crate::session::refused;
use crate::store::Reply;
use crate::store::link::{Dirty, OutBuffer};

/// Which answers are kept from the client (CLIENT REPLY).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mute {
    #[default]
    No,
    /// That of the next request.
    Next,
    All,
}

/// A request without an answer, or whose answer is early.
#[derive(Default)]
struct Slot {
    answer: Option<Bytes>,
    is_muted: bool,
}

/// See the module.
pub struct Replies {
    stream: OwnedWriteHalf,
    /// The number of the oldest request without an answer.
    oldest: Cell<u64>,
    next: Cell<u64>,
    early: RefCell<VecDeque<Slot>>,
    out: RefCell<OutBuffer>,
    is_marked: Cell<bool>,
    is_draining: Cell<bool>,
    mute: Cell<Mute>,
    dirty: Rc<Dirty<Replies>>,
    me: std::rc::Weak<Replies>,
    bytes_max: usize,
    /// Told when the last open request is answered, and when the client is to be closed.
    pub settled: Notify,
    pub closed: Notify,
    is_closed: Cell<bool>,
}

impl Replies {
    /// `bytes_max`: a client that leaves more unread is closed.
    pub fn new(stream: OwnedWriteHalf, dirty: Rc<Dirty<Replies>>, bytes_max: usize) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            stream,
            oldest: Cell::new(0),
            next: Cell::new(0),
            early: RefCell::new(VecDeque::new()),
            out: RefCell::new(OutBuffer::default()),
            is_marked: Cell::new(false),
            is_draining: Cell::new(false),
            mute: Cell::new(Mute::No),
            dirty,
            me: me.clone(),
            bytes_max,
            settled: Notify::new(),
            closed: Notify::new(),
            is_closed: Cell::new(false),
        })
    }

    /// A number for the next request.
    pub fn number(&self) -> u64 {
        let mute = self.mute.get();
        if mute == Mute::Next {
            self.mute.set(Mute::No);
        }
        self.early.borrow_mut().push_back(Slot { answer: None, is_muted: mute != Mute::No });
        self.next.replace(self.next.get() + 1)
    }

    /// Requests without an answer.
    pub fn open(&self) -> u64 {
        self.next.get() - self.oldest.get()
    }

    /// Waits until at most `open` requests are unanswered.
    pub async fn settle(&self, open: u64) {
        while self.open() > open && !self.is_closed.get() {
            self.settled.notified().await;
        }
    }

    /// Mutes the requests that are numbered from now on; gives what was before.
    pub fn mute(&self, mute: Mute) -> Mute {
        self.mute.replace(mute)
    }

    /// Appends bytes that answer no request (pushes), or whose turn has come.
    pub fn append(&self, reply: Reply<'_>) {
        if self.is_closed.get() {
            return;
        }
        let mut out = self.out.borrow_mut();
        match reply {
            Reply::Small(bytes) => out.copy(bytes),
            Reply::Whole(bytes) => out.push(&bytes),
        }
        let is_full = out.len() > self.bytes_max;
        drop(out);
        if is_full {
            tracing::warn!(bytes = self.bytes_max, "a client does not read its replies; closed");
            return self.close();
        }
        if !self.is_marked.replace(true)
            && let Some(me) = self.me.upgrade()
        {
            self.dirty.mark(me);
        }
    }

    /// Ends the client.
    pub fn close(&self) {
        self.is_closed.set(true);
        *self.out.borrow_mut() = OutBuffer::default();
        self.closed.notify_one();
        self.settled.notify_waiters();
    }

    /// Whether it was ended.
    pub fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Whether everything is written.
    pub fn is_flushed(&self) -> bool {
        self.out.borrow().is_empty()
    }

    /// Writes; what the socket does not take now is written when it does.
    pub fn flush(&self) {
        self.is_marked.set(false);
        let outcome = self.out.borrow_mut().write_to(&self.stream);
        if outcome.is_err() {
            return self.close();
        }
        if !self.is_flushed() && !self.is_draining.replace(true)
            && let Some(me) = self.me.upgrade()
        {
            tokio::task::spawn_local(async move {
                while !me.is_flushed() && !me.is_closed() {
                    tokio::select! {
                        ready = me.stream.writable() => if ready.is_err() { me.close() },
                        () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
                    }
                    let outcome = me.out.borrow_mut().write_to(&me.stream);
                    if outcome.is_err() {
                        me.close();
                    }
                }
                me.is_draining.set(false);
            });
        }
    }

    fn take_turn(&self, reply: Reply<'_>) {
        let slot = self.early.borrow_mut().pop_front();
        self.oldest.set(self.oldest.get() + 1);
        if !slot.is_some_and(|slot| slot.is_muted) {
            self.append(reply);
        }
    }
}

impl ReplyPort for Replies {
    fn deliver(&self, seq: u64, outcome: Result<Reply<'_>, Refusal>) {
        let mut text = BytesMut::new();
        let reply = match outcome {
            Ok(reply) => reply,
            Err(refusal) => {
                refused::count(&refusal);
                refusal.write(&mut text);
                Reply::Small(&text)
            }
        };
        if seq != self.oldest.get() {
            let index = seq.wrapping_sub(self.oldest.get()) as usize;
            if let Some(slot) = self.early.borrow_mut().get_mut(index) {
                slot.answer = Some(reply.to_bytes());
            }
            return;
        }
        self.take_turn(reply);
        loop {
            let ready = match self.early.borrow_mut().front_mut() {
                Some(slot) => slot.answer.take(),
                None => None,
            };
            match ready {
                Some(bytes) => self.take_turn(Reply::Whole(bytes)),
                None => break,
            }
        }
        self.settled.notify_waiters();
    }
}
