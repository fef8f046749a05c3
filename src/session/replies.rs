//! The answers of one client, in the order of its requests.
//!
//! The answer to the oldest open request goes straight into the out-buffer; one that is early waits in its slot. The
//! worker's flusher writes each buffer once a turn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::dual::ReplyPort;
use crate::resp::refusal::Refusal;
use crate::session::bounds::Bounds;
use crate::session::refused;
use crate::store::Reply;
use crate::store::link::{Dirty, OutBuffer};
use crate::wire::WriteHalf;

/// Which answers are kept from the client (CLIENT REPLY).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mute {
    #[default]
    No,
    /// That of the request behind the one that is about to be numbered.
    Soon,
    /// That of the next request.
    Next,
    All,
}

thread_local! {
    /// Clients of this worker that were closed because they did not read.
    static SLOW: Cell<u64> = const { Cell::new(0) };
}

/// Adds how many clients this thread closed since the last time.
pub fn publish_slow(total: &AtomicU64) {
    total.fetch_add(SLOW.take(), Ordering::Relaxed);
}

/// Memory that a client's buffer of answers may keep between them.
const KEPT_BYTES: usize = 64 << 10;

/// See the module.
pub struct Replies {
    stream: WriteHalf,
    /// The number of the oldest request without an answer.
    oldest: Cell<u64>,
    next: Cell<u64>,
    /// Answers before their turn, the oldest open request's place first; empty as long as all come in turn.
    early: RefCell<VecDeque<Option<Bytes>>>,
    /// Requests whose answers are kept from the client, the oldest first; most clients have none.
    muted: RefCell<VecDeque<u64>>,
    out: RefCell<OutBuffer>,
    is_marked: Cell<bool>,
    is_draining: Cell<bool>,
    mute: Cell<Mute>,
    dirty: Rc<Dirty<Replies>>,
    me: std::rc::Weak<Replies>,
    bounds: Arc<Bounds>,
    /// Told at the next answer, if somebody waits for it, and when the client is to be closed.
    settled: Notify,
    is_awaited: Cell<bool>,
    pub closed: Notify,
    is_closed: Cell<bool>,
}

impl Replies {
    /// A client that leaves more unread than `bounds` allow is closed.
    pub fn new(stream: WriteHalf, dirty: Rc<Dirty<Replies>>, bounds: Arc<Bounds>) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            stream,
            oldest: Cell::new(0),
            next: Cell::new(0),
            early: RefCell::new(VecDeque::new()),
            muted: RefCell::new(VecDeque::new()),
            out: RefCell::new(OutBuffer::keeping(KEPT_BYTES)),
            is_marked: Cell::new(false),
            is_draining: Cell::new(false),
            mute: Cell::new(Mute::No),
            dirty,
            me: me.clone(),
            bounds,
            settled: Notify::new(),
            is_awaited: Cell::new(false),
            closed: Notify::new(),
            is_closed: Cell::new(false),
        })
    }

    /// A number for the next request.
    pub fn number(&self) -> u64 {
        let seq = self.next.replace(self.next.get() + 1);
        let (is_muted, next) = match self.mute.get() {
            Mute::No => return seq,
            Mute::Soon => (false, Mute::Next),
            Mute::Next => (true, Mute::No),
            Mute::All => (true, Mute::All),
        };
        self.mute.set(next);
        if is_muted {
            self.muted.borrow_mut().push_back(seq);
        }
        seq
    }

    /// Requests without an answer.
    pub fn open(&self) -> u64 {
        self.next.get() - self.oldest.get()
    }

    /// Waits until at most `open` requests are unanswered.
    pub async fn settle(&self, open: u64) {
        while self.open() > open && !self.is_closed.get() {
            self.is_awaited.set(true);
            self.settled.notified().await;
        }
    }

    /// Mutes the requests that are numbered from now on; gives what was before.
    pub fn mute(&self, mute: Mute) -> Mute {
        self.mute.replace(mute)
    }

    /// Appends bytes that answer no request (pushes), or whose turn has come.
    pub fn append(&self, reply: Reply<'_>) {
        self.append_by(|out| match reply {
            Reply::Small(bytes) => out.copy(bytes),
            Reply::Whole(bytes) => out.push(&bytes),
        });
    }

    /// The same with bytes that others get too.
    pub fn append_shared(&self, bytes: &Bytes) {
        self.append_by(|out| out.push(bytes));
    }

    #[inline]
    fn append_by(&self, append: impl FnOnce(&mut OutBuffer)) {
        if self.is_closed.get() {
            return;
        }
        let mut out = self.out.borrow_mut();
        append(&mut out);
        let (bytes, bytes_max) = (out.len(), self.unread_bytes_max());
        drop(out);
        if bytes > bytes_max {
            tracing::warn!(bytes_max, "a client leaves more replies unread than max_pending_reply_bytes; it is closed");
            SLOW.with(|slow| slow.set(slow.get() + 1));
            return self.close();
        }
        if !self.is_marked.replace(true)
            && let Some(me) = self.me.upgrade()
        {
            self.dirty.mark(me);
        }
    }

    /// Bytes that may wait for the client to read them.
    pub fn unread_bytes_max(&self) -> usize {
        self.bounds.pending_reply_bytes_max()
    }

    /// Ends the client.
    pub fn close(&self) {
        self.is_closed.set(true);
        *self.out.borrow_mut() = OutBuffer::keeping(KEPT_BYTES);
        self.closed.notify_one();
        self.settled.notify_waiters();
    }

    /// Whether it was ended.
    pub fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Whether everything is written.
    pub fn is_flushed(&self) -> bool {
        self.out.borrow().is_empty() && !self.stream.has_unsent()
    }

    /// Writes; what the socket does not take now is written when it does.
    pub fn flush(&self) {
        self.is_marked.set(false);
        let outcome = self.out.borrow_mut().write_to(&self.stream);
        if outcome.is_err() {
            return self.close();
        }
        if !self.is_flushed()
            && !self.is_draining.replace(true)
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

    /// Puts an answer into its turn, which may be now.
    fn place(&self, seq: u64, reply: Reply<'_>) {
        if seq != self.oldest.get() {
            return self.keep(seq, reply);
        }
        self.take_turn(reply);
        if !self.early.borrow().is_empty() {
            self.take_early();
        }
        if self.is_awaited.take() {
            self.settled.notify_waiters();
        }
    }

    fn take_turn(&self, reply: Reply<'_>) {
        let seq = self.oldest.replace(self.oldest.get() + 1);
        let mut muted = self.muted.borrow_mut();
        if muted.front() == Some(&seq) {
            muted.pop_front();
            return;
        }
        drop(muted);
        self.append(reply);
    }

    fn keep(&self, seq: u64, reply: Reply<'_>) {
        if !(self.oldest.get()..self.next.get()).contains(&seq) {
            return;
        }
        let index = (seq - self.oldest.get()) as usize;
        let mut early = self.early.borrow_mut();
        if early.len() <= index {
            early.resize(index + 1, None);
        }
        early[index] = Some(reply.to_bytes());
    }

    /// The oldest was just answered: takes its place away, and then what was only waiting for it.
    fn take_early(&self) {
        loop {
            let ready = {
                let mut early = self.early.borrow_mut();
                early.pop_front();
                early.front_mut().and_then(Option::take)
            };
            let Some(bytes) = ready else { return };
            self.take_turn(Reply::Whole(bytes));
        }
    }
}

