//! The answers of one client, in the order of its requests.
//!
//! The answer to the oldest open request goes straight into the out-buffer; one that is early waits in its slot. The
//! worker's flusher writes each buffer once a turn. A client for which nothing waits has no buffer: it goes round among the
//! clients of the worker.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::dual::ReplyPort;
use crate::resp::refusal::Refusal;
use crate::session::bounds::Bounds;
use crate::session::clients::Client;
use crate::session::refused;
use crate::store::Reply;
use crate::store::link::{Dirty, LARGE_BYTES, OutBuffer};
use crate::wire::Socket;

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

/// Memory that a buffer of answers may keep between them.
const KEPT_BYTES: usize = 64 << 10;
/// Memory that the buffers of a worker may keep while no client needs them: small answers for ten thousand clients in one turn.
const SPARE_BYTES: usize = 4 << 20;

/// What waits for a client, or for answers to it.
struct Waiting {
    out: OutBuffer,
    /// Answers before their turn, the oldest open request's place first; empty as long as all come in turn.
    early: VecDeque<Option<Bytes>>,
    /// Requests whose answers are kept from the client, the oldest first; most clients have none.
    muted: VecDeque<u64>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.out.is_empty() && self.early.is_empty() && self.muted.is_empty()
    }

    fn held_bytes(&self) -> usize {
        let queues = self.early.capacity() * size_of::<Option<Bytes>>() + self.muted.capacity() * size_of::<u64>();
        size_of::<Self>() + self.out.held_bytes() + queues
    }
}

/// What the answers of a worker's clients share.
pub struct Outlet {
    dirty: Dirty<Replies>,
    bounds: Arc<Bounds>,
    /// The one that was given back last, which is in the caches, is taken first.
    #[expect(clippy::vec_box, reason = "a box goes to a client and comes back as it is")]
    spare: RefCell<Vec<Box<Waiting>>>,
    /// Of all of these.
    spare_bytes: Cell<usize>,
}

impl Outlet {
    /// `wake` is told when something is to be written.
    pub fn new(wake: Rc<Notify>, bounds: Arc<Bounds>) -> Self {
        Self { dirty: Dirty::new(wake), bounds, spare: RefCell::default(), spare_bytes: Cell::new(0) }
    }

    /// Writes what there is for each client; whether there was anything.
    pub fn flush(&self) -> bool {
        let clients = self.dirty.take();
        clients.iter().for_each(|replies| replies.flush());
        !clients.is_empty()
    }

    /// Memory of the buffers that no client needs now.
    pub fn spare_bytes(&self) -> usize {
        self.spare_bytes.get()
    }

    fn take_spare(&self) -> Box<Waiting> {
        let Some(spare) = self.spare.borrow_mut().pop() else {
            let (early, muted) = Default::default();
            return Box::new(Waiting { out: OutBuffer::keeping(KEPT_BYTES), early, muted });
        };
        self.spare_bytes.set(self.spare_bytes.get() - spare.held_bytes());
        spare
    }

    fn give_back(&self, waiting: Box<Waiting>) {
        let bytes = self.spare_bytes.get() + waiting.held_bytes();
        if bytes <= SPARE_BYTES {
            self.spare_bytes.set(bytes);
            self.spare.borrow_mut().push(waiting);
        }
    }
}

/// See the module.
pub struct Replies {
    socket: Socket,
    /// The number of the oldest request without an answer.
    oldest: Cell<u64>,
    next: Cell<u64>,
    waiting: RefCell<Option<Box<Waiting>>>,
    /// Of the task that waits for answers: woken at the next one.
    settling: Cell<Option<Waker>>,
    is_marked: Cell<bool>,
    is_draining: Cell<bool>,
    is_closed: Cell<bool>,
    mute: Cell<Mute>,
    client: Arc<Client>,
    outlet: Rc<Outlet>,
    me: std::rc::Weak<Replies>,
}