impl ReplyPort for Replies {
    fn deliver(&self, seq: u64, outcome: Result<Reply<'_>, Refusal>) {
        match outcome {
            Ok(reply) => self.place(seq, reply),
            Err(refusal) => {
                refused::count(&refusal);
                let mut text = BytesMut::new();
                refusal.write(&mut text);
                self.place(seq, Reply::Small(&text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::Pin;
    use std::task::Poll;

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::session::SessionLimits;

    async fn replies() -> (Rc<Replies>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_, writer) = listener.accept().await.unwrap().0.into_split();
        let bounds = Arc::new(Bounds::new(&SessionLimits {
            clients_max: 1,
            query_bytes_max: 1 << 20,
            pending_reply_bytes_max: 1 << 20,
            idle_timeout: std::time::Duration::ZERO,
            drain_timeout: std::time::Duration::ZERO,
        }));
        (Replies::new(WriteHalf::Plain(writer), Rc::new(Dirty::new(Rc::new(Notify::new()))), bounds), client)
    }

    async fn poll<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
        poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn answers_go_out_in_the_order_of_the_requests_whatever_order_they_come_in() {
        let (replies, mut client) = replies().await;
        let mut wanted = Vec::new();
        for order in [[0u64, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 0, 4, 2, 3], [2, 4, 0, 3, 1]] {
            let first = replies.next.get();
            for _ in order {
                replies.number();
            }
            for seq in order.map(|place| first + place) {
                replies.deliver(seq, Ok(Reply::Small(format!(":{seq}\r\n").as_bytes())));
            }
            wanted.extend((first..first + 5).map(|seq| format!(":{seq}\r\n")));
            assert_eq!((replies.open(), replies.early.borrow().len()), (0, 0));
        }
        // Nobody asked for these.
        replies.deliver(3, Ok(Reply::Small(b"+late\r\n")));
        replies.deliver(99, Ok(Reply::Small(b"+never\r\n")));
        replies.flush();
        let wanted = wanted.concat();
        let mut got = vec![0; wanted.len()];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&got), wanted);
        assert!(replies.is_flushed());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_waits_for_answers_hears_of_each_until_few_enough_are_open() {
        let (replies, _client) = replies().await;
        let seqs = [replies.number(), replies.number(), replies.number()];
        let mut few = std::pin::pin!(replies.settle(1));
        assert!(poll(few.as_mut()).await.is_pending());
        replies.deliver(seqs[0], Ok(Reply::Small(b"+OK\r\n")));
        assert!(poll(few.as_mut()).await.is_pending());
        replies.deliver(seqs[1], Err(Refusal::StoreDown));
        assert!(poll(few.as_mut()).await.is_ready());
        let mut none = std::pin::pin!(replies.settle(0));
        assert!(poll(none.as_mut()).await.is_pending());
        replies.close();
        assert!(poll(none.as_mut()).await.is_ready());
    }
}