impl Replies {
    /// A client that leaves more unread than the bounds allow is closed.
    pub fn new(socket: Socket, client: Arc<Client>, outlet: Rc<Outlet>) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            socket,
            oldest: Cell::new(0),
            next: Cell::new(0),
            waiting: RefCell::new(None),
            settling: Cell::new(None),
            is_marked: Cell::new(false),
            is_draining: Cell::new(false),
            is_closed: Cell::new(false),
            mute: Cell::new(Mute::No),
            client,
            outlet,
            me: me.clone(),
        })
    }

    /// The client's connection, to be read.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    fn with_waiting<R>(&self, change: impl FnOnce(&mut Waiting) -> R) -> R {
        change(self.waiting.borrow_mut().get_or_insert_with(|| self.outlet.take_spare()))
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
            self.with_waiting(|waiting| waiting.muted.push_back(seq));
        }
        seq
    }

    /// Requests without an answer.
    pub fn open(&self) -> u64 {
        self.next.get() - self.oldest.get()
    }

    /// Waits until at most `open` requests are unanswered, or the client is to be closed; by one task at a time.
    pub async fn settle(&self, open: u64) {
        poll_fn(|context| self.poll_settled(open, context)).await;
    }

    pub fn poll_settled(&self, open: u64, context: &mut Context<'_>) -> Poll<()> {
        if self.open() <= open || self.is_closed.get() {
            return Poll::Ready(());
        }
        self.settling.set(Some(context.waker().clone()));
        Poll::Pending
    }

    /// Mutes the requests that are numbered from now on; gives what was before.
    pub fn mute(&self, mute: Mute) -> Mute {
        self.mute.replace(mute)
    }

    /// Appends bytes that answer no request (pushes), or whose turn has come.
    pub fn append(&self, reply: Reply<'_>) {
        self.append_by(|out| match reply {
            Reply::Small(bytes) => out.copy(bytes),
            Reply::Whole(bytes) => out.push(&bytes, LARGE_BYTES),
        });
    }

    /// The same with bytes that others get too.
    pub fn append_shared(&self, bytes: &Bytes) {
        self.append_by(|out| out.push(bytes, LARGE_BYTES));
    }

    #[inline]
    fn append_by(&self, append: impl FnOnce(&mut OutBuffer)) {
        if self.is_closed.get() {
            return;
        }
        let bytes = self.with_waiting(|waiting| {
            append(&mut waiting.out);
            waiting.out.len()
        });
        let bytes_max = self.unread_bytes_max();
        if bytes > bytes_max {
            tracing::warn!(bytes_max, "a client leaves more replies unread than max_pending_reply_bytes; it is closed");
            SLOW.with(|slow| slow.set(slow.get() + 1));
            return self.close();
        }
        if !self.is_marked.replace(true)
            && let Some(me) = self.me.upgrade()
        {
            self.outlet.dirty.mark(me);
        }
    }

    /// Bytes that may wait for the client to read them.
    pub fn unread_bytes_max(&self) -> usize {
        self.outlet.bounds.pending_reply_bytes_max()
    }

    /// Ends the client.
    pub fn close(&self) {
        self.is_closed.set(true);
        if let Some(waiting) = &mut *self.waiting.borrow_mut() {
            waiting.out = OutBuffer::keeping(KEPT_BYTES);
        }
        self.client.bell.ring();
        self.wake_settling();
    }

    /// Whether it was ended.
    pub fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Whether everything is written.
    pub fn is_flushed(&self) -> bool {
        self.waiting.borrow().as_ref().is_none_or(|waiting| waiting.out.is_empty()) && !self.socket.has_unsent()
    }

    /// Writes; what the socket does not take now is written when it does.
    pub fn flush(&self) {
        self.is_marked.set(false);
        self.write();
        if !self.is_flushed()
            && !self.is_closed()
            && !self.is_draining.replace(true)
            && let Some(me) = self.me.upgrade()
        {
            tokio::task::spawn_local(async move {
                while !me.is_flushed() && !me.is_closed() {
                    tokio::select! {
                        ready = me.socket.writable() => if ready.is_err() { me.close() },
                        () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
                    }
                    me.write();
                }
                me.is_draining.set(false);
            });
        }
    }

    fn write(&self) {
        let mut waiting = self.waiting.borrow_mut();
        let written = match &mut *waiting {
            Some(waiting) => waiting.out.write_to(&self.socket).map(drop),
            None => self.socket.send_on(),
        };
        if let Some(empty) = waiting.take_if(|waiting| waiting.is_empty()) {
            self.outlet.give_back(empty);
        }
        drop(waiting);
        if written.is_err() {
            self.close();
        }
    }

    fn wake_settling(&self) {
        if let Some(waker) = self.settling.take() {
            waker.wake();
        }
    }

    /// Puts an answer into its turn, which may be now.
    fn place(&self, seq: u64, reply: Reply<'_>) {
        if seq != self.oldest.get() {
            return self.keep(seq, reply);
        }
        self.take_turn(reply);
        self.take_early();
        self.wake_settling();
    }

    fn take_turn(&self, reply: Reply<'_>) {
        let seq = self.oldest.replace(self.oldest.get() + 1);
        let is_muted = self.waiting.borrow_mut().as_mut().is_some_and(|waiting| {
            let is_muted = waiting.muted.front() == Some(&seq);
            if is_muted {
                waiting.muted.pop_front();
            }
            is_muted
        });
        if !is_muted {
            self.append(reply);
        }
    }

    fn keep(&self, seq: u64, reply: Reply<'_>) {
        if !(self.oldest.get()..self.next.get()).contains(&seq) {
            return;
        }
        let index = (seq - self.oldest.get()) as usize;
        self.with_waiting(|waiting| {
            if waiting.early.len() <= index {
                waiting.early.resize(index + 1, None);
            }
            waiting.early[index] = Some(reply.to_bytes());
        });
    }

    /// The oldest was just answered: takes its place away, and then what was only waiting for it.
    fn take_early(&self) {
        loop {
            let ready = self.waiting.borrow_mut().as_mut().and_then(|waiting| {
                waiting.early.pop_front()?;
                waiting.early.front_mut()?.take()
            });
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
    use crate::session::{Clients, SessionLimits};
    use crate::wire::Stream;

    async fn replies() -> (Rc<Replies>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let bounds = Arc::new(Bounds::new(&SessionLimits {
            clients_max: 1,
            query_bytes_max: 1 << 20,
            pending_reply_bytes_max: 1 << 20,
            idle_timeout: std::time::Duration::ZERO,
            drain_timeout: std::time::Duration::ZERO,
        }));
        let outlet = Rc::new(Outlet::new(Rc::new(Notify::new()), bounds));
        let known = Clients::default().add(1, peer, peer);
        (Replies::new(Stream::Plain(stream).into(), known, outlet), client)
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
            assert_eq!(replies.open(), 0);
            assert!(replies.with_waiting(|waiting| waiting.early.is_empty()));
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
